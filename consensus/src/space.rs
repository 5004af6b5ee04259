//! What a member does about full disks. One whose disk is full takes no more than it must; a leader among them hands over to a member
//! that has space; and when no quorum has space, writes are refused at once instead of being left in the log.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use openraft::type_config::async_runtime::watch::WatchReceiver;
use tokio::time::MissedTickBehavior;
use trireme_storage::{
    command::Command,
    engine::{Engine, Space},
    model::{Operation, Transaction},
};

use crate::{core::Core, log_keeper::Plan, proposer::Outcome, types::NodeId, writer::WriterState};

/// How often the disks are looked at, and how long another member may take to tell of its own.
const PERIOD: Duration = Duration::from_millis(500);
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// A snapshot of which nothing has arrived for so long is given up, and its space with it.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);
/// So many looks pass between two attempts to shorten the log of a full disk.
const SHORTEN_EVERY: u32 = 20;
/// So many looks after an attempt, what it let go is given back to the disk.
const FLUSH_AFTER: u32 = 4;

/// What a command does to the space on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weight {
    Takes,
    /// It gives back more than its record in the log takes, sooner or later.
    Gives,
    /// It only drops history: the way in which a disk that history has filled heals by itself.
    Compacts,
}

fn weight(command: &Command) -> Weight {
    match command {
        Command::Compact(_) => Weight::Compacts,
        Command::LeaseRevoke { .. } | Command::LeaseExpire { .. } => Weight::Gives,
        Command::Transact(transaction) if !puts(transaction) => Weight::Gives,
        Command::Transact(_) | Command::LeaseGrant { .. } | Command::LeaseKeepAlive { .. } => Weight::Takes,
    }
}

fn puts(transaction: &Transaction) -> bool {
    transaction.success.iter().chain(&transaction.failure).any(|operation| match operation {
        Operation::Put { .. } => true,
        Operation::Delete { .. } | Operation::Range(_) => false,
        Operation::Transaction(nested) => puts(nested),
    })
}

/// What a leader makes of the disks of the voters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
enum Verdict {
    /// Its own disk and a quorum's have space.
    #[default]
    Serve,
    /// Its own has not, another member's has, and a quorum's have: that one should lead.
    HandOver,
    /// No quorum has space; one has a little left.
    Refuse,
    /// No quorum has any.
    RefuseAll,
}

impl Verdict {
    fn from_level(level: u8) -> Self {
        match level {
            0 => Self::Serve,
            1 => Self::HandOver,
            2 => Self::Refuse,
            _ => Self::RefuseAll,
        }
    }
}

/// `others` are the other voters; those that did not answer are taken to have space: nothing is refused on a guess.
fn judge(own: Space, others: &[Option<Space>]) -> Verdict {
    let quorum = others.len().div_ceil(2) + 1;
    let spaces = || others.iter().map(|space| space.unwrap_or(Space::Enough)).chain([own]);
    let with = |most: Space| spaces().filter(|space| *space <= most).count();
    if with(Space::Enough) >= quorum {
        let has_heir = others.contains(&Some(Space::Enough));
        if own == Space::Enough || !has_heir { Verdict::Serve } else { Verdict::HandOver }
    } else if with(Space::Low) >= quorum {
        Verdict::Refuse
    } else {
        Verdict::RefuseAll
    }
}

/// What becomes of a command on the leader, if not that it goes into the log.
fn refusal(own: Space, verdict: Verdict, weight: Weight) -> Option<Outcome> {
    let moving = || Some(Outcome::Refused("the disk of this leader is full; another member takes over".to_owned()));
    match (weight, verdict, own) {
        (_, Verdict::Serve, Space::Enough) => None,
        (Weight::Compacts, Verdict::Serve | Verdict::HandOver | Verdict::Refuse, _) => None,
        (Weight::Gives, Verdict::Serve | Verdict::HandOver | Verdict::Refuse, Space::Enough | Space::Low) => None,
        (_, Verdict::HandOver, _) => moving(),
        // It has just filled, and nobody was asked yet.
        (_, Verdict::Serve, Space::Low | Space::Exhausted) => moving(),
        (_, Verdict::Refuse | Verdict::RefuseAll, _) => Some(Outcome::NoSpace),
    }
}

