//! Keeps the log short. openraft counts entries; an entry holds one command or thousands, so that bytes are counted here.

use std::sync::Arc;

use openraft::{errors::Fatal, type_config::async_runtime::watch::WatchReceiver};
use tokio::time::{Duration, MissedTickBehavior};
use trireme_storage::{log::RaftLog, log_sizes::LogSizes};

use crate::{config::Limits, core::Core, types::TypeConfig};

/// How often the log is measured. What is written meanwhile comes on top of the limits.
const PERIOD: Duration = Duration::from_millis(100);
/// Less than this part of what is kept is not worth a purge.
const SMALLEST_PURGE: u64 = 4;

/// What is to be done about the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Make the state durable, so that the entries up to there are no longer needed for it.
    pub snapshot: bool,
    /// Let the entries go up to and with this index.
    pub purge: Option<u64>,
}

/// What is due for a log of which the state holds the entries up to `applied`, and a snapshot those up to `snapshot`.
fn plan(log: &LogSizes, applied: Option<u64>, snapshot: Option<u64>, limits: &Limits) -> Plan {
    let beyond = log.last_beyond(limits.kept_bytes).min(snapshot);
    let gains = beyond.map_or(0, |index| log.bytes_after(None) - log.bytes_after(Some(index)));
    Plan {
        snapshot: log.bytes_after(snapshot).saturating_sub(log.bytes_after(applied)) >= limits.snapshot_bytes,
        purge: beyond.filter(|_| gains > limits.kept_bytes / SMALLEST_PURGE),
    }
}

/// Has the log snapshotted and purged until shutdown.
pub async fn run(core: Arc<Core>, log: RaftLog) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = core.shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let snapshot = core.snapshot_index();
        let applied = core.applied.borrow().last_index();
        let (measured, limits) = (log.clone(), core.limits.clone());
        let planned = tokio::task::spawn_blocking(move || measured.measure(|sizes| plan(sizes, applied, snapshot, &limits)));
        let planned = planned.await.unwrap_or_default();
        if let Err(error) = core.shorten(planned).await {
            // Consensus has stopped, and says why itself.
            tracing::debug!(%error, "the log is not shortened any more");
            return;
        }
    }
}

impl Core {
    /// The newest entry that a snapshot holds.
    pub fn snapshot_index(&self) -> Option<u64> {
        self.raft.metrics().borrow_watched().snapshot.map(|id| id.index)
    }

    /// Carries out a plan, as far as consensus lets it.
    pub async fn shorten(&self, plan: Plan) -> Result<(), Fatal<TypeConfig>> {
        if plan.snapshot {
            self.raft.trigger().snapshot().await?;
        }
        if let Some(index) = plan.purge {
            self.raft.trigger().purge_log(index).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use trireme_storage::{engine::memory::MemoryEngine, log::LogRecord};

    use super::*;

    #[test]
    fn a_log_is_snapshotted_and_purged_by_its_bytes() {
        let log = RaftLog::open(Arc::new(MemoryEngine::new())).unwrap();
        let limits = Limits { snapshot_bytes: 300, kept_bytes: 200, ..Limits::default() };
        let wanted = |snapshot, purge| Plan { snapshot, purge };
        let plan = |log: &RaftLog, applied, snapshot, limits: &_| log.measure(|sizes| plan(sizes, applied, snapshot, limits));
        assert_eq!(plan(&log, None, None, &limits), wanted(false, None));
        let record = |index| LogRecord { index, record: Bytes::from(vec![0; 100]) };
        log.append(vec![record(1), record(2)]).unwrap();
        assert_eq!(plan(&log, Some(2), None, &limits), wanted(false, None));
        log.append(vec![record(3)]).unwrap();
        assert_eq!(plan(&log, Some(3), None, &limits), wanted(true, None), "nothing goes that no snapshot holds");
        assert_eq!(plan(&log, Some(2), None, &limits), wanted(false, None), "what is not applied is in no snapshot");
        assert_eq!(plan(&log, Some(3), Some(2), &limits), wanted(false, Some(1)), "two are kept");
        log.append(vec![record(4), record(5), record(6)]).unwrap();
        assert_eq!(plan(&log, Some(6), Some(2), &limits), wanted(true, Some(2)), "what came after the snapshot stays");
        log.purge_through(4, Bytes::new()).unwrap();
        assert_eq!(plan(&log, Some(6), Some(6), &limits), wanted(false, None));
    }
}
