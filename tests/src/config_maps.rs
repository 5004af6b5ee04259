//! Writers of ConfigMaps, whose acknowledgements the tests hold the cluster to.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::wait::until;

/// The label of every object that writers make.
pub const LABEL: &str = "made-by=writers";

/// How long one write may stay without an answer before its writer counts it as failed.
const WRITE_LIMIT: Duration = Duration::from_secs(15);
/// What a writer waits after a failure, so that a dead master is not asked in a tight loop.
const PAUSE: Duration = Duration::from_millis(20);

/// A ConfigMap with one value and the writers' label.
pub fn config_map(name: &str, value: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from([("made-by".to_owned(), "writers".to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([("value".to_owned(), value.to_owned())])),
        ..ConfigMap::default()
    }
}

/// The revision at which the cluster says that it stored an object.
///
/// # Panics
/// When the object has none, which no object that the API serves may lack.
pub fn revision(object: &impl ResourceExt) -> u64 {
    let version = object.resource_version().expect("what the API serves has a resourceVersion");
    version.parse().expect("resourceVersions are revisions")
}

/// What all writers together were told.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The acknowledged writes: each one's revision, with the object's name and value.
    pub acknowledged: BTreeMap<u64, (String, String)>,
    /// How many writes ended in an error, so that it is open whether they happened.
    pub unknown: usize,
    /// The longest time in which one writer had no acknowledgement, failures and further attempts included.
    pub longest_wait: Duration,
}

/// Checks that a server has every acknowledged write, or a later one of the same object.
///
/// # Panics
/// When it has not, or does not answer.
pub async fn assert_kept(client: Client, server: &str, acknowledged: &BTreeMap<u64, (String, String)>) {
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    let listed = api.list(&ListParams::default().labels(LABEL)).await.expect("the server answers");
    let stored: BTreeMap<String, &ConfigMap> = listed.iter().map(|object| (object.name_any(), object)).collect();
    // In order of revision, so the last write of an object that was changed wins.
    let last: BTreeMap<_, _> = acknowledged.iter().map(|(revision, (name, value))| (name, (*revision, value))).collect();
    let number = |text: &str| text.parse::<u64>().expect("writers write numbers");
    for (name, (acknowledged, value)) in last {
        let object = stored.get(name).unwrap_or_else(|| panic!("{server} lost {name}, acknowledged at {acknowledged}"));
        let stored_value = object.data.as_ref().and_then(|data| data.get("value"));
        let newest = revision(*object);
        assert!(newest >= acknowledged, "{server} has {name} as it was at {newest}, before {acknowledged}");
        let is_kept = stored_value.is_some_and(|stored| match newest == acknowledged {
            true => stored == value,
            // Changed by a write that had no answer.
            false => number(stored) > number(value),
        });
        assert!(is_kept, "{name} on {server}: {stored_value:?} at {newest}, {value} at {acknowledged}");
    }
}

/// Writers that run until they are told to stop.
pub struct Writers {
    outcome: Arc<Mutex<Outcome>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Writers {
    /// Starts one writer for each client. Each makes objects of its own, named `<prefix>-<writer>-<count>`, and between them
    /// changes one, `<prefix>-<writer>`, over and over.
    pub fn start(prefix: &str, clients: Vec<Client>) -> Self {
        let writers = Self { outcome: Arc::default(), stop: CancellationToken::new(), tasks: TaskTracker::new() };
        for (number, client) in clients.into_iter().enumerate() {
            let (name, outcome, stop) = (format!("{prefix}-{number}"), writers.outcome.clone(), writers.stop.clone());
            writers.tasks.spawn(write(name, Api::default_namespaced(client), outcome, stop));
        }
        writers.tasks.close();
        writers
    }

    /// Waits for `count` more acknowledgements.
    pub async fn acknowledge(&self, count: usize, limit: Duration) {
        let wanted = self.outcome.lock().await.acknowledged.len() + count;
        until("enough acknowledged writes", limit, || async {
            let so_far = self.outcome.lock().await.acknowledged.len();
            if so_far >= wanted { Ok(()) } else { Err(format!("{so_far} of {wanted}")) }
        })
        .await;
    }

    /// Lets the writers end what they have begun.
    pub async fn stop(self) -> Outcome {
        self.stop.cancel();
        self.tasks.wait().await;
        std::mem::take(&mut *self.outcome.lock().await)
    }
}

async fn write(name: String, api: Api<ConfigMap>, outcome: Arc<Mutex<Outcome>>, stop: CancellationToken) {
    let mut acknowledged = Instant::now();
    for count in 0_u64.. {
        if stop.is_cancelled() {
            return;
        }
        let value = count.to_string();
        let written = timeout(WRITE_LIMIT, async {
            match count {
                0 => api.create(&PostParams::default(), &config_map(&name, &value)).await,
                _ if count % 2 == 0 => api.create(&PostParams::default(), &config_map(&format!("{name}-{count}"), &value)).await,
                _ => api.patch(&name, &PatchParams::default(), &Patch::Merge(json!({ "data": { "value": value } }))).await,
            }
        })
        .await;
        match written {
            Ok(Ok(object)) => {
                let entry = (object.name_any(), value);
                let waited = std::mem::replace(&mut acknowledged, Instant::now()).elapsed();
                let mut outcome = outcome.lock().await;
                outcome.longest_wait = outcome.longest_wait.max(waited);
                let before = outcome.acknowledged.insert(revision(&object), entry);
                assert_eq!(before, None, "two writes have the same revision {}", revision(&object));
            }
            Ok(Err(_)) | Err(_) => {
                outcome.lock().await.unknown += 1;
                sleep(PAUSE).await;
            }
        }
    }
}
