//! The proposal batcher: whatever waits becomes one log entry. An idle proposer adds no delay; a busy one makes few entries, because
//! a small entry waits a moment for the one before it.

use std::time::Duration;

use bytes::Bytes;
use openraft::errors::{ClientWriteError, RaftError};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use trireme_storage::{command::CommandResult, fail_point};

use crate::{
    config::Limits,
    types::{Proposal, Raft},
    writer::Writer,
};

/// With so many commands waiting, an entry is worth its price.
const COMPANY: usize = 256;

/// What became of a proposed command.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It is committed, and applied on the member that answers.
    Applied { index: u64, result: CommandResult },
    /// It certainly did not reach the log.
    Refused(String),
    /// It certainly did not reach the log: the leader's disk is full.
    NoSpace,
    /// It may or may not be carried out.
    Unknown(String),
}

/// A command on its way into the log.
pub struct Pending {
    /// Encoded.
    pub command: Bytes,
    pub outcome: oneshot::Sender<Outcome>,
}

/// Takes `first` and what else waits in `queue` into one entry. Returns the commands, and one that did not fit any more.
fn collect(first: Pending, queue: &mut mpsc::Receiver<Pending>, limits: &Limits) -> (Vec<Pending>, Option<Pending>) {
    let mut bytes = first.command.len();
    let mut batch = vec![first];
    while batch.len() < limits.entry_commands {
        let Ok(next) = queue.try_recv() else { break };
        if bytes + next.command.len() > limits.entry_bytes {
            return (batch, Some(next));
        }
        bytes += next.command.len();
        batch.push(next);
    }
    (batch, None)
}

/// Proposes what comes in through `queue` until `shutdown`.
pub async fn run(
    raft: Raft,
    writer: Writer,
    mut queue: mpsc::Receiver<Pending>,
    limits: Limits,
    commit_timeout: Duration,
    shutdown: CancellationToken,
) {
    let mut in_flight = JoinSet::new();
    let work = async {
        let mut left_over = None;
        loop {
            while in_flight.len() >= limits.entries_in_flight.max(1) {
                in_flight.join_next().await;
            }
            while in_flight.try_join_next().is_some() {}
            let first = match left_over.take() {
                Some(pending) => pending,
                None => match queue.recv().await {
                    Some(pending) => pending,
                    None => break,
                },
            };
            if queue.len() < COMPANY && !in_flight.is_empty() {
                // Every entry costs each member a sync and several messages; one that follows another closely had better carry more.
                let _ended_or_late = tokio::time::timeout(limits.linger, in_flight.join_next()).await;
            }
            let (batch, rest) = collect(first, &mut queue, &limits);
            left_over = rest;
            if writer.is_out_of_space() {
                answer_all(batch, &Outcome::NoSpace);
                continue;
            }
            let raft = raft.clone();
            in_flight.spawn(async move { propose(&raft, batch, commit_timeout).await });
        }
    };
    shutdown.run_until_cancelled(work).await;
}

async fn propose(raft: &Raft, batch: Vec<Pending>, commit_timeout: Duration) {
    let proposal = Proposal { commands: batch.iter().map(|pending| pending.command.clone()).collect() };
    fail_point!("proposal/append/before");
    let written = tokio::time::timeout(commit_timeout, raft.client_write(proposal)).await;
    fail_point!("proposal/answer/before");
    match written {
        Ok(Ok(response)) => {
            let index = response.log_id.index;
            let results = response.data.results;
            assert_eq!(results.len(), batch.len(), "the state machine answers every command of entry {index}");
            for (pending, result) in batch.into_iter().zip(results) {
                // The caller may have given up.
                let _ = pending.outcome.send(Outcome::Applied { index, result });
            }
        }
        Ok(Err(error)) => answer_all(batch, &failure(&error)),
        Err(_) => answer_all(batch, &Outcome::Unknown(format!("the entry was not committed within {commit_timeout:?}"))),
    }
}

fn failure(error: &RaftError<crate::types::TypeConfig, ClientWriteError<crate::types::TypeConfig>>) -> Outcome {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            Outcome::Refused(format!("this member does not lead ({:?})", forward.reason))
        }
        RaftError::APIError(other) => Outcome::Unknown(other.to_string()),
        RaftError::Fatal(fatal) => Outcome::Unknown(format!("the consensus core has stopped: {fatal}")),
    }
}

fn answer_all(batch: Vec<Pending>, outcome: &Outcome) {
    for pending in batch {
        // The caller may have given up.
        let _ = pending.outcome.send(outcome.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(bytes: usize) -> Pending {
        Pending { command: Bytes::from(vec![0; bytes]), outcome: oneshot::channel().0 }
    }

    #[test]
    fn an_entry_takes_what_waits_up_to_its_caps() {
        let limits = Limits { entry_bytes: 100, entry_commands: 4, ..Limits::default() };
        // (sizes that wait, the first one included) -> (how many go into the entry, whether one is left over)
        let cases: [(&[usize], usize, bool); 6] = [
            (&[10], 1, false),
            (&[10, 20, 30], 3, false),
            (&[60, 40, 1], 2, true),
            (&[60, 50], 1, true),
            (&[500, 1], 1, true),
            (&[1, 1, 1, 1, 1, 1], 4, false),
        ];
        for (sizes, taken, left_over) in cases {
            let (sender, mut queue) = mpsc::channel(10);
            for size in &sizes[1..] {
                sender.try_send(pending(*size)).map_err(|_| "full").unwrap();
            }
            let (batch, rest) = collect(pending(sizes[0]), &mut queue, &limits);
            assert_eq!((batch.len(), rest.is_some()), (taken, left_over), "{sizes:?}");
        }
    }
}
