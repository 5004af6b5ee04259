//! Previous value right: an event carries what the key held just before, where the watcher asked for it and the key held anything.

use super::{Property, Violation, history::Watcher, timeline::Timeline};

pub fn check(watcher: &Watcher, timeline: &Timeline) -> Vec<Violation> {
    let mut violations = Vec::new();
    for event in watcher.sessions.iter().flat_map(|session| session.events()) {
        let Some(happened) = timeline.find(event.revision(), &event.key) else { continue };
        let expected = happened.previous.as_ref().filter(|_| watcher.wants_previous);
        if expected != event.previous.as_ref() {
            let reason = format!("expected {expected:?} as what {:?} held before, got {:?}", event.key, event.previous);
            let (watcher, revision) = (watcher.name.clone(), event.revision());
            violations.push(Violation { property: Property::PreviousValue, watcher, revision, reason });
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use crate::watch::{
        Property,
        sample::{assert_broken, assert_kept, events},
    };

    #[test]
    fn what_the_key_held_before_is_told() {
        assert_kept(Property::PreviousValue);
        let words = "as what \"w/b\" held before";
        assert_broken(Property::PreviousValue, "all", 4, words, |watcher| events(watcher, 2)[0].previous = None);
        assert_broken(Property::PreviousValue, "all", 4, words, |watcher| {
            let previous = events(watcher, 2)[0].previous.as_mut().expect("it held something");
            previous.value.push('x');
        });
        assert_broken(Property::PreviousValue, "all", 4, words, |watcher| {
            let previous = events(watcher, 2)[0].previous.as_mut().expect("it held something");
            previous.mod_revision -= 1;
        });
        // One that did not hold anything, and a watcher that did not ask.
        assert_broken(Property::PreviousValue, "all", 3, "expected None", |watcher| {
            let event = &mut events(watcher, 1)[0];
            event.previous = Some(event.now.clone());
        });
        assert_broken(Property::PreviousValue, "one", 5, "expected None", |watcher| {
            let event = &mut events(watcher, 1)[0];
            event.previous = Some(event.now.clone());
        });
    }
}
