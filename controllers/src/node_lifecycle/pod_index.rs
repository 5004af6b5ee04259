//! Which pods are bound to which node.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;

use crate::shared::{Change, Informer, ObjectKey};

/// The node the pod is bound to.
pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// The pods of the cache, by node.
pub struct PodIndex {
    pods: Arc<Informer<Pod>>,
    by_node: Mutex<HashMap<String, BTreeSet<ObjectKey>>>,
}

impl PodIndex {
    /// An index that follows the informer.
    pub fn follow(pods: Arc<Informer<Pod>>) -> Arc<Self> {
        let index = Arc::new(PodIndex { pods: pods.clone(), by_node: Mutex::default() });
        let listener = Arc::downgrade(&index);
        pods.on_change(move |change| {
            if let Some(index) = listener.upgrade() {
                index.change(change);
            }
        });
        index
    }

    fn change(&self, change: &Change<Pod>) {
        let mut by_node = self.by_node.lock();
        let (before, after) = match change {
            Change::Added(pod) => (None, Some(pod)),
            Change::Updated { old, new } => (Some(old), Some(new)),
            Change::Deleted(pod) => (Some(pod), None),
        };
        if let Some(pod) = before
            && let Some(node) = node_of(pod)
            && let Some(keys) = by_node.get_mut(node)
        {
            keys.remove(&ObjectKey::of(&**pod));
            if keys.is_empty() {
                by_node.remove(node);
            }
        }
        if let Some(pod) = after
            && let Some(node) = node_of(pod)
        {
            by_node.entry(node.to_owned()).or_default().insert(ObjectKey::of(&**pod));
        }
    }

    /// The keys of the pods bound to the node.
    pub fn keys(&self, node: &str) -> Vec<ObjectKey> {
        self.by_node.lock().get(node).into_iter().flatten().cloned().collect()
    }

    /// The pods bound to the node.
    pub fn pods(&self, node: &str) -> Vec<Arc<Pod>> {
        self.keys(node).iter().filter_map(|key| self.pods.get(key)).collect()
    }
}
