//! Watches: the newest events from memory, older ones from history.
//!
//! The hub keeps the newest batches, shared by all watchers, up to a bound. A watcher holds nothing but the revision that it
//! wants next: it takes it from the hub, or, when it has fallen behind what the hub keeps, reads a bounded piece
//! of history. So no watcher can be skipped, and a slow one costs no memory.

use std::collections::VecDeque;

use async_trait::async_trait;
use parking_lot::RwLock;
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    history::HistoryLimits,
    model::{EventBatch, Revision},
    state_machine::StateMachine,
    store::{StoreError, Watch},
};

/// How many revisions the hub keeps at most.
const HUB_REVISIONS: usize = 8192;
/// How many bytes of keys and values the hub keeps at most (the newest revision it keeps in any case).
const HUB_BYTES: usize = 16 << 20;
/// How much a watcher that lags reads from history at once.
const CATCH_UP: HistoryLimits = HistoryLimits { revisions: 128, bytes: 1 << 20 };

#[derive(Default)]
struct Ring {
    /// The newest revisions, without a gap.
    batches: VecDeque<EventBatch>,
    bytes: usize,
    newest: Revision,
}

/// What the watchers see of the state machine: its newest batches.
pub(crate) struct Hub {
    ring: RwLock<Ring>,
    /// Wakes the watchers; `None` once the store is closed.
    newest: watch::Sender<Option<Revision>>,
}

/// Where the batch of a revision is.
enum Place {
    Here(EventBatch),
    History,
    Future,
}

fn size_bytes(batch: &EventBatch) -> usize {
    let previous = |event: &crate::model::Event| event.previous.as_ref().map_or(0, |previous| previous.value.len());
    batch.events.iter().map(|event| event.key_value.key.len() + event.key_value.value.len() + previous(event)).sum()
}

impl Hub {
    pub fn new(newest: Revision) -> Self {
        Self { ring: RwLock::new(Ring { newest, ..Ring::default() }), newest: watch::Sender::new(Some(newest)) }
    }

    /// Hands the next batches to the watchers.
    pub fn publish(&self, batches: Vec<EventBatch>) {
        if batches.is_empty() {
            return;
        }
        let mut ring = self.ring.write();
        for batch in batches {
            assert_eq!(batch.revision, ring.newest.next(), "events are published in order, without a gap");
            ring.newest = batch.revision;
            ring.bytes += size_bytes(&batch);
            ring.batches.push_back(batch);
        }
        while ring.batches.len() > 1 && (ring.batches.len() > HUB_REVISIONS || ring.bytes > HUB_BYTES) {
            if let Some(oldest) = ring.batches.pop_front() {
                ring.bytes -= size_bytes(&oldest);
            }
        }
        let newest = ring.newest;
        drop(ring);
        self.wake(Some(newest));
    }

    /// The state was replaced, and stands at `newest` now.
    pub fn reset(&self, newest: Revision) {
        *self.ring.write() = Ring { newest, ..Ring::default() };
        self.wake(Some(newest));
    }

    /// Ends every watch.
    pub fn close(&self) {
        self.newest.send_replace(None);
    }

    fn wake(&self, newest: Option<Revision>) {
        self.newest.send_if_modified(|current| {
            // Closed is for good.
            let open = current.is_some();
            if open {
                *current = newest;
            }
            open
        });
    }

    fn find(&self, revision: Revision) -> Place {
        let ring = self.ring.read();
        if revision > ring.newest {
            return Place::Future;
        }
        let position = ring.batches.front().and_then(|oldest| revision.0.checked_sub(oldest.revision.0));
        let batch = position.and_then(|position| ring.batches.get(usize::try_from(position).ok()?));
        batch.map_or(Place::History, |batch| Place::Here(batch.clone()))
    }
}

/// One watcher of a state machine.
pub struct StateWatch {
    machine: StateMachine,
    next: Revision,
    /// A piece of history, read ahead.
    caught_up: VecDeque<EventBatch>,
    /// The read of the next piece of history. Kept here, so that a caller who stops waiting finds it again.
    reading: Option<JoinHandle<Result<Vec<EventBatch>, StoreError>>>,
    newest: watch::Receiver<Option<Revision>>,
}

/// Where a watcher finds its next batch.
enum Next {
    Ready(EventBatch),
    /// In history, which a thread for blocking work has to read.
    History,
    NotYet,
}

impl StateWatch {
    pub(crate) fn new(machine: StateMachine, hub: &Hub, from: Revision) -> Self {
        let newest = hub.newest.subscribe();
        Self { machine, next: from.max(Revision(1)), caught_up: VecDeque::new(), reading: None, newest }
    }

    fn find_next(&mut self) -> Next {
        let batch = match self.caught_up.pop_front() {
            Some(batch) => batch,
            None => match self.machine.hub().find(self.next) {
                Place::Here(batch) => batch,
                Place::History => return Next::History,
                Place::Future => return Next::NotYet,
            },
        };
        assert_eq!(batch.revision, self.next, "a watch neither skips nor repeats");
        self.next = self.next.next();
        Next::Ready(batch)
    }

    /// Reads the next piece of history, without holding up the tasks that share this thread.
    async fn catch_up(&mut self) -> Result<(), StoreError> {
        let reading = self.reading.get_or_insert_with(|| {
            let (machine, from) = (self.machine.clone(), self.next);
            tokio::task::spawn_blocking(move || machine.events_from(from, CATCH_UP))
        });
        let read = reading.await.map_err(|error| StoreError::Failed(error.to_string()));
        self.reading = None;
        self.caught_up = read??.into();
        Ok(())
    }
}

#[async_trait]
impl Watch for StateWatch {
    async fn next(&mut self) -> Result<EventBatch, StoreError> {
        let closed = || StoreError::Unavailable("the store is closed".into());
        loop {
            if self.newest.borrow().is_none() {
                return Err(closed());
            }
            // Who has much to catch up with must let others run.
            tokio::task::consume_budget().await;
            match self.find_next() {
                Next::Ready(batch) => return Ok(batch),
                Next::History => {
                    self.catch_up().await?;
                    continue;
                }
                Next::NotYet => {}
            }
            let wanted = self.next;
            self.newest.wait_for(|newest| newest.is_none_or(|newest| newest >= wanted)).await.map_err(|_| closed())?;
        }
    }
}
