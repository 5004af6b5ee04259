//! Crashes, partitions and pauses.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use trireme_consensus::{Consensus, Limits, NodeId, Role, Timing};
use trireme_storage::store::{Store, StoreError};

use crate::cluster::{Cluster, Disk, PATIENCE, converge, eventually, put, read, read_stale, write};

/// Writes until told to stop, and remembers what was acknowledged.
async fn load(member: Arc<Consensus>, name: String, stop: Arc<AtomicBool>, acknowledged: Arc<Mutex<BTreeMap<String, String>>>) {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let (key, value) = (format!("{name}/{number}"), format!("value {number}"));
        if member.transact(put(&key, &value)).await.is_ok() {
            acknowledged.lock().unwrap().insert(key, value);
        } else {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_the_leader_dies_under_load() {
    let mut cluster = Cluster::start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(Mutex::new(BTreeMap::new()));
    let mut writers = Vec::new();
    for (node_id, member) in &cluster.members {
        for writer in 0..4 {
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            writers.push(tokio::spawn(load(member.clone(), format!("{node_id}/{writer}"), stop, acknowledged)));
        }
    }
    let (first, first_term) = cluster.leader().await;
    let count = |acknowledged: &Mutex<BTreeMap<String, String>>| acknowledged.lock().unwrap().len();
    eventually("writes flow", || async { (count(&acknowledged) > 200).then_some(()) }).await;

    cluster.kill(first).await;
    let began = Instant::now();
    let survivor = *cluster.members.keys().next().unwrap();
    write(&cluster.members[&survivor], "after the crash", "yes").await.unwrap();
    eprintln!("the next write was acknowledged {:?} after the leader died", began.elapsed());
    let (second, second_term) = cluster.leader().await;
    assert!(second != first && second_term > first_term);
    let before = count(&acknowledged);
    eventually("writes flow again", || async { (count(&acknowledged) > before + 200).then_some(()) }).await;

    cluster.restart(first).await.unwrap();
    cluster.leader().await;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    converge(&cluster).await;
    let acknowledged = acknowledged.lock().unwrap().clone();
    assert!(acknowledged.len() > 400);
    for member in cluster.members.values() {
        member.read_barrier().await.unwrap();
        for (key, value) in &acknowledged {
            assert_eq!(read_stale(member, key).await.unwrap().as_ref(), Some(value), "{key} was acknowledged");
        }
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healed_partition_does_not_depose_a_good_leader() {
    let cluster = Cluster::start().await;
    let (leader, term) = cluster.leader().await;
    let lonely = cluster.followers(leader)[0];
    cluster.links.isolate(lonely, &cluster.ids());
    // Long enough for several elections, were it to stand for them.
    let until = Instant::now() + cluster.timing.election_timeout_max * 6;
    let mut number = 0;
    while Instant::now() < until {
        number += 1;
        write(&cluster.members[&leader], format!("during/{number}"), "partition").await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(cluster.members[&lonely].leadership().borrow().term, term, "pre-votes do not raise the term");
    // The lonely member serves no reads that must be linearizable, and takes no writes.
    let barrier = cluster.members[&lonely].read_barrier().await;
    assert!(matches!(barrier, Err(StoreError::Unavailable(_))), "{barrier:?}");
    cluster.links.heal();
    let last = format!("during/{number}");
    eventually("the lonely member catches up", || async {
        (read_stale(&cluster.members[&lonely], &last).await.unwrap().as_deref() == Some("partition")).then_some(())
    })
    .await;
    assert_eq!(cluster.leader().await, (leader, term));
    converge(&cluster).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_lost_its_quorum_says_so_and_serves_nothing_stale() {
    let cluster = Cluster::start().await;
    let (old, old_term) = cluster.leader().await;
    write(&cluster.members[&old], "key", "old").await.unwrap();
    converge(&cluster).await;
    cluster.links.isolate(old, &cluster.ids());
    let rest = cluster.followers(old);
    let (new, new_term) = cluster.leader_among(&rest).await;
    assert!(new_term > old_term);
    write(&cluster.members[&new], "key", "new").await.unwrap();

    // The deposed leader still has the old value; it must not pass for the current one.
    assert_eq!(read_stale(&cluster.members[&old], "key").await.unwrap().as_deref(), Some("old"));
    let began = Instant::now();
    let barrier = cluster.members[&old].read_barrier().await;
    assert!(matches!(barrier, Err(StoreError::Unavailable(_))), "{barrier:?}");
    let refused = cluster.members[&old].transact(put("lost", "value")).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_) | StoreError::Unknown(_))), "{refused:?}");
    assert!(began.elapsed() < PATIENCE, "a request without a quorum fails in bounded time");
    eventually("the loss is announced", || async {
        (cluster.members[&old].leadership().borrow().role != Role::Leader).then_some(())
    })
    .await;

    cluster.links.heal();
    eventually("the old leader follows", || async {
        (cluster.members[&old].leadership().borrow().leader.is_some()).then_some(())
    })
    .await;
    assert_eq!(read(&cluster.members[&old], "key").await.unwrap().as_deref(), Some("new"));
    converge(&cluster).await;
    cluster.shutdown().await;
}

/// A member on a runtime of its own thread, which can be stopped as SIGSTOP stops a process.
struct Pausable {
    stop: std::sync::mpsc::Sender<()>,
    resume: std::sync::mpsc::Sender<()>,
    runtime: tokio::runtime::Runtime,
}

impl Pausable {
    fn new() -> (Self, tokio::runtime::Handle) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let (resume, resumed) = std::sync::mpsc::channel::<()>();
        runtime.spawn(async move {
            // Polls for the order to stop, and then blocks the only worker until it may go on.
            loop {
                if stopped.try_recv().is_ok() && resumed.recv().is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        let handle = runtime.handle().clone();
        (Self { stop, resume, runtime }, handle)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_paused_leader_does_not_answer_from_before_its_pause() {
    let mut cluster = Cluster::start().await;
    let (leader, _) = cluster.leader().await;
    // Every member's turn: the leader's disk goes on in a runtime that can be paused.
    cluster.kill(leader).await;
    cluster.leader().await;
    let (pausable, handle) = Pausable::new();
    let address = cluster.bootstrap.iter().find(|(one, _)| *one == leader).unwrap().1.address.clone();
    let listener = eventually("the address is free", || async { std::net::TcpListener::bind(&address).ok() }).await;
    listener.set_nonblocking(true).unwrap();
    let listener = handle.spawn(async move { tokio::net::TcpListener::from_std(listener).unwrap() }).await.unwrap();
    let config = cluster.config(leader, listener);
    let member = handle.spawn(async move { Consensus::start(config).await.unwrap() }).await.unwrap();
    cluster.members.insert(leader, member.clone());
    cluster.leader().await;
    write(&cluster.members[&leader], "key", "old").await.unwrap();
    converge(&cluster).await;
    eventually("the pausable member leads", || async {
        // The hand-over needs a caught-up target, so it may have to be asked for again.
        let _ = cluster.members[&leader].transfer_leadership(leader).await;
        (member.leadership().borrow().role == Role::Leader).then_some(())
    })
    .await;
    let term = member.leadership().borrow().term;

    pausable.stop.send(()).unwrap();
    let rest: Vec<NodeId> = cluster.followers(leader);
    let (new, new_term) = cluster.leader_among(&rest).await;
    assert!(new_term > term);
    write(&cluster.members[&new], "key", "new").await.unwrap();

    // Readers wait at the paused member; when it wakes, it still believes that it leads.
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let member = member.clone();
            handle.spawn(async move { read(&member, "key").await })
        })
        .collect();
    pausable.resume.send(()).unwrap();
    for reader in readers {
        match reader.await.unwrap() {
            Ok(value) => assert_eq!(value.as_deref(), Some("new"), "a read after the pause sees what came during it"),
            Err(StoreError::Unavailable(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }
    converge(&cluster).await;
    cluster.members.remove(&leader);
    handle.spawn(async move { member.stop().await }).await.unwrap();
    cluster.shutdown().await;
    pausable.runtime.shutdown_background();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_leader_is_replaced_quickly_again_and_again() {
    let mut cluster = Cluster::start_with(3, Timing::default(), Limits::default(), |_| Disk::in_memory()).await;
    let mut times = Vec::new();
    for round in 0..10 {
        let (leader, _) = cluster.leader().await;
        write(&cluster.members[&leader], "round", format!("{round}")).await.unwrap();
        converge(&cluster).await;
        let survivor = cluster.followers(leader)[0];
        cluster.kill(leader).await;
        let began = Instant::now();
        write(&cluster.members[&survivor], "round", format!("{round} again")).await.unwrap();
        times.push(began.elapsed());
        cluster.restart(leader).await.unwrap();
    }
    times.sort();
    eprintln!("from the death of a leader to the next acknowledged write: {times:?}");
    assert!(times[times.len() / 2] < Duration::from_secs(10), "{times:?}");
    cluster.shutdown().await;
}

/// Without pauses the attempts to reach a dead member would take a whole processor of the leader.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_member_is_looked_for_with_pauses() {
    let mut cluster = Cluster::start().await;
    let (leader, _) = cluster.leader().await;
    let dead = cluster.followers(leader)[0];
    cluster.kill(dead).await;
    let before = cluster.links.attempts(dead);
    let until = Instant::now() + Duration::from_secs(2);
    let mut written = 0;
    while Instant::now() < until {
        write(&cluster.members[&leader], "key", format!("{written}")).await.unwrap();
        written += 1;
    }
    let attempts = cluster.links.attempts(dead) - before;
    assert!(written > 10, "only {written} writes");
    assert!((1..400).contains(&attempts), "{attempts} attempts to reach the dead member during {written} writes");
    cluster.shutdown().await;
}
