//! Whether a history holds enough to judge by: a run in which a property could not have been broken proves nothing about it.

use super::history::{EventKind, History, Response, Session, SessionEnd};

/// How often a history holds what each property is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    pub events: usize,
    /// Revisions that changed several keys.
    pub transactions: usize,
    pub deletes: usize,
    /// Deletes by the end of a lease.
    pub lease_ends: usize,
    /// Events with what the key held before.
    pub previous_values: usize,
    pub bookmarks: usize,
    /// Responses that came in several pieces.
    pub fragmented: usize,
    /// Events from before the session was created.
    pub from_the_past: usize,
    /// Watchers that did not want every kind of event.
    pub filtered: usize,
    /// Sessions that went on at another member than the one before, and were told something.
    pub resumed: usize,
    /// Sessions that were refused because of a compaction.
    pub compacted: usize,
}

impl Coverage {
    pub fn of(history: &History) -> Self {
        let sessions = || history.watchers.iter().flat_map(|watcher| &watcher.sessions);
        let events = || sessions().flat_map(Session::events);
        let responses = || sessions().flat_map(|session| &session.responses);
        let by_revision = history.reference.chunk_by(|left, right| left.revision() == right.revision());
        let leased = |event: &&super::history::Event| {
            event.kind == EventKind::Delete && event.previous.as_ref().is_some_and(|previous| previous.lease != 0)
        };
        let pairs = history.watchers.iter().flat_map(|watcher| watcher.sessions.windows(2));
        let resumed = pairs.filter(|pair| pair[0].member != pair[1].member && pair[1].events().next().is_some());
        let past = |session: &Session| session.events().filter(|event| event.revision() <= session.created_at).count();
        Self {
            events: events().count(),
            transactions: by_revision.filter(|events| events.len() > 1).count(),
            deletes: events().filter(|event| event.kind == EventKind::Delete).count(),
            lease_ends: history.reference.iter().filter(leased).count(),
            previous_values: events().filter(|event| event.previous.is_some()).count(),
            bookmarks: responses().filter(|response| matches!(response, Response::Progress(_))).count(),
            fragmented: responses().filter(|response| matches!(response, Response::Events { fragments: 2.., .. })).count(),
            from_the_past: sessions().map(past).sum(),
            filtered: history.watchers.iter().filter(|watcher| !watcher.without.is_empty()).count(),
            resumed: resumed.count(),
            compacted: sessions().filter(|session| matches!(session.end, SessionEnd::Compacted(_))).count(),
        }
    }

    /// What the history holds nothing of.
    pub fn missing(&self) -> Vec<&'static str> {
        let counts = [
            ("events", self.events),
            ("transactions", self.transactions),
            ("deletes", self.deletes),
            ("ends of leases", self.lease_ends),
            ("previous values", self.previous_values),
            ("bookmarks", self.bookmarks),
            ("fragmented responses", self.fragmented),
            ("events from the past", self.from_the_past),
            ("filtered watchers", self.filtered),
            ("resumed sessions", self.resumed),
            ("compacted sessions", self.compacted),
        ];
        counts.iter().filter(|(_, count)| *count == 0).map(|(name, _)| *name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::sample;

    #[test]
    fn what_is_not_there_is_named() {
        assert_eq!(Coverage::of(&sample::good()).missing(), Vec::<&str>::new());
        assert_eq!(Coverage::default().missing().len(), 11);
        let mut history = sample::good();
        history.watchers.retain(|watcher| watcher.name != "late");
        assert_eq!(Coverage::of(&history).missing(), ["compacted sessions"]);
    }
}
