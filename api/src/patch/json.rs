//! JSON patch, with the refusals of the library that Kubernetes uses.

use json_patch::{PatchErrorKind, PatchOperation};
use serde_json::Value;

use super::PatchError;
use crate::decode::{DEPTH_LIMIT, SIZE_LIMIT_BYTES};

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
        check_depth(&object, &operation)?;
        // One by one on a copy of the object: an error leaves nothing half done, and its operation is known.
        json_patch::patch_unsafe(&mut object, std::slice::from_ref(&operation))
            .map_err(|error| PatchError::Apply(describe(&operation, &error.kind)))?;
    }
    Ok(object)
}

/// Operations compose: each may be shallow and all together nest without end, and a value too deep to be walked through can
/// not even be dropped. So none is carried out that would nest deeper than a body may.
fn check_depth(object: &Value, operation: &PatchOperation) -> Result<(), PatchError> {
    let moved = |from: &str| object.pointer(from);
    let (path, value) = match operation {
        PatchOperation::Add(add) => (&add.path, Some(&add.value)),
        PatchOperation::Replace(replace) => (&replace.path, Some(&replace.value)),
        PatchOperation::Move(step) => (&step.path, moved(step.from.as_str())),
        PatchOperation::Copy(copy) => (&copy.path, moved(copy.from.as_str())),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => return Ok(()),
    };
    let room = DEPTH_LIMIT.checked_sub(path.count());
    if room.is_some_and(|room| value.is_none_or(|value| fits(value, room))) {
        return Ok(());
    }
    Err(PatchError::Apply(format!("{} nests deeper than {DEPTH_LIMIT} levels", path.as_str().get(..80).unwrap_or(path.as_str()))))
}

/// Whether a value has no more than `room` levels of lists and maps.
fn fits(value: &Value, room: usize) -> bool {
    match value {
        Value::Array(items) => room > 0 && items.iter().all(|item| fits(item, room - 1)),
        Value::Object(fields) => room > 0 && fields.values().all(|field| fits(field, room - 1)),
        _ => true,
    }
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

    fn nested(levels: usize) -> Value {
        (0..levels).fold(json!(1), |inner, _| json!({ "a": inner }))
    }

    #[test]
    fn operations_do_not_nest_without_end() {
        let deep = |levels: usize| "/a".repeat(levels);
        let refused = |current: &Value, operations: Value| {
            let error = json_patch(current, &operations).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("nests deeper than 100 levels"), "{error}");
        };
        // As deep as a body may be, and one deeper.
        let fitting = json_patch(&nested(50), &json!([{ "op": "add", "path": deep(50), "value": nested(50) }]));
        assert_eq!(fitting, Ok(nested(100)));
        refused(&nested(50), json!([{ "op": "add", "path": deep(50), "value": nested(51) }]));
        refused(&nested(50), json!([{ "op": "replace", "path": deep(50), "value": nested(51) }]));
        let (pair, step) = (json!({ "a": nested(60), "b": nested(60) }), deep(45));
        refused(&pair, json!([{ "op": "copy", "from": "/b", "path": step }]));
        refused(&pair, json!([{ "op": "move", "from": "/b", "path": step }]));
        // A thousand small steps down.
        let steps: Vec<Value> = (1..1000).map(|level| json!({ "op": "add", "path": deep(level), "value": {} })).collect();
        refused(&json!({}), json!(steps));
        let wrapped: Vec<Value> = (0..1000)
            .flat_map(|_| {
                [
                    json!({ "op": "add", "path": "/x", "value": {} }),
                    json!({ "op": "move", "from": "/a", "path": "/x/a" }),
                    json!({ "op": "move", "from": "/x", "path": "/a" }),
                ]
            })
            .collect();
        refused(&json!({ "a": {} }), json!(wrapped));
    }

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