/// What is known of the space on this member's disks, and, while it leads, of the group's.
pub struct Disks {
    engines: [Arc<dyn Engine>; 2],
    writer: Arc<WriterState>,
    verdict: AtomicU8,
}

impl Disks {
    pub fn new(engines: [Arc<dyn Engine>; 2], writer: Arc<WriterState>) -> Self {
        Self { engines, writer, verdict: AtomicU8::new(Verdict::Serve as u8) }
    }

    /// How much room this member has: that of the worse of its disks.
    pub fn space(&self) -> Space {
        if self.writer.is_out_of_space() {
            return Space::Exhausted;
        }
        self.engines.iter().map(|engine| engine.space()).max().unwrap_or_default()
    }

    /// Whether entries of the log are turned away: they would only wait, and hold up what must not wait behind them.
    pub fn turns_entries_away(&self) -> bool {
        self.space() == Space::Exhausted
    }

    /// Why a command does not go into the log of this member, which leads.
    pub fn refusal(&self, command: &Command) -> Option<Outcome> {
        let (own, verdict) = (self.space(), Verdict::from_level(self.verdict.load(Ordering::Relaxed)));
        if own == Space::Enough && verdict == Verdict::Serve {
            return None;
        }
        refusal(own, verdict, weight(command))
    }

    async fn look(&self) {
        let engines = self.engines.clone();
        let looked = tokio::task::spawn_blocking(move || engines.each_ref().map(|engine| engine.check_space())).await;
        if let Err(error) = looked {
            tracing::error!(%error, "cannot look at the disks");
        }
    }

    /// Has the log's engine write out what it holds in memory: the files before that go then.
    async fn flush_log(&self) {
        let [log, _] = self.engines.clone();
        match tokio::task::spawn_blocking(move || log.prepare_checkpoint()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the log of a full disk could not be written out"),
            Err(error) => tracing::error!(%error, "the log of a full disk could not be written out"),
        }
    }

    fn set(&self, verdict: Verdict) {
        let before = Verdict::from_level(self.verdict.swap(verdict as u8, Ordering::Relaxed));
        match (before, verdict) {
            (Verdict::Serve | Verdict::HandOver, Verdict::Refuse | Verdict::RefuseAll) => {
                tracing::error!("no quorum of the masters has space on its disk: writes are refused");
            }
            (Verdict::Refuse | Verdict::RefuseAll, Verdict::Serve | Verdict::HandOver) => {
                tracing::info!("a quorum of the masters has space on its disk: writes are taken again");
            }
            _ => {}
        }
    }
}

/// Looks after the disks until shutdown.
pub async fn watch(core: Arc<Core>) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks_when_full = 0;
    loop {
        tokio::select! {
            () = core.shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        core.disks.look().await;
        core.incoming.give_up_abandoned(ABANDONED_AFTER);
        if core.disks.space() == Space::Enough {
            looks_when_full = 0;
        } else {
            match looks_when_full % SHORTEN_EVERY {
                0 => core.shorten_log().await,
                FLUSH_AFTER if core.disks.space() == Space::Low => core.disks.flush_log().await,
                _ => {}
            }
            looks_when_full += 1;
        }
        core.judge_disks().await;
    }
}

