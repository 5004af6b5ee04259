//! The power of one member is cut at each fail point: what it had not synced is gone, and yet nothing acknowledged is.
//!
//! The same points kill real processes in `jepsen/`; there the operating system keeps what was written, here it does not. Points inside
//! RocksDB's folder exist there alone.

mod machine;
mod pairs;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use trireme_consensus::{Member, NodeId};
use trireme_storage::{
    fail_point,
    model::LeaseId,
    store::{Leases, Store},
};

use self::{
    machine::{PoweredGroup, Starting},
    pairs::{Members, Writers},
};
use crate::cluster::{converge, eventually, id};

/// So many writes must be acknowledged before the power is cut, while it is off, and when it is back.
const ACKNOWLEDGED: usize = 10;
/// How often it is tried to reach a point.
const ATTEMPTS: usize = 3;

const LOG: &[&str] = &[
    "engine/sync/before",
    "log/append/before",
    "log/append/after",
    "log/purge/before",
    "log/purge/after",
    "snapshot/flush/before",
    "snapshot/flush/after",
];
const APPLY: &[&str] =
    &["apply/evaluate/before", "apply/write/before", "apply/write/after", "apply/publish/after", "apply/answer/before"];
const BY_LEADER: &[&str] =
    &["proposal/append/before", "proposal/answer/before", "forward/receive/after", "forward/answer/before"];
const BY_FOLLOWER: &[&str] = &["forward/send/before", "forward/answer/after"];
const COMPACTION: &[&str] =
    &["compaction/evaluate/before", "compaction/publish/after", "compaction/discard/before", "compaction/discard/after"];
const VOTES: &[&str] = &["vote/save/before", "vote/save/after"];
const LEASES: &[&str] = &["lease/expire/before", "lease/expire/after"];
const MEMBERSHIP_BY_LEADER: &[&str] = &["apply/membership/before", "membership/change/before", "membership/change/after"];
const MEMBERSHIP_BY_FOLLOWER: &[&str] = &["apply/membership/before"];
const TRANSFER_BY_LEADER: &[&str] = &["leadership/transfer/before", "leadership/transfer/after"];
const TRANSFER_BY_FOLLOWER: &[&str] = &["leadership/transfer/received"];
const SENDING: &[&str] = &[
    "snapshot/begin/before",
    "snapshot/checkpoint/after",
    "snapshot/file/after",
    "snapshot/manifest/after",
    "snapshot/send/before",
    "snapshot/send/piece",
    "snapshot/send/install",
];
const RECEIVING: &[&str] = &[
    "snapshot/receive/begin",
    "snapshot/receive/piece",
    "snapshot/receive/finish",
    "snapshot/install/before",
    "snapshot/install/after",
];
const OVERRULED: &[&str] = &["log/truncate/before", "log/truncate/after"];
const BEGINNING: &[&str] = &[
    "bootstrap/own-id/before",
    "bootstrap/own-id/after",
    "bootstrap/known-id/before",
    "bootstrap/known-id/after",
    "bootstrap/admit/before",
    "bootstrap/admit/after",
];
const INITIALIZING: &[&str] = &["bootstrap/initialize/before", "bootstrap/initialize/after"];
/// Those that the engine in memory does not have.
const ON_DISK_ALONE: &[&str] = &[
    "snapshot/install/rename-before",
    "snapshot/install/rename-after",
    "snapshot/install/pointer-before",
    "snapshot/install/pointer-after",
    "snapshot/install/remove-before",
];

#[test]
fn every_fail_point_is_tried() {
    let tried = [
        LOG,
        APPLY,
        BY_LEADER,
        BY_FOLLOWER,
        COMPACTION,
        VOTES,
        LEASES,
        MEMBERSHIP_BY_LEADER,
        TRANSFER_BY_LEADER,
        TRANSFER_BY_FOLLOWER,
        SENDING,
        RECEIVING,
        OVERRULED,
        BEGINNING,
        INITIALIZING,
        ON_DISK_ALONE,
    ];
    let tried: BTreeSet<&str> = tried.into_iter().flatten().copied().collect();
    assert_eq!(tried, fail_point::NAMES.iter().copied().collect());
}

/// A group that runs, and what writers may use of it.
struct Crashes {
    group: PoweredGroup,
    members: Members,
    run: u64,
}

