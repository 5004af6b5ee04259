//! Which changes could help a pod that fitted nowhere, filter by filter (Kubernetes' queueing hints, KEP-4247). When in doubt
//! a change helps: a try in vain costs little, a pod left waiting costs much.

use crate::{
    cluster::Namespaces,
    node::NodeSpec,
    plugins::Plugin,
    pod::{PodInfo, WhenUnsatisfiable},
    terms::AffinityTerm,
};

/// What changed in the cluster.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    Node {
        name: &'a str,
        old: Option<&'a NodeSpec>,
        new: &'a NodeSpec,
    },
    NodeRemoved,
    /// A pod came to a node.
    PodPlaced(&'a PodInfo),
    /// A pod left its node, or its place was taken back.
    PodRemoved(&'a PodInfo),
    PodUpdated {
        old: &'a PodInfo,
        new: &'a PodInfo,
    },
    NamespaceLabels,
}

/// Whether a pod that `plugin` kept from some node could get further after the change.
pub fn helps(change: Change<'_>, pod: &PodInfo, plugin: Plugin, namespaces: &Namespaces) -> bool {
    match change {
        Change::Node { name, old, new } => node_helps(name, old, new, pod, plugin),
        Change::NodeRemoved => plugin == Plugin::PodTopologySpread,
        Change::PodPlaced(other) => match plugin {
            Plugin::InterPodAffinity => selects_any(&pod.affinity.required, other, namespaces),
            Plugin::PodTopologySpread => is_counted(pod, other),
            _ => false,
        },
        Change::PodRemoved(other) => removal_helps(other, pod, plugin, namespaces),
        Change::PodUpdated { old, new } => {
            let relabelled = old.labels() != new.labels() || old.terminating != new.terminating;
            match plugin {
                Plugin::NodeResourcesFit => new.requests.any_below(&old.requests),
                Plugin::PodTopologySpread | Plugin::InterPodAffinity => relabelled,
                _ => false,
            }
        }
        Change::NamespaceLabels => plugin == Plugin::InterPodAffinity,
    }
}

fn node_helps(name: &str, old: Option<&NodeSpec>, new: &NodeSpec, pod: &PodInfo, plugin: Plugin) -> bool {
    let is_new = old.is_none();
    let changed = |differs: fn(&NodeSpec, &NodeSpec) -> bool| old.is_none_or(|old| differs(old, new));
    match plugin {
        Plugin::SchedulingGates => false,
        Plugin::NodeUnschedulable => {
            new.accepts_new_pods_of(pod) && changed(|old, new| old.unschedulable != new.unschedulable || old.taints != new.taints)
        }
        Plugin::NodeName => is_new && pod.required_node.as_deref() == Some(name),
        Plugin::TaintToleration => new.untolerated_taint(pod).is_none() && changed(|old, new| old.taints != new.taints),
        Plugin::NodeAffinity => new.matches_affinity(name, &pod.node_affinity) && changed(|old, new| old.labels != new.labels),
        Plugin::NodePorts => is_new,
        Plugin::NodeResourcesFit => {
            !new.allocatable.any_below(&pod.requests)
                && changed(|old, new| old.allocatable.any_below(&new.allocatable) || old.max_pods < new.max_pods)
        }
        Plugin::PodTopologySpread | Plugin::InterPodAffinity => {
            changed(|old, new| old.labels != new.labels || old.taints != new.taints)
        }
    }
}

fn removal_helps(removed: &PodInfo, pod: &PodInfo, plugin: Plugin, namespaces: &Namespaces) -> bool {
    match plugin {
        // One pod less helps whatever it asked for, where the number of pods was the limit.
        Plugin::NodeResourcesFit => true,
        Plugin::NodePorts => removed.host_ports.iter().any(|port| pod.host_ports.iter().any(|wanted| wanted.conflicts(port))),
        Plugin::PodTopologySpread => is_counted(pod, removed),
        Plugin::InterPodAffinity => {
            selects_any(&pod.affinity.required_anti, removed, namespaces)
                || selects_any(&removed.affinity.required_anti, pod, namespaces)
        }
        _ => false,
    }
}

fn selects_any(terms: &[AffinityTerm], other: &PodInfo, namespaces: &Namespaces) -> bool {
    terms.iter().any(|term| term.matches(other.namespace(), other.labels(), namespaces))
}

/// Whether one of the pod's hard constraints counts the other.
fn is_counted(pod: &PodInfo, other: &PodInfo) -> bool {
    let hard = pod.spread.iter().filter(|constraint| constraint.when == WhenUnsatisfiable::DoNotSchedule);
    pod.namespace() == other.namespace() && hard.into_iter().any(|constraint| constraint.selector.matches(other.labels()))
}
