//! Whose data a folder holds: written at the first start, compared at every other.

use bytes::Bytes;
use trireme_storage::log::RaftLog;

use crate::{error::ConsensusError, types::NodeId};

const CLUSTER_KEY: &str = "cluster-id";
const NODE_KEY: &str = "node-id";

/// Checks that `log` belongs to this member of this cluster, or makes it so when it is new. Blocks.
pub fn claim(log: &RaftLog, cluster_id: &str, node_id: NodeId) -> Result<(), ConsensusError> {
    let io = |error| ConsensusError::Io(std::io::Error::other(error));
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
    if node.is_none() {
        log.save_meta(NODE_KEY, Bytes::copy_from_slice(&node_id.0.to_be_bytes())).map_err(io)?;
    }
    if cluster.is_none() {
        log.save_meta(CLUSTER_KEY, Bytes::copy_from_slice(cluster_id.as_bytes())).map_err(io)?;
    }
    Ok(())
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
