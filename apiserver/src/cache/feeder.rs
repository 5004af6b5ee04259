//! The task that keeps the caches in step with the store, over one watch of the whole key space.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trireme_storage::{
    model::{Event, EventBatch, EventKind, KeyRange, RangeRequest, Revision},
    store::{Store, StoreError},
};

use super::{CachedObject, Caches, ObjectMap};
use crate::keys;

/// How many keys are read at a time while the caches are filled.
const PAGE_SIZE: u64 = 2000;
/// How far back the caches start, so that their rings are filled from history after a restart. All kinds share the revisions, so
/// this is what a client of a quiet kind has: at 700 writes a second, more than the minute between two bookmarks. History that
/// the store has compacted bounds it too. Replaying this many takes a second or two, once.
const REPLAYED_REVISIONS: u64 = 1 << 16;
/// Revisions of large transactions take longer. Then the caches do without the past, rather than have everyone wait: a client that
/// would resume from it lists anew, as after a restart of Kubernetes' own API server.
const REPLAY_TIME: Duration = Duration::from_secs(3);
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// How far into the past a fill reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// So far that the rings can be filled from history, if it can be replayed within this time.
    Past {
        within: Duration,
    },
    Present,
}

/// Why the caches must be filled anew.
enum Ended {
    Failed(StoreError),
    /// There is more history than can be replayed in time.
    TooMuchHistory,
}

impl From<StoreError> for Ended {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl Caches {
    /// Fills the caches and keeps them in step with the store until `shutdown` is cancelled. Survives every error of the store.
    pub async fn run(&self, store: Arc<dyn Store>, shutdown: CancellationToken) {
        let mut start = Start::Past { within: REPLAY_TIME };
        loop {
            let fed = tokio::select! {
                () = shutdown.cancelled() => return,
                fed = self.feed(store.as_ref(), start) => fed,
            };
            start = Start::Present;
            match fed {
                Ok(never) => match never {},
                Err(Ended::TooMuchHistory) => {
                    tracing::info!("the watch cache begins at the present: there is too much history");
                    continue;
                }
                Err(Ended::Failed(StoreError::Diverged(_))) => {
                    tracing::error!("the store does not serve any more: the watch cache is emptied");
                    self.abandon();
                    return;
                }
                Err(Ended::Failed(StoreError::Compacted { .. })) => {
                    tracing::info!("the store's history went past the watch cache; building it anew");
                }
                Err(Ended::Failed(error)) => {
                    tracing::warn!(%error, "the watch cache lost its watch of the store; building it anew");
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RETRY_DELAY) => {}
            }
        }
    }

    /// Fills the caches, then follows the store until that ends.
    async fn feed(&self, store: &dyn Store, start: Start) -> Result<Infallible, Ended> {
        let (from, limit) = match start {
            Start::Past { within } => {
                let past = Revision(store.revision().0.saturating_sub(REPLAYED_REVISIONS));
                (past.max(store.compacted_revision()), within)
            }
            Start::Present => (store.revision(), Duration::MAX),
        };
        self.fill(store, from).await?;
        let mut watch = store.watch(from.next()).await?;
        // What the store held when the watch began must be in the caches before they are used.
        let (target, began) = (store.revision(), Instant::now());
        self.finish_replay(target);
        while !self.is_filled() {
            if began.elapsed() >= limit {
                return Err(Ended::TooMuchHistory);
            }
            self.apply(&watch.next().await?);
            self.finish_replay(target);
        }
        loop {
            self.apply(&watch.next().await?);
        }
    }

    /// Forgets everything and ends every watch, for good: what is here may be wrong.
    fn abandon(&self) {
        self.filled.send_replace(false);
        for cache in self.by_segment.values() {
            cache.replace(ObjectMap::default(), self.applied());
        }
    }

    fn finish_replay(&self, target: Revision) {
        if !self.is_filled() && self.applied() >= target {
            self.filled.send_replace(true);
        }
    }

