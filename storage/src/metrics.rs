//! How long the disk takes, under etcd's names, so that existing dashboards work.

use prometheus_client::{
    metrics::{counter::Counter, histogram::Histogram as Buckets},
    registry::Registry,
};
use tokio::time::{Duration, Instant};

/// An apply that takes longer is counted as slow, as etcd does.
const SLOW_APPLY: Duration = Duration::from_millis(100);

/// A histogram of durations in seconds.
#[derive(Clone, Debug)]
pub struct Durations(Buckets);

impl Durations {
    fn new() -> Self {
        // etcd's buckets: 1 ms to 8 s, each twice the one before.
        Self(Buckets::new((0..14).map(|power| 0.001 * f64::from(1 << power))))
    }

    /// Runs `work` and records how long it took, whatever came of it.
    pub fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.take(start.elapsed());
        result
    }

    fn take(&self, duration: Duration) {
        self.0.observe(duration.as_secs_f64());
    }
}

/// The metrics of one member's storage. Clones share them.
#[derive(Clone, Debug)]
pub struct StorageMetrics {
    /// The synced writes of the Raft log.
    pub wal_fsync: Durations,
    /// The write of one applied batch to the state engine.
    pub backend_commit: Durations,
    /// Batches of entries that were evaluated, written and shown to readers.
    apply: Durations,
    slow_applies: Counter,
}

impl Default for StorageMetrics {
    fn default() -> Self {
        Self {
            wal_fsync: Durations::new(),
            backend_commit: Durations::new(),
            apply: Durations::new(),
            slow_applies: Counter::default(),
        }
    }
}

impl StorageMetrics {
    /// Runs the application of a batch and records how long it took.
    pub fn time_apply<T>(&self, apply: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = apply();
        let duration = start.elapsed();
        self.apply.take(duration);
        if duration > SLOW_APPLY {
            self.slow_applies.inc();
        }
        result
    }

    /// Makes the metrics known to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "etcd_disk_wal_fsync_duration_seconds",
            "The latency distributions of fsync called by WAL.",
            self.wal_fsync.0.clone(),
        );
        registry.register(
            "etcd_disk_backend_commit_duration_seconds",
            "The latency distributions of commit called by backend.",
            self.backend_commit.0.clone(),
        );
        registry.register(
            "etcd_server_apply_duration_seconds",
            "The latency distributions of the application of entries.",
            self.apply.0.clone(),
        );
        registry.register(
            "etcd_server_slow_apply",
            "The total number of slow apply requests (likely overloaded from slow disk).",
            self.slow_applies.clone(),
        );
    }
}
