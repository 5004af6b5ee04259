//! The tolerations that every pod gets on admission (`DefaultTolerationSeconds`).

use serde_json::{Value, json};

/// Seconds that a pod stays on a node that is not ready or not reachable, unless it says otherwise.
const SECONDS: i64 = 300;

/// Lets a pod stay 300 s on a node that is not ready or not reachable, unless it has a toleration of its own for that.
pub fn add_default_tolerations(pod: &mut Value) {
    let spec = &mut pod["spec"];
    if !spec["tolerations"].is_array() {
        spec["tolerations"] = json!([]);
    }
    let Some(tolerations) = spec["tolerations"].as_array_mut() else { return };
    let missing: Vec<&str> = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]
        .into_iter()
        .filter(|key| !tolerations.iter().any(|toleration| tolerates_no_execute(toleration, key)))
        .collect();
    for key in missing {
        tolerations.push(json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS }));
    }
}

fn tolerates_no_execute(toleration: &Value, key: &str) -> bool {
    let text = |field: &str| toleration.get(field).and_then(Value::as_str).unwrap_or_default();
    (text("key") == key || text("key").is_empty()) && matches!(text("effect"), "NoExecute" | "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_tolerations_are_kept() {
        let mut pod = json!({ "spec": { "tolerations": [
            { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1 }
        ] } });
        add_default_tolerations(&mut pod);
        let seconds: Vec<i64> =
            pod["spec"]["tolerations"].as_array().unwrap().iter().map(|it| it["tolerationSeconds"].as_i64().unwrap()).collect();
        assert_eq!(seconds, [1, 300]);

        let mut tolerant = json!({ "spec": { "tolerations": [{ "operator": "Exists" }] } });
        let before = tolerant.clone();
        add_default_tolerations(&mut tolerant);
        assert_eq!(tolerant, before);
    }
}
