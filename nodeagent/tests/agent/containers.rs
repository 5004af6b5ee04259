//! Probes, hooks and images, over a runtime that answers as the test says.

use std::{sync::Arc, time::Duration};

use crate::support::{FakeApi, scripted::ScriptedRuntime};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use trireme_api::clock::SystemClock;
use trireme_nodeagent::{
    NodeAgentConfig,
    runtime::hollow::{HollowConfig, HollowRuntime},
};

const POD: &str = "/api/v1/namespaces/default/pods/web";

struct Node {
    api: FakeApi,
    runtime: ScriptedRuntime,
    shutdown: CancellationToken,
    agent: tokio::task::JoinHandle<()>,
}

impl Node {
    fn start(runtime: ScriptedRuntime, pod: Value) -> Self {
        Self::start_with(runtime, pod, |_| {})
    }

    /// With what else is to be in the API from the beginning.
    fn start_with(runtime: ScriptedRuntime, pod: Value, others: impl FnOnce(&FakeApi)) -> Self {
        let api = FakeApi::new();
        others(&api);
        api.put(POD, pod);
        let mut config = NodeAgentConfig::new("n1", "192.0.2.1".parse().unwrap());
        config.resync_interval = Duration::from_millis(200);
        let shutdown = CancellationToken::new();
        let run =
            trireme_nodeagent::run(api.client(), config, Arc::new(runtime.clone()), Arc::new(SystemClock), shutdown.clone());
        let agent = tokio::spawn(async move { run.await.unwrap() });
        Self { api, runtime, shutdown, agent }
    }

