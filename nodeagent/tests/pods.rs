//! Whole agents over real containers. These tests need root and the package busybox-static.

mod real;
#[path = "agent/support/mod.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod support;

use std::sync::Arc;

use real::{Bench, IMAGE};
use serde_json::{Value, json};
use support::FakeApi;
use tokio_util::sync::CancellationToken;
use trireme_api::clock::SystemClock;
use trireme_nodeagent::NodeAgentConfig;

const POD: &str = "/api/v1/namespaces/default/pods/web";

/// Runs the pod to its end, and gives what its container left in its termination log. `others` are what it refers to, by plural
/// and name.
async fn run(spec: Value, others: &[(&str, &str, Value)]) -> String {
    let bench = Bench::new();
    let runtime = bench.open_with_image().await;
    let api = FakeApi::new();
    for (plural, name, data) in others {
        let path = format!("/api/v1/namespaces/default/{plural}/{name}");
        api.put(&path, json!({ "metadata": { "name": name, "namespace": "default" }, "data": data }));
    }
    let mut pod = json!({ "metadata": { "name": "web", "namespace": "default" }, "spec": spec });
    pod["spec"]["nodeName"] = json!("n1");
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["containers"][0]["name"] = json!("c");
    pod["spec"]["containers"][0]["image"] = json!(IMAGE);
    pod["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    api.put(POD, pod);
    let mut config = NodeAgentConfig::new("n1", "192.0.2.1".parse().unwrap());
    let data_dir = bench.folder.path().join("agent");
    config.data_dir = Some(data_dir.clone());
    let shutdown = CancellationToken::new();
    let run = trireme_nodeagent::run(api.client(), config, Arc::new(runtime), Arc::new(SystemClock), shutdown.clone());
    let agent = tokio::spawn(async move { run.await.unwrap() });
    let ended = |pod: &Value| ["Succeeded", "Failed"].iter().any(|phase| pod["status"]["phase"] == *phase);
    let pod = api.until(POD, "ended", ended).await;
    api.delete_gracefully(POD, 1);
    api.until_gone(POD).await;
    for _ in 0..500 {
        if std::fs::read_dir(data_dir.join("pods")).unwrap().next().is_none() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    shutdown.cancel();
    agent.await.unwrap();
    assert_eq!(bench.leftovers(), Vec::<String>::new());
    let message = &pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"];
    message.as_str().unwrap_or_else(|| panic!("the container left nothing: {:#}", pod["status"])).to_owned()
}

#[tokio::test]
async fn volumes_in_memory_have_their_size() {
    let script = "(stat -f -c %T /memory; df -k /memory | awk 'END { print $2 }') > /dev/termination-log";
    let spec = json!({
        "volumes": [{ "name": "m", "emptyDir": { "medium": "Memory", "sizeLimit": "3Mi" } }],
        "containers": [{ "command": ["sh", "-c", script], "volumeMounts": [{ "name": "m", "mountPath": "/memory" }] }] });
    assert_eq!(run(spec, &[]).await, "tmpfs\n3072\n");
}

#[tokio::test]
async fn sub_paths_are_mounted_and_what_the_api_fills_is_read_only() {
    let script = "(echo one > /folder/file && cat /volume/deep/folder/file; cat /settings; \
                  echo x > /whole/key || echo refused; ls -A /whole/key) > /dev/termination-log 2>/dev/null";
    let spec = json!({
        "volumes": [{ "name": "v", "emptyDir": {} }, { "name": "s", "configMap": { "name": "settings" } }],
        "containers": [{ "command": ["sh", "-c", script], "volumeMounts": [
            { "name": "v", "mountPath": "/volume" }, { "name": "v", "mountPath": "/folder", "subPath": "deep/folder" },
            { "name": "s", "mountPath": "/settings", "subPath": "key" }, { "name": "s", "mountPath": "/whole" }] }] });
    assert_eq!(run(spec, &[("configmaps", "settings", json!({ "key": "two\n" }))]).await, "one\ntwo\nrefused\n/whole/key\n");
}

#[tokio::test]
async fn secrets_are_kept_in_memory() {
    let script = "(stat -f -c %T /secret; cat /secret/key) > /dev/termination-log";
    let spec = json!({
        "volumes": [{ "name": "s", "secret": { "secretName": "password" } }],
        "containers": [{ "command": ["sh", "-c", script], "volumeMounts": [{ "name": "s", "mountPath": "/secret" }] }] });
    assert_eq!(run(spec, &[("secrets", "password", json!({ "key": "MQo=" }))]).await, "tmpfs\n1\n");
}

#[tokio::test]
async fn a_pod_on_the_nodes_network_has_its_name() {
    let script = "(hostname; echo $HOSTNAME; cat /etc/hostname) > /dev/termination-log";
    let spec = json!({ "hostNetwork": true, "containers": [{ "command": ["sh", "-c", script] }] });
    let name = nix::unistd::gethostname().unwrap().into_string().unwrap();
    assert_eq!(run(spec, &[]).await, format!("{name}\n").repeat(3));
}
