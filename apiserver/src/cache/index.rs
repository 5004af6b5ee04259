//! Which watchers an event may concern, without asking every watcher.

use std::collections::HashMap;

use tokio::sync::mpsc;

use super::{CacheEvent, CachedObject, subscription::Delivery};
use crate::filter::Filter;

/// The name of the field by which watchers of pods are indexed.
const NODE_FIELD: &str = "spec.nodeName";

/// The narrowest set of objects that holds everything a watcher selects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Bucket {
    All,
    Namespace(String),
    /// One object, by its path below the resource.
    Object(String),
    /// The objects with this `spec.nodeName`.
    Node(String),
}

impl Bucket {
    pub fn of(filter: &Filter, is_namespaced: bool) -> Self {
        if let Some(node) = filter.exact_field(NODE_FIELD).filter(|node| !node.is_empty()) {
            return Self::Node(node.to_owned());
        }
        match (&filter.namespace, filter.exact_name(), is_namespaced) {
            (Some(namespace), Some(name), true) => Self::Object(format!("{namespace}/{name}")),
            (_, Some(name), false) => Self::Object(name.to_owned()),
            (Some(namespace), None, true) => Self::Namespace(namespace.clone()),
            _ => Self::All,
        }
    }
}

/// One registered watcher.
pub struct Watcher {
    pub filter: Filter,
    pub sender: mpsc::Sender<Delivery>,
}

/// The watchers of one resource by bucket.
#[derive(Default)]
pub struct WatcherIndex {
    buckets: HashMap<Bucket, HashMap<u64, Watcher>>,
}

impl WatcherIndex {
    pub fn insert(&mut self, bucket: Bucket, id: u64, watcher: Watcher) {
        self.buckets.entry(bucket).or_default().insert(id, watcher);
    }

    pub fn remove(&mut self, bucket: &Bucket, id: u64) {
        if let Some(watchers) = self.buckets.get_mut(bucket) {
            watchers.remove(&id);
            if watchers.is_empty() {
                self.buckets.remove(bucket);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.buckets.values().map(HashMap::len).sum()
    }

    /// Calls `deliver` for each watcher that the event may concern; removes those for which it returns false.
    pub fn for_each_candidate(&mut self, event: &CacheEvent, mut deliver: impl FnMut(&Watcher) -> bool) {
        if self.buckets.is_empty() {
            return;
        }
        let mut visited = vec![Bucket::All];
        let mut visit = |bucket: Bucket| {
            if !visited.contains(&bucket) {
                visited.push(bucket);
            }
        };
        for object in [&event.current, &event.previous].into_iter().flatten() {
            visit(Bucket::Object(object.path.clone()));
            if let Some(namespace) = &object.namespace {
                visit(Bucket::Namespace(namespace.clone()));
            }
            if let Some(node) = node_of(object) {
                visit(Bucket::Node(node.to_owned()));
            }
        }
        for bucket in &visited {
            if let Some(watchers) = self.buckets.get_mut(bucket) {
                watchers.retain(|_, watcher| deliver(watcher));
                if watchers.is_empty() {
                    self.buckets.remove(bucket);
                }
            }
        }
    }

    /// Takes every watcher out.
    pub fn drain(&mut self) -> Vec<Watcher> {
        self.buckets.drain().flat_map(|(_, watchers)| watchers.into_values()).collect()
    }
}

fn node_of(object: &CachedObject) -> Option<&str> {
    object.field(NODE_FIELD).filter(|node| !node.is_empty())
}
