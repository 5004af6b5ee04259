//! Objects through the whole server, in process: creation, changes, deletion, and what is refused.

mod support;

use http::Method;
use serde_json::{Value, json};
use support::TestServer;
use trireme_apiserver::RequestContext;
use trireme_storage::model::Term;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const JSON: (&str, &str) = ("content-type", "application/json");

fn config_map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "k": "v" } })
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "containers": [{ "name": "c", "image": "busybox:1" }] },
    })
}

#[tokio::test]
async fn an_update_of_an_old_state_is_a_conflict() {
    let server = TestServer::start().await;
    let created = server.post(MAPS, &config_map("a")).await;
    assert_eq!(created.code, 201);
    let mut old = created.json();
    assert!(old["metadata"]["uid"].as_str().is_some_and(|uid| uid.len() == 36));
    let mut new = old.clone();
    new["data"]["k"] = json!("w");
    let updated = server.put(&format!("{MAPS}/a"), &new).await;
    assert_eq!(updated.code, 200);
    assert_ne!(updated.json()["metadata"]["resourceVersion"], old["metadata"]["resourceVersion"]);
    old["data"]["k"] = json!("x");
    let stale = server.put(&format!("{MAPS}/a"), &old).await;
    let expected = "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to \
                    the latest version and try again";
    assert_eq!((stale.code, stale.message().as_str()), (409, expected));
    // Without a resourceVersion it is unconditional; the same content again writes nothing.
    let again = server.put(&format!("{MAPS}/a"), &config_map("a")).await.json();
    let same = server.put(&format!("{MAPS}/a"), &config_map("a")).await.json();
    assert_eq!(again, same);
    let mut other = config_map("a");
    other["metadata"]["uid"] = json!("no");
    assert_eq!(server.put(&format!("{MAPS}/a"), &other).await.code, 409);
    assert_eq!(server.put(&format!("{MAPS}/z"), &config_map("z")).await.code, 404);
    assert_eq!(server.post(MAPS, &config_map("a")).await.code, 409);
}

#[tokio::test]
async fn names_are_generated() {
    let server = TestServer::start().await;
    let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "generateName": "x-" } });
    let first = server.post(MAPS, &object).await.json();
    let second = server.post(MAPS, &object).await.json();
    let name = first["metadata"]["name"].as_str().expect("a name");
    assert!(name.starts_with("x-") && name.len() == 7, "{name}");
    assert_ne!(first["metadata"]["name"], second["metadata"]["name"]);
    let nameless = server.post(MAPS, &json!({ "metadata": {} })).await;
    assert_eq!(nameless.code, 422);
    assert!(
        nameless.message().contains("metadata.name: Required value: name or generateName is required"),
        "{}",
        nameless.message()
    );
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_one_goes() {
    let server = TestServer::start().await;
    let mut object = config_map("a");
    object["metadata"]["finalizers"] = json!(["example.com/x"]);
    server.post(MAPS, &object).await;
    let marked = server.delete(&format!("{MAPS}/a")).await.json();
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(server.get(&format!("{MAPS}/a")).await.code, 200);
    let last = server.patch(&format!("{MAPS}/a"), "merge", &json!({ "metadata": { "finalizers": null } })).await;
    assert_eq!(last.code, 200);
    assert_eq!(server.get(&format!("{MAPS}/a")).await.code, 404);
    // Foreground and orphan deletion are finalizers that the garbage collector takes away.
    for (policy, finalizer) in [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")] {
        server.post(MAPS, &config_map("b")).await;
        let marked = server.delete(&format!("{MAPS}/b?propagationPolicy={policy}")).await.json();
        assert_eq!(marked["metadata"]["finalizers"], json!([finalizer]));
        server.patch(&format!("{MAPS}/b"), "merge", &json!({ "metadata": { "finalizers": [] } })).await;
        assert_eq!(server.get(&format!("{MAPS}/b")).await.code, 404, "{policy}");
    }
}

