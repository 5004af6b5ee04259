//! A member of a new group, made from a snapshot of another cluster.
//!
//! Its log begins as if the first entry of the new group, its membership, had been applied and purged: so that a member that is added
//! later is sent a snapshot, and never a log that begins after what was restored. Like any member of a new group it takes part only when it
//! has met all the others (see [`crate::bootstrap`]), which must have begun with the same data.

use std::{collections::BTreeMap, io::Read, sync::Arc};

use bytes::Bytes;
use trireme_storage::{
    engine::Engine,
    log::RaftLog,
    portable::PortableError,
    restore::{Beginning, Restored},
    state_machine::StateMachine,
};

use crate::{
    error::ConsensusError,
    identity,
    record::{self, AppliedState, RecordError},
    types::{Member, Membership, NodeId, StoredMembership, log_id},
};

const RESTORED_KEY: &str = "restored";

/// The member to be made, and its group.
pub struct Restore<'a> {
    pub cluster_id: &'a str,
    pub node_id: NodeId,
    /// Every member that the new group begins with, this one among them.
    pub members: Vec<(NodeId, Member)>,
    /// How far the revision goes up, so that clients of the old cluster never see one go back.
    pub bump_revision: u64,
    /// Both must be new.
    pub log_engine: Arc<dyn Engine>,
    pub state_engine: Arc<dyn Engine>,
}

/// Why a member could not be made from a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Snapshot(#[from] PortableError),
    #[error(transparent)]
    Member(#[from] ConsensusError),
}

impl From<RecordError> for RestoreError {
    fn from(error: RecordError) -> Self {
        Self::Member(error.into())
    }
}

/// Makes the data of a member from the snapshot in `stream`. After an error they are of no use. Blocks.
///
/// # Errors
/// When the snapshot is not whole, and when the data cannot be written.
pub fn restore(member: Restore<'_>, stream: &mut dyn Read) -> Result<Restored, RestoreError> {
    let ids = member.members.iter().map(|(id, _)| *id).collect();
    let nodes: BTreeMap<NodeId, Member> = member.members.into_iter().collect();
    let membership = Membership::new(vec![ids], nodes).map_err(|error| RecordError::Membership(error.to_string()))?;
    let first = log_id(0, 0);
    let applied = AppliedState { last: Some(first), membership: StoredMembership::new(Some(first), membership) };
    let applied = record::encode_applied(&applied)?;
    let beginning = Beginning { cluster_id: member.cluster_id, bump_revision: member.bump_revision, applied };
    let restored = trireme_storage::restore::restore(member.state_engine, stream, &beginning)?;

    let failed = |error| ConsensusError::Io(std::io::Error::other(error));
    let log = RaftLog::open(member.log_engine).map_err(failed)?;
    log.save_meta(RESTORED_KEY, Bytes::new()).map_err(failed)?;
    log.purge_through(first.index, record::encode_log_id(&first)?).map_err(failed)?;
    identity::claim(&log, member.cluster_id, member.node_id)?;
    Ok(restored)
}

/// Whether the folder was made from a snapshot. Blocks.
///
/// # Errors
/// When it was made for another group than `members`, and has not begun yet.
pub fn check_restored(log: &RaftLog, machine: &StateMachine, members: &BTreeMap<NodeId, Member>) -> Result<bool, ConsensusError> {
    let is_restored = log.meta(RESTORED_KEY).map_err(std::io::Error::other)?.is_some();
    if !is_restored {
        return Ok(false);
    }
    let applied = machine.applied().as_deref().map(record::decode_applied).transpose()?.unwrap_or_default();
    let has_begun = applied.last.is_none_or(|last| last.index > 0) || log.bounds().last.is_some();
    let address = |(id, member): (&NodeId, &Member)| (*id, member.address.clone());
    let restored: BTreeMap<NodeId, String> = applied.membership.nodes().map(address).collect();
    let configured: BTreeMap<NodeId, String> = members.iter().map(address).collect();
    if !has_begun && restored != configured {
        let names = |members: Vec<&Member>| {
            members.iter().map(|member| format!("{}={}", member.name, member.address)).collect::<Vec<_>>().join(",")
        };
        let (restored, configured) =
            (names(applied.membership.nodes().map(|(_, member)| member).collect()), names(members.values().collect()));
        return Err(ConsensusError::Configuration(format!(
            "this data folder was restored for the members {restored}, not for {configured}"
        )));
    }
    Ok(true)
}
