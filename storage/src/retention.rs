//! Which revision history may be compacted to, so that so much time of it is kept. Pure: the caller brings the clock.

use std::{collections::VecDeque, time::Duration};

use crate::model::Revision;

/// Maps time to revisions by samples. Kubernetes keeps 5 minutes of etcd's history; so does Trireme by default.
#[derive(Clone, Debug)]
pub struct Retention {
    keep_ms: u64,
    /// Samples closer together than this are not worth keeping: it bounds their number.
    spacing_ms: u64,
    /// Oldest first; times and revisions rise.
    samples: VecDeque<(u64, Revision)>,
}

/// How many samples are kept for the time of history that is kept.
const SAMPLES: u64 = 60;

impl Default for Retention {
    fn default() -> Self {
        Self::new(Duration::from_secs(300))
    }
}

impl Retention {
    /// Keeps history of the last `keep`.
    pub fn new(keep: Duration) -> Self {
        let keep_ms = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
        Self { keep_ms, spacing_ms: (keep_ms / SAMPLES).max(1), samples: VecDeque::new() }
    }

    /// Takes note that the store stood at `revision` at `now_ms` (any clock that does not jump), and says to which revision history
    /// may be compacted now: the newest that is known to be older than what is kept. `None` when there is nothing new to compact.
    pub fn observe(&mut self, now_ms: u64, revision: Revision) -> Option<Revision> {
        // A clock that went back, or a state that was replaced: begin anew, which only keeps more.
        if self.samples.back().is_some_and(|(at, newest)| *at > now_ms || *newest > revision) {
            self.samples.clear();
        }
        if self.samples.back().is_none_or(|(at, _)| now_ms - at >= self.spacing_ms) {
            self.samples.push_back((now_ms, revision));
        }
        let mut target = None;
        while let Some((at, old)) = self.samples.front()
            && now_ms - at >= self.keep_ms
        {
            target = Some(*old);
            self.samples.pop_front();
        }
        target.filter(|target| *target > Revision(0))
    }
}
