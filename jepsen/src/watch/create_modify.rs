//! Create and modify right: an event tells truly whether its key was created or modified: the create revision is the event's own
//! where the key was not there, else the one that the key had, and the version counts the puts since.

use super::{Property, Violation, history::Watcher, timeline::Timeline};

pub fn check(watcher: &Watcher, timeline: &Timeline) -> Vec<Violation> {
    let mut violations = Vec::new();
    for event in watcher.sessions.iter().flat_map(|session| session.events()) {
        // One of another kind did not happen; that is another property's matter.
        let Some(happened) = timeline.find(event.revision(), &event.key).filter(|happened| happened.kind == event.kind) else {
            continue;
        };
        let expected = (happened.now.create_revision, happened.now.version);
        let got = (event.now.create_revision, event.now.version);
        if expected != got {
            let reason = format!(
                "expected {:?} as created at {} in version {}, got {} and {}",
                event.key, expected.0, expected.1, got.0, got.1
            );
            let (watcher, revision) = (watcher.name.clone(), event.revision());
            violations.push(Violation { property: Property::CreateModify, watcher, revision, reason });
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
    fn creations_and_modifications_are_told_apart() {
        assert_kept(Property::CreateModify);
        let modified = "expected \"w/b\" as created at 3 in version 2";
        assert_broken(Property::CreateModify, "all", 4, modified, |watcher| events(watcher, 2)[0].now.create_revision = 4);
        assert_broken(Property::CreateModify, "all", 4, modified, |watcher| events(watcher, 2)[0].now.version = 1);
        let created = "expected \"w/b\" as created at 3 in version 1";
        assert_broken(Property::CreateModify, "all", 3, created, |watcher| events(watcher, 1)[0].now.create_revision = 2);
    }
}
