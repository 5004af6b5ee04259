//! Objects live in namespaces that exist and are not being deleted (NamespaceLifecycle).

use serde_json::Value;
use trireme_api::status::{Cause, Status};
use trireme_storage::model::Compare;

use super::is_core;
use crate::{
    ApiServer, keys, metadata,
    write::{Companions, Target},
};

/// Namespaces that stay.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// The namespace exists and is not being deleted, and this must still be so when the object is written.
pub fn before_create(server: &ApiServer, target: &Target) -> Result<Companions, Status> {
    let (Some(namespace), Some(resource)) = (&target.namespace, server.registry.get("", "v1", "namespaces")) else {
        return Ok(Companions::default());
    };
    let Some(cached) = server.cached("", "v1", "namespaces", namespace) else {
        return Err(Status::not_found(resource, namespace));
    };
    let value = cached.value();
    let is_terminating =
        metadata::is_being_deleted(&value) || value.pointer("/status/phase").and_then(Value::as_str) == Some("Terminating");
    if is_terminating {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut status = Status::forbidden(&target.resource, &target.name, &why);
        if let Some(details) = &mut status.details {
            details.causes.push(Cause {
                reason: "NamespaceTerminating".to_owned(),
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace".to_owned(),
            });
        }
        return Err(status);
    }
    let key = keys::object_key(resource, None, namespace);
    Ok(Companions { compares: vec![Compare::mod_revision(key, cached.revision)], operations: Vec::new() })
}

/// Some namespaces may not be deleted.
pub fn before_delete(target: &Target) -> Result<(), Status> {
    if is_core(&target.resource, "namespaces") && IMMORTAL.contains(&target.name.as_str()) {
        return Err(Status::forbidden(&target.resource, &target.name, "this namespace may not be deleted"));
    }
    Ok(())
}
