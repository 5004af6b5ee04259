//! `pods/binding`: a scheduler gives a pod its node.

use async_trait::async_trait;
use serde_json::{Map, Value, json};
use trireme_api::{field::FieldError, status::Status};

use crate::{
    ApiServer,
    answer::{Answer, success},
    decode_body, metadata,
    request::ApiRequest,
    write::{Current, Modification, Plan, Target},
};

/// Binds a pod to the node that the body names.
///
/// # Errors
/// 400, 404, 409 when the pod has a node already or is being deleted, 422, and what the store says.
pub async fn bind(server: &ApiServer, request: &ApiRequest) -> Result<Answer, Status> {
    let persistence = request.persistence()?;
    let binding = decode_body::parse(request.content_type.as_deref(), &request.body)?.value;
    let name = request.object_name()?.to_owned();
    let given = metadata::name(&binding);
    if !given.is_empty() && given != name {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    let node = binding.pointer("/target/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let kind = binding.pointer("/target/kind").and_then(Value::as_str).unwrap_or_default();
    if !matches!(kind, "" | "Node") {
        let error = FieldError::not_supported("target.kind", kind, &["Node", "<empty>"]);
        return Err(Status::new(422, "Invalid", format!("Binding \"{name}\" is invalid: {error}")));
    }
    if node.is_empty() {
        let error = FieldError::required("target.name", "");
        return Err(Status::new(422, "Invalid", format!("Binding \"{name}\" is invalid: {error}")));
    }
    let target = Target { resource: request.resource.clone(), namespace: request.namespace.clone(), name };
    server.modify(&request.context, &target, persistence, &mut Binding { node, binding }).await?;
    Ok(success(201, None))
}

struct Binding {
    node: String,
    binding: Value,
}

#[async_trait]
impl Modification for Binding {
    async fn plan(&mut self, server: &ApiServer, target: &Target, current: Option<&Current>) -> Result<Plan, Status> {
        let resource = &target.resource;
        let current = current.ok_or_else(|| Status::not_found(resource, &target.name))?;
        let conflict = |why: String| Status::conflict(resource, &target.name, &why);
        let pod = &current.value;
        let uid = metadata::text(&self.binding, "uid");
        let actual = metadata::text(pod, "uid");
        if !uid.is_empty() && uid != actual {
            return Err(conflict(format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {actual}")));
        }
        if metadata::is_being_deleted(pod) {
            return Err(conflict(format!("pod {} is being deleted, cannot be assigned to a host", target.name)));
        }
        if let Some(node) = pod.pointer("/spec/nodeName").and_then(Value::as_str).filter(|node| !node.is_empty()) {
            return Err(conflict(format!("pod {} is already assigned to node \"{node}\"", target.name)));
        }
        let is_gated = pod.pointer("/spec/schedulingGates").and_then(Value::as_array).is_some_and(|gates| !gates.is_empty());
        if is_gated {
            return Err(conflict(format!("pod {} has non-empty .spec.schedulingGates", target.name)));
        }
        let mut pod = pod.clone();
        pod["spec"]["nodeName"] = json!(self.node);
        for field in ["annotations", "labels"] {
            merge(&mut pod, field, self.binding.get("metadata").and_then(|metadata| metadata.get(field)));
        }
        set_scheduled(&mut pod, &metadata::time(server.clock.now()));
        Ok(Plan::put(pod))
    }
}

/// Adds the binding's annotations or labels to the pod's.
fn merge(pod: &mut Value, field: &str, added: Option<&Value>) {
    let Some(added) = added.and_then(Value::as_object).filter(|added| !added.is_empty()) else { return };
    let metadata = metadata::of(pod);
    let mut merged = metadata.get(field).and_then(Value::as_object).cloned().unwrap_or_else(Map::new);
    merged.extend(added.clone());
    metadata.insert(field.to_owned(), Value::Object(merged));
}

/// Sets the condition `PodScheduled` to `True`.
fn set_scheduled(pod: &mut Value, now: &str) {
    if !pod["status"].is_object() {
        pod["status"] = json!({});
    }
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|condition| condition["type"] != "PodScheduled");
    conditions.push(json!({ "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now }));
    pod["status"]["conditions"] = Value::Array(conditions);
}
