//! Members whose data are not those of the others: found out, kept from serving, and never found where there are none.

use std::{sync::Arc, time::Duration};

use prometheus_client::{encoding::text::encode, registry::Registry};
use trireme_consensus::{Consensus, Limits, NodeId, Timing};
use trireme_storage::{
    engine::{Durability, Keyspace, WriteBatch},
    model::{KeyRange, RangeRequest, Revision},
    store::{Store, StoreError},
};

use crate::cluster::{Cluster, Disk, PATIENCE, converge, eventually, put, read, test_timing, write};

const NEVER: Duration = Duration::from_secs(3600);

fn timing(hash_check_interval: Duration, first_content_check: Duration) -> Timing {
    Timing { hash_check_interval, first_content_check, ..test_timing() }
}

/// Changes a value on a stopped member's disk, as a broken disk or a wrong hand would.
fn change_behind_the_back(disk: &Disk, key: &str) {
    let row = disk.state.get(Keyspace::Current, key.as_bytes()).unwrap().expect("the key is there");
    let mut row = row.to_vec();
    *row.last_mut().expect("the value is not empty") ^= 1;
    let mut rows = WriteBatch::new();
    rows.put(Keyspace::Current, key.to_owned(), row);
    disk.state.write(&rows, Durability::Sync).unwrap();
}

async fn wait_for_divergence(cluster: &Cluster, id: NodeId) {
    eventually("the member has stopped serving", || async { cluster.members[&id].status().diverged.then_some(()) }).await;
}

/// Checks that a member hands out nothing, and that the others go on without it.
async fn check_apart(cluster: &Cluster, odd: NodeId, key: &str) {
    let member = &cluster.members[&odd];
    let diverged = |error: Option<StoreError>| assert!(matches!(error, Some(StoreError::Diverged(_))), "{error:?}");
    diverged(member.transact(put("x", "y")).await.err());
    diverged(member.read_barrier().await.err());
    diverged(member.range(RangeRequest::new(KeyRange::One(key.to_owned().into()))).await.err());
    diverged(member.watch(Revision(1)).await.err());
    diverged(member.compact(Revision(1)).await.err());
    assert!(member.status().corrupt.is_some());
    let others = cluster.followers(odd);
    let (leader, _) = eventually_led_by_others(cluster, odd).await;
    for other in &others {
        assert_eq!(cluster.members[other].status().corrupt, None);
        write(&cluster.members[other], format!("after/{other}"), "v").await.unwrap();
        assert!(read(&cluster.members[other], key).await.unwrap().is_some());
    }
    // It is never asked to lead again, not even by hand.
    assert!(cluster.members[&leader].transfer_leadership(odd).await.is_err());
    eventually_led_by_others(cluster, odd).await;
}

