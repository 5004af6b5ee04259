//! The rules that hold for every object's `metadata` (`k8s.io/apimachinery/pkg/api/validation`).

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::{
    field::{FieldError, FieldErrorKind},
    names,
    registry::{Resource, Scope},
};

/// The most that all annotations of an object, keys and values, may take.
pub const ANNOTATIONS_LIMIT_BYTES: usize = 256 * 1024;

const IMMUTABLE: [&str; 6] = ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"];
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// Which rule the names of a kind follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    Dns1123Label,
    Dns1123Subdomain,
    Dns1035Label,
    PathSegment,
}

impl NameRule {
    /// The rule of a kind: most names are subdomains.
    pub fn of(resource: &Resource) -> Self {
        match (resource.group.as_ref(), resource.plural.as_ref()) {
            ("", "namespaces") => Self::Dns1123Label,
            ("", "services") => Self::Dns1035Label,
            ("rbac.authorization.k8s.io", _) => Self::PathSegment,
            _ => Self::Dns1123Subdomain,
        }
    }

    /// The reasons why `name` is not allowed.
    pub fn check(self, name: &str) -> Vec<String> {
        match self {
            Self::Dns1123Label => names::is_dns1123_label(name),
            Self::Dns1123Subdomain => names::is_dns1123_subdomain(name),
            Self::Dns1035Label => names::is_dns1035_label(name),
            Self::PathSegment => names::is_path_segment_name(name),
        }
    }
}

fn metadata(object: &Value) -> Option<&Map<String, Value>> {
    object.get("metadata").and_then(Value::as_object)
}

fn text<'a>(metadata: Option<&'a Map<String, Value>>, field: &str) -> &'a str {
    metadata.and_then(|metadata| metadata.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// Checks the metadata of an object that is to be created, its name already generated.
pub fn validate_create(resource: &Resource, object: &Value) -> Vec<FieldError> {
    let metadata = metadata(object);
    let mut errors = Vec::new();
    let rule = NameRule::of(resource);
    let generate_name = text(metadata, "generateName");
    if !generate_name.is_empty() {
        for message in rule.check(&names::mask_trailing_dash(generate_name)) {
            errors.push(FieldError::invalid("metadata.generateName", generate_name, message));
        }
    }
    let name = text(metadata, "name");
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        errors.extend(rule.check(name).into_iter().map(|message| FieldError::invalid("metadata.name", name, message)));
    }
    let namespace = text(metadata, "namespace");
    match resource.scope {
        Scope::Namespaced if namespace.is_empty() => errors.push(FieldError::required("metadata.namespace", "")),
        Scope::Namespaced => {
            let messages = names::is_dns1123_label(namespace).into_iter();
            errors.extend(messages.map(|message| FieldError::invalid("metadata.namespace", namespace, message)));
        }
        Scope::Cluster if !namespace.is_empty() => {
            errors.push(FieldError::forbidden("metadata.namespace", "not allowed on this type"));
        }
        Scope::Cluster => {}
    }
    errors.extend(validate_common(metadata));
    errors
}

/// Checks the metadata of an update of `old` by `new`. Fields that only the server sets must have been carried over into `new`
/// where the client left them out (see [`carry_over`]).
pub fn validate_update(_resource: &Resource, new: &Value, old: &Value) -> Vec<FieldError> {
    let (new, old) = (metadata(new), metadata(old));
    let field = |metadata: Option<&Map<String, Value>>, name: &str| metadata.and_then(|metadata| metadata.get(name)).cloned();
    let mut errors = Vec::new();
    if field(old, "deletionTimestamp").is_some_and(|time| !time.is_null()) {
        let finalizers = |metadata| -> BTreeSet<String> {
            let list = field(metadata, "finalizers");
            list.iter()
                .flat_map(|list| list.as_array().into_iter().flatten())
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect()
        };
        let added: Vec<String> = finalizers(new).difference(&finalizers(old)).map(|name| format!("\"{name}\"")).collect();
        if !added.is_empty() {
            let why = "no new finalizers can be added if the object is being deleted, found new finalizers";
            errors.push(FieldError::forbidden("metadata.finalizers", format!("{why} []string{{{}}}", added.join(", "))));
        }
    }
    let generation = |metadata| field(metadata, "generation").and_then(|generation| generation.as_i64()).unwrap_or_default();
    if generation(new) < generation(old) {
        errors.push(FieldError::invalid("metadata.generation", generation(new), "must not be decremented"));
    }
    for name in IMMUTABLE {
        let (after, before) = (field(new, name).unwrap_or_default(), field(old, name).unwrap_or_default());
        if after != before {
            errors.push(FieldError::invalid(format!("metadata.{name}"), after, "field is immutable"));
        }
    }
    errors.extend(validate_common(new));
    errors
}

