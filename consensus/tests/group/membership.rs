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

/// One lost disk and one crash must not lose a write: the two members that are left are not the majority that acknowledged it.
#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_folder_makes_no_majority_with_a_member_that_lags() {
    let mut cluster = Cluster::start().await;
    let (leader, _) = cluster.leader().await;
    let [lagging, wiped] = cluster.followers(leader)[..] else { panic!("three members have two followers") };
    write(&cluster.members[&leader], "before", "yes").await.unwrap();
    converge(&cluster).await;
    cluster.kill(lagging).await;
    write(&cluster.members[&leader], "key", "acknowledged").await.unwrap();
    cluster.kill(wiped).await;
    cluster.kill(leader).await;

    cluster.disks.insert(wiped, Disk::in_memory());
    cluster.restart(lagging).await.unwrap();
    let outcome = cluster.restart(wiped).await;
    assert!(matches!(outcome, Err(ConsensusError::LostData(lost)) if lost == wiped), "{outcome:?}");
    assert_eq!(cluster.members[&lagging].leadership().borrow().leading(), None);
    cluster.restart(leader).await.unwrap();
    cluster.leader().await;
    for member in cluster.members.values() {
        assert_eq!(read(member, "key").await.unwrap().as_deref(), Some("acknowledged"));
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_group_begins_when_all_its_members_run() {
    let mut cluster = Cluster::start().await;
    cluster.leader().await;
    let ids = cluster.ids();
    for one in &ids {
        cluster.kill(*one).await;
        cluster.disks.insert(*one, Disk::in_memory());
    }
    // Nobody has anything of the old group: this is a new one.
    let two = tokio::time::timeout(std::time::Duration::from_secs(2), cluster.restart_together(&ids[..2])).await;
    assert!(two.is_err(), "two of three have begun without knowing what the third holds");
    cluster.restart_together(&ids).await;
    cluster.leader().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_half_of_its_data_does_not_start() {
    let mut cluster = Cluster::start_with(3, test_timing(), short_log(), |_| Disk::in_memory()).await;
    let (leader, _) = cluster.leader().await;
    // The log is purged in pieces of 256 entries.
    for number in 0..400 {
        write(&cluster.members[&leader], format!("key/{number}"), "value").await.unwrap();
    }
    converge(&cluster).await;
    eventually("the log is purged", || async { cluster.members[&leader].status().snapshot.filter(|index| *index > 350) }).await;
    cluster.kill(leader).await;
    let whole = cluster.disks[&leader].clone();
    let halves = [
        ("log", Disk { log: Disk::in_memory().log, ..whole.clone() }),
        ("state", Disk { state: Disk::in_memory().state, ..whole.clone() }),
    ];
    for (lost, half) in halves {
        cluster.disks.insert(leader, half);
        let outcome = cluster.restart(leader).await;
        assert!(matches!(outcome, Err(ConsensusError::IncompleteData(_))), "without its {lost}: {outcome:?}");
    }
    cluster.disks.insert(leader, whole);
    cluster.restart(leader).await.unwrap();
    converge(&cluster).await;
    cluster.shutdown().await;
}

/// A follower's proposals go to whoever leads now, however busy its stream to the old leader is.
#[tokio::test(flavor = "multi_thread")]
async fn writes_through_a_follower_go_on_while_the_leadership_moves() {
    let cluster = Cluster::start().await;
    let (mut leader, _) = cluster.leader().await;
    let writer = cluster.followers(leader)[0];
    let member = cluster.members[&writer].clone();
    let stop = tokio_util::sync::CancellationToken::new();
    let load: Vec<_> = (0..16)
        .map(|lane| {
            let (member, stop) = (member.clone(), stop.clone());
            tokio::spawn(async move {
                let (mut written, mut slowest) = (0, std::time::Duration::ZERO);
                while !stop.is_cancelled() {
                    let begun = tokio::time::Instant::now();
                    write(&member, format!("lane/{lane}"), format!("{written}")).await.unwrap();
                    slowest = slowest.max(begun.elapsed());
                    written += 1;
                }
                (written, slowest)
            })
        })
        .collect();
    for _ in 0..4 {
        let to = cluster.followers(leader).into_iter().find(|one| *one != writer).unwrap();
        eventually("the leadership moves", || async { member.transfer_leadership(to).await.ok() }).await;
        leader = to;
        cluster.leader().await;
    }
    stop.cancel();
    for (lane, outcome) in futures::future::join_all(load).await.into_iter().enumerate() {
        let (written, slowest) = outcome.unwrap();
        // A proposal that is sent to the wrong member is refused until the request times out, after 5 s.
        assert!(slowest < std::time::Duration::from_secs(4), "lane {lane} waited {slowest:?} for one of {written} writes");
        assert_eq!(read(&member, &format!("lane/{lane}")).await.unwrap(), Some(format!("{}", written - 1)));
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_told_under_another_address() {
    let mut cluster = Cluster::start().await;
    let (leader, _) = cluster.leader().await;
    let follower = cluster.followers(leader)[0];
    let learner = cluster.start_new(id(9)).await;
    cluster.members[&follower].add_learner(id(9), learner.clone()).await.unwrap();
    // Asked of a follower, the leader's refusals come back as what they are.
    let taken = cluster.members[&follower].add_learner(id(10), learner.clone()).await;
    assert!(matches!(taken, Err(ConsensusError::Refused(Refusal::AddressTaken(_)))), "{taken:?}");
    let own = cluster.members[&leader].status().members.into_iter().find(|one| one.node_id == leader).unwrap();
    let taken = cluster.members[&follower].update(id(9), own.member.address).await;
    assert!(matches!(taken, Err(ConsensusError::Refused(Refusal::AddressTaken(_)))), "{taken:?}");
    let unknown = cluster.members[&follower].update(id(77), "127.0.0.1:1".to_owned()).await;
    assert!(matches!(unknown, Err(ConsensusError::Refused(Refusal::NotMember(_)))), "{unknown:?}");
    cluster.members[&follower].update(id(9), "127.0.0.1:1".to_owned()).await.unwrap();
    eventually("every member knows the address", || async {
        let knows = |status: trireme_consensus::MemberStatus| {
            status.members.iter().any(|one| one.node_id == id(9) && one.member.address == "127.0.0.1:1")
        };
        [leader, follower].iter().all(|member| knows(cluster.members[member].status())).then_some(())
    })
    .await;
    let status = cluster.members[&leader].peer_status(follower).await.unwrap();
    assert_eq!(status.client_urls, [format!("https://master-{follower}:2379")]);
    cluster.shutdown().await;
}
