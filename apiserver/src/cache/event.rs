//! A change of one object, and what each watcher sees of it.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use trireme_storage::model::Revision;

use super::CachedObject;
use crate::filter::Filter;

/// What an event takes beside the JSON: names, labels, selectable fields.
const OVERHEAD_BYTES: usize = 512;

/// What a watcher is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

impl ChangeKind {
    /// The `type` of a watch event.
    pub fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// One change, shared by all watchers that it concerns.
#[derive(Debug)]
pub struct CacheEvent {
    pub revision: Revision,
    /// The object after the change; `None` when it was deleted.
    pub current: Option<Arc<CachedObject>>,
    /// The object before the change; `None` when it was created.
    pub previous: Option<Arc<CachedObject>>,
    /// The encoded frames, each made when the first watcher needs it: added, modified, deleted.
    frames: [OnceLock<Bytes>; 3],
}

/// What one watcher sees of an event: an object that leaves its selection is deleted to it, one that enters is added.
#[derive(Clone, Debug)]
pub struct View {
    pub kind: ChangeKind,
    pub event: Arc<CacheEvent>,
}

impl CacheEvent {
    pub fn new(revision: Revision, current: Option<Arc<CachedObject>>, previous: Option<Arc<CachedObject>>) -> Self {
        assert!(current.is_some() || previous.is_some(), "an event is about an object");
        Self { revision, current, previous, frames: Default::default() }
    }

    /// What the event takes while it is remembered, roughly: its object and the frame made of it. The object before belongs to the
    /// event before.
    pub fn size_bytes(&self) -> usize {
        let object = self.current.as_ref().or(self.previous.as_ref());
        2 * object.map_or(0, |object| object.json.len()) + OVERHEAD_BYTES
    }

    /// How the event looks through a filter; `None` when it does not concern it.
    pub fn kind_for(&self, filter: &Filter) -> Option<ChangeKind> {
        let is_in = self.current.as_ref().is_some_and(|object| filter.matches(object));
        let was_in = self.previous.as_ref().is_some_and(|object| filter.matches(object));
        match (was_in, is_in) {
            (false, true) => Some(ChangeKind::Added),
            (true, true) => Some(ChangeKind::Modified),
            (true, false) => Some(ChangeKind::Deleted),
            (false, false) => None,
        }
    }
}

impl View {
    /// The JSON of the object that the watcher sees, at the revision of the event.
    pub fn object_json(&self) -> Bytes {
        let object = match self.kind {
            ChangeKind::Added | ChangeKind::Modified => self.event.current.as_ref(),
            ChangeKind::Deleted => self.event.previous.as_ref(),
        };
        object.map(|object| object.json_at(self.event.revision)).unwrap_or_default()
    }

    /// The whole frame of the event with the object as it is, encoded once for all watchers.
    pub fn frame(&self) -> Bytes {
        let slot = match self.kind {
            ChangeKind::Added => 0,
            ChangeKind::Modified => 1,
            ChangeKind::Deleted => 2,
        };
        self.event.frames[slot].get_or_init(|| frame(self.kind.name(), &self.object_json())).clone()
    }
}

/// `{"type":"ADDED","object":{…}}` and a new line.
pub fn frame(kind: &str, object: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(object.len() + kind.len() + 24);
    bytes.extend_from_slice(b"{\"type\":\"");
    bytes.extend_from_slice(kind.as_bytes());
    bytes.extend_from_slice(b"\",\"object\":");
    bytes.extend_from_slice(object);
    bytes.extend_from_slice(b"}\n");
    bytes.into()
}
