//! A good history, and what the checkers' tests do to it.

use std::collections::BTreeMap;

use super::{
    CHECKERS, Property, Violation,
    history::{
        Change, Event, EventKind, History, KeyState, Keys, Operation, Outcome, Response, Revision, Session, SessionEnd, Watcher,
    },
    timeline::Timeline,
};

/// A store of the recorded keys, as plain as can be, and what was done to it.
#[derive(Default)]
pub struct Store {
    pub state: BTreeMap<String, KeyState>,
    pub history: History,
}

impl Store {
    /// Makes a revision, if anything changes. The changes of a writer become an operation, too.
    pub fn commit(&mut self, revision: Revision, client: Option<&str>, changes: &[Change]) {
        let mut events = Vec::new();
        for change in changes {
            match change {
                Change::Put { key, value, lease } => events.push(self.put(revision, key, value, *lease)),
                Change::Delete(keys) => {
                    let doomed: Vec<String> = self.state.keys().filter(|key| keys.contain(key)).cloned().collect();
                    events.extend(doomed.iter().map(|key| self.delete(revision, key)));
                }
            }
        }
        let outcome = if events.is_empty() { Outcome::Unchanged } else { Outcome::Done(revision) };
        if let Some(client) = client {
            self.record(client, revision, changes, outcome);
        }
        self.history.reference.extend(events);
    }

    /// An operation that is asked for and answered at about the time of a revision.
    pub fn record(&mut self, client: &str, revision: Revision, changes: &[Change], outcome: Outcome) {
        let (client, changes) = (client.to_owned(), changes.to_vec());
        self.history.operations.push(Operation { client, began: revision * 10 - 5, ended: revision * 10 + 5, changes, outcome });
    }

    fn put(&mut self, revision: Revision, key: &str, value: &str, lease: i64) -> Event {
        let previous = self.state.get(key).cloned();
        let (create_revision, version) = match &previous {
            Some(held) => (held.create_revision, held.version + 1),
            None => (revision, 1),
        };
        let now = KeyState { value: value.to_owned(), create_revision, mod_revision: revision, version, lease };
        self.state.insert(key.to_owned(), now.clone());
        Event { kind: EventKind::Put, key: key.to_owned(), now, previous }
    }

    fn delete(&mut self, revision: Revision, key: &str) -> Event {
        let previous = self.state.remove(key);
        let now = KeyState { value: String::new(), create_revision: 0, mod_revision: revision, version: 0, lease: 0 };
        Event { kind: EventKind::Delete, key: key.to_owned(), now, previous }
    }
}

pub fn put(key: &str, value: &str) -> Change {
    Change::Put { key: key.to_owned(), value: value.to_owned(), lease: 0 }
}

pub fn delete(key: &str, range_end: &str) -> Change {
    Change::Delete(Keys::between(key, range_end))
}

/// The revision of the last change of [`good`].
const LAST: Revision = 11;

fn watcher(name: &str, keys: Keys) -> Watcher {
    Watcher { name: name.to_owned(), keys, without: Vec::new(), wants_previous: true, sessions: Vec::new() }
}

/// The response with everything of these revisions that the watcher wants.
fn told(watcher: &Watcher, reference: &[Event], revisions: std::ops::RangeInclusive<Revision>) -> Response {
    let events = reference.iter().filter(|event| revisions.contains(&event.revision()) && watcher.wants(event)).cloned();
    let without_previous = |mut event: Event| {
        event.previous = event.previous.filter(|_| watcher.wants_previous);
        event
    };
    Response::Events { events: events.map(without_previous).collect(), fragments: 1 }
}

fn session(member: &str, start: Revision, created_at: Revision, responses: Vec<Response>, end: SessionEnd) -> Session {
    Session { member: member.to_owned(), start, created_at, responses, end }
}

