//! Members come, go, and come back by snapshot.

use trireme_consensus::{ConsensusError, Limits, Refusal};

use crate::cluster::{Cluster, Disk, converge, eventually, id, read, test_timing, write};

/// Limits with which the log is purged after few entries.
fn short_log() -> Limits {
    Limits { snapshot_entries: 20, kept_entries: 5, ..Limits::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_member_comes_back_as_a_new_learner_by_snapshot() {
    let mut cluster = Cluster::start_with(3, test_timing(), short_log(), |_| Disk::in_memory()).await;
    let (leader, _) = cluster.leader().await;
    let lost = cluster.followers(leader)[0];
    cluster.kill(lost).await;
    for number in 0..300 {
        write(&cluster.members[&leader], format!("key/{}", number % 50), format!("value {number}")).await.unwrap();
    }
    eventually("the log is purged", || async { cluster.members[&leader].status().snapshot.filter(|index| *index > 200) }).await;

    // With the lost member gone for good, the two that live can remove it, and a third can join.
    cluster.members[&leader].remove(lost).await.unwrap();
    let new = id(7);
    let member = cluster.start_new(new).await;
    let follower = cluster.followers(leader).into_iter().find(|one| *one != new).unwrap();
    cluster.members[&follower].add_learner(new, member).await.unwrap();
    eventually("the learner has caught up and votes", || async { cluster.members[&leader].promote(new).await.ok() }).await;
    converge(&cluster).await;
    assert!(cluster.members[&new].status().members.iter().any(|one| one.node_id == new && one.voter));
    assert_eq!(cluster.members[&new].status().members.len(), 3);
    write(&cluster.members[&new], "from the new member", "yes").await.unwrap();
    for member in cluster.members.values() {
        assert_eq!(read(member, "key/49").await.unwrap().as_deref(), Some("value 299"));
        assert_eq!(read(member, "from the new member").await.unwrap().as_deref(), Some("yes"));
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_away_for_long_comes_back_by_snapshot() {
    let mut cluster = Cluster::start_with(3, test_timing(), short_log(), |_| Disk::in_memory()).await;
    let (leader, _) = cluster.leader().await;
    let away = cluster.followers(leader)[0];
    write(&cluster.members[&away], "before", "yes").await.unwrap();
    cluster.kill(away).await;
    for number in 0..200 {
        write(&cluster.members[&leader], format!("key/{number}"), "x".repeat(2000)).await.unwrap();
    }
    eventually("the log is purged", || async { cluster.members[&leader].status().snapshot.filter(|index| *index > 100) }).await;
    cluster.restart(away).await.unwrap();
    converge(&cluster).await;
    assert_eq!(read(&cluster.members[&away], "before").await.unwrap().as_deref(), Some("yes"));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_would_lose_the_quorum_is_refused() {
    let mut cluster = Cluster::start().await;
    let (leader, _) = cluster.leader().await;
    let followers = cluster.followers(leader);
    cluster.kill(followers[0]).await;
    // Two of three live: without the living follower the leader would be one of two.
    let refused = cluster.members[&leader].remove(followers[1]).await;
    assert!(
        matches!(refused, Err(ConsensusError::Refused(Refusal::QuorumLost { voters: 2, alive: 1, needed: 2 }))),
        "{refused:?}"
    );
    assert!(matches!(
        cluster.members[&leader].promote(id(99)).await,
        Err(ConsensusError::Refused(Refusal::NotMember(unknown))) if unknown == id(99)
    ));
    write(&cluster.members[&leader], "still", "writable").await.unwrap();
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_folder_must_not_vote_again_under_its_old_id() {
    let mut cluster = Cluster::start().await;
    let (leader, _) = cluster.leader().await;
    write(&cluster.members[&leader], "key", "value").await.unwrap();
    converge(&cluster).await;
    let wiped = cluster.followers(leader)[0];
    cluster.kill(wiped).await;
    cluster.disks.insert(wiped, Disk::in_memory());
    assert!(matches!(cluster.restart(wiped).await, Err(ConsensusError::LostData(lost)) if lost == wiped));
    write(&cluster.members[&leader], "the others", "go on").await.unwrap();
    cluster.shutdown().await;
}
