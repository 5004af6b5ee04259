//! The Node object: registration, heartbeats and conditions.

pub mod eviction;
pub mod lease;
pub mod machine;
pub mod object;
pub mod reporter;
