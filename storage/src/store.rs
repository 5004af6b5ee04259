//! The face that the replicated store shows to the API servers: transactions, linearizable reads, watches.
//!
//! `consensus` implements [`Store`] over Raft; [`crate::local::LocalStore`] implements it over one engine, without a
//! group, for tests and tools.

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    command::Lease,
    content::Content,
    engine::EngineError,
    model::{EventBatch, KeyRange, LeaseId, RangeRequest, RangeResult, Revision, Term, Transaction, TransactionResult},
    rows::RowVisitor,
};

/// Why the store did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreError {
    /// The revision asked for is older than what history holds.
    #[error("revision {requested} has been compacted; the oldest is {compacted}")]
    Compacted { requested: Revision, compacted: Revision },
    /// The revision asked for has not happened yet.
    #[error("revision {requested} is in the future; the newest is {current}")]
    FutureRevision { requested: Revision, current: Revision },
    /// The transaction carried the term of a leadership that has ended. Nothing was changed.
    #[error("the write was fenced: it belongs to term {stamped}, and the term is {current}")]
    Fenced { stamped: Term, current: Term },
    /// The transaction is malformed (an empty key, nested too deep …). Nothing was changed.
    #[error("invalid transaction: {0}")]
    InvalidTransaction(String),
    /// No leader, or no quorum, could be reached, and the request was certainly not carried out.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The request went out and no answer came: it may or may not be carried out.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// The disk is full. Nothing was changed.
    #[error("no space left on the disk of the store")]
    NoSpace,
    /// The store is broken (I/O error, corruption) and has stopped.
    #[error("the store has failed: {0}")]
    Failed(String),
    /// A lease that does not exist, or no longer. Nothing was changed.
    #[error("requested lease {} not found", .0.0)]
    LeaseNotFound(LeaseId),
    /// A lease with this id exists already. Nothing was changed.
    #[error("lease {} already exists", .0.0)]
    LeaseExists(LeaseId),
    /// A put that keeps the value or the lease of a key that does not exist. Nothing was changed.
    #[error("key not found")]
    KeyNotFound,
    /// A transaction would put a key twice, or put and delete it. Nothing was changed.
    #[error("duplicate key given in txn request")]
    DuplicateKey,
    /// This member's data are not those that the group has agreed on: it serves nothing any more.
    #[error("the data of this member have diverged from the group's; it does not serve: {0}")]
    Diverged(String),
}

impl From<EngineError> for StoreError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::NoSpace => Self::NoSpace,
            other => Self::Failed(other.to_string()),
        }
    }
}

/// A key-value store with revisions. Every method may be called on any member of the group.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Carries out a transaction. `Ok` means that it is durable on a majority and applied on this member. One that only reads is linearizable,
    /// too.
    async fn transact(&self, transaction: Transaction) -> Result<TransactionResult, StoreError>;

    /// Waits until this member has applied everything that was acknowledged, anywhere, before the call; returns this member's
    /// revision then. A local read that follows is linearizable.
    async fn read_barrier(&self) -> Result<Revision, StoreError>;

    /// Reads this member's own state, as it is, without a barrier.
    async fn range(&self, request: RangeRequest) -> Result<RangeResult, StoreError>;

    /// Visits the keys of a range in this member's own state, in key order, as they are at `revision` (`None`: at the newest one), until
    /// the visitor breaks it off; without a barrier. Returns the store's revision at the moment of the read. Blocks: for threads that may.
    ///
    /// # Errors
    /// Those of [`Store::range`]. What was visited before is worth nothing then.
    fn visit(&self, range: &KeyRange, revision: Option<Revision>, visitor: &mut RowVisitor<'_>) -> Result<Revision, StoreError>;

    /// Every change from revision `from` (inclusive) on, in order, without a gap. `from` may be at most one past the current revision.
    async fn watch(&self, from: Revision) -> Result<Box<dyn Watch>, StoreError>;

    /// Drops the history below `revision`: reads and watches of older revisions fail with [`StoreError::Compacted`].
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;

    /// What the key-values as they were at `revision` add up to, as this member's disk has them. Reads everything.
    async fn content_at(&self, revision: Revision) -> Result<Content, StoreError>;

    /// Whether this member may answer at all, from memory.
    ///
    /// # Errors
    /// [`StoreError::Diverged`]: not even what was read before may be handed out.
    fn check_serving(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// This member's revision.
    fn revision(&self) -> Revision;

    /// The oldest revision that can still be read.
    fn compacted_revision(&self) -> Revision;
}

/// The leases of a store: each ends, and takes the keys attached to it along, unless it is kept alive. Every method may be called
/// on any member of the group.
#[async_trait]
pub trait Leases: Send + Sync + 'static {
    /// Grants a lease under an id that the caller chose; not 0.
    async fn grant_lease(&self, id: LeaseId, ttl_seconds: u64) -> Result<Lease, StoreError>;

    /// Ends a lease and deletes its keys. Returns the store's revision after that.
    async fn revoke_lease(&self, id: LeaseId) -> Result<Revision, StoreError>;

    /// Starts a lease's time anew.
    async fn keep_lease_alive(&self, id: LeaseId) -> Result<Lease, StoreError>;

    /// A lease as this member knows it, without a barrier, and the keys attached to it.
    fn lease(&self, id: LeaseId) -> Option<(Lease, Vec<Bytes>)>;

    /// Every lease that this member knows of, in the order of their ids.
    fn leases(&self) -> Vec<Lease>;

    /// The clock against which [`Lease::deadline_ms`] is set, Unix milliseconds.
    fn now_ms(&self) -> u64;
}

/// A running watch. It never skips, repeats or reorders: when the reader is slow, events wait in history, not in memory.
#[async_trait]
pub trait Watch: Send {
    /// The next transaction's changes. [`StoreError::Compacted`] when the reader fell so far behind that history no longer
    /// holds what comes next; the watch is over then.
    async fn next(&mut self) -> Result<EventBatch, StoreError>;
}
