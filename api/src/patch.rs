//! The three kinds of patches that change an object by a document: JSON patch (RFC 6902), JSON merge patch (RFC 7396) and
//! Kubernetes' strategic merge patch.

mod json;
mod strategic;

use serde_json::Value;

pub use json::{OPERATIONS_LIMIT, json_patch};
pub use strategic::strategic_merge_patch;

/// Why a patch did not apply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// It is not a patch of its type (400 BadRequest).
    #[error("{0}")]
    Decode(String),
    /// It does not fit the object (422 Invalid).
    #[error("{0}")]
    Apply(String),
    /// It has more operations than are allowed (413 RequestEntityTooLarge).
    #[error("The allowed maximum operations in a JSON patch is {OPERATIONS_LIMIT}, got {0}")]
    TooManyOperations(usize),
}

/// RFC 7396: null removes a field, objects merge, everything else replaces.
pub fn merge_patch(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    if !patch.is_object() {
        return Err(PatchError::Decode("error decoding patch: a merge patch must be a JSON object".to_owned()));
    }
    let mut object = current.clone();
    json_patch::merge(&mut object, patch);
    Ok(object)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Small JSON objects, `null` only inside patches.
    fn object(leaf: BoxedStrategy<Value>) -> impl Strategy<Value = Value> {
        let value = leaf.prop_recursive(3, 16, 3, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map("[a-c]", inner, 0..3).prop_map(|map| json!(map)),
            ]
        });
        proptest::collection::btree_map("[a-c]", value, 0..3).prop_map(|map| json!(map))
    }

    fn leaf() -> BoxedStrategy<Value> {
        prop_oneof![any::<bool>().prop_map(Value::from), (0..3).prop_map(Value::from)].boxed()
    }

    /// The merge patch that leads from one object to another.
    fn difference(from: &Value, to: &Value) -> Value {
        let (Some(before), Some(after)) = (from.as_object(), to.as_object()) else { return to.clone() };
        let mut patch = serde_json::Map::new();
        for key in before.keys().filter(|key| !after.contains_key(*key)) {
            patch.insert(key.clone(), Value::Null);
        }
        for (key, value) in after {
            match before.get(key) {
                Some(old) if old == value => {}
                Some(old) if old.is_object() && value.is_object() => {
                    patch.insert(key.clone(), difference(old, value));
                }
                _ => {
                    patch.insert(key.clone(), value.clone());
                }
            }
        }
        Value::Object(patch)
    }

    proptest! {
        #[test]
        fn a_merge_patch_is_idempotent(
            current in object(leaf()),
            patch in object(prop_oneof![3 => leaf(), 1 => Just(Value::Null)].boxed()),
        ) {
            let once = merge_patch(&current, &patch).unwrap();
            prop_assert_eq!(merge_patch(&once, &patch).unwrap(), once);
        }

        #[test]
        fn a_difference_leads_from_one_to_the_other(from in object(leaf()), to in object(leaf())) {
            prop_assert_eq!(merge_patch(&from, &difference(&from, &to)).unwrap(), to);
        }
    }
}