#[tokio::test]
async fn deletions_have_preconditions() {
    let server = TestServer::start().await;
    server.post(MAPS, &config_map("a")).await;
    let options = json!({ "kind": "DeleteOptions", "apiVersion": "v1", "preconditions": { "uid": "other" } });
    let refused = server.send(Method::DELETE, &format!("{MAPS}/a"), &[JSON], options.to_string()).await;
    assert_eq!(refused.code, 409);
    assert!(refused.message().contains("the UID in the precondition (other) does not match the UID in record"));
    let bad = server.delete(&format!("{MAPS}/a?propagationPolicy=Sometimes")).await;
    assert_eq!(bad.code, 422);
    let gone = server.delete(&format!("{MAPS}/a")).await;
    assert_eq!((gone.code, gone.json()["status"].clone()), (200, json!("Success")));
    assert_eq!(server.delete(&format!("{MAPS}/a")).await.code, 404);
    for name in ["a", "b", "c"] {
        server.post(MAPS, &config_map(name)).await;
    }
    assert_eq!(server.delete(&format!("{MAPS}?fieldSelector=metadata.name!=b")).await.code, 200);
    let left = server.get(MAPS).await.json();
    assert_eq!(left["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(server.delete("/api/v1/namespaces/kube-system").await.code, 403);
}

#[tokio::test]
async fn pods_are_deleted_with_grace_once_they_run_on_a_node() {
    let server = TestServer::start().await;
    server.post(PODS, &pod("free")).await;
    server.delete(&format!("{PODS}/free")).await;
    assert_eq!(server.get(&format!("{PODS}/free")).await.code, 404, "a pod without a node goes at once");
    let created = server.post(PODS, &pod("p")).await;
    assert_eq!(created.code, 201, "{}", created.message());
    let created = created.json();
    assert_eq!(created["spec"]["serviceAccountName"], "default");
    assert_eq!(created["spec"]["priority"], 0);
    assert_eq!(created["spec"]["tolerations"].as_array().map(Vec::len), Some(2));
    assert_eq!(created["status"]["phase"], "Pending");
    let binding =
        json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": "p" }, "target": { "kind": "Node", "name": "n1" } });
    assert_eq!(server.post(&format!("{PODS}/p/binding"), &binding).await.code, 201);
    let twice = server.post(&format!("{PODS}/p/binding"), &binding).await;
    assert!(twice.code == 409 && twice.message().contains("already assigned to node \"n1\""));
    let bound = server.get(&format!("{PODS}/p")).await.json();
    assert_eq!(bound["spec"]["nodeName"], "n1");
    let scheduled = bound["status"]["conditions"]
        .as_array()
        .expect("conditions")
        .iter()
        .any(|condition| condition["type"] == "PodScheduled" && condition["status"] == "True");
    assert!(scheduled);
    let by_node = server.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await.json();
    assert_eq!(by_node["items"].as_array().map(Vec::len), Some(1));
    let marked = server.delete(&format!("{PODS}/p")).await.json();
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    let longer = server.delete(&format!("{PODS}/p?gracePeriodSeconds=60")).await.json();
    assert_eq!(longer["metadata"]["deletionGracePeriodSeconds"], 30, "a deletion can only be shortened");
    let shorter = server.delete(&format!("{PODS}/p?gracePeriodSeconds=5")).await.json();
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    server.delete(&format!("{PODS}/p?gracePeriodSeconds=0")).await;
    assert_eq!(server.get(&format!("{PODS}/p")).await.code, 404);
    server.post(PODS, &pod("e")).await;
    let eviction = json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": "e" } });
    assert_eq!(server.post(&format!("{PODS}/e/eviction"), &eviction).await.code, 201);
    assert_eq!(server.get(&format!("{PODS}/e")).await.code, 404);
}

#[tokio::test]
async fn status_is_written_apart() {
    let server = TestServer::start().await;
    server.post(PODS, &pod("p")).await;
    let patch = json!({ "status": { "phase": "Running" }, "metadata": { "labels": { "x": "y" } } });
    let updated = server.patch(&format!("{PODS}/p/status"), "merge", &patch).await;
    assert_eq!(updated.json()["status"]["phase"], "Running");
    let main = server.patch(&format!("{PODS}/p"), "strategic-merge", &json!({ "status": { "phase": "Failed" } })).await;
    assert_eq!(main.json()["status"]["phase"], "Running", "{}", main.message());
    let image = json!({ "spec": { "containers": [{ "name": "c", "image": "busybox:2" }] } });
    let patched = server.patch(&format!("{PODS}/p"), "strategic-merge", &image).await.json();
    assert_eq!(patched["spec"]["containers"][0]["image"], "busybox:2");
    assert_eq!(patched["spec"]["containers"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_namespace_goes_when_it_is_empty() {
    let server = TestServer::start().await;
    server.post("/api/v1/namespaces", &json!({ "metadata": { "name": "n" } })).await;
    let created = server.post("/api/v1/namespaces/n/configmaps", &config_map("a")).await;
    assert_eq!(created.code, 201);
    let marked = server.delete("/api/v1/namespaces/n").await.json();
    assert_eq!(marked["status"]["phase"], "Terminating");
    let refused = server.post("/api/v1/namespaces/n/configmaps", &config_map("b")).await;
    assert_eq!(refused.code, 403);
    assert!(refused.message().contains("unable to create new content in namespace n because it is being terminated"));
    let mut finalized = marked.clone();
    finalized["spec"] = json!({ "finalizers": [] });
    assert_eq!(server.put("/api/v1/namespaces/n/finalize", &finalized).await.code, 200);
    assert_eq!(server.get("/api/v1/namespaces/n").await.code, 404);
    let absent = server.post("/api/v1/namespaces/n/configmaps", &config_map("b")).await;
    assert_eq!((absent.code, absent.message().as_str()), (404, "namespaces \"n\" not found"));
}

#[tokio::test]
async fn dry_runs_change_nothing() {
    let server = TestServer::start().await;
    assert_eq!(server.post(&format!("{MAPS}?dryRun=All"), &config_map("a")).await.code, 201);
    assert_eq!(server.get(&format!("{MAPS}/a")).await.code, 404);
    server.post(MAPS, &config_map("a")).await;
    let patched = server.patch(&format!("{MAPS}/a?dryRun=All"), "merge", &json!({ "data": { "k": "z" } })).await.json();
    assert_eq!(patched["data"]["k"], "z");
    server.delete(&format!("{MAPS}/a?dryRun=All")).await;
    assert_eq!(server.get(&format!("{MAPS}/a")).await.json()["data"]["k"], "v");
    assert_eq!(server.post(&format!("{MAPS}?dryRun=Some"), &config_map("b")).await.code, 422);
}

#[tokio::test]
async fn bad_requests_get_the_status_that_kubernetes_gives() {
    let server = TestServer::start().await;
    let send = |method: Method, path: &'static str, content_type: &'static str, body: String| {
        let server = &server;
        async move { server.send(method, path, &[("content-type", content_type)], body).await.code }
    };
    assert_eq!(send(Method::POST, MAPS, "application/json", "{\"kind\":".into()).await, 400);
    assert_eq!(send(Method::POST, MAPS, "text/plain", "{}".into()).await, 415);
    assert_eq!(send(Method::POST, MAPS, "application/vnd.kubernetes.protobuf", "{}".into()).await, 400);
    assert_eq!(send(Method::POST, MAPS, "application/json", "[]".into()).await, 400);
    assert_eq!(send(Method::POST, MAPS, "application/json", "{\"kind\":\"Pod\",\"apiVersion\":\"v1\"}".into()).await, 400);
    assert_eq!(send(Method::POST, MAPS, "application/json", " ".repeat(3 * 1024 * 1024 + 1)).await, 413);
    assert_eq!(send(Method::PATCH, "/api/v1/namespaces/default", "application/apply-patch+yaml", "{}".into()).await, 415);
    assert_eq!(send(Method::PATCH, "/api/v1/namespaces/default", "application/json-patch+json", "{}".into()).await, 400);
    assert_eq!(send(Method::PUT, MAPS, "application/json", "{}".into()).await, 405);
    assert_eq!(send(Method::POST, "/api/v1/configmaps", "application/json", "{}".into()).await, 405);
    for (path, code) in [
        ("/api/v1/nothings", 404),
        ("/apis/none/v1/things", 404),
        ("/nothing", 404),
        ("/api/v1/namespaces/default/configmaps/a/scale", 404),
        ("/api/v1/namespaces/default/nodes", 404),
        ("/api/v1/configmaps?labelSelector=a%20b%20c", 400),
        ("/api/v1/configmaps?limit=x", 400),
    ] {
        assert_eq!(server.get(path).await.code, code, "{path}");
    }
    let wrong = server.post(MAPS, &json!({ "metadata": { "name": "a" }, "data": { "k": 1 } })).await;
    assert_eq!(wrong.code, 400, "{}", wrong.message());
    let strict = server.post(&format!("{MAPS}?fieldValidation=Strict"), &json!({ "metadata": { "name": "a" }, "foo": 1 })).await;
    assert!(
        strict.code == 400 && strict.message().ends_with("strict decoding error: unknown field \"foo\""),
        "{}",
        strict.message()
    );
    let warned = server.post(MAPS, &json!({ "metadata": { "name": "a" }, "foo": 1 })).await;
    assert_eq!(warned.headers.get("warning").and_then(|value| value.to_str().ok()), Some("299 - \"unknown field \\\"foo\\\"\""));
}

#[tokio::test]
async fn refusals_are_worded_as_kubectl_expects_them() {
    let server = TestServer::start().await;
    server.post(MAPS, &config_map("a")).await;
    let message = |path: &'static str| {
        let server = &server;
        async move { server.get(path).await.message() }
    };
    assert_eq!(message("/api/v1/configmaps?fieldSelector=foo%3Dbar").await, "field label not supported: foo");
    let labels = message("/api/v1/configmaps?labelSelector=app%3D%28").await;
    assert_eq!(labels, "unable to parse requirement: found '(', expected: identifier");

    let path = format!("{MAPS}/a");
    let misfit = server.patch(&path, "json", &json!([{ "op": "remove", "path": "/data/none" }])).await;
    assert_eq!((misfit.code, misfit.json()["details"].clone()), (422, json!({})));
    assert_eq!(misfit.message(), "the server rejected our request due to an error in our request");
    let wrong_type = json!({ "data": { "k": 1 } });
    for kind in ["merge", "strategic-merge"] {
        let wrong = server.patch(&path, kind, &wrong_type).await;
        assert_eq!((wrong.code, &wrong.json()["details"]["causes"][0]["field"]), (422, &json!("patch")), "{}", wrong.message());
        let why = "json: cannot unmarshal number into Go struct field ConfigMap.data of type string";
        assert!(wrong.message().starts_with(" \"\" is invalid: patch: Invalid value: ") && wrong.message().ends_with(why));
    }
    let strict = format!("{path}?fieldValidation=Strict");
    let unknown = server.patch(&strict, "merge", &json!({ "foo": 1 })).await;
    assert_eq!(unknown.json()["details"]["causes"][0]["field"], "patch");
}

#[tokio::test]
async fn heads_have_no_body_and_namespaces_go_one_by_one() {
    let server = TestServer::start().await;
    let head = server.send(Method::HEAD, "/api/v1/namespaces/default", &[], "").await;
    assert_eq!((head.code, head.body.len()), (200, 0));
    assert_eq!(server.delete("/api/v1/namespaces").await.code, 405);
    let pretty = server.get("/api/v1/namespaces/default?pretty=true").await;
    assert!(pretty.body.starts_with(b"{\n  \"apiVersion\": \"v1\",\n"), "{:?}", pretty.body);
    assert!(server.get("/version").await.body.starts_with(b"{\n  \""));
}

#[tokio::test]
async fn services_get_addresses_and_ports_that_nobody_else_has() {
    let server = TestServer::start().await;
    let path = "/api/v1/namespaces/default/services";
    let service =
        |name: &str, spec: Value| json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec });
    let first = server.post(path, &service("a", json!({ "type": "NodePort", "ports": [{ "port": 80 }] }))).await;
    assert_eq!(first.code, 201, "{}", first.message());
    let first = first.json();
    let address = first["spec"]["clusterIP"].as_str().expect("an address").to_owned();
    assert!(address.starts_with("10."), "{address}");
    let port = first["spec"]["ports"][0]["nodePort"].as_u64().expect("a port");
    assert!((30000..=32767).contains(&port));
    let taken = server.post(path, &service("b", json!({ "clusterIP": address, "ports": [{ "port": 80 }] }))).await;
    assert!(taken.code == 422 && taken.message().contains("provided IP is already allocated"), "{}", taken.message());
    let taken =
        server.post(path, &service("b", json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": port }] }))).await;
    assert!(taken.message().contains("provided port is already allocated"), "{}", taken.message());
    let outside = server.post(path, &service("b", json!({ "clusterIP": "1.2.3.4", "ports": [{ "port": 80 }] }))).await;
    assert!(outside.message().contains("The range of valid IPs is 10.96.0.0/12"), "{}", outside.message());
    let headless = server.post(path, &service("h", json!({ "clusterIP": "None", "ports": [{ "port": 80 }] }))).await.json();
    assert_eq!(headless["spec"]["clusterIP"], "None");
    // An apply that leaves the address out keeps it.
    let kept = server.put(&format!("{path}/a"), &service("a", json!({ "type": "NodePort", "ports": [{ "port": 80 }] }))).await;
    assert_eq!(kept.json()["spec"]["clusterIP"], json!(address), "{}", kept.message());
    server.delete(&format!("{path}/a")).await;
    let free = server.post(path, &service("b", json!({ "clusterIP": address, "ports": [{ "port": 80 }] }))).await;
    assert_eq!(free.code, 201, "{}", free.message());
    assert_eq!(server.get(&format!("{path}/kubernetes")).await.json()["spec"]["clusterIP"], "10.96.0.1");
}

#[tokio::test]
async fn deployments_are_scaled() {
    let server = TestServer::start().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "d" },
        "spec": { "replicas": 2, "selector": { "matchLabels": { "app": "d" } }, "template": {
            "metadata": { "labels": { "app": "d" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } } },
    });
    let created = server.post(path, &deployment).await;
    assert_eq!(created.code, 201, "{}", created.message());
    let scale = server.get(&format!("{path}/d/scale")).await.json();
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!(2), &json!("app=d")));
    let scaled = server.patch(&format!("{path}/d/scale"), "merge", &json!({ "spec": { "replicas": 5 } })).await;
    assert_eq!(scaled.json()["spec"]["replicas"], 5, "{}", scaled.message());
    let deployment = server.get(&format!("{path}/d")).await.json();
    assert_eq!((&deployment["spec"]["replicas"], &deployment["metadata"]["generation"]), (&json!(5), &json!(2)));
    let negative = server.patch(&format!("{path}/d/scale"), "merge", &json!({ "spec": { "replicas": -1 } })).await;
    assert_eq!(negative.code, 422);
    assert_eq!(server.put(&format!("{path}/d/scale"), &scale).await.code, 409, "the scale that was read first is old");
}

