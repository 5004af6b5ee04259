//! Ordered: events come in the order of revisions, and within a revision in the order of the changes that made it; none ever comes
//! after one that it precedes.

use super::{Property, Violation, history::Watcher, timeline::Timeline};

pub fn check(watcher: &Watcher, timeline: &Timeline) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut newest: Option<(u64, usize, &str)> = None;
    for event in watcher.sessions.iter().flat_map(|session| session.events()) {
        let revision = event.revision();
        // One that never happened has no place; that is another property's matter.
        let place = timeline.at(revision).iter().position(|other| other.key == event.key).unwrap_or(usize::MAX);
        if let Some((last, last_place, last_key)) = newest
            && (revision, place) < (last, last_place)
        {
            let reason = format!("expected nothing from before {last_key:?} of revision {last}, got {:?} after it", event.key);
            violations.push(Violation { property: Property::Ordered, watcher: watcher.name.clone(), revision, reason });
        } else {
            newest = Some((revision, place, &event.key));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use crate::watch::{
        Property,
        history::Response,
        sample::{assert_broken, assert_kept, responses},
    };

    #[test]
    fn events_come_in_order() {
        assert_kept(Property::Ordered);
        assert_broken(Property::Ordered, "all", 3, "got \"w/b\" after it", |watcher| responses(watcher).swap(1, 3));
        // Of one revision, and of different revisions in one response.
        for (number, revision) in [(2, 4), (4, 5)] {
            assert_broken(Property::Ordered, "all", revision, "expected nothing from before", |watcher| {
                let Response::Events { events, .. } = &mut responses(watcher)[number] else { panic!("there are events") };
                events.swap(0, 1);
            });
        }
    }
}
