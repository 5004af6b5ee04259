//! What the scheduler is told at its start.

/// How one scheduler is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// It takes the pods whose `schedulerName` is this.
    pub scheduler_name: String,
    /// The seed of ties and jitter: the same seed and the same events make the same decisions.
    pub seed: u64,
    /// How many bindings and reports may be under way at once.
    pub max_in_flight: usize,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self { scheduler_name: crate::DEFAULT_SCHEDULER_NAME.to_owned(), seed: 0, max_in_flight: 256 }
    }
}
