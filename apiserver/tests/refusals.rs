//! What is refused, cleared or kept as Kubernetes does it, through the whole server.

mod support;

use http::Method;
use serde_json::{Value, json};
use support::TestServer;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const SERVICES: &str = "/api/v1/namespaces/default/services";

fn service(name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec })
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "containers": [{ "name": "c", "image": "busybox:1" }] },
    })
}

#[tokio::test]
async fn a_service_gives_back_what_it_holds() {
    let server = TestServer::start().await;
    let mut first = service("a", json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30001 }] }));
    first["metadata"]["finalizers"] = json!(["example.com/hold"]);
    assert_eq!(server.post(SERVICES, &first).await.code, 201);
    let other = service("b", json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30002 }] }));
    assert_eq!(server.post(SERVICES, &other).await.code, 201);
    server.delete(&format!("{SERVICES}/a")).await;
    // The last update lies about the port.
    let mut last = server.get(&format!("{SERVICES}/a")).await.json();
    last["metadata"]["finalizers"] = json!([]);
    last["spec"]["ports"][0]["nodePort"] = json!(30002);
    assert_eq!(server.put(&format!("{SERVICES}/a"), &last).await.code, 200);
    assert_eq!(server.get(&format!("{SERVICES}/a")).await.code, 404);
    let taken = server.post(SERVICES, &service("c", other["spec"].clone())).await;
    assert!(taken.message().contains("provided port is already allocated"), "{}", taken.message());
    let free = server.post(SERVICES, &service("c", first["spec"].clone())).await;
    assert_eq!(free.code, 201, "{}", free.message());
}

#[tokio::test]
async fn services_have_one_address_and_one_number_for_both_protocols() {
    let server = TestServer::start().await;
    let ports = json!([{ "name": "t", "port": 53, "protocol": "TCP" }, { "name": "u", "port": 53, "protocol": "UDP" }]);
    let dns = server.post(SERVICES, &service("dns", json!({ "type": "NodePort", "ports": ports }))).await.json();
    let number = |port: usize| dns["spec"]["ports"][port]["nodePort"].as_u64();
    assert!(number(0).is_some() && number(0) == number(1), "{dns}");
    let two = json!({ "clusterIP": "10.96.9.1", "clusterIPs": ["10.96.9.1", "10.96.9.2"], "ports": [{ "port": 80 }] });
    let refused = server.post(SERVICES, &service("two", two)).await;
    assert!(refused.code == 422 && refused.message().contains("not configured for dual-stack"), "{}", refused.message());
    let health = |kind: &str, policy: &str, port: u16| json!({ "type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": port, "ports": [{ "port": 80 }] });
    let refused = server.post(SERVICES, &service("h", health("LoadBalancer", "Cluster", 30500))).await;
    assert!(refused.code == 422 && refused.message().contains("may only be set when `type` is"), "{}", refused.message());
    let refused = server.post(SERVICES, &service("h", health("LoadBalancer", "Local", 80))).await;
    assert!(refused.code == 422 && refused.message().contains("spec.healthCheckNodePort"), "{}", refused.message());
    let made = server.post(SERVICES, &service("h", health("LoadBalancer", "Local", 30500))).await;
    assert_eq!(made.code, 201, "{}", made.message());
    let taken = server.post(SERVICES, &service("i", health("LoadBalancer", "Local", 30500))).await;
    assert!(taken.message().contains("provided port is already allocated"), "{}", taken.message());
    let changed = server.patch(&format!("{SERVICES}/h"), "merge", &json!({ "spec": { "healthCheckNodePort": 30501 } })).await;
    assert!(changed.code == 422 && changed.message().contains("field is immutable"), "{}", changed.message());
    // What it was for is gone, and so is the port.
    let cluster =
        server.patch(&format!("{SERVICES}/h"), "merge", &json!({ "spec": { "externalTrafficPolicy": "Cluster" } })).await;
    assert_eq!((cluster.code, &cluster.json()["spec"]["healthCheckNodePort"]), (200, &Value::Null));
}

