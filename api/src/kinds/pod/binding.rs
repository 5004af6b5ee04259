//! The `binding` subresource: a pod gets its node.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::field::FieldError;

/// Why a pod was not bound.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BindError {
    /// The Binding is not a valid one (422).
    #[error("the binding is invalid")]
    Invalid(Vec<FieldError>),
    /// The pod cannot be bound any more, or not yet (409, of `pods/binding`).
    #[error("{0}")]
    Conflict(String),
}

/// Gives `pod` the node that a `v1.Binding` names: sets `spec.nodeName`, the condition `PodScheduled`, and the binding's
/// labels and annotations.
///
/// # Errors
/// [`BindError::Invalid`] for a binding that names no node; [`BindError::Conflict`] for a pod that has a node already, is
/// being deleted, or has scheduling gates.
pub fn bind(pod: &mut Value, binding: &Value, now: Timestamp) -> Result<(), BindError> {
    let target = |field: &str| binding.pointer(&format!("/target/{field}")).and_then(Value::as_str).unwrap_or_default();
    let mut errors = Vec::new();
    let kind = target("kind");
    if !kind.is_empty() && kind != "Node" {
        errors.push(FieldError::not_supported("target.kind", kind, &["Node", "<empty>"]));
    }
    let node = target("name").to_owned();
    if node.is_empty() {
        errors.push(FieldError::required("target.name", ""));
    }
    if !errors.is_empty() {
        return Err(BindError::Invalid(errors));
    }
    let name = pod.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if pod.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null()) {
        return Err(BindError::Conflict(format!("pod {name} is being deleted, cannot be assigned to a host")));
    }
    if let Some(assigned) = pod.pointer("/spec/nodeName").and_then(Value::as_str).filter(|node| !node.is_empty()) {
        return Err(BindError::Conflict(format!("pod {name} is already assigned to node \"{assigned}\"")));
    }
    let gates = pod.pointer("/spec/schedulingGates").and_then(Value::as_array);
    if gates.is_some_and(|gates| !gates.is_empty()) {
        return Err(BindError::Conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
    }
    pod["spec"]["nodeName"] = json!(node);
    for field in ["annotations", "labels"] {
        let Some(added) = binding.pointer(&format!("/metadata/{field}")).and_then(Value::as_object) else { continue };
        if let Some(entries) = child_map(&mut pod["metadata"], field) {
            entries.extend(added.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
    }
    set_scheduled(pod, now);
    Ok(())
}

fn child_map<'a>(parent: &'a mut Value, field: &str) -> Option<&'a mut Map<String, Value>> {
    let child = &mut parent[field];
    if !child.is_object() {
        *child = json!({});
    }
    child.as_object_mut()
}

fn set_scheduled(pod: &mut Value, now: Timestamp) {
    let time = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = json!({ "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": time });
    let conditions = &mut pod["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(conditions) = conditions.as_array_mut() else { return };
    match conditions.iter_mut().find(|condition| condition["type"] == "PodScheduled") {
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().unwrap()
    }

    #[test]
    fn a_pod_is_bound_once() {
        let mut pod = json!({ "metadata": { "name": "a" }, "spec": {}, "status": { "phase": "Pending" } });
        let binding =
            json!({ "metadata": { "name": "a", "annotations": { "k": "v" } }, "target": { "kind": "Node", "name": "n" } });
        bind(&mut pod, &binding, now()).unwrap();
        assert_eq!(pod["spec"]["nodeName"], "n");
        assert_eq!(pod["metadata"]["annotations"]["k"], "v");
        assert_eq!(pod["status"]["conditions"][0]["lastTransitionTime"], "2026-01-02T03:04:05Z");
        let again = bind(&mut pod, &binding, now()).unwrap_err();
        assert_eq!(again.to_string(), "pod a is already assigned to node \"n\"");
    }

    #[test]
    fn a_binding_names_a_node() {
        let mut pod = json!({ "metadata": { "name": "a" } });
        let BindError::Invalid(errors) = bind(&mut pod, &json!({ "target": { "kind": "Pod" } }), now()).unwrap_err() else {
            panic!("a pod was bound to a pod");
        };
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            ["target.kind: Unsupported value: \"Pod\": supported values: \"Node\", \"<empty>\"", "target.name: Required value"]
        );
    }
}
