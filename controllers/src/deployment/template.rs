//! When two pod templates are the same, and the hash that names a ReplicaSet.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;

use crate::shared::ControllerError;
use crate::shared::error::Doing;

/// The label that tells the pods and ReplicaSets of one template from those of another.
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// Maps whose empty form means the same as their absence. (An empty `emptyDir` is no such thing.)
const PLAIN_MAPS: &[&str] = &["labels", "annotations", "nodeSelector", "limits", "requests", "matchLabels"];

/// Characters that cannot form words (apimachinery's `rand.SafeEncodeString`).
const SAFE_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Whether two templates are the same but for the hash label.
pub fn same_template(left: &PodTemplateSpec, right: &PodTemplateSpec) -> bool {
    match (comparable(left), comparable(right)) {
        (Ok(left), Ok(right)) => left == right,
        _ => false,
    }
}

/// The value of the hash label: ten or fewer safe characters. `collision_count` changes it when a name is taken.
pub fn template_hash(template: &PodTemplateSpec, collision_count: Option<i32>) -> Result<String, ControllerError> {
    let value = comparable(template).doing(|| "encoding the pod template".into())?;
    let collisions = collision_count.unwrap_or(0).to_le_bytes();
    // serde_json's maps are sorted, so equal templates have equal text.
    let hash = fnv1a(value.to_string().bytes().chain(collisions));
    Ok(safe_encode(&hash.to_string()))
}

fn comparable(template: &PodTemplateSpec) -> Result<Value, serde_json::Error> {
    let mut value = serde_json::to_value(template)?;
    if let Some(labels) = value.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(POD_TEMPLATE_HASH);
    }
    prune(&mut value);
    Ok(value)
}

/// Removes what means the same as its absence: nulls, empty lists, empty plain maps.
fn prune(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(prune);
            fields.retain(|name, field| match field {
                Value::Null => false,
                Value::Array(items) => !items.is_empty(),
                Value::Object(entries) => !(entries.is_empty() && PLAIN_MAPS.contains(&name.as_str())),
                _ => true,
            });
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}

/// FNV-1a, 32 bits.
fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u32 {
    bytes.into_iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn safe_encode(text: &str) -> String {
    text.bytes().map(|byte| char::from(SAFE_ALPHABET[usize::from(byte) % SAFE_ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(value: Value) -> PodTemplateSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn templates_differ_by_what_matters() {
        let base = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
        let with = |pointer: &str, value: Value| {
            let mut changed = base.clone();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            changed.pointer_mut(parent).unwrap()[key] = value;
            template(changed)
        };
        let base = template(base.clone());
        let cases = [
            (with("/metadata/labels/pod-template-hash", json!("5d8")), true),
            (with("/metadata/annotations", json!({})), true),
            (with("/spec/tolerations", json!([])), true),
            (with("/spec/volumes", json!([{"name": "v", "emptyDir": {}}])), false),
            (with("/metadata/labels/app", json!("db")), false),
            (with("/metadata/annotations", json!({"kubectl.kubernetes.io/restartedAt": "now"})), false),
            (with("/spec/containers", json!([{"name": "c", "image": "i:2"}])), false),
        ];
        for (other, same) in cases {
            assert_eq!(same_template(&base, &other), same, "{other:?}");
        }
        let volume = |source: Value| template(json!({"spec": {"containers": [], "volumes": [source]}}));
        let (empty, none) = (volume(json!({"name": "v", "emptyDir": {}})), volume(json!({"name": "v"})));
        assert!(!same_template(&empty, &none));
    }

    #[test]
    fn the_hash_is_stable_safe_and_changed_by_a_collision() {
        let web =
            template(json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}));
        let hash = template_hash(&web, None).unwrap();
        assert_eq!(hash, template_hash(&web, Some(0)).unwrap());
        assert_eq!(hash, "56fc7f495c", "the hash is part of names on disk and must not change");
        assert_ne!(hash, template_hash(&web, Some(1)).unwrap());
        assert!(hash.bytes().all(|byte| SAFE_ALPHABET.contains(&byte)));
    }
}
