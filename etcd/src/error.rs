//! etcd's errors: their words and codes, which clients match on (`api/v3rpc/rpctypes` of etcd 3.5), and what the store's and the
//! group's errors become.

use tonic::{Code, Status};
use trireme_storage::store::StoreError;

use crate::group::GroupError;

/// Why a request is refused, in etcd's words.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum EtcdError {
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    #[error("etcdserver: key not found")]
    KeyNotFound,
    #[error("etcdserver: value is provided")]
    ValueProvided,
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    #[error("etcdserver: too many operations in txn request")]
    TooManyOperations,
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    #[error("etcdserver: invalid sort option")]
    InvalidSortOption,
    #[error("etcdserver: request is too large")]
    RequestTooLarge,
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    #[error("etcdserver: permission denied")]
    PermissionDenied,
    #[error("etcdserver: authentication is not enabled")]
    AuthNotEnabled,
    #[error("etcdserver: member not found")]
    MemberNotFound,
    #[error("etcdserver: member ID already exist")]
    MemberExists,
    #[error("etcdserver: Peer URLs already exists")]
    PeerUrlExists,
    #[error("etcdserver: given member URLs are invalid")]
    BadMemberUrls,
    #[error("etcdserver: can only promote a learner member")]
    MemberNotLearner,
    #[error("etcdserver: can only promote a learner member which is in sync with leader")]
    LearnerNotReady,
    #[error("etcdserver: re-configuration failed due to not enough started members")]
    NotEnoughStartedMembers,
    #[error("etcdserver: corrupt cluster")]
    Corrupt,
    #[error("etcdserver: unhealthy cluster")]
    Unhealthy,
    #[error("etcdserver: not leader")]
    NotLeader,
    #[error("etcdserver: no leader")]
    NoLeader,
    #[error("etcdserver: bad leader transferee")]
    BadLeaderTransferee,
    #[error("etcdserver: request timed out, leader transfer took too long")]
    LeaderTransferTimeout,
    #[error("etcdserver: request timed out, possibly due to connection lost")]
    TimeoutConnectionLost,
    #[error("etcdserver: invalid downgrade target version")]
    InvalidDowngradeTarget,
    #[error("etcdserver: no inflight downgrade job")]
    NoDowngrade,
    /// The client's `lock` or `campaign` lost its lease while it waited.
    #[error("mutex: session is expired")]
    SessionExpired,
    #[error("election: no leader")]
    ElectionNoLeader,
    #[error("election: not leader")]
    ElectionNotLeader,
    #[error("\"leader\" field must be provided")]
    MissingLeaderKey,
    /// No client could take it, in the words of grpc-go.
    #[error("grpc: trying to send message larger than max ({bytes} vs. {limit})")]
    AnswerTooLarge { bytes: u64, limit: u64 },
    /// A request that etcd carries out and Trireme, on purpose, does not.
    #[error("etcdserver: {0}")]
    NotSupported(&'static str),
    /// What etcd has no words for.
    #[error("etcdserver: {0}")]
    Invalid(String),
    #[error("etcdserver: {0}")]
    Internal(String),
}

impl EtcdError {
    /// The gRPC code that etcd gives with these words.
    pub fn code(&self) -> Code {
        match self {
            Self::EmptyKey
            | Self::KeyNotFound
            | Self::ValueProvided
            | Self::LeaseProvided
            | Self::TooManyOperations
            | Self::DuplicateKey
            | Self::InvalidSortOption
            | Self::RequestTooLarge
            | Self::BadMemberUrls
            | Self::InvalidDowngradeTarget
            | Self::MissingLeaderKey
            | Self::Invalid(_) => Code::InvalidArgument,
            Self::Compacted | Self::FutureRevision | Self::LeaseTtlTooLarge => Code::OutOfRange,
            Self::NoSpace | Self::AnswerTooLarge { .. } => Code::ResourceExhausted,
            Self::LeaseNotFound | Self::MemberNotFound => Code::NotFound,
            Self::LeaseExists
            | Self::AuthNotEnabled
            | Self::MemberExists
            | Self::PeerUrlExists
            | Self::MemberNotLearner
            | Self::LearnerNotReady
            | Self::NotEnoughStartedMembers
            | Self::NotLeader
            | Self::BadLeaderTransferee
            | Self::NoDowngrade => Code::FailedPrecondition,
            Self::PermissionDenied => Code::PermissionDenied,
            Self::Unhealthy | Self::NoLeader | Self::LeaderTransferTimeout | Self::TimeoutConnectionLost => Code::Unavailable,
            Self::SessionExpired | Self::ElectionNoLeader | Self::ElectionNotLeader => Code::Unknown,
            Self::Corrupt => Code::DataLoss,
            Self::NotSupported(_) => Code::Unimplemented,
            Self::Internal(_) => Code::Internal,
        }
    }
}

