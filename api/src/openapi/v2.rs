//! OpenAPI version 2 (Swagger): one document for everything, which older clients read.

use serde_json::{Map, Value, json};

use super::{
    definitions,
    operations::{self, Operation, code_text, common, path_parameter, query_parameter},
    rewrite,
};
use crate::{
    registry::{Registry, Resource},
    schema::{REFERENCE_PREFIX, Schemas},
};

const DEFINITIONS_PREFIX: &str = "#/definitions/";

/// The document at `/openapi/v2`, as JSON.
pub fn v2(registry: &Registry, schemas: &Schemas) -> Value {
    let mut paths = Map::new();
    for resource in registry.iter() {
        for (path, content) in operations::paths(registry, schemas, resource) {
            let mut item = Map::new();
            for operation in &content.operations {
                item.insert(operation.method.to_owned(), render(operation, resource));
            }
            let in_path = content.in_path.iter().map(|name| {
                json!({
                    "name": name,
                    "in": "path",
                    "required": true,
                    "type": "string",
                    "uniqueItems": true,
                    "description": path_parameter(name, &resource.kind),
                })
            });
            item.insert("parameters".to_owned(), in_path.chain([query("pretty")]).collect());
            paths.insert(path, Value::Object(item));
        }
    }
    let definitions: Map<String, Value> =
        definitions(registry, schemas).into_iter().map(|(name, schema)| (name, definition(schema))).collect();
    json!({
        "swagger": "2.0",
        "info": { "title": "Kubernetes", "version": "unversioned" },
        "paths": paths,
        "definitions": definitions,
    })
}

fn definition(mut schema: Value) -> Value {
    rewrite(&mut schema, &|object| {
        for unknown in ["x-kubernetes-int-or-string", "oneOf", "anyOf", "not", "nullable"] {
            object.remove(unknown);
        }
        if let Some(name) = object.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix(REFERENCE_PREFIX)) {
            let reference = format!("{DEFINITIONS_PREFIX}{name}");
            object.insert("$ref".to_owned(), Value::from(reference));
        }
    });
    schema
}

fn query(name: &str) -> Value {
    let (kind, description) = query_parameter(name);
    json!({ "name": name, "in": "query", "type": kind, "uniqueItems": true, "description": description })
}

fn render(operation: &Operation, resource: &Resource) -> Value {
    let mut fields = common(operation, resource);
    let reference = |name: &str| json!({ "$ref": format!("{DEFINITIONS_PREFIX}{name}") });
    let mut parameters: Vec<Value> = operation.query.iter().map(|name| query(name)).collect();
    if let Some(body) = &operation.body {
        fields.insert("consumes".to_owned(), json!(body.content_types));
        let mut parameter = json!({ "name": "body", "in": "body", "schema": reference(&body.schema) });
        if body.required {
            parameter["required"] = Value::Bool(true);
        }
        parameters.push(parameter);
    } else {
        fields.insert("consumes".to_owned(), json!(["*/*"]));
    }
    if !parameters.is_empty() {
        fields.insert("parameters".to_owned(), Value::Array(parameters));
    }
    let is_text = operation.responses.iter().any(|(_, schema)| schema.is_none());
    let mut produces = if is_text { vec!["text/plain"] } else { vec!["application/json", "application/yaml"] };
    if operation.action == "list" {
        produces.push("application/json;stream=watch");
    }
    fields.insert("produces".to_owned(), json!(produces));
    fields.insert("schemes".to_owned(), json!(["https"]));
    let answers = operation.responses.iter().map(|(code, schema)| {
        let schema = schema.as_deref().map_or_else(|| json!({ "type": "string" }), reference);
        (code.to_string(), json!({ "description": code_text(*code), "schema": schema }))
    });
    fields.insert("responses".to_owned(), Value::Object(answers.collect()));
    Value::Object(fields)
}
