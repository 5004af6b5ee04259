//! Reliable: no event is left out between the first that a watcher asked for and the last that it was told of (or, where the recorder
//! waited long enough, the last that there was); and what it is told of happened, and happened so.

use super::{
    Property, Violation,
    history::{Event, Revision, Session, SessionEnd, Watcher},
    timeline::Timeline,
};

pub fn check(watcher: &Watcher, timeline: &Timeline) -> Vec<Violation> {
    watcher.sessions.iter().flat_map(|session| check_session(watcher, session, timeline)).collect()
}

fn check_session(watcher: &Watcher, session: &Session, timeline: &Timeline) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut object = |revision: Revision, reason: String| {
        let reason = format!("from {}: {reason}", session.member);
        violations.push(Violation { property: Property::Reliable, watcher: watcher.name.clone(), revision, reason });
    };
    for event in session.events() {
        match timeline.find(event.revision(), &event.key) {
            None => object(event.revision(), format!("expected nothing of {:?}, got {event:?}", event.key)),
            Some(expected) if !happened_so(expected, event) => {
                object(event.revision(), format!("expected {expected:?}, got {event:?}"));
            }
            Some(_) => {}
        }
    }
    let told = session.events().map(Event::revision).max().unwrap_or(0);
    let through = match session.end {
        SessionEnd::Settled(revision) => told.max(revision),
        SessionEnd::Broken | SessionEnd::Compacted(_) => told,
    };
    for expected in timeline.between(session.first_revision(), through).filter(|event| watcher.wants(event)) {
        let revision = expected.revision();
        if !session.events().any(|event| event.revision() == revision && event.key == expected.key) {
            object(
                revision,
                format!("expected {:?}, and it never came, while everything through {through} had to", expected.key),
            );
        }
    }
    violations
}

/// Whether what was told is the change that happened. How the key came to be, and what it held before, are other properties' matter.
fn happened_so(expected: &Event, event: &Event) -> bool {
    (expected.kind, &expected.now.value, expected.now.lease) == (event.kind, &event.now.value, event.now.lease)
}

#[cfg(test)]
mod tests {
    use crate::watch::{
        Property,
        history::{EventKind, SessionEnd},
        sample::{assert_broken, assert_kept, events, responses},
    };

    #[test]
    fn nothing_is_left_out_or_made_up() {
        assert_kept(Property::Reliable);
        assert_broken(Property::Reliable, "all", 3, "expected \"w/b\", and it never came", |watcher| {
            responses(watcher).remove(1);
        });
        assert_broken(Property::Reliable, "all", 3, "expected nothing of \"w/x\"", |watcher| {
            events(watcher, 1)[0].key = "w/x".into();
        });
        assert_broken(Property::Reliable, "all", 3, "expected Event", |watcher| events(watcher, 1)[0].now.value.push('x'));
        assert_broken(Property::Reliable, "all", 3, "expected Event", |watcher| events(watcher, 1)[0].now.lease = 77);
        assert_broken(Property::Reliable, "all", 3, "expected Event", |watcher| events(watcher, 1)[0].kind = EventKind::Delete);
    }

    #[test]
    fn the_last_events_must_come_where_one_waited_for_them() {
        assert_broken(Property::Reliable, "one", 11, "expected \"w/a\", and it never came", |watcher| {
            let last = watcher.sessions.last_mut().expect("it has a session");
            assert!(matches!(last.end, SessionEnd::Settled(_)));
            last.responses.pop();
        });
    }
}
