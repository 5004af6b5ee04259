//! Pods: what should happen next to one (`plan`, `status`: pure) and what makes it happen (`worker`).

pub mod backoff;
pub mod bundle;
pub mod deadline;
pub mod dns;
pub mod environment;
pub mod expansion;
pub mod fields;
#[cfg(test)]
pub mod fixture;
pub mod hooks;
pub mod hosts;
pub mod images;
pub mod memory;
pub mod model;
pub mod plan;
pub mod prepare;
pub mod publish;
pub mod qos;
pub mod resources;
pub mod security;
pub mod service_links;
pub mod status;
pub mod stop;
pub mod termination;
pub mod worker;
