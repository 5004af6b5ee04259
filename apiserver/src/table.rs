//! `meta.k8s.io` Tables and metadata-only objects.

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use trireme_api::{registry::Resource, status::Status};

/// What a row of a table carries of its object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

impl IncludeObject {
    /// Reads the `includeObject` parameter.
    ///
    /// # Errors
    /// 400 for a value that is none of the three.
    pub fn parse(text: Option<&str>) -> Result<Self, Status> {
        match text {
            None | Some("" | "Metadata") => Ok(Self::Metadata),
            Some("None") => Ok(Self::None),
            Some("Object") => Ok(Self::Object),
            Some(other) => Err(Status::bad_request(format!("unrecognized includeObject value: {other:?}"))),
        }
    }
}

/// The metadata of a list.
pub fn list_metadata(revision: &str, continue_token: Option<&str>, remaining: Option<u64>) -> Value {
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".to_owned(), json!(revision));
    if let Some(token) = continue_token {
        metadata.insert("continue".to_owned(), json!(token));
    }
    if let Some(remaining) = remaining {
        metadata.insert("remainingItemCount".to_owned(), json!(remaining));
    }
    Value::Object(metadata)
}

/// An object without anything but its metadata.
pub fn partial_metadata(object: &Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

/// The column definitions of a resource.
pub fn columns(resource: &Resource) -> Value {
    resource
        .columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name,
                "type": column.column_type,
                "format": column.format,
                "description": column.description,
                "priority": column.priority,
            })
        })
        .collect()
}

/// One object's row.
pub fn row(resource: &Resource, object: &Value, include: IncludeObject, now: Timestamp, version: &str) -> Value {
    let mut row = Map::new();
    row.insert("cells".to_owned(), Value::Array(resource.behaviour.row(object, now)));
    let carried = match include {
        IncludeObject::None => None,
        IncludeObject::Metadata => Some(partial_metadata(object, version)),
        IncludeObject::Object => Some(object.clone()),
    };
    if let Some(carried) = carried {
        row.insert("object".to_owned(), carried);
    }
    Value::Object(row)
}

/// A whole table.
pub fn table(
    resource: &Resource,
    rows: Vec<Value>,
    revision: &str,
    continue_token: Option<&str>,
    remaining: Option<u64>,
    version: &str,
) -> Value {
    json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": list_metadata(revision, continue_token, remaining),
        "columnDefinitions": columns(resource),
        "rows": rows,
    })
}
