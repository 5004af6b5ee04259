//! The true course of things: the reference, replayed from nothing by the rules of the store.

use std::collections::BTreeMap;

use super::{
    history::{Event, EventKind, History, KeyState, Revision},
    operations,
};

/// What happened, by revision. Built from a reference that agrees with itself and with the writers' answers.
#[derive(Debug)]
pub struct Timeline {
    commits: BTreeMap<Revision, Vec<Event>>,
}

/// The reference cannot be what happened: nothing can be said of the watchers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadReference {
    pub revision: Revision,
    pub reason: String,
}

impl std::fmt::Display for BadReference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the reference is wrong at revision {}: {}", self.revision, self.reason)
    }
}

impl std::error::Error for BadReference {}

impl Timeline {
    /// Replays the reference of a history.
    ///
    /// # Errors
    /// When it does not follow from itself, or contradicts what a writer was answered.
    pub fn of(history: &History) -> Result<Self, BadReference> {
        let mut state: BTreeMap<&str, KeyState> = BTreeMap::new();
        let mut commits: BTreeMap<Revision, Vec<Event>> = BTreeMap::new();
        let mut newest = 0;
        for event in &history.reference {
            let revision = event.revision();
            let wrong = |reason: String| BadReference { revision, reason };
            if revision < newest || revision == 0 {
                return Err(wrong(format!("it comes after revision {newest}")));
            }
            newest = revision;
            let expected = follow(event, state.get(event.key.as_str()));
            if *event != expected {
                return Err(wrong(format!("expected {expected:?}, got {event:?}")));
            }
            let commit = commits.entry(revision).or_default();
            if commit.iter().any(|other| other.key == event.key) {
                return Err(wrong(format!("{:?} changes twice", event.key)));
            }
            commit.push(expected);
            match event.kind {
                EventKind::Put => state.insert(&event.key, event.now.clone()),
                EventKind::Delete => match state.remove(event.key.as_str()) {
                    None => return Err(wrong(format!("{:?} is deleted and was not there", event.key))),
                    held => held,
                },
            };
        }
        let timeline = Self { commits };
        operations::check(&history.operations, &timeline)?;
        Ok(timeline)
    }

    /// The changes of a revision, in their order; none when no recorded key changed at it.
    pub fn at(&self, revision: Revision) -> &[Event] {
        self.commits.get(&revision).map(Vec::as_slice).unwrap_or_default()
    }

    /// The change of a key at a revision.
    pub fn find(&self, revision: Revision, key: &str) -> Option<&Event> {
        self.at(revision).iter().find(|event| event.key == key)
    }

    /// Every change from one revision through another, in their order.
    pub fn between(&self, from: Revision, through: Revision) -> impl Iterator<Item = &Event> {
        // An empty range where there is nothing between them.
        self.commits.range(from..=through.max(from)).filter(move |_| from <= through).flat_map(|(_, events)| events)
    }

    /// Every revision at which a recorded key changed, and its changes.
    pub fn commits(&self) -> impl Iterator<Item = (Revision, &[Event])> {
        self.commits.iter().map(|(revision, events)| (*revision, events.as_slice()))
    }
}

/// What an event must say of its key, given what the key held before.
fn follow(event: &Event, held: Option<&KeyState>) -> Event {
    let revision = event.revision();
    let now = match event.kind {
        EventKind::Put => KeyState {
            value: event.now.value.clone(),
            create_revision: held.map_or(revision, |held| held.create_revision),
            mod_revision: revision,
            version: held.map_or(0, |held| held.version) + 1,
            lease: event.now.lease,
        },
        EventKind::Delete => KeyState { value: String::new(), create_revision: 0, mod_revision: revision, version: 0, lease: 0 },
    };
    Event { kind: event.kind, key: event.key.clone(), now, previous: held.cloned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::sample;

    fn reason(change: impl FnOnce(&mut Vec<Event>)) -> String {
        let mut history = History { reference: sample::good().reference, ..History::default() };
        change(&mut history.reference);
        // Without the writers nothing explains the changes, which is not what is tried here.
        let error = Timeline::of(&History { operations: sample::good().operations, ..history }).expect_err("it is refused");
        error.to_string()
    }

    #[test]
    fn a_reference_follows_from_itself() {
        let timeline = Timeline::of(&sample::good()).expect("it is good");
        assert!(timeline.commits().count() > 5);
        assert_eq!(timeline.between(3, 2).count(), 0);
        let doubled = reason(|events| events.insert(1, events[0].clone()));
        assert!(doubled.starts_with("the reference is wrong at revision 2: expected "), "{doubled}");
        let swapped = reason(|events| events.swap(0, 1));
        assert!(swapped.contains("revision 2: it comes after revision 3"), "{swapped}");
        let created = reason(|events| events[2].now.create_revision += 1);
        assert!(created.contains("expected Event"), "{created}");
    }
}
