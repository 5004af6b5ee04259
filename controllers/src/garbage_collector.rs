//! Deletes what has lost its owners, and carries out foreground and orphan deletion.
//!
//! Watches the metadata of every resource that can be listed, watched and deleted. Owns the finalizers `foregroundDeletion` and
//! `orphan` and the owner references of what it orphans. A dependent is deleted only after a live read has shown that each of its
//! owners is gone: where an owner cannot be looked up, nothing is deleted.

mod collector;
mod decide;
mod graph;
mod live;
mod monitors;

pub use collector::{LOOP, start};
