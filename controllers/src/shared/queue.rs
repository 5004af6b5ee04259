//! The work queue: keys, not events. A key that is added while it waits is handled once; one that is added while it is being
//! handled is handled again afterwards; no key is ever handled by two workers at once. Failed keys come back with exponential
//! back-off and jitter.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::ControllerError;

/// The first wait after a failure; doubled for each further one (client-go's item rate limiter).
const BASE_DELAY: Duration = Duration::from_millis(5);
/// The longest wait. Shorter than client-go's 1,000 s, so that a cluster heals soon after a long outage.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// What a pass over a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing until something changes.
    Done,
    /// Another pass after this long, if nothing changes sooner.
    After(Duration),
    /// Another pass after the key's back-off, which grows with each one asked for.
    Retry,
}

struct Delayed<K> {
    due: Instant,
    key: K,
}

impl<K> PartialEq for Delayed<K> {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}
impl<K> Eq for Delayed<K> {}
impl<K> PartialOrd for Delayed<K> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Delayed<K> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.due.cmp(&other.due)
    }
}

struct State<K> {
    /// Keys to hand out, in order. Each is in `dirty` and none is in `processing`.
    ready: VecDeque<K>,
    /// Keys that need a pass.
    dirty: HashSet<K>,
    /// Keys a worker has now.
    processing: HashSet<K>,
    /// Keys to add later; an entry counts only if `due` still has its time.
    delayed: BinaryHeap<Reverse<Delayed<K>>>,
    /// The earliest time at which each delayed key is to be added.
    due: HashMap<K, Instant>,
    /// Failures in a row of each key.
    failures: HashMap<K, u32>,
    jitter: StdRng,
}

impl<K: Clone + Eq + Hash> State<K> {
    fn add(&mut self, key: K) -> bool {
        if !self.dirty.insert(key.clone()) || self.processing.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    fn add_at(&mut self, key: K, due: Instant) {
        if self.due.get(&key).is_some_and(|earlier| *earlier <= due) {
            return;
        }
        self.due.insert(key.clone(), due);
        self.delayed.push(Reverse(Delayed { due, key }));
    }

    /// Moves what is due to `ready`; returns when the next one will be.
    fn promote(&mut self, now: Instant) -> Option<Instant> {
        while let Some(Reverse(first)) = self.delayed.peek() {
            if first.due > now {
                return Some(first.due);
            }
            let Some(Reverse(Delayed { due, key })) = self.delayed.pop() else { break };
            if self.due.get(&key) == Some(&due) {
                self.due.remove(&key);
                self.add(key);
            }
        }
        None
    }
}

/// A queue of keys for one control loop.
pub struct WorkQueue<K> {
    name: &'static str,
    state: Mutex<State<K>>,
    wake: Notify,
}

impl<K: Clone + Eq + Hash + Debug + Send> WorkQueue<K> {
    /// An empty queue; `seed` makes the jitter of retries repeatable.
    pub fn new(name: &'static str, seed: u64) -> Arc<Self> {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            processing: HashSet::new(),
            delayed: BinaryHeap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            jitter: StdRng::seed_from_u64(seed),
        };
        Arc::new(WorkQueue { name, state: Mutex::new(state), wake: Notify::new() })
    }

    /// Asks for a pass over `key` as soon as a worker is free.
    pub fn add(&self, key: K) {
        if self.state.lock().add(key) {
            self.wake.notify_one();
        }
    }

    /// Asks for a pass over `key` after `delay`, unless one is due sooner.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.state.lock().add_at(key, Instant::now() + delay);
        self.wake.notify_one();
    }

    /// Asks for a pass over `key` after its back-off: 5 ms after the first failure, doubled for each further one up to a minute.
    pub fn add_rate_limited(&self, key: K) {
        let delay = {
            let mut state = self.state.lock();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            let exponent = *failures;
            *failures = failures.saturating_add(1);
            back_off(exponent, BASE_DELAY, MAX_DELAY).mul_f64(state.jitter.random_range(0.8..1.2))
        };
        self.add_after(key, delay);
    }

    /// A pass over `key` succeeded: its back-off starts anew.
    pub fn forget(&self, key: &K) {
        self.state.lock().failures.remove(key);
    }

    /// Keys that wait for a worker.
    pub fn len(&self) -> usize {
        self.state.lock().ready.len()
    }

    /// Whether no key waits for a worker.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next key, which is this worker's until [`WorkQueue::done`]. Safe to drop while waiting.
    pub async fn next(&self) -> K {
        loop {
            let next_due = {
                let mut state = self.state.lock();
                let next_due = state.promote(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    assert!(state.processing.insert(key.clone()), "a key in the ready list is being processed");
                    state.dirty.remove(&key);
                    if !state.ready.is_empty() {
                        self.wake.notify_one();
                    }
                    return key;
                }
                next_due
            };
            match next_due {
                Some(due) => {
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep_until(due) => {}
                    }
                }
                None => self.wake.notified().await,
            }
        }
    }

    /// The worker has finished with `key`; if it was added meanwhile it is queued again.
    pub fn done(&self, key: &K) {
        let mut state = self.state.lock();
        state.processing.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.wake.notify_one();
        }
    }
}

