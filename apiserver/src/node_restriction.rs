//! What a node's agent may write: its own node, its own lease, and the pods that are bound to it (the Node authorizer and the
//! NodeRestriction admission plugin). Whose a pod is stands in the stored object, so most of this is decided where that is known.

use serde_json::Value;
use trireme_api::status::Status;

use crate::{
    context::RequestContext,
    router::path::ResourcePath,
    write::{Change, Current, Deed, Plan, Target},
};

/// The group of all node agents.
const NODES: &str = "system:nodes";
/// What the user of a node's agent begins with.
const USER_PREFIX: &str = "system:node:";
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// The node whose agent asks; `None` for everyone else.
pub fn node_name(context: &RequestContext) -> Option<&str> {
    let name = context.user.strip_prefix(USER_PREFIX).filter(|name| !name.is_empty())?;
    context.is_in(NODES).then_some(name)
}

/// Why an agent may not touch what a path names, though its verb is one of an agent's.
pub fn refusal_of_path(context: &RequestContext, path: &ResourcePath) -> Option<String> {
    let node = node_name(context)?;
    if path.group != "coordination.k8s.io" || path.plural != "leases" {
        return None;
    }
    if path.namespace.as_deref() != Some(LEASE_NAMESPACE) {
        return Some(format!("can only access leases in the \"{LEASE_NAMESPACE}\" system namespace"));
    }
    let is_other = path.name.as_deref().is_some_and(|name| name != node);
    is_other.then(|| "can only access node lease with the same name as the requesting node".to_owned())
}

/// Whether an agent may do this to an object as it is stored.
///
/// # Errors
/// 403 in Kubernetes' words.
pub fn check(context: &RequestContext, target: &Target, current: Option<&Current>, deed: Deed) -> Result<(), Status> {
    let Some(node) = node_name(context) else { return Ok(()) };
    let resource = &target.resource;
    let why = match (resource.group.as_ref(), resource.plural.as_ref()) {
        ("", "nodes") if target.name != node => {
            format!("node \"{node}\" is not allowed to modify node \"{}\"", target.name)
        }
        ("", "pods") if current.is_some_and(|pod| bound_to(&pod.value) != node) => match deed {
            Deed::Change => format!("node \"{node}\" can only update pod status for pods with spec.nodeName set to itself"),
            Deed::Removal => format!("node \"{node}\" can only delete pods with spec.nodeName set to itself"),
        },
        ("coordination.k8s.io", "leases") if target.name != node => {
            "can only access node lease with the same name as the requesting node".to_owned()
        }
        _ => return Ok(()),
    };
    Err(Status::forbidden(resource, &target.name, &why))
}

/// Whether an agent may change its node or its pod in this way.
///
/// # Errors
/// 403 in Kubernetes' words.
pub fn check_plan(context: &RequestContext, target: &Target, current: Option<&Current>, plan: &Plan) -> Result<(), Status> {
    let (Some(node), Some(current), Change::Put(new)) = (node_name(context), current, &plan.change) else { return Ok(()) };
    let resource = &target.resource;
    let differs = |pointer: &str| current.value.pointer(pointer) != new.pointer(pointer);
    let why = match (resource.group.as_ref(), resource.plural.as_ref()) {
        ("", "nodes") if differs("/spec/taints") => format!("node \"{node}\" is not allowed to modify taints"),
        ("", "nodes") if differs("/metadata/ownerReferences") => {
            format!("node \"{node}\" is not allowed to modify ownerReferences")
        }
        ("", "pods") if differs("/metadata/labels") => format!("node \"{node}\" cannot update labels through pod status"),
        _ => return Ok(()),
    };
    Err(Status::forbidden(resource, &target.name, &why))
}

fn bound_to(pod: &Value) -> &str {
    pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default()
}
