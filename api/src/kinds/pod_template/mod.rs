//! The specification of pods, shared by Pod and everything that makes pods from a template.

mod affinity;
mod containers;
mod defaults;
mod environment;
mod probes;
mod resources;
mod scheduling;
mod security;
mod validation;
mod volume_defaults;
mod volumes;

pub use defaults::{default_request_from_limits, default_spec, share_host_network_ports};
pub use scheduling::{taint_effect, validate_added_tolerations};
pub use validation::{validate_spec, validate_template};
