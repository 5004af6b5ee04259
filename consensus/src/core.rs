//! What the parts of a running member share, and the way of a proposal and of a read through them.

use bytes::Bytes;
use openraft::type_config::async_runtime::watch::WatchReceiver;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use trireme_storage::{
    codec,
    command::{Command, CommandReply},
    model::Revision,
    state_machine::StateMachine,
    store::StoreError,
};

use crate::{
    bootstrap::Bootstrap,
    config::{Limits, Timing, WallClock},
    divergence::Integrity,
    leadership::Leadership,
    machine::Applied,
    metrics::Counts,
    proposer::{Outcome, Pending},
    read::{Reader, Waiting},
    silence::Silence,
    snapshot::Receiver,
    space::Disks,
    standing::Expulsion,
    transport::Channels,
    types::{Member, NodeId, Raft},
};

/// The pause before a refused proposal is tried again, doubled each time up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(80);

/// One running member.
pub struct Core {
    pub node_id: NodeId,
    pub member: Member,
    /// Where clients reach this member.
    pub client_urls: Vec<String>,
    pub now_ms: WallClock,
    /// The room on this member's disks.
    pub disks: Disks,
    pub raft: Raft,
    pub machine: StateMachine,
    pub applied: watch::Receiver<Applied>,
    pub leadership: watch::Receiver<Leadership>,
    pub channels: Channels,
    /// Into the log of this member, which must lead.
    pub proposals: mpsc::Sender<Pending>,
    /// To the leader.
    pub forwards: mpsc::Sender<Pending>,
    pub reads: mpsc::Sender<Waiting>,
    pub reader: Reader,
    pub incoming: Receiver,
    pub bootstrap: Bootstrap,
    /// Whether this member's data are to be trusted.
    pub integrity: Integrity,
    pub counts: Counts,
    pub silence: Silence,
    /// Held by the one change of the membership that this member makes at a time.
    pub changes: tokio::sync::Mutex<()>,
    /// Why this member takes part no more, if the group says so.
    pub expelled: watch::Sender<Option<Expulsion>>,
    pub timing: Timing,
    pub limits: Limits,
    pub shutdown: CancellationToken,
}

impl Core {
    /// Carries out a command: `Ok` means that it is durable on a majority and applied here.
    pub async fn propose(&self, command: &Command) -> Result<CommandReply, StoreError> {
        self.check_serving()?;
        let done = self.carry_out(command).await;
        if matches!(done, Err(StoreError::Unavailable(_) | StoreError::Unknown(_) | StoreError::NoSpace | StoreError::Failed(_)))
        {
            self.counts.proposals_failed.inc();
        }
        done
    }

    async fn carry_out(&self, command: &Command) -> Result<CommandReply, StoreError> {
        let encoded = codec::encode(command).map_err(|error| StoreError::InvalidTransaction(error.to_string()))?;
        if encoded.len() > self.limits.command_bytes {
            let (size, limit) = (encoded.len(), self.limits.command_bytes);
            return Err(StoreError::InvalidTransaction(format!("the request is too large: {size} bytes, the limit is {limit}")));
        }
        let encoded = Bytes::from(encoded);
        let deadline = Instant::now() + self.timing.request_timeout;
        let mut server = self.raft.server_metrics();
        let mut pause = SHORTEST_PAUSE;
        loop {
            let leader = server.borrow_and_update().current_leader;
            let refused = match leader {
                Some(leader) if leader == self.node_id => self.disks.refusal(command),
                // It would be carried out, and this member, which takes no entries, could not tell.
                _ if self.disks.turns_entries_away() => Some(Outcome::NoSpace),
                _ => None,
            };
            let outcome = match refused {
                Some(refused) => refused,
                None => self.attempt(leader, encoded.clone()).await,
            };
            let reason = match outcome {
                Outcome::Applied { index, result } => {
                    // A follower must have applied the write, too, before its client hears of it.
                    self.reader.wait_applied(index, Instant::now() + self.timing.request_timeout).await.map_err(|error| {
                        StoreError::Unknown(format!("the write is carried out, but not visible on this member yet: {error}"))
                    })?;
                    return result;
                }
                Outcome::Unknown(reason) => return Err(StoreError::Unknown(reason)),
                Outcome::NoSpace => return Err(StoreError::NoSpace),
                Outcome::Refused(reason) => reason,
            };
            if self.shutdown.is_cancelled() || Instant::now() + pause >= deadline {
                return Err(StoreError::Unavailable(reason));
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = server.changed() => {}
                () = self.shutdown.cancelled() => return Err(StoreError::Unavailable("this member shuts down".to_owned())),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn attempt(&self, leader: Option<NodeId>, command: Bytes) -> Outcome {
        let queue = match leader {
            None => return Outcome::Refused("no leader is known".to_owned()),
            Some(leader) if leader == self.node_id => &self.proposals,
            Some(_) => &self.forwards,
        };
        let (outcome, answer) = oneshot::channel();
        if queue.send(Pending { command, outcome }).await.is_err() {
            return Outcome::Refused("this member shuts down".to_owned());
        }
        answer.await.unwrap_or_else(|_| Outcome::Unknown("this member shut down before the answer".to_owned()))
    }

    /// Proposes a command that another member forwarded, here or not at all.
    pub async fn propose_forwarded(&self, command: Bytes) -> Outcome {
        // The answer would come from this member's data.
        if let Err(error) = self.check_serving() {
            return Outcome::Refused(error.to_string());
        }
        // What cannot be decoded must not get into the log, where every member would stumble over it.
        match codec::decode::<Command>(&command).map(|command| self.disks.refusal(&command)) {
            Ok(None) => {}
            Ok(Some(refused)) => return refused,
            Err(error) => return Outcome::Refused(format!("the forwarded command cannot be read: {error}")),
        }
        self.attempt(Some(self.node_id), command).await
    }

    /// Waits until this member has applied everything acknowledged anywhere before the call.
    pub async fn read_barrier(&self) -> Result<Revision, StoreError> {
        self.check_serving()?;
        let stopped = || StoreError::Unavailable("this member shuts down".to_owned());
        let (waiting, result) = oneshot::channel();
        self.reads.send(waiting).await.map_err(|_| stopped())?;
        result.await.map_err(|_| stopped())??;
        Ok(self.machine.revision())
    }
}
