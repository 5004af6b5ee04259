//! From JSON to typed objects and back, with the messages of Go's `encoding/json` for values of the wrong type.

use k8s_openapi::Resource;
use schemars::{JsonSchema, SchemaGenerator};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::registry::AdmissionError;

/// Decodes an object. Unknown fields fall away, `null` is as good as nothing; a wrong type gives the message of a 400
/// response.
pub fn decode<T: DeserializeOwned + Resource + JsonSchema>(value: &Value) -> Result<T, AdmissionError> {
    if let Ok(object) = T::deserialize(value) {
        return Ok(object);
    }
    let mut without_nulls = value.clone();
    sparing_opaque(&mut without_nulls, T::KIND, remove_nulls);
    T::deserialize(&without_nulls).map_err(|_| AdmissionError::Decode(cannot_be_handled::<T>(&explain::<T>(&without_nulls))))
}

fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

/// `Pod in version "v1" cannot be handled as a Pod: …`.
pub fn cannot_be_handled<T: Resource>(why: &str) -> String {
    format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {why}", kind = T::KIND, version = T::VERSION)
}

/// Encodes an object as Go's `omitempty` would: without empty lists and maps, except those that are never omitted.
pub fn encode<T: Serialize>(object: &T) -> Result<Value, AdmissionError> {
    let mut value =
        serde_json::to_value(object).map_err(|error| AdmissionError::Decode(format!("object cannot be encoded: {error}")))?;
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    sparing_opaque(&mut value, &kind, omit_empty);
    Ok(value)
}

/// Fields that hold anything at all and that nobody but their owner understands: kind and name.
const OPAQUE: &[(&str, &str)] = &[("ControllerRevision", "data")];

/// Changes an object, but for its opaque fields.
fn sparing_opaque(value: &mut Value, kind: &str, change: impl FnOnce(&mut Value)) {
    let opaque = OPAQUE.iter().find(|(owner, _)| *owner == kind).map(|(_, field)| *field);
    let kept = opaque.and_then(|field| Some((field, value.as_object_mut()?.remove(field)?)));
    change(value);
    if let (Some((field, kept)), Some(fields)) = (kept, value.as_object_mut()) {
        fields.insert(field.to_owned(), kept);
    }
}

/// Lists that Kubernetes prints even when they are empty.
const KEPT_LISTS: &[&str] = &["containers", "endpoints"];

/// Fields that are maps, not structures: an empty structure means something (`emptyDir: {}`), an empty map does not.
const MAPS: &[&str] = &[
    "allocatable",
    "allocatedResources",
    "annotations",
    "binaryData",
    "capacity",
    "data",
    "labels",
    "limits",
    "matchLabels",
    "nodeSelector",
    "overhead",
    "requests",
];

fn omit_empty(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, field| {
                omit_empty(field);
                match field {
                    Value::Array(items) => !items.is_empty() || KEPT_LISTS.contains(&name.as_str()),
                    Value::Object(entries) => !entries.is_empty() || !MAPS.contains(&name.as_str()),
                    _ => true,
                }
            });
        }
        Value::Array(items) => items.iter_mut().for_each(omit_empty),
        _ => {}
    }
}

/// Decodes once more, watching the path, and words what went wrong as Go does.
fn explain<T: DeserializeOwned + Resource + JsonSchema>(value: &Value) -> String {
    let Err(error) = serde_path_to_error::deserialize::<_, T>(value) else {
        return "the object cannot be decoded".to_owned();
    };
    let path: Vec<String> = error.path().iter().filter_map(field_name).collect();
    let message = error.inner().to_string();
    let Some((found, expected)) = parse_message(&message) else {
        return message;
    };
    let (structure, path) = innermost_structure::<T>(&path);
    let target = go_type(expected);
    if path.is_empty() {
        return format!("json: cannot unmarshal {found} into Go value of type v1.{}", T::KIND);
    }
    format!("json: cannot unmarshal {found} into Go struct field {structure}.{} of type {target}", path.join("."))
}

fn field_name(segment: &serde_path_to_error::Segment) -> Option<String> {
    match segment {
        serde_path_to_error::Segment::Map { key } => Some(key.clone()),
        _ => None,
    }
}

/// Splits `invalid type: string "x", expected i32` into Go's word for what was found, and what was expected.
fn parse_message(message: &str) -> Option<(String, &str)> {
    let rest = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "))?;
    let (found, expected) = rest.rsplit_once(", expected ")?;
    let number = |text: &str| text.split('`').nth(1).map_or_else(|| "number".to_owned(), |digits| format!("number {digits}"));
    let found = match found.split_whitespace().next()? {
        "string" => "string".to_owned(),
        "boolean" => "bool".to_owned(),
        "integer" if message.starts_with("invalid value") => number(found),
        "integer" => "number".to_owned(),
        "floating" => number(found),
        "sequence" => "array".to_owned(),
        "map" => "object".to_owned(),
        other => other.to_owned(),
    };
    Some((found, expected))
}

fn go_type(expected: &str) -> String {
    match expected {
        "i32" => "int32".to_owned(),
        "i64" => "int64".to_owned(),
        "f64" => "float64".to_owned(),
        "a boolean" => "bool".to_owned(),
        "a string" | "string" => "string".to_owned(),
        "a map" => "map[string]string".to_owned(),
        "a sequence" => "[]string".to_owned(),
        other => format!("v1.{other}"),
    }
}

/// The structure that holds the last field of the path, and the path without keys of maps, both found in the schema of `T`.
fn innermost_structure<T: JsonSchema + Resource>(path: &[String]) -> (String, Vec<String>) {
    let mut generator = SchemaGenerator::default();
    let root = generator.subschema_for::<T>();
    let definitions = generator.definitions();
    let mut structure = T::KIND.to_owned();
    let mut holder = structure.clone();
    let mut fields = Vec::new();
    let mut schema: Option<&Map<String, Value>> =
        root.as_object().and_then(|object| resolve(object, definitions, &mut structure));
    for segment in path {
        let property = schema.and_then(|schema| schema.get("properties")?.get(segment));
        if property.is_some() {
            holder.clone_from(&structure);
            fields.push(segment.clone());
        }
        let next = property.or_else(|| schema.and_then(|schema| schema.get("additionalProperties")));
        schema = next.and_then(Value::as_object).and_then(|object| resolve(object, definitions, &mut structure));
    }
    (holder, fields)
}

/// Follows references, list items and `allOf` to an object schema, and notes the name it went by.
fn resolve<'a>(
    mut schema: &'a Map<String, Value>,
    definitions: &'a Map<String, Value>,
    structure: &mut String,
) -> Option<&'a Map<String, Value>> {
    for _ in 0..8 {
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            let name = reference.rsplit('/').next()?;
            *structure = name.rsplit('.').next()?.to_owned();
            schema = definitions.get(name)?.as_object()?;
        } else if let Some(items) = schema.get("items").and_then(Value::as_object) {
            schema = items;
        } else if let Some(inner) = schema.get("allOf").and_then(|all| all.get(0)).and_then(Value::as_object) {
            schema = inner;
        } else {
            return Some(schema);
        }
    }
    None
}
