//! Laws that hold for any cluster: no node is given more than it has, pods that must be apart are, and the picture of the
//! cluster does not depend on the way it came about.

mod common;

use std::{collections::BTreeMap, sync::Arc};

use common::{NodeCase, PodCase, set_node};
use proptest::prelude::*;
use serde_json::json;
use trireme_scheduler::{
    cluster::Cluster,
    plugins::{self, Filters},
    pod::PodInfo,
    preemption,
    schedule::{Decision, Scheduler},
};

fn node(number: usize, zone: usize, cpu: usize) -> NodeCase {
    serde_json::from_value(
        json!({ "name": format!("n{number}"), "zone": format!("z{zone}"), "allocatable": { "cpu": cpu, "pods": 5 } }),
    )
    .unwrap()
}

/// Small choices, so that pods meet: application, processors, whether it must be alone in its zone, priority.
type PodChoice = (usize, usize, bool, i32);

fn pod(name: usize, (app, cpu, apart, priority): PodChoice) -> Arc<PodInfo> {
    let label = format!("app{app}");
    let term = json!([{ "topologyKey": "kubernetes.io/hostname", "labelSelector": { "matchLabels": { "app": label } } }]);
    let affinity = json!({ "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": term } });
    let spec = if apart { json!({ "affinity": affinity }) } else { json!({}) };
    let case: PodCase = serde_json::from_value(json!({
        "name": format!("p{name}"), "labels": { "app": label }, "owner": label, "requests": { "cpu": cpu },
        "priority": priority, "spec": spec,
    }))
    .unwrap();
    case.infos().remove(0)
}

fn choice() -> impl Strategy<Value = PodChoice> {
    (0..3_usize, 0..3_usize, any::<bool>(), 0..3)
}

#[derive(Clone, Debug)]
enum Step {
    Node(usize, usize, usize),
    RemoveNode(usize),
    Place(usize, PodChoice, usize),
    RemovePod(usize),
    Preempt(PodChoice),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..4_usize, 0..3_usize, 0..6_usize).prop_map(|(node, zone, cpu)| Step::Node(node, zone, cpu)),
        1 => (0..4_usize).prop_map(Step::RemoveNode),
        4 => (0..12_usize, choice(), 0..4_usize).prop_map(|(name, choice, node)| Step::Place(name, choice, node)),
        2 => (0..12_usize).prop_map(Step::RemovePod),
        1 => choice().prop_map(Step::Preempt),
    ]
}

/// What filters and scores say of each node for each kind of pod.
fn opinions(cluster: &mut Cluster) -> Vec<String> {
    cluster.refresh_order();
    let order = cluster.nodes_in_order().to_vec();
    let mut opinions = Vec::new();
    for app in 0..3 {
        for apart in [false, true] {
            let probe = pod(99, (app, 1, apart, 1));
            let filters = Filters::new(&probe, cluster);
            let scores = plugins::score(&probe, cluster, &order);
            for (index, score) in order.iter().zip(scores) {
                let (node, spec) = cluster.node(*index).unwrap();
                opinions.push(format!("{} {:?} {score} {:?}", node.name, filters.check(node, spec), node.requested));
            }
        }
    }
    opinions
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_picture_does_not_depend_on_its_history(steps in proptest::collection::vec(step(), 1..60)) {
        let mut cluster = Cluster::new();
        let mut nodes = BTreeMap::new();
        let mut pods = BTreeMap::new();
        let mut scheduler = Scheduler::new(0);
        for step in steps {
            match step {
                Step::Node(number, zone, cpu) => {
                    set_node(&mut cluster, &node(number, zone, cpu));
                    nodes.insert(number, (zone, cpu));
                }
                Step::RemoveNode(number) => {
                    cluster.remove_node(&format!("n{number}"));
                    nodes.remove(&number);
                }
                Step::Place(name, choice, number) => {
                    cluster.place(&pod(name, choice), &format!("n{number}"));
                    pods.insert(name, (choice, number));
                }
                Step::RemovePod(name) => {
                    cluster.remove_pod(&pod(name, (0, 0, false, 0)).uid);
                    pods.remove(&name);
                }
                Step::Preempt(choice) => {
                    cluster.refresh_order();
                    let incoming = pod(98, choice);
                    if let Decision::Unschedulable(diagnosis) = scheduler.schedule(&incoming, &cluster) {
                        let victims = preemption::find(&incoming, &mut cluster, &diagnosis).map_or_else(|_| Vec::new(), |plan| plan.victims);
                        prop_assert!(victims.iter().all(|victim| victim.priority < incoming.priority));
                    }
                }
            }
        }
        let mut anew = Cluster::new();
        pods.iter().for_each(|(name, (choice, number))| anew.place(&pod(*name, *choice), &format!("n{number}")));
        nodes.iter().for_each(|(number, (zone, cpu))| set_node(&mut anew, &node(*number, *zone, *cpu)));
        prop_assert_eq!(opinions(&mut cluster), opinions(&mut anew));
    }

    #[test]
    fn decisions_keep_the_rules(sizes in proptest::collection::vec((0..3_usize, 0..6_usize), 1..6),
                                choices in proptest::collection::vec(choice(), 1..40), seed in any::<u64>()) {
        let mut cluster = Cluster::new();
        sizes.iter().enumerate().for_each(|(number, (zone, cpu))| set_node(&mut cluster, &node(number, *zone, *cpu)));
        let mut scheduler = Scheduler::new(seed);
        for (name, choice) in choices.into_iter().enumerate() {
            cluster.refresh_order();
            let pod = pod(name, choice);
            if let Decision::Node(node) = scheduler.schedule(&pod, &cluster) {
                cluster.place(&pod, &node);
            }
        }
        for (_, node, spec) in cluster.nodes() {
            prop_assert!(!spec.allocatable.any_below(&node.requested));
            prop_assert!(node.pods.len() as i64 <= spec.max_pods);
            for loner in node.pods.values().filter(|pod| !pod.affinity.required_anti.is_empty()) {
                let same = node.pods.values().filter(|pod| pod.labels() == loner.labels()).count();
                prop_assert_eq!(same, 1);
            }
        }
    }
}

/// Not timed, but it would be noticed if each decision looked at every pod.
#[test]
fn a_large_cluster_is_filled_evenly() {
    let mut cluster = Cluster::new();
    for number in 0..1000 {
        let mut node = node(number, number % 3, 4);
        node.allocatable.insert("pods".to_owned(), json!(110));
        set_node(&mut cluster, &node);
    }
    let mut scheduler = Scheduler::new(1);
    let mut per_zone: BTreeMap<(usize, String), usize> = BTreeMap::new();
    for name in 0..5000 {
        cluster.refresh_order();
        let pod = pod(name, (name % 10, 0, false, 0));
        let Decision::Node(node) = scheduler.schedule(&pod, &cluster) else { panic!("there is room") };
        cluster.place(&pod, &node);
        let index = cluster.node_named(&node).unwrap();
        *per_zone.entry((name % 10, cluster.node(index).unwrap().1.zone().1.to_owned())).or_default() += 1;
    }
    assert_eq!(per_zone.len(), 30);
    assert!(per_zone.values().all(|count| (166..=167).contains(count)), "{per_zone:?}");
}