impl Crashes {
    async fn start() -> Self {
        Self::of(PoweredGroup::start().await)
    }

    fn of(group: PoweredGroup) -> Self {
        let members = Arc::new(Mutex::new(group.cluster.members.clone()));
        Self { group, members, run: 0 }
    }

    async fn leader(&self) -> NodeId {
        self.group.cluster.leader().await.0
    }

    fn follower(&self, leader: NodeId) -> NodeId {
        self.group.others(leader)[usize::try_from(self.run % 2).unwrap()]
    }

    fn begin(&mut self) -> Writers {
        self.run += 1;
        Writers::start(&format!("run-{}", self.run), &self.members)
    }

    /// Ends the members whose power is cut, and brings them back.
    async fn revive(&mut self, victims: &[NodeId], writers: &Writers) {
        self.members.lock().unwrap().retain(|node_id, _| !victims.contains(node_id));
        for victim in victims {
            self.group.bury(*victim).await;
        }
        if let [victim] = victims {
            writers.acknowledge(ACKNOWLEDGED).await;
            self.group.restart(*victim).await;
        } else {
            self.group.start_all().await;
        }
        self.rejoin();
        self.group.cluster.leader().await;
        writers.acknowledge(ACKNOWLEDGED).await;
    }

    fn rejoin(&self) {
        *self.members.lock().unwrap() = self.group.cluster.members.clone();
    }

    /// Compares the members with each other and with what writers were told.
    async fn check(&self, point: &str, writers: Writers) {
        writers.check(&self.group.cluster.members).await;
        let (revision, _) = converge(&self.group.cluster).await;
        println!("{point}: all members agree at revision {revision}");
    }

    /// Cuts the power of the leader or of a follower at `point`, reached under writes and by what `trigger` does.
    async fn crash(&mut self, point: &str, by: By, trigger: impl AsyncFn(&Self, NodeId, NodeId)) {
        self.crash_of(Losers::Victim, point, by, trigger).await;
    }

    async fn crash_of(&mut self, losers: Losers, point: &str, by: By, trigger: impl AsyncFn(&Self, NodeId, NodeId)) {
        for _ in 0..ATTEMPTS {
            if self.attempt(losers, point, by, &trigger).await {
                return;
            }
        }
        panic!("{point} was not reached in {ATTEMPTS} attempts");
    }

    /// Whether the power was cut at the point; on a busy machine the victim may lose the leadership first. Then it is cut elsewhere.
    async fn attempt(&mut self, losers: Losers, point: &str, by: By, trigger: impl AsyncFn(&Self, NodeId, NodeId)) -> bool {
        let leader = self.leader().await;
        let writers = self.begin();
        writers.acknowledge(ACKNOWLEDGED).await;
        let follower = self.follower(leader);
        let victim = if by == By::Leader { leader } else { follower };
        let losers = match losers {
            Losers::Victim => vec![victim],
            Losers::All => self.group.all(),
        };
        let mut cut = self.group.arm_cut_of(&losers, victim, point);
        let reached = cut.insist(async || trigger(self, leader, follower).await).await;
        if !reached {
            losers.iter().for_each(|loser| self.group.cut_power(*loser));
        }
        self.revive(&losers, &writers).await;
        self.check(point, writers).await;
        reached
    }
}

/// Whose power is cut when the victim reaches a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Losers {
    Victim,
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Leader,
    Follower,
}

