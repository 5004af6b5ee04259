//! Keeps as many pods running as a ReplicaSet asks for. The engine is generic over the owner: a ReplicationController is the same
//! loop over another kind (see [`crate::replication_controller`]).
//!
//! Watches its owners and pods. Owns the pods with its controller reference that its selector matches, and its own status.

mod engine;
mod owner;
mod plan;
mod ranking;
mod status;
mod template;

pub use engine::start;
pub(crate) use owner::non_zero;
pub use owner::{Condition, Counts, ReplicaOwner};
