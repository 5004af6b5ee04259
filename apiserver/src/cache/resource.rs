//! The cache of one resource.

use std::{
    collections::VecDeque,
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use imbl::OrdMap;
use parking_lot::Mutex;
use tokio::sync::mpsc::{self, error::TrySendError};
use trireme_api::registry::{Resource, Scope};
use trireme_storage::model::Revision;

use super::{
    CacheEvent, CachedObject, View,
    index::{Bucket, Watcher, WatcherIndex},
    subscription::{Delivery, Subscription},
};
use crate::filter::Filter;

/// How many events may wait for a watcher that does not read, before it is cut off.
const WATCHER_BUFFER: usize = 1024;

/// How many bytes the events of one resource may take that are remembered, roughly.
const RING_LIMIT_BYTES: usize = 64 * 1024 * 1024;

/// The objects of a resource by their path (`default/web`), in the order of their keys. Cloning is cheap.
pub type ObjectMap = OrdMap<Arc<str>, Arc<CachedObject>>;

/// The objects of one resource, the recent events, and the watchers.
pub struct ResourceCache {
    resource: Arc<Resource>,
    ring_capacity: usize,
    next_id: AtomicU64,
    /// Watchers that were cut off because they did not read, since the start.
    terminated: AtomicU64,
    state: Mutex<State>,
}

struct State {
    objects: ObjectMap,
    /// The revision of the newest change that `objects` holds.
    revision: Revision,
    /// The newest events, oldest first. Every event with a revision above `ring_floor` is here.
    ring: VecDeque<Arc<CacheEvent>>,
    ring_floor: Revision,
    /// What the events in `ring` take together.
    ring_bytes: usize,
    watchers: WatcherIndex,
}

impl State {
    /// Forgets the oldest events until the ring is within its bounds.
    fn shrink_ring(&mut self, capacity: usize) {
        while self.ring.len() > capacity || self.ring_bytes > RING_LIMIT_BYTES && self.ring.len() > 1 {
            let Some(dropped) = self.ring.pop_front() else { return };
            self.ring_bytes = self.ring_bytes.saturating_sub(dropped.size_bytes());
            self.ring_floor = dropped.revision;
        }
    }
}

/// All objects of a resource at one revision.
#[derive(Clone)]
pub struct Snapshot {
    pub objects: ObjectMap,
    pub revision: Revision,
}

/// Why a watch could not begin at a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscribeError {
    /// The events after that revision are no longer known.
    TooOld { requested: Revision, oldest: Revision },
}

impl ResourceCache {
    pub fn new(resource: Arc<Resource>, ring_capacity: usize) -> Self {
        assert!(ring_capacity > 0, "a cache remembers at least one event");
        Self {
            resource,
            ring_capacity,
            next_id: AtomicU64::new(0),
            terminated: AtomicU64::new(0),
            state: Mutex::new(State {
                objects: ObjectMap::new(),
                revision: Revision::default(),
                ring: VecDeque::new(),
                ring_floor: Revision::default(),
                ring_bytes: 0,
                watchers: WatcherIndex::default(),
            }),
        }
    }

    pub fn resource(&self) -> &Arc<Resource> {
        &self.resource
    }

    pub fn watcher_count(&self) -> usize {
        self.state.lock().watchers.len()
    }

    pub fn object_count(&self) -> usize {
        self.state.lock().objects.len()
    }

    /// How many watchers were cut off since the start.
    pub fn terminated_count(&self) -> u64 {
        self.terminated.load(Ordering::Relaxed)
    }

    pub fn object(&self, path: &str) -> Option<Arc<CachedObject>> {
        self.state.lock().objects.get(path).cloned()
    }

    /// All objects. `applied` is the revision that all caches had reached **before** this call: the snapshot holds everything up to it.
    pub fn snapshot(&self, applied: Revision) -> Snapshot {
        let state = self.state.lock();
        Snapshot { objects: state.objects.clone(), revision: state.revision.max(applied) }
    }

    /// Begins a watch of what happens after `after`.
    ///
    /// # Errors
    /// When the events since then are no longer in the ring.
    pub fn subscribe(self: &Arc<Self>, filter: Filter, after: Revision) -> Result<Subscription, SubscribeError> {
        let mut state = self.state.lock();
        if after < state.ring_floor {
            return Err(SubscribeError::TooOld { requested: after, oldest: state.ring_floor });
        }
        let start = state.ring.partition_point(|event| event.revision <= after);
        let replay = state.ring.range(start..).filter_map(|event| view(event, &filter)).collect();
        Ok(self.register(&mut state, filter, replay))
    }

