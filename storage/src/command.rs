//! What a Raft entry carries, and what the state machine answers.
//!
//! Commands and replies are encoded by [`crate::codec`]: add variants at the end only.

use serde::{Deserialize, Serialize};

use crate::{
    model::{LeaseId, Revision, Term, Transaction, TransactionResult},
    store::StoreError,
};

/// One thing for the state machine to do. Everything that depends on a clock or on chance is decided by the proposer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    Transact(Transaction),
    /// Drop the history below the revision.
    Compact(Revision),
    /// Grant a lease that ends `ttl_seconds` after `now_ms` unless it is kept alive.
    LeaseGrant {
        /// Chosen by the proposer; not 0.
        id: LeaseId,
        ttl_seconds: u64,
        /// The proposer's clock, Unix milliseconds.
        now_ms: u64,
    },
    /// End a lease and delete the keys attached to it.
    LeaseRevoke {
        id: LeaseId,
    },
    /// Start the lease's time anew.
    LeaseKeepAlive {
        id: LeaseId,
        now_ms: u64,
    },
    /// End those of `ids` whose time is over at `now_ms` (a keep-alive may have come first), and delete the keys attached to them.
    LeaseExpire {
        ids: Vec<LeaseId>,
        now_ms: u64,
    },
}

/// A lease as the state machine keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub id: LeaseId,
    pub ttl_seconds: u64,
    /// When it ends, Unix milliseconds of the proposers' clocks.
    pub deadline_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandReply {
    Transaction(TransactionResult),
    Compacted,
    LeaseGranted(Lease),
    /// The lease is gone; `revision` is the store's revision after its keys were deleted.
    LeaseRevoked {
        revision: Revision,
    },
    LeaseKeptAlive(Lease),
    /// The leases that were over, and are gone now.
    LeasesExpired {
        ids: Vec<LeaseId>,
        revision: Revision,
    },
}

/// The answer to one command. A refused command changed nothing.
pub type CommandResult = Result<CommandReply, StoreError>;

/// The commands of one log entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplyEntry {
    /// The term of the log entry; [`Transaction::fence`] is held against it.
    pub term: Term,
    pub commands: Vec<Command>,
}

/// Committed entries that are applied together, in one engine batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplyBatch {
    pub entries: Vec<ApplyEntry>,
    /// Consensus's record of how far it has applied, with the membership; kept with the data, opaque here.
    pub applied: bytes::Bytes,
}
