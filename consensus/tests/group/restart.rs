//! Everything stops and starts again, on RocksDB and after the loss of what was not synced.

use std::{path::Path, sync::Arc};

use trireme_consensus::{Limits, NodeId};
use trireme_storage::{
    engine::{
        Engine,
        memory::MemoryEngine,
        rocks::{RocksEngine, RocksOptions},
    },
    log::RaftLog,
};

use crate::cluster::{Cluster, Disk, converge, eventually, id, read, test_timing, write};

fn on_disk(folder: &Path, node_id: NodeId) -> Disk {
    let engine = |name: &str, options: RocksOptions| -> Arc<dyn Engine> {
        Arc::new(RocksEngine::open(folder.join(format!("{node_id}-{name}")), options).unwrap())
    };
    Disk { log: engine("log", RocksOptions::for_log()), state: engine("state", RocksOptions::for_state()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_members_restart_from_rocksdb_with_everything_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { snapshot_entries: 50, kept_entries: 10, ..Limits::default() };
    let mut cluster = Cluster::start_with(3, test_timing(), limits, |id| on_disk(folder.path(), id)).await;
    for round in 0..3 {
        let (leader, _) = cluster.leader().await;
        for number in 0..60 {
            write(&cluster.members[&leader], format!("{round}/{number}"), format!("value {number}")).await.unwrap();
        }
        let held = converge(&cluster).await;
        let ids = cluster.ids();
        for one in &ids {
            cluster.kill(*one).await;
        }
        cluster.disks.clear();
        for one in &ids {
            cluster.disks.insert(*one, on_disk(folder.path(), *one));
            cluster.restart(*one).await.unwrap();
        }
        cluster.leader().await;
        assert_eq!(converge(&cluster).await, held);
        for member in cluster.members.values() {
            for number in [0, 30, 59] {
                let found = read(member, &format!("{round}/{number}")).await.unwrap();
                assert_eq!(found, Some(format!("value {number}")));
            }
        }
    }
    // A member that comes from far behind gets RocksDB's own files.
    let (leader, _) = cluster.leader().await;
    let away = cluster.followers(leader)[0];
    cluster.kill(away).await;
    for number in 0..150 {
        write(&cluster.members[&leader], format!("later/{number}"), "x".repeat(500)).await.unwrap();
    }
    cluster.restart(away).await.unwrap();
    converge(&cluster).await;
    cluster.shutdown().await;
}

/// Few entries with large commands must not fill the disk while their number is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_bounded_by_its_bytes() {
    const KIB: usize = 1024;
    let limits = Limits { snapshot_bytes: 64 * KIB as u64, kept_bytes: 32 * KIB as u64, ..Limits::default() };
    let mut cluster = Cluster::start_with(3, test_timing(), limits, |_| Disk::in_memory()).await;
    let (leader, _) = cluster.leader().await;
    for number in 0..100 {
        write(&cluster.members[&leader], format!("key/{number}"), "x".repeat(10 * KIB)).await.unwrap();
    }
    for disk in cluster.disks.values() {
        let held = async || {
            Some(RaftLog::open(disk.log.clone()).unwrap().measure(|sizes| sizes.bytes_after(None)))
                .filter(|held| *held < 128 * KIB as u64)
        };
        let held = eventually("the log is shortened", held).await;
        assert!(held >= 32 * KIB as u64, "{held} bytes are kept for followers that are behind");
    }
    let state = converge(&cluster).await;
    for one in cluster.ids() {
        cluster.kill(one).await;
        cluster.restart(one).await.unwrap();
        cluster.leader().await;
    }
    assert_eq!(converge(&cluster).await, state);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_of_all_members_at_once_loses_nothing_acknowledged() {
    let engines: Vec<(Arc<MemoryEngine>, Arc<MemoryEngine>)> = (0..3).map(|_| Default::default()).collect();
    let disk = |node_id: NodeId| {
        let (log, state) = &engines[(node_id.0 - id(1).0) as usize];
        Disk { log: log.clone(), state: state.clone() }
    };
    let mut cluster = Cluster::start_with(3, test_timing(), Limits::default(), disk).await;
    let (leader, _) = cluster.leader().await;
    for number in 0..100 {
        write(&cluster.members[&leader], format!("key/{number}"), format!("value {number}")).await.unwrap();
    }
    let ids = cluster.ids();
    for one in &ids {
        cluster.kill(*one).await;
    }
    for (log, state) in &engines {
        log.crash();
        state.crash();
    }
    for one in &ids {
        cluster.restart(*one).await.unwrap();
    }
    cluster.leader().await;
    for member in cluster.members.values() {
        for number in 0..100 {
            let found = read(member, &format!("key/{number}")).await.unwrap();
            assert_eq!(found, Some(format!("value {number}")), "key/{number} was acknowledged before the power cut");
        }
    }
    converge(&cluster).await;
    cluster.shutdown().await;
}
