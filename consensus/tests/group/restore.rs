//! New groups that begin with a snapshot of another one.

use std::{collections::BTreeMap, sync::Arc};

use tokio::net::TcpListener;
use trireme_consensus::{Consensus, ConsensusError, Limits, Member, NodeId, Restore, restore};
use trireme_storage::{
    model::Revision,
    portable::PortableSnapshot,
    store::{Leases, Store, StoreError},
};

use crate::{
    certificates::Authority,
    cluster::{CLUSTER, Cluster, Disk, converge, eventually, id, read, test_timing, write},
    network::Links,
};

/// A snapshot of a cluster with so many keys and a lease.
async fn snapshot(keys: usize) -> Vec<u8> {
    let cluster = Cluster::start().await;
    let (leader, _) = cluster.leader().await;
    let member = &cluster.members[&leader];
    for number in 0..keys {
        write(member, format!("key/{number}"), format!("value {number}")).await.unwrap();
    }
    member.grant_lease(trireme_storage::model::LeaseId(77), 3600).await.unwrap();
    let mut snapshot = PortableSnapshot::new(member.state_machine().begin_snapshot().unwrap()).unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = snapshot.read(1 << 16).unwrap() {
        bytes.extend_from_slice(&piece);
    }
    cluster.shutdown().await;
    bytes
}

/// Members restored from `snapshots`, one each, that have not been started, and their listeners.
async fn restored(snapshots: &[&[u8]]) -> (Cluster, Vec<(NodeId, TcpListener)>) {
    let mut cluster = Cluster {
        authority: Authority::new(),
        links: Links::new(),
        timing: test_timing(),
        limits: Limits { snapshot_entries: 50, kept_entries: 1000, ..Limits::default() },
        bootstrap: Vec::new(),
        joined: BTreeMap::new(),
        disks: BTreeMap::new(),
        members: BTreeMap::new(),
    };
    let mut listeners = Vec::new();
    for number in 1..=snapshots.len() as u64 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        cluster.bootstrap.push((id(number), Member { name: format!("master-{number}"), address, ..Member::default() }));
        listeners.push((id(number), listener));
    }
    for ((node_id, _), mut snapshot) in listeners.iter().zip(snapshots.iter().copied()) {
        let disk = Disk::in_memory();
        let member = Restore {
            cluster_id: CLUSTER,
            node_id: *node_id,
            members: cluster.bootstrap.clone(),
            bump_revision: 1_000_000,
            log_engine: disk.log.clone(),
            state_engine: disk.state.clone(),
        };
        restore(member, &mut snapshot).unwrap();
        cluster.disks.insert(*node_id, disk);
    }
    (cluster, listeners)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_group_goes_on_and_grows() {
    let bytes = snapshot(120).await;
    let (mut cluster, listeners) = restored(&[&bytes, &bytes, &bytes]).await;
    let starting = listeners.into_iter().map(|(node_id, listener)| {
        let config = cluster.config(node_id, listener);
        async move { (node_id, Consensus::start(config).await.unwrap()) }
    });
    let started: Vec<(NodeId, Arc<Consensus>)> = futures::future::join_all(starting).await;
    cluster.members.extend(started);
    let (leader, _) = cluster.leader().await;
    let member = cluster.members[&leader].clone();
    let began = member.revision();
    assert!(began.0 > 1_000_000);
    for other in cluster.members.values() {
        assert_eq!(read(other, "key/119").await.unwrap().as_deref(), Some("value 119"));
        assert_eq!(other.leases().len(), 1);
        assert!(matches!(other.watch(Revision(100)).await.err(), Some(StoreError::Compacted { .. })));
    }
    for number in 0..10 {
        write(&member, format!("new/{number}"), "v").await.unwrap();
    }
    assert_eq!(member.revision(), Revision(began.0 + 10));
    converge(&cluster).await;

    // One that is added later has everything, too, although the log begins after the restore.
    let description = cluster.start_new(id(9)).await;
    member.add_learner(id(9), description).await.unwrap();
    eventually("the new member has caught up", || async { member.promote(id(9)).await.ok() }).await;
    let held = converge(&cluster).await;
    assert_eq!(read(&cluster.members[&id(9)], "key/0").await.unwrap().as_deref(), Some("value 0"));

    // It is a group like any other after a restart, too.
    let first = cluster.bootstrap[0].0;
    cluster.kill(first).await;
    cluster.restart(first).await.unwrap();
    assert_eq!(converge(&cluster).await, held);
    assert!(cluster.statuses().iter().all(|status| status.corrupt.is_none()));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_begin_with_different_data_do_not_form_a_group() {
    let (one, other) = (snapshot(3).await, snapshot(4).await);
    let (cluster, listeners) = restored(&[&one, &one, &other]).await;
    let mut starting = Vec::new();
    for (node_id, listener) in listeners {
        let config = cluster.config(node_id, listener);
        starting.push(tokio::spawn(Consensus::start(config)));
    }
    // Whoever meets the other one refuses to begin; the rest waits in vain.
    let refused = eventually("a member refuses to begin", || async {
        let position = starting.iter().position(tokio::task::JoinHandle::is_finished)?;
        Some(position)
    })
    .await;
    let error = starting.swap_remove(refused).await.unwrap().err();
    assert!(matches!(error, Some(ConsensusError::OtherBeginning { .. })), "{error:?}");
    for handle in starting {
        handle.abort();
        // One that has met nobody is aborted; one that has, has refused, too.
        if let Ok(started) = handle.await {
            assert!(matches!(started.err(), Some(ConsensusError::OtherBeginning { .. })));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_restored_for_another_group_is_refused() {
    let bytes = snapshot(1).await;
    let (mut cluster, listeners) = restored(&[&bytes, &bytes]).await;
    cluster.bootstrap[1].1.address = "127.0.0.1:1".to_owned();
    let (node_id, listener) = listeners.into_iter().next().unwrap();
    let refused = Consensus::start(cluster.config(node_id, listener)).await.err();
    assert!(
        matches!(&refused, Some(ConsensusError::Configuration(reason)) if reason.contains("was restored for the members")),
        "{refused:?}"
    );
}