    async fn fill(&self, store: &dyn Store, at: Revision) -> Result<(), StoreError> {
        let mut objects: BTreeMap<&str, ObjectMap> = BTreeMap::new();
        let KeyRange::Span { mut start, end } = KeyRange::prefix(keys::ROOT) else { unreachable!("a prefix is a span") };
        // The empty store, at revision 0, cannot be read at a revision.
        while at > Revision::default() {
            let request = RangeRequest::new(KeyRange::Span { start: start.clone(), end: end.clone() }).at(at).limit(PAGE_SIZE);
            let page = store.range(request).await?;
            for key_value in &page.key_values {
                let Some((segment, path)) = keys::split(&key_value.key) else { continue };
                let Some((segment, cache)) = self.by_segment.get_key_value(segment) else { continue };
                match CachedObject::from_stored(cache.resource(), path, &key_value.value, key_value.mod_revision) {
                    Ok(object) => {
                        objects.entry(segment).or_default().insert(Arc::from(path), Arc::new(object));
                    }
                    Err(error) => tracing::error!(%error, "left out of the watch cache"),
                }
            }
            match page.key_values.last() {
                Some(last) if page.more => start = successor(&last.key),
                _ => break,
            }
        }
        for (segment, cache) in &self.by_segment {
            cache.replace(objects.remove(segment.as_str()).unwrap_or_default(), at);
        }
        self.applied.send_replace(at);
        Ok(())
    }

    fn apply(&self, batch: &EventBatch) {
        let mut changes: BTreeMap<&str, Vec<(String, Option<CachedObject>)>> = BTreeMap::new();
        for event in batch.events.iter() {
            if let Some((segment, path, object)) = self.change(event, batch.revision) {
                changes.entry(segment).or_default().push((path.to_owned(), object));
            }
        }
        for (segment, changes) in changes {
            if let Some(cache) = self.by_segment.get(segment) {
                cache.apply(batch.revision, changes);
            }
        }
        self.applied.send_replace(batch.revision);
    }

    /// The resource, path and new object of an event; `None` when it is about nothing that is cached.
    fn change<'a>(&self, event: &'a Event, revision: Revision) -> Option<(&'a str, &'a str, Option<CachedObject>)> {
        let (segment, path) = keys::split(&event.key_value.key)?;
        let cache = self.by_segment.get(segment)?;
        match event.kind {
            EventKind::Delete => Some((segment, path, None)),
            EventKind::Put => match CachedObject::from_stored(cache.resource(), path, &event.key_value.value, revision) {
                Ok(object) => Some((segment, path, Some(object))),
                Err(error) => {
                    tracing::error!(%error, "left out of the watch cache");
                    None
                }
            },
        }
    }
}

/// The first key after `key`.
fn successor(key: &Bytes) -> Bytes {
    let mut next = key.to_vec();
    next.push(0);
    next.into()
}

#[cfg(test)]
mod tests {
    use trireme_api::kinds;
    use trireme_storage::{
        engine::memory::MemoryEngine,
        local::LocalStore,
        model::{Operation, Transaction},
    };

    use super::*;

    #[tokio::test]
    async fn history_that_takes_too_long_is_left_out() {
        let store = LocalStore::open(Arc::new(MemoryEngine::new())).unwrap();
        for number in 1..=300 {
            let put = Operation::put(format!("elsewhere/{number}"), "1");
            store.transact(Transaction { success: vec![put], ..Transaction::default() }).await.unwrap();
        }
        let caches = Caches::new(&kinds::registry(), 10);
        let ended = caches.feed(&store, Start::Past { within: Duration::ZERO }).await;
        assert!(matches!(ended, Err(Ended::TooMuchHistory)), "there was no time for it");
        assert!(!caches.is_filled());
        let mut filled = caches.filled.subscribe();
        tokio::select! {
            _ = caches.feed(&store, Start::Present) => panic!("it follows the store as long as that lives"),
            filled = filled.wait_for(|filled| *filled) => assert!(*filled.unwrap()),
        }
        assert_eq!(caches.applied(), Revision(300));
    }
}
