//! Filters and scores that look at one node and the pod alone: NodeUnschedulable, NodeName, TaintToleration, NodeAffinity
//! and NodePorts.

use crate::{
    node::{NodeSpec, NodeState},
    plugins::{Plugin, Rejection, Remedy},
    pod::PodInfo,
    terms::{TaintEffect, Toleration},
};

pub fn check(pod: &PodInfo, node: &NodeState, spec: &NodeSpec) -> Result<(), Rejection> {
    let hopeless = |plugin, reason: &'static str| Err(Rejection::new(plugin, Remedy::None, reason));
    if !spec.accepts_new_pods_of(pod) {
        return hopeless(Plugin::NodeUnschedulable, "node(s) were unschedulable");
    }
    if pod.required_node.as_ref().is_some_and(|name| *name != node.name) {
        return hopeless(Plugin::NodeName, "node(s) didn't match the requested node name");
    }
    if let Some(taint) = spec.untolerated_taint(pod) {
        let reason = format!("node(s) had untolerated taint {{{}: {}}}", taint.key, taint.value);
        return Err(Rejection::new(Plugin::TaintToleration, Remedy::None, reason));
    }
    if !spec.matches_affinity(&node.name, &pod.node_affinity) {
        return hopeless(Plugin::NodeAffinity, "node(s) didn't match Pod's node affinity/selector");
    }
    if conflicts_on_ports(pod, node) {
        let reason = "node(s) didn't have free ports for the requested pod ports";
        return Err(Rejection::new(Plugin::NodePorts, Remedy::Preemption, reason));
    }
    Ok(())
}

fn conflicts_on_ports(pod: &PodInfo, node: &NodeState) -> bool {
    let nominated = node.nominated.iter().filter(|other| counts_against(other, pod)).flat_map(|other| &other.host_ports);
    let taken = || node.host_ports.iter().chain(nominated.clone());
    pod.host_ports.iter().any(|port| taken().any(|taken| port.conflicts(taken)))
}

/// Whether room that is reserved for `nominated` is not to be given to `pod`.
pub fn counts_against(nominated: &PodInfo, pod: &PodInfo) -> bool {
    nominated.uid != pod.uid && nominated.priority >= pod.priority
}

/// How many `PreferNoSchedule` taints the pod does not tolerate.
pub fn untolerated_preferences(pod: &PodInfo, spec: &NodeSpec) -> i64 {
    let tolerations: Vec<&Toleration> = pod.tolerations.iter().filter(|toleration| toleration.concerns_preference()).collect();
    let soft = spec.taints.iter().filter(|taint| taint.effect == TaintEffect::PreferNoSchedule);
    soft.filter(|taint| !tolerations.iter().any(|toleration| toleration.tolerates(taint))).count() as i64
}

/// The sum of the weights of the preferred terms that the node matches.
pub fn preferred_affinity(pod: &PodInfo, name: &str, spec: &NodeSpec) -> i64 {
    pod.node_affinity.preferred.iter().filter(|(_, term)| term.matches(name, spec)).map(|(weight, _)| weight).sum()
}
