//! JSON patch, with the refusals of the library that Kubernetes uses.

use json_patch::{PatchErrorKind, PatchOperation};
use serde_json::Value;

use super::PatchError;
use crate::decode::SIZE_LIMIT_BYTES;

/// The most operations that one JSON patch may have, as in kube-apiserver.
pub const OPERATIONS_LIMIT: usize = 10_000;

/// The most bytes that the `copy` operations of one patch may add together: three times the largest body. Without it a few
/// copies of copies would fill the memory.
const COPIED_LIMIT_BYTES: usize = 3 * SIZE_LIMIT_BYTES;

/// Applies the operations in order; either all of them or none.
pub fn json_patch(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    let Some(listed) = patch.as_array() else {
        return Err(PatchError::Decode("error decoding patch: a JSON patch must be a list of operations".to_owned()));
    };
    if listed.len() > OPERATIONS_LIMIT {
        return Err(PatchError::TooManyOperations(listed.len()));
    }
    let mut object = current.clone();
    let mut copied_bytes = 0;
    for operation in listed {
        let operation = decode(operation)?;
        if let PatchOperation::Copy(copy) = &operation {
            copied_bytes += object.pointer(copy.from.as_str()).map_or(0, |value| value.to_string().len());
            if copied_bytes > COPIED_LIMIT_BYTES {
                let why = "Unable to complete the copy, the accumulated size increase of copy is";
                return Err(PatchError::Apply(format!("{why} {copied_bytes}, exceeding the limit {COPIED_LIMIT_BYTES}")));
            }
        }
        // One by one on a copy of the object: an error leaves nothing half done, and its operation is known.
        json_patch::patch_unsafe(&mut object, std::slice::from_ref(&operation))
            .map_err(|error| PatchError::Apply(describe(&operation, &error.kind)))?;
    }
    Ok(object)
}

fn decode(operation: &Value) -> Result<PatchOperation, PatchError> {
    let name = operation.get("op").and_then(Value::as_str).unwrap_or_default();
    if !["add", "remove", "replace", "move", "copy", "test"].contains(&name) {
        return Err(PatchError::Apply(format!("Unexpected kind: {}", if name.is_empty() { "unknown" } else { name })));
    }
    let mut operation = operation.clone();
    if let (true, Some(fields)) = (matches!(name, "add" | "replace" | "test"), operation.as_object_mut()) {
        fields.entry("value").or_insert(Value::Null);
    }
    serde_json::from_value(operation).map_err(|error| PatchError::Decode(format!("error decoding patch: {error}")))
}

fn describe(operation: &PatchOperation, kind: &PatchErrorKind) -> String {
    let path = operation.path();
    match (operation, kind) {
        (PatchOperation::Test(_), _) => format!("testing value {path} failed: test failed"),
        (PatchOperation::Add(_), _) => format!("add operation does not apply: doc is missing path: \"{path}\": missing value"),
        (PatchOperation::Remove(_), _) => {
            let key = path.last().map(|token| token.decoded().into_owned()).unwrap_or_default();
            format!(
                "remove operation does not apply: doc is missing path: \"{path}\": Unable to remove nonexistent key: {key}: missing value"
            )
        }
        (PatchOperation::Replace(_), _) => {
            format!("replace operation does not apply: doc is missing path: {path}: missing value")
        }
        (PatchOperation::Move(_), PatchErrorKind::CannotMoveInsideItself) => format!("move operation does not apply: {kind}"),
        (PatchOperation::Move(operation), _) => {
            format!("move operation does not apply: doc is missing from path: {}: missing value", operation.from)
        }
        (PatchOperation::Copy(operation), _) => {
            format!("copy operation does not apply: doc is missing from path: {}: missing value", operation.from)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn operations() {
        let cases = [
            (json!({}), json!([{ "op": "add", "path": "/a", "value": 1 }]), Ok(json!({ "a": 1 }))),
            (json!({ "a": [1] }), json!([{ "op": "add", "path": "/a/-", "value": 2 }]), Ok(json!({ "a": [1, 2] }))),
            (json!({ "a": [1] }), json!([{ "op": "add", "path": "/a/0", "value": 2 }]), Ok(json!({ "a": [2, 1] }))),
            (json!({ "a/b": 1 }), json!([{ "op": "remove", "path": "/a~1b" }]), Ok(json!({}))),
            (json!({ "a": 1 }), json!([{ "op": "move", "from": "/a", "path": "/b" }]), Ok(json!({ "b": 1 }))),
            (json!({ "a": 1 }), json!([{ "op": "copy", "from": "/a", "path": "/b" }]), Ok(json!({ "a": 1, "b": 1 }))),
            (json!({ "a": 1 }), json!([{ "op": "replace", "path": "/a" }]), Ok(json!({ "a": null }))),
            (json!({ "a": 1 }), json!([{ "op": "test", "path": "/a", "value": 1 }]), Ok(json!({ "a": 1 }))),
            (json!({ "a": 1 }), json!([{ "op": "test", "path": "/a", "value": 2 }]), Err("testing value /a failed: test failed")),
            (
                json!({}),
                json!([{ "op": "add", "path": "/x", "value": 1 }, { "op": "add", "path": "/a/b", "value": 1 }]),
                Err("add operation does not apply: doc is missing path: \"/a/b\": missing value"),
            ),
            (
                json!({}),
                json!([{ "op": "replace", "path": "/a", "value": 1 }]),
                Err("replace operation does not apply: doc is missing path: /a: missing value"),
            ),
            (
                json!({}),
                json!([{ "op": "remove", "path": "/a" }]),
                Err(
                    "remove operation does not apply: doc is missing path: \"/a\": Unable to remove nonexistent key: a: missing value",
                ),
            ),
            (json!({}), json!([{ "op": "jump", "path": "/a" }]), Err("Unexpected kind: jump")),
        ];
        for (current, patch, expected) in cases {
            let result = json_patch(&current, &patch).map_err(|error| error.to_string());
            assert_eq!(result, expected.map_err(str::to_owned), "{patch}");
        }
        assert!(matches!(json_patch(&json!({}), &json!({})), Err(PatchError::Decode(_))));
        assert!(matches!(json_patch(&json!({}), &json!([{ "op": "remove", "path": "a" }])), Err(PatchError::Decode(_))));
        let doubling: Vec<Value> = (0..60).map(|_| json!({ "op": "copy", "from": "/a", "path": "/a/-" })).collect();
        let error = json_patch(&json!({ "a": ["x"] }), &json!(doubling)).unwrap_err();
        assert!(error.to_string().contains("exceeding the limit 9437184"), "{error}");
        let many = vec![json!({ "op": "test", "path": "" }); OPERATIONS_LIMIT + 1];
        assert_eq!(json_patch(&json!({}), &json!(many)), Err(PatchError::TooManyOperations(OPERATIONS_LIMIT + 1)));
    }
}
