//! Pods: what should happen next to one (`plan`, `status`: pure) and what makes it happen (`worker`).

pub mod backoff;
pub mod deadline;
pub mod memory;
pub mod model;
pub mod plan;
pub mod prepare;
pub mod publish;
pub mod qos;
pub mod resources;
pub mod status;
pub mod worker;
