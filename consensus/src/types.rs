//! Who the members are, and the types that openraft is instantiated with.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Names one member, and with it one data folder, for the whole life of a cluster. It is stored with the data and never given to
/// another folder: a member that lost its data comes back under a new id, as a learner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl From<u64> for NodeId {
    fn from(id: u64) -> Self {
        Self(id)
    }
}

/// What every member knows of another: how it is called and where it listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub name: String,
    pub zone: String,
    /// `host:port` at which the other members reach it.
    pub address: String,
    /// The random id of the data folder that it came with. `None` until it has joined; never changed afterwards.
    pub folder: Option<u64>,
}

impl Member {
    /// A member of which nobody has heard yet.
    pub fn new(name: impl Into<String>, zone: impl Into<String>, address: impl Into<String>) -> Self {
        Self { name: name.into(), zone: zone.into(), address: address.into(), folder: None }
    }
}

/// The commands of one log entry, each already encoded: whatever was waiting when the entry was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    pub commands: Vec<Bytes>,
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} commands", self.commands.len())
    }
}

/// The state machine's answers to the commands of one entry, in their order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    pub results: Vec<trireme_storage::command::CommandResult>,
}

openraft::declare_raft_types!(
    /// openraft as Trireme uses it: standard leader ids (one leader a term), tokio.
    pub TypeConfig:
        D = Proposal,
        R = Answers,
        NodeId = NodeId,
        Node = Member,
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, NodeId>,
);

pub type Raft = openraft::Raft<TypeConfig, crate::machine::Machine>;
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub type Payload = openraft::type_config::alias::EntryPayloadOf<TypeConfig>;
pub type Membership = openraft::Membership<NodeId, Member>;
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
pub type CommittedLeaderId = openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>;
pub type LeaderId = openraft::type_config::alias::LeaderIdOf<TypeConfig>;

/// The id of the entry at `index` that the leader of `term` made.
pub fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term), index)
}

/// The term of a log id.
pub fn term_of(id: &LogId) -> u64 {
    id.leader_id.term
}
