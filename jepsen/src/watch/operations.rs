//! Whether the reference agrees with what the writers were answered: what was acknowledged happened, at the revision that was told and
//! in the order of real time; what was refused did not; what has no known outcome happened as a whole, once, or not at all; and nothing
//! else happened but the end of leases.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    history::{Change, Event, EventKind, Operation, Outcome, Revision},
    timeline::{BadReference, Timeline},
};

/// Checks the writers' answers against the timeline.
///
/// # Errors
/// The first contradiction.
pub(super) fn check(operations: &[Operation], timeline: &Timeline) -> Result<(), BadReference> {
    let mut explained = BTreeSet::new();
    for operation in operations {
        match operation.outcome {
            Outcome::Done(revision) => {
                let events = timeline.at(revision);
                if events.is_empty() || !is_effect(operation, events) {
                    let reason =
                        format!("{} was told that {:?} happened, and {events:?} did", operation.client, operation.changes);
                    return Err(BadReference { revision, reason });
                }
                if !explained.insert(revision) {
                    return Err(BadReference {
                        revision,
                        reason: format!("two writers were told of it, {} too", operation.client),
                    });
                }
            }
            Outcome::Refused | Outcome::Unchanged => {
                if let Some(event) = effects(operation, timeline).first() {
                    let reason = format!("{} was told that nothing happened, and {:?} changed", operation.client, event.key);
                    return Err(BadReference { revision: event.revision(), reason });
                }
            }
            Outcome::Unknown => {
                for event in effects(operation, timeline) {
                    let revision = event.revision();
                    if !is_effect(operation, timeline.at(revision)) {
                        let reason = format!("{:?} of {} happened in part", operation.changes, operation.client);
                        return Err(BadReference { revision, reason });
                    }
                    explained.insert(revision);
                }
            }
        }
    }
    unexplained(operations, timeline, &explained)?;
    in_real_time(operations)
}

fn puts(operation: &Operation) -> bool {
    operation.changes.iter().any(|change| matches!(change, Change::Put { .. }))
}

/// Whether the events are what the operation asks for: every put, every delete of a key that was there, nothing else.
fn is_effect(operation: &Operation, events: &[Event]) -> bool {
    let asked_for = |event: &Event| operation.changes.iter().any(|change| made_by(change, event));
    let happened = |change: &Change| matches!(change, Change::Delete(_)) || events.iter().any(|event| made_by(change, event));
    events.iter().all(asked_for) && operation.changes.iter().all(happened)
}

fn made_by(change: &Change, event: &Event) -> bool {
    match change {
        Change::Put { key, value, lease } => {
            event.kind == EventKind::Put && event.key == *key && event.now.value == *value && event.now.lease == *lease
        }
        Change::Delete(keys) => event.kind == EventKind::Delete && keys.contain(&event.key),
    }
}

/// The events that only this operation can have made: no value is put twice.
fn effects<'a>(operation: &Operation, timeline: &'a Timeline) -> Vec<&'a Event> {
    let puts: Vec<&Change> = operation.changes.iter().filter(|change| matches!(change, Change::Put { .. })).collect();
    let events = timeline.commits().flat_map(|(_, events)| events);
    events.filter(|event| puts.iter().any(|change| made_by(change, event))).collect()
}

/// What no writer is known to have done: deletes by one of unknown outcome, or the end of a lease.
fn unexplained(operations: &[Operation], timeline: &Timeline, explained: &BTreeSet<Revision>) -> Result<(), BadReference> {
    let in_doubt: Vec<&Operation> =
        operations.iter().filter(|operation| operation.outcome == Outcome::Unknown && !puts(operation)).collect();
    for (revision, events) in timeline.commits().filter(|(revision, _)| !explained.contains(revision)) {
        let leases: BTreeSet<i64> =
            events.iter().map(|event| event.previous.as_ref().map_or(0, |previous| previous.lease)).collect();
        let of_leases = events.iter().all(|event| event.kind == EventKind::Delete) && !leases.contains(&0);
        if !of_leases && !in_doubt.iter().any(|operation| is_effect(operation, events)) {
            return Err(BadReference { revision, reason: format!("no writer asked for {events:?}") });
        }
    }
    Ok(())
}

/// What was acknowledged before something else was asked for has the lower revision.
fn in_real_time(operations: &[Operation]) -> Result<(), BadReference> {
    let done = operations.iter().filter_map(|operation| match operation.outcome {
        Outcome::Done(revision) => Some((operation, revision)),
        _ => None,
    });
    let by_revision: BTreeMap<Revision, &Operation> = done.map(|(operation, revision)| (revision, operation)).collect();
    let mut latest_beginning: Option<&Operation> = None;
    for (&revision, &operation) in &by_revision {
        if let Some(earlier) = latest_beginning.filter(|earlier| operation.ended < earlier.began) {
            let reason = format!("{} was told of it before {} asked for an earlier one", operation.client, earlier.client);
            return Err(BadReference { revision, reason });
        }
        if latest_beginning.is_none_or(|latest| operation.began > latest.began) {
            latest_beginning = Some(operation);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::{history::History, sample};

    /// What is found wrong once the good history is changed.
    fn reason(change: impl FnOnce(&mut History)) -> String {
        let mut history = sample::good();
        change(&mut history);
        Timeline::of(&history).map(|_| String::new()).unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn the_writers_answers_and_the_reference_agree() {
        assert_eq!(reason(|_| ()), "");
        assert!(
            reason(|history| history.operations[0].outcome = Outcome::Refused).contains("was told that nothing happened, and")
        );
        assert!(reason(|history| history.operations[0].outcome = Outcome::Done(3)).contains("was told that"));
        assert!(reason(|history| drop(history.operations.remove(0))).contains("no writer asked for"));
        assert_eq!(reason(|history| history.operations[0].outcome = Outcome::Unknown), "");
        let transaction = |history: &History| {
            let two = |operation: &Operation| operation.changes.len() > 1;
            history.operations.iter().position(two).expect("it has a transaction")
        };
        let half = reason(|history| {
            let number = transaction(history);
            history.operations[number].outcome = Outcome::Unknown;
            history.operations[number].changes.push(Change::Put { key: "w/z".into(), value: "never".into(), lease: 0 });
        });
        assert!(half.contains("happened in part"), "{half}");
        let twice = reason(|history| history.operations.push(history.operations[0].clone()));
        assert!(twice.contains("two writers were told of it"), "{twice}");
        let late = reason(|history| (history.operations[0].began, history.operations[0].ended) = (1000, 1001));
        assert!(late.contains("before"), "{late}");
    }
}
