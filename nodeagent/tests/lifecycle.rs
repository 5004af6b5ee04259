//! A whole agent over a fake API and the hollow runtime.

mod support;

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use support::FakeApi;
use tokio_util::sync::CancellationToken;
use trireme_api::clock::SystemClock;
use trireme_nodeagent::{
    NodeAgentConfig,
    runtime::{
        Runtime,
        hollow::{HollowConfig, HollowRuntime},
    },
};

struct Cluster {
    api: FakeApi,
    runtime: HollowRuntime,
    shutdown: CancellationToken,
    agent: tokio::task::JoinHandle<()>,
}

impl Cluster {
    fn start() -> Self {
        let clock = Arc::new(SystemClock);
        Self::over(FakeApi::new(), HollowRuntime::new(HollowConfig::default(), clock))
    }

    fn over(api: FakeApi, runtime: HollowRuntime) -> Self {
        let shutdown = CancellationToken::new();
        let mut config = NodeAgentConfig::new("n1", "192.0.2.1".parse().unwrap());
        config.zone = "zone-a".to_owned();
        let run =
            trireme_nodeagent::run(api.client(), config, Arc::new(runtime.clone()), Arc::new(SystemClock), shutdown.clone());
        let agent = tokio::spawn(async move { run.await.unwrap() });
        Self { api, runtime, shutdown, agent }
    }

    async fn stop(self) -> (FakeApi, HollowRuntime) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.agent).await.expect("the agent stops in time").unwrap();
        (self.api, self.runtime)
    }
}

const POD: &str = "/api/v1/namespaces/default/pods/web";

fn pod(spec: Value) -> Value {
    let mut pod = json!({
        "metadata": { "name": "web", "namespace": "default" },
        "spec": { "nodeName": "n1", "containers": [{ "name": "c", "image": "example.com/web:1" }] },
    });
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.and_then(|conditions| conditions.iter().find(|condition| condition["type"] == kind));
    found.and_then(|condition| condition["status"].as_str()).unwrap_or_default()
}

fn running(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running" && condition(pod, "Ready") == "True"
}

#[tokio::test]
async fn the_node_registers_and_beats() {
    let cluster = Cluster::start();
    let node = cluster.api.until("/api/v1/nodes/n1", "ready", |node| condition(node, "Ready") == "True").await;
    assert_eq!(node["metadata"]["labels"]["topology.kubernetes.io/zone"], "zone-a");
    assert_eq!(node["status"]["addresses"][0], json!({ "type": "InternalIP", "address": "192.0.2.1" }));
    assert_eq!(node["status"]["allocatable"]["pods"], "110");
    assert!(node["status"]["nodeInfo"]["containerRuntimeVersion"].as_str().unwrap().starts_with("hollow://"));
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";
    let lease = cluster.api.until(lease, "there", |_| true).await;
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
    assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], node["metadata"]["uid"]);
    cluster.stop().await;
}

#[tokio::test]
async fn a_pod_runs_and_is_deleted_gracefully() {
    let cluster = Cluster::start();
    cluster.api.put(POD, pod(json!({})));
    let pod = cluster.api.until(POD, "running", running).await;
    let status = &pod["status"];
    assert_eq!(status["hostIP"], "192.0.2.1");
    assert!(status["podIP"].as_str().unwrap().starts_with("10.88."));
    assert_eq!(status["qosClass"], "BestEffort");
    assert_eq!(status["containerStatuses"][0]["ready"], true);
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
    assert!(status["containerStatuses"][0]["containerID"].as_str().unwrap().starts_with("hollow://"));
    cluster.api.delete_gracefully(POD, 30);
    cluster.api.until_gone(POD).await;
    let (_, runtime) = cluster.stop().await;
    assert!(runtime.list_sandboxes().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_pod_deleted_by_force_is_stopped() {
    let cluster = Cluster::start();
    cluster.api.put(POD, pod(json!({})));
    cluster.api.until(POD, "running", running).await;
    cluster.api.delete_now(POD);
    for _ in 0..500 {
        if cluster.runtime.list_sandboxes().await.unwrap().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (_, runtime) = cluster.stop().await;
    assert!(runtime.list_containers().await.unwrap().is_empty());
    assert!(runtime.list_sandboxes().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_job_ends_as_its_containers_do() {
    for (code, phase, reason) in [("0", "Succeeded", "Completed"), ("3", "Failed", "Error")] {
        let cluster = Cluster::start();
        let mut pod = pod(json!({ "restartPolicy": "Never" }));
        pod["metadata"]["annotations"] =
            json!({ "hollow.trireme.io/exit-after-seconds": "0", "hollow.trireme.io/exit-code": code });
        cluster.api.put(POD, pod);
        let pod = cluster.api.until(POD, phase, |pod| pod["status"]["phase"] == phase).await;
        assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"], reason);
        assert_eq!(condition(&pod, "Ready"), "False");
        cluster.stop().await;
    }
}

#[tokio::test]
async fn a_crashed_container_restarts_and_then_backs_off() {
    let cluster = Cluster::start();
    cluster.api.put(POD, pod(json!({})));
    cluster.api.until(POD, "running", running).await;
    let id = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap().replace("hollow://", "");
    let first = id(&cluster.api.get(POD).unwrap());
    cluster.runtime.exit_container(&first, 1);
    let again = |pod: &Value| running(pod) && pod["status"]["containerStatuses"][0]["restartCount"] == 1;
    let pod = cluster.api.until(POD, "running again", again).await;
    assert_eq!(pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 1);
    cluster.runtime.exit_container(&id(&pod), 1);
    let waits = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    let pod = cluster.api.until(POD, "backing off", waits).await;
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    assert_eq!(waiting["message"], "back-off 10s restarting failed container=c pod=web_default(uid-of-web)");
    assert_eq!(pod["status"]["phase"], "Running");
    cluster.stop().await;
}

#[tokio::test]
async fn a_restarted_agent_adopts_what_runs() {
    let cluster = Cluster::start();
    cluster.api.put(POD, pod(json!({})));
    let before = cluster.api.until(POD, "running", running).await;
    let (api, runtime) = cluster.stop().await;
    let cluster = Cluster::over(api, runtime);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = cluster.api.until(POD, "running", running).await;
    assert_eq!(before["status"], after["status"]);
    assert_eq!(cluster.runtime.list_containers().await.unwrap().len(), 1);
    cluster.stop().await;
}

#[tokio::test]
async fn pods_outlive_the_masters_and_are_restarted_meanwhile() {
    let cluster = Cluster::start();
    cluster.api.put(POD, pod(json!({})));
    let pod = cluster.api.until(POD, "running", running).await;
    cluster.api.set_down(true);
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap().replace("hollow://", "");
    cluster.runtime.exit_container(&id, 1);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(cluster.runtime.list_containers().await.unwrap().len(), 2, "the container runs again though the API is away");
    cluster.api.set_down(false);
    let again = |pod: &Value| running(pod) && pod["status"]["containerStatuses"][0]["restartCount"] == 1;
    cluster.api.until(POD, "told to be running again", again).await;
    cluster.stop().await;
}
