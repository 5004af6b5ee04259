//! Resumable: a watch that broke goes on where it was, at any member, as long as history reaches back so far: its first event is the
//! first that it had not been told of, and it is not refused as compacted before its time.

use super::{
    Property, Violation,
    history::{Event, Revision, Session, SessionEnd, Watcher},
    timeline::Timeline,
};

pub fn check(watcher: &Watcher, timeline: &Timeline) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut object = |revision: Revision, reason: String| {
        violations.push(Violation { property: Property::Resumable, watcher: watcher.name.clone(), revision, reason });
    };
    for (number, session) in watcher.sessions.iter().enumerate() {
        if let Some(before) = number.checked_sub(1).map(|before| &watcher.sessions[before]) {
            let going_on = goes_on_from(before);
            if session.start != going_on {
                object(going_on, format!("expected to be resumed at revision {going_on}, and was at {}", session.start));
            }
        }
        let (first, member) = (session.first_revision(), &session.member);
        let came = session.events().next();
        let expected = timeline.between(first, Revision::MAX).find(|event| watcher.wants(event));
        match (expected, came) {
            (_, Some(event)) if event.revision() < first => {
                let reason = format!("expected nothing before revision {first} from {member}, got {:?}", event.key);
                object(event.revision(), reason);
            }
            (Some(expected), Some(event)) if !is_same(expected, event) => {
                let reason = format!(
                    "expected {:?} as the first event from revision {first} on from {member}, got {:?} of revision {}",
                    expected.key,
                    event.key,
                    event.revision()
                );
                object(expected.revision(), reason);
            }
            _ => {}
        }
        if let SessionEnd::Compacted(oldest) = session.end
            && session.next_revision() >= oldest
        {
            let next = session.next_revision();
            object(next, format!("{member} refused to go on from revision {next} because of a compaction to {oldest}"));
        }
    }
    violations
}

/// Where the session that follows has to begin.
fn goes_on_from(session: &Session) -> Revision {
    match session.end {
        SessionEnd::Compacted(oldest) => session.next_revision().max(oldest),
        SessionEnd::Broken | SessionEnd::Settled(_) => session.next_revision(),
    }
}

fn is_same(expected: &Event, event: &Event) -> bool {
    expected.revision() == event.revision() && expected.key == event.key
}

#[cfg(test)]
mod tests {
    use crate::watch::{
        Property,
        history::SessionEnd,
        sample::{assert_broken, assert_kept},
    };

    #[test]
    fn a_watch_goes_on_where_it_was() {
        assert_kept(Property::Resumable);
        assert_broken(Property::Resumable, "all", 7, "expected \"w/c\" as the first event from revision 7 on", |watcher| {
            watcher.sessions[1].responses.remove(0);
        });
        assert_broken(Property::Resumable, "all", 7, "expected to be resumed at revision 7, and was at 8", |watcher| {
            watcher.sessions[1].start = 8;
        });
        assert_broken(
            Property::Resumable,
            "all",
            2,
            "expected nothing before revision 7 from master-2, got \"w/a\"",
            |watcher| {
                let early = watcher.sessions[0].responses[0].clone();
                watcher.sessions[1].responses.insert(0, early);
            },
        );
    }

    #[test]
    fn only_what_is_compacted_is_refused() {
        assert_broken(
            Property::Resumable,
            "late",
            1,
            "refused to go on from revision 1 because of a compaction to 1",
            |watcher| {
                assert_eq!(watcher.sessions[0].end, SessionEnd::Compacted(5));
                watcher.sessions[0].end = SessionEnd::Compacted(1);
                watcher.sessions.truncate(1);
            },
        );
    }
}
