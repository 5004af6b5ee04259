//! What the etcd API asks of the group of masters, beside the store: who its members are, how far this one is, and changes of both.

use async_trait::async_trait;
use trireme_storage::{model::Term, snapshot::SnapshotSource, store::StoreError};

/// One member of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    pub id: u64,
    /// Empty as long as the member has never been heard of.
    pub name: String,
    pub peer_urls: Vec<String>,
    /// Empty as long as the member has never been heard of.
    pub client_urls: Vec<String>,
    /// The availability zone; empty as long as nobody has said.
    pub zone: String,
    /// Whether it receives the log without a vote.
    pub is_learner: bool,
}

/// A member that is to be added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewMember {
    /// `host:port` at which the others will reach it.
    pub address: String,
    /// Empty when it is left to the member to say.
    pub name: String,
    /// Empty when it is left to the member to say.
    pub zone: String,
}

/// How far this member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The member that leads, as far as this one knows.
    pub leader: Option<u64>,
    pub term: Term,
    /// The index of the last entry known to be committed.
    pub committed: u64,
    pub applied: u64,
    /// Whether this member has no vote.
    pub is_learner: bool,
    /// What the store takes on disk, in bytes.
    pub size_bytes: u64,
}

/// What is wrong with a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlarmKind {
    /// Its disk is full.
    NoSpace,
    /// Its data are not those of the others.
    Corrupt,
}

/// A member with which something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alarm {
    pub member_id: u64,
    pub kind: AlarmKind,
}

/// Why a change of the group was not made.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum GroupError {
    #[error("there is no such member")]
    NotFound,
    #[error("there is a member of that id")]
    Exists,
    #[error("another member has that address")]
    AddressTaken,
    #[error("the member is no learner")]
    NotLearner,
    /// A learner has not caught up; how far it is behind.
    #[error("{0}")]
    NotReady(String),
    /// The group would lose its quorum; how many voters answer.
    #[error("{0}")]
    QuorumLost(String),
    /// A member that is needed does not answer.
    #[error("{0}")]
    Unhealthy(String),
    #[error("no leader could be reached: {0}")]
    NoLeader(String),
    #[error("{0}")]
    Failed(String),
}

/// The group of masters as one of them sees it.
#[async_trait]
pub trait Group: Send + Sync + 'static {
    /// The same on every member, and another for every cluster.
    fn cluster_id(&self) -> u64;

    /// The cluster's id as its operator gave it.
    fn cluster(&self) -> String;

    /// This member.
    fn member_id(&self) -> u64;

    /// The term that this member is in, from memory: it goes into every answer.
    fn term(&self) -> Term;

    /// The member that leads, as far as this one knows, from memory.
    fn leader(&self) -> Option<u64>;

    async fn progress(&self) -> Result<Progress, GroupError>;

    async fn members(&self) -> Vec<MemberInfo>;

    /// Adds a member that gets the log without a vote. Returns its id, which the group chooses.
    async fn add_learner(&self, member: NewMember) -> Result<u64, GroupError>;

    /// Makes a learner a voter as soon as it has caught up, some time after the call.
    async fn promote_later(&self, id: u64);

    /// Makes a learner that has caught up a voter.
    async fn promote(&self, id: u64) -> Result<(), GroupError>;

    async fn remove(&self, id: u64) -> Result<(), GroupError>;

    /// Tells the group another address (`host:port`) of a member.
    async fn update(&self, id: u64, address: String) -> Result<(), GroupError>;

    /// Has another voter take over the leadership.
    async fn move_leader(&self, id: u64) -> Result<(), GroupError>;

    /// What is wrong with which member now.
    async fn alarms(&self) -> Vec<Alarm>;

    /// This member's state, to be read out.
    async fn snapshot(&self) -> Result<SnapshotSource, StoreError>;
}
