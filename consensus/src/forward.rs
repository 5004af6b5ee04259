//! Proposals of a follower on their way to the leader: one stream, kept open as long as the leader leads. Its breaking is
//! also how a follower learns at once that the leader's process died.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use openraft::{raft::TransferLeaderRequest, type_config::async_runtime::watch::WatchReceiver};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use trireme_storage::codec;

use crate::{
    proposer::{Outcome, Pending},
    transport::{Channels, Lane},
    types::{NodeId, Raft},
    wire::proto::{ForwardRequest, ForwardResponse, forward_response},
};

/// So many forwarded proposals may wait for their answers.
const WAITING: usize = 8192;
/// The pause before a broken stream to a leader that still leads is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(20);

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
            match self.session(&target).await {
                SessionEnd::Closed => return,
                SessionEnd::LeaderChanged => {}
                SessionEnd::Broken(reason) => {
                    tracing::info!(peer = %target.leader, reason, "the stream to the leader broke");
                    self.expire_dead_leader(&target).await;
                    tokio::select! {
                        () = self.shutdown.cancelled() => return,
                        () = tokio::time::sleep(REOPEN_PAUSE) => {}
                    }
                }
            }
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
        let mut answers = match opened {
            Ok(response) => response.into_inner(),
            Err(status) => {
                // Nothing was sent: whoever waits here may try again.
                while let Ok(pending) = self.queue.try_recv() {
                    refuse(pending, "the leader cannot be reached");
                }
                return SessionEnd::Broken(status.to_string());
            }
        };
        let mut waiting: HashMap<u64, oneshot::Sender<Outcome>> = HashMap::new();
        let mut next_id = 0;
        let end = loop {
            tokio::select! {
                () = self.shutdown.cancelled() => break SessionEnd::Closed,
                pending = self.queue.recv(), if waiting.len() < WAITING => match pending {
                    None => break SessionEnd::Closed,
                    Some(Pending { command, outcome }) => {
                        next_id += 1;
                        waiting.insert(next_id, outcome);
                        if outgoing.send(ForwardRequest { id: next_id, command }).is_err() {
                            break SessionEnd::Broken("the stream was closed".to_owned());
                        }
                    }
                },
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => if let Some(outcome) = waiting.remove(&answer.id) {
                        // The caller may have given up.
                        let _ = outcome.send(parse(answer));
                    },
                    Ok(None) => break SessionEnd::Broken("the leader closed the stream".to_owned()),
                    Err(status) => break SessionEnd::Broken(status.to_string()),
                },
                changed = server.changed() => {
                    if changed.is_err() {
                        break SessionEnd::Closed;
                    }
                    if waiting.is_empty() && self.target().as_ref() != Some(target) {
                        break SessionEnd::LeaderChanged;
                    }
                }
            }
        };
        for (_, outcome) in waiting {
            // The caller may have given up.
            let _ = outcome.send(Outcome::Unknown("the connection to the leader broke before its answer".to_owned()));
        }
        end
    }

    /// When nobody listens any more where the leader was, its process is dead: there is no reason to honour the rest of its lease.
    /// Only liveness hangs on this; elections stay what they are.
    async fn expire_dead_leader(&self, target: &Target) {
        if !self.channels.is_refused(target.leader, &target.address).await || self.target().as_ref() != Some(target) {
            return;
        }
        let vote = self.raft.server_metrics().borrow_watched().vote;
        if vote.leader_id.voted_for != target.leader {
            return;
        }
        tracing::info!(peer = %target.leader, term = vote.leader_id.term, "the leader's process is gone; its lease is over");
        let lapse = TransferLeaderRequest::new(vote, target.leader, None);
        if let Err(error) = self.raft.handle_transfer_leader(lapse).await {
            tracing::warn!(%error, "cannot end the lease of the dead leader");
        }
    }
}

fn refuse(pending: Pending, reason: &str) {
    // The caller may have given up.
    let _ = pending.outcome.send(Outcome::Refused(reason.to_owned()));
}

fn parse(answer: ForwardResponse) -> Outcome {
    match answer.outcome {
        Some(forward_response::Outcome::Applied(applied)) => match codec::decode(&applied.result) {
            Ok(result) => Outcome::Applied { index: applied.index, result },
            Err(error) => Outcome::Unknown(format!("the leader's answer cannot be read: {error}")),
        },
        Some(forward_response::Outcome::Refused(reason)) => Outcome::Refused(reason),
        Some(forward_response::Outcome::NoSpace(_)) => Outcome::NoSpace,
        Some(forward_response::Outcome::Unknown(reason)) => Outcome::Unknown(reason),
        None => Outcome::Unknown("the leader's answer is empty".to_owned()),
    }
}

/// The answer to a forwarded proposal, as sent.
pub fn answer(id: u64, outcome: Outcome) -> ForwardResponse {
    let outcome = match outcome {
        Outcome::Applied { index, result } => match codec::encode(&result) {
            Ok(result) => forward_response::Outcome::Applied(crate::wire::proto::Applied { index, result: Bytes::from(result) }),
            Err(error) => {
                forward_response::Outcome::Unknown(format!("it was carried out, but its answer cannot be sent: {error}"))
            }
        },
        Outcome::Refused(reason) => forward_response::Outcome::Refused(reason),
        Outcome::NoSpace => forward_response::Outcome::NoSpace(true),
        Outcome::Unknown(reason) => forward_response::Outcome::Unknown(reason),
    };
    ForwardResponse { id, outcome: Some(outcome) }
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
