//! openraft's state machine over [`StateMachine`]: applies batches of entries and answers each proposer as soon as its entry is applied.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::{
    OptionalSend, RaftSnapshotBuilder,
    storage::{ApplyResponder, EntryResponder, RaftStateMachine},
    type_config::alias::SnapshotOf,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use trireme_storage::{
    codec,
    command::{ApplyBatch, ApplyEntry, Command},
    fail_point,
    model::Term,
    state_machine::StateMachine,
    store::StoreError,
};

pub use crate::snapshot::SnapshotData;
use crate::{
    record::{self, AppliedState},
    snapshot::{self, ReceivedSnapshot},
    types::{Answers, LogId, Payload, SnapshotMeta, StoredMembership, TypeConfig, term_of},
};

/// Up to so many commands, or bytes of them, are applied in one engine batch.
const BATCH_COMMANDS: usize = 2048;
const BATCH_BYTES: usize = 8 << 20;
/// How long apply waits before it tries again on a disk without space.
const NO_SPACE_RETRY: Duration = Duration::from_millis(500);

/// How far this member has applied the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// One past the index of the last applied entry.
    next_index: u64,
    /// The term of that entry.
    pub term: u64,
}

impl Applied {
    fn new(last: Option<&LogId>) -> Self {
        last.map_or_else(Self::default, |id| Self { next_index: id.index + 1, term: term_of(id) })
    }

    /// Whether the entry at `index` is applied.
    pub fn has(&self, index: u64) -> bool {
        index < self.next_index
    }

    /// The index of the last applied entry.
    pub fn last_index(&self) -> Option<u64> {
        self.next_index.checked_sub(1)
    }
}

/// The state machine, as openraft wants it.
pub struct Machine {
    machine: StateMachine,
    state: AppliedState,
    applied: watch::Sender<Applied>,
    shutdown: CancellationToken,
}

/// Entries that are applied together.
#[derive(Default)]
struct Round {
    entries: Vec<ApplyEntry>,
    /// For every entry of the log, whether it has commands, and who waits for it.
    answers: Vec<(HasCommands, Option<ApplyResponder<TypeConfig>>)>,
    commands: usize,
    bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum HasCommands {
    Yes,
    No,
}

impl Machine {
    /// Reads how far `machine` has applied. Waiting for space on the disk ends at `shutdown`.
    pub fn new(machine: StateMachine, shutdown: CancellationToken) -> io::Result<Self> {
        let state = machine.applied().as_deref().map(record::decode_applied).transpose()?.unwrap_or_default();
        let applied = watch::Sender::new(Applied::new(state.last.as_ref()));
        Ok(Self { machine, state, applied, shutdown })
    }

    /// Follows what is applied.
    pub fn applied(&self) -> watch::Receiver<Applied> {
        self.applied.subscribe()
    }

    fn take(&mut self, round: &mut Round, (entry, responder): EntryResponder<TypeConfig>) -> io::Result<()> {
        assert!(self.state.last.is_none_or(|last| last.index < entry.log_id.index), "entries are applied in order, once");
        let has_commands = match entry.payload {
            Payload::Blank => HasCommands::No,
            Payload::Membership(membership) => {
                fail_point!("apply/membership/before");
                self.state.membership = StoredMembership::new(Some(entry.log_id), membership);
                HasCommands::No
            }
            Payload::Normal(proposal) => {
                let commands = proposal
                    .commands
                    .iter()
                    .map(|command| codec::decode::<Command>(command).map_err(io::Error::other))
                    .collect::<io::Result<Vec<_>>>()?;
                round.commands += commands.len();
                round.bytes += proposal.commands.iter().map(Bytes::len).sum::<usize>();
                round.entries.push(ApplyEntry { term: Term(term_of(&entry.log_id)), commands });
                HasCommands::Yes
            }
        };
        self.state.last = Some(entry.log_id);
        round.answers.push((has_commands, responder));
        Ok(())
    }

