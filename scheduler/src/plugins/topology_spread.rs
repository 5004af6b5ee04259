//! PodTopologySpread: even numbers of matching pods in each zone, on each node, or in any other domain that a label makes.
//!
//! Pods without constraints of their own that belong to a controller or a service get two soft ones: over zones and over
//! nodes. Beyond Kubernetes' defaults, a pod that states no preferences of its own goes to a zone with the fewest pods of its
//! controller whenever one has room, whatever the other scores say.

use std::{collections::HashMap, sync::Arc};

use trireme_api::selector::LabelSelector;

use crate::{
    cluster::{Cluster, NodeIndex},
    node::{HOSTNAME_LABEL, NodeSpec, NodeState, ZONE_LABEL},
    plugins::{MAX_NODE_SCORE, Plugin, Rejection, Remedy},
    pod::{InclusionPolicy, PodInfo, SpreadConstraint, WhenUnsatisfiable},
};

/// Larger than LeastAllocated, BalancedAllocation, ImageLocality and TaintToleration can sum up to.
const ZONE_PENALTY: i64 = 701;

/// Which pods a constraint counts.
enum Counted<'a> {
    /// Pods in the pod's namespace.
    Selected(Vec<&'a LabelSelector>),
    /// Pods of one controller.
    Controller(&'a str),
}

/// Pods counted on each node, by its index.
fn count_by_node(counted: &Counted<'_>, pod: &PodInfo, cluster: &Cluster) -> Vec<i64> {
    let mut counts = vec![0; cluster.slot_count()];
    match counted {
        Counted::Controller(controller) => {
            cluster.groups.of(controller).for_each(|(node, count)| counts[node] += count as i64);
        }
        Counted::Selected(selectors) => {
            let matches = |labels: &_| selectors.iter().all(|selector| selector.matches(labels));
            let found = |node: NodeIndex, count: usize| counts[node] += count as i64;
            cluster.classes.live_in_namespace(pod.namespace(), |class| matches(&class.labels), found);
        }
    }
    counts
}

/// Whether the node's pods count for a constraint.
fn included(pod: &PodInfo, node: &NodeState, spec: &NodeSpec, affinity: InclusionPolicy, taints: InclusionPolicy) -> bool {
    (affinity == InclusionPolicy::Ignore || spec.matches_affinity(&node.name, &pod.node_affinity))
        && (taints == InclusionPolicy::Ignore || spec.untolerated_taint(pod).is_none())
}

/// One hard constraint with what there is in each domain.
struct HardConstraint<'a> {
    constraint: &'a SpreadConstraint,
    /// One where the pod itself counts.
    own: i64,
    by_domain: HashMap<&'a str, i64>,
    fewest: i64,
}

/// The hard constraints of one pod.
pub struct SpreadFilter<'a> {
    constraints: Vec<HardConstraint<'a>>,
}

impl<'a> SpreadFilter<'a> {
    pub fn new(pod: &'a PodInfo, cluster: &'a Cluster) -> Self {
        let hard: Vec<&SpreadConstraint> =
            pod.spread.iter().filter(|constraint| constraint.when == WhenUnsatisfiable::DoNotSchedule).collect();
        let has_all_keys = |spec: &NodeSpec| hard.iter().all(|each| spec.labels.contains_key(&*each.topology_key));
        let build = |constraint: &&'a SpreadConstraint| {
            let counts = count_by_node(&Counted::Selected(vec![&constraint.selector]), pod, cluster);
            let mut by_domain: HashMap<&str, i64> = HashMap::new();
            for (index, node, spec) in cluster.nodes() {
                let Some(domain) = spec.labels.get(&*constraint.topology_key) else { continue };
                if has_all_keys(spec) && included(pod, node, spec, constraint.node_affinity, constraint.node_taints) {
                    *by_domain.entry(domain).or_default() += counts[index];
                }
            }
            let enough_domains = by_domain.len() as i64 >= constraint.min_domains;
            let fewest = if enough_domains { by_domain.values().copied().min().unwrap_or(0) } else { 0 };
            let own = i64::from(constraint.selector.matches(pod.labels()));
            HardConstraint { constraint, own, by_domain, fewest }
        };
        Self { constraints: hard.iter().map(build).collect() }
    }

    pub fn check(&self, spec: &NodeSpec) -> Result<(), Rejection> {
        for hard in &self.constraints {
            let Some(domain) = spec.labels.get(&*hard.constraint.topology_key) else {
                let reason = "node(s) didn't match pod topology spread constraints (missing required label)";
                return Err(Rejection::new(Plugin::PodTopologySpread, Remedy::None, reason));
            };
            let there = hard.by_domain.get(domain.as_str()).copied().unwrap_or(0);
            if there + hard.own - hard.fewest > hard.constraint.max_skew {
                let reason = "node(s) didn't match pod topology spread constraints";
                return Err(Rejection::new(Plugin::PodTopologySpread, Remedy::Preemption, reason));
            }
        }
        Ok(())
    }
}

