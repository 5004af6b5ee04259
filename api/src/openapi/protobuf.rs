//! The version 2 document as protobuf: gnostic's `openapi.v2.Document`, which kubectl asks for. Numbers are those of the fields
//! in gnostic's `OpenAPIv2.proto`; what our own documents never hold is not written.

use serde_json::{Map, Value};

/// Writes the document that [`super::v2()`] made.
pub fn v2_protobuf(document: &Value) -> Vec<u8> {
    let mut message = Message::default();
    message.text(1, document.get("swagger"));
    if let Some(info) = document.get("info") {
        let mut inner = Message::default();
        inner.text(1, info.get("title"));
        inner.text(2, info.get("version"));
        message.message(2, &inner);
    }
    let mut paths = Message::default();
    for (path, item) in entries(document.get("paths")) {
        paths.named(2, path, &path_item(item));
    }
    message.message(8, &paths);
    let mut definitions = Message::default();
    for (name, definition) in entries(document.get("definitions")) {
        definitions.named(1, name, &schema(definition));
    }
    message.message(9, &definitions);
    message.bytes
}

/// A protobuf message in the making.
#[derive(Default)]
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    fn delimited(&mut self, field: u64, content: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(content.len() as u64);
        self.bytes.extend_from_slice(content);
    }

    fn message(&mut self, field: u64, inner: &Message) {
        self.delimited(field, &inner.bytes);
    }

    /// A text; nothing if there is none.
    fn text(&mut self, field: u64, value: Option<&Value>) {
        if let Some(text) = value.and_then(Value::as_str).filter(|text| !text.is_empty()) {
            self.delimited(field, text.as_bytes());
        }
    }

    fn texts(&mut self, field: u64, value: Option<&Value>) {
        for text in items(value).filter_map(Value::as_str) {
            self.delimited(field, text.as_bytes());
        }
    }

    fn flag(&mut self, field: u64, value: Option<&Value>) {
        if value.and_then(Value::as_bool) == Some(true) {
            self.varint(field << 3);
            self.varint(1);
        }
    }

    fn integer(&mut self, field: u64, value: Option<&Value>) {
        if let Some(number) = value.and_then(Value::as_i64) {
            self.varint(field << 3);
            self.varint(number as u64);
        }
    }

    fn double(&mut self, field: u64, value: Option<&Value>) {
        if let Some(number) = value.and_then(Value::as_f64) {
            self.varint(field << 3 | 1);
            self.bytes.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// An entry of what is a map in JSON: (1: name, 2: value).
    fn named(&mut self, field: u64, name: &str, value: &Message) {
        let mut entry = Message::default();
        entry.delimited(1, name.as_bytes());
        entry.message(2, value);
        self.message(field, &entry);
    }

    /// All `x-` fields, each as YAML, of which JSON is a part.
    fn extensions(&mut self, field: u64, object: &Value) {
        for (name, value) in entries(Some(object)).filter(|(name, _)| name.starts_with("x-")) {
            self.named(field, name, &any(value));
        }
    }
}

fn entries(value: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    value.and_then(Value::as_object).into_iter().flat_map(Map::iter)
}

fn items(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

fn any(value: &Value) -> Message {
    let mut message = Message::default();
    message.delimited(2, value.to_string().as_bytes());
    message
}

fn path_item(item: &Value) -> Message {
    let mut message = Message::default();
    for (field, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (6, "options"), (7, "head"), (8, "patch")] {
        if let Some(found) = item.get(method) {
            message.message(field, &operation(found));
        }
    }
    for found in items(item.get("parameters")) {
        message.message(9, &parameters_item(found));
    }
    message.extensions(10, item);
    message
}

fn operation(operation: &Value) -> Message {
    let mut message = Message::default();
    message.texts(1, operation.get("tags"));
    message.text(3, operation.get("description"));
    message.text(5, operation.get("operationId"));
    message.texts(6, operation.get("produces"));
    message.texts(7, operation.get("consumes"));
    for found in items(operation.get("parameters")) {
        message.message(8, &parameters_item(found));
    }
    let mut responses = Message::default();
    for (code, found) in entries(operation.get("responses")) {
        let mut response = Message::default();
        response.text(1, found.get("description"));
        if let Some(found) = found.get("schema") {
            let mut item = Message::default();
            item.message(1, &schema(found));
            response.message(2, &item);
        }
        let mut value = Message::default();
        value.message(1, &response);
        responses.named(1, code, &value);
    }
    message.message(9, &responses);
    message.texts(10, operation.get("schemes"));
    message.extensions(13, operation);
    message
}

/// `ParametersItem { Parameter { BodyParameter | NonBodyParameter { query | path } } }`.
fn parameters_item(parameter: &Value) -> Message {
    let location = parameter.get("in").and_then(Value::as_str).unwrap_or_default();
    let mut wrapped = Message::default();
    let mut inner = Message::default();
    if location == "body" {
        inner.text(1, parameter.get("description"));
        inner.text(2, parameter.get("name"));
        inner.text(3, parameter.get("in"));
        inner.flag(4, parameter.get("required"));
        if let Some(found) = parameter.get("schema") {
            inner.message(5, &schema(found));
        }
        wrapped.message(1, &inner);
    } else {
        inner.flag(1, parameter.get("required"));
        inner.text(2, parameter.get("in"));
        inner.text(3, parameter.get("description"));
        inner.text(4, parameter.get("name"));
        // A query parameter has one field more (allow_empty_value) before its type.
        let (kind, shift) = if location == "query" { (3, 1) } else { (4, 0) };
        inner.text(5 + shift, parameter.get("type"));
        inner.text(6 + shift, parameter.get("format"));
        inner.flag(19 + shift, parameter.get("uniqueItems"));
        let mut other = Message::default();
        other.message(kind, &inner);
        wrapped.message(2, &other);
    }
    let mut item = Message::default();
    item.message(1, &wrapped);
    item
}

fn schema(schema_value: &Value) -> Message {
    let get = |name: &str| schema_value.get(name);
    let mut message = Message::default();
    message.text(1, get("$ref"));
    message.text(2, get("format"));
    message.text(3, get("title"));
    message.text(4, get("description"));
    if let Some(default) = get("default") {
        message.message(5, &any(default));
    }
    message.double(7, get("maximum"));
    message.double(9, get("minimum"));
    message.integer(11, get("maxLength"));
    message.integer(12, get("minLength"));
    message.text(13, get("pattern"));
    message.integer(14, get("maxItems"));
    message.integer(15, get("minItems"));
    message.flag(16, get("uniqueItems"));
    message.texts(19, get("required"));
    for value in items(get("enum")) {
        message.message(20, &any(value));
    }
    if let Some(found) = get("additionalProperties") {
        let mut item = Message::default();
        match found {
            Value::Bool(_) => item.flag(2, Some(found)),
            _ => item.message(1, &schema(found)),
        }
        message.message(21, &item);
    }
    if let Some(kind) = get("type") {
        let mut item = Message::default();
        item.text(1, Some(kind));
        message.message(22, &item);
    }
    if let Some(found) = get("items") {
        let mut item = Message::default();
        item.message(1, &schema(found));
        message.message(23, &item);
    }
    for found in items(get("allOf")) {
        message.message(24, &schema(found));
    }
    if get("properties").is_some() {
        let mut properties = Message::default();
        for (name, found) in entries(get("properties")) {
            properties.named(1, name, &schema(found));
        }
        message.message(25, &properties);
    }
    message.extensions(31, schema_value);
    message
}
