//! The subresources that do something of their own. `status` is an update of one part and lives with the verbs.

pub mod binding;
pub mod eviction;
pub mod finalize;
pub mod log;
pub mod node_client;
pub mod scale;