impl Core {
    /// While this member leads: asks the other voters for the space on their disks, and acts on it.
    async fn judge_disks(&self) {
        if self.leadership.borrow().leading().is_none() {
            self.disks.set(Verdict::Serve);
            return;
        }
        let membership = self.raft.server_metrics().borrow_watched().membership_config.membership().clone();
        let voters: Vec<NodeId> = membership.voter_ids().collect();
        let others = membership.nodes().filter(|(id, _)| **id != self.node_id && voters.contains(id));
        let asked = others.map(|(id, member)| async move {
            let answered = tokio::time::timeout(ANSWER_TIMEOUT, self.ask_status(*id, &member.address)).await;
            (*id, answered.ok().and_then(Result::ok).map(|status| status.space))
        });
        let answers: Vec<(NodeId, Option<Space>)> = join_all(asked).await;
        let spaces: Vec<Option<Space>> = answers.iter().map(|(_, space)| *space).collect();
        let verdict = judge(self.disks.space(), &spaces);
        self.disks.set(verdict);
        if verdict != Verdict::HandOver {
            return;
        }
        for (heir, _) in answers.iter().filter(|(_, space)| *space == Some(Space::Enough)) {
            match self.transfer_here(*heir).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, peer = %heir, "a full disk, and the leadership could not be handed over"),
            }
        }
    }

    /// Lets the log go that the state no longer needs.
    async fn shorten_log(&self) {
        let everything = Plan { snapshot: true, purge: self.snapshot_index() };
        if let Err(error) = self.shorten(everything).await {
            tracing::warn!(%error, "the log of a full disk could not be shortened");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Space::{Enough, Exhausted, Low};

    #[test]
    fn a_leader_serves_hands_over_or_refuses_by_the_disks_of_the_voters() {
        for (own, others, expected) in [
            (Enough, &[][..], Verdict::Serve),
            (Low, &[], Verdict::Refuse),
            (Exhausted, &[], Verdict::RefuseAll),
            (Enough, &[Some(Enough), Some(Enough)], Verdict::Serve),
            (Enough, &[Some(Exhausted), Some(Enough)], Verdict::Serve),
            (Low, &[Some(Enough), Some(Enough)], Verdict::HandOver),
            (Exhausted, &[Some(Enough), None], Verdict::HandOver),
            // Who does not answer cannot take over, and is not known to be full.
            (Exhausted, &[None, None], Verdict::Serve),
            (Enough, &[Some(Low), Some(Exhausted)], Verdict::Refuse),
            (Enough, &[Some(Exhausted), Some(Exhausted)], Verdict::RefuseAll),
            (Low, &[Some(Low), Some(Low)], Verdict::Refuse),
            (Low, &[Some(Exhausted), Some(Exhausted)], Verdict::RefuseAll),
            (Low, &[Some(Enough), Some(Low)], Verdict::Refuse),
            (Enough, &[Some(Low), Some(Low), Some(Enough), Some(Enough)], Verdict::Serve),
        ] {
            assert_eq!(judge(own, others), expected, "{own:?} {others:?}");
        }
    }

    #[test]
    fn what_gives_space_back_is_let_through_while_there_is_a_little() {
        let refused = |own, verdict, weight| match refusal(own, verdict, weight) {
            None => "taken",
            Some(Outcome::NoSpace) => "no space",
            Some(Outcome::Refused(_)) => "elsewhere",
            Some(other) => panic!("{other:?}"),
        };
        for (own, verdict, expected) in [
            // What takes space, gives it, compacts.
            (Enough, Verdict::Serve, ["taken", "taken", "taken"]),
            (Low, Verdict::Serve, ["elsewhere", "taken", "taken"]),
            (Low, Verdict::HandOver, ["elsewhere", "taken", "taken"]),
            (Exhausted, Verdict::HandOver, ["elsewhere", "elsewhere", "taken"]),
            (Low, Verdict::Refuse, ["no space", "taken", "taken"]),
            (Enough, Verdict::Refuse, ["no space", "taken", "taken"]),
            (Exhausted, Verdict::Refuse, ["no space", "no space", "taken"]),
            (Enough, Verdict::RefuseAll, ["no space", "no space", "no space"]),
        ] {
            let outcomes = [Weight::Takes, Weight::Gives, Weight::Compacts].map(|weight| refused(own, verdict, weight));
            assert_eq!(outcomes, expected, "{own:?} {verdict:?}");
        }
    }

    #[test]
    fn commands_are_told_apart_by_what_they_do_to_the_disk() {
        let nested = |operation: Operation| {
            let inner = Transaction { failure: vec![operation], ..Transaction::default() };
            Command::Transact(Transaction { success: vec![Operation::Transaction(Box::new(inner))], ..Transaction::default() })
        };
        assert_eq!(weight(&nested(Operation::put("a", "1"))), Weight::Takes);
        assert_eq!(weight(&nested(Operation::delete("a"))), Weight::Gives);
        assert_eq!(weight(&Command::Compact(trireme_storage::model::Revision(1))), Weight::Compacts);
    }
}
