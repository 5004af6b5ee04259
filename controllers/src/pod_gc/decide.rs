//! Which pods nobody else will ever remove.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::node_lifecycle::node_of;
use crate::shared::meta::{is_deleting, is_finished, name};

/// The taint by which an operator says that a node is off and its pods are not running any more.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// The finished pods beyond `threshold` that are not being deleted, oldest first.
pub fn surplus(pods: &[Arc<Pod>], threshold: usize) -> Vec<Arc<Pod>> {
    let mut finished: Vec<&Arc<Pod>> = pods.iter().filter(|pod| is_finished(pod) && !is_deleting(&pod.metadata)).collect();
    let excess = finished.len().saturating_sub(threshold);
    finished.sort_by_cached_key(|pod| {
        let meta = &pod.metadata;
        (meta.creation_timestamp.as_ref().map(|time| time.0), meta.namespace.clone(), meta.name.clone())
    });
    finished.into_iter().take(excess).cloned().collect()
}

/// The pods that are being deleted and were never bound to a node: no node agent will confirm the end.
pub fn unscheduled(pods: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
    pods.iter().filter(|pod| is_deleting(&pod.metadata) && node_of(pod).is_none()).cloned().collect()
}

/// The pods that are being deleted on nodes that are not ready and out of service. On other unreachable nodes they stay: they
/// may be running still.
pub fn out_of_service(pods: &[Arc<Pod>], nodes: &[Arc<Node>]) -> Vec<Arc<Pod>> {
    let off: HashSet<&str> = nodes.iter().filter(|node| is_off(node)).map(|node| name(&node.metadata)).collect();
    let stuck = |pod: &&Arc<Pod>| is_deleting(&pod.metadata) && node_of(pod).is_some_and(|node| off.contains(node));
    pods.iter().filter(stuck).cloned().collect()
}

fn is_off(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.filter(|condition| condition.type_ == "Ready").any(|condition| condition.status == "True");
    let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    !ready && taints.any(|taint| taint.key == OUT_OF_SERVICE)
}

/// The pods that are bound to nodes that are not there.
pub fn orphaned(pods: &[Arc<Pod>], nodes: &[Arc<Node>]) -> Vec<Arc<Pod>> {
    let known: HashSet<&str> = nodes.iter().map(|node| name(&node.metadata)).collect();
    pods.iter().filter(|pod| node_of(pod).is_some_and(|node| !known.contains(node))).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, node: &str, phase: &str, deleting: bool) -> Arc<Pod> {
        let created = format!("2026-01-01T00:00:{:02}Z", 59 - name.len());
        let deleted = deleting.then_some("2026-01-01T01:00:00Z");
        let value = json!({"metadata": {"name": name, "creationTimestamp": created, "deletionTimestamp": deleted},
            "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn node(name: &str, ready: &str, taint: &str) -> Arc<Node> {
        let value = json!({"metadata": {"name": name}, "spec": {"taints": [{"key": taint, "effect": "NoExecute"}]},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn names(pods: Vec<Arc<Pod>>) -> Vec<String> {
        pods.iter().map(|pod| name(&pod.metadata).to_owned()).collect()
    }

    #[test]
    fn each_reason_finds_its_pods() {
        // The longer the name, the older the pod.
        let pods = [
            pod("a", "on", "Succeeded", false),
            pod("bb", "on", "Failed", false),
            pod("ccc", "on", "Failed", true),
            pod("dddd", "", "Pending", true),
            pod("eeeee", "", "Pending", false),
            pod("ffffff", "gone", "Running", false),
            pod("ggggggg", "off", "Running", true),
            pod("hhhhhhhh", "off", "Running", false),
            pod("iiiiiiiii", "lost", "Running", true),
            pod("jjjjjjjjjj", "back", "Running", true),
        ];
        let nodes = [
            node("on", "True", "other"),
            node("off", "Unknown", OUT_OF_SERVICE),
            node("lost", "Unknown", "node.kubernetes.io/unreachable"),
            node("back", "True", OUT_OF_SERVICE),
        ];
        assert_eq!(names(surplus(&pods, 1)), ["bb"]);
        assert_eq!(names(surplus(&pods, 0)), ["bb", "a"]);
        assert_eq!(names(surplus(&pods, 2)), Vec::<String>::new());
        assert_eq!(names(unscheduled(&pods)), ["dddd"]);
        assert_eq!(names(out_of_service(&pods, &nodes)), ["ggggggg"]);
        assert_eq!(names(orphaned(&pods, &nodes)), ["ffffff"]);
    }
}
