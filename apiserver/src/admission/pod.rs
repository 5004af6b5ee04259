//! What pods get from outside: a service account, a priority, tolerations of unwell nodes.

use serde_json::{Map, Value, json};
use trireme_api::{registry::Resource, status::Status};

use crate::{ApiServer, keys, write::Target};

/// How long a pod stays on a node that is not ready or not reachable, unless it says otherwise.
const TOLERATION_SECONDS: i64 = 300;
const UNWELL_TAINTS: &[&str] = &["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
const DEFAULT_ACCOUNT: &str = "default";

pub fn before_create(server: &ApiServer, target: &Target, pod: &mut Value) -> Result<(), Status> {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
        // A pod without a spec is refused by validation.
        return Ok(());
    };
    add_service_account(server, target, spec)?;
    add_default_tolerations(spec);
    add_priority(server, target, spec)
}

/// What a client that replaces a pod leaves out stays as it was.
pub fn before_update(new: &mut Value, old: &Value) {
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for field in ["priority", "preemptionPolicy"] {
        let is_missing = spec.get(field).is_none_or(Value::is_null);
        if let Some(value) = old["spec"].get(field).filter(|_| is_missing) {
            spec.insert(field.to_owned(), value.clone());
        }
    }
    add_default_tolerations(spec);
}

fn text<'a>(spec: &'a Map<String, Value>, field: &str) -> &'a str {
    spec.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// The default account's name; another account must exist.
fn add_service_account(server: &ApiServer, target: &Target, spec: &mut Map<String, Value>) -> Result<(), Status> {
    if text(spec, "serviceAccountName").is_empty() {
        let deprecated = text(spec, "serviceAccount");
        let name = if deprecated.is_empty() { DEFAULT_ACCOUNT } else { deprecated }.to_owned();
        spec.insert("serviceAccountName".to_owned(), json!(name));
    }
    let name = text(spec, "serviceAccountName").to_owned();
    spec.insert("serviceAccount".to_owned(), json!(name));
    let namespace = target.namespace.as_deref().unwrap_or_default();
    // The default account is made by a controller, which may be behind; others are named on purpose.
    let is_present = name == DEFAULT_ACCOUNT
        || server.registry.get("", "v1", "serviceaccounts").is_none()
        || server.cached("", "v1", "serviceaccounts", &keys::object_path(Some(namespace), &name)).is_some();
    if is_present {
        return Ok(());
    }
    let why = format!("error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found");
    Err(Status::forbidden(&target.resource, &target.name, &why))
}

/// Tolerations of `NoExecute` taints for a while (DefaultTolerationSeconds).
fn add_default_tolerations(spec: &mut Map<String, Value>) {
    let present = match spec.get("tolerations") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(present)) => present.clone(),
        // Decoding refuses it.
        Some(_) => return,
    };
    let mut tolerations = present.clone();
    for taint in UNWELL_TAINTS {
        let tolerates = |toleration: &Value| {
            let field = |name: &str| toleration.get(name).and_then(Value::as_str).unwrap_or_default();
            matches!(field("key"), "") && field("operator") == "Exists" && matches!(field("effect"), "" | "NoExecute")
                || field("key") == *taint && matches!(field("effect"), "" | "NoExecute")
        };
        if !present.iter().any(tolerates) {
            tolerations.push(json!({
                "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS,
            }));
        }
    }
    spec.insert("tolerations".to_owned(), Value::Array(tolerations));
}

/// What a PriorityClass gives.
struct Priority {
    class: String,
    value: i64,
    preemption: String,
}

/// The number behind the pod's PriorityClass, or that of the default class.
fn add_priority(server: &ApiServer, target: &Target, spec: &mut Map<String, Value>) -> Result<(), Status> {
    let Some(classes) = server.registry.get("scheduling.k8s.io", "v1", "priorityclasses") else { return Ok(()) };
    let forbidden = |why: String| Status::forbidden(&target.resource, &target.name, &why);
    let class = text(spec, "priorityClassName").to_owned();
    let priority = if class.is_empty() {
        default_priority(server, classes)
    } else {
        let found = server.cached("scheduling.k8s.io", "v1", "priorityclasses", &class);
        let found = found.ok_or_else(|| forbidden(format!("no PriorityClass with name {class} was found")))?;
        priority_of(class, &found.value())
    };
    if let Some(given) = spec.get("priority").and_then(Value::as_i64)
        && given != priority.value
    {
        return Err(forbidden(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed \
             {} from the given PriorityClass name",
            priority.value
        )));
    }
    if let Some(given) = spec.get("preemptionPolicy").and_then(Value::as_str)
        && given != priority.preemption
    {
        return Err(forbidden(format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller \
             computed {} from the given PriorityClass name",
            priority.preemption
        )));
    }
    if !priority.class.is_empty() {
        spec.insert("priorityClassName".to_owned(), json!(priority.class));
    }
    spec.insert("priority".to_owned(), json!(priority.value));
    spec.insert("preemptionPolicy".to_owned(), json!(priority.preemption));
    Ok(())
}

fn priority_of(class: String, object: &Value) -> Priority {
    let preemption = object.get("preemptionPolicy").and_then(Value::as_str).unwrap_or("PreemptLowerPriority").to_owned();
    Priority { class, value: object.get("value").and_then(Value::as_i64).unwrap_or(0), preemption }
}

/// The class that is marked as the global default; the lowest one when there are several.
fn default_priority(server: &ApiServer, classes: &Resource) -> Priority {
    let snapshot = server.caches.get(classes).map(|cache| cache.snapshot(server.caches.applied()));
    let defaults = snapshot.iter().flat_map(|snapshot| snapshot.iter(None, None)).filter_map(|object| {
        let value = object.value();
        (value.get("globalDefault") == Some(&Value::Bool(true))).then(|| priority_of(object.name.clone(), &value))
    });
    defaults.min_by_key(|priority| priority.value).unwrap_or(Priority {
        class: String::new(),
        value: 0,
        preemption: "PreemptLowerPriority".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tolerated(tolerations: Value) -> Vec<Value> {
        let mut spec = Map::new();
        spec.insert("tolerations".to_owned(), tolerations);
        add_default_tolerations(&mut spec);
        spec["tolerations"].as_array().cloned().expect("a list")
    }

    #[test]
    fn unwell_nodes_are_tolerated_for_a_while() {
        assert_eq!(tolerated(Value::Null).len(), 2);
        assert_eq!(tolerated(json!([{ "operator": "Exists" }])).len(), 1);
        let own = json!([{ "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5 }]);
        let both = tolerated(own);
        assert_eq!(both.len(), 2);
        assert_eq!(both[0]["tolerationSeconds"], 5);
        assert_eq!(both[1]["key"], "node.kubernetes.io/unreachable");
        let again = tolerated(Value::Array(both.clone()));
        assert_eq!(again, both);
    }
}
