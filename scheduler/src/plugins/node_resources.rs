//! NodeResourcesFit with its LeastAllocated strategy, and NodeResourcesBalancedAllocation.

use std::borrow::Cow;

use crate::{
    node::{NodeSpec, NodeState},
    plugins::{MAX_NODE_SCORE, Plugin, Rejection, Remedy, simple::counts_against},
    pod::PodInfo,
    resources::Resources,
};

/// Whether the node has room, all shortages told at once. Room reserved for pods of no lower priority is not free.
pub fn check(pod: &PodInfo, node: &NodeState, spec: &NodeSpec) -> Result<(), Rejection> {
    let reserved: Vec<&PodInfo> = node.nominated.iter().map(AsRef::as_ref).filter(|other| counts_against(other, pod)).collect();
    let mut used = Cow::Borrowed(&node.requested);
    for other in &reserved {
        used.to_mut().add(&other.requests);
    }
    let pods = node.pods.len() + reserved.len();
    let mut reasons = Vec::new();
    let mut remedy = Remedy::Preemption;
    if pods as i64 >= spec.max_pods {
        reasons.push(Cow::Borrowed("Too many pods"));
    }
    let mut compare = |name: &str, wanted: i64, allocatable: i64, used: i64| {
        if wanted > 0 && wanted > allocatable - used {
            reasons.push(match name {
                "cpu" => Cow::Borrowed("Insufficient cpu"),
                "memory" => Cow::Borrowed("Insufficient memory"),
                other => Cow::Owned(format!("Insufficient {other}")),
            });
            if wanted > allocatable {
                remedy = Remedy::None;
            }
        }
    };
    let (wanted, all) = (&pod.requests, &spec.allocatable);
    compare("cpu", wanted.cpu_milli, all.cpu_milli, used.cpu_milli);
    compare("memory", wanted.memory_bytes, all.memory_bytes, used.memory_bytes);
    compare("ephemeral-storage", wanted.ephemeral_bytes, all.ephemeral_bytes, used.ephemeral_bytes);
    for (name, amount) in &wanted.extended {
        let of = |resources: &Resources| resources.extended.get(name).copied().unwrap_or(0);
        compare(name, *amount, of(all), of(&used));
    }
    if reasons.is_empty() { Ok(()) } else { Err(Rejection { plugin: Plugin::NodeResourcesFit, remedy, reasons }) }
}

/// More for nodes with more processor and memory left: the mean of the free shares.
pub fn least_allocated(pod: &PodInfo, node: &NodeState, spec: &NodeSpec) -> i64 {
    let used = [
        (node.scored_cpu_milli + pod.scored_cpu_milli, spec.allocatable.cpu_milli),
        (node.scored_memory_bytes + pod.scored_memory_bytes, spec.allocatable.memory_bytes),
    ];
    let shares: Vec<i64> = used
        .into_iter()
        .filter(|(_, allocatable)| *allocatable > 0)
        .map(|(used, allocatable)| share(allocatable - used, allocatable))
        .collect();
    if shares.is_empty() { 0 } else { shares.iter().sum::<i64>() / shares.len() as i64 }
}

/// `part` of `whole` as a score, nothing below zero.
fn share(part: i64, whole: i64) -> i64 {
    // Within i128: amounts go up to 2^53 each and are summed over a node.
    (i128::from(part.max(0)) * i128::from(MAX_NODE_SCORE) / i128::from(whole)) as i64
}

/// More for nodes where processor and memory are then used to the same degree. Pods that ask for neither do not care.
pub fn balanced_allocation(pod: &PodInfo, node: &NodeState, spec: &NodeSpec) -> i64 {
    if pod.requests.cpu_milli == 0 && pod.requests.memory_bytes == 0 {
        return 0;
    }
    let fraction = |used: i64, allocatable: i64| (used as f64 / allocatable as f64).min(1.0);
    let (all, used) = (&spec.allocatable, &node.requested);
    if all.cpu_milli == 0 || all.memory_bytes == 0 {
        return MAX_NODE_SCORE;
    }
    let processor = fraction(used.cpu_milli + pod.requests.cpu_milli, all.cpu_milli);
    let memory = fraction(used.memory_bytes + pod.requests.memory_bytes, all.memory_bytes);
    let deviation = (processor - memory).abs() / 2.0;
    ((1.0 - deviation) * MAX_NODE_SCORE as f64) as i64
}
