//! A recorded history: what writers asked and were answered, what watchers asked and were told, and in which order the store says that
//! everything happened. Plain data: a recorder fills it in, a file can keep it.

use serde::{Deserialize, Serialize};

/// A revision of the store. The first change makes revision 1 or a later one; 0 in a watch request means "from now on".
pub type Revision = u64;

/// Everything that one run recorded. Writers write nothing outside of the keys that the reference covers, and put no value twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Every change of the recorded keys, in the order in which the store made them, from the first one on.
    pub reference: Vec<Event>,
    /// What the writers did.
    pub operations: Vec<Operation>,
    pub watchers: Vec<Watcher>,
}

/// A key, or a range of keys, as etcd's requests name them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    pub key: String,
    /// Empty: the one key. A zero byte: every key from `key` on. Else the first key that is no longer in the range.
    pub range_end: String,
}

impl Keys {
    pub fn one(key: impl Into<String>) -> Self {
        Self { key: key.into(), range_end: String::new() }
    }

    pub fn between(key: impl Into<String>, range_end: impl Into<String>) -> Self {
        Self { key: key.into(), range_end: range_end.into() }
    }

    pub fn contain(&self, key: &str) -> bool {
        match self.range_end.as_str() {
            "" => key == self.key,
            "\0" => key >= self.key.as_str(),
            end => key >= self.key.as_str() && key < end,
        }
    }
}

/// What a key held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyState {
    pub value: String,
    pub create_revision: Revision,
    pub mod_revision: Revision,
    pub version: u64,
    /// 0 is none.
    pub lease: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    Put,
    Delete,
}

/// One change of one key, as a watcher is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub kind: EventKind,
    pub key: String,
    /// After a delete: no value, no lease, create revision and version 0; its own revision as the mod revision.
    pub now: KeyState,
    /// What the key held before. In the reference always, where it held anything.
    pub previous: Option<KeyState>,
}

impl Event {
    /// The revision at which it happened.
    pub fn revision(&self) -> Revision {
        self.now.mod_revision
    }
}

/// A request of a writer and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Who asked; each asks one thing at a time.
    pub client: String,
    /// When it was asked and when the answer came, on one clock for all clients.
    pub began: u64,
    pub ended: u64,
    /// What was asked for; all of it happens at one revision, or nothing.
    pub changes: Vec<Change>,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    Put { key: String, value: String, lease: i64 },
    Delete(Keys),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Acknowledged: it made this revision.
    Done(Revision),
    /// Acknowledged, and there was nothing to change.
    Unchanged,
    /// Refused: it did not happen, and never will.
    Refused,
    /// No answer that tells.
    Unknown,
}

/// One watch of a client: on one connection after another, each resumed where the one before broke.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watcher {
    pub name: String,
    pub keys: Keys,
    /// Kinds of events that it does not want.
    pub without: Vec<EventKind>,
    /// Whether events are to carry what the key held before.
    pub wants_previous: bool,
    pub sessions: Vec<Session>,
}

impl Watcher {
    /// Whether it asked to be told of such an event.
    pub fn wants(&self, event: &Event) -> bool {
        self.keys.contain(&event.key) && !self.without.contains(&event.kind)
    }
}

/// What a watcher asked on one connection and was told there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Who served it.
    pub member: String,
    /// The first revision of interest as it was asked for; 0 is the first after the session's creation.
    pub start: Revision,
    /// The store's revision when the session was created, as it was told.
    pub created_at: Revision,
    /// In the order in which they came. Fragments of one response are joined.
    pub responses: Vec<Response>,
    pub end: SessionEnd,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    Events {
        events: Vec<Event>,
        /// Of how many messages it was joined.
        fragments: u64,
    },
    /// A bookmark: every event up to this revision has been told.
    Progress(Revision),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionEnd {
    /// The connection broke, or the client or the member closed it.
    Broken,
    /// The member ended it: what it was to tell next had been compacted. The oldest revision that can be watched.
    Compacted(Revision),
    /// The recorder closed it long after the last change: it had to have told everything up to this revision.
    Settled(Revision),
}

impl Session {
    /// The first revision whose events it has to tell.
    pub fn first_revision(&self) -> Revision {
        if self.start == 0 { self.created_at + 1 } else { self.start }
    }

    /// Every event that was told, in the order in which they came.
    pub fn events(&self) -> impl DoubleEndedIterator<Item = &Event> {
        self.responses.iter().flat_map(|response| match response {
            Response::Events { events, .. } => events.as_slice(),
            Response::Progress(_) => &[],
        })
    }

    /// The first revision that is still to be told after all that came.
    pub fn next_revision(&self) -> Revision {
        let told = self.responses.iter().filter_map(|response| match response {
            Response::Events { events, .. } => events.iter().map(Event::revision).max(),
            Response::Progress(revision) => Some(*revision),
        });
        told.max().map_or(self.first_revision(), |told| self.first_revision().max(told + 1))
    }
}
