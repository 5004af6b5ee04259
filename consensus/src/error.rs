//! Why a master does not start, and why a change of the group is refused.

use crate::{record::RecordError, transport::TlsError, types::NodeId};

/// Why the group, or this member of it, could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ConsensusError {
    #[error("invalid configuration: {0}")]
    Configuration(String),
    #[error("this data folder belongs to cluster {stored:?}, not to {configured:?}; nothing was changed")]
    OtherCluster { stored: String, configured: String },
    #[error("this data folder belongs to member {stored}, not to {configured}; nothing was changed")]
    OtherMember { stored: NodeId, configured: NodeId },
    #[error(
        "member {0} has another data folder than the one that the cluster knows; add it again as a new member under a new id \
         (`trireme member remove {0}`, then `trireme member add`)"
    )]
    LostData(NodeId),
    #[error(
        "this master, member {0}, was removed from the cluster and takes no part in it any more; to have it back, empty its data \
         folder and add it as a new member (`trireme member add`)"
    )]
    Removed(NodeId),
    #[error(
        "{name} begins with other data (revision {theirs}) than this member (revision {own}); a new cluster begins with one snapshot, restored on every master"
    )]
    OtherBeginning { name: String, own: u64, theirs: u64 },
    #[error("{0}; a member that has lost a part of its data must not go on with the rest: add it again as a new member")]
    IncompleteData(&'static str),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Storage(#[from] trireme_storage::store::StoreError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("I/O error: {0}")]
    Io(#[from] std::io::Error),
    /// This member does not lead, and the leader could not be reached.
    #[error("no leader could be reached: {0}")]
    NoLeader(String),
    #[error("refused: {0}")]
    Refused(#[from] crate::membership::Refusal),
    /// Another member could not be asked.
    #[error("a member does not answer: {0}")]
    Unreachable(String),
    #[error("the leader refused: {0}")]
    RefusedByLeader(String),
    #[error("the consensus core has stopped: {0}")]
    Stopped(String),
}
