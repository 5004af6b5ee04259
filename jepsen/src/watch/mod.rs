//! The nine properties of watches, each a checker over a recorded history: the seven that etcd documents as guarantees
//! (<https://etcd.io/docs/v3.5/learning/api_guarantees/#watch-apis>, with the filters of a watch request), and that an event says truly
//! what the key held before and whether it was created or modified.
//!
//! A recorder fills in a [`history::History`]; [`check`] replays what happened into a [`timeline::Timeline`], which must itself agree
//! with what the writers were answered, and holds each watcher against it. [`coverage`] says whether there was enough to check.

pub mod atomic;
pub mod bookmarkable;
pub mod coverage;
pub mod create_modify;
pub mod filter;
pub mod history;
#[cfg(test)]
mod mutations;
mod operations;
pub mod ordered;
pub mod previous_value;
pub mod reliable;
pub mod resumable;
#[cfg(test)]
mod sample;
pub mod timeline;
pub mod unique;

use history::{History, Revision, Watcher};
use timeline::{BadReference, Timeline};

/// What a watch promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Property {
    Ordered,
    Unique,
    Atomic,
    Reliable,
    Resumable,
    Bookmarkable,
    PreviousValue,
    CreateModify,
    Filter,
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub property: Property,
    /// The name of the watcher to whom it was broken.
    pub watcher: String,
    pub revision: Revision,
    /// What was expected, and what came.
    pub reason: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { property, watcher, revision, reason } = self;
        write!(f, "{property:?}: watcher {watcher}, revision {revision}: {reason}")
    }
}

/// Finds where a watcher was not told what the timeline says.
pub type Checker = fn(&Watcher, &Timeline) -> Vec<Violation>;

/// Every property and its checker.
pub const CHECKERS: [(Property, Checker); 9] = [
    (Property::Ordered, ordered::check),
    (Property::Unique, unique::check),
    (Property::Atomic, atomic::check),
    (Property::Reliable, reliable::check),
    (Property::Resumable, resumable::check),
    (Property::Bookmarkable, bookmarkable::check),
    (Property::PreviousValue, previous_value::check),
    (Property::CreateModify, create_modify::check),
    (Property::Filter, filter::check),
];

/// Holds every watcher of a history against every property.
///
/// # Errors
/// When the history's reference cannot be what happened.
pub fn check(history: &History) -> Result<Vec<Violation>, BadReference> {
    let timeline = Timeline::of(history)?;
    let watchers = history.watchers.iter();
    Ok(watchers.flat_map(|watcher| CHECKERS.iter().flat_map(|(_, check)| check(watcher, &timeline))).collect())
}
