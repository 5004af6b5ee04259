//! The watch cache: for each resource an ordered map of its current objects and a ring of recent events, fed by one
//! watch of the store.
//!
//! Invariant: every watcher of a resource is told of every change that its filter concerns exactly once, in the order of
//! revisions, or its stream ends.

mod event;
mod feeder;
mod index;
mod object;
mod resource;
mod subscription;

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::sync::watch;
use trireme_api::registry::{Registry, Resource};
use trireme_storage::{
    model::Revision,
    store::{Store, StoreError},
};

pub use event::{CacheEvent, ChangeKind, View, frame as event_frame};
pub use object::{CachedObject, with_revision};
pub use resource::{ObjectMap, ResourceCache, Snapshot, SubscribeError};
pub use subscription::{Delivery, Peek, Subscription};

use crate::keys;

/// How long a request waits for this server to reach a revision that the client has seen elsewhere.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(3);

/// The caches of all resources.
pub struct Caches {
    /// By `core/pods`.
    by_segment: HashMap<String, Arc<ResourceCache>>,
    /// Every change up to this revision is in the caches and with the watchers. Written by the feeder.
    applied: watch::Sender<Revision>,
    /// Whether the caches have once held everything. Written by the feeder.
    filled: watch::Sender<bool>,
}

/// The cache did not reach a revision in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    pub requested: Revision,
    pub current: Revision,
}

impl Caches {
    /// Empty caches for every resource of the registry, each remembering up to `ring_capacity` events.
    pub fn new(registry: &Registry, ring_capacity: usize) -> Self {
        let mut by_segment: HashMap<String, Arc<ResourceCache>> = HashMap::new();
        for resource in registry.iter().filter(|resource| resource.behaviour.stored_as().is_none()) {
            by_segment
                .entry(keys::resource_segment(resource))
                .or_insert_with(|| Arc::new(ResourceCache::new(resource.clone(), ring_capacity)));
        }
        Self { by_segment, applied: watch::Sender::new(Revision::default()), filled: watch::Sender::new(false) }
    }

    /// The cache of a resource; `None` for a resource that was not registered when the caches were made.
    pub fn get(&self, resource: &Resource) -> Option<&Arc<ResourceCache>> {
        self.by_segment.get(&keys::resource_segment(resource))
    }

    /// The revision up to which the caches hold everything.
    pub fn applied(&self) -> Revision {
        *self.applied.borrow()
    }

    pub fn is_filled(&self) -> bool {
        *self.filled.borrow()
    }

    /// Waits until the caches hold everything up to `revision`.
    ///
    /// # Errors
    /// When that takes longer than a few seconds.
    pub async fn reach(&self, revision: Revision) -> Result<(), Behind> {
        let mut filled = self.filled.subscribe();
        let mut applied = self.applied.subscribe();
        let reached = async {
            // The senders live as long as `self`.
            filled.wait_for(|filled| *filled).await.is_ok() && applied.wait_for(|now| *now >= revision).await.is_ok()
        };
        match tokio::time::timeout(CATCH_UP_LIMIT, reached).await {
            Ok(true) => Ok(()),
            _ => Err(Behind { requested: revision, current: self.applied() }),
        }
    }

    /// Waits until the caches hold everything that was acknowledged anywhere before the call.
    ///
    /// # Errors
    /// The store's, when it cannot tell.
    pub async fn barrier(&self, store: &dyn Store) -> Result<Revision, StoreError> {
        let revision = store.read_barrier().await?;
        self.reach(revision).await.map_err(|behind| {
            StoreError::Unavailable(format!("the watch cache is at revision {} of {}", behind.current, behind.requested))
        })?;
        Ok(revision)
    }
}
