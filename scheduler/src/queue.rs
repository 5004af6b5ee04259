//! Which pod is tried next: those ready by priority and then age, those that wait out a back-off, and those that wait until
//! something changes that could help them. Times are durations since any fixed moment.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use crate::{plugins::Plugin, pod::PodInfo};

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// A pod that waits for a change is tried again after this long without one.
const LONGEST_WAIT: Duration = Duration::from_secs(5 * 60);

/// The order among ready pods: highest priority, then the longest in the queue.
type ReadyKey = (Reverse<i32>, u64, Arc<str>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Ready(ReadyKey),
    /// Until then.
    Backoff(Duration),
    /// Since then, for the filters that turned it down.
    Waiting {
        since: Duration,
        plugins: BTreeSet<Plugin>,
    },
    /// Until its gates are lifted.
    Gated,
    /// Handed out by [`Queue::pop`]; its fate is still open.
    Tried,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<PodInfo>,
    /// The order of arrival.
    sequence: u64,
    attempts: u32,
    place: Place,
    /// When it was last turned down.
    rejected: Duration,
}

/// Pods to be scheduled. Each pod that is in it is in exactly one place.
#[derive(Debug, Default)]
pub struct Queue {
    entries: HashMap<Arc<str>, Entry>,
    ready: BTreeSet<ReadyKey>,
    backoff: BTreeSet<(Duration, Arc<str>)>,
    next_sequence: u64,
}

/// How long a pod waits after this many attempts: 1 s, doubled each time, up to 10 s.
fn backoff_after(attempts: u32) -> Duration {
    FIRST_BACKOFF.saturating_mul(1 << attempts.saturating_sub(1).min(4)).min(LONGEST_BACKOFF)
}

impl Queue {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in a new pod, or the new state of one that is known. A change that matters makes it worth another try.
    pub fn put(&mut self, pod: Arc<PodInfo>) {
        let uid = Arc::clone(&pod.uid);
        let Some(entry) = self.entries.get_mut(&uid) else {
            let sequence = self.next_sequence;
            self.next_sequence += 1;
            let entry = Entry { pod, sequence, attempts: 0, place: Place::Tried, rejected: Duration::ZERO };
            self.entries.insert(Arc::clone(&uid), entry);
            return self.make_ready(&uid);
        };
        if *entry.pod == *pod {
            return;
        }
        entry.pod = pod;
        match entry.place {
            Place::Tried | Place::Backoff(_) => {}
            Place::Ready(_) | Place::Waiting { .. } | Place::Gated => self.make_ready(&uid),
        }
    }

    pub fn remove(&mut self, uid: &str) {
        if let Some(entry) = self.entries.remove(uid) {
            self.leave(&entry.place, uid);
        }
    }

    fn leave(&mut self, place: &Place, uid: &str) {
        match place {
            Place::Ready(key) => {
                self.ready.remove(key);
            }
            Place::Backoff(until) => {
                self.backoff.remove(&(*until, uid.into()));
            }
            Place::Waiting { .. } | Place::Gated | Place::Tried => {}
        }
    }

    fn move_to(&mut self, uid: &str, place: Place) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let old = std::mem::replace(&mut entry.place, place.clone());
        let uid = Arc::clone(&entry.pod.uid);
        self.leave(&old, &uid);
        match place {
            Place::Ready(key) => {
                self.ready.insert(key);
            }
            Place::Backoff(until) => {
                self.backoff.insert((until, uid));
            }
            Place::Waiting { .. } | Place::Gated | Place::Tried => {}
        }
    }

    fn make_ready(&mut self, uid: &str) {
        let Some(entry) = self.entries.get(uid) else { return };
        let key = (Reverse(entry.pod.priority), entry.sequence, Arc::clone(&entry.pod.uid));
        let place = if entry.pod.gated { Place::Gated } else { Place::Ready(key) };
        self.move_to(uid, place);
    }

    /// The next pod to try. It stays in the queue, out of every order, until its fate is told.
    pub fn pop(&mut self) -> Option<Arc<PodInfo>> {
        let uid = self.ready.first().map(|(_, _, uid)| Arc::clone(uid))?;
        self.move_to(&uid, Place::Tried);
        let entry = self.entries.get_mut(&uid)?;
        entry.attempts = entry.attempts.saturating_add(1);
        Some(Arc::clone(&entry.pod))
    }

    /// The pod fits nowhere; these filters turned nodes down.
    pub fn wait(&mut self, uid: &str, plugins: BTreeSet<Plugin>, now: Duration) {
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.rejected = now;
            self.move_to(uid, Place::Waiting { since: now, plugins });
        }
    }

    /// The attempt failed for a reason that lies outside the pod; it is tried again after its back-off.
    pub fn retry(&mut self, uid: &str, now: Duration) {
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.rejected = now;
            let until = now + backoff_after(entry.attempts);
            self.move_to(uid, Place::Backoff(until));
        }
    }

    /// Something changed: waiting pods for which `helps` says so, for one of the filters that turned them down, are tried
    /// again, once their back-off is over.
    pub fn on_change(&mut self, now: Duration, helps: impl Fn(&PodInfo, Plugin) -> bool) {
        let helped: Vec<Arc<str>> = self
            .entries
            .values()
            .filter(|entry| match &entry.place {
                Place::Waiting { plugins, .. } => plugins.is_empty() || plugins.iter().any(|plugin| helps(&entry.pod, *plugin)),
                _ => false,
            })
            .map(|entry| Arc::clone(&entry.pod.uid))
            .collect();
        helped.iter().for_each(|uid| self.try_again(uid, now));
    }

    fn try_again(&mut self, uid: &str, now: Duration) {
        let Some(entry) = self.entries.get(uid) else { return };
        let until = entry.rejected + backoff_after(entry.attempts);
        if until > now { self.move_to(uid, Place::Backoff(until)) } else { self.make_ready(uid) }
    }

    /// Makes pods ready whose back-off is over, and those that waited for a change for too long.
    pub fn advance(&mut self, now: Duration) {
        while let Some((until, uid)) = self.backoff.first().cloned() {
            if until > now {
                break;
            }
            self.make_ready(&uid);
        }
        let waited_long = |entry: &&Entry| matches!(entry.place, Place::Waiting { since, .. } if now >= since + LONGEST_WAIT);
        let stale: Vec<Arc<str>> = self.entries.values().filter(waited_long).map(|entry| Arc::clone(&entry.pod.uid)).collect();
        stale.iter().for_each(|uid| self.make_ready(uid));
    }

    /// When the next back-off is over.
    pub fn next_backoff(&self) -> Option<Duration> {
        self.backoff.first().map(|(until, _)| *until)
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub fn contains(&self, uid: &str) -> bool {
        self.entries.contains_key(uid)
    }

    pub fn uids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.entries.keys()
    }
}
