//! Which node a pod goes to.
//!
//! The core decides over values and knows no client and no clock: [`cluster::Cluster`] is the picture that changes with each
//! object, [`plugins`] say where a pod cannot go and where it would be best, [`schedule::Scheduler`] puts them together,
//! [`preemption`] looks for pods that must leave for a more important one, [`queue::Queue`] decides which pod is next.
//! [`run`] is the edge: it watches the API, feeds the core and carries out what it decides. Start reading at
//! [`schedule`].

#![forbid(unsafe_code)]

pub mod brain;
pub mod cluster;
pub mod config;
pub mod diagnosis;
pub mod driver;
pub mod hints;
pub mod index;
pub mod node;
pub mod plugins;
pub mod pod;
pub mod preemption;
pub mod queue;
pub mod reports;
pub mod resources;
pub mod schedule;
pub mod terms;
mod writes;

pub use config::SchedulerConfig;
pub use driver::run;

/// The `schedulerName` of pods that ask for none other, and the name under which events are reported.
pub const DEFAULT_SCHEDULER_NAME: &str = "default-scheduler";
