//! Runs the cases in `tests/cases/*.yaml`: nodes, pods that are there, pods that come, and what is expected of each.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{NodeCase, PodCase, set_node};
use serde::Deserialize;
use trireme_scheduler::{
    cluster::Cluster,
    preemption,
    schedule::{Decision, Scheduler},
    terms::LabelMap,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Case {
    name: String,
    nodes: Vec<NodeCase>,
    /// Selectors of services by name, in the default namespace.
    #[serde(default)]
    services: BTreeMap<String, LabelMap>,
    /// Labels by namespace.
    #[serde(default)]
    namespaces: BTreeMap<String, LabelMap>,
    #[serde(default)]
    pods: Vec<PodCase>,
    schedule: Vec<Step>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Step {
    pod: PodCase,
    /// The node of all copies.
    #[serde(default)]
    node: Option<String>,
    /// How many copies each node gets.
    #[serde(default)]
    per_node: Option<BTreeMap<String, usize>>,
    /// How many copies each zone gets.
    #[serde(default)]
    per_zone: Option<BTreeMap<String, usize>>,
    /// Why (the last copy) is not placed.
    #[serde(default)]
    message: Option<String>,
    /// The node and the victims of preemption.
    #[serde(default)]
    preempts: Option<(String, BTreeSet<String>)>,
}

#[derive(Default)]
struct Outcome {
    per_node: BTreeMap<String, usize>,
    per_zone: BTreeMap<String, usize>,
    message: Option<String>,
    preempts: Option<(String, BTreeSet<String>)>,
}

fn run_step(step: &Step, cluster: &mut Cluster, scheduler: &mut Scheduler) -> Outcome {
    let mut outcome = Outcome::default();
    for pod in step.pod.infos() {
        cluster.refresh_order();
        match scheduler.schedule(&pod, cluster) {
            Decision::Node(node) => {
                cluster.place(&pod, &node);
                let zone = cluster.node_named(&node).and_then(|index| cluster.node(index)).unwrap().1.zone().1.to_owned();
                *outcome.per_node.entry(node.to_string()).or_default() += 1;
                *outcome.per_zone.entry(zone).or_default() += 1;
            }
            Decision::Unschedulable(diagnosis) => {
                let plan = preemption::find(&pod, cluster, &diagnosis);
                outcome.message = Some(diagnosis.message(plan.as_ref().err().map(String::as_str)));
                let names = |plan: preemption::Plan| plan.victims.iter().map(|victim| victim.name.to_string()).collect();
                outcome.preempts = plan.ok().map(|plan| (plan.node.to_string(), names(plan)));
            }
        }
    }
    outcome
}

fn run_case(case: &Case, seed: u64) {
    let mut cluster = Cluster::new();
    case.nodes.iter().for_each(|node| set_node(&mut cluster, node));
    case.namespaces.iter().for_each(|(name, labels)| cluster.set_namespace(name, labels.clone()));
    case.services.iter().for_each(|(name, selector)| cluster.set_service("default", name, selector));
    for pod in case.pods.iter().flat_map(PodCase::infos) {
        let node = pod.required_node.clone().expect("a pod that is there has a node");
        cluster.place(&pod, &node);
    }
    let mut scheduler = Scheduler::new(seed);
    for step in &case.schedule {
        let outcome = run_step(step, &mut cluster, &mut scheduler);
        let place = || format!("{}: pod {} with seed {seed}", case.name, step.pod.name);
        assert_eq!(outcome.message, step.message, "{}", place());
        if step.message.is_some() {
            assert_eq!(outcome.preempts, step.preempts, "{}", place());
            continue;
        }
        let copies = step.pod.copies.unwrap_or(1);
        let per_node = step.per_node.clone().or_else(|| step.node.clone().map(|node| BTreeMap::from([(node, copies)])));
        assert!(per_node.is_some() || step.per_zone.is_some(), "{} expects nothing", place());
        if let Some(expected) = per_node {
            assert_eq!(outcome.per_node, expected, "{}", place());
        }
        if let Some(expected) = &step.per_zone {
            assert_eq!(&outcome.per_zone, expected, "{}", place());
        }
    }
}

#[test]
fn all_cases() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let cases: Vec<Case> = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for case in &cases {
            // What is expected must not hang on how ties are broken.
            (0..5).for_each(|seed| run_case(case, seed));
            count += 1;
        }
    }
    assert!(count >= 35, "only {count} cases were found");
}
