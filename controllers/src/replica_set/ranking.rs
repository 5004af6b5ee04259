//! Which pods to delete first when there are too many (Kubernetes' `ActivePodsWithRanks`).

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::shared::meta;

/// Pods with a lower cost are deleted first; a 32-bit integer, 0 when absent or malformed.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Sorts pods so that those to delete first come first: not assigned to a node; Pending before Unknown before Running; not ready;
/// lower deletion cost; on a node with more related pods; ready for less time; more restarts; younger. Times are compared by
/// their order of magnitude, as Kubernetes does, so that the victims are spread and not always the newest; the UID decides the rest.
///
/// Kubernetes lets the UID decide between ready pods of the same magnitude before it looks at restarts; that order is not
/// transitive, so here restarts and age come first.
pub fn rank_for_deletion(pods: &mut [Arc<Pod>], related_on_node: &HashMap<String, usize>, now: Timestamp) {
    pods.sort_by_cached_key(|pod| {
        let node = node_name(pod);
        let phase = match meta::phase(pod) {
            "Running" => 2,
            "Unknown" => 1,
            _ => 0,
        };
        let ready = meta::is_ready(pod);
        let related = node.and_then(|node| related_on_node.get(node)).copied().unwrap_or(0);
        let ready_since =
            ready.then(|| meta::ready_condition(pod)).flatten().and_then(|condition| condition.last_transition_time.as_ref());
        let created = pod.metadata.creation_timestamp.as_ref();
        (
            node.is_some(),
            phase,
            ready,
            deletion_cost(pod),
            Reverse(related),
            magnitude(ready_since.map(|time| time.0), now),
            Reverse(restarts(pod)),
            magnitude(created.map(|time| time.0), now),
            pod.metadata.uid.clone(),
        )
    });
}

/// How many of the pods are on each node.
pub fn count_by_node<'a>(pods: impl IntoIterator<Item = &'a Arc<Pod>>) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for node in pods.into_iter().filter_map(|pod| node_name(pod)) {
        *counts.entry(node.to_owned()).or_insert(0) += 1;
    }
    counts
}

fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

fn deletion_cost(pod: &Pod) -> i32 {
    let cost = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(DELETION_COST));
    cost.and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses.map(|status| status.restart_count).max().unwrap_or(0)
}

/// The order of magnitude (base 2, of nanoseconds) of the time since `from`. A missing time sorts first.
fn magnitude(from: Option<Timestamp>, now: Timestamp) -> i32 {
    let Some(from) = from else { return -2 };
    let nanoseconds = now.duration_since(from).as_nanos();
    u128::try_from(nanoseconds)
        .ok()
        .and_then(u128::checked_ilog2)
        .map_or(-1, |magnitude| i32::try_from(magnitude).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A running, ready, day-old pod on `n1`, changed by a merge patch.
    fn pod(name: &str, change: Value) -> Arc<Pod> {
        let mut value = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"phase": "Running", "conditions": [ready("2026-01-01T00:00:10Z")], "containerStatuses": [restarted(0)]},
        });
        merge(&mut value, change);
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn ready(since: &str) -> Value {
        json!({"type": "Ready", "status": "True", "lastTransitionTime": since})
    }

    fn restarted(count: i32) -> Value {
        json!({"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": count})
    }

    fn merge(target: &mut Value, change: Value) {
        match (target, change) {
            (Value::Object(target), Value::Object(change)) => {
                for (key, value) in change {
                    merge(target.entry(key).or_insert(Value::Null), value);
                }
            }
            (target, change) => *target = change,
        }
    }

    #[test]
    fn each_rule_decides_when_all_before_it_are_equal() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let cost = |cost: &str| json!({"metadata": {"annotations": {DELETION_COST: cost}}});
        // Each row: the first pod goes before the second.
        let rows = [
            ("unassigned", json!({"spec": {"nodeName": null}}), json!({"status": {"phase": "Pending"}})),
            ("pending", json!({"status": {"phase": "Pending"}}), json!({"status": {"phase": "Unknown"}})),
            ("unknown", json!({"status": {"phase": "Unknown"}}), json!({"status": {"conditions": []}})),
            ("not ready", json!({"status": {"conditions": []}}), cost("-5")),
            ("cheap", cost("-5"), json!({"spec": {"nodeName": "crowded"}})),
            ("malformed cost is zero", cost("-1"), cost("x")),
            (
                "crowded",
                json!({"spec": {"nodeName": "crowded"}}),
                json!({"status": {"conditions": [ready("2026-01-01T23:59:00Z")]}}),
            ),
            (
                "ready lately",
                json!({"status": {"conditions": [ready("2026-01-01T23:59:00Z")]}}),
                json!({"status": {"containerStatuses": [restarted(3)]}}),
            ),
            (
                "restarted",
                json!({"status": {"containerStatuses": [restarted(3)]}}),
                json!({"metadata": {"creationTimestamp": "2026-01-01T23:00:00Z"}}),
            ),
            ("young", json!({"metadata": {"creationTimestamp": "2026-01-01T23:00:00Z"}}), json!({})),
        ];
        let related = HashMap::from([("crowded".to_owned(), 4), ("n1".to_owned(), 1)]);
        for (rule, first, second) in rows {
            // The names work against the expected order, so that the UID cannot be what decides.
            let mut pods = vec![pod("a", second), pod("b", first)];
            rank_for_deletion(&mut pods, &related, now);
            assert_eq!(meta::name(&pods[0].metadata), "b", "{rule}");
        }
    }
}
