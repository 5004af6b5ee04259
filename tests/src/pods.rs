//! Deployments of real pods, and what the cluster says of them.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Client, ResourceExt, api::ListParams};
use serde_json::{Value, json};

use crate::{image::BUSYBOX, wait::until};

/// A Deployment `web` whose pods serve their own name over HTTP on port 8080, and log a line when they start. Its rolling update
/// keeps all replicas available. `generation` is in the template, so that another one rolls.
pub fn web(replicas: usize, generation: &str) -> Value {
    let script = format!("echo started {generation}; hostname > /tmp/index.html; exec httpd -f -p 8080 -h /tmp");
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": "web", "namespace": "default" },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": "web" } },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 2 } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "tolerations": [
                        { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2 },
                        { "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2 },
                    ],
                    "containers": [{
                        "name": "web",
                        "image": BUSYBOX,
                        "command": ["sh", "-c", script],
                        "ports": [{ "containerPort": 8080 }],
                        "readinessProbe": { "tcpSocket": { "port": 8080 }, "periodSeconds": 1 },
                    }],
                },
            },
        },
    })
}

pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        && pod.metadata.deletion_timestamp.is_none()
}

/// The pods of the Deployment `web`.
///
/// # Errors
/// When the API gives no answer.
pub async fn list(client: &Client) -> kube::Result<Vec<Pod>> {
    let api: Api<Pod> = Api::default_namespaced(client.clone());
    Ok(api.list(&ListParams::default().labels("app=web")).await?.items)
}

/// Waits until there are exactly `count` pods, all of them Ready and on one of `nodes`, if any are given.
pub async fn settled(client: &Client, count: usize, nodes: &[&str], limit: Duration) -> Vec<Pod> {
    until(&format!("exactly {count} pods, all Ready"), limit, || async {
        let pods = list(client).await.map_err(|error| error.to_string())?;
        let here = |pod: &Pod| nodes.is_empty() || nodes.contains(&node_of(pod).as_str());
        if pods.len() == count && pods.iter().all(|pod| is_ready(pod) && here(pod)) {
            return Ok(pods);
        }
        let shown = pods.iter().map(|pod| {
            format!("{} on {:?} ready={} {}", pod.name_any(), node_of(pod), is_ready(pod), why_not(pod).unwrap_or_default())
        });
        Err(shown.collect::<Vec<String>>().join(", "))
    })
    .await
}

/// What the conditions that do not hold say, for a test that fails.
fn why_not(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.iter().flatten().filter(|condition| condition.status != "True");
    Some(conditions.filter_map(|condition| condition.message.clone()).collect::<Vec<_>>().join("; "))
}

pub fn node_of(pod: &Pod) -> String {
    pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default()
}

/// How many of the pods are in each zone.
///
/// # Panics
/// When the nodes cannot be listed, or a pod's node has no zone.
pub async fn by_zone(client: &Client, pods: &[Pod]) -> BTreeMap<String, usize> {
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes = nodes.list(&ListParams::default()).await.expect("the nodes can be listed");
    let mut zones = BTreeMap::new();
    for pod in pods {
        let node = nodes.iter().find(|node| node.name_any() == node_of(pod)).expect("the pod's node is there");
        let zone = node.labels().get("topology.kubernetes.io/zone").expect("the node has a zone");
        *zones.entry(zone.clone()).or_insert(0) += 1;
    }
    zones
}

/// Each container's id and how often it was started again, by pod.
pub fn containers(pods: &[Pod]) -> BTreeMap<String, Vec<(String, i32)>> {
    let entries = pods.iter().map(|pod| {
        let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        let ids = statuses.map(|status| (status.container_id.clone().unwrap_or_default(), status.restart_count));
        (pod.name_any(), ids.collect())
    });
    entries.collect()
}
