//! The OpenAPI documents by which clients learn of kinds, fields and how patches merge: version 3 (an index and one document a
//! group version) and version 2 (one document, as JSON and as protobuf).
//!
//! [`operations`] says once which paths and verbs there are; [`v2()`] and [`v3`] write it down in either form.

mod operations;
mod protobuf;
mod v2;
mod v3;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

pub use protobuf::v2_protobuf;
pub use v2::v2;
pub use v3::{v3_group, v3_index};

use crate::{
    registry::{Registry, Resource},
    schema::{REFERENCE_PREFIX, Schemas},
};

const GVK: &str = "x-kubernetes-group-version-kind";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";

/// `/api/v1` or `/apis/apps/v1`.
fn group_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
}

/// A hash of a document's bytes, for `?hash=` and entity tags: upper-case hexadecimal SHA-512, as Kubernetes has it.
pub fn document_hash(bytes: &[u8]) -> String {
    Sha512::digest(bytes).iter().map(|byte| format!("{byte:02X}")).collect()
}

fn list_schema_name(resource: &Resource) -> String {
    format!("{}List", resource.schema_name)
}

/// The name of the schema of a subresource's kind, if there is one.
fn schema_of_kind(registry: &Registry, schemas: &Schemas, group: &str, version: &str, kind: &str) -> Option<String> {
    if let Some(resource) = registry.by_kind(group, version, kind) {
        return Some(resource.schema_name.to_string());
    }
    let first = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) };
    Some(format!("io.k8s.api.{first}.{version}.{kind}")).filter(|name| schemas.get(name).is_some())
}

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({ "group": group, "kind": kind, "version": version })
}

/// All definitions: the schemas, with the kinds that they are the schemas of, and the lists.
fn definitions(registry: &Registry, schemas: &Schemas) -> BTreeMap<String, Value> {
    let mut definitions: BTreeMap<String, Value> =
        schemas.iter().map(|(name, schema)| (name.to_owned(), schema.clone())).collect();
    let mut kinds: BTreeMap<String, BTreeSet<(String, String, String)>> = BTreeMap::new();
    let mut add = |name: String, group: &str, version: &str, kind: &str| {
        kinds.entry(name).or_default().insert((group.to_owned(), kind.to_owned(), version.to_owned()));
    };
    add(format!("{META}.Status"), "", "v1", "Status");
    for resource in registry.iter() {
        let (group, version) = (resource.group.as_ref(), resource.version.as_ref());
        add(resource.schema_name.to_string(), group, version, &resource.kind);
        let list = list_schema_name(resource);
        add(list.clone(), group, version, &format!("{}List", resource.kind));
        definitions.insert(list, list_schema(resource));
        add(format!("{META}.DeleteOptions"), group, version, "DeleteOptions");
        add(format!("{META}.WatchEvent"), group, version, "WatchEvent");
        for subresource in &resource.subresources {
            let (group, version, kind) = (&subresource.group, &subresource.version, &subresource.kind);
            if let Some(name) = schema_of_kind(registry, schemas, group, version, kind) {
                add(name, group, version, kind);
            }
        }
    }
    for (name, listed) in kinds {
        if let Some(definition) = definitions.get_mut(&name).and_then(Value::as_object_mut) {
            let listed = listed.iter().map(|(group, kind, version)| gvk(group, version, kind));
            definition.insert(GVK.to_owned(), listed.collect());
        }
    }
    definitions
}

fn list_schema(resource: &Resource) -> Value {
    let reference = |name: &str| format!("{REFERENCE_PREFIX}{name}");
    json!({
        "description": format!("{}List is a list of {} objects.", resource.kind, resource.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": { "type": "string", "description": "APIVersion defines the versioned schema of this representation of an object." },
            "items": {
                "type": "array",
                "description": format!("Items is the list of {} objects.", resource.kind),
                "items": { "$ref": reference(&resource.schema_name) },
            },
            "kind": { "type": "string", "description": "Kind is a string value representing the REST resource this object represents." },
            "metadata": { "$ref": reference(&format!("{META}.ListMeta")), "description": "Standard list metadata." },
        },
    })
}

/// Calls `change` with every object inside a schema that is a schema itself, the innermost first.
fn rewrite(schema: &mut Value, change: &impl Fn(&mut Map<String, Value>)) {
    let Some(object) = schema.as_object_mut() else { return };
    if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(|inner| rewrite(inner, change));
    }
    for one in ["items", "additionalProperties", "not"] {
        if let Some(inner) = object.get_mut(one) {
            rewrite(inner, change);
        }
    }
    for many in ["allOf", "anyOf", "oneOf"] {
        for inner in object.get_mut(many).and_then(Value::as_array_mut).into_iter().flatten() {
            rewrite(inner, change);
        }
    }
    change(object);
}

/// The names of all schemas that `value` refers to.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, inner) in object {
                match inner.as_str().and_then(|text| text.strip_prefix(REFERENCE_PREFIX)) {
                    Some(name) if key == "$ref" => {
                        found.insert(name.to_owned());
                    }
                    _ => references(inner, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|inner| references(inner, found)),
        _ => {}
    }
}

#[cfg(test)]
#[path = "openapi/tests.rs"]
mod tests;
