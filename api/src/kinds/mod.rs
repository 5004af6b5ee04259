//! The built-in kinds, one file (or folder) each: how an object of the kind is defaulted, validated, updated and shown.
//!
//! Every kind implements `typed::Kind`; `typed::Typed` turns that into the registry's [`crate::registry::Behaviour`].
//! To add a kind, write its file and name it in [`registry`].

mod config_map;
mod controller_revision;
pub mod decode;
mod deployment;
mod endpoint_slice;
mod endpoints;
mod event;
mod lease;
pub mod namespace;
mod node;
pub mod pod;
pub mod pod_resources;
mod pod_template;
mod priority_class;
mod quantities;
mod replica_set;
mod replication_controller;
mod secret;
mod service;
mod service_account;
mod table;
mod typed;
mod validate;
mod workload;

use typed::resource;

use crate::registry::Registry;

/// All built-in kinds.
pub fn registry() -> Registry {
    Registry::new([
        resource::<config_map::ConfigMapKind>(),
        resource::<controller_revision::ControllerRevisionKind>(),
        resource::<deployment::DeploymentKind>(),
        resource::<endpoint_slice::EndpointSliceKind>(),
        resource::<endpoints::EndpointsKind>(),
        resource::<event::EventKind>(),
        resource::<event::EventViewKind>(),
        resource::<lease::LeaseKind>(),
        resource::<namespace::NamespaceKind>(),
        resource::<node::NodeKind>(),
        resource::<pod::PodKind>(),
        resource::<priority_class::PriorityClassKind>(),
        resource::<replica_set::ReplicaSetKind>(),
        resource::<replication_controller::ReplicationControllerKind>(),
        resource::<secret::SecretKind>(),
        resource::<service::ServiceKind>(),
        resource::<service_account::ServiceAccountKind>(),
    ])
}

#[cfg(test)]
mod tests;
