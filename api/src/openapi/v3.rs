//! OpenAPI version 3: an index, and one document for each group version.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{
    INT_OR_STRING, QUANTITY, definitions, document_hash, group_path,
    operations::{self, Operation, code_text, common, path_parameter, query_parameter},
    references, rewrite,
};
use crate::{
    registry::{Registry, Resource},
    schema::{REFERENCE_PREFIX, Schemas},
};

const ANSWER_TYPES: &[&str] = &["application/json", "application/yaml"];

/// The document at `/openapi/v3`: the path of each group version's document, with a hash of its content.
pub fn v3_index(registry: &Registry, schemas: &Schemas) -> Value {
    let versions: BTreeSet<(String, String)> =
        registry.iter().map(|resource| (resource.group.to_string(), resource.version.to_string())).collect();
    let mut paths = Map::new();
    for (group, version) in versions {
        let path = group_path(&group, &version);
        let Some(document) = v3_group(registry, schemas, &group, &version) else { continue };
        let hash = document_hash(document.to_string().as_bytes());
        let entry = json!({ "serverRelativeURL": format!("/openapi/v3{path}?hash={hash}") });
        paths.insert(path.trim_start_matches('/').to_owned(), entry);
    }
    json!({ "paths": paths })
}

/// The document at `/openapi/v3/api/v1` or `/openapi/v3/apis/<group>/<version>`; none if there is no kind of that version.
pub fn v3_group(registry: &Registry, schemas: &Schemas, group: &str, version: &str) -> Option<Value> {
    let mut paths = Map::new();
    for resource in registry.iter().filter(|resource| resource.group == group && resource.version == version) {
        for (path, content) in operations::paths(registry, schemas, resource) {
            let mut item = Map::new();
            for operation in &content.operations {
                item.insert(operation.method.to_owned(), render(operation, resource));
            }
            item.insert("parameters".to_owned(), path_parameters(&content.in_path, resource));
            paths.insert(path, Value::Object(item));
        }
    }
    if paths.is_empty() {
        return None;
    }
    let all = definitions(registry, schemas);
    let paths = Value::Object(paths);
    let mut wanted = BTreeSet::new();
    references(&paths, &mut wanted);
    let mut components = Map::new();
    while let Some(name) = wanted.pop_first() {
        let Some(definition) = all.get(&name) else { continue };
        let mut inner = BTreeSet::new();
        references(definition, &mut inner);
        components.insert(name.clone(), component(&name, definition.clone()));
        wanted.extend(inner.into_iter().filter(|name| !components.contains_key(name)));
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": "unversioned" },
        "paths": paths,
        "components": { "schemas": components },
    }))
}

fn component(name: &str, mut schema: Value) -> Value {
    rewrite(&mut schema, &|object| {
        object.remove("x-kubernetes-int-or-string");
        if object.len() > 1 {
            // Beside a reference nothing else counts in version 3.
            if let Some(reference) = object.remove("$ref") {
                object.insert("allOf".to_owned(), json!([{ "$ref": reference }]));
            }
        }
    });
    let either = match name {
        INT_OR_STRING => ["integer", "string"],
        QUANTITY => ["string", "number"],
        _ => return schema,
    };
    if let Some(object) = schema.as_object_mut() {
        object.remove("type");
        object.insert("oneOf".to_owned(), either.iter().map(|kind| json!({ "type": kind })).collect());
    }
    schema
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("{REFERENCE_PREFIX}{name}") })
}

fn path_parameters(names: &[&str], resource: &Resource) -> Value {
    let in_path = names.iter().map(|name| {
        json!({
            "name": name,
            "in": "path",
            "required": true,
            "description": path_parameter(name, &resource.kind),
            "schema": { "type": "string", "uniqueItems": true },
        })
    });
    in_path.chain([query("pretty")]).collect()
}

fn query(name: &str) -> Value {
    let (kind, description) = query_parameter(name);
    json!({ "name": name, "in": "query", "description": description, "schema": { "type": kind, "uniqueItems": true } })
}

fn render(operation: &Operation, resource: &Resource) -> Value {
    let mut fields = common(operation, resource);
    if !operation.query.is_empty() {
        fields.insert("parameters".to_owned(), operation.query.iter().map(|name| query(name)).collect());
    }
    if let Some(body) = &operation.body {
        let content: Map<String, Value> = body
            .content_types
            .iter()
            .map(|content_type| ((*content_type).to_owned(), json!({ "schema": reference(&body.schema) })))
            .collect();
        let mut request = json!({ "content": content });
        if body.required {
            request["required"] = Value::Bool(true);
        }
        fields.insert("requestBody".to_owned(), request);
    }
    let responses: Map<String, Value> = operation
        .responses
        .iter()
        .map(|(code, schema)| {
            let content: Map<String, Value> = match schema {
                Some(name) => {
                    let streams: &[&str] = if operation.action == "list" { &["application/json;stream=watch"] } else { &[] };
                    let types = ANSWER_TYPES.iter().chain(streams);
                    types.map(|content_type| ((*content_type).to_owned(), json!({ "schema": reference(name) }))).collect()
                }
                None => [("text/plain".to_owned(), json!({ "schema": { "type": "string" } }))].into_iter().collect(),
            };
            (code.to_string(), json!({ "description": code_text(*code), "content": content }))
        })
        .collect();
    fields.insert("responses".to_owned(), Value::Object(responses));
    Value::Object(fields)
}