/// Two writers, the end of a lease, and watchers of every sort, to each of whom every promise is kept.
pub fn good() -> History {
    let mut store = Store::default();
    store.commit(2, Some("one"), &[put("w/a", "a1")]);
    store.commit(3, Some("two"), &[put("w/b", "b1")]);
    store.commit(4, Some("two"), &[put("w/b", "b2"), put("w/c", "c1")]);
    store.commit(5, Some("one"), &[put("w/a", "a2")]);
    store.commit(6, Some("one"), &[delete("w/b", "")]);
    store.commit(6, Some("two"), &[delete("w/x", "w/y")]);
    store.commit(7, Some("two"), &[put("w/c", "c2")]);
    store.commit(8, Some("one"), &[Change::Put { key: "w/d".into(), value: "d1".into(), lease: 70 }]);
    store.record("two", 8, &[put("w/a", "refused")], Outcome::Refused);
    store.commit(9, Some("two"), &[delete("w/a", "w/d")]);
    // The lease's end.
    store.commit(10, None, &[delete("w/d", "")]);
    store.record("one", 10, &[put("w/a", "lost")], Outcome::Unknown);
    store.commit(LAST, Some("one"), &[put("w/a", "a3")]);
    let mut history = store.history;
    let reference = &history.reference;
    let settled = SessionEnd::Settled(LAST);

    let mut all = watcher("all", Keys::between("w/", "w0"));
    let tell = |revisions| told(&all, reference, revisions);
    let first = vec![tell(2..=2), tell(3..=3), tell(4..=4), Response::Progress(4), tell(5..=6)];
    let second = vec![tell(7..=7), tell(8..=8), Response::Progress(8), tell(9..=10), tell(11..=11)];
    all.sessions = vec![session("master-1", 1, 1, first, SessionEnd::Broken), session("master-2", 7, 7, second, settled)];

    let mut one = Watcher { wants_previous: false, ..watcher("one", Keys::one("w/a")) };
    let tell = |revision| told(&one, reference, revision..=revision);
    let responses = vec![tell(2), tell(5), tell(9), tell(11)];
    one.sessions = vec![session("master-1", 0, 1, responses, settled)];

    let mut deletes = Watcher { without: vec![EventKind::Put], ..watcher("deletes", Keys::between("w/", "\0")) };
    let mut joined = told(&deletes, reference, 9..=10);
    if let Response::Events { fragments, .. } = &mut joined {
        *fragments = 2;
    }
    deletes.sessions = vec![session("master-3", 1, 6, vec![told(&deletes, reference, 6..=6), joined], settled)];

    let mut puts = Watcher { without: vec![EventKind::Delete], ..watcher("puts", Keys::between("w/", "w0")) };
    let responses = vec![told(&puts, reference, 5..=7), told(&puts, reference, 8..=11), Response::Progress(LAST)];
    puts.sessions = vec![session("master-2", 0, 4, responses, settled)];

    let mut late = watcher("late", Keys::between("w/", "w0"));
    late.sessions = vec![
        session("master-3", 1, LAST, Vec::new(), SessionEnd::Compacted(5)),
        session("master-3", 5, LAST, vec![told(&late, reference, 5..=LAST)], settled),
    ];
    history.watchers = vec![all, one, deletes, puts, late];
    history
}

/// What one property's checker has to say of a history.
pub fn violations(history: &History, property: Property) -> Vec<Violation> {
    let timeline = Timeline::of(history).expect("the reference is good");
    let (_, check) = CHECKERS.iter().find(|(of, _)| *of == property).expect("every property has a checker");
    history.watchers.iter().flat_map(|watcher| check(watcher, &timeline)).collect()
}

/// Checks that a property's checker has nothing to say of the good history.
pub fn assert_kept(property: Property) {
    assert_eq!(violations(&good(), property), []);
}

/// Changes what one watcher of the good history was told; the property's checker must then object, and name watcher and revision.
pub fn assert_broken(property: Property, name: &str, revision: Revision, words: &str, change: impl FnOnce(&mut Watcher)) {
    let mut history = good();
    change(history.watchers.iter_mut().find(|watcher| watcher.name == name).expect("there is such a watcher"));
    let found = violations(&history, property);
    let named = |found: &&Violation| (found.property, found.watcher.as_str(), found.revision) == (property, name, revision);
    let start = format!("{property:?}: watcher {name}, revision {revision}: ");
    let said = |found: &Violation| found.to_string().starts_with(&start) && found.reason.contains(words);
    assert!(found.iter().filter(named).any(said), "{start}…{words}… is not in {found:#?}");
}

/// The responses of the first session.
pub fn responses(watcher: &mut Watcher) -> &mut Vec<Response> {
    &mut watcher.sessions[0].responses
}

/// The events of a response of the first session.
pub fn events(watcher: &mut Watcher, number: usize) -> &mut Vec<Event> {
    match &mut responses(watcher)[number] {
        Response::Events { events, .. } => events,
        Response::Progress(_) => panic!("response {number} is a bookmark"),
    }
}

#[test]
fn the_good_history_is_good_and_plain_data() {
    let history = good();
    assert_eq!(super::check(&history), Ok(Vec::new()));
    let text = serde_json::to_string(&history).expect("it is plain data");
    assert_eq!(serde_json::from_str::<History>(&text).expect("it comes back"), history);
}
