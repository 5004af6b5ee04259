//! The Node: its address range, its readiness, its Lease.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use trireme_api::clock::SystemClock;
use trireme_nodeagent::{
    NodeAgentConfig,
    runtime::{
        Runtime,
        hollow::{HollowConfig, HollowRuntime},
    },
};

use crate::support::FakeApi;

const NODE: &str = "/api/v1/nodes/n1";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";
const EVENTS: &str = "/api/v1/namespaces/default/events/";

struct Agent {
    api: FakeApi,
    runtime: HollowRuntime,
    shutdown: CancellationToken,
    run: tokio::task::JoinHandle<()>,
}

impl Agent {
    fn start(api: &FakeApi) -> Agent {
        let runtime = HollowRuntime::new(HollowConfig::default(), Arc::new(SystemClock));
        let mut config = NodeAgentConfig::new("n1", "192.0.2.1".parse().unwrap());
        // Far apart, so that a test sees who wakes whom.
        config.resync_interval = Duration::from_secs(3600);
        config.status_check_interval = Duration::from_millis(200);
        config.lease_renew_interval = Duration::from_millis(200);
        let shutdown = CancellationToken::new();
        let run =
            trireme_nodeagent::run(api.client(), config, Arc::new(runtime.clone()), Arc::new(SystemClock), shutdown.clone());
        Agent { api: api.clone(), runtime, shutdown, run: tokio::spawn(async move { run.await.unwrap() }) }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.run.await.unwrap();
    }
}

fn pod(name: &str, host_network: bool) -> (String, Value) {
    let pod = json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "nodeName": "n1", "hostNetwork": host_network, "containers": [{ "name": "c", "image": "i:1" }] },
    });
    (format!("/api/v1/namespaces/default/pods/{name}"), pod)
}

fn running(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running"
}

fn ready(node: &Value) -> (&str, &str) {
    let conditions = node["status"]["conditions"].as_array();
    let found = conditions.and_then(|conditions| conditions.iter().find(|condition| condition["type"] == "Ready"));
    found.map_or(("", ""), |found| (found["status"].as_str().unwrap(), found["message"].as_str().unwrap()))
}

#[tokio::test]
async fn pods_wait_for_the_nodes_address_range() {
    let api = FakeApi::new();
    api.assign_no_ranges();
    let agent = Agent::start(&api);
    let waiting = "container runtime is not ready: container runtime network not ready: the node has no pod CIDR yet";
    api.until(NODE, "not ready", |node| ready(node) == ("False", waiting)).await;
    for (path, pod) in [pod("own", false), pod("shared", true)] {
        api.put(&path, pod);
    }
    api.until("/api/v1/namespaces/default/pods/shared", "running", running).await;
    let told = |event: &Value| event["reason"] == "NetworkNotReady" && event["type"] == "Warning";
    for _ in 0..500 {
        if api.list(EVENTS).iter().any(told) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(api.list(EVENTS).iter().any(told), "{:#?}", api.list(EVENTS));
    assert_eq!(agent.runtime.list_sandboxes().await.unwrap().len(), 1, "nothing was asked of the runtime for the other");

    let mut node = api.get(NODE).unwrap();
    node["spec"]["podCIDRs"] = json!(["10.244.9.0/24"]);
    api.put(NODE, node);
    let pod = api.until("/api/v1/namespaces/default/pods/own", "running", running).await;
    assert!(pod["status"]["podIP"].as_str().unwrap().starts_with("10.244.9."));
    api.until(NODE, "ready", |node| ready(node).0 == "True").await;
    agent.stop().await;
}

#[tokio::test]
async fn an_agent_that_comes_back_never_takes_its_node_for_unready() {
    let api = FakeApi::new();
    let agent = Agent::start(&api);
    api.until(NODE, "ready", |node| ready(node).0 == "True").await;
    agent.stop().await;
    let before = api.history(NODE).len();
    let agent = Agent::start(&api);
    api.until(LEASE, "there", |_| true).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let after: Vec<Value> = api.history(NODE).split_off(before);
    assert!(after.iter().all(|node| ready(node).0 == "True"), "{:?}", after.iter().map(ready).collect::<Vec<_>>());
    agent.stop().await;
}

#[tokio::test]
async fn a_node_that_was_deleted_is_another_one() {
    let api = FakeApi::new();
    let agent = Agent::start(&api);
    let first = api.until(NODE, "ready", |node| ready(node).0 == "True").await;
    api.until(LEASE, "there", |_| true).await;
    // The next Node has a range only later, and until then the old one's is not used.
    api.assign_no_ranges();
    api.delete_now(NODE);
    let node = api.until(NODE, "not ready", |node| ready(node).0 == "False").await;
    assert_ne!(node["metadata"]["uid"], first["metadata"]["uid"]);
    let owner = |lease: &Value| lease["metadata"]["ownerReferences"][0]["uid"] == node["metadata"]["uid"];
    agent.api.until(LEASE, "the second node's", owner).await;
    agent.stop().await;
}

#[tokio::test]
async fn hollow_init_containers_end() {
    let api = FakeApi::new();
    let agent = Agent::start(&api);
    let (path, mut pod) = pod("web", false);
    pod["spec"]["initContainers"] = json!([
        { "name": "first", "image": "i:1" }, { "name": "beside", "image": "i:1", "restartPolicy": "Always" },
        { "name": "second", "image": "i:1" }]);
    api.put(&path, pod);
    let pod = api.until(&path, "running", running).await;
    let ended: Vec<&Value> = pod["status"]["initContainerStatuses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|status| &status["state"]["terminated"]["exitCode"])
        .collect();
    assert_eq!(ended, [&json!(0), &Value::Null, &json!(0)]);
    agent.stop().await;
}