impl From<EtcdError> for Status {
    fn from(error: EtcdError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<StoreError> for EtcdError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Compacted { .. } => Self::Compacted,
            StoreError::FutureRevision { .. } => Self::FutureRevision,
            StoreError::NoSpace => Self::NoSpace,
            StoreError::LeaseNotFound(_) => Self::LeaseNotFound,
            StoreError::LeaseExists(_) => Self::LeaseExists,
            StoreError::KeyNotFound => Self::KeyNotFound,
            StoreError::DuplicateKey => Self::DuplicateKey,
            // No leader took it: clients try another member, or again.
            StoreError::Unavailable(_) => Self::NoLeader,
            // Clients must not take these for "not carried out".
            StoreError::Unknown(_) => Self::TimeoutConnectionLost,
            StoreError::Diverged(_) => Self::Corrupt,
            StoreError::InvalidTransaction(reason) => Self::Invalid(reason),
            StoreError::Fenced { .. } | StoreError::Failed(_) => Self::Internal(error.to_string()),
        }
    }
}

impl From<GroupError> for EtcdError {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::NotFound => Self::MemberNotFound,
            GroupError::Exists => Self::MemberExists,
            GroupError::AddressTaken => Self::PeerUrlExists,
            GroupError::NotLearner => Self::MemberNotLearner,
            GroupError::NotReady(_) => Self::LearnerNotReady,
            GroupError::Unhealthy(_) => Self::Unhealthy,
            GroupError::QuorumLost(_) => Self::NotEnoughStartedMembers,
            GroupError::NoLeader(_) => Self::NoLeader,
            GroupError::Failed(reason) => Self::Internal(reason),
        }
    }
}

/// What a handler that fails answers.
pub fn refuse(error: impl Into<EtcdError>) -> Status {
    error.into().into()
}

/// Beside etcd's words, which clients match on, why a change of the group is refused, in full.
pub const REASON: &str = "trireme-reason";

/// What a handler of a refused change of the group answers.
pub fn refuse_change(error: GroupError) -> Status {
    let mut status = refuse(error.clone());
    note_reason(&mut status, &error);
    status
}

/// Adds the reason to an answer.
pub fn note_reason(status: &mut Status, error: &GroupError) {
    if let Ok(reason) = error.to_string().parse() {
        status.metadata_mut().insert(REASON, reason);
    }
}

#[cfg(test)]
mod tests {
    use trireme_storage::model::{LeaseId, Revision};

    use super::*;

    #[test]
    fn errors_of_the_store_become_etcds() {
        let old = StoreError::Compacted { requested: Revision(1), compacted: Revision(2) };
        let future = StoreError::FutureRevision { requested: Revision(2), current: Revision(1) };
        let cases = [
            (old, Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
            (future, Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision"),
            (StoreError::LeaseNotFound(LeaseId(1)), Code::NotFound, "etcdserver: requested lease not found"),
            (StoreError::LeaseExists(LeaseId(1)), Code::FailedPrecondition, "etcdserver: lease already exists"),
            (StoreError::KeyNotFound, Code::InvalidArgument, "etcdserver: key not found"),
            (StoreError::DuplicateKey, Code::InvalidArgument, "etcdserver: duplicate key given in txn request"),
            (StoreError::NoSpace, Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            (StoreError::Diverged("x".into()), Code::DataLoss, "etcdserver: corrupt cluster"),
            (StoreError::Unavailable("x".into()), Code::Unavailable, "etcdserver: no leader"),
            (
                StoreError::Unknown("x".into()),
                Code::Unavailable,
                "etcdserver: request timed out, possibly due to connection lost",
            ),
        ];
        for (error, code, words) in cases {
            let status = refuse(error);
            assert_eq!((status.code(), status.message()), (code, words));
        }
    }
}
