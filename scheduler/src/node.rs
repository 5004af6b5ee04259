//! A node as the scheduler sees it, and what its pods take of it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::api::core::v1 as core;

use crate::{
    pod::{PodInfo, normalized_image},
    resources::{Resources, parse_amounts},
    terms::{HostPort, LabelMap, NodeAffinity, Taint, TaintEffect},
};

/// The label that names a node's zone.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// The label that names the node itself.
pub const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";
const REGION_LABEL: &str = "topology.kubernetes.io/region";
/// Cordoned nodes bear this taint besides the flag.
const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";

/// What the node's object says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSpec {
    pub labels: LabelMap,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    pub max_pods: i64,
    /// Sizes in bytes of the images that the node holds, by each of their names.
    pub images: BTreeMap<Arc<str>, i64>,
}

impl NodeSpec {
    pub fn new(node: &core::Node) -> Self {
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        let texts = status.and_then(|status| status.allocatable.as_ref());
        let amounts = parse_amounts(texts.into_iter().flatten().map(|(name, text)| (name, text.0.as_str())));
        let mut images = BTreeMap::new();
        for image in status.and_then(|status| status.images.as_ref()).into_iter().flatten() {
            for name in image.names.iter().flatten() {
                images.insert(normalized_image(name), image.size_bytes.unwrap_or(0));
            }
        }
        Self {
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten().filter_map(Taint::new).collect(),
            unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or(false),
            allocatable: Resources::allocatable(&amounts),
            max_pods: amounts.get("pods").map_or(0, |pods| pods.value()),
            images,
        }
    }

    /// Region and zone, for visiting nodes zone by zone in turn.
    pub fn zone(&self) -> (&str, &str) {
        let label = |key: &str| self.labels.get(key).map_or("", String::as_str);
        (label(REGION_LABEL), label(ZONE_LABEL))
    }

    /// The first taint that keeps the pod away.
    pub fn untolerated_taint(&self, pod: &PodInfo) -> Option<&Taint> {
        let hard = self.taints.iter().filter(|taint| taint.effect != TaintEffect::PreferNoSchedule);
        hard.into_iter().find(|taint| !pod.tolerations.iter().any(|toleration| toleration.tolerates(taint)))
    }

    /// Whether a pod may come although the node is cordoned.
    pub fn accepts_new_pods_of(&self, pod: &PodInfo) -> bool {
        let cordon = Taint { key: UNSCHEDULABLE_TAINT.to_owned(), value: String::new(), effect: TaintEffect::NoSchedule };
        !self.unschedulable || pod.tolerations.iter().any(|toleration| toleration.tolerates(&cordon))
    }

    pub fn matches_affinity(&self, name: &str, affinity: &NodeAffinity) -> bool {
        affinity.matches(name, self)
    }
}

/// A node and the pods on it, assumed ones too. Kept up to date by [`crate::cluster::Cluster`].
#[derive(Clone, Debug, Default)]
pub struct NodeState {
    pub name: Arc<str>,
    /// None while only pods tell of the node.
    pub spec: Option<Arc<NodeSpec>>,
    pub requested: Resources,
    pub scored_cpu_milli: i64,
    pub scored_memory_bytes: i64,
    pub pods: HashMap<Arc<str>, Arc<PodInfo>>,
    pub host_ports: Vec<HostPort>,
    /// Pods for which others were made to leave here, and which are still to come.
    pub nominated: Vec<Arc<PodInfo>>,
}

impl NodeState {
    pub fn add(&mut self, pod: &Arc<PodInfo>) {
        let replaced = self.pods.insert(Arc::clone(&pod.uid), Arc::clone(pod));
        assert!(replaced.is_none(), "a pod is counted once");
        self.requested.add(&pod.requests);
        self.scored_cpu_milli += pod.scored_cpu_milli;
        self.scored_memory_bytes += pod.scored_memory_bytes;
        self.host_ports.extend(pod.host_ports.iter().cloned());
    }

    pub fn remove(&mut self, pod: &PodInfo) {
        let removed = self.pods.remove(&pod.uid);
        assert!(removed.is_some(), "only a pod that was counted is taken away");
        self.requested.subtract(&pod.requests);
        self.scored_cpu_milli -= pod.scored_cpu_milli;
        self.scored_memory_bytes -= pod.scored_memory_bytes;
        for port in &pod.host_ports {
            if let Some(at) = self.host_ports.iter().position(|taken| taken == port) {
                self.host_ports.swap_remove(at);
            }
        }
    }
}
