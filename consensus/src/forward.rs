//! Proposals of a follower on their way to the leader: one stream, kept open as long as the leader leads. Its breaking is
//! also how a follower learns at once that the leader's process died.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use openraft::{raft::TransferLeaderRequest, type_config::async_runtime::watch::WatchReceiver};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use trireme_storage::{codec, fail_point};

use crate::{
    machine::Applied,
    proposer::{Outcome, Pending},
    reopening::Reopening,
    transport::{Channels, Lane},
    types::{NodeId, Raft},
    wire::proto::{ForwardRequest, ForwardResponse, Forwarded, ForwardedOutcome, forwarded_outcome},
};

/// So many forwarded proposals may wait for their answers.
const WAITING: usize = 8192;
/// A message takes in waiting proposals, or their outcomes, up to this many bytes, and one more.
pub const MESSAGE_BYTES: usize = 1 << 20;
/// How long the answers of one message wait together until this member has applied their entries, too.
const TOGETHER: Duration = Duration::from_millis(100);

/// The leader that this member follows, and where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    leader: NodeId,
    address: String,
}

/// Carries proposals to the leader until `shutdown`.
pub struct Forwarder {
    pub own: NodeId,
    pub raft: Raft,
    pub channels: Channels,
    pub queue: mpsc::Receiver<Pending>,
    pub applied: watch::Receiver<Applied>,
    pub shutdown: CancellationToken,
}

enum SessionEnd {
    LeaderChanged,
    Broken(String),
    Closed,
}

impl Forwarder {
    pub async fn run(mut self) {
        let mut server = self.raft.server_metrics();
        let mut latest = None;
        let mut reopening = Reopening::default();
        let mut lapsed_term = None;
        loop {
            let target = self.target();
            let Some(target) = target else {
                tokio::select! {
                    () = self.shutdown.cancelled() => return,
                    changed = server.changed() => if changed.is_err() { return },
                    pending = self.queue.recv() => match pending {
                        Some(pending) => refuse(pending, "no leader is known"),
                        None => return,
                    },
                }
                continue;
            };
            if latest.as_ref() != Some(&target) {
                reopening = Reopening::default();
                latest = Some(target.clone());
            }
            let began = Instant::now();
            match self.session(&target).await {
                SessionEnd::Closed => return,
                SessionEnd::LeaderChanged => {}
                SessionEnd::Broken(reason) => {
                    let reaction = reopening.broke(began, Instant::now());
                    if let Some(times) = reaction.told {
                        tracing::info!(peer = %target.leader, reason, times, "the stream to the leader broke");
                    }
                    self.expire_dead_leader(&target, &mut lapsed_term).await;
                    self.pause(&target, reaction.pause).await;
                }
            }
        }
    }