/// One soft constraint, given or by default.
struct SoftConstraint<'a> {
    topology_key: Arc<str>,
    max_skew: i64,
    counted: Counted<'a>,
    affinity: InclusionPolicy,
    taints: InclusionPolicy,
}

/// Whether a node without a domain is left out of the scores.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    LeavesOut,
    IsNoMatter,
}

/// What a pod without constraints of its own is spread with: those of its controller, else of its services.
fn counted_by_default<'a>(pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Counted<'a>> {
    if !pod.spread.is_empty() {
        return None;
    }
    if let Some(controller) = &pod.controller {
        return Some(Counted::Controller(controller));
    }
    let selectors: Vec<&LabelSelector> = cluster.services_of(pod).collect();
    (!selectors.is_empty()).then_some(Counted::Selected(selectors))
}

fn soft_constraints<'a>(pod: &'a PodInfo, cluster: &'a Cluster) -> (Vec<SoftConstraint<'a>>, Missing) {
    let defaults = [(ZONE_LABEL, 1), (HOSTNAME_LABEL, 3)];
    if pod.spread.is_empty() {
        let by_default = |(key, max_skew): (&str, i64)| {
            Some(SoftConstraint {
                topology_key: key.into(),
                max_skew,
                counted: counted_by_default(pod, cluster)?,
                affinity: InclusionPolicy::Honor,
                taints: InclusionPolicy::Ignore,
            })
        };
        return (defaults.into_iter().filter_map(by_default).collect(), Missing::IsNoMatter);
    }
    let soft = pod.spread.iter().filter(|constraint| constraint.when == WhenUnsatisfiable::ScheduleAnyway);
    let given = soft.map(|constraint| SoftConstraint {
        topology_key: Arc::clone(&constraint.topology_key),
        max_skew: constraint.max_skew,
        counted: Counted::Selected(vec![&constraint.selector]),
        affinity: constraint.node_affinity,
        taints: constraint.node_taints,
    });
    (given.collect(), Missing::LeavesOut)
}

/// Pods in each domain that one of the `candidates` is in.
fn count_by_domain<'a>(
    soft: &SoftConstraint<'_>,
    counts: &[i64],
    pod: &PodInfo,
    cluster: &'a Cluster,
    candidates: impl Iterator<Item = &'a NodeSpec>,
    counts_for_all: impl Fn(&NodeSpec) -> bool,
) -> HashMap<&'a str, i64> {
    let domain = |spec: &'a NodeSpec| spec.labels.get(&*soft.topology_key).map(String::as_str);
    let mut by_domain: HashMap<&str, i64> = candidates.filter_map(domain).map(|domain| (domain, 0)).collect();
    for (index, node, spec) in cluster.nodes() {
        let counts_here = counts[index] > 0 && counts_for_all(spec) && included(pod, node, spec, soft.affinity, soft.taints);
        if let Some(count) = domain(spec).filter(|_| counts_here).and_then(|domain| by_domain.get_mut(domain)) {
            *count += counts[index];
        }
    }
    by_domain
}

