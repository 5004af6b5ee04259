//! The checkers against histories made by chance: they have nothing to say of a good one, and object to each kind of fault.

use std::collections::BTreeMap;

use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};

use super::{
    Property, check,
    history::{Change, Event, EventKind, History, Keys, Response, Revision, Session, SessionEnd, Watcher},
    sample::{Store, delete, put, violations},
};

const KEYS: [&str; 5] = ["w/a", "w/b", "w/c", "w/d", "w/e"];
const LEASES: [i64; 2] = [70, 71];

/// Choices, one after another; the first possibility each time once they are used up.
struct Tape<'a> {
    choices: std::slice::Iter<'a, u8>,
}

impl Tape<'_> {
    fn below(&mut self, bound: usize) -> usize {
        usize::from(self.choices.next().copied().unwrap_or(0)) % bound
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == bound - 1
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

fn writes(tape: &mut Tape<'_>) -> (Store, Revision) {
    let mut store = Store::default();
    let mut revision = 1;
    for number in 0..8 + tape.below(30) {
        // Others write other keys in between.
        revision += if tape.one_in(4) { 3 } else { 1 };
        let client = tape.of(&["one", "two", "three"]);
        let value = |key: &str| format!("{key} {number}");
        let key = tape.of(&KEYS);
        match tape.below(8) {
            0..=2 => store.commit(revision, Some(client), &[put(key, &value(key))]),
            3 => {
                let lease = tape.of(&LEASES);
                store.commit(revision, Some(client), &[Change::Put { key: key.into(), value: value(key), lease }]);
            }
            4 => {
                let keys = &KEYS[..2 + tape.below(3)];
                let puts: Vec<Change> = keys.iter().map(|key| put(key, &value(key))).collect();
                store.commit(revision, Some(client), &puts);
            }
            5 => store.commit(revision, Some(client), &[delete(key, "")]),
            6 => store.commit(revision, Some(client), &[delete("w/b", "w/d"), put("w/e", &value("w/e"))]),
            _ => {
                let lease = tape.of(&LEASES);
                let attached = store.state.iter().filter(|(_, held)| held.lease == lease);
                let doomed: Vec<Change> = attached.map(|(key, _)| delete(key, "")).collect();
                store.commit(revision, None, &doomed);
            }
        }
    }
    (store, revision)
}

fn watcher(tape: &mut Tape<'_>, number: usize, reference: &[Event], last: Revision) -> Watcher {
    let keys = [Keys::between("w/", "w0"), Keys::one("w/b"), Keys::between("w/b", "w/d"), Keys::between("w/c", "\0")];
    let without: [&[EventKind]; 3] = [&[], &[EventKind::Put], &[EventKind::Delete]];
    let mut watcher = Watcher {
        name: format!("watcher {number}"),
        keys: keys[tape.below(4)].clone(),
        without: without[tape.below(5).saturating_sub(2)].to_vec(),
        wants_previous: !tape.one_in(3),
        sessions: Vec::new(),
    };
    let mut by_revision: BTreeMap<Revision, Vec<Event>> = BTreeMap::new();
    for mut event in reference.iter().filter(|event| watcher.wants(event)).cloned() {
        event.previous = event.previous.filter(|_| watcher.wants_previous);
        by_revision.entry(event.revision()).or_default().push(event);
    }
    let created_at = tape.below(last as usize) as Revision;
    let start = if tape.one_in(3) { 0 } else { 1 + tape.below(last as usize) as Revision };
    let mut next = start;
    if start > 0 && tape.one_in(4) {
        next = start + 2;
        watcher.sessions.push(session(tape, start, created_at, Vec::new(), SessionEnd::Compacted(next)));
    }
    loop {
        let mut current = session(tape, next, created_at, Vec::new(), SessionEnd::Settled(last));
        for (revision, events) in by_revision.range(current.first_revision()..) {
            match current.responses.last_mut() {
                Some(Response::Events { events: joined, fragments }) if tape.one_in(3) => {
                    joined.extend(events.iter().cloned());
                    *fragments += 1;
                }
                _ => current.responses.push(Response::Events { events: events.clone(), fragments: 1 }),
            }
            if tape.one_in(4) {
                current.responses.push(Response::Progress(*revision));
            }
            if tape.one_in(8) && *revision < last {
                current.end = SessionEnd::Broken;
                break;
            }
        }
        next = current.next_revision();
        watcher.sessions.push(current);
        if watcher.sessions.last().is_some_and(|session| session.end != SessionEnd::Broken) {
            return watcher;
        }
    }
}

fn session(tape: &mut Tape<'_>, start: Revision, created_at: Revision, responses: Vec<Response>, end: SessionEnd) -> Session {
    Session { member: tape.of(&["master-1", "master-2", "master-3"]).to_owned(), start, created_at, responses, end }
}

fn history(tape: &mut Tape<'_>) -> History {
    let (store, last) = writes(tape);
    let mut history = store.history;
    history.watchers = (0..1 + tape.below(4)).map(|number| watcher(tape, number, &history.reference, last)).collect();
    history
}

/// A fault in what a watcher was told. False: it has nothing to be faulty in so.
type Mutation = fn(&mut Watcher, &mut Tape<'_>, &History) -> bool;

const MUTATIONS: [(&str, Property, Mutation); 12] = [
    ("two responses change places", Property::Ordered, swap_responses),
    ("the events of a response are reversed", Property::Ordered, reverse_events),
    ("a response comes again", Property::Unique, repeat),
    ("a revision comes in two responses", Property::Atomic, split),
    ("an event is left out", Property::Reliable, drop_event),
    ("a value is another", Property::Reliable, change_value),
    ("an event is made up", Property::Reliable, invent),
    ("a session begins too late", Property::Resumable, drop_first),
    ("a bookmark comes too early", Property::Bookmarkable, early_bookmark),
    ("a previous value is another", Property::PreviousValue, change_previous),
    ("a creation is told as another", Property::CreateModify, change_creation),
    ("an event was not asked for", Property::Filter, add_unwanted),
];

/// Where the responses with events are: session and response.
fn places(watcher: &Watcher) -> Vec<(usize, usize)> {
    let numbered = watcher.sessions.iter().enumerate();
    let all = numbered.flat_map(|(session, of)| (0..of.responses.len()).map(move |response| (session, response)));
    all.filter(|(session, response)| matches!(watcher.sessions[*session].responses[*response], Response::Events { .. })).collect()
}

fn events_at(watcher: &mut Watcher, (session, response): (usize, usize)) -> &mut Vec<Event> {
    match &mut watcher.sessions[session].responses[response] {
        Response::Events { events, .. } => events,
        Response::Progress(_) => unreachable!("places are those of events"),
    }
}

/// A response with events, by chance.
fn any_place(watcher: &Watcher, tape: &mut Tape<'_>) -> Option<(usize, usize)> {
    let places = places(watcher);
    (!places.is_empty()).then(|| places[tape.below(places.len())])
}

fn swap_responses(watcher: &mut Watcher, tape: &mut Tape<'_>, _: &History) -> bool {
    let places = places(watcher);
    let pairs: Vec<_> = places.windows(2).filter(|pair| pair[0].0 == pair[1].0).collect();
    if pairs.is_empty() {
        return false;
    }
    let pair = pairs[tape.below(pairs.len())];
    watcher.sessions[pair[0].0].responses.swap(pair[0].1, pair[1].1);
    true
}

fn reverse_events(watcher: &mut Watcher, tape: &mut Tape<'_>, _: &History) -> bool {
    let Some(place) = any_place(watcher, tape) else { return false };
    let events = events_at(watcher, place);
    events.reverse();
    events.len() > 1
}

fn repeat(watcher: &mut Watcher, tape: &mut Tape<'_>, _: &History) -> bool {
    let Some((session, response)) = any_place(watcher, tape) else { return false };
    let again = watcher.sessions[session].responses[response].clone();
    watcher.sessions.last_mut().expect("there is a session").responses.push(again);
    true
}

fn split(watcher: &mut Watcher, _: &mut Tape<'_>, _: &History) -> bool {
    for place in places(watcher) {
        let events = events_at(watcher, place);
        let within = |pair: &[Event]| pair[0].revision() == pair[1].revision();
        if let Some(at) = events.windows(2).position(within) {
            let rest = events.split_off(at + 1);
            let (session, response) = place;
            watcher.sessions[session].responses.insert(response + 1, Response::Events { events: rest, fragments: 1 });
            return true;
        }
    }
    false
}

fn drop_event(watcher: &mut Watcher, tape: &mut Tape<'_>, _: &History) -> bool {
    let Some(place) = any_place(watcher, tape) else { return false };
    let events = events_at(watcher, place);
    let number = tape.below(events.len());
    let revision = events.remove(number).revision();
    // A session that broke may have broken before it.
    let session = &watcher.sessions[place.0];
    session.end != SessionEnd::Broken || session.events().any(|event| event.revision() >= revision)
}

fn change_value(watcher: &mut Watcher, tape: &mut Tape<'_>, _: &History) -> bool {
    let Some(place) = any_place(watcher, tape) else { return false };
    events_at(watcher, place)[0].now.value.push('!');
    true
}

fn invent(watcher: &mut Watcher, tape: &mut Tape<'_>, history: &History) -> bool {
    let Some(place) = any_place(watcher, tape) else { return false };
    let mut event = events_at(watcher, place)[0].clone();
    event.key = tape.of(&KEYS).to_owned();
    let happened = |other: &Event| other.revision() == event.revision() && other.key == event.key;
    if history.reference.iter().any(happened) {
        return false;
    }
    events_at(watcher, place).push(event);
    true
}

fn drop_first(watcher: &mut Watcher, _: &mut Tape<'_>, _: &History) -> bool {
    let Some((session, response)) = places(watcher).first().copied() else { return false };
    events_at(watcher, (session, response)).remove(0);
    watcher.sessions[session].events().next().is_some()
}

fn early_bookmark(watcher: &mut Watcher, _: &mut Tape<'_>, _: &History) -> bool {
    for session in &mut watcher.sessions {
        let after_events = |pair: &[Response]| matches!(pair, [Response::Events { .. }, Response::Progress(_)]);
        if let Some(at) = session.responses.windows(2).position(after_events) {
            session.responses.swap(at, at + 1);
            return true;
        }
    }
    false
}

fn change_previous(watcher: &mut Watcher, tape: &mut Tape<'_>, _: &History) -> bool {
    let Some(place) = any_place(watcher, tape) else { return false };
    let event = &mut events_at(watcher, place)[0];
    event.previous = match event.previous.take() {
        None => Some(event.now.clone()),
        Some(mut previous) if tape.one_in(2) => {
            previous.version += 1;
            Some(previous)
        }
        Some(_) => None,
    };
    true
}

fn change_creation(watcher: &mut Watcher, tape: &mut Tape<'_>, _: &History) -> bool {
    let Some(place) = any_place(watcher, tape) else { return false };
    let now = &mut events_at(watcher, place)[0].now;
    if tape.one_in(2) {
        now.version += 1
    } else {
        now.create_revision += 1
    }
    true
}

fn add_unwanted(watcher: &mut Watcher, tape: &mut Tape<'_>, history: &History) -> bool {
    let unwanted: Vec<&Event> = history.reference.iter().filter(|event| !watcher.wants(event)).collect();
    let Some(place) = any_place(watcher, tape).filter(|_| !unwanted.is_empty()) else { return false };
    events_at(watcher, place).push(unwanted[tape.below(unwanted.len())].clone());
    true
}

fn choices() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..400)
}

