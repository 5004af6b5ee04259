//! Filter right: a watcher is told only of keys, and only of kinds of changes, that it asked for.

use super::{Property, Violation, history::Watcher, timeline::Timeline};

pub fn check(watcher: &Watcher, _timeline: &Timeline) -> Vec<Violation> {
    let events = watcher.sessions.iter().flat_map(|session| session.events());
    let violations = events.filter(|event| !watcher.wants(event)).map(|event| {
        let reason =
            format!("expected only {:?} but for {:?}, got a {:?} of {:?}", watcher.keys, watcher.without, event.kind, event.key);
        Violation { property: Property::Filter, watcher: watcher.name.clone(), revision: event.revision(), reason }
    });
    violations.collect()
}

#[cfg(test)]
mod tests {
    use crate::watch::{
        Property,
        sample::{assert_broken, assert_kept, good},
    };

    #[test]
    fn only_what_was_asked_for_comes() {
        assert_kept(Property::Filter);
        let everything = good().watchers[0].sessions[0].responses.clone();
        let cases = [("one", 1, 3, "of \"w/b\""), ("deletes", 0, 2, "a Put of \"w/a\""), ("puts", 4, 6, "a Delete of \"w/b\"")];
        for (name, number, revision, words) in cases {
            assert_broken(Property::Filter, name, revision, words, |watcher| {
                watcher.sessions[0].responses.insert(0, everything[number].clone());
            });
        }
    }
}