    /// The objects now, and a watch of everything after them.
    pub fn snapshot_and_subscribe(self: &Arc<Self>, filter: Filter, applied: Revision) -> (Snapshot, Subscription) {
        let mut state = self.state.lock();
        let snapshot = Snapshot { objects: state.objects.clone(), revision: state.revision.max(applied) };
        let subscription = self.register(&mut state, filter, VecDeque::new());
        (snapshot, subscription)
    }

    fn register(self: &Arc<Self>, state: &mut State, filter: Filter, replay: VecDeque<View>) -> Subscription {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let bucket = Bucket::of(&filter, self.resource.scope == Scope::Namespaced);
        let (sender, receiver) = mpsc::channel(WATCHER_BUFFER);
        state.watchers.insert(bucket.clone(), id, Watcher { filter, sender });
        Subscription { id, bucket, cache: Arc::downgrade(self), replay, receiver }
    }

    pub(super) fn unsubscribe(&self, bucket: &Bucket, id: u64) {
        self.state.lock().watchers.remove(bucket, id);
    }

    /// Takes one transaction's changes of this resource: paths with the new object, or none for a deletion.
    pub(super) fn apply(&self, revision: Revision, changes: Vec<(String, Option<CachedObject>)>) {
        let mut state = self.state.lock();
        assert!(revision > state.revision, "changes come in the order of their revisions");
        for (path, object) in changes {
            let current = object.map(Arc::new);
            let previous = match &current {
                Some(object) => state.objects.insert(Arc::from(path), object.clone()),
                None => state.objects.remove(path.as_str()),
            };
            if current.is_none() && previous.is_none() {
                continue;
            }
            let event = Arc::new(CacheEvent::new(revision, current, previous));
            self.deliver(&mut state, &event);
            state.ring_bytes += event.size_bytes();
            state.ring.push_back(event);
        }
        state.revision = revision;
        state.shrink_ring(self.ring_capacity);
    }

    fn deliver(&self, state: &mut State, event: &Arc<CacheEvent>) {
        state.watchers.for_each_candidate(event, |watcher| {
            let Some(view) = view(event, &watcher.filter) else { return true };
            match watcher.sender.try_send(Delivery::Change(view)) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    self.terminated.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(resource = %self.resource.plural, "a watcher does not read and was cut off");
                    false
                }
                Err(TrySendError::Closed(_)) => false,
            }
        });
    }

    /// Puts other objects in the place of all that was known. Every watch ends; the past before `revision` is forgotten.
    pub(super) fn replace(&self, objects: ObjectMap, revision: Revision) {
        let mut state = self.state.lock();
        state.objects = objects;
        state.revision = revision;
        state.ring.clear();
        state.ring_bytes = 0;
        state.ring_floor = revision;
        for watcher in state.watchers.drain() {
            // A watcher that does not read learns it from its closed channel.
            let _ = watcher.sender.try_send(Delivery::Expired);
        }
    }
}

impl Snapshot {
    /// The objects of a namespace, or all, that come after `start` (a path), in order.
    pub fn iter<'a>(
        &'a self,
        namespace: Option<&str>,
        start: Option<&str>,
    ) -> impl Iterator<Item = &'a Arc<CachedObject>> + use<'a> {
        let (low, high) = match namespace {
            Some(namespace) => (format!("{namespace}/"), Some(format!("{namespace}0"))),
            None => (String::new(), None),
        };
        let lower: Bound<Arc<str>> = match start {
            Some(start) if start >= low.as_str() => Bound::Excluded(Arc::from(start)),
            _ => Bound::Included(Arc::from(low)),
        };
        let upper: Bound<Arc<str>> = high.map_or(Bound::Unbounded, |high| Bound::Excluded(Arc::from(high)));
        let is_empty =
            matches!((&lower, &upper), (Bound::Excluded(low) | Bound::Included(low), Bound::Excluded(high)) if low >= high);
        let range = (!is_empty).then(|| self.objects.range((lower, upper)));
        range.into_iter().flatten().map(|(_, object)| object)
    }
}

fn view(event: &Arc<CacheEvent>, filter: &Filter) -> Option<View> {
    event.kind_for(filter).map(|kind| View { kind, event: event.clone() })
}

#[cfg(test)]
mod tests {
    use trireme_api::kinds;

    use super::*;
    use crate::{cache::Peek, router::Query};