async fn nothing(_: &Crashes, _: NodeId, _: NodeId) {}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_on_the_way_into_the_log_loses_nothing_acknowledged() {
    let mut crashes = Crashes::start().await;
    for point in LOG {
        for by in [By::Leader, By::Follower] {
            crashes.crash(point, by, nothing).await;
        }
    }
    crashes.group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_while_entries_are_applied_loses_nothing_acknowledged() {
    let mut crashes = Crashes::start().await;
    for point in APPLY {
        for by in [By::Leader, By::Follower] {
            crashes.crash(point, by, nothing).await;
        }
    }
    crashes.group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_while_proposals_are_carried_loses_nothing_acknowledged() {
    let mut crashes = Crashes::start().await;
    for point in BY_LEADER {
        crashes.crash(point, By::Leader, nothing).await;
    }
    for point in BY_FOLLOWER {
        crashes.crash(point, By::Follower, nothing).await;
    }
    crashes.group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_during_a_compaction_leaves_a_history_that_can_be_read() {
    let mut crashes = Crashes::start().await;
    for point in COMPACTION {
        for by in [By::Leader, By::Follower] {
            let compact = async |crashes: &Crashes, leader: NodeId, _: NodeId| {
                let revision = crashes.group.cluster.members[&leader].revision();
                // The answer may never come.
                let _ = crashes.group.on(leader, |member| async move { member.compact(revision).await }).await;
            };
            crashes.crash(point, by, compact).await;
            let members = &crashes.group.cluster.members;
            for (node_id, member) in members {
                let from = member.compacted_revision();
                let mut watch = member.watch(from.next()).await.unwrap();
                let first = tokio::time::timeout(crate::cluster::PATIENCE, watch.next()).await.unwrap();
                assert_eq!(first.unwrap().revision, from.next(), "{node_id} after {point}");
            }
        }
    }
    crashes.group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_around_a_vote_or_a_transfer_leaves_one_leader() {
    let mut crashes = Crashes::start().await;
    for point in VOTES {
        // The victim is to lead, or votes for the other one.
        for to_victim in [true, false] {
            let elect = async |crashes: &Crashes, leader: NodeId, victim: NodeId| {
                let other = crashes.group.others(leader).into_iter().find(|one| *one != victim).unwrap();
                let target = if to_victim { victim } else { other };
                // The answer may never come.
                let _ = crashes.group.on(leader, |member| async move { member.transfer_leadership(target).await }).await;
            };
            crashes.crash(point, By::Follower, elect).await;
        }
    }
    let points = TRANSFER_BY_LEADER.iter().map(|point| (point, By::Leader));
    for (point, by) in points.chain(TRANSFER_BY_FOLLOWER.iter().map(|point| (point, By::Follower))) {
        let hand_over = async |crashes: &Crashes, leader: NodeId, follower: NodeId| {
            // The answer may never come.
            let _ = crashes.group.on(leader, |member| async move { member.transfer_leadership(follower).await }).await;
        };
        crashes.crash(point, by, hand_over).await;
    }
    crashes.group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_around_the_end_of_a_lease_lets_it_end() {
    let mut crashes = Crashes::start().await;
    for (point, number) in LEASES.iter().zip(1..) {
        let lease = LeaseId(number);
        let grant = async |crashes: &Crashes, _: NodeId, follower: NodeId| {
            // It may be granted already.
            let _ = crashes.group.cluster.members[&follower].grant_lease(lease, 1).await;
        };
        crashes.crash(point, By::Leader, grant).await;
        let members = &crashes.group.cluster.members;
        let gone = || async { members.values().all(|member| member.lease(lease).is_none()).then_some(()) };
        eventually("the lease has ended everywhere", gone).await;
    }
    crashes.group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_while_the_membership_changes_leaves_one_membership() {
    let mut crashes = Crashes::start().await;
    let points = MEMBERSHIP_BY_LEADER.iter().map(|point| (point, By::Leader));
    for ((point, by), number) in points.chain(MEMBERSHIP_BY_FOLLOWER.iter().map(|point| (point, By::Follower))).zip(50..) {
        let learner = id(number);
        let add = async |crashes: &Crashes, leader: NodeId, _: NodeId| {
            // Nobody listens there.
            let member = Member::new("", "", format!("127.0.0.1:{number}"));
            // The answer may never come.
            let _ = crashes.group.on(leader, move |leader| async move { leader.add_learner(learner, member).await }).await;
        };
        crashes.crash(point, by, add).await;
        let members = &crashes.group.cluster.members;
        eventually("all members know the same members, without the learner", || async {
            let (leader, _) = crashes.group.cluster.leader().await;
            if members[&leader].status().members.iter().any(|member| member.node_id == learner) {
                // Tried again until it is so.
                let _ = members[&leader].remove(learner).await;
            }
            let known =
                members.values().map(|member| member.status().members.iter().map(|one| one.node_id).collect::<BTreeSet<_>>());
            let known: BTreeSet<BTreeSet<NodeId>> = known.collect();
            (known == BTreeSet::from([crashes.group.all().into_iter().collect()])).then_some(())
        })
        .await;
    }
    crashes.group.end().await;
}

/// Nobody is left who remembers what was not synced.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_of_all_members_at_any_point_of_a_write_loses_nothing_acknowledged() {
    let mut crashes = Crashes::start().await;
    let of_leader = LOG.iter().chain(APPLY).chain(BY_LEADER).map(|point| (point, By::Leader));
    for (point, by) in of_leader.chain(LOG.iter().chain(BY_FOLLOWER).map(|point| (point, By::Follower))) {
        crashes.crash_of(Losers::All, point, by, nothing).await;
    }
    crashes.group.end().await;
}

/// A follower is away until it needs a snapshot; then the power of whoever sends it, or receives it, is cut.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_on_either_end_of_a_snapshot_leaves_the_old_state_or_the_new() {
    let mut crashes = Crashes::start().await;
    let points = SENDING.iter().map(|point| (point, By::Leader));
    for (point, by) in points.chain(RECEIVING.iter().map(|point| (point, By::Follower))) {
        let leader = crashes.leader().await;
        let writers = crashes.begin();
        writers.acknowledge(ACKNOWLEDGED).await;
        let away = crashes.follower(leader);
        crashes.members.lock().unwrap().remove(&away);
        crashes.group.cut_power(away);
        crashes.group.bury(away).await;
        let behind = crashes.group.cluster.members[&leader].status().applied.unwrap_or_default();
        eventually("the log is purged", || async {
            let status = crashes.group.cluster.members[&leader].status();
            status.snapshot.filter(|index| *index > behind + 100)
        })
        .await;
        match by {
            By::Leader => {
                let cut = crashes.group.arm(leader, point);
                crashes.group.restart(away).await;
                crashes.rejoin();
                cut.happens(point).await;
                crashes.revive(&[leader], &writers).await;
            }
            By::Follower => {
                let (started, cut) = crashes.group.switch_on(away, Some(point)).await;
                crashes.group.runs(away, started).await;
                cut.expect("the point is armed").happens(point).await;
                crashes.revive(&[away], &writers).await;
            }
        }
        crashes.check(point, writers).await;
    }
    crashes.group.end().await;
}

/// A leader that is cut off takes entries that never commit; another one has them cut away.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_while_overruled_entries_are_cut_off_brings_none_back() {
    let mut crashes = Crashes::start().await;
    for point in OVERRULED {
        let leader = crashes.leader().await;
        let writers = crashes.begin();
        writers.acknowledge(ACKNOWLEDGED).await;
        crashes.group.cluster.links.isolate(leader, &crashes.group.all());
        let others = crashes.group.others(leader);
        let (new, _) = crashes.group.cluster.leader_among(&others).await;
        assert_ne!(new, leader);
        writers.acknowledge(ACKNOWLEDGED).await;
        let cut = crashes.group.arm(leader, point);
        crashes.group.cluster.links.heal();
        cut.happens(point).await;
        crashes.revive(&[leader], &writers).await;
        crashes.check(point, writers).await;
    }
    crashes.group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_while_a_group_begins_lets_it_begin() {
    let mut group = PoweredGroup::new();
    let victim = id(1);
    let mut starting = Vec::new();
    for node_id in group.others(victim) {
        starting.push((node_id, group.switch_on(node_id, None).await.0));
    }
    for point in BEGINNING {
        let (_, cut) = group.switch_on(victim, Some(point)).await;
        cut.expect("the point is armed").happens(point).await;
        group.bury(victim).await;
    }
    begins(group, victim, starting).await;
    for point in INITIALIZING {
        let mut group = PoweredGroup::new();
        let mut starting = Vec::new();
        let (_, cut) = group.switch_on(victim, Some(point)).await;
        for node_id in group.others(victim) {
            starting.push((node_id, group.switch_on(node_id, None).await.0));
        }
        cut.expect("the point is armed").happens(point).await;
        group.bury(victim).await;
        begins(group, victim, starting).await;
    }
}

/// The victim has power again, and the group begins.
async fn begins(mut group: PoweredGroup, victim: NodeId, starting: Vec<(NodeId, Starting)>) {
    let (started, _) = group.switch_on(victim, None).await;
    for (node_id, started) in starting {
        group.runs(node_id, started).await;
    }
    group.runs(victim, started).await;
    group.cluster.leader().await;
    let mut crashes = Crashes::of(group);
    let writers = crashes.begin();
    writers.acknowledge(ACKNOWLEDGED).await;
    crashes.check("the beginning", writers).await;
    crashes.group.end().await;
}
