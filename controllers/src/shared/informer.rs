//! One cache per kind for the process, fed by a paged list and a watch, with a feed of changes for the loops that care.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{Debug, Display};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use parking_lot::{Mutex, RwLock};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::meta::controller_of;
use super::queue::back_off;

const WATCH_BASE_DELAY: Duration = Duration::from_millis(100);
const WATCH_MAX_DELAY: Duration = Duration::from_secs(10);

/// What a kind needs to be kept in an [`Informer`]; every kind of `k8s-openapi` has it.
pub trait Watched: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static {}
impl<K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static> Watched for K {}

/// Namespace (empty for cluster-scoped kinds) and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        ObjectKey { namespace: namespace.into(), name: name.into() }
    }

    pub fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        ObjectKey::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl Display for ObjectKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            write!(formatter, "{}", self.name)
        } else {
            write!(formatter, "{}/{}", self.namespace, self.name)
        }
    }
}

/// One change of the cache. An object that was deleted and made anew under its old name is a deletion and an addition.
#[derive(Debug)]
pub enum Change<K> {
    Added(Arc<K>),
    Updated { old: Arc<K>, new: Arc<K> },
    Deleted(Arc<K>),
}

impl<K> Change<K> {
    /// The object as it is now (or last was).
    pub fn object(&self) -> &Arc<K> {
        match self {
            Change::Added(object) | Change::Deleted(object) | Change::Updated { new: object, .. } => object,
        }
    }
}

/// By which controller's UID, or in which namespace without one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Controller(String),
    Orphan(String),
}

fn holder<K: Resource>(object: &K) -> Holder {
    match controller_of(object.meta()) {
        Some(owner) => Holder::Controller(owner.uid.clone()),
        None => Holder::Orphan(object.meta().namespace.clone().unwrap_or_default()),
    }
}

/// The objects of one kind: a plain value.
#[derive(Debug)]
struct Cache<K> {
    objects: BTreeMap<ObjectKey, Arc<K>>,
    by_holder: HashMap<Holder, BTreeSet<ObjectKey>>,
}

impl<K: Resource> Cache<K> {
    fn new() -> Self {
        Cache { objects: BTreeMap::new(), by_holder: HashMap::new() }
    }

