//! Unique: no event comes twice, not even to a watcher that was resumed.

use std::collections::BTreeSet;

use super::{Property, Violation, history::Watcher, timeline::Timeline};

pub fn check(watcher: &Watcher, _timeline: &Timeline) -> Vec<Violation> {
    let mut seen = BTreeSet::new();
    let events = watcher.sessions.iter().flat_map(|session| session.events());
    let repeated = events.filter(|event| !seen.insert((event.revision(), event.key.as_str())));
    let violations = repeated.map(|event| Violation {
        property: Property::Unique,
        watcher: watcher.name.clone(),
        revision: event.revision(),
        reason: format!("expected {:?} once, got it again", event.key),
    });
    violations.collect()
}

#[cfg(test)]
mod tests {
    use crate::watch::{
        Property,
        sample::{assert_broken, assert_kept, responses},
    };

    #[test]
    fn no_event_comes_twice() {
        assert_kept(Property::Unique);
        assert_broken(Property::Unique, "all", 3, "expected \"w/b\" once, got it again", |watcher| {
            let again = responses(watcher)[1].clone();
            responses(watcher).insert(2, again);
        });
        assert_broken(Property::Unique, "all", 2, "expected \"w/a\" once", |watcher| {
            let again = watcher.sessions[0].responses[0].clone();
            watcher.sessions[1].responses.insert(0, again);
        });
    }
}
