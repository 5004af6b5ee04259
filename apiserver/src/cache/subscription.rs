//! A watcher's end of its channel.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use tokio::sync::mpsc::{self, error::TryRecvError};

use super::{ResourceCache, View, index::Bucket};

/// What comes to a watcher.
#[derive(Clone, Debug)]
pub enum Delivery {
    Change(View),
    /// The cache was rebuilt: what happened in between is not known. The watch is over, and the client has to list again.
    Expired,
}

/// What a look into the channel finds.
#[derive(Clone, Debug)]
pub enum Peek {
    Delivery(Delivery),
    /// Everything that happened so far has been delivered.
    Nothing,
    /// The watcher was too slow and has been cut off; it misses what came after its last delivery.
    Ended,
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
    pub fn try_next(&mut self) -> Peek {
        match self.replay.pop_front() {
            Some(view) => Peek::Delivery(Delivery::Change(view)),
            None => match self.receiver.try_recv() {
                Ok(delivery) => Peek::Delivery(delivery),
                Err(TryRecvError::Empty) => Peek::Nothing,
                Err(TryRecvError::Disconnected) => Peek::Ended,
            },
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