#[tokio::test]
async fn a_binding_and_a_finalization_are_typed() {
    let server = TestServer::start().await;
    assert_eq!(server.post(PODS, &pod("p")).await.code, 201);
    let target = json!({ "kind": "Node", "name": "n" });
    for (metadata, code) in [
        (json!({ "annotations": { "a": 5 } }), 400),
        (json!({ "labels": { "a": { "b": "c" } } }), 400),
        (json!({ "labels": "x" }), 400),
        (json!({ "labels": { "a": "not a label" } }), 422),
        (json!({ "annotations": { "a": "b" }, "labels": { "l": "m" } }), 201),
    ] {
        let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": target });
        let reply = server.post(&format!("{PODS}/p/binding"), &binding).await;
        assert_eq!(reply.code, code, "{metadata}: {}", reply.message());
    }
    let bound = server.get(&format!("{PODS}/p")).await.json();
    assert_eq!((&bound["metadata"]["annotations"]["a"], &bound["metadata"]["labels"]["l"]), (&json!("b"), &json!("m")));
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");

    assert_eq!(server.post("/api/v1/namespaces", &json!({ "metadata": { "name": "x" } })).await.code, 201);
    for (finalizers, code) in [(json!([5]), 400), (json!("kubernetes"), 400), (json!(["bad"]), 422), (json!(["kubernetes"]), 200)]
    {
        let body =
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "x" }, "spec": { "finalizers": finalizers } });
        let reply = server.put("/api/v1/namespaces/x/finalize", &body).await;
        assert_eq!(reply.code, code, "{finalizers}: {}", reply.message());
    }
    assert_eq!(server.get("/api/v1/namespaces/x").await.json()["spec"]["finalizers"], json!(["kubernetes"]));
}

#[tokio::test]
async fn nulls_in_maps_of_texts_are_empty() {
    let server = TestServer::start().await;
    let map = json!({ "metadata": { "name": "a", "labels": { "l": null } }, "data": { "k": null } });
    let created = server.post(MAPS, &map).await;
    assert_eq!(created.code, 201, "{}", created.message());
    let created = created.json();
    assert_eq!((&created["data"], &created["metadata"]["labels"]), (&json!({ "k": "" }), &json!({ "l": "" })));
    let patch = json!([{ "op": "add", "path": "/data/x", "value": null }]);
    assert_eq!(server.patch(&format!("{MAPS}/a"), "json", &patch).await.json()["data"], json!({ "k": "", "x": "" }));
    let patched = server.patch(&format!("{MAPS}/a"), "merge", &json!({ "data": { "k": null } })).await.json();
    assert_eq!(patched["data"], json!({ "x": "" }), "in a merge patch null removes");
}

#[tokio::test]
async fn options_that_do_not_exist_are_invalid() {
    let server = TestServer::start().await;
    let map = json!({ "metadata": { "name": "a" } });
    assert_eq!(server.post(MAPS, &map).await.code, 201);
    let one = format!("{MAPS}/a");
    for (method, path, kind) in [
        (Method::POST, MAPS, "CreateOptions"),
        (Method::PUT, one.as_str(), "UpdateOptions"),
        (Method::PATCH, one.as_str(), "PatchOptions"),
    ] {
        let content_type = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let headers = [("content-type", content_type)];
        let send = async |query: &str| server.send(method.clone(), &format!("{path}?{query}"), &headers, map.to_string()).await;
        let refused = send("fieldValidation=Loud").await;
        let why = "Unsupported value: \"Loud\": supported values: \"\", \"Ignore\", \"Strict\", \"Warn\"";
        assert_eq!(
            (refused.code, refused.message()),
            (422, format!("{kind}.meta.k8s.io \"\" is invalid: fieldValidation: {why}"))
        );
        let details = refused.json()["details"].clone();
        assert_eq!((&details["group"], &details["kind"]), (&json!("meta.k8s.io"), &json!(kind)));
        assert_eq!(details["causes"][0]["field"], "fieldValidation");
        let refused = send("dryRun=Some").await;
        assert_eq!(refused.code, 422);
        assert!(refused.message().starts_with(&format!("{kind}.meta.k8s.io \"\" is invalid: dryRun: Unsupported value")));
    }
    let refused = server.delete(&format!("{one}?propagationPolicy=Up")).await;
    assert_eq!((refused.code, &refused.json()["details"]["kind"]), (422, &json!("DeleteOptions")));
    let refused = server.get(&format!("{MAPS}?resourceVersionMatch=Exact")).await;
    assert_eq!((refused.code, &refused.json()["details"]["causes"][0]["field"]), (422, &json!("resourceVersionMatch")));
    assert_eq!(server.get(&one).await.code, 200);
}

