//! What people type: both kubectls, each in a cluster of its own, and what they print.

use std::{fs, process::Stdio};

use serde_json::json;
use trireme_tests::{
    cluster::{Cluster, Pods},
    kubectl::Kubectl,
};

/// A Deployment of simulated pods.
fn deployment(image: &str) -> String {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": "shop", "annotations": { "team": "web" } },
        "spec": {
            "replicas": 3,
            "selector": { "matchLabels": { "app": "shop" } },
            "template": {
                "metadata": { "labels": { "app": "shop" } },
                "spec": { "containers": [{ "name": "shop", "image": image }] },
            },
        },
    })
    .to_string()
}

fn lines(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect()).collect()
}

fn assert_holds(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
}

fn discovery(kubectl: &Kubectl) {
    assert_holds(&kubectl.ok(&["version"]), &["Client Version", "Server Version"]);
    assert_holds(&kubectl.ok(&["cluster-info"]), &["is running at", "https://127.0.0.1:"]);
    let resources = kubectl.ok(&["api-resources"]);
    assert_holds(&resources, &["deployments", "deploy", "apps/v1", "configmaps", "cm", "leases", "coordination.k8s.io/v1"]);
    assert_holds(&kubectl.ok(&["api-versions"]), &["apps/v1\n", "v1\n"]);
    assert_holds(&kubectl.ok(&["explain", "deployment.spec.strategy"]), &["RollingUpdate", "rollingUpdate", "type"]);
}

fn reading(kubectl: &Kubectl) {
    let nodes = kubectl.ok(&["get", "nodes", "-L", "topology.kubernetes.io/zone"]);
    let rows = lines(&nodes);
    assert_eq!(rows[0], ["NAME", "STATUS", "ROLES", "AGE", "VERSION", "ZONE"]);
    assert_eq!(rows.len(), 4, "{nodes}");
    assert!(rows[1..].iter().all(|row| row[1] == "Ready"), "{nodes}");
    assert_holds(&kubectl.ok(&["get", "nodes", "-o", "wide"]), &["INTERNAL-IP", "CONTAINER-RUNTIME"]);

    assert_eq!(
        kubectl.ok_with_input(&["create", "-f", "-"], &deployment("example.test/shop:1")),
        "deployment.apps/shop created\n"
    );
    let rolled = kubectl.ok(&["rollout", "status", "deployment/shop", "--timeout=60s"]);
    assert_holds(&rolled, &["deployment \"shop\" successfully rolled out"]);
    let rows = kubectl.ok(&["get", "deployment", "shop"]);
    assert_eq!(lines(&rows)[0], ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]);
    assert_eq!(lines(&rows)[1][..4], ["shop", "3/3", "3", "3"]);
    let wide = kubectl.ok(&["get", "pods", "-l", "app=shop", "-o", "wide"]);
    assert_eq!(lines(&wide)[0][..7], ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]);
    assert!(lines(&wide)[1..].iter().all(|row| row[1..3] == ["1/1", "Running"]), "{wide}");
    for node in ["node-1", "node-2", "node-3"] {
        assert_eq!(
            kubectl.ok(&["get", "pods", "--field-selector", &format!("spec.nodeName={node}"), "-o", "name"]).lines().count(),
            1
        );
    }
    assert_eq!(kubectl.ok(&["get", "deploy", "shop", "-o", "jsonpath={.spec.replicas}"]), "3");
    assert_holds(&kubectl.ok(&["get", "deploy/shop", "-o", "yaml"]), &["kind: Deployment", "maxSurge: 25%"]);
    assert_holds(&kubectl.ok(&["get", "deploy/shop", "-o", "json"]), &["\"kind\": \"Deployment\""]);
    assert_eq!(kubectl.ok(&["get", "deploy", "-o", "name"]), "deployment.apps/shop\n");
    assert_eq!(lines(&kubectl.ok(&["get", "pods", "-A", "--chunk-size=1", "--sort-by=.metadata.name"]))[0][0], "NAMESPACE");
    assert_holds(&kubectl.ok(&["get", "namespaces"]), &["default", "kube-system", "Active"]);
    assert_holds(
        &kubectl.ok(&["describe", "deployment", "shop"]),
        &["StrategyType:", "RollingUpdate", "3 desired", "ScalingReplicaSet"],
    );
    assert_holds(
        &kubectl.ok(&["describe", "pods", "-l", "app=shop"]),
        &["Controlled By:", "ReplicaSet/shop-", "Ready", "Scheduled"],
    );
    assert_holds(&kubectl.ok(&["describe", "node", "node-1"]), &["Conditions:", "MemoryPressure", "Allocated resources"]);
    assert_holds(&kubectl.ok(&["get", "events"]), &["Scheduled", "ScalingReplicaSet"]);
    assert_holds(&kubectl.refused(&["get", "pod", "absent"], ""), &["Error from server (NotFound): pods \"absent\" not found"]);
    assert_holds(&kubectl.refused(&["get", "gadgets"], ""), &["the server doesn't have a resource type \"gadgets\""]);
}