    /// Waits, unless there is something else to do than to go to `target` again.
    async fn pause(&self, target: &Target, pause: Duration) {
        let mut server = self.raft.server_metrics();
        let elsewhere = async { while self.target().as_ref() == Some(target) && server.changed().await.is_ok() {} };
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
            () = elsewhere => {}
        }
    }

    /// The leader, unless it is this member or unknown.
    fn target(&self) -> Option<Target> {
        let server = self.raft.server_metrics();
        let metrics = server.borrow_watched();
        let leader = metrics.current_leader.filter(|leader| *leader != self.own)?;
        let address = metrics.membership_config.membership().get_node(&leader)?.address.clone();
        Some(Target { leader, address })
    }

    async fn session(&mut self, target: &Target) -> SessionEnd {
        let mut server = self.raft.server_metrics();
        let (outgoing, requests) = mpsc::unbounded_channel();
        let mut client = self.channels.client(target.leader, &target.address, Lane::Forward);
        let opening = client.forward(UnboundedReceiverStream::new(requests));
        let opened = tokio::select! {
            () = self.shutdown.cancelled() => return SessionEnd::Closed,
            opened = opening => opened,
        };
        let answers = match opened {
            Ok(response) => response.into_inner(),
            Err(status) => {
                // Nothing was sent: whoever waits here may try again.
                while let Ok(pending) = self.queue.try_recv() {
                    refuse(pending, "the leader cannot be reached");
                }
                return SessionEnd::Broken(status.to_string());
            }
        };
        let applied = self.applied.clone();
        let mut stream = Stream { outgoing, answers, waiting: HashMap::new(), next_id: 0, applied };
        loop {
            if self.target().as_ref() != Some(target) {
                // Who was sent to the old leader waits for it; nobody else does.
                let shutdown = self.shutdown.clone();
                tokio::spawn(async move { shutdown.run_until_cancelled(stream.drain()).await });
                return SessionEnd::LeaderChanged;
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return SessionEnd::Closed,
                pending = self.queue.recv(), if stream.waiting.len() < WAITING => match pending {
                    None => return SessionEnd::Closed,
                    Some(first) => if let Err(reason) = stream.send(first, &mut self.queue) {
                        return SessionEnd::Broken(reason);
                    },
                },
                answered = stream.answer() => if let Err(reason) = answered {
                    return SessionEnd::Broken(reason);
                },
                changed = server.changed() => if changed.is_err() {
                    return SessionEnd::Closed;
                },
            }
        }
    }

    /// When nobody listens any more where the leader was, its process is dead: there is no reason to honour the rest of its lease.
    /// Only liveness hangs on this; elections stay what they are. `lapsed_term` is the one of which this was last told.
    async fn expire_dead_leader(&self, target: &Target, lapsed_term: &mut Option<u64>) {
        if !self.channels.is_refused(target.leader, &target.address).await || self.target().as_ref() != Some(target) {
            return;
        }
        let vote = self.raft.server_metrics().borrow_watched().vote;
        if vote.leader_id.voted_for != target.leader {
            return;
        }
        if lapsed_term.replace(vote.leader_id.term) != Some(vote.leader_id.term) {
            tracing::info!(peer = %target.leader, term = vote.leader_id.term, "the leader's process is gone; its lease is over");
        }
        let lapse = TransferLeaderRequest::new(vote, target.leader, None);
        if let Err(error) = self.raft.handle_transfer_leader(lapse).await {
            tracing::warn!(%error, "cannot end the lease of the dead leader");
        }
    }
}

/// Proposals on their way to one leader, and who waits for its answers.
struct Stream {
    outgoing: mpsc::UnboundedSender<ForwardRequest>,
    answers: Streaming<ForwardResponse>,
    waiting: HashMap<u64, oneshot::Sender<Outcome>>,
    next_id: u64,
    applied: watch::Receiver<Applied>,
}

impl Stream {
    /// Sends `first` and what else waits in `queue`.
    ///
    /// # Errors
    /// Why the stream is of no more use.
    fn send(&mut self, first: Pending, queue: &mut mpsc::Receiver<Pending>) -> Result<(), String> {
        let (mut proposals, mut bytes) = (Vec::new(), 0);
        let mut next = Some(first);
        while let Some(Pending { command, outcome }) = next {
            self.next_id += 1;
            self.waiting.insert(self.next_id, outcome);
            bytes += command.len();
            proposals.push(Forwarded { id: self.next_id, command });
            next = (bytes < MESSAGE_BYTES && self.waiting.len() < WAITING).then(|| queue.try_recv().ok()).flatten();
        }
        fail_point!("forward/send/before");
        self.outgoing.send(ForwardRequest { proposals }).map_err(|_| "the stream was closed".to_owned())
    }

    /// Takes in one message of answers; cancel-safe.
    ///
    /// # Errors
    /// Why there will be none any more.
    async fn answer(&mut self) -> Result<(), String> {
        let answers = self.answers.message().await.map_err(|status| status.to_string())?;
        let answers = answers.ok_or_else(|| "the leader closed the stream".to_owned())?;
        fail_point!("forward/answer/after");
        let outcomes = answers.outcomes.into_iter();
        let answered = outcomes.filter_map(|answer| Some((self.waiting.remove(&answer.id)?, parse(answer)))).collect();
        tokio::spawn(hand_out(answered, self.applied.clone()));
        Ok(())
    }