/// Puts into an update what a client may leave out or cannot set: `uid` and `creationTimestamp` where they are missing, and
/// the deletion fields and `generation` always, as they were stored (`rest.BeforeUpdate`).
pub fn carry_over(new: &mut Value, old: &Value) {
    let Some(old) = metadata(old) else { return };
    let Some(new) = new.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    for field in ["uid", "creationTimestamp"] {
        let missing = new.get(field).is_none_or(|value| value.is_null() || value.as_str() == Some(""));
        if let (true, Some(value)) = (missing, old.get(field)) {
            new.insert(field.to_owned(), value.clone());
        }
    }
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink"] {
        match old.get(field) {
            Some(value) => new.insert(field.to_owned(), value.clone()),
            None => new.remove(field),
        };
    }
}

/// What holds on creation and update alike.
fn validate_common(metadata: Option<&Map<String, Value>>) -> Vec<FieldError> {
    let Some(metadata) = metadata else { return Vec::new() };
    let mut errors = Vec::new();
    if let Some(generation) = metadata.get("generation").and_then(Value::as_i64).filter(|generation| *generation < 0) {
        errors.push(FieldError::invalid("metadata.generation", generation, "must be greater than or equal to 0"));
    }
    if let Some(labels) = metadata.get("labels").and_then(Value::as_object) {
        errors.extend(validate_labels(labels, "metadata.labels"));
    }
    if let Some(annotations) = metadata.get("annotations").and_then(Value::as_object) {
        errors.extend(validate_annotations(annotations, "metadata.annotations"));
    }
    if let Some(owners) = metadata.get("ownerReferences") {
        errors.extend(validate_owner_references(owners));
    }
    if let Some(finalizers) = metadata.get("finalizers") {
        errors.extend(validate_finalizers(finalizers));
    }
    errors
}

/// Checks a map of labels, of an object or of a pod template, at `path`.
pub fn validate_labels(labels: &Map<String, Value>, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels {
        let messages = names::is_qualified_name(key).into_iter();
        errors.extend(messages.map(|message| FieldError::invalid(path, key.as_str(), message)));
        let value = value.as_str().unwrap_or_default();
        errors.extend(names::is_label_value(value).into_iter().map(|message| FieldError::invalid(path, value, message)));
    }
    errors
}

/// Checks a map of annotations, of an object or of a pod template, at `path`.
pub fn validate_annotations(annotations: &Map<String, Value>, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size_bytes = 0;
    for (key, value) in annotations {
        let messages = names::is_qualified_name(&key.to_lowercase()).into_iter();
        errors.extend(messages.map(|message| FieldError::invalid(path, key.as_str(), message)));
        size_bytes += key.len() + value.as_str().unwrap_or_default().len();
    }
    if size_bytes > ANNOTATIONS_LIMIT_BYTES {
        errors.push(FieldError {
            kind: FieldErrorKind::TooLong,
            path: path.to_owned(),
            value: None,
            detail: format!("may not be more than {ANNOTATIONS_LIMIT_BYTES} bytes"),
        });
    }
    errors
}

fn validate_owner_references(owners: &Value) -> Vec<FieldError> {
    let path = "metadata.ownerReferences";
    let mut errors = Vec::new();
    let mut controller: Option<String> = None;
    for owner in owners.as_array().into_iter().flatten() {
        let text = |field: &str| owner.get(field).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind, name) = (text("apiVersion"), text("kind"), text("name"));
        let slashes = api_version.matches('/').count();
        if api_version.is_empty() || api_version.ends_with('/') || slashes > 1 {
            errors.push(FieldError::invalid(format!("{path}.apiVersion"), api_version, "version must not be empty"));
        }
        for field in ["kind", "name", "uid"] {
            if text(field).is_empty() {
                errors.push(FieldError::invalid(format!("{path}.{field}"), "", "must not be empty"));
            }
        }
        if api_version == "v1" && kind == "Event" {
            let why = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(FieldError::invalid(path, owner.clone(), why));
        }
        if owner.get("controller").and_then(Value::as_bool) == Some(true) {
            let current = format!("{kind}/{name}");
            match &controller {
                Some(first) => {
                    let why = "Only one reference can have Controller set to true. Found \"true\" in references for";
                    errors.push(FieldError::invalid(path, owners.clone(), format!("{why} {first} and {current}")));
                }
                None => controller = Some(current),
            }
        }
    }
    errors
}

