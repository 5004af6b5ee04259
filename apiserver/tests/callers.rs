//! Who may do what, through the whole server: node agents, impersonation, tokens that nobody gave out.

mod support;

use http::Method;
use serde_json::{Value, json};
use support::{Reply, TestServer};
use trireme_apiserver::RequestContext;

const PODS: &str = "/api/v1/namespaces/default/pods";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
const JSON: (&str, &str) = ("content-type", "application/json");
const MERGE: (&str, &str) = ("content-type", "application/merge-patch+json");

fn agent(node: &str) -> RequestContext {
    RequestContext::authenticated(format!("system:node:{node}"), ["system:nodes".to_owned()])
}

fn node(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } })
}

/// A server with the nodes a and b, and a pod on each: `on-a`, `on-b`, and `nowhere` without a node.
async fn cluster() -> TestServer {
    let server = TestServer::start().await;
    for name in ["a", "b"] {
        assert_eq!(server.post("/api/v1/nodes", &node(name)).await.code, 201);
    }
    for (name, node) in [("on-a", "a"), ("on-b", "b"), ("nowhere", "")] {
        let spec = json!({ "nodeName": node, "containers": [{ "name": "c", "image": "i:1" }] });
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": spec });
        let created = server.post(PODS, &pod).await;
        assert_eq!(created.code, 201, "{}", created.message());
    }
    server
}

async fn patch_as(server: &TestServer, who: &RequestContext, path: &str, patch: Value) -> Reply {
    server.send_as(who.clone(), Method::PATCH, path, &[MERGE], patch.to_string()).await
}

#[tokio::test]
async fn an_agent_touches_its_own_pods_alone() {
    let server = cluster().await;
    let a = agent("a");
    let status = json!({ "status": { "phase": "Running" } });
    let own = patch_as(&server, &a, &format!("{PODS}/on-a/status"), status.clone()).await;
    assert_eq!(own.code, 200, "{}", own.message());
    for name in ["on-b", "nowhere"] {
        let refused = patch_as(&server, &a, &format!("{PODS}/{name}/status"), status.clone()).await;
        let why = format!(
            "pods \"{name}\" is forbidden: node \"a\" can only update pod status for pods with spec.nodeName set to itself"
        );
        assert_eq!((refused.code, refused.message()), (403, why));
        let refused = server.send_as(a.clone(), Method::DELETE, &format!("{PODS}/{name}"), &[], "").await;
        let why = format!("pods \"{name}\" is forbidden: node \"a\" can only delete pods with spec.nodeName set to itself");
        assert_eq!((refused.code, refused.message()), (403, why));
    }
    let labels = json!({ "metadata": { "labels": { "app": "web" } } });
    let refused = patch_as(&server, &a, &format!("{PODS}/on-a/status"), labels).await;
    assert!(refused.code == 403 && refused.message().contains("cannot update labels"), "{}", refused.message());
    for (method, path) in [
        (Method::POST, PODS.to_owned()),
        (Method::POST, format!("{PODS}/on-a/eviction")),
        (Method::POST, format!("{PODS}/nowhere/binding")),
        (Method::PATCH, format!("{PODS}/on-a")),
        (Method::DELETE, PODS.to_owned()),
    ] {
        let refused = server.send_as(a.clone(), method.clone(), &path, &[MERGE], "{}").await;
        assert_eq!(refused.code, 403, "{method} {path}");
        assert!(refused.message().contains("is forbidden: User \"system:node:a\" cannot"), "{}", refused.message());
    }
    let query = "?gracePeriodSeconds=0";
    assert_eq!(server.send_as(a.clone(), Method::DELETE, &format!("{PODS}/on-a{query}"), &[], "").await.code, 200);
    assert_eq!(server.get(&format!("{PODS}/on-a")).await.code, 404);
}

