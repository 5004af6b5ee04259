//! Bookmarkable: once a watcher is told how far it is, every event up to there has come, and none comes later.

use super::{
    Property, Violation,
    history::{Event, Response, Revision, Session, Watcher},
    timeline::Timeline,
};

pub fn check(watcher: &Watcher, timeline: &Timeline) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut bookmark = 0;
    let mut object = |revision: Revision, reason: String| {
        violations.push(Violation { property: Property::Bookmarkable, watcher: watcher.name.clone(), revision, reason });
    };
    for session in &watcher.sessions {
        for (number, response) in session.responses.iter().enumerate() {
            match response {
                Response::Events { events, .. } => {
                    for event in events.iter().filter(|event| event.revision() <= bookmark) {
                        let reason = format!("expected nothing up to the bookmark {bookmark} after it, got {:?}", event.key);
                        object(event.revision(), reason);
                    }
                }
                Response::Progress(revision) => {
                    let expected = timeline.between(session.first_revision(), *revision).filter(|event| watcher.wants(event));
                    for event in expected.filter(|event| !came_before(session, number, event)) {
                        let reason = format!("expected {:?} before the bookmark {revision}, and it had not come", event.key);
                        object(event.revision(), reason);
                    }
                    bookmark = bookmark.max(*revision);
                }
            }
        }
    }
    violations
}

/// Whether the event is in one of the first `number` responses.
fn came_before(session: &Session, number: usize, expected: &Event) -> bool {
    session.responses[..number].iter().any(|response| match response {
        Response::Events { events, .. } => {
            events.iter().any(|event| event.revision() == expected.revision() && event.key == expected.key)
        }
        Response::Progress(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use crate::watch::{
        Property,
        history::Response,
        sample::{assert_broken, assert_kept, responses},
    };

    #[test]
    fn a_bookmark_comes_after_everything_up_to_it() {
        assert_kept(Property::Bookmarkable);
        let position = |watcher: &mut crate::watch::history::Watcher| {
            let is_bookmark = |response: &Response| matches!(response, Response::Progress(_));
            responses(watcher).iter().position(is_bookmark).expect("it has a bookmark")
        };
        assert_broken(Property::Bookmarkable, "all", 4, "expected nothing up to the bookmark 4 after it", |watcher| {
            let at = position(watcher);
            responses(watcher).swap(at, at - 1);
        });
        assert_broken(Property::Bookmarkable, "all", 5, "expected \"w/a\" before the bookmark 5", |watcher| {
            let at = position(watcher);
            responses(watcher)[at] = Response::Progress(5);
        });
    }
}
