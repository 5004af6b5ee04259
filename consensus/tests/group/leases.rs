//! Leases end when their time has passed on the leader, and not because another member leads.

use std::time::Duration;

use tokio::time::Instant;
use trireme_storage::{
    model::{LeaseId, Operation, PutLease, PutValue, Transaction},
    store::{Leases, Store, StoreError},
};

use crate::cluster::{Cluster, eventually, read};

const LEASE: LeaseId = LeaseId(7);
const TTL: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_ends_after_its_time_and_a_new_leader_gives_it_its_whole_time_anew() {
    let mut cluster = Cluster::start().await;
    let (leader, _) = cluster.leader().await;
    let follower = cluster.followers(leader)[0];
    let granted = cluster.members[&follower].grant_lease(LEASE, TTL.as_secs()).await.unwrap();
    assert_eq!(cluster.members[&follower].grant_lease(LEASE, 60).await, Err(StoreError::LeaseExists(LEASE)));
    let attached = Operation::Put {
        key: "attached".into(),
        value: PutValue::Set("yes".into()),
        lease: PutLease::Set(LEASE),
        return_previous: false,
    };
    let transaction = Transaction { success: vec![attached], ..Transaction::default() };
    cluster.members[&follower].transact(transaction).await.unwrap();

    // Kept alive, it outlives its time, though the wall clock of these members stands still.
    let began = Instant::now();
    while began.elapsed() < TTL + Duration::from_secs(1) {
        let kept = cluster.members[&follower].keep_lease_alive(LEASE).await.unwrap();
        assert!(kept.deadline_ms > granted.deadline_ms);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(read(&cluster.members[&follower], "attached").await.unwrap().as_deref(), Some("yes"));

    // Half of its time passes under one leader, and then all of it under the next.
    tokio::time::sleep(TTL / 2).await;
    let killed = Instant::now();
    cluster.kill(leader).await;
    eventually("the lease has ended", || async {
        let gone = read(&cluster.members[&follower], "attached").await.ok()?.is_none();
        gone.then_some(())
    })
    .await;
    assert!(killed.elapsed() >= TTL, "{:?}", killed.elapsed());
    assert_eq!(cluster.members[&follower].lease(LEASE), None);
    assert_eq!(cluster.members[&follower].keep_lease_alive(LEASE).await, Err(StoreError::LeaseNotFound(LEASE)));
    cluster.shutdown().await;
}