/// The scores of all candidates, normalised.
pub fn scores(pod: &PodInfo, cluster: &Cluster, candidates: &[(NodeIndex, &NodeState, &NodeSpec)]) -> Vec<i64> {
    let (constraints, missing) = soft_constraints(pod, cluster);
    if constraints.is_empty() {
        return vec![0; candidates.len()];
    }
    let has_all_keys = |spec: &NodeSpec| {
        missing == Missing::IsNoMatter || constraints.iter().all(|each| spec.labels.contains_key(&*each.topology_key))
    };
    let mut raw: Vec<Option<f64>> = candidates.iter().map(|(_, _, spec)| has_all_keys(spec).then_some(0.0)).collect();
    let scored = raw.iter().flatten().count();
    for soft in &constraints {
        let counts = count_by_node(&soft.counted, pod, cluster);
        let on_node = &*soft.topology_key == HOSTNAME_LABEL;
        let by_domain = if on_node {
            HashMap::new()
        } else {
            let specs = candidates.iter().map(|(_, _, spec)| *spec).filter(|spec| has_all_keys(spec));
            count_by_domain(soft, &counts, pod, cluster, specs, has_all_keys)
        };
        let domains = if on_node { scored } else { by_domain.len() };
        let weight = ((domains + 2) as f64).ln();
        for (score, (index, _, spec)) in raw.iter_mut().zip(candidates) {
            let (Some(score), Some(domain)) = (score, spec.labels.get(&*soft.topology_key)) else { continue };
            let count = if on_node { counts[*index] } else { by_domain.get(domain.as_str()).copied().unwrap_or(0) };
            *score += count as f64 * weight + (soft.max_skew - 1) as f64;
        }
    }
    normalised(&raw)
}

/// The fewest pods become the best score; nodes left out get none.
fn normalised(raw: &[Option<f64>]) -> Vec<i64> {
    let rounded: Vec<Option<i64>> = raw.iter().map(|score| score.map(|score| score.round() as i64)).collect();
    let lowest = rounded.iter().flatten().copied().min().unwrap_or(0);
    let highest = rounded.iter().flatten().copied().max().unwrap_or(0);
    let one = |score: &Option<i64>| match score {
        None => 0,
        Some(_) if highest == 0 => MAX_NODE_SCORE,
        Some(score) => MAX_NODE_SCORE * (highest + lowest - score) / highest,
    };
    rounded.iter().map(one).collect()
}

/// Zero for nodes in the zones with the fewest pods of the same controller (or services), less for each pod more. All zero
/// for pods that say themselves where they would rather be.
pub fn default_zone_penalties(pod: &PodInfo, cluster: &Cluster, candidates: &[(NodeIndex, &NodeState, &NodeSpec)]) -> Vec<i64> {
    let none = vec![0; candidates.len()];
    let own_preferences = !pod.node_affinity.preferred.is_empty() || !pod.affinity.is_empty();
    let Some(counted) = counted_by_default(pod, cluster).filter(|_| !own_preferences) else { return none };
    let soft = SoftConstraint {
        topology_key: ZONE_LABEL.into(),
        max_skew: 1,
        counted,
        affinity: InclusionPolicy::Honor,
        taints: InclusionPolicy::Ignore,
    };
    let counts = count_by_node(&soft.counted, pod, cluster);
    let specs = candidates.iter().map(|(_, _, spec)| *spec);
    let by_domain = count_by_domain(&soft, &counts, pod, cluster, specs, |_| true);
    let Some(fewest) = by_domain.values().copied().min() else { return none };
    let penalty = |(_, _, spec): &(NodeIndex, &NodeState, &NodeSpec)| {
        let there = spec.labels.get(ZONE_LABEL).and_then(|zone| by_domain.get(zone.as_str())).copied();
        -ZONE_PENALTY * there.map_or(0, |there| there - fewest)
    };
    candidates.iter().map(penalty).collect()
}