#[tokio::test]
async fn one_priority_class_is_the_default() {
    let server = TestServer::start().await;
    let path = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let class = |name: &str, is_default: bool| json!({ "metadata": { "name": name }, "value": 5, "globalDefault": is_default });
    assert_eq!(server.post(path, &class("a", true)).await.code, 201);
    let refused = server.post(path, &class("b", true)).await;
    let why = "priorityclasses.scheduling.k8s.io \"b\" is forbidden: PriorityClass a is already marked as default. Only one default can exist";
    assert_eq!((refused.code, refused.message().as_str()), (403, why));
    assert_eq!(server.post(path, &class("b", false)).await.code, 201);
    assert_eq!(server.patch(&format!("{path}/b"), "merge", &json!({ "globalDefault": true })).await.code, 403);
    assert_eq!(server.put(&format!("{path}/a"), &class("a", true)).await.code, 200, "it may stay what it is");
}

#[tokio::test]
async fn the_default_namespace_is_none_for_what_has_no_namespace() {
    let server = TestServer::start().await;
    let node = |namespace: &str| json!({ "metadata": { "name": "n", "namespace": namespace } });
    let created = server.post("/api/v1/nodes", &node("default")).await;
    assert_eq!((created.code, &created.json()["metadata"]["namespace"]), (201, &Value::Null), "{}", created.message());
    let updated = server.put("/api/v1/nodes/n", &node("default")).await;
    assert_eq!((updated.code, &updated.json()["metadata"]["namespace"]), (200, &Value::Null), "{}", updated.message());
    assert_eq!(server.put("/api/v1/nodes/n", &node("other")).await.code, 400);
}

#[tokio::test]
async fn a_scale_is_of_its_object() {
    let server = TestServer::start().await;
    let path = "/apis/apps/v1/namespaces/default/replicasets";
    let set = json!({ "metadata": { "name": "r" }, "spec": { "selector": { "matchLabels": { "a": "b" } }, "template": {
        "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } } } });
    assert_eq!(server.post(path, &set).await.code, 201);
    let scale = |metadata: Value| json!({ "metadata": metadata, "spec": { "replicas": 3 } });
    for (metadata, code) in [
        (json!({}), 400),
        (json!({ "name": "other" }), 400),
        (json!({ "name": "r", "namespace": "other" }), 400),
        (json!({ "name": "r", "uid": "7" }), 409),
        (json!({ "name": "r" }), 200),
    ] {
        let reply = server.put(&format!("{path}/r/scale"), &scale(metadata.clone())).await;
        assert_eq!(reply.code, code, "{metadata}: {}", reply.message());
    }
}

#[tokio::test]
async fn the_data_of_a_controller_revision_is_its_owners() {
    let server = TestServer::start().await;
    let path = "/apis/apps/v1/namespaces/default/controllerrevisions";
    let data = json!({ "spec": { "labels": {}, "list": [], "none": null, "limits": { "cpu": "0.5" } } });
    let revision = json!({ "metadata": { "name": "r" }, "revision": 1, "data": data });
    let created = server.post(path, &revision).await;
    assert_eq!((created.code, &created.json()["data"]), (201, &data), "{}", created.message());
    assert_eq!(server.get(&format!("{path}/r")).await.json()["data"], data);
}

#[tokio::test]
async fn a_second_delete_leaves_the_first_its_time() {
    let server = TestServer::start().await;
    let mut object = pod("p");
    object["spec"]["nodeName"] = json!("n");
    object["spec"]["terminationGracePeriodSeconds"] = json!(0);
    assert_eq!(server.post(PODS, &object).await.code, 201);
    let path = format!("{PODS}/p");
    let first = server.delete(&format!("{path}?gracePeriodSeconds=60")).await.json();
    assert_eq!(first["metadata"]["deletionGracePeriodSeconds"], 60);
    let second = server.delete(&path).await;
    assert_eq!((second.code, &second.json()["metadata"]), (200, &first["metadata"]));
    let shorter = server.delete(&format!("{path}?gracePeriodSeconds=5")).await.json();
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    server.delete(&format!("{path}?gracePeriodSeconds=0")).await;
    assert_eq!(server.get(&path).await.code, 404);
}
