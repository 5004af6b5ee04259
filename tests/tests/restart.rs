//! Containers outlive their agents and masters, and a cluster that was stopped resumes with its data.

use std::time::Duration;

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Node},
};
use kube::{Api, ResourceExt, api::PostParams};
use trireme_tests::{
    cluster::{Cluster, Pods},
    config_maps::config_map,
    image,
    pods::{self, containers, web},
    wait::until,
};

const REPLICAS: usize = 3;
const LIMIT: Duration = Duration::from_secs(90);

/// When the node's agent last renewed its Lease.
async fn heartbeat(client: &kube::Client, node: &str) -> kube::Result<String> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let lease = leases.get(node).await?;
    Ok(format!("{:?}", lease.spec.and_then(|spec| spec.renew_time)))
}

async fn next_heartbeat(client: &kube::Client, node: &str, last: &str) {
    until("the agent's next heartbeat", LIMIT, || async {
        let now = heartbeat(client, node).await.map_err(|error| error.to_string())?;
        if now == last { Err(now) } else { Ok(()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_go_on_without_their_agents_and_masters() {
    let cluster = Cluster::start_with(Pods::Real, 3, &["--node-grace-seconds", "8"]);
    image::load(&cluster);
    cluster.kubectl().ok_with_input(&["apply", "-f", "-"], &web(REPLICAS, "one").to_string());
    let client = cluster.client("trireme").await;
    let before = containers(&pods::settled(&client, REPLICAS, &[], LIMIT).await);

    // An agent that is killed finds its containers again.
    let last = heartbeat(&client, "node-1").await.expect("the node has a Lease");
    cluster.trireme(&["kill", "node-1"]);
    cluster.trireme(&["start", "node-1"]);
    next_heartbeat(&client, "node-1", &last).await;
    assert_eq!(containers(&pods::settled(&client, REPLICAS, &[], LIMIT).await), before, "after the agent's restart");
    assert_eq!(cluster.kubectl().ok(&["logs", "deployment/web"]), "started one\n");

    // Nodes that lose every master leave their pods running.
    let last = heartbeat(&client, "node-2").await.expect("the node has a Lease");
    cluster.kill_at_once(&cluster.masters());
    cluster.up();
    let client = cluster.client("trireme").await;
    next_heartbeat(&client, "node-2", &last).await;
    assert_eq!(containers(&pods::settled(&client, REPLICAS, &[], LIMIT).await), before, "after the loss of every master");

    // Down and up again: the containers are new, the objects are not.
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let kept = maps.create(&PostParams::default(), &config_map("kept", "1")).await.expect("the cluster takes writes");
    cluster.trireme(&["down"]);
    cluster.up();
    let client = cluster.client("trireme").await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let found = maps.get("kept").await.expect("it is still there");
    assert_eq!((found.uid(), found.resource_version()), (kept.uid(), kept.resource_version()));
    let nodes: Api<Node> = Api::all(client.clone());
    assert_eq!(nodes.list(&Default::default()).await.expect("nodes are listed").items.len(), 3);
    let after = until("new containers in the same pods, all Ready", LIMIT, || async {
        let pods = pods::list(&client).await.map_err(|error| error.to_string())?;
        let now = containers(&pods);
        let fresh = now.iter().all(|(name, containers)| before.get(name) != Some(containers));
        if fresh && pods.len() == REPLICAS && pods.iter().all(pods::is_ready) { Ok(now) } else { Err(format!("{now:?}")) }
    })
    .await;
    assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>(), "the pods are the same objects");
}
