//! Disks that fill: of the leader, of followers, of all; what goes on meanwhile, and what comes back.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::timeout;
use trireme_consensus::{Limits, NodeId};
use trireme_storage::{
    command::Command,
    engine::{Space, memory::MemoryEngine},
    model::{Operation, Transaction},
    store::{Store, StoreError},
};

use crate::cluster::{Cluster, Disk, PATIENCE, converge, eventually, id, put, read, test_timing, write};

/// A group, and the disks of its members' logs.
struct Group {
    cluster: Cluster,
    logs: BTreeMap<NodeId, Arc<MemoryEngine>>,
}

impl Group {
    async fn start() -> Self {
        let logs: BTreeMap<NodeId, Arc<MemoryEngine>> = (1..=3).map(|number| (id(number), Arc::default())).collect();
        let disk = |node_id| Disk { log: logs[&node_id].clone(), ..Disk::in_memory() };
        let cluster = Cluster::start_with(3, test_timing(), Limits::default(), disk).await;
        Self { cluster, logs }
    }

    /// Has a member's disk be so full; what it must write, it still can.
    fn set_space(&self, node_id: NodeId, space: Space) {
        self.logs[&node_id].set_space(space);
    }

    async fn put_until(&self, member: NodeId, what: &str, expected: impl Fn(&Result<(), StoreError>) -> bool) {
        eventually(what, || async {
            let put = self.cluster.members[&member].transact(put("filling", "up")).await.map(|_| ());
            expected(&put).then_some(())
        })
        .await;
    }

    /// Every member reads what was written last.
    async fn check_reads(&self, expected: &str) {
        for member in self.cluster.members.values() {
            let read = timeout(PATIENCE, read(member, "key")).await.expect("reads go on");
            assert_eq!(read.unwrap().as_deref(), Some(expected));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_is_full_hands_over_and_writes_go_on() {
    for space in [Space::Low, Space::Exhausted] {
        let group = Group::start().await;
        let (leader, term) = group.cluster.leader().await;
        group.set_space(leader, space);
        // No write fails meanwhile: each waits for the new leader. One that takes no entries can take no writes either.
        for (node_id, member) in &group.cluster.members {
            let written = member.transact(put("key", "while it is full")).await;
            let is_cut_off = *node_id == leader && space == Space::Exhausted;
            assert!(written.is_ok() || (is_cut_off && written == Err(StoreError::NoSpace)), "{space:?}: {written:?}");
        }
        let (successor, new_term) = group.cluster.leader().await;
        assert!(successor != leader && new_term > term, "{space:?}");
        assert!(group.cluster.members[&leader].status().no_space);
        group.set_space(leader, Space::Enough);
        converge(&group.cluster).await;
        group.check_reads("while it is full").await;
        group.cluster.shutdown().await;
    }
}

/// The disk leaves nothing at all, not even for what was under way.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_can_write_nothing_any_more_is_left_behind() {
    let group = Group::start().await;
    let (leader, _) = group.cluster.leader().await;
    write(&group.cluster.members[&leader], "key", "before").await.unwrap();
    group.logs[&leader].set_capacity_bytes(Some(0));
    let follower = group.cluster.followers(leader)[0];
    group.put_until(follower, "writes go on elsewhere", Result::is_ok).await;
    write(&group.cluster.members[&follower], "key", "after").await.unwrap();
    let (successor, _) = group.cluster.leader_among(&group.cluster.followers(leader)).await;
    assert_ne!(successor, leader);
    group.logs[&leader].set_capacity_bytes(None);
    converge(&group.cluster).await;
    group.check_reads("after").await;
    group.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_whose_disk_is_full_holds_nobody_up() {
    let group = Group::start().await;
    let (leader, term) = group.cluster.leader().await;
    let full = group.cluster.followers(leader)[0];
    group.set_space(full, Space::Exhausted);
    for number in 0..50 {
        write(&group.cluster.members[&leader], format!("key-{number}"), "x").await.unwrap();
    }
    // It follows and votes, and takes no entries; nobody counts it as holding what it does not hold.
    let status = group.cluster.members[&leader].status();
    let matched = status.members.iter().find(|member| member.node_id == full).unwrap().matched;
    assert!(matched < status.last_log, "{matched:?} {:?}", status.last_log);
    assert_eq!(group.cluster.leader().await, (leader, term));
    group.set_space(full, Space::Enough);
    converge(&group.cluster).await;
    group.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_that_has_space_writes_are_refused_reads_go_on_and_writes_resume() {
    for space in [Space::Low, Space::Exhausted] {
        for full_members in [2, 3] {
            let group = Group::start().await;
            let (leader, term) = group.cluster.leader().await;
            write(&group.cluster.members[&leader], "key", "before").await.unwrap();
            // One that takes no entries any more could not learn of it.
            converge(&group.cluster).await;
            let mut full = group.cluster.followers(leader);
            full.push(leader);
            full.truncate(full_members);
            for node_id in &full {
                group.set_space(*node_id, space);
            }
            for member in group.cluster.ids() {
                group.put_until(member, "writes are refused", |put| *put == Err(StoreError::NoSpace)).await;
            }
            group.check_reads("before").await;
            // Longer than a follower waits for its leader.
            tokio::time::sleep(Duration::from_secs(3)).await;
            assert_eq!(group.cluster.leader().await, (leader, term), "{space:?}, {full_members} full: heartbeats go on");
            group.check_reads("before").await;
            for node_id in &full {
                group.set_space(*node_id, Space::Enough);
            }
            group.put_until(leader, "writes resume", Result::is_ok).await;
            converge(&group.cluster).await;
            group.cluster.shutdown().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_gives_space_back_goes_through_while_there_is_a_little() {
    let group = Group::start().await;
    let (leader, _) = group.cluster.leader().await;
    for value in ["1", "2", "3"] {
        write(&group.cluster.members[&leader], "key", value).await.unwrap();
    }
    for node_id in group.cluster.ids() {
        group.set_space(node_id, Space::Low);
    }
    group.put_until(leader, "puts are refused", |put| *put == Err(StoreError::NoSpace)).await;
    let member = &group.cluster.members[&group.cluster.followers(leader)[0]];
    let delete = Transaction { success: vec![Operation::delete("filling")], ..Transaction::default() };
    member.transact(delete).await.unwrap();
    let revision = member.revision();
    member.propose(Command::Compact(revision)).await.unwrap();
    assert_eq!(member.compacted_revision(), revision);
    group.cluster.shutdown().await;
}
