//! Compaction by time: every member notes which revision it was when, and the leader has the history dropped that is old enough.

use std::sync::Arc;

use tokio::time::{Instant, MissedTickBehavior};
use trireme_storage::{command::Command, model::Revision, retention::Retention};

use crate::core::Core;

/// Compacts until shutdown.
pub async fn run(core: Arc<Core>) {
    let began = Instant::now();
    let mut retention = Retention::new(core.timing.history_retention);
    let mut due = Revision(0);
    let mut ticks = tokio::time::interval(core.timing.compaction_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = core.shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if let Some(revision) = retention.observe(now_ms, core.machine.revision()) {
            due = due.max(revision);
        }
        let leads = core.leadership.borrow().leading().is_some();
        if !leads || due <= core.machine.compacted_revision() {
            continue;
        }
        match core.propose(&Command::Compact(due)).await {
            Ok(_) => tracing::info!(revision = due.0, "compacted history"),
            Err(error) => tracing::warn!(%error, revision = due.0, "history could not be compacted"),
        }
    }
}