fn validate_finalizers(finalizers: &Value) -> Vec<FieldError> {
    let path = "metadata.finalizers";
    let listed: Vec<&str> = finalizers.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut errors = Vec::new();
    for finalizer in &listed {
        let messages = names::is_qualified_name(finalizer).into_iter();
        errors.extend(messages.map(|message| FieldError::invalid(path, *finalizer, message)));
    }
    if listed.contains(&ORPHAN) && listed.contains(&FOREGROUND) {
        let why = format!("finalizer {ORPHAN} and {FOREGROUND} cannot be both set");
        errors.push(FieldError::invalid(path, finalizers.clone(), why));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::resource;

    fn texts(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    fn created(metadata: Value) -> Vec<String> {
        texts(&validate_create(&resource("", "v1", "Pod", "pods", Scope::Namespaced), &json!({ "metadata": metadata })))
    }

    #[test]
    fn names_and_namespaces() {
        assert_eq!(created(json!({ "name": "a", "namespace": "b", "generateName": "web-" })), Vec::<String>::new());
        assert_eq!(
            created(json!({})),
            ["metadata.name: Required value: name or generateName is required", "metadata.namespace: Required value"]
        );
        let errors = created(json!({ "name": "A", "namespace": "b.c" }));
        assert!(errors[0].starts_with("metadata.name: Invalid value: \"A\": a lowercase RFC 1123 subdomain"), "{errors:?}");
        assert_eq!(errors[1], "metadata.namespace: Invalid value: \"b.c\": must not contain dots");
        let node = resource("", "v1", "Node", "nodes", Scope::Cluster);
        let errors = validate_create(&node, &json!({ "metadata": { "name": "a.b", "namespace": "c" } }));
        assert_eq!(texts(&errors), ["metadata.namespace: Forbidden: not allowed on this type"]);
        let namespace = resource("", "v1", "Namespace", "namespaces", Scope::Cluster);
        assert_eq!(validate_create(&namespace, &json!({ "metadata": { "name": "a.b" } })).len(), 1);
        let service = resource("", "v1", "Service", "services", Scope::Namespaced);
        assert_eq!(validate_create(&service, &json!({ "metadata": { "name": "1a", "namespace": "b" } })).len(), 1);
    }

    #[test]
    fn labels_annotations_finalizers_and_owners() {
        let with = |field: &str, value: Value| created(json!({ "name": "a", "namespace": "b", field: value }));
        assert!(with("labels", json!({ "a b": "c" }))[0].starts_with("metadata.labels: Invalid value: \"a b\": name part must"));
        assert!(with("labels", json!({ "a": "c d" }))[0].starts_with("metadata.labels: Invalid value: \"c d\": a valid label"));
        assert_eq!(with("annotations", json!({ "Example.com/A": "any text at all" })), Vec::<String>::new());
        assert_eq!(
            with("annotations", json!({ "a": "x".repeat(ANNOTATIONS_LIMIT_BYTES) })),
            ["metadata.annotations: Too long: may not be more than 262144 bytes"]
        );
        assert_eq!(with("annotations", json!({ "a": "x".repeat(ANNOTATIONS_LIMIT_BYTES - 1) })), Vec::<String>::new());
        assert_eq!(
            with("finalizers", json!(["orphan", "foregroundDeletion"])),
            ["metadata.finalizers: Invalid value: [\"orphan\",\"foregroundDeletion\"]: finalizer orphan and \
                 foregroundDeletion cannot be both set"]
        );
        assert_eq!(
            with("ownerReferences", json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "", "uid": "" }])),
            [
                "metadata.ownerReferences.name: Invalid value: \"\": must not be empty",
                "metadata.ownerReferences.uid: Invalid value: \"\": must not be empty"
            ]
        );
        let owner = |name: &str| json!({ "apiVersion": "v1", "kind": "X", "name": name, "uid": "u", "controller": true });
        let errors = with("ownerReferences", json!([owner("a"), owner("b")]));
        assert!(errors[0].ends_with("Found \"true\" in references for X/a and X/b"), "{errors:?}");
        assert!(
            with("ownerReferences", json!([{ "apiVersion": "v1", "kind": "Event", "name": "a", "uid": "u" }]))[0]
                .ends_with("/v1, Kind=Event is disallowed from being an owner")
        );
    }

    #[test]
    fn updates_keep_what_the_server_set() {
        let pod = resource("", "v1", "Pod", "pods", Scope::Namespaced);
        let old = json!({ "metadata": {
            "name": "a", "namespace": "b", "uid": "1", "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 2,
            "deletionTimestamp": "2026-01-02T00:00:00Z", "finalizers": ["x.y/z"],
        }});
        let mut new = json!({ "metadata": { "name": "a", "namespace": "b", "finalizers": [], "generation": 9 } });
        carry_over(&mut new, &old);
        assert_eq!(texts(&validate_update(&pod, &new, &old)), Vec::<String>::new());
        assert_eq!(new["metadata"]["uid"], "1");
        assert_eq!(new["metadata"]["generation"], 2);
        let mut changed = old.clone();
        changed["metadata"]["uid"] = json!("2");
        changed["metadata"]["finalizers"] = json!(["x.y/z", "new"]);
        assert_eq!(
            texts(&validate_update(&pod, &changed, &old)),
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new \
                 finalizers []string{\"new\"}",
                "metadata.uid: Invalid value: \"2\": field is immutable"
            ]
        );
    }
}
