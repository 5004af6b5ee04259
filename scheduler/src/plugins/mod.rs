//! Filters (where a pod cannot go) and scores (where it would be best), with the names, the reasons and the weights of
//! Kubernetes' default plugins. Each module holds one subject; [`Filters`] and [`score`] put them together.

pub mod images;
pub mod inter_pod_affinity;
pub mod node_resources;
pub mod simple;
pub mod topology_spread;

use std::borrow::Cow;

use crate::{
    cluster::{Cluster, NodeIndex},
    node::{NodeSpec, NodeState},
    pod::PodInfo,
};
use inter_pod_affinity::AffinityFilter;
use topology_spread::SpreadFilter;

/// The best score of a plugin before its weight.
pub const MAX_NODE_SCORE: i64 = 100;

/// A filter, by the name that Kubernetes gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Plugin {
    SchedulingGates,
    NodeUnschedulable,
    NodeName,
    TaintToleration,
    NodeAffinity,
    NodePorts,
    NodeResourcesFit,
    PodTopologySpread,
    InterPodAffinity,
}

/// Whether making other pods leave could change a filter's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    Preemption,
    None,
}

/// Why a pod cannot go to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub plugin: Plugin,
    pub remedy: Remedy,
    /// Usually one; resources give one for each that is short.
    pub reasons: Vec<Cow<'static, str>>,
}

impl Rejection {
    pub fn new(plugin: Plugin, remedy: Remedy, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { plugin, remedy, reasons: vec![reason.into()] }
    }
}

/// The filters for one pod, with what they need to know of the cluster worked out once.
pub struct Filters<'a> {
    pod: &'a PodInfo,
    spread: SpreadFilter<'a>,
    affinity: AffinityFilter<'a>,
}

impl<'a> Filters<'a> {
    pub fn new(pod: &'a PodInfo, cluster: &'a Cluster) -> Self {
        Self { pod, spread: SpreadFilter::new(pod, cluster), affinity: AffinityFilter::new(pod, cluster) }
    }

    /// Runs the filters in Kubernetes' order up to the first that turns the node down.
    pub fn check(&self, node: &NodeState, spec: &NodeSpec) -> Result<(), Rejection> {
        simple::check(self.pod, node, spec)?;
        node_resources::check(self.pod, node, spec)?;
        self.spread.check(spec)?;
        self.affinity.check(spec)
    }
}

/// The weighted sum of all scores for each of the nodes, in their order.
pub fn score(pod: &PodInfo, cluster: &Cluster, nodes: &[NodeIndex]) -> Vec<i64> {
    const TAINT_TOLERATION: i64 = 3;
    const NODE_AFFINITY: i64 = 2;
    const NODE_RESOURCES_FIT: i64 = 1;
    const POD_TOPOLOGY_SPREAD: i64 = 2;
    const INTER_POD_AFFINITY: i64 = 2;
    const BALANCED_ALLOCATION: i64 = 1;
    const IMAGE_LOCALITY: i64 = 1;

    let candidates: Vec<(NodeIndex, &NodeState, &NodeSpec)> =
        nodes.iter().filter_map(|index| cluster.node(*index).map(|(node, spec)| (*index, node, spec))).collect();
    assert_eq!(candidates.len(), nodes.len(), "only nodes that exist are scored");
    let mut totals = vec![0; candidates.len()];
    let mut add = |weight: i64, scores: Vec<i64>| {
        assert_eq!(scores.len(), totals.len(), "a plugin scores every node");
        totals.iter_mut().zip(scores).for_each(|(total, score)| *total += weight * score);
    };
    let each = |score: &dyn Fn(&NodeState, &NodeSpec) -> i64| -> Vec<i64> {
        candidates.iter().map(|(_, node, spec)| score(node, spec)).collect()
    };
    add(NODE_RESOURCES_FIT, each(&|node, spec| node_resources::least_allocated(pod, node, spec)));
    add(BALANCED_ALLOCATION, each(&|node, spec| node_resources::balanced_allocation(pod, node, spec)));
    add(IMAGE_LOCALITY, each(&|_, spec| images::score(pod, spec, cluster, cluster.nodes_in_order().len())));
    add(TAINT_TOLERATION, reversed(each(&|_, spec| simple::untolerated_preferences(pod, spec))));
    if !pod.node_affinity.preferred.is_empty() {
        add(NODE_AFFINITY, scaled(each(&|node, spec| simple::preferred_affinity(pod, &node.name, spec))));
    }
    add(INTER_POD_AFFINITY, inter_pod_affinity::scores(pod, cluster, &candidates));
    add(POD_TOPOLOGY_SPREAD, topology_spread::scores(pod, cluster, &candidates));
    add(1, topology_spread::default_zone_penalties(pod, cluster, &candidates));
    totals
}

/// Scales scores so that the highest becomes the best possible.
fn scaled(scores: Vec<i64>) -> Vec<i64> {
    let highest = scores.iter().copied().max().unwrap_or(0);
    if highest <= 0 {
        return scores.iter().map(|_| 0).collect();
    }
    scores.into_iter().map(|score| score * MAX_NODE_SCORE / highest).collect()
}

/// As [`scaled`], where less is better.
fn reversed(scores: Vec<i64>) -> Vec<i64> {
    scaled(scores).into_iter().map(|score| MAX_NODE_SCORE - score).collect()
}
