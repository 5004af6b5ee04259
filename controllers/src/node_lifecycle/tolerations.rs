//! How long a pod may stay on a node with NoExecute taints.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Taint, Toleration};

/// How long a pod may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    Forever,
    /// This long after the taints were first seen.
    For(Duration),
}

/// How long a pod with these tolerations may stay on a node with these taints, of which NoExecute ones count: not at all if one
/// of them is not tolerated, else as long as the shortest of the tolerations that are used.
pub fn stay(taints: &[Taint], tolerations: &[Toleration]) -> Stay {
    let mut shortest = Stay::Forever;
    for taint in taints.iter().filter(|taint| taint.effect == "NoExecute") {
        let Some(used) = tolerations.iter().find(|toleration| tolerates(toleration, taint)) else {
            return Stay::For(Duration::ZERO);
        };
        if let Some(seconds) = used.toleration_seconds {
            let this = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            shortest = match shortest {
                Stay::For(other) if other <= this => Stay::For(other),
                _ => Stay::For(this),
            };
        }
    }
    shortest
}

/// Whether the toleration matches the taint, as the API's documentation of tolerations says.
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    let matching = (effect.is_empty() || effect == taint.effect) && (key.is_empty() || key == taint.key);
    matching
        && match text(&toleration.operator).as_str() {
            "" | "Equal" => !key.is_empty() && text(&toleration.value) == text(&taint.value),
            "Exists" => true,
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_shortest_toleration_used_counts() {
        let unreachable = json!({"key": "u", "effect": "NoExecute"});
        let dedicated = json!({"key": "d", "value": "x", "effect": "NoExecute"});
        let schedule = json!({"key": "s", "effect": "NoSchedule"});
        let seconds = |key: &str, seconds: i64| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        let after = |seconds| Stay::For(Duration::from_secs(seconds));
        let cases = [
            (json!([]), json!([]), Stay::Forever),
            (json!([schedule]), json!([]), Stay::Forever),
            (json!([unreachable]), json!([]), after(0)),
            (json!([unreachable]), json!([seconds("u", 300)]), after(300)),
            (json!([unreachable]), json!([seconds("u", -5)]), after(0)),
            (json!([unreachable]), json!([{"operator": "Exists"}]), Stay::Forever),
            (json!([unreachable]), json!([{"operator": "Exists", "effect": "NoSchedule"}]), after(0)),
            (json!([unreachable, dedicated]), json!([seconds("u", 300)]), after(0)),
            (json!([unreachable, dedicated]), json!([seconds("u", 300), {"key": "d", "value": "x"}]), after(300)),
            (json!([unreachable, dedicated]), json!([seconds("u", 300), {"key": "d", "value": "y"}]), after(0)),
            (json!([unreachable, dedicated]), json!([seconds("u", 300), seconds("d", 30)]), after(30)),
        ];
        for (taints, tolerations, expected) in cases {
            let (taints, tolerations): (Vec<Taint>, Vec<Toleration>) =
                (serde_json::from_value(taints).unwrap(), serde_json::from_value(tolerations).unwrap());
            assert_eq!(stay(&taints, &tolerations), expected, "{taints:?} {tolerations:?}");
        }
    }
}