    async fn until_event(&self, reason: &str, message: &str) {
        let told = |event: &Value| event["reason"] == reason && event["message"] == message;
        for _ in 0..1000 {
            if self.api.list("/api/v1/namespaces/default/events/").iter().any(told) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let all: Vec<String> = self
            .api
            .list("/api/v1/namespaces/default/events/")
            .iter()
            .map(|event| format!("{} {}", event["reason"], event["message"]))
            .collect();
        panic!("no event {reason} {message:?} among {all:#?}");
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.agent.await.unwrap();
    }
}

fn runtime() -> ScriptedRuntime {
    ScriptedRuntime::new(HollowRuntime::new(HollowConfig::default(), Arc::new(SystemClock)))
}

fn pod(container: Value) -> Value {
    let mut container = container;
    container["name"] = json!("c");
    container["image"] = json!("example.com/web:1");
    json!({
        "metadata": { "name": "web", "namespace": "default" },
        "spec": { "nodeName": "n1", "terminationGracePeriodSeconds": 5, "containers": [container] },
    })
}

fn own(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

#[tokio::test]
async fn a_pod_is_ready_when_its_readiness_probe_succeeds() {
    let runtime = runtime();
    runtime.set_code("ready", 1);
    let probe = json!({ "exec": { "command": ["ready"] }, "periodSeconds": 1, "failureThreshold": 1 });
    let node = Node::start(runtime, pod(json!({ "readinessProbe": probe })));
    node.api.until(POD, "running and not ready", |pod| own(pod)["started"] == true && own(pod)["ready"] == false).await;
    node.until_event("Unhealthy", "Readiness probe failed: said").await;
    node.runtime.set_code("ready", 0);
    node.api.until(POD, "ready", |pod| own(pod)["ready"] == true).await;
    node.runtime.set_code("ready", 1);
    node.api.until(POD, "not ready again", |pod| own(pod)["ready"] == false).await;
    node.stop().await;
}

#[tokio::test]
async fn a_container_that_fails_its_liveness_probe_is_restarted() {
    let runtime = runtime();
    runtime.set_code("alive", 1);
    let probe = json!({ "exec": { "command": ["alive"] }, "periodSeconds": 1, "failureThreshold": 2 });
    let node = Node::start(runtime, pod(json!({ "livenessProbe": probe })));
    node.until_event("Killing", "Container c failed liveness probe, will be restarted").await;
    node.runtime.set_code("alive", 0);
    node.api.until(POD, "restarted", |pod| own(pod)["restartCount"] == 1 && own(pod)["ready"] == true).await;
    node.stop().await;
}

#[tokio::test]
async fn other_probes_wait_for_the_startup_probe() {
    let runtime = runtime();
    runtime.set_code("up", 1);
    let startup = json!({ "exec": { "command": ["up"] }, "periodSeconds": 1, "failureThreshold": 30 });
    let liveness = json!({ "exec": { "command": ["alive"] }, "periodSeconds": 1 });
    let node = Node::start(runtime, pod(json!({ "startupProbe": startup, "livenessProbe": liveness })));
    node.until_event("Unhealthy", "Startup probe failed: said").await;
    assert!(!node.runtime.asked().contains(&"exec alive".to_owned()));
    node.runtime.set_code("up", 0);
    node.api.until(POD, "started", |pod| own(pod)["started"] == true && own(pod)["ready"] == true).await;
    node.stop().await;
}

#[tokio::test]
async fn hooks_run_after_the_start_and_before_the_stop() {
    let lifecycle = json!({ "postStart": { "exec": { "command": ["hello"] } }, "preStop": { "exec": { "command": ["bye"] } } });
    let node = Node::start(runtime(), pod(json!({ "lifecycle": lifecycle })));
    node.api.until(POD, "ready", |pod| own(pod)["ready"] == true).await;
    node.api.delete_gracefully(POD, 5);
    node.api.until_gone(POD).await;
    let asked: Vec<String> = node.runtime.asked().into_iter().filter(|what| what != "stop-sandbox").collect();
    assert_eq!(asked, ["pull example.com/web:1", "create c 0", "exec hello", "exec bye", "stop c"]);
    node.stop().await;
}

#[tokio::test]
async fn a_failed_post_start_hook_kills_the_container() {
    let runtime = runtime();
    runtime.set_code("hello", 1);
    let node = Node::start(runtime, pod(json!({ "lifecycle": { "postStart": { "exec": { "command": ["hello"] } } } })));
    node.until_event("FailedPostStartHook", "PostStartHook failed").await;
    node.api.until(POD, "backing off", |pod| own(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff").await;
    node.stop().await;
}

#[tokio::test]
async fn an_image_that_cannot_be_pulled_backs_off() {
    let runtime = runtime();
    runtime.set_registry(false);
    let node = Node::start(runtime, pod(json!({})));
    let waits = |reason: &'static str| move |pod: &Value| own(pod)["state"]["waiting"]["reason"] == reason;
    let refused = node.api.until(POD, "refused", waits("ErrImagePull")).await;
    assert_eq!(own(&refused)["state"]["waiting"]["message"], "the registry is away");
    assert_eq!(refused["status"]["phase"], "Pending");
    let held = node.api.until(POD, "held back", waits("ImagePullBackOff")).await;
    let message = "Back-off pulling image \"example.com/web:1\": ErrImagePull: the registry is away";
    assert_eq!(own(&held)["state"]["waiting"]["message"], message);
    node.until_event("Failed", "Failed to pull image \"example.com/web:1\": the registry is away").await;
    node.until_event("Failed", "Error: ImagePullBackOff").await;
    node.runtime.set_registry(true);
    node.api.until(POD, "ready", |pod| own(pod)["ready"] == true).await;
    node.stop().await;
}

#[tokio::test]
async fn an_image_that_must_not_be_pulled_is_not() {
    let node = Node::start(runtime(), pod(json!({ "imagePullPolicy": "Never" })));
    let waits = |pod: &Value| own(pod)["state"]["waiting"]["reason"] == "ErrImageNeverPull";
    node.api.until(POD, "refused", waits).await;
    assert!(node.runtime.asked().is_empty());
    node.stop().await;
}

#[tokio::test]
async fn the_runtime_gets_everything_resolved() {
    let container = json!({
        "command": ["run", "$(NAME)"], "args": ["--ip=$(IP)", "$$(NAME)"], "workingDir": "/srv",
        "env": [{ "name": "NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                { "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } }],
        "resources": { "limits": { "cpu": "500m", "memory": "64Mi" } },
        "securityContext": { "runAsUser": 1000, "capabilities": { "drop": ["ALL"] } },
    });
    let node = Node::start(runtime(), pod(container));
    let pod = node.api.until(POD, "ready", |pod| own(pod)["ready"] == true).await;
    let config = node.runtime.configs().remove(0);
    let address = pod["status"]["podIP"].as_str().unwrap();
    assert_eq!(config.command, ["run", "web"]);
    assert_eq!(config.args, [format!("--ip={address}"), "$(NAME)".to_owned()]);
    assert_eq!(config.working_directory.as_deref(), Some("/srv"));
    assert_eq!(config.resources.cpu_quota_us, Some(50_000));
    assert_eq!(config.resources.memory_limit_bytes, Some(64 << 20));
    assert_eq!(
        (config.security.run_as_user, config.security.drop_capabilities.as_slice()),
        (Some(1000), &["ALL".to_owned()][..])
    );
    assert_eq!(config.log_path.to_str(), Some("c/0.log"));
    node.stop().await;
}

#[tokio::test]
async fn a_shorter_grace_period_hurries_the_end() {
    let lifecycle = json!({ "preStop": { "sleep": { "seconds": 100 } } });
    let mut pod = pod(json!({ "lifecycle": lifecycle }));
    pod["spec"]["terminationGracePeriodSeconds"] = json!(100);
    let node = Node::start(runtime(), pod);
    node.api.until(POD, "ready", |pod| own(pod)["ready"] == true).await;
    node.api.delete_gracefully(POD, 100);
    node.until_event("Killing", "Stopping container c").await;
    node.api.delete_gracefully(POD, 1);
    node.api.until_gone(POD).await;
    node.stop().await;
}

#[tokio::test]
async fn containers_are_told_of_services() {
    let told = pod(json!({ "env": [{ "name": "URL", "value": "$(WEB_PORT)" }] }));
    let runtime = runtime();
    let node = Node::start_with(runtime, told, |api| {
        for (name, address) in [("kubernetes", "10.96.0.1"), ("web", "10.96.0.2")] {
            let spec = json!({ "clusterIP": address, "ports": [{ "port": 443 }] });
            let path = format!("/api/v1/namespaces/default/services/{name}");
            api.put(&path, json!({ "metadata": { "name": name, "namespace": "default" }, "spec": spec }));
        }
    });
    node.api.until(POD, "running", |pod| own(pod)["started"] == true).await;
    let environment = node.runtime.configs()[0].environment.clone();
    for (name, value) in
        [("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("KUBERNETES_SERVICE_PORT", "443"), ("URL", "tcp://10.96.0.2:443")]
    {
        assert!(environment.contains(&(name.to_owned(), value.to_owned())), "{name} in {environment:?}");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_stop_that_fails_is_tried_again_within_the_grace_period() {
    let runtime = runtime();
    let lifecycle = json!({ "preStop": { "exec": { "command": ["bye"] } } });
    let mut pod = pod(json!({ "lifecycle": lifecycle }));
    pod["spec"]["terminationGracePeriodSeconds"] = json!(60);
    let node = Node::start(runtime, pod);
    node.api.until(POD, "ready", |pod| own(pod)["ready"] == true).await;
    node.runtime.fail_stops(2);
    node.api.delete_gracefully(POD, 60);
    node.api.until_gone(POD).await;
    let asked = node.runtime.asked();
    let end: Vec<&str> = asked.iter().map(String::as_str).skip_while(|what| *what != "exec bye").take(5).collect();
    assert_eq!(end, ["exec bye", "stop c", "stop c", "stop c", "stop-sandbox"], "the hook once, and no kill by the sandbox");
    node.stop().await;
}

#[tokio::test]
async fn a_pod_whose_worker_fails_gets_another() {
    let runtime = runtime();
    runtime.panic_once();
    let node = Node::start(runtime, pod(json!({})));
    node.api.until(POD, "ready", |pod| own(pod)["ready"] == true).await;
    node.runtime.panic_once();
    node.api.delete_gracefully(POD, 1);
    node.api.until_gone(POD).await;
    node.stop().await;
}
