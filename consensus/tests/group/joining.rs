//! Who is a member, and with which data folder: members that join, that are removed, and that come back as they must not.

use trireme_consensus::{ConsensusError, Limits, Refusal, Role};

use crate::cluster::{Cluster, Disk, converge, eventually, id, read, test_timing, write};

async fn start_one() -> Cluster {
    Cluster::start_with(1, test_timing(), Limits::default(), |_| Disk::in_memory()).await
}

/// One lost disk and one crash must not lose a write, whenever the members came: the two that are left are not the majority that
/// acknowledged it.
#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_folder_of_a_member_that_joined_makes_no_majority_with_one_that_lags() {
    let mut cluster = start_one().await;
    let (first, _) = cluster.leader().await;
    let (lagging, wiped) = (id(7), id(8));
    cluster.grow(lagging).await;
    cluster.grow(wiped).await;
    eventually("the first member leads", || async { cluster.members[&first].transfer_leadership(first).await.ok() }).await;
    assert_eq!(cluster.leader().await.0, first);
    write(&cluster.members[&first], "before", "yes").await.unwrap();
    converge(&cluster).await;
    cluster.kill(lagging).await;
    write(&cluster.members[&first], "key", "acknowledged").await.unwrap();
    cluster.kill(wiped).await;
    cluster.kill(first).await;

    cluster.disks.insert(wiped, Disk::in_memory());
    cluster.restart(lagging).await.unwrap();
    cluster.restart(wiped).await.unwrap();
    // Long enough for several elections: the one that lags asks for votes all the time.
    tokio::time::sleep(cluster.timing.election_timeout_max * 6).await;
    assert_eq!(cluster.members[&lagging].leadership_now().leading(), None, "an empty log has voted");
    assert_eq!(cluster.members[&wiped].leadership_now().leading(), None);

    cluster.restart(first).await.unwrap();
    let ended = eventually("the emptied folder is recognised", || async { cluster.members[&wiped].expulsion() }).await;
    assert!(matches!(ended, ConsensusError::LostData(lost) if lost == wiped), "{ended:?}");
    cluster.leader_among(&[first, lagging]).await;
    for member in [first, lagging] {
        assert_eq!(read(&cluster.members[&member], "key").await.unwrap().as_deref(), Some("acknowledged"));
    }
    // It is removed, and comes back as a new one.
    cluster.kill(wiped).await;
    cluster.members[&first].remove(wiped).await.unwrap();
    cluster.grow(id(9)).await;
    converge(&cluster).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_group_knows_every_member_by_its_folder() {
    let mut cluster = Cluster::start().await;
    let new = id(9);
    let member = cluster.start_new(new).await;
    let (leader, _) = cluster.leader_among(&cluster.followers(new)).await;
    // Not a member yet: it waits, and takes no part.
    assert!(cluster.members[&new].expulsion().is_none());
    cluster.members[&leader].add_learner(new, member).await.unwrap();
    cluster.members[&new].joined().await.unwrap();
    eventually("all folders, names and zones are noted", || async {
        let noted = |status: trireme_consensus::MemberStatus| {
            let complete = |one: &trireme_consensus::GroupMember| {
                one.member.folder.is_some() && one.member.zone == "zone-x" && one.member.name == format!("master-{}", one.node_id)
            };
            status.members.len() == 4 && status.members.iter().all(complete)
        };
        cluster.statuses().into_iter().all(noted).then_some(())
    })
    .await;
    let members = cluster.members[&leader].status().members;
    let mut folders: Vec<_> = members.iter().map(|one| one.member.folder).collect();
    folders.sort_unstable();
    folders.dedup();
    assert_eq!(folders.len(), 4, "every folder has an id of its own");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_removed_while_it_did_not_run_ends_without_disturbing_the_group() {
    let mut cluster = Cluster::start().await;
    let (leader, _) = cluster.leader().await;
    let removed = cluster.followers(leader)[0];
    write(&cluster.members[&leader], "key", "value").await.unwrap();
    converge(&cluster).await;
    cluster.kill(removed).await;
    cluster.members[&leader].remove(removed).await.unwrap();
    let (leader, term) = cluster.leader().await;

    cluster.restart(removed).await.unwrap();
    let ended = eventually("it learns of its removal", || async { cluster.members[&removed].expulsion() }).await;
    assert!(matches!(ended, ConsensusError::Removed(one) if one == removed), "{ended:?}");
    assert!(ended.to_string().contains("was removed from the cluster"), "{ended}");
    eventually("it ends", || async { (cluster.members[&removed].leadership_now().role == Role::Stopped).then_some(()) }).await;
    cluster.kill(removed).await;
    // It knows from then on, whomever it could ask.
    let again = cluster.restart(removed).await;
    assert!(matches!(again, Err(ConsensusError::Removed(one)) if one == removed), "{again:?}");
    assert_eq!(cluster.leader().await, (leader, term), "the group was disturbed");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_removed_while_it_runs_ends() {
    let cluster = Cluster::start().await;
    let (leader, _) = cluster.leader().await;
    let removed = cluster.followers(leader)[0];
    cluster.members[&leader].remove(removed).await.unwrap();
    let ended = eventually("it learns of its removal", || async { cluster.members[&removed].expulsion() }).await;
    assert!(matches!(ended, ConsensusError::Removed(one) if one == removed), "{ended:?}");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_removed_hands_over_first() {
    let mut cluster = Cluster::start().await;
    for _ in 0..2 {
        let (leader, term) = cluster.leader().await;
        let other = cluster.followers(leader)[0];
        cluster.members[&other].remove(leader).await.unwrap();
        cluster.kill(leader).await;
        let (next, next_term) = cluster.leader().await;
        assert!(next != leader && next_term > term);
        assert!(cluster.members[&next].status().members.iter().all(|one| one.node_id != leader));
        write(&cluster.members[&next], "key", format!("{next_term:?}")).await.unwrap();
    }
    let (last, _) = cluster.leader().await;
    let refused = cluster.members[&last].remove(last).await;
    assert!(matches!(refused, Err(ConsensusError::Refused(Refusal::LastVoter(one))) if one == last), "{refused:?}");
    write(&cluster.members[&last], "key", "still").await.unwrap();
    cluster.shutdown().await;
}
