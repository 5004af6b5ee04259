//! The decision itself: a pod and the picture of the cluster in, a node or a diagnosis out. No clock, no client.

use std::sync::Arc;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    cluster::{Cluster, NodeIndex},
    diagnosis::Diagnosis,
    plugins::{self, Filters},
    pod::PodInfo,
};

/// Below this many nodes all are looked at.
const MIN_FEASIBLE: usize = 100;

/// Where a pod goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Node(Arc<str>),
    Unschedulable(Diagnosis),
}

/// What a run of decisions carries from one to the next.
#[derive(Debug)]
pub struct Scheduler {
    /// Breaks ties between nodes of the same score.
    rng: StdRng,
    /// Where the last search for feasible nodes ended, so that in large clusters every node gets its turn.
    next_start: usize,
}

impl Scheduler {
    /// The same seed and the same pods on the same cluster make the same decisions.
    pub fn new(seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), next_start: 0 }
    }

    /// Decides for one pod. The caller counts it on the node ([`Cluster::place`]) before it asks for the next.
    ///
    /// The order of nodes must be up to date ([`Cluster::refresh_order`]).
    pub fn schedule(&mut self, pod: &PodInfo, cluster: &Cluster) -> Decision {
        let filters = Filters::new(pod, cluster);
        let nominated = cluster.nominated_node(&pod.uid).filter(|index| passes(&filters, cluster, *index));
        let feasible = match nominated {
            Some(index) => vec![index],
            None => match self.feasible(pod, &filters, cluster) {
                Ok(feasible) => feasible,
                Err(diagnosis) => return Decision::Unschedulable(diagnosis),
            },
        };
        let chosen = self.best(pod, cluster, &feasible);
        match cluster.node(chosen) {
            Some((node, _)) => Decision::Node(Arc::clone(&node.name)),
            None => unreachable!("a feasible node exists"),
        }
    }

    fn feasible(&mut self, pod: &PodInfo, filters: &Filters<'_>, cluster: &Cluster) -> Result<Vec<NodeIndex>, Diagnosis> {
        let all = cluster.nodes_in_order();
        let mut diagnosis = Diagnosis::new(all.len());
        let named: Option<Vec<NodeIndex>> =
            pod.node_affinity.only_names().map(|names| names.into_iter().filter_map(|name| cluster.node_named(name)).collect());
        let candidates: &[NodeIndex] = named.as_deref().unwrap_or(all);
        diagnosis.reject_unnamed(all.len() - candidates.len());
        let wanted = wanted_feasible(candidates.len());
        let mut feasible = Vec::new();
        let mut visited = 0;
        let start = if candidates.is_empty() { 0 } else { self.next_start % candidates.len() };
        for &index in candidates[start..].iter().chain(&candidates[..start]) {
            if feasible.len() == wanted {
                break;
            }
            visited += 1;
            let Some((node, spec)) = cluster.node(index) else { continue };
            match filters.check(node, spec) {
                Ok(()) => feasible.push(index),
                Err(rejection) => diagnosis.reject(index, rejection),
            }
        }
        if named.is_none() {
            self.next_start = start + visited;
        }
        if feasible.is_empty() { Err(diagnosis) } else { Ok(feasible) }
    }

    /// One of the nodes with the highest score, by chance.
    fn best(&mut self, pod: &PodInfo, cluster: &Cluster, feasible: &[NodeIndex]) -> NodeIndex {
        if let [only] = feasible {
            return *only;
        }
        let scores = plugins::score(pod, cluster, feasible);
        let highest = scores.iter().copied().max().unwrap_or(0);
        let best: Vec<NodeIndex> =
            feasible.iter().zip(scores).filter(|(_, score)| *score == highest).map(|(index, _)| *index).collect();
        best[self.rng.random_range(0..best.len())]
    }
}

fn passes(filters: &Filters<'_>, cluster: &Cluster, index: NodeIndex) -> bool {
    cluster.node(index).is_some_and(|(node, spec)| filters.check(node, spec).is_ok())
}

/// How many feasible nodes are enough to choose from (`numFeasibleNodesToFind`): all in small clusters, down to a twentieth
/// in very large ones.
fn wanted_feasible(nodes: usize) -> usize {
    if nodes <= MIN_FEASIBLE {
        return nodes;
    }
    let percentage = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percentage / 100).max(MIN_FEASIBLE)
}
