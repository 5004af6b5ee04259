//! What users were told already about pods that wait, so that the same thing is counted and not told again.

use std::{collections::HashMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};

/// The same event is counted up for this long after it was last told; then a new one is made.
const SAME_EVENT: SignedDuration = SignedDuration::from_mins(6);

/// The event that tells why a pod waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    pub name: String,
    pub message: String,
    /// How often it was told.
    pub count: i32,
    /// Since when the pod waits for this reason.
    pub since: Timestamp,
    last: Timestamp,
}

impl EventRecord {
    /// Whether it was not told before.
    pub fn is_first(&self) -> bool {
        self.count == 1
    }
}

/// The last event about each waiting pod, by uid.
#[derive(Debug, Default)]
pub struct Reports {
    records: HashMap<Arc<str>, EventRecord>,
}

impl Reports {
    /// Notes that a pod waits because of `message`; `new_name` is for a new event. Gives the event to write.
    pub fn note(&mut self, uid: &Arc<str>, message: String, new_name: String, now: Timestamp) -> EventRecord {
        let record = match self.records.get(uid) {
            Some(old) if old.message == message && now.duration_since(old.last) < SAME_EVENT => {
                EventRecord { count: old.count.saturating_add(1), last: now, ..old.clone() }
            }
            old => EventRecord { name: new_name, count: 1, since: old.map_or(now, |old| old.since), message, last: now },
        };
        self.records.insert(Arc::clone(uid), record.clone());
        record
    }

    /// Forgets pods that do not wait any more.
    pub fn retain(&mut self, is_waiting: impl Fn(&str) -> bool) {
        self.records.retain(|uid, _| is_waiting(uid));
    }

    pub fn forget(&mut self, uid: &str) {
        self.records.remove(uid);
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_reason_is_counted_and_another_is_told_anew() {
        let uid: Arc<str> = "u".into();
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap();
        let mut reports = Reports::default();
        let mut note = |message: &str, seconds: i64| {
            let record = reports.note(&uid, message.to_owned(), format!("e{seconds}"), at(seconds));
            (record.name, record.count, record.since)
        };
        assert_eq!(note("a", 1), ("e1".to_owned(), 1, at(1)));
        assert_eq!(note("a", 2), ("e1".to_owned(), 2, at(1)));
        assert_eq!(note("b", 3), ("e3".to_owned(), 1, at(1)));
        assert_eq!(note("b", 3 + 360), ("e363".to_owned(), 1, at(1)));
        reports.retain(|_| false);
        assert!(reports.is_empty());
    }
}