async fn eventually_led_by_others(cluster: &Cluster, odd: NodeId) -> (NodeId, trireme_storage::model::Term) {
    let others = cluster.followers(odd);
    cluster.leader_among(&others).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_applies_to_other_data_is_found_by_its_hash() {
    let timing = timing(Duration::from_millis(200), NEVER);
    let mut cluster = Cluster::start_with(3, timing, Limits::default(), |_| Disk::in_memory()).await;
    let (leader, _) = cluster.leader().await;
    write(&cluster.members[&leader], "key", "value").await.unwrap();
    converge(&cluster).await;
    let odd = cluster.followers(leader)[0];
    cluster.kill(odd).await;
    change_behind_the_back(&cluster.disks[&odd], "key");
    cluster.restart(odd).await.unwrap();
    let mut watch = cluster.members[&odd].watch(Revision(1)).await.unwrap();
    watch.next().await.unwrap();
    // The hash knows nothing of it until the key is written again.
    write(&cluster.members[&leader], "key", "another value").await.unwrap();
    wait_for_divergence(&cluster, odd).await;
    let ended = async { while watch.next().await.is_ok() {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("its watches end");
    check_apart(&cluster, odd, "key").await;

    // It remembers, although what it applies from here on may look right.
    cluster.kill(odd).await;
    cluster.restart(odd).await.unwrap();
    assert!(cluster.members[&odd].status().diverged);
    check_apart(&cluster, odd, "key").await;

    // It goes on to vote: without it, one that is left of the others could do nothing.
    let (leader, _) = eventually_led_by_others(&cluster, odd).await;
    let third = cluster.followers(odd).into_iter().find(|id| *id != leader).expect("there are three");
    cluster.kill(third).await;
    write(&cluster.members[&leader], "by two", "v").await.unwrap();
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_was_changed_finds_it_itself_and_gives_the_leadership_away() {
    let timing = timing(NEVER, Duration::from_millis(1500));
    let mut cluster = Cluster::start_with(3, timing, Limits::default(), |_| Disk::in_memory()).await;
    let (leader, _) = cluster.leader().await;
    for number in 0..100 {
        write(&cluster.members[&leader], format!("key/{number}"), "value").await.unwrap();
    }
    converge(&cluster).await;
    let odd = cluster.followers(leader)[0];
    cluster.kill(odd).await;
    change_behind_the_back(&cluster.disks[&odd], "key/50");
    cluster.restart(odd).await.unwrap();
    // Until it finds out, it may lead.
    eventually("the member takes over, or has found out already", || async {
        let (leader, _) = cluster.leader().await;
        if leader == odd || cluster.members[&odd].status().diverged {
            return Some(());
        }
        cluster.members[&leader].transfer_leadership(odd).await.ok()
    })
    .await;
    wait_for_divergence(&cluster, odd).await;
    check_apart(&cluster, odd, "key/50").await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_knows_who_is_wrong_all_raise_the_alarm_and_go_on() {
    let timing = timing(Duration::from_millis(200), Duration::from_secs(2));
    let mut cluster = Cluster::start_with(2, timing, Limits::default(), |_| Disk::in_memory()).await;
    let (leader, _) = cluster.leader().await;
    write(&cluster.members[&leader], "key", "value").await.unwrap();
    converge(&cluster).await;
    let odd = cluster.followers(leader)[0];
    cluster.kill(odd).await;
    change_behind_the_back(&cluster.disks[&odd], "key");
    cluster.restart(odd).await.unwrap();
    let (leader, _) = cluster.leader().await;
    write(&cluster.members[&leader], "key", "another value").await.unwrap();
    eventually("both raise the alarm", || async {
        cluster.statuses().iter().all(|status| status.corrupt.is_some() && !status.diverged).then_some(())
    })
    .await;
    write(&cluster.members[&leader], "still", "served").await.unwrap();
    cluster.shutdown().await;
}

/// How often a member has found its hash equal to another's.
fn compared(member: &Consensus) -> u64 {
    let mut registry = Registry::default();
    member.register_metrics(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("trireme_store_hashes_compared_total ")).expect("it is there");
    line.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn healthy_members_never_raise_an_alarm() {
    let timing = Timing {
        history_retention: Duration::from_millis(500),
        compaction_interval: Duration::from_millis(200),
        content_check_interval: Duration::from_millis(150),
        ..timing(Duration::from_millis(50), Duration::from_millis(50))
    };
    let limits = Limits { snapshot_entries: 100, kept_entries: 20, ..Limits::default() };
    let mut cluster = Cluster::start_with(3, timing, limits, |_| Disk::in_memory()).await;
    let calm = |cluster: &Cluster| {
        for status in cluster.statuses() {
            assert_eq!((status.corrupt, status.diverged), (None, false), "{}", status.node_id);
        }
    };
    for round in 0..6 {
        let (leader, _) = cluster.leader().await;
        // One is away while the others write so much that it is sent a snapshot.
        let away = cluster.ids()[round % 3];
        cluster.kill(away).await;
        let writer = cluster.followers(away)[0];
        let member: Arc<Consensus> = cluster.members[&writer].clone();
        for number in 0..150 {
            write(&member, format!("key/{}", number % 40), format!("{round} {number}")).await.unwrap();
            if number % 50 == 0 {
                calm(&cluster);
            }
        }
        cluster.restart(away).await.unwrap();
        for number in 0..50 {
            write(&member, format!("more/{number}"), format!("{round} {leader}")).await.unwrap();
        }
        calm(&cluster);
    }
    converge(&cluster).await;
    let before: Vec<u64> = cluster.members.values().map(|member| compared(member)).collect();
    eventually("every member compares its hash with another's", || async {
        let now = cluster.members.values().map(|member| compared(member));
        now.zip(&before).all(|(now, before)| now > *before).then_some(())
    })
    .await;
    calm(&cluster);
    cluster.shutdown().await;
}
