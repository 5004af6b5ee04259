//! Writers that put two keys in one transaction, and whether what they were told is so.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinHandle;
use trireme_consensus::{Consensus, NodeId};
use trireme_storage::{
    model::{KeyRange, Operation, RangeRequest, Revision, Transaction},
    store::{Store, StoreError},
};

use crate::cluster::eventually;

/// What a writer was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Acknowledged(Revision),
    Failed,
    Unknown,
}

/// The members that writers may use; one without power is not among them.
pub type Members = Arc<Mutex<BTreeMap<NodeId, Arc<Consensus>>>>;

type History = Vec<(String, Told)>;

/// Writers at work, one for each member.
pub struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<History>>,
}

impl Writers {
    /// `run` begins every key.
    pub fn start(run: &str, members: &Members) -> Self {
        let (stop, acknowledged): (Arc<AtomicBool>, Arc<AtomicUsize>) = Default::default();
        let ids: Vec<NodeId> = members.lock().unwrap().keys().copied().collect();
        let start = |node_id: NodeId| {
            let (run, members, stop, acknowledged) = (run.to_owned(), members.clone(), stop.clone(), acknowledged.clone());
            tokio::spawn(async move {
                let mut history = Vec::new();
                let mut newest = Revision(0);
                while !stop.load(Ordering::Relaxed) {
                    let member = members.lock().unwrap().get(&node_id).cloned();
                    let Some(member) = member else {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        continue;
                    };
                    let key = format!("{run}/{node_id}/{}", history.len());
                    let told = write(&member, &key).await;
                    if let Told::Acknowledged(revision) = told {
                        assert!(revision > newest, "{key} is acknowledged at {revision}, the write before at {newest}");
                        newest = revision;
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                    }
                    history.push((key, told));
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                history
            })
        };
        let tasks = ids.into_iter().map(start).collect();
        Self { stop, acknowledged, tasks }
    }

    /// Waits until `count` more writes are acknowledged.
    pub async fn acknowledge(&self, count: usize) {
        let wanted = self.acknowledged.load(Ordering::Relaxed) + count;
        let enough = || async { (self.acknowledged.load(Ordering::Relaxed) >= wanted).then_some(()) };
        eventually("writes are acknowledged", enough).await;
    }

    /// Ends the writers, and checks what `members` hold.
    pub async fn check(self, members: &BTreeMap<NodeId, Arc<Consensus>>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut histories = Vec::new();
        for task in self.tasks {
            histories.extend(task.await.unwrap());
        }
        for (node_id, member) in members {
            member.read_barrier().await.unwrap();
            for (key, told) in &histories {
                let [left, right] = [stored(member, key, "left").await, stored(member, key, "right").await];
                assert_eq!(left, right, "{node_id} has {key} by halves");
                match told {
                    Told::Acknowledged(revision) => {
                        assert_eq!(left, Some((key.clone(), *revision)), "{node_id}: {key} was acknowledged");
                    }
                    Told::Failed => assert_eq!(left, None, "{node_id}: {key} failed"),
                    Told::Unknown => {}
                }
            }
        }
    }
}

async fn write(member: &Consensus, key: &str) -> Told {
    let put = |half: &str| Operation::put(format!("{key}/{half}"), key.to_owned());
    let pair = Transaction { success: vec![put("left"), put("right")], ..Transaction::default() };
    match member.transact(pair).await {
        Ok(done) => Told::Acknowledged(done.revision),
        Err(StoreError::Unavailable(_)) => Told::Failed,
        Err(_) => Told::Unknown,
    }
}

async fn stored(member: &Consensus, key: &str, half: &str) -> Option<(String, Revision)> {
    let key = format!("{key}/{half}");
    let found = member.range(RangeRequest::new(KeyRange::One(key.into()))).await.unwrap();
    found.key_values.first().map(|one| (String::from_utf8_lossy(&one.value).into_owned(), one.mod_revision))
}
