//! Liveness, readiness and startup probes: counting results is pure, making probes is at the edge.

pub mod counter;
pub mod handler;
pub mod manager;
