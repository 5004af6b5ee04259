//! A watcher's end of its channel.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use tokio::sync::mpsc;

use super::{ResourceCache, View, index::Bucket};

/// What comes to a watcher.
#[derive(Clone, Debug)]
pub enum Delivery {
    Change(View),
    /// The cache was rebuilt: what happened in between is not known. The watch is over, and the client has to list again.
    Expired,
}

/// A running watch of one resource. Dropping it ends the watch.
pub struct Subscription {
    pub(super) id: u64,
    pub(super) bucket: Bucket,
    pub(super) cache: Weak<ResourceCache>,
    /// What had happened already when the watch began.
    pub(super) replay: VecDeque<View>,
    pub(super) receiver: mpsc::Receiver<Delivery>,
}

impl Subscription {
    /// The next delivery; `None` when the watcher was too slow and has been cut off.
    pub async fn next(&mut self) -> Option<Delivery> {
        match self.replay.pop_front() {
            Some(view) => Some(Delivery::Change(view)),
            None => self.receiver.recv().await,
        }
    }

    /// The next delivery, if one is there.
    pub fn try_next(&mut self) -> Option<Delivery> {
        match self.replay.pop_front() {
            Some(view) => Some(Delivery::Change(view)),
            None => self.receiver.try_recv().ok(),
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(cache) = self.cache.upgrade() {
            Arc::as_ref(&cache).unsubscribe(&self.bucket, self.id);
        }
    }
}
