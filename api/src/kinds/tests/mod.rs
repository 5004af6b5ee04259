//! Table tests over the whole registry: an object in, the stored object, the errors or the row out.

mod pods;
mod services;
mod small_kinds;
mod workloads;

use jiff::Timestamp;
use serde_json::Value;

use crate::registry::{AdmissionError, Part, Resource};

/// The time at which rows are shown.
pub fn now() -> Timestamp {
    "2026-01-02T00:00:00Z".parse().unwrap()
}

pub fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

pub fn with_resource<R>(group: &str, plural: &str, use_it: impl FnOnce(&Resource) -> R) -> R {
    let registry = super::registry();
    let resource = registry.get(group, "v1", plural).unwrap_or_else(|| panic!("{plural} is not registered"));
    use_it(resource)
}

pub fn create(group: &str, plural: &str, text: &str) -> Result<Value, AdmissionError> {
    with_resource(group, plural, |resource| resource.behaviour.create(yaml(text)))
}

pub fn created(group: &str, plural: &str, text: &str) -> Value {
    create(group, plural, text).unwrap_or_else(|error| panic!("{error:?}"))
}

pub fn update(group: &str, plural: &str, new: Value, old: &Value, part: Part) -> Result<Value, AdmissionError> {
    with_resource(group, plural, |resource| resource.behaviour.update(new, old, part))
}

/// What is wrong, one line an error.
pub fn errors(result: Result<Value, AdmissionError>) -> String {
    match result {
        Ok(_) => "none".to_owned(),
        Err(AdmissionError::Decode(message)) => message,
        Err(AdmissionError::Invalid(errors)) => errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
    }
}

/// A table as kubectl prints it with `-o wide`, cells separated by ` | `.
pub fn table(group: &str, plural: &str, objects: &[Value]) -> String {
    with_resource(group, plural, |resource| {
        let header: Vec<String> = resource.columns.iter().map(|column| column.name.to_uppercase()).collect();
        let mut lines = vec![header.join(" | ")];
        for object in objects {
            let cells = resource.behaviour.row(object, now());
            assert_eq!(cells.len(), header.len(), "a row has a cell for each column");
            let texts: Vec<String> =
                cells.iter().map(|cell| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned)).collect();
            lines.push(texts.join(" | "));
        }
        lines.join("\n")
    })
}