    fn unindex(&mut self, key: &ObjectKey, object: &K) {
        let holder = holder(object);
        if let Some(keys) = self.by_holder.get_mut(&holder) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_holder.remove(&holder);
            }
        }
    }

    fn apply(&mut self, object: K) -> Vec<Change<K>> {
        let key = ObjectKey::of(&object);
        let new = Arc::new(object);
        let old = self.objects.insert(key.clone(), new.clone());
        if let Some(old) = &old {
            self.unindex(&key, old);
        }
        self.by_holder.entry(holder(&*new)).or_default().insert(key);
        match old {
            None => vec![Change::Added(new)],
            Some(old) if old.meta().uid != new.meta().uid => vec![Change::Deleted(old), Change::Added(new)],
            Some(old) if old.meta().resource_version == new.meta().resource_version => vec![],
            Some(old) => vec![Change::Updated { old, new }],
        }
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<Arc<K>> {
        let old = self.objects.remove(key)?;
        self.unindex(key, &old);
        Some(old)
    }

    /// Everything is now exactly `objects`.
    fn replace(&mut self, objects: Vec<K>) -> Vec<Change<K>> {
        let present: BTreeSet<ObjectKey> = objects.iter().map(ObjectKey::of).collect();
        let gone: Vec<ObjectKey> = self.objects.keys().filter(|key| !present.contains(*key)).cloned().collect();
        let mut changes: Vec<Change<K>> = gone.iter().filter_map(|key| self.remove(key)).map(Change::Deleted).collect();
        changes.extend(objects.into_iter().flat_map(|object| self.apply(object)));
        changes
    }
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

/// The cache of one kind. Reads see what the watch has delivered, which may be behind the API server.
pub struct Informer<K> {
    cache: RwLock<Cache<K>>,
    /// Held while a change is stored and handed out, so that handlers see changes in order and none twice.
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

impl<K: Watched> Informer<K> {
    fn new() -> Arc<Self> {
        Arc::new(Informer {
            cache: RwLock::new(Cache::new()),
            handlers: Mutex::new(Vec::new()),
            synced: watch::Sender::new(false),
        })
    }

    /// Hands every change from now on to `handler`, after an `Added` for each object there is already. Handlers must be quick
    /// and may read informers, but not add handlers.
    pub fn on_change(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let mut handlers = self.handlers.lock();
        for object in self.list() {
            handler(&Change::Added(object));
        }
        handlers.push(Box::new(handler));
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.cache.read().objects.get(key).cloned()
    }

    /// All objects, ordered by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.cache.read().objects.values().cloned().collect()
    }

    /// All objects of one namespace, ordered by name.
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        let cache = self.cache.read();
        let from = ObjectKey::new(namespace, "");
        cache.objects.range(from..).take_while(|(key, _)| key.namespace == namespace).map(|(_, object)| object.clone()).collect()
    }

    /// The objects whose controller reference has this UID.
    pub fn controlled_by(&self, uid: &str) -> Vec<Arc<K>> {
        self.held(&Holder::Controller(uid.to_owned()))
    }

    /// The objects of the namespace that have no controller reference.
    pub fn orphans_in(&self, namespace: &str) -> Vec<Arc<K>> {
        self.held(&Holder::Orphan(namespace.to_owned()))
    }

    fn held(&self, holder: &Holder) -> Vec<Arc<K>> {
        let cache = self.cache.read();
        let keys = cache.by_holder.get(holder);
        keys.into_iter().flatten().filter_map(|key| cache.objects.get(key).cloned()).collect()
    }

    /// Waits until the first list is in the cache.
    pub async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as self, so this cannot fail.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    fn publish(&self, change_cache: impl FnOnce(&mut Cache<K>) -> Vec<Change<K>>) {
        let handlers = self.handlers.lock();
        let changes = change_cache(&mut self.cache.write());
        for change in &changes {
            for handler in handlers.iter() {
                handler(change);
            }
        }
    }

    async fn run(self: Arc<Self>, api: Api<K>, mut jitter: StdRng) {
        let kind = K::kind(&());
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
        let mut pending: Vec<K> = Vec::new();
        let mut failures = 0;
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => pending.clear(),
                Ok(watcher::Event::InitApply(object)) => pending.push(object),
                Ok(watcher::Event::InitDone) => {
                    failures = 0;
                    let objects = std::mem::take(&mut pending);
                    debug!(%kind, objects = objects.len(), "listed");
                    self.publish(|cache| cache.replace(objects));
                    self.synced.send_replace(true);
                }
                Ok(watcher::Event::Apply(object)) => {
                    failures = 0;
                    self.publish(|cache| cache.apply(object));
                }
                Ok(watcher::Event::Delete(object)) => {
                    failures = 0;
                    self.publish(|cache| {
                        let known = cache.remove(&ObjectKey::of(&object));
                        known.map(|_| Change::Deleted(Arc::new(object))).into_iter().collect()
                    });
                }
                Err(failure) => {
                    let delay = back_off(failures, WATCH_BASE_DELAY, WATCH_MAX_DELAY).mul_f64(jitter.random_range(0.8..1.2));
                    failures = failures.saturating_add(1);
                    warn!(%kind, error = %failure, ?delay, "list or watch failed; trying again");
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }
}

/// The informers of the process: one for each kind, started when it is first asked for.
#[derive(Clone)]
pub struct Informers {
    client: Client,
    by_kind: Arc<Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    seed: u64,
}

impl Informers {
    /// Informers that run as tasks of `tasks` until `shutdown` is cancelled.
    pub fn new(client: Client, tasks: TaskTracker, shutdown: CancellationToken, seed: u64) -> Self {
        Informers { client, by_kind: Arc::default(), tasks, shutdown, seed }
    }

    /// The informer of a kind over all namespaces.
    pub fn get<K: Watched>(&self) -> Arc<Informer<K>> {
        let mut by_kind = self.by_kind.lock();
        let position = by_kind.len() as u64;
        let any = by_kind.entry(TypeId::of::<K>()).or_insert_with(|| {
            let informer = Informer::<K>::new();
            let run =
                informer.clone().run(Api::all(self.client.clone()), StdRng::seed_from_u64(self.seed.wrapping_add(position)));
            let shutdown = self.shutdown.clone();
            self.tasks.spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = run => {}
                }
            });
            informer
        });
        match any.clone().downcast::<Informer<K>>() {
            Ok(informer) => informer,
            Err(_) => unreachable!("informers are stored under their own kind's type id"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn pod(name: &str, uid: &str, version: u32, controller: Option<&str>) -> Pod {
        let owners: Vec<_> = controller
            .map(|uid| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": uid, "controller": true}))
            .into_iter()
            .collect();
        serde_json::from_value(json!({"metadata": {"namespace": "n", "name": name, "uid": uid,
            "resourceVersion": version.to_string(), "ownerReferences": owners}}))
        .unwrap()
    }

    fn told(changes: &[Change<Pod>]) -> Vec<String> {
        let word = |change: &Change<Pod>| match change {
            Change::Added(object) => format!("added {}", ObjectKey::of(&**object)),
            Change::Updated { new, .. } => format!("updated {}", ObjectKey::of(&**new)),
            Change::Deleted(object) => format!("deleted {}", ObjectKey::of(&**object)),
        };
        changes.iter().map(word).collect()
    }

    #[test]
    fn the_cache_tells_what_changed_and_keeps_its_index() {
        let mut cache = Cache::new();
        assert_eq!(told(&cache.apply(pod("a", "1", 1, None))), ["added n/a"]);
        assert_eq!(told(&cache.apply(pod("a", "1", 1, None))), Vec::<String>::new());
        assert_eq!(told(&cache.apply(pod("a", "1", 2, Some("owner")))), ["updated n/a"]);
        assert!(!cache.by_holder.contains_key(&Holder::Orphan("n".into())));
        assert_eq!(cache.by_holder[&Holder::Controller("owner".into())].len(), 1);
        assert_eq!(told(&cache.apply(pod("a", "2", 3, None))), ["deleted n/a", "added n/a"]);
        assert_eq!(told(&cache.replace(vec![pod("b", "3", 4, None)])), ["deleted n/a", "added n/b"]);
        assert_eq!(cache.by_holder.len(), 1);
        assert!(cache.remove(&ObjectKey::new("n", "b")).is_some());
        assert!(cache.by_holder.is_empty() && cache.objects.is_empty());
    }
}
