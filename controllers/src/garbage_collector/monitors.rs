//! Watches the metadata of every resource, and notices resources that come and go.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{DynamicObject, PartialObjectMeta};
use kube::core::ApiResource;
use kube::runtime::watcher;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{info, warn};

use super::graph::Node;
use crate::shared::discovery::{Discovered, Discovery};
use crate::shared::queue::back_off;

const BASE_DELAY: Duration = Duration::from_millis(200);
const MAX_DELAY: Duration = Duration::from_secs(15);

/// Where the monitors bring what they see.
pub trait Observer: Send + Sync + 'static {
    /// An object exists as this node.
    fn seen(&self, node: Node);
    /// The object of this UID is gone.
    fn gone(&self, uid: &str);
}

/// Whether each watched resource has been listed completely.
#[derive(Default)]
pub struct Progress {
    synced: Mutex<HashMap<ApiResource, bool>>,
}

impl Progress {
    /// Every resource that is watched has been listed, and there is one.
    pub fn all_synced(&self) -> bool {
        let synced = self.synced.lock();
        !synced.is_empty() && synced.values().all(|synced| *synced)
    }
}

struct Monitor {
    task: AbortHandle,
    known: Arc<Mutex<HashSet<String>>>,
}

/// The running monitors. Dropping it ends them.
pub struct Monitors {
    client: Client,
    observer: Arc<dyn Observer>,
    progress: Arc<Progress>,
    running: HashMap<ApiResource, Monitor>,
    tasks: JoinSet<()>,
}

/// Resources that can own or be owned: those that can be listed, watched and deleted. Events come and go by themselves.
fn is_monitored(found: &Discovered) -> bool {
    ["list", "watch", "delete"].into_iter().all(|verb| found.supports(verb)) && found.resource.plural != "events"
}

impl Monitors {
    pub fn new(client: Client, observer: Arc<dyn Observer>, progress: Arc<Progress>) -> Self {
        Monitors { client, observer, progress, running: HashMap::new(), tasks: JoinSet::new() }
    }

    /// Starts monitors of new resources and ends those of resources that are served no more. A group that could not be read keeps
    /// its monitors.
    pub fn reconcile(&mut self, discovery: &Discovery) {
        let wanted: HashSet<&ApiResource> =
            discovery.resources.iter().filter(|found| is_monitored(found)).map(|found| &found.resource).collect();
        let unknown: HashSet<&str> =
            discovery.failures.iter().map(|(version, _)| version.split_once('/').map_or("", |(group, _)| group)).collect();
        let gone: Vec<ApiResource> = self
            .running
            .keys()
            .filter(|resource| !wanted.contains(resource) && !unknown.contains(resource.group.as_str()))
            .cloned()
            .collect();
        for resource in gone {
            if let Some(monitor) = self.running.remove(&resource) {
                info!(resource = resource.plural, group = resource.group, "no longer served");
                monitor.task.abort();
                self.progress.synced.lock().remove(&resource);
                for uid in monitor.known.lock().drain() {
                    self.observer.gone(&uid);
                }
            }
        }
        for resource in wanted {
            if !self.running.contains_key(resource) {
                self.start(resource.clone());
            }
        }
        // Collect what has ended, so that the set does not grow.
        while self.tasks.try_join_next().is_some() {}
    }

    fn start(&mut self, resource: ApiResource) {
        self.progress.synced.lock().insert(resource.clone(), false);
        let known = Arc::default();
        let api = Api::all_with(self.client.clone(), &resource);
        let run = monitor(api, resource.clone(), self.observer.clone(), self.progress.clone(), Arc::clone(&known));
        let task = self.tasks.spawn(run);
        self.running.insert(resource, Monitor { task, known });
    }
}

async fn monitor(
    api: Api<PartialObjectMeta<DynamicObject>>,
    resource: ApiResource,
    observer: Arc<dyn Observer>,
    progress: Arc<Progress>,
    known: Arc<Mutex<HashSet<String>>>,
) {
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
    let mut listed = HashSet::new();
    let mut failures = 0;
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(object)) => {
                let node = Node::new(&resource.api_version, &resource.kind, &object.metadata);
                listed.insert(node.identity.uid.clone());
                known.lock().insert(node.identity.uid.clone());
                observer.seen(node);
            }
            Ok(watcher::Event::InitDone) => {
                failures = 0;
                let missing: Vec<String> = known.lock().extract_if(|uid| !listed.contains(uid)).collect();
                missing.iter().for_each(|uid| observer.gone(uid));
                listed.clear();
                if let Some(synced) = progress.synced.lock().get_mut(&resource) {
                    *synced = true;
                }
            }
            Ok(watcher::Event::Apply(object)) => {
                failures = 0;
                let node = Node::new(&resource.api_version, &resource.kind, &object.metadata);
                known.lock().insert(node.identity.uid.clone());
                observer.seen(node);
            }
            Ok(watcher::Event::Delete(object)) => {
                failures = 0;
                let uid = object.metadata.uid.unwrap_or_default();
                known.lock().remove(&uid);
                observer.gone(&uid);
            }
            Err(failure) => {
                warn!(resource = resource.plural, group = resource.group, error = %failure, "list or watch failed; trying again");
                tokio::time::sleep(back_off(failures, BASE_DELAY, MAX_DELAY)).await;
                failures = failures.saturating_add(1);
            }
        }
    }
}
