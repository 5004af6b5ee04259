//! The state machine of Trireme: a multi-version key-value store over a small engine trait.
//!
//! It owns revisions, transactions, history, compaction, the Raft log's records and snapshots, on RocksDB or in
//! memory. It knows no Kubernetes kinds and no network. Start at [`model`] for the words, then [`store`] for the face
//! that the rest of Trireme sees.

#![forbid(unsafe_code)]

pub mod codec;
pub mod command;
pub mod content;
pub mod engine;
pub mod fail_point;
pub mod format;
mod hashes;
mod history;
mod layout;
mod lease;
pub mod local;
pub mod log;
pub mod log_sizes;
pub mod metrics;
pub mod model;
mod overlay;
pub mod portable;
pub mod restore;
pub mod retention;
pub mod rows;
pub mod snapshot;
pub mod state_machine;
pub mod store;
mod transaction;
pub mod validate;
pub mod verify;
pub mod watch;
