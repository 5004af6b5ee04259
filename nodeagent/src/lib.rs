//! The node agent: pods on one machine.
//!
//! It owns what happens between "a pod is bound to this node" and "its containers run": the Node object and its
//! heartbeats, one worker per pod, volumes, probes, hooks, logs and the agent's own HTTPS API. It knows no storage and no
//! other node; it uses the Kubernetes API like any client, and containers through the [`runtime::Runtime`] trait. Start at
//! [`agent::run`], then read `pod/plan.rs` (what should happen next to a pod) and `pod/worker.rs` (making it happen).

#![deny(unsafe_code)]

pub mod agent;
pub mod config;
pub mod cri;
pub mod embedded;
pub mod events;
pub mod fleet;
pub mod housekeeping;
pub mod image;
pub mod log;
pub mod network;
pub mod node;
pub mod pod;
pub mod probe;
pub mod runtime;
pub mod server;
pub mod volume;

pub use agent::{NodeAgentError, run};
pub use config::NodeAgentConfig;
pub use fleet::{FleetConfig, run_hollow_fleet};
