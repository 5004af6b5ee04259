//! DefaultPreemption: which pods of lower priority must leave, and where, so that a pod fits.

use std::{cmp::Reverse, sync::Arc};

use jiff::Timestamp;

use crate::{
    cluster::{Cluster, NodeIndex},
    diagnosis::{Diagnosis, Reasons},
    plugins::{Filters, Rejection},
    pod::PodInfo,
};

/// At least so many nodes are looked at, and at least a tenth of all (`minCandidateNodesAbsolute`).
const MIN_CANDIDATES: usize = 100;

/// A node, and the pods that must leave it.
#[derive(Clone, Debug)]
pub struct Plan {
    pub node: Arc<str>,
    /// The most important first; never empty.
    pub victims: Vec<Arc<PodInfo>>,
}

/// What decides between two plans: less is better.
type Cost = (i32, i64, usize, Reverse<Timestamp>);

/// Looks for the plan that does the least harm. The cluster is changed while looking and is afterwards as it was.
///
/// # Errors
/// Why there is none, as it goes behind `preemption:` in the pod's message.
pub fn find(pod: &PodInfo, cluster: &mut Cluster, diagnosis: &Diagnosis) -> Result<Plan, String> {
    if !pod.may_preempt {
        return Err("not eligible due to preemptionPolicy=Never.".to_owned());
    }
    if waits_for_victims(pod, cluster, diagnosis) {
        return Err("not eligible due to a terminating pod on the nominated node.".to_owned());
    }
    let mut reasons = Reasons::default();
    reasons.add_times("Preemption is not helpful for scheduling", diagnosis.nodes - diagnosis.preemptible.len());
    let enough = MIN_CANDIDATES.max(diagnosis.nodes / 10);
    let mut plans: Vec<(NodeIndex, Vec<Arc<PodInfo>>)> = Vec::new();
    for &index in &diagnosis.preemptible {
        match victims_on(pod, cluster, index) {
            Ok(victims) => plans.push((index, victims)),
            Err(texts) => texts.into_iter().for_each(|text| reasons.add(text)),
        }
        if plans.len() == enough {
            break;
        }
    }
    let best = plans.into_iter().min_by_key(|(_, victims)| cost(victims));
    let plan =
        best.and_then(|(index, victims)| cluster.node(index).map(|(node, _)| Plan { node: Arc::clone(&node.name), victims }));
    plan.ok_or_else(|| reasons.message(diagnosis.nodes))
}

/// Whether pods are leaving already where the pod is nominated.
fn waits_for_victims(pod: &PodInfo, cluster: &Cluster, diagnosis: &Diagnosis) -> bool {
    let nominated = cluster.nominated_node(&pod.uid).filter(|index| diagnosis.preemptible.contains(index));
    let node = nominated.and_then(|index| cluster.node(index));
    node.is_some_and(|(node, _)| node.pods.values().any(|other| other.terminating && other.priority < pod.priority))
}

/// Fewer of the important ones, then less priority in all, then fewer pods, then those that started last.
fn cost(victims: &[Arc<PodInfo>]) -> Cost {
    let highest = victims.iter().map(|victim| victim.priority).max().unwrap_or(i32::MIN);
    // Shifted so that every pod counts for something, also with a negative priority.
    let sum = victims.iter().map(|victim| i64::from(victim.priority) + i64::from(i32::MAX) + 1).sum();
    let of_highest = victims.iter().filter(|victim| victim.priority == highest);
    let earliest = of_highest.map(|victim| victim.started).min().unwrap_or(Timestamp::MAX);
    (highest, sum, victims.len(), Reverse(earliest))
}

/// The fewest pods that must leave this node, or why that would not do.
fn victims_on(
    pod: &PodInfo,
    cluster: &mut Cluster,
    index: NodeIndex,
) -> Result<Vec<Arc<PodInfo>>, Vec<std::borrow::Cow<'static, str>>> {
    let Some((node, _)) = cluster.node(index) else { return Err(Vec::new()) };
    let mut lower: Vec<Arc<PodInfo>> = node.pods.values().filter(|other| other.priority < pod.priority).cloned().collect();
    if lower.is_empty() {
        return Err(vec!["No preemption victims found for incoming pod".into()]);
    }
    // The most important first: higher priority, then longer running.
    lower.sort_by(|left, right| {
        (Reverse(left.priority), left.started, &left.uid).cmp(&(Reverse(right.priority), right.started, &right.uid))
    });
    for other in &lower {
        let lifted = cluster.lift(&other.uid);
        assert!(lifted.is_some(), "a pod of the node is counted");
    }
    let result = check(pod, cluster, index);
    let mut victims = Vec::new();
    for other in lower {
        cluster.place_at(&other, index);
        if result.is_ok() && check(pod, cluster, index).is_err() {
            cluster.lift(&other.uid);
            victims.push(other);
        }
    }
    victims.iter().for_each(|victim| cluster.place_at(victim, index));
    match result {
        Ok(()) if victims.is_empty() => Err(vec!["No preemption victims found for incoming pod".into()]),
        Ok(()) => Ok(victims),
        Err(rejection) => Err(rejection.reasons),
    }
}

fn check(pod: &PodInfo, cluster: &Cluster, index: NodeIndex) -> Result<(), Rejection> {
    match cluster.node(index) {
        Some((node, spec)) => Filters::new(pod, cluster).check(node, spec),
        None => unreachable!("the node of a candidate exists"),
    }
}
