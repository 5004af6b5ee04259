//! Short forms of nodes and pods for tests.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use trireme_scheduler::{cluster::Cluster, node::NodeSpec, pod::PodInfo};

/// A node: 4 processors, 8Gi and 110 pods unless told otherwise.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NodeCase {
    pub name: String,
    #[serde(default)]
    pub zone: Option<String>,
    #[serde(default)]
    pub labels: Map<String, Value>,
    #[serde(default)]
    pub taints: Vec<Value>,
    #[serde(default)]
    pub unschedulable: bool,
    #[serde(default)]
    pub allocatable: Map<String, Value>,
    #[serde(default)]
    pub images: Vec<Value>,
}

impl NodeCase {
    pub fn object(&self) -> core::Node {
        let mut labels = self.labels.clone();
        labels.insert("kubernetes.io/hostname".to_owned(), json!(self.name));
        if let Some(zone) = &self.zone {
            labels.insert("topology.kubernetes.io/zone".to_owned(), json!(zone));
        }
        let mut allocatable = json!({ "cpu": "4", "memory": "8Gi", "pods": "110" });
        for (name, amount) in &self.allocatable {
            allocatable[name] = amount.clone();
        }
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": self.name, "labels": labels, "uid": format!("node-{}", self.name) },
            "spec": { "taints": self.taints, "unschedulable": self.unschedulable },
            "status": { "allocatable": allocatable, "images": self.images },
        }))
        .unwrap()
    }
}

/// A pod; `spec` is taken as it is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PodCase {
    #[serde(default = "default_name")]
    pub name: String,
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// Where it is.
    #[serde(default)]
    pub node: Option<String>,
    /// So many pods, `name-0` and so on.
    #[serde(default)]
    pub copies: Option<usize>,
    #[serde(default)]
    pub labels: Map<String, Value>,
    /// The name of the controller that owns it.
    #[serde(default)]
    pub owner: Option<String>,
    #[serde(default)]
    pub requests: Map<String, Value>,
    #[serde(default)]
    pub ports: Vec<Value>,
    #[serde(default)]
    pub image: Option<String>,
    #[serde(default)]
    pub priority: i32,
    #[serde(default)]
    pub terminating: bool,
    #[serde(default)]
    pub spec: Map<String, Value>,
}

fn default_name() -> String {
    "pod".to_owned()
}

fn default_namespace() -> String {
    "default".to_owned()
}

impl PodCase {
    pub fn objects(&self) -> Vec<core::Pod> {
        match self.copies {
            None => vec![self.object(&self.name)],
            Some(copies) => (0..copies).map(|copy| self.object(&format!("{}-{copy}", self.name))).collect(),
        }
    }

    fn object(&self, name: &str) -> core::Pod {
        let mut spec = json!({
            "containers": [{
                "name": "main", "image": self.image.as_deref().unwrap_or("app"),
                "resources": { "requests": self.requests }, "ports": self.ports,
            }],
            "priority": self.priority,
            "nodeName": self.node,
            "schedulerName": "default-scheduler",
        });
        for (field, value) in &self.spec {
            spec[field] = value.clone();
        }
        let owners = self.owner.iter().map(|owner| {
            json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": format!("owner-{owner}"), "controller": true })
        });
        let deleted = self.terminating.then_some("2026-01-01T00:00:00Z");
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": self.namespace, "uid": format!("{}/{name}", self.namespace),
                "labels": self.labels, "ownerReferences": owners.collect::<Vec<_>>(), "deletionTimestamp": deleted,
            },
            "spec": spec,
        }))
        .unwrap()
    }

    #[allow(dead_code, reason = "each test file uses a part of this module")]
    pub fn infos(&self) -> Vec<Arc<PodInfo>> {
        self.objects().iter().map(|pod| Arc::new(PodInfo::new(pod).unwrap())).collect()
    }
}

#[allow(dead_code, reason = "each test file uses a part of this module")]
pub fn set_node(cluster: &mut Cluster, node: &NodeCase) {
    cluster.set_node(&node.name, Arc::new(NodeSpec::new(&node.object())));
}
