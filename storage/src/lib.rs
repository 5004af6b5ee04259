//! The state machine of Trireme: a multi-version key-value store over a small engine trait.
//!
//! It owns revisions, transactions, history, compaction, the Raft log's records and snapshots, on RocksDB or in
//! memory. It knows no Kubernetes kinds and no network. Start at [`model`] for the words, then [`store`] for the face
//! that the rest of Trireme sees.

#![forbid(unsafe_code)]

pub mod model;
pub mod store;
