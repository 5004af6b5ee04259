//! A zone loses its power: its pods come back in the other two, and nothing is doubled when it returns.

use std::{fs, time::Duration};

use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt};
use trireme_tests::{
    cluster::{Cluster, Pods},
    image,
    pods::{self, web},
    wait::until,
};

const REPLICAS: usize = 6;
const LIMIT: Duration = Duration::from_secs(120);

/// How many of the test's web servers run on this machine with the node's data folder in their shim's command line.
fn shims_of(cluster: &Cluster, node: &str) -> usize {
    let folder = cluster.folder().join("processes").join(node);
    let folder = folder.to_string_lossy();
    let processes = fs::read_dir("/proc").expect("there is a /proc").flatten();
    let lines = processes.filter_map(|process| fs::read_to_string(process.path().join("cmdline")).ok());
    lines.filter(|line| line.split('\0').nth(1) == Some("shim") && line.contains(&*folder)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pods_of_a_dead_zone_come_back_elsewhere_and_are_not_doubled_when_it_returns() {
    let cluster = Cluster::start_with(Pods::Real, 3, &["--node-grace-seconds", "6"]);
    image::load(&cluster);
    let kubectl = cluster.kubectl();
    kubectl.ok_with_input(&["apply", "-f", "-"], &web(REPLICAS, "one").to_string());
    let client = cluster.client("trireme").await;
    let before = pods::settled(&client, REPLICAS, &[], LIMIT).await;
    let zones = pods::by_zone(&client, &before).await;
    assert_eq!(zones.get("zone-a"), Some(&2), "{zones:?}");
    assert_eq!(shims_of(&cluster, "node-1"), 2);

    cluster.trireme(&["kill", "zone-a"]);
    assert_eq!(shims_of(&cluster, "node-1"), 0, "the containers of a dead machine do not live on");
    let survivor = cluster.client("master-2").await;
    let ready_elsewhere = || async {
        let pods = pods::list(&survivor).await.map_err(|error| error.to_string())?;
        let ready = pods.iter().filter(|pod| pods::is_ready(pod) && pods::node_of(pod) != "node-1").count();
        if ready == REPLICAS { Ok(()) } else { Err(format!("{ready} pods are Ready in the other zones")) }
    };
    until("all replicas are Ready in the other zones", LIMIT, ready_elsewhere).await;
    let nodes: Api<Node> = Api::all(survivor.clone());
    let dead = nodes.get("node-1").await.expect("the node is still known");
    let taints = dead.spec.and_then(|spec| spec.taints).unwrap_or_default();
    assert!(
        taints.iter().any(|taint| taint.key == "node.kubernetes.io/unreachable" && taint.effect == "NoExecute"),
        "{taints:?}"
    );

    cluster.trireme(&["start", "zone-a"]);
    until("the node is Ready and takes pods again", LIMIT, || async {
        let node = nodes.get("node-1").await.map_err(|error| error.to_string())?;
        let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        if taints.is_empty() { Ok(()) } else { Err(format!("{taints:?}")) }
    })
    .await;
    let after = pods::settled(&survivor, REPLICAS, &["node-2", "node-3"], LIMIT).await;
    let old: Vec<String> = before.iter().filter(|pod| pods::node_of(pod) == "node-1").map(ResourceExt::name_any).collect();
    assert!(after.iter().all(|pod| !old.contains(&pod.name_any())), "a pod of the dead zone is still there");
    assert_eq!(shims_of(&cluster, "node-1"), 0, "a container was left over on the returned node");
    assert_eq!(shims_of(&cluster, "node-2") + shims_of(&cluster, "node-3"), REPLICAS);
}
