//! A member's metrics under etcd's names, so that existing dashboards work.

use std::{fmt, sync::Weak};

use openraft::type_config::async_runtime::watch::WatchReceiver;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter},
        gauge::ConstGauge,
    },
};

use crate::{core::Core, leadership::Role};

/// What is counted where it happens.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Leaders that this member has seen come, one after another.
    pub leader_changes: Counter,
    /// Proposals of this member that were not carried out, or whose fate is not known.
    pub proposals_failed: Counter,
    /// Comparisons of this member's hashes with another's.
    pub hashes_compared: Counter,
}

/// Reads a member's state when it is asked for metrics.
pub struct GroupCollector {
    core: Weak<Core>,
}

impl GroupCollector {
    pub fn new(core: Weak<Core>) -> Self {
        Self { core }
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl fmt::Debug for GroupCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GroupCollector")
    }
}

impl Collector for GroupCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Some(core) = self.core.upgrade() else { return Ok(()) };
        let leadership = *core.leadership.borrow();
        let committed = core.raft.data_metrics().borrow_watched().local_committed.map_or(0, |id| id.index);
        let applied = core.applied.borrow().last_index().unwrap_or(0);
        let pending = (core.proposals.max_capacity() - core.proposals.capacity())
            + (core.forwards.max_capacity() - core.forwards.capacity());
        let size = signed(core.machine.size_bytes());
        let compacted = signed(core.machine.compacted_revision().0);
        let gauges = [
            ("etcd_server_has_leader", "Whether or not a leader exists.", i64::from(leadership.leader.is_some())),
            ("etcd_server_is_leader", "Whether or not this member is a leader.", i64::from(leadership.role == Role::Leader)),
            ("etcd_server_is_learner", "Whether or not this member is a learner.", i64::from(leadership.role == Role::Learner)),
            (
                "trireme_store_corrupt",
                "Whether this member's data are not, or may not be, those of the others.",
                i64::from(core.integrity.alarm().is_some()),
            ),
            (
                "trireme_store_diverged",
                "Whether this member has stopped serving because its data have diverged.",
                i64::from(core.integrity.divergence().is_some()),
            ),
            ("etcd_server_proposals_pending", "The number of proposals that wait.", signed(pending as u64)),
            ("etcd_mvcc_db_total_size_in_bytes", "How much the state takes on the disk.", size),
            ("etcd_mvcc_db_total_size_in_use_in_bytes", "The same: no space is kept that is not in use.", size),
            ("etcd_debugging_mvcc_current_revision", "The current revision of the store.", signed(core.machine.revision().0)),
            ("etcd_debugging_mvcc_compact_revision", "The oldest revision that can be read.", compacted),
            ("trireme_disk_space", "The room on the disks: 0 enough, 1 little, 2 none.", i64::from(core.disks.space() as u8)),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counters = [
            ("etcd_server_leader_changes_seen", "The number of leader changes seen.", core.counts.leader_changes.get()),
            ("etcd_server_proposals_failed", "The number of failed proposals.", core.counts.proposals_failed.get()),
            (
                "trireme_store_hashes_compared",
                "The number of times that this member has found its hash equal to another's at a revision.",
                core.counts.hashes_compared.get(),
            ),
            ("etcd_server_proposals_committed", "The number of log entries known to be committed.", committed),
            ("etcd_server_proposals_applied", "The number of log entries applied.", applied),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