    fn cache(ring_capacity: usize) -> Arc<ResourceCache> {
        let registry = kinds::registry();
        let resource = registry.get("", "v1", "configmaps").expect("config maps").clone();
        Arc::new(ResourceCache::new(resource, ring_capacity))
    }

    fn put(cache: &ResourceCache, path: &str, revision: u64) {
        let stored = br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{}}"#;
        let object = CachedObject::from_stored(&cache.resource, path, stored, Revision(revision)).expect("an object");
        cache.apply(Revision(revision), vec![(path.to_owned(), Some(object))]);
    }

    fn filter(cache: &ResourceCache, namespace: Option<&str>) -> Filter {
        Filter::parse(&cache.resource, namespace, None, &Query::default()).expect("a filter")
    }

    #[tokio::test]
    async fn a_watcher_that_does_not_read_is_cut_off_and_others_are_not() {
        let cache = cache(10_000);
        let mut slow = cache.subscribe(filter(&cache, None), Revision(0)).expect("a watch");
        let mut elsewhere = cache.subscribe(filter(&cache, Some("other")), Revision(0)).expect("a watch");
        let events = u64::try_from(WATCHER_BUFFER).expect("a number") + 1;
        for revision in 1..=events {
            put(&cache, "n/a", revision);
        }
        put(&cache, "other/a", events + 1);
        assert_eq!((cache.terminated_count(), cache.watcher_count()), (1, 1));
        let mut read = 0;
        while let Peek::Delivery(Delivery::Change(view)) = slow.try_next() {
            read += 1;
            assert_eq!(view.event.revision, Revision(read), "what was delivered has no gap");
        }
        assert!(matches!(slow.try_next(), Peek::Ended), "it is told from a watcher that has everything");
        assert!(slow.next().await.is_none());
        assert_eq!(read, events - 1);
        assert!(matches!(elsewhere.next().await, Some(Delivery::Change(view)) if view.event.revision == Revision(events + 1)));
        assert!(matches!(elsewhere.try_next(), Peek::Nothing));
        drop(elsewhere);
        assert_eq!(cache.watcher_count(), 0);
    }

    #[tokio::test]
    async fn a_rebuilt_cache_ends_its_watches() {
        let cache = cache(10);
        put(&cache, "n/a", 1);
        let mut watch = cache.subscribe(filter(&cache, None), Revision(1)).expect("a watch");
        cache.replace(ObjectMap::new(), Revision(9));
        assert!(matches!(watch.next().await, Some(Delivery::Expired)));
        assert!(watch.next().await.is_none());
        let too_old = cache.subscribe(filter(&cache, None), Revision(5)).map(|_| ());
        assert_eq!(too_old, Err(SubscribeError::TooOld { requested: Revision(5), oldest: Revision(9) }));
        assert_eq!(cache.snapshot(Revision(0)).revision, Revision(9));
    }

    #[test]
    fn the_ring_is_bounded_in_bytes() {
        let cache = cache(10_000);
        let text = "x".repeat(1024 * 1024);
        let stored = format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{}},"data":{{"k":"{text}"}}}}"#);
        for revision in 1..=100 {
            let object =
                CachedObject::from_stored(&cache.resource, "n/a", stored.as_bytes(), Revision(revision)).expect("an object");
            cache.apply(Revision(revision), vec![("n/a".to_owned(), Some(object))]);
        }
        let state = cache.state.lock();
        assert!(state.ring_bytes <= RING_LIMIT_BYTES, "{}", state.ring_bytes);
        assert_eq!(state.ring_bytes, state.ring.iter().map(|event| event.size_bytes()).sum::<usize>());
        let kept = u64::try_from(state.ring.len()).expect("a number");
        assert!((20..64).contains(&kept), "{kept}");
        assert_eq!(state.ring_floor, Revision(100 - kept), "what is forgotten cannot be resumed from");
    }

    #[test]
    fn the_ring_forgets_the_oldest() {
        let cache = cache(2);
        for revision in 1..=4 {
            put(&cache, "n/a", revision);
        }
        assert!(cache.subscribe(filter(&cache, None), Revision(1)).is_err());
        let mut watch = cache.subscribe(filter(&cache, None), Revision(2)).map_err(|_| ()).expect("a watch");
        let revisions: Vec<u64> = std::iter::from_fn(|| match watch.try_next() {
            Peek::Delivery(Delivery::Change(view)) => Some(view.event.revision.0),
            _ => None,
        })
        .collect();
        assert_eq!(revisions, [3, 4]);
    }
}