    /// Stays until everyone who waits is answered.
    async fn drain(mut self) {
        while !self.waiting.is_empty() && self.answer().await.is_ok() {}
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        for (_, outcome) in self.waiting.drain() {
            // The caller may have given up.
            let _ = outcome.send(Outcome::Unknown("the connection to the leader broke before its answer".to_owned()));
        }
    }
}

/// Hands the outcomes to those who wait for them: who was told that the write is carried out waits until it is applied here, and it is
/// far less work to have one wait for all of them.
async fn hand_out(answered: Vec<(oneshot::Sender<Outcome>, Outcome)>, mut applied: watch::Receiver<Applied>) {
    let newest = answered.iter().filter_map(|(_, outcome)| match outcome {
        Outcome::Applied { index, .. } => Some(*index),
        Outcome::Refused(_) | Outcome::NoSpace | Outcome::Unknown(_) => None,
    });
    if let Some(newest) = newest.max() {
        // If that takes long, each goes on to wait for its own entry.
        let _ = tokio::time::timeout(TOGETHER, applied.wait_for(|applied| applied.has(newest))).await;
    }
    for (waiting, outcome) in answered {
        // The caller may have given up.
        let _ = waiting.send(outcome);
    }
}

fn refuse(pending: Pending, reason: &str) {
    // The caller may have given up.
    let _ = pending.outcome.send(Outcome::Refused(reason.to_owned()));
}

fn parse(answer: ForwardedOutcome) -> Outcome {
    match answer.outcome {
        Some(forwarded_outcome::Outcome::Applied(applied)) => match codec::decode(&applied.result) {
            Ok(result) => Outcome::Applied { index: applied.index, result },
            Err(error) => Outcome::Unknown(format!("the leader's answer cannot be read: {error}")),
        },
        Some(forwarded_outcome::Outcome::Refused(reason)) => Outcome::Refused(reason),
        Some(forwarded_outcome::Outcome::NoSpace(_)) => Outcome::NoSpace,
        Some(forwarded_outcome::Outcome::Unknown(reason)) => Outcome::Unknown(reason),
        None => Outcome::Unknown("the leader's answer is empty".to_owned()),
    }
}

/// The answer to a forwarded proposal, as sent.
pub fn answer(id: u64, outcome: Outcome) -> ForwardedOutcome {
    let outcome = match outcome {
        Outcome::Applied { index, result } => match codec::encode(&result) {
            Ok(result) => forwarded_outcome::Outcome::Applied(crate::wire::proto::Applied { index, result: Bytes::from(result) }),
            Err(error) => {
                forwarded_outcome::Outcome::Unknown(format!("it was carried out, but its answer cannot be sent: {error}"))
            }
        },
        Outcome::Refused(reason) => forwarded_outcome::Outcome::Refused(reason),
        Outcome::NoSpace => forwarded_outcome::Outcome::NoSpace(true),
        Outcome::Unknown(reason) => forwarded_outcome::Outcome::Unknown(reason),
    };
    ForwardedOutcome { id, outcome: Some(outcome) }
}

#[cfg(test)]
mod tests {
    use trireme_storage::{command::CommandReply, store::StoreError};

    use super::*;

    #[test]
    fn outcomes_survive_the_wire() {
        for outcome in [
            Outcome::Applied { index: 7, result: Ok(CommandReply::Compacted) },
            Outcome::Applied { index: 8, result: Err(StoreError::InvalidTransaction("twice".into())) },
            Outcome::Refused("not now".into()),
            Outcome::NoSpace,
            Outcome::Unknown("lost".into()),
        ] {
            assert_eq!(parse(answer(1, outcome.clone())), outcome);
        }
    }
}
