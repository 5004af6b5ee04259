//! The monitor and the eviction of pods together, against the fake API server.

use std::time::Duration;

use futures::future::BoxFuture;
use http::Method;
use serde_json::{Value, json};

use super::taints::{NOT_READY, UNREACHABLE};
use crate::LoopContext;
use crate::shared::fake_api::FakeApi;
use crate::shared::test_loop::{Running, node};

fn both(context: LoopContext) -> BoxFuture<'static, ()> {
    let (monitor, eviction) = (super::start(context.clone()), super::eviction::start(context));
    Box::pin(async move {
        tokio::join!(monitor, eviction);
    })
}

fn start(api: &FakeApi) -> Running {
    Running::start_with(api, super::LOOP, both, |config| config.node_grace = Duration::from_secs(8))
}

fn add_node(api: &FakeApi, name: &str, zone: &str) {
    api.add(node(
        name,
        json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
    ));
    api.add(json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": "kube-node-lease"}, "spec": {"renewTime": renewal(0)}}));
}

fn add_pod(api: &FakeApi, name: &str, node: &str, toleration_seconds: Option<i64>) {
    let toleration =
        |key| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": toleration_seconds});
    api.add(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "n"},
        "spec": {"nodeName": node, "containers": [], "tolerations": [toleration(NOT_READY), toleration(UNREACHABLE)]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}));
}

fn renewal(second: u64) -> String {
    format!("2026-01-01T{:02}:{:02}:{:02}.000000Z", second / 3600, second / 60 % 60, second % 60)
}

/// Lets `seconds` pass in which the nodes in `alive` renew their leases.
async fn pass_time(api: &FakeApi, alive: &[&str], from: u64, seconds: u64) -> u64 {
    for second in from + 1..=from + seconds {
        for name in alive {
            api.edit("leases", name, |lease| lease["spec"]["renewTime"] = json!(renewal(second)));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    from + seconds
}

fn ready(object: Option<Value>) -> String {
    let object = object.unwrap_or_default();
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready").cloned().unwrap_or_default();
    ready["status"].as_str().unwrap_or_default().to_owned()
}

fn taints(api: &FakeApi, name: &str) -> Vec<String> {
    let node = api.get("nodes", name).unwrap();
    let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let text = |taint: &Value| format!("{}:{}", taint["key"].as_str().unwrap(), taint["effect"].as_str().unwrap());
    taints.iter().map(text).collect()
}

fn told(api: &FakeApi, reason: &str, message: &str) -> bool {
    api.list("events").iter().any(|event| event["reason"] == reason && event["message"] == message)
}

#[tokio::test(start_paused = true)]
async fn a_dead_zone_is_evicted_and_recovers() {
    let api = FakeApi::default();
    for (name, zone) in [("a", "za"), ("b", "zb"), ("c", "zc")] {
        add_node(&api, name, zone);
    }
    add_pod(&api, "brief", "a", Some(5));
    add_pod(&api, "patient", "a", Some(300));
    add_pod(&api, "safe", "b", Some(5));
    let running = start(&api);
    let clock = pass_time(&api, &["a", "b", "c"], 0, 30).await;
    assert!(["a", "b", "c"].iter().all(|name| taints(&api, name).is_empty() && ready(api.get("nodes", name)) == "True"));

    api.fail(Method::PUT, "/nodes/a/status", 500, 1);
    let clock = pass_time(&api, &["b", "c"], clock, 7).await;
    assert_eq!(ready(api.get("nodes", "a")), "True", "within the grace");
    let clock = pass_time(&api, &["b", "c"], clock, 5).await;
    assert_eq!(ready(api.get("nodes", "a")), "Unknown");
    assert_eq!(taints(&api, "a"), [format!("{UNREACHABLE}:NoSchedule"), format!("{UNREACHABLE}:NoExecute")]);
    assert_eq!((ready(api.get("pods", "patient")), ready(api.get("pods", "safe"))), ("False".into(), "True".into()));
    let clock = pass_time(&api, &["b", "c"], clock, 8).await;
    assert!(api.get("pods", "brief").is_none() && api.get("pods", "patient").is_some());
    assert!(told(&api, "NodeNotReady", "Node a status is now: NodeNotReady"));
    assert!(told(&api, "TaintManagerEviction", "Marking for deletion Pod n/brief"));

    api.edit("nodes", "a", |node| node["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]));
    let clock = pass_time(&api, &["a", "b", "c"], clock, 2).await;
    assert!(taints(&api, "a").is_empty());
    pass_time(&api, &["a", "b", "c"], clock, 400).await;
    assert!(api.get("pods", "patient").is_some());
    assert!(told(&api, "TaintManagerEviction", "Cancelling deletion of Pod n/patient"));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_evicted_while_every_zone_is_silent() {
    let api = FakeApi::default();
    for (name, zone) in [("a", "za"), ("b", "zb")] {
        add_node(&api, name, zone);
        add_pod(&api, &format!("on-{name}"), name, Some(0));
    }
    let running = start(&api);
    let clock = pass_time(&api, &["a", "b"], 0, 5).await;
    let clock = pass_time(&api, &[], clock, 120).await;
    assert!(["a", "b"].iter().all(|name| ready(api.get("nodes", name)) == "Unknown"));
    assert_eq!(taints(&api, "a"), [format!("{UNREACHABLE}:NoSchedule")]);
    assert_eq!(api.list("pods").len(), 2);
    // One comes back: the other is what is lost.
    api.edit("nodes", "b", |node| node["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]));
    pass_time(&api, &["b"], clock, 30).await;
    assert!(taints(&api, "b").is_empty());
    assert!(api.get("pods", "on-a").is_none() && api.get("pods", "on-b").is_some());
    running.stop().await;
}