fn changing(kubectl: &Kubectl) {
    assert_eq!(kubectl.ok(&["label", "deployment", "shop", "tier=front"]), "deployment.apps/shop labeled\n");
    assert_eq!(kubectl.ok(&["get", "deploy", "-l", "tier in (front)", "-o", "name"]), "deployment.apps/shop\n");
    assert_eq!(kubectl.ok(&["annotate", "deployment", "shop", "note=x"]), "deployment.apps/shop annotated\n");
    let patch = r#"{"spec":{"template":{"spec":{"containers":[{"name":"shop","env":[{"name":"A","value":"1"}]}]}}}}"#;
    assert_eq!(kubectl.ok(&["patch", "deployment", "shop", "-p", patch]), "deployment.apps/shop patched\n");
    let container = kubectl.ok(&[
        "get",
        "deploy",
        "shop",
        "-o",
        "jsonpath={.spec.template.spec.containers[0].image} {.spec.template.spec.containers[0].env[0].value}",
    ]);
    assert_eq!(container, "example.test/shop:1 1", "a strategic merge patch keeps the rest of the container");
    assert_holds(&kubectl.ok(&["scale", "deployment", "shop", "--replicas=5"]), &["deployment.apps/shop scaled"]);
    kubectl.ok(&["rollout", "status", "deployment/shop", "--timeout=60s"]);
    assert_eq!(lines(&kubectl.ok(&["get", "deployment", "shop"]))[1][1], "5/5");

    assert_eq!(
        kubectl.ok(&["set", "image", "deployment/shop", "shop=example.test/shop:2"]),
        "deployment.apps/shop image updated\n"
    );
    kubectl.ok(&["rollout", "status", "deployment/shop", "--timeout=60s"]);
    let history = kubectl.ok(&["rollout", "history", "deployment/shop"]);
    assert_eq!(
        lines(&history).iter().filter(|row| row.first().is_some_and(|first| first.parse::<u32>().is_ok())).count(),
        3,
        "{history}"
    );
    assert_eq!(kubectl.ok(&["rollout", "undo", "deployment/shop"]), "deployment.apps/shop rolled back\n");
    kubectl.ok(&["rollout", "status", "deployment/shop", "--timeout=60s"]);
    let image = kubectl.ok(&["get", "deploy", "shop", "-o", "jsonpath={.spec.template.spec.containers[0].image}"]);
    assert_eq!(image, "example.test/shop:1");
    assert_eq!(kubectl.ok(&["rollout", "pause", "deployment/shop"]), "deployment.apps/shop paused\n");
    assert_eq!(kubectl.ok(&["rollout", "resume", "deployment/shop"]), "deployment.apps/shop resumed\n");
    assert_eq!(kubectl.ok(&["rollout", "restart", "deployment/shop"]), "deployment.apps/shop restarted\n");
    kubectl.ok(&["rollout", "status", "deployment/shop", "--timeout=60s"]);
    assert_holds(&kubectl.ok(&["wait", "--for=condition=Available", "deployment/shop", "--timeout=30s"]), &["condition met"]);

    let map = |data: serde_json::Value| {
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "settings" }, "data": data }).to_string()
    };
    assert_eq!(kubectl.ok_with_input(&["apply", "-f", "-"], &map(json!({ "a": "1", "b": "2" }))), "configmap/settings created\n");
    assert_eq!(
        kubectl.ok_with_input(&["apply", "-f", "-"], &map(json!({ "a": "1", "b": "2" }))),
        "configmap/settings unchanged\n"
    );
    let differs = kubectl.run(&["diff", "-f", "-"], &map(json!({ "a": "9" })));
    assert_eq!(differs.status.code(), Some(1), "{}", String::from_utf8_lossy(&differs.stderr));
    assert_holds(&String::from_utf8_lossy(&differs.stdout), &["-  b: \"2\"", "+  a: \"9\""]);
    assert_eq!(kubectl.ok_with_input(&["apply", "-f", "-"], &map(json!({ "a": "9" }))), "configmap/settings configured\n");
    let data = kubectl.ok(&["get", "configmap", "settings", "-o", "jsonpath={.data}"]);
    assert_eq!(data, r#"{"a":"9"}"#, "what the manifest lost is removed");
    assert_eq!(kubectl.ok_with_input(&["replace", "-f", "-"], &map(json!({ "c": "3" }))), "configmap/settings replaced\n");
    let mut editing = kubectl.command(&["edit", "configmap", "settings"]);
    editing.env("KUBE_EDITOR", "sed -i 's/c: \"3\"/c: \"4\"/'").stdin(Stdio::null());
    let edited = editing.output().expect("kubectl runs");
    assert!(edited.status.success(), "{}", String::from_utf8_lossy(&edited.stderr));
    assert_eq!(kubectl.ok(&["get", "cm", "settings", "-o", "jsonpath={.data.c}"]), "4");
    let dry = kubectl.ok(&["create", "configmap", "never", "--from-literal=a=b", "--dry-run=server"]);
    assert_eq!(dry, "configmap/never created (server dry run)\n");
    assert_holds(&kubectl.refused(&["get", "cm", "never"], ""), &["NotFound"]);

    assert_eq!(kubectl.ok(&["create", "namespace", "team"]), "namespace/team created\n");
    assert_eq!(kubectl.ok(&["create", "configmap", "c", "--from-literal=a=b", "-n", "team"]), "configmap/c created\n");
    assert_eq!(kubectl.ok(&["create", "secret", "generic", "s", "--from-literal=a=b", "-n", "team"]), "secret/s created\n");
    assert_eq!(kubectl.ok(&["get", "secret", "s", "-n", "team", "-o", "jsonpath={.data.a}"]), "Yg==");
    assert_eq!(kubectl.ok(&["create", "deployment", "d", "--image=example.test/d", "-n", "team"]), "deployment.apps/d created\n");
    assert_eq!(kubectl.ok(&["run", "one", "--image=example.test/one", "-n", "team"]), "pod/one created\n");
    assert_holds(
        &kubectl.ok(&["wait", "--for=condition=Ready", "pod/one", "-n", "team", "--timeout=30s"]),
        &["pod/one condition met"],
    );
    assert_eq!(kubectl.ok(&["delete", "namespace", "team"]), "namespace \"team\" deleted\n");
    assert_holds(&kubectl.refused(&["get", "namespace", "team"], ""), &["NotFound"]);
}