    async fn apply_round(&self, round: Round) -> io::Result<()> {
        let batch = ApplyBatch { entries: round.entries, applied: record::encode_applied(&self.state)? };
        let machine = self.machine.clone();
        let applying = with_space(&self.shutdown, "committed writes wait", move || {
            machine.metrics().time_apply(|| machine.apply(batch.clone()))
        });
        let mut results = applying.await?.into_iter();
        // Whoever is answered must find its write applied.
        self.applied.send_replace(Applied::new(self.state.last.as_ref()));
        fail_point!("apply/answer/before");
        for (has_commands, responder) in round.answers {
            let results = match has_commands {
                HasCommands::Yes => {
                    results.next().ok_or_else(|| io::Error::other("the state machine left an entry unanswered"))?
                }
                HasCommands::No => Vec::new(),
            };
            if let Some(responder) = responder {
                responder.send(Answers { results });
            }
        }
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        flush(&self.shutdown, &self.machine).await
    }
}

async fn flush(shutdown: &CancellationToken, machine: &StateMachine) -> io::Result<()> {
    let machine = machine.clone();
    with_space(shutdown, "the log is kept", move || machine.flush()).await
}

/// Does work that writes, again and again as long as the disk is full: an error would end this member, and its reads with it.
async fn with_space<T: Send + 'static>(
    shutdown: &CancellationToken,
    meanwhile: &str,
    work: impl Fn() -> Result<T, StoreError> + Send + Sync + 'static,
) -> io::Result<T> {
    let work = Arc::new(work);
    loop {
        let attempt = work.clone();
        match tokio::task::spawn_blocking(move || attempt()).await.map_err(io::Error::other)? {
            Ok(done) => return Ok(done),
            Err(StoreError::NoSpace) => tracing::error!(meanwhile, "no space left on the disk of the store"),
            Err(error) => return Err(io::Error::other(error)),
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(NO_SPACE_RETRY)).await.is_none() {
            return Err(io::Error::other("the member stops, and its disk is full"));
        }
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.state.last, self.state.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut round = Round::default();
        while let Some(item) = entries.next().await {
            self.take(&mut round, item?)?;
            if round.commands >= BATCH_COMMANDS || round.bytes >= BATCH_BYTES {
                self.apply_round(std::mem::take(&mut round)).await?;
            }
        }
        if !round.answers.is_empty() {
            self.apply_round(round).await?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { machine: self.machine.clone(), state: self.state.clone(), shutdown: self.shutdown.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        let manifest = match snapshot {
            SnapshotData::Received(received) => {
                let received = Mutex::new(received);
                let install = move || {
                    let ReceivedSnapshot { sink, manifest } = &mut **received.lock();
                    sink.finish(manifest).map(|()| manifest.clone())
                };
                with_space(&self.shutdown, "a snapshot waits", install).await?
            }
            SnapshotData::Own(from) => {
                let machine = self.machine.clone();
                let copying = tokio::task::spawn_blocking(move || snapshot::copy(&from, &machine));
                copying.await.map_err(io::Error::other)??
            }
        };
        let state = snapshot::applied_of(&manifest)?;
        assert!(state.last >= meta.last_log_id, "a snapshot holds what its description says");
        self.state = state;
        self.flush().await?;
        fail_point!("snapshot/install/after");
        self.applied.send_replace(Applied::new(self.state.last.as_ref()));
        tracing::info!(applied = self.state.last.map(|id| id.index), "installed a snapshot");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotData>>> {
        if self.state.last.is_none() {
            return Ok(None);
        }
        // The log may be purged up to a snapshot, so what a snapshot holds must be durable.
        self.flush().await?;
        Ok(Some(SnapshotOf::<TypeConfig, SnapshotData> {
            meta: self.state.snapshot_meta(),
            snapshot: SnapshotData::Own(self.machine.clone()),
        }))
    }
}

/// Makes everything applied so far durable: from then on the state machine itself is the snapshot, and the log before it may go.
pub struct SnapshotBuilder {
    machine: StateMachine,
    state: AppliedState,
    shutdown: CancellationToken,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, SnapshotData>> {
        fail_point!("snapshot/flush/before");
        flush(&self.shutdown, &self.machine).await?;
        fail_point!("snapshot/flush/after");
        Ok(SnapshotOf::<TypeConfig, SnapshotData> {
            meta: self.state.snapshot_meta(),
            snapshot: SnapshotData::Own(self.machine.clone()),
        })
    }
}