/// Makes a history, checks that it is good, makes each fault in one watcher of it, and checks that the right checker objects.
/// Which faults could be made.
fn try_all(choices: &[u8]) -> Vec<&'static str> {
    let mut tape = Tape { choices: choices.iter() };
    let good = history(&mut tape);
    assert_eq!(check(&good), Ok(Vec::new()), "{good:#?}");
    let mut made = Vec::new();
    for (name, property, mutate) in MUTATIONS {
        let mut history = good.clone();
        let number = tape.below(history.watchers.len());
        if mutate(&mut history.watchers[number], &mut tape, &good) {
            made.push(name);
            let found = violations(&history, property);
            let named = found.iter().any(|violation| violation.watcher == history.watchers[number].name);
            assert!(named, "{name}, and {property:?} has no objection: {:#?}", history.watchers[number]);
        }
    }
    made
}

proptest! {
    #[test]
    fn every_fault_is_found(choices in choices()) {
        try_all(&choices);
    }
}

/// The property above proves little if few faults can be made.
#[test]
fn every_fault_is_made() {
    let mut runner = TestRunner::deterministic();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for _ in 0..100 {
        let choices = choices().new_tree(&mut runner).expect("a tape can be made").current();
        for name in try_all(&choices) {
            *counts.entry(name).or_default() += 1;
        }
    }
    for (name, ..) in MUTATIONS {
        let count = counts.get(name).copied().unwrap_or(0);
        assert!(count >= 15, "{name}: {count} times in {counts:?}");
    }
}