fn nodes(kubectl: &Kubectl) {
    assert_eq!(kubectl.ok(&["cordon", "node-1"]), "node/node-1 cordoned\n");
    assert_holds(&kubectl.ok(&["get", "node", "node-1"]), &["Ready,SchedulingDisabled"]);
    // kubectl 1.20 says "node/node-1 evicted" in the end, later ones "node/node-1 drained".
    assert_holds(
        &kubectl.ok(&["drain", "node-1", "--ignore-daemonsets", "--timeout=60s"]),
        &["evicting pod default/shop-", "pod/shop-"],
    );
    kubectl.ok(&["rollout", "status", "deployment/shop", "--timeout=60s"]);
    assert_eq!(kubectl.ok(&["get", "pods", "--field-selector", "spec.nodeName=node-1", "-o", "name"]), "");
    assert_eq!(kubectl.ok(&["uncordon", "node-1"]), "node/node-1 uncordoned\n");
    assert_eq!(kubectl.ok(&["taint", "node", "node-1", "disk=slow:NoSchedule"]), "node/node-1 tainted\n");
    assert_eq!(kubectl.ok(&["get", "node", "node-1", "-o", "jsonpath={.spec.taints[0].key}"]), "disk");
    assert_eq!(kubectl.ok(&["taint", "node", "node-1", "disk-"]), "node/node-1 untainted\n");
}

