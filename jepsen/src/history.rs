//! What clients asked for and what they were told.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a client was told of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was carried out, at this revision.
    Acknowledged(i64),
    /// It certainly was not carried out.
    Failed,
    /// It may or may not have been carried out.
    Unknown,
}

/// One write of the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    pub writer: usize,
    /// Counts this writer's writes.
    pub number: u64,
    /// When it was begun and when the client heard of its end, on the history's own clock.
    pub invoked: u64,
    pub completed: u64,
    pub outcome: Outcome,
}

/// Counts events, so that the order in which they happened is known without any wall clock.
#[derive(Debug, Default)]
pub struct EventClock(AtomicU64);

impl EventClock {
    /// The moment of an event: greater than that of every event that was over before.
    pub fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}
