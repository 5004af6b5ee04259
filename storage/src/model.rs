//! The words that the store and its users speak: revisions, key-values, transactions, events.
//!
//! Everything here is plain data. Transactions travel in the Raft log (encoded by [`crate::codec`]), so a change of
//! these types is a change of the log's format: add variants at the end of an enum, never in the middle, and
//! raise the codec's version when a struct changes.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// One 64-bit counter for the whole store. Each transaction that changes something takes the next one; 0 is the empty store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A Raft term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Term(pub u64);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A lease's id. 0 is "no lease", as in etcd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseId(pub i64);

/// The current (or, in a read at a revision, the then current) value of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    /// The revision at which the key was last created.
    pub create_revision: Revision,
    /// The revision at which the key was last written.
    pub mod_revision: Revision,
    /// How many times the key was written since it was created; 1 for a new key.
    pub version: u64,
    pub lease: LeaseId,
}

/// A set of keys: one key, or every key from `start` up to and without `end`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyRange {
    One(Bytes),
    /// Half-open. An empty `end` means "to the end of the key space".
    Span {
        start: Bytes,
        end: Bytes,
    },
}

impl KeyRange {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start: Bytes = prefix.into();
        let mut end = start.to_vec();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                break;
            }
        }
        Self::Span { start, end: end.into() }
    }

    /// Every key of the store.
    pub fn all() -> Self {
        Self::Span { start: Bytes::new(), end: Bytes::new() }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::One(one) => one.as_ref() == key,
            Self::Span { start, end } => start.as_ref() <= key && (end.is_empty() || key < end.as_ref()),
        }
    }
}

/// A condition on every key of `range`. A range without keys counts as one absent key: with version, revisions and lease 0; no
/// comparison with a value holds for it, not even [`CompareOrder::NotEqual`]. (etcd's rules.)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    pub range: KeyRange,
    pub target: CompareTarget,
    pub order: CompareOrder,
}

impl Compare {
    /// "The key was last written at exactly this revision"; [`Revision`] 0 means "the key does not exist".
    pub fn mod_revision(key: impl Into<Bytes>, revision: Revision) -> Self {
        Self { range: KeyRange::One(key.into()), target: CompareTarget::ModRevision(revision), order: CompareOrder::Equal }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareTarget {
    Version(u64),
    CreateRevision(Revision),
    ModRevision(Revision),
    Value(Bytes),
    Lease(LeaseId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareOrder {
    Equal,
    NotEqual,
    Greater,
    Less,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    Put {
        key: Bytes,
        value: PutValue,
        lease: PutLease,
        /// Return the value before this put.
        return_previous: bool,
    },
    Delete {
        range: KeyRange,
        /// Return the values before this delete.
        return_previous: bool,
    },
    Range(RangeRequest),
    Transaction(Box<Transaction>),
}

impl Operation {
    /// A put of `value` that keeps no lease and returns nothing.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self::Put {
            key: key.into(),
            value: PutValue::Set(value.into()),
            lease: PutLease::Set(LeaseId(0)),
            return_previous: false,
        }
    }

    pub fn delete(key: impl Into<Bytes>) -> Self {
        Self::Delete { range: KeyRange::One(key.into()), return_previous: false }
    }

    pub fn get(key: impl Into<Bytes>) -> Self {
        Self::Range(RangeRequest::new(KeyRange::One(key.into())))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PutValue {
    Set(Bytes),
    /// Keep the value that the key has; an error when it has none (etcd's `ignore_value`).
    Keep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PutLease {
    Set(LeaseId),
    /// Keep the lease that the key has; an error when there is no such key (etcd's `ignore_lease`).
    Keep,
}

/// A read of a range of keys, in key order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeRequest {
    pub range: KeyRange,
    /// Read as of this revision; `None` reads the newest.
    pub revision: Option<Revision>,
    /// At most so many key-values; `None` is no limit.
    pub limit: Option<u64>,
    pub content: RangeContent,
}

impl RangeRequest {
    pub fn new(range: KeyRange) -> Self {
        Self { range, revision: None, limit: None, content: RangeContent::Values }
    }

    pub fn at(mut self, revision: Revision) -> Self {
        self.revision = Some(revision);
        self
    }

    pub fn limit(mut self, limit: u64) -> Self {
        self.limit = Some(limit);
        self
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RangeContent {
    Values,
    /// The key-values come back with empty values.
    KeysOnly,
    /// Only the count comes back.
    CountOnly,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeResult {
    pub key_values: Vec<KeyValue>,
    /// How many keys the range holds, beyond the limit too.
    pub count: u64,
    /// Whether the limit left some out.
    pub more: bool,
    /// The store's revision at the moment of the read (not the revision asked for).
    pub revision: Revision,
}

/// If every compare holds, `success` is carried out, else `failure`; all or nothing, at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    pub compares: Vec<Compare>,
    pub success: Vec<Operation>,
    pub failure: Vec<Operation>,
    /// Refuse the transaction unless it commits in this Raft term. Set by loops that only the leader may run.
    pub fence: Option<Term>,
}

impl Transaction {
    /// Whether it changes nothing, whatever its compares find, and may run under any leader: then it need not go through the log.
    pub fn is_read_only(&self) -> bool {
        let reads = |operation: &Operation| match operation {
            Operation::Range(_) => true,
            Operation::Put { .. } | Operation::Delete { .. } => false,
            Operation::Transaction(nested) => nested.is_read_only(),
        };
        self.fence.is_none() && self.success.iter().chain(&self.failure).all(reads)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionResult {
    /// Whether the compares held.
    pub succeeded: bool,
    /// The store's revision after the transaction.
    pub revision: Revision,
    /// One for each operation of the branch that was taken, in order.
    pub responses: Vec<OperationResult>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperationResult {
    Put { previous: Option<KeyValue> },
    Delete { deleted: u64, previous: Vec<KeyValue> },
    Range(RangeResult),
    Transaction(TransactionResult),
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    /// After a put, the new key-value. After a delete, the key with an empty value, whose `mod_revision` is the revision of the delete.
    pub key_value: KeyValue,
    /// The key-value before the change, unless the key did not exist or history no longer holds it.
    pub previous: Option<KeyValue>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

/// Every change that one transaction made, in the order of its operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventBatch {
    pub revision: Revision,
    pub events: Arc<[Event]>,
}