#[tokio::test]
async fn priorities_come_from_classes() {
    let server = TestServer::start().await;
    let mut object = pod("p");
    object["spec"]["priorityClassName"] = json!("system-node-critical");
    assert_eq!(server.post(PODS, &object).await.json()["spec"]["priority"], 2_000_001_000);
    object["metadata"]["name"] = json!("q");
    object["spec"]["priorityClassName"] = json!("none");
    let refused = server.post(PODS, &object).await;
    assert_eq!(
        (refused.code, refused.message().as_str()),
        (403, "pods \"q\" is forbidden: no PriorityClass with name none was found")
    );
}

#[tokio::test]
async fn callers_may_do_what_their_identity_allows() {
    let server = TestServer::start().await;
    let anonymous = server.send_as(RequestContext::anonymous(), Method::GET, PODS, &[], "").await;
    assert_eq!(anonymous.code, 403);
    assert_eq!(server.send_as(RequestContext::anonymous(), Method::GET, "/version", &[], "").await.code, 200);
    // Writes of a leadership that has ended change nothing.
    server.store.set_term(Term(9));
    let fenced = |term| RequestContext::master("loop").fenced(Term(term));
    let body = config_map("f").to_string();
    assert_eq!(server.send_as(fenced(8), Method::POST, MAPS, &[JSON], body.clone()).await.code, 503);
    assert_eq!(server.get(&format!("{MAPS}/f")).await.code, 404);
    assert_eq!(server.send_as(fenced(9), Method::POST, MAPS, &[JSON], body).await.code, 201);
}