/// `base` doubled `exponent` times, at most `max`.
pub fn back_off(exponent: u32, base: Duration, max: Duration) -> Duration {
    base.checked_mul(1_u32.checked_shl(exponent).unwrap_or(u32::MAX)).unwrap_or(max).min(max)
}

/// Runs `workers` workers over the queue until `shutdown` is cancelled; a pass in flight is dropped then. A pass that fails or
/// panics is repeated with back-off.
pub async fn run_workers<K, F, Fut>(queue: Arc<WorkQueue<K>>, workers: usize, shutdown: CancellationToken, pass: F)
where
    K: Clone + Eq + Hash + Debug + Send + Sync + 'static,
    F: Fn(K) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Next, ControllerError>> + Send,
{
    let mut tasks = JoinSet::new();
    for _ in 0..workers.max(1) {
        let (queue, shutdown, pass) = (queue.clone(), shutdown.clone(), pass.clone());
        tasks.spawn(async move {
            let work = async {
                loop {
                    let key = queue.next().await;
                    let outcome = AssertUnwindSafe(pass(key.clone())).catch_unwind().await;
                    settle(&queue, &key, outcome);
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = work => {}
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

fn settle<K: Clone + Eq + Hash + Debug + Send>(
    queue: &WorkQueue<K>,
    key: &K,
    outcome: Result<Result<Next, ControllerError>, Box<dyn std::any::Any + Send>>,
) {
    match outcome {
        Ok(Ok(Next::Done)) => queue.forget(key),
        Ok(Ok(Next::After(delay))) => {
            queue.forget(key);
            queue.add_after(key.clone(), delay);
        }
        Ok(Ok(Next::Retry)) => queue.add_rate_limited(key.clone()),
        Ok(Err(ControllerError::Api { action, source })) if super::error::is_conflict(&source) => {
            debug!(controller = queue.name, ?key, action, "the object changed meanwhile; trying again");
            queue.add_rate_limited(key.clone());
        }
        Ok(Err(failure)) => {
            warn!(controller = queue.name, ?key, error = %failure, "pass failed; trying again");
            queue.add_rate_limited(key.clone());
        }
        Err(_) => {
            error!(controller = queue.name, ?key, "pass panicked; trying again");
            queue.add_rate_limited(key.clone());
        }
    }
    queue.done(key);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering as AtomicOrdering};

    #[tokio::test(start_paused = true)]
    async fn a_key_is_handed_out_once_and_again_if_it_was_added_meanwhile() {
        let queue = WorkQueue::new("test", 1);
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        assert_eq!(queue.next().await, "b", "a is being handled");
        queue.done(&"a");
        assert_eq!(queue.next().await, "a");
        queue.done(&"a");
        queue.done(&"b");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_delay_counts_and_only_once() {
        let queue = WorkQueue::new("test", 1);
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(10));
        queue.add_after("a", Duration::from_secs(2));
        queue.add_after("a", Duration::from_secs(5));
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed().as_secs(), 2);
        queue.done(&"a");
        assert!(tokio::time::timeout(Duration::from_secs(60), queue.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_and_panics_are_repeated_and_shutdown_ends_the_workers() {
        let queue = WorkQueue::new("test", 7);
        let shutdown = CancellationToken::new();
        let passes = Arc::new(AtomicUsize::new(0));
        queue.add("a");
        let (counter, stop) = (passes.clone(), shutdown.clone());
        run_workers(queue, 3, shutdown, move |_key| {
            let (counter, stop) = (counter.clone(), stop.clone());
            async move {
                match counter.fetch_add(1, AtomicOrdering::SeqCst) {
                    0 => Err(ControllerError::NotReady("not yet".into())),
                    1 => panic!("a bug in one pass"),
                    2 => Ok(Next::Retry),
                    3 => Ok(Next::After(Duration::from_secs(1))),
                    _ => {
                        stop.cancel();
                        Ok(Next::Done)
                    }
                }
            }
        })
        .await;
        assert_eq!(passes.load(AtomicOrdering::SeqCst), 5);
    }

    #[test]
    fn back_off_doubles_up_to_its_limit() {
        let delays: Vec<u64> = [0, 1, 2, 3, 10, 31, 32, 200]
            .map(|exponent| back_off(exponent, BASE_DELAY, MAX_DELAY).as_millis().try_into().unwrap())
            .to_vec();
        assert_eq!(delays, [5, 10, 20, 40, 5120, 60_000, 60_000, 60_000]);
    }
}
