//! Atomic: the events of one revision come in one list, all of them.

use super::{
    Property, Violation,
    history::{Event, Response, Watcher},
    timeline::Timeline,
};

pub fn check(watcher: &Watcher, timeline: &Timeline) -> Vec<Violation> {
    let mut violations = Vec::new();
    let responses = watcher.sessions.iter().flat_map(|session| &session.responses);
    for response in responses {
        let Response::Events { events, .. } = response else { continue };
        for of_revision in events.chunk_by(|left, right| left.revision() == right.revision()) {
            let revision = of_revision[0].revision();
            let expected: Vec<&str> = keys(timeline.at(revision).iter().filter(|event| watcher.wants(event)));
            let got: Vec<&str> = keys(of_revision.iter().filter(|event| watcher.wants(event)));
            if expected.iter().any(|key| !got.contains(key)) {
                let reason = format!("expected {expected:?} in one list, got {got:?}");
                violations.push(Violation { property: Property::Atomic, watcher: watcher.name.clone(), revision, reason });
            }
        }
    }
    violations
}

fn keys<'a>(events: impl Iterator<Item = &'a Event>) -> Vec<&'a str> {
    events.map(|event| event.key.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use crate::watch::{
        Property,
        history::Response,
        sample::{assert_broken, assert_kept, responses},
    };

    #[test]
    fn a_revision_comes_whole() {
        assert_kept(Property::Atomic);
        assert_broken(Property::Atomic, "all", 4, "in one list, got [\"w/b\"]", |watcher| {
            let mut first = responses(watcher)[2].clone();
            let Response::Events { events, .. } = &mut first else { panic!("there are events") };
            events.truncate(1);
            let Response::Events { events, .. } = &mut responses(watcher)[2] else { panic!("there are events") };
            events.remove(0);
            responses(watcher).insert(2, first);
        });
    }
}