#[tokio::test]
async fn an_agent_keeps_its_own_node_and_lease() {
    let server = cluster().await;
    let c = agent("c");
    let created = server.send_as(c.clone(), Method::POST, "/api/v1/nodes", &[JSON], node("c").to_string()).await;
    assert_eq!(created.code, 201, "{}", created.message());
    let refused = server.send_as(c.clone(), Method::POST, "/api/v1/nodes", &[JSON], node("d").to_string()).await;
    let why = "nodes \"d\" is forbidden: node \"c\" is not allowed to modify node \"d\"";
    assert_eq!((refused.code, refused.message().as_str()), (403, why));
    let labels = json!({ "metadata": { "labels": { "x": "y" } } });
    assert_eq!(patch_as(&server, &c, "/api/v1/nodes/c", labels.clone()).await.code, 200);
    assert_eq!(patch_as(&server, &c, "/api/v1/nodes/c/status", json!({ "status": { "phase": "Running" } })).await.code, 200);
    assert_eq!(patch_as(&server, &c, "/api/v1/nodes/a", labels.clone()).await.code, 403);
    assert_eq!(patch_as(&server, &c, "/api/v1/nodes/a/status", labels).await.code, 403);
    let taint = json!({ "spec": { "taints": [{ "key": "k", "effect": "NoSchedule" }] } });
    assert_eq!(server.patch("/api/v1/nodes/c", "merge", &taint).await.code, 200);
    let refused = patch_as(&server, &c, "/api/v1/nodes/c", json!({ "spec": { "taints": null } })).await;
    let why = "nodes \"c\" is forbidden: node \"c\" is not allowed to modify taints";
    assert_eq!((refused.code, refused.message().as_str()), (403, why));

    let lease = |name: &str| json!({ "metadata": { "name": name }, "spec": { "holderIdentity": name } }).to_string();
    let created = server.send_as(c.clone(), Method::POST, LEASES, &[JSON], lease("c")).await;
    assert_eq!(created.code, 201, "{}", created.message());
    let refused = server.send_as(c.clone(), Method::POST, LEASES, &[JSON], lease("a")).await;
    let why =
        "leases.coordination.k8s.io \"a\" is forbidden: can only access node lease with the same name as the requesting node";
    assert_eq!((refused.code, refused.message().as_str()), (403, why));
    let renewal = json!({ "spec": { "leaseDurationSeconds": 7 } });
    assert_eq!(patch_as(&server, &c, &format!("{LEASES}/c"), renewal.clone()).await.code, 200);
    assert_eq!(patch_as(&server, &c, &format!("{LEASES}/a"), renewal).await.code, 403);
}

#[tokio::test]
async fn an_agent_reads_secrets_by_name() {
    let server = cluster().await;
    let secrets = "/api/v1/namespaces/default/secrets";
    server.post(secrets, &json!({ "metadata": { "name": "s" }, "stringData": { "k": "v" } })).await;
    let get = async |path: &str| server.send_as(agent("a"), Method::GET, path, &[], "").await.code;
    assert_eq!(get(&format!("{secrets}/s")).await, 200);
    assert_eq!(get(secrets).await, 403);
    assert_eq!(get("/api/v1/secrets").await, 403);
    assert_eq!(get(&format!("{secrets}?watch=1")).await, 403);
    assert_eq!(get(&format!("{PODS}?fieldSelector=spec.nodeName%3Da")).await, 200);
    assert_eq!(get("/api/v1/services").await, 200);
}

#[tokio::test]
async fn masters_act_as_others() {
    let server = cluster().await;
    let delete = format!("{PODS}/on-b");
    let as_agent = [("impersonate-user", "system:node:a"), ("impersonate-group", "system:nodes")];
    let refused = server.send(Method::DELETE, &delete, &as_agent, "").await;
    assert!(refused.message().contains("node \"a\" can only delete pods"), "{}", refused.message());
    let refused = server.send(Method::GET, PODS, &[("impersonate-user", "jane")], "").await;
    let why = "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"";
    assert_eq!((refused.code, refused.message().as_str()), (403, why));
    let escalation = [("impersonate-user", "root"), ("impersonate-group", "system:masters")];
    assert_eq!(server.send(Method::GET, PODS, &escalation, "").await.code, 200);
    let refused = server.send_as(agent("a"), Method::GET, PODS, &escalation, "").await;
    let why = "users \"root\" is forbidden: User \"system:node:a\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope";
    assert_eq!((refused.code, refused.message().as_str()), (403, why));
    let healthy = server.send_as(agent("a"), Method::GET, "/healthz", &escalation, "").await;
    assert_eq!(healthy.code, 403, "no path is exempt");
}

#[tokio::test]
async fn a_token_that_nobody_gave_out_is_unauthorized() {
    let server = cluster().await;
    let who = RequestContext::anonymous();
    let refused = server.send_as(who.clone(), Method::GET, PODS, &[("authorization", "Bearer abc")], "").await;
    assert_eq!((refused.code, refused.message().as_str()), (401, "Unauthorized"));
    assert_eq!(refused.json()["reason"], "Unauthorized");
    assert_eq!(server.send_as(who, Method::GET, PODS, &[("authorization", "Bearer ")], "").await.code, 403);
    // Whoever has a certificate needs no token.
    assert_eq!(server.send(Method::GET, PODS, &[("authorization", "Bearer abc")], "").await.code, 200);
}
