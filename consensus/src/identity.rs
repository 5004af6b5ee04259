//! Whose data a folder holds: written at the first start, compared at every other.

use bytes::Bytes;
use trireme_storage::{
    log::{LogError, RaftLog},
    state_machine::StateMachine,
};

use crate::{error::ConsensusError, log_store::LogStore, record, types::NodeId};

const CLUSTER_KEY: &str = "cluster-id";
const NODE_KEY: &str = "node-id";

/// What a folder says of itself.
struct Claimed {
    cluster: bool,
    node: bool,
}

/// Checks that `log` belongs to this member of this cluster, or to nobody yet. Blocks.
pub fn check(log: &RaftLog, cluster_id: &str, node_id: NodeId) -> Result<(), ConsensusError> {
    claimed(log, cluster_id, node_id).map(drop)
}

fn claimed(log: &RaftLog, cluster_id: &str, node_id: NodeId) -> Result<Claimed, ConsensusError> {
    let cluster = log.meta(CLUSTER_KEY).map_err(io)?;
    let node = log.meta(NODE_KEY).map_err(io)?;
    if let Some(stored) = &cluster
        && stored != cluster_id.as_bytes()
    {
        let stored = String::from_utf8_lossy(stored).into_owned();
        return Err(ConsensusError::OtherCluster { stored, configured: cluster_id.to_owned() });
    }
    if let Some(stored) = &node {
        let stored = <[u8; 8]>::try_from(stored.as_ref())
            .map(|bytes| NodeId(u64::from_be_bytes(bytes)))
            .map_err(|_| ConsensusError::Configuration("the stored member id is damaged".to_owned()))?;
        if stored != node_id {
            return Err(ConsensusError::OtherMember { stored, configured: node_id });
        }
    }
    Ok(Claimed { cluster: cluster.is_some(), node: node.is_some() })
}

/// Makes `log` this member's, if it is nobody's yet. Blocks.
///
/// # Errors
/// As [`check`].
pub fn claim(log: &RaftLog, cluster_id: &str, node_id: NodeId) -> Result<(), ConsensusError> {
    let claimed = claimed(log, cluster_id, node_id)?;
    if !claimed.node {
        log.save_meta(NODE_KEY, Bytes::copy_from_slice(&node_id.0.to_be_bytes())).map_err(io)?;
    }
    if !claimed.cluster {
        log.save_meta(CLUSTER_KEY, Bytes::copy_from_slice(cluster_id.as_bytes())).map_err(io)?;
    }
    Ok(())
}

/// Checks that the log and the state of one member fit together: a state without its log has no vote any more, and a state that
/// ends before the log begins cannot be brought up to date.
pub fn check_complete(log: &LogStore, machine: &StateMachine) -> Result<(), ConsensusError> {
    let applied = machine.applied().as_deref().map(record::decode_applied).transpose()?.unwrap_or_default().last;
    if log.is_pristine() && applied.is_some() {
        return Err(ConsensusError::IncompleteData("the data folder holds a state, but its log is gone"));
    }
    if log.purged() > applied {
        return Err(ConsensusError::IncompleteData("the state in the data folder ends before its log begins"));
    }
    Ok(())
}

fn io(error: LogError) -> ConsensusError {
    ConsensusError::Io(std::io::Error::other(error))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use trireme_storage::engine::memory::MemoryEngine;

    use super::*;

    #[test]
    fn a_folder_belongs_to_the_first_member_that_claims_it() {
        let engine = Arc::new(MemoryEngine::new());
        let log = RaftLog::open(engine.clone()).unwrap();
        claim(&log, "one", NodeId(7)).unwrap();
        claim(&RaftLog::open(engine).unwrap(), "one", NodeId(7)).unwrap();
        assert!(matches!(claim(&log, "two", NodeId(7)), Err(ConsensusError::OtherCluster { stored, .. }) if stored == "one"));
        assert!(matches!(claim(&log, "one", NodeId(8)), Err(ConsensusError::OtherMember { stored: NodeId(7), .. })));
    }
}
