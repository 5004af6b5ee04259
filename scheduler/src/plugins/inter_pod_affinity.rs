//! InterPodAffinity: pods that must or would rather be, or not be, where certain other pods are. It works both ways: the
//! terms of pods that run already bear on the pod that comes.

use std::{collections::HashMap, sync::Arc};

use crate::{
    cluster::{Cluster, NodeIndex},
    index::TermRole,
    node::{NodeSpec, NodeState},
    plugins::{MAX_NODE_SCORE, Plugin, Rejection, Remedy},
    pod::PodInfo,
    terms::AffinityTerm,
};

/// What a running pod's required affinity adds for pods that it would like to have near (`hardPodAffinityWeight`).
const HARD_POD_AFFINITY_WEIGHT: i64 = 1;

/// Sums for each domain of one topology.
type Domains<'a> = HashMap<&'a str, i64>;

fn domain<'a>(cluster: &'a Cluster, index: NodeIndex, key: &str) -> Option<&'a str> {
    cluster.node(index)?.1.labels.get(key).map(String::as_str)
}

/// How many placed pods a term selects, by domain.
fn selected<'a>(terms: &[&AffinityTerm], key: &str, cluster: &'a Cluster) -> Domains<'a> {
    let mut domains = Domains::new();
    cluster.classes.all(
        |namespace| terms.iter().all(|term| term.selects_namespace(namespace, cluster.namespaces())),
        |class| terms.iter().all(|term| term.matches_labels(&class.labels)),
        |node, count| {
            if let Some(domain) = domain(cluster, node, key) {
                *domains.entry(domain).or_default() += count as i64;
            }
        },
    );
    domains
}

/// The required terms that bear on one pod.
pub struct AffinityFilter<'a> {
    /// For each required term, domains with pods that match all of the pod's required terms.
    wanted: Vec<(&'a AffinityTerm, Domains<'a>)>,
    /// No such pod exists, but this one would do itself: the first of a group may go anywhere.
    first_of_its_kind: bool,
    unwanted: Vec<(&'a AffinityTerm, Domains<'a>)>,
    /// Domains that running pods keep this one out of, by topology.
    closed: HashMap<Arc<str>, Domains<'a>>,
}

impl<'a> AffinityFilter<'a> {
    pub fn new(pod: &'a PodInfo, cluster: &'a Cluster) -> Self {
        let all: Vec<&AffinityTerm> = pod.affinity.required.iter().collect();
        let wanted: Vec<_> =
            pod.affinity.required.iter().map(|term| (term, selected(&all, &term.topology_key, cluster))).collect();
        let matches_itself = all.iter().all(|term| term.matches(pod.namespace(), pod.labels(), cluster.namespaces()));
        let first_of_its_kind = matches_itself && wanted.iter().all(|(_, domains)| domains.is_empty());
        let unwanted = pod.affinity.required_anti.iter().map(|term| (term, selected(&[term], &term.topology_key, cluster)));
        Self { first_of_its_kind, unwanted: unwanted.collect(), closed: closed_domains(pod, cluster), wanted }
    }

    pub fn check(&self, spec: &NodeSpec) -> Result<(), Rejection> {
        let reject = |remedy, reason: &'static str| Err(Rejection::new(Plugin::InterPodAffinity, remedy, reason));
        let label = |key: &str| spec.labels.get(key).map(String::as_str);
        let in_one_of = |key: &str, domains: &Domains<'_>| label(key).is_some_and(|domain| domains.contains_key(domain));
        let has_all_keys = || self.wanted.iter().all(|(term, _)| label(&term.topology_key).is_some());
        let is_wanted = self.wanted.iter().all(|(term, domains)| in_one_of(&term.topology_key, domains));
        let may_be_first = || self.first_of_its_kind && has_all_keys();
        if !(is_wanted || may_be_first()) {
            return reject(Remedy::None, "node(s) didn't match pod affinity rules");
        }
        if self.unwanted.iter().any(|(term, domains)| in_one_of(&term.topology_key, domains)) {
            return reject(Remedy::Preemption, "node(s) didn't match pod anti-affinity rules");
        }
        if self.closed.iter().any(|(key, domains)| in_one_of(key, domains)) {
            return reject(Remedy::Preemption, "node(s) didn't satisfy existing pods anti-affinity rules");
        }
        Ok(())
    }
}

fn closed_domains<'a>(pod: &PodInfo, cluster: &'a Cluster) -> HashMap<Arc<str>, Domains<'a>> {
    let mut closed: HashMap<Arc<str>, Domains<'a>> = HashMap::new();
    for (role, entry) in cluster.terms.entries() {
        // Roles are in order: required anti-affinity comes first.
        if role != TermRole::RequiredAntiAffinity {
            break;
        }
        if !entry.term.matches(pod.namespace(), pod.labels(), cluster.namespaces()) {
            continue;
        }
        let domains = closed.entry(Arc::clone(&entry.term.topology_key)).or_default();
        for (node, count) in entry.nodes() {
            if let Some(domain) = domain(cluster, node, &entry.term.topology_key) {
                *domains.entry(domain).or_default() += count as i64;
            }
        }
    }
    closed
}

/// The scores of all candidates, normalised between the lowest and the highest.
pub fn scores(pod: &PodInfo, cluster: &Cluster, candidates: &[(NodeIndex, &NodeState, &NodeSpec)]) -> Vec<i64> {
    let mut sums: HashMap<Arc<str>, Domains<'_>> = HashMap::new();
    for (weight, term) in &pod.affinity.preferred {
        let domains = sums.entry(Arc::clone(&term.topology_key)).or_default();
        for (domain, count) in selected(&[term], &term.topology_key, cluster) {
            *domains.entry(domain).or_default() += weight * count;
        }
    }
    for (role, entry) in cluster.terms.entries() {
        let weight = match role {
            TermRole::RequiredAntiAffinity => continue,
            TermRole::RequiredAffinity => HARD_POD_AFFINITY_WEIGHT,
            TermRole::Preferred(weight) => weight,
        };
        if !entry.term.matches(pod.namespace(), pod.labels(), cluster.namespaces()) {
            continue;
        }
        let domains = sums.entry(Arc::clone(&entry.term.topology_key)).or_default();
        for (node, count) in entry.nodes() {
            if let Some(domain) = domain(cluster, node, &entry.term.topology_key) {
                *domains.entry(domain).or_default() += weight * count as i64;
            }
        }
    }
    let sum = |spec: &NodeSpec| -> i64 {
        let of_topology = |(key, domains): (&Arc<str>, &Domains<'_>)| {
            spec.labels.get(&**key).and_then(|domain| domains.get(domain.as_str())).copied().unwrap_or(0)
        };
        sums.iter().map(of_topology).sum()
    };
    let raw: Vec<i64> = candidates.iter().map(|(_, _, spec)| sum(spec)).collect();
    let lowest = raw.iter().copied().min().unwrap_or(0);
    let range = raw.iter().copied().max().unwrap_or(0) - lowest;
    raw.into_iter().map(|score| if range == 0 { 0 } else { MAX_NODE_SCORE * (score - lowest) / range }).collect()
}
