//! `scale`: the replica count of a controller as an `autoscaling/v1` Scale.

use async_trait::async_trait;
use serde_json::{Map, Value, json};
use trireme_api::{field::FieldError, registry::Part, status::Status};

use crate::{
    ApiServer,
    answer::Answer,
    decode_body, metadata,
    request::ApiRequest,
    verbs::{
        create::check_namespace,
        patch::{PatchType, parse_body},
        update::changed,
    },
    write::{Current, Modification, Plan, Target},
};

/// Answers with the scale of an object.
///
/// # Errors
/// 404 when there is no such object.
pub async fn get(server: &ApiServer, request: &ApiRequest) -> Result<Answer, Status> {
    let target = target(request)?;
    let current = server.read_newest(&target).await?.ok_or_else(|| Status::not_found(&target.resource, &target.name))?;
    Ok(Answer::Value { code: 200, value: scale_of(&current.value) })
}

/// Takes the replica count of the Scale in the body.
///
/// # Errors
/// 400, 404, 409, 422, and what the store says.
pub async fn update(server: &ApiServer, request: &ApiRequest) -> Result<Answer, Status> {
    let scale = decode_body::parse(request.content_type.as_deref(), &request.body)?.value;
    write(server, request, Source::Scale(scale)).await
}

/// Patches the Scale.
///
/// # Errors
/// 400, 404, 409, 415, 422, and what the store says.
pub async fn patch(server: &ApiServer, request: &ApiRequest) -> Result<Answer, Status> {
    let patch_type = match PatchType::parse(request.content_type.as_deref())? {
        // A Scale has no lists: a strategic merge is a merge.
        PatchType::StrategicMerge => PatchType::Merge,
        other => other,
    };
    let patch = parse_body(request)?.value;
    write(server, request, Source::Patch { patch_type, patch }).await
}

async fn write(server: &ApiServer, request: &ApiRequest, source: Source) -> Result<Answer, Status> {
    let persistence = request.persistence()?;
    let target = target(request)?;
    let outcome = server.modify(&request.context, &target, persistence, &mut Scaling { source }).await?;
    let object: Value = serde_json::from_slice(outcome.json()).unwrap_or_default();
    Ok(Answer::Value { code: 200, value: scale_of(&object) })
}

fn target(request: &ApiRequest) -> Result<Target, Status> {
    Ok(Target {
        resource: request.resource.clone(),
        namespace: request.namespace.clone(),
        name: request.object_name()?.to_owned(),
    })
}

enum Source {
    Scale(Value),
    Patch { patch_type: PatchType, patch: Value },
}

struct Scaling {
    source: Source,
}

#[async_trait]
impl Modification for Scaling {
    async fn plan(&mut self, server: &ApiServer, target: &Target, current: Option<&Current>) -> Result<Plan, Status> {
        let current = current.ok_or_else(|| Status::not_found(&target.resource, &target.name))?;
        let mut scale = match &self.source {
            Source::Scale(scale) => scale.clone(),
            Source::Patch { patch_type, patch } => patch_type.apply(&server.schemas, "", &scale_of(&current.value), patch)?,
        };
        let mut new = current.value.clone();
        check_identity(&mut scale, target, current)?;
        let replicas = replicas(&scale, &target.name)?;
        if !new["spec"].is_object() {
            new["spec"] = json!({});
        }
        new["spec"]["replicas"] = json!(replicas);
        changed(server, target, new, current, Part::Main).await
    }
}

/// The Scale is of this object, as it is now.
fn check_identity(scale: &mut Value, target: &Target, current: &Current) -> Result<(), Status> {
    let name = metadata::name(scale);
    if name != target.name {
        return Err(Status::bad_request(if name.is_empty() {
            "name must be provided".to_owned()
        } else {
            format!("the name of the object ({name}) does not match the name on the URL ({})", target.name)
        }));
    }
    check_namespace(scale, target.namespace.as_deref())?;
    let (given, actual) = (metadata::text(scale, "uid"), metadata::text(&current.value, "uid"));
    if !given.is_empty() && given != actual {
        let why = format!("Precondition failed: UID in precondition: {given}, UID in object meta: {actual}");
        return Err(Status::conflict(&target.resource, &target.name, &why));
    }
    let given = metadata::text(scale, "resourceVersion");
    if !given.is_empty() && given != "0" && given != current.revision.to_string() {
        return Err(Status::stale(&target.resource, &target.name));
    }
    Ok(())
}

fn replicas(scale: &Value, name: &str) -> Result<i64, Status> {
    let value = scale.pointer("/spec/replicas").unwrap_or(&Value::Null);
    let replicas = match value {
        Value::Null => 0,
        value => value.as_i64().ok_or_else(|| {
            Status::bad_request("Scale in version \"v1\" cannot be handled as a Scale: spec.replicas is not an integer")
        })?,
    };
    if (0..=i64::from(i32::MAX)).contains(&replicas) {
        return Ok(replicas);
    }
    let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
    Err(Status::invalid_kind("autoscaling", "Scale", name, &[error]))
}

/// The Scale of a ReplicationController, a ReplicaSet or a Deployment.
pub fn scale_of(object: &Value) -> Value {
    let mut scale_metadata = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.get("metadata").and_then(|metadata| metadata.get(field)) {
            scale_metadata.insert(field.to_owned(), value.clone());
        }
    }
    let count = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": scale_metadata,
        "spec": { "replicas": count("/spec/replicas") },
        "status": { "replicas": count("/status/replicas"), "selector": selector_text(object) },
    })
}

/// The selector as a string: `app=web,tier in (a,b)`. A ReplicationController's is a plain map.
fn selector_text(object: &Value) -> String {
    let Some(selector) = object.pointer("/spec/selector").and_then(Value::as_object) else { return String::new() };
    let is_structured = selector.keys().any(|key| key == "matchLabels" || key == "matchExpressions");
    let labels = if is_structured { selector.get("matchLabels").and_then(Value::as_object) } else { Some(selector) };
    let mut terms: Vec<String> =
        labels.into_iter().flatten().filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?))).collect();
    let expressions = selector.get("matchExpressions").and_then(Value::as_array);
    terms.extend(expressions.into_iter().flatten().filter_map(expression_text));
    terms.join(",")
}

fn expression_text(expression: &Value) -> Option<String> {
    let key = expression.get("key")?.as_str()?;
    let values = expression.get("values").and_then(Value::as_array);
    let values = values.map(|values| values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")).unwrap_or_default();
    Some(match expression.get("operator")?.as_str()? {
        "In" => format!("{key} in ({values})"),
        "NotIn" => format!("{key} notin ({values})"),
        "Exists" => key.to_owned(),
        "DoesNotExist" => format!("!{key}"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_become_text() {
        let deployment = json!({ "spec": { "replicas": 3, "selector": {
            "matchLabels": { "app": "web", "a": "b" },
            "matchExpressions": [{ "key": "tier", "operator": "In", "values": ["x", "y"] }, { "key": "z", "operator": "DoesNotExist" }],
        } } });
        assert_eq!(scale_of(&deployment)["status"]["selector"], "a=b,app=web,tier in (x,y),!z");
        let controller = json!({ "spec": { "replicas": 2, "selector": { "app": "web" } }, "status": { "replicas": 1 } });
        let scale = scale_of(&controller);
        assert_eq!(scale["status"], json!({ "replicas": 1, "selector": "app=web" }));
        assert_eq!(scale["spec"]["replicas"], 2);
    }
}