fn deleting(kubectl: &Kubectl) {
    assert_eq!(kubectl.ok(&["delete", "deployment", "shop", "--cascade=orphan"]), "deployment.apps \"shop\" deleted\n");
    let left = kubectl.ok(&["get", "rs", "-l", "app=shop", "-o", "name"]);
    assert!(!left.is_empty(), "orphans live on");
    kubectl.ok_with_input(&["apply", "-f", "-"], &deployment("example.test/shop:1"));
    kubectl.ok(&["rollout", "status", "deployment/shop", "--timeout=60s"]);
    assert_eq!(kubectl.ok(&["delete", "deployment", "shop", "--cascade=foreground"]), "deployment.apps \"shop\" deleted\n");
    assert_eq!(kubectl.ok(&["get", "rs", "-l", "app=shop", "-o", "name"]), "", "a foreground deletion ends after the dependents");
    kubectl.ok_with_input(&["apply", "-f", "-"], &deployment("example.test/shop:1"));
    assert_eq!(kubectl.ok(&["delete", "deployment", "shop", "--cascade=background"]), "deployment.apps \"shop\" deleted\n");
    assert_holds(&kubectl.refused(&["get", "deployment", "shop"], ""), &["NotFound"]);
}

fn everything(cluster: &Cluster, kubectl: &Kubectl) {
    discovery(kubectl);
    reading(kubectl);
    changing(kubectl);
    nodes(kubectl);
    deleting(kubectl);
    for master in cluster.masters() {
        assert_holds(&kubectl.context(&master).ok(&["get", "nodes"]), &["node-1", "node-2", "node-3"]);
    }
}

#[test]
fn the_machines_kubectl_prints_what_it_prints_against_kubernetes() {
    let cluster = Cluster::start(Pods::Hollow, 3);
    everything(&cluster, &cluster.kubectl());
    assert_holds(&cluster.kubectl().ok(&["events"]), &["LAST SEEN", "ScalingReplicaSet"]);
}

#[test]
fn an_old_kubectl_prints_what_it_prints_against_kubernetes() {
    let cluster = Cluster::start(Pods::Hollow, 3);
    let kubectl = Kubectl::old(cluster.kubeconfig(), cluster.folder());
    everything(&cluster, &kubectl);
}

#[test]
fn a_watch_shows_each_change_as_it_happens() {
    let cluster = Cluster::start(Pods::Hollow, 0);
    let kubectl = cluster.kubectl();
    let output = cluster.folder().join("watched");
    let file = fs::File::create(&output).expect("the folder can be written");
    let mut watching = kubectl.command(&["get", "configmaps", "-w", "-o", "name"]).stdout(file).spawn().expect("kubectl runs");
    kubectl.ok(&["create", "configmap", "watched", "--from-literal=a=b"]);
    let seen = (0..200).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        fs::read_to_string(&output).is_ok_and(|text| text.contains("configmap/watched"))
    });
    watching.kill().expect("kubectl can be ended");
    watching.wait().expect("kubectl ends");
    assert!(seen, "{}", fs::read_to_string(&output).unwrap_or_default());
}
