//! One watcher: reads the store's changes from its start revision on, and hands over those that it is asked for.

use futures::FutureExt;
use prost::Message;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval_at},
};
use tonic::Status;
use trireme_storage::{
    model::{Event, EventBatch, EventKind, KeyRange, Revision},
    store::StoreError,
};

use crate::{
    check, convert,
    error::{EtcdError, refuse},
    proto::{etcdserverpb::WatchResponse, mvccpb},
    server::EtcdServer,
};

/// Where a stream's responses go.
pub type Answers = mpsc::Sender<Result<WatchResponse, Status>>;

/// Revisions that wait already are put in one response until it holds so many events.
const RESPONSE_EVENTS: usize = 1000;
/// Or so many bytes of keys and values.
const RESPONSE_BYTES: usize = 128 << 10;
/// A response of a watcher that takes fragments is no larger, unless one event is.
const FRAGMENT_BYTES: usize = check::REQUEST_BYTES;

/// What a watcher was asked for.
#[derive(Clone, Debug)]
pub struct WatcherSpec {
    pub id: i64,
    pub range: KeyRange,
    /// The first revision that it is told of; may lie in the future.
    pub start: Revision,
    pub puts: bool,
    pub deletes: bool,
    /// Whether events carry what the key was before.
    pub previous: bool,
    /// Whether large responses are split.
    pub fragments: bool,
    /// Whether it is told from time to time how far it is.
    pub notifies: bool,
}

impl WatcherSpec {
    fn wants(&self, event: &Event) -> bool {
        let kind_is_wanted = match event.kind {
            EventKind::Put => self.puts,
            EventKind::Delete => self.deletes,
        };
        kind_is_wanted && self.range.contains(&event.key_value.key)
    }
}

/// Events on their way into one response.
#[derive(Default)]
struct Gathered {
    events: Vec<mvccpb::Event>,
    bytes: usize,
    /// The revision up to which everything is in.
    through: Revision,
}

impl Gathered {
    fn take(&mut self, spec: &WatcherSpec, batch: &EventBatch) {
        self.through = batch.revision;
        if batch.revision < spec.start {
            return;
        }
        for event in batch.events.iter().filter(|event| spec.wants(event)) {
            self.bytes += event.key_value.key.len() + event.key_value.value.len();
            self.events.push(convert::event(event, spec.previous));
        }
    }

    fn is_full(&self) -> bool {
        self.events.len() >= RESPONSE_EVENTS || self.bytes >= RESPONSE_BYTES
    }
}

/// The events of each response that a long list is split into.
fn fragments(events: Vec<mvccpb::Event>, limit_bytes: usize) -> Vec<Vec<mvccpb::Event>> {
    let mut all = vec![Vec::new()];
    let mut bytes = 0;
    for event in events {
        let size = event.encoded_len();
        if bytes > 0 && bytes + size > limit_bytes {
            all.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(last) = all.last_mut() {
            last.push(event);
        }
    }
    all
}

/// Hands over what `spec` asks for until the client goes, or the watcher cannot go on; then it says so.
pub async fn run(server: EtcdServer, spec: WatcherSpec, answers: Answers, reached: watch::Sender<Revision>) {
    let watcher = Watcher { server: &server, spec: &spec, answers: &answers, reached };
    let Err(End::Store(error)) = watcher.follow().await else { return };
    let last = match error {
        StoreError::Compacted { compacted, .. } => Ok(WatchResponse {
            header: server.header(),
            watch_id: spec.id,
            canceled: true,
            compact_revision: convert::signed(compacted.0),
            cancel_reason: EtcdError::Compacted.to_string(),
            ..WatchResponse::default()
        }),
        // The stream ends with it; clients begin anew, here or at another member.
        error => Err(refuse(error)),
    };
    // The client may have gone.
    let _ = answers.send(last).await;
}

/// Why a watcher does not go on.
enum End {
    /// The client has gone.
    Gone,
    Store(StoreError),
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

struct Watcher<'a> {
    server: &'a EtcdServer,
    spec: &'a WatcherSpec,
    answers: &'a Answers,
    reached: watch::Sender<Revision>,
}

impl Watcher<'_> {
    async fn follow(&self) -> Result<std::convert::Infallible, End> {
        let store = &self.server.inner.store;
        // A watch of the store begins at the next revision at the latest.
        let mut changes = store.watch(self.spec.start.min(store.revision().next())).await?;
        let period = self.server.inner.progress_period;
        let mut ticks = interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_idle = true;
        loop {
            tokio::select! {
                batch = changes.next() => {
                    let mut gathered = Gathered::default();
                    gathered.take(self.spec, &batch?);
                    let mut failure = None;
                    while !gathered.is_full() {
                        match changes.next().now_or_never() {
                            None => break,
                            Some(Ok(batch)) => gathered.take(self.spec, &batch),
                            Some(Err(error)) => {
                                failure = Some(error);
                                break;
                            }
                        }
                    }
                    was_idle &= gathered.events.is_empty();
                    self.hand_over(gathered).await?;
                    if let Some(error) = failure {
                        return Err(error.into());
                    }
                }
                _ = ticks.tick(), if self.spec.notifies => {
                    if was_idle {
                        self.notify().await?;
                    }
                    was_idle = true;
                }
            }
        }
    }

    async fn send(&self, response: WatchResponse) -> Result<(), End> {
        self.answers.send(Ok(response)).await.map_err(|_| End::Gone)
    }

    async fn hand_over(&self, gathered: Gathered) -> Result<(), End> {
        let Gathered { events, through, .. } = gathered;
        if !events.is_empty() {
            let response =
                WatchResponse { header: self.server.header_at(through), watch_id: self.spec.id, ..WatchResponse::default() };
            if self.spec.fragments {
                let mut pieces = fragments(events, FRAGMENT_BYTES);
                let last = pieces.pop().unwrap_or_default();
                for events in pieces {
                    self.send(WatchResponse { fragment: true, events, ..response.clone() }).await?;
                }
                self.send(WatchResponse { events: last, ..response }).await?;
            } else {
                self.send(WatchResponse { events, ..response }).await?;
            }
        }
        self.reached.send_if_modified(|reached| {
            // Before its start a watcher has nothing to say, however far it has read.
            let goes_on = through > *reached;
            *reached = through.max(*reached);
            goes_on
        });
        Ok(())
    }

    /// Says that everything up to the header's revision has been handed over.
    async fn notify(&self) -> Result<(), End> {
        let reached = *self.reached.borrow();
        // A watcher that waits for a revision in the future must not promise it.
        let header = self.server.header_at(reached.min(self.server.inner.store.revision()));
        self.send(WatchResponse { header, watch_id: self.spec.id, ..WatchResponse::default() }).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(bytes: usize) -> mvccpb::Event {
        let kv = mvccpb::KeyValue { value: vec![0; bytes].into(), ..Default::default() };
        mvccpb::Event { kv: Some(kv), ..Default::default() }
    }

    #[test]
    fn long_responses_are_split_between_events() {
        let sizes = |events: &[usize]| -> Vec<usize> {
            fragments(events.iter().map(|bytes| event(*bytes)).collect(), 1000).iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(&[10, 10, 10]), [3]);
        assert_eq!(sizes(&[600, 600, 300, 600]), [1, 2, 1]);
        assert_eq!(sizes(&[5000, 10, 5000]), [1, 1, 1]);
    }
}
