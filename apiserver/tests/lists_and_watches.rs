//! Lists and watches through the whole server, in process.

mod support;

use std::{sync::Arc, time::Duration};

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{ListParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};
use support::TestServer;
use trireme_storage::{
    model::{Operation, Revision, Transaction},
    store::Store,
};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

async fn make(server: &TestServer, name: &str, labels: Value) -> String {
    let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "labels": labels } });
    let reply = server.post(MAPS, &object).await;
    assert_eq!(reply.code, 201, "{}", reply.message());
    reply.json()["metadata"]["resourceVersion"].as_str().expect("a version").to_owned()
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().expect("items").iter().filter_map(|item| item["metadata"]["name"].as_str()).collect()
}

#[tokio::test]
async fn lists_have_their_shape_and_their_pages() {
    let server = TestServer::start().await;
    let empty = server.get(MAPS).await.json();
    assert_eq!((&empty["kind"], &empty["apiVersion"], &empty["items"]), (&json!("ConfigMapList"), &json!("v1"), &json!([])));
    for name in ["a", "b", "c", "d", "e"] {
        make(&server, name, json!({ "odd": (name == "a" || name == "c").to_string() })).await;
    }
    let first = server.get(&format!("{MAPS}?limit=2")).await.json();
    assert_eq!((names(&first), &first["metadata"]["remainingItemCount"]), (vec!["a", "b"], &json!(3)));
    // What happens between pages does not show: all pages are of one revision.
    server.delete(&format!("{MAPS}/d")).await;
    make(&server, "bb", json!({})).await;
    let token = first["metadata"]["continue"].as_str().expect("a token");
    let second = server.get(&format!("{MAPS}?limit=2&continue={token}")).await.json();
    assert_eq!((names(&second), &second["metadata"]["remainingItemCount"]), (vec!["c", "d"], &json!(1)));
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let token = second["metadata"]["continue"].as_str().expect("a token");
    let third = server.get(&format!("{MAPS}?limit=2&continue={token}")).await.json();
    assert_eq!((names(&third), &third["metadata"]["continue"]), (vec!["e"], &Value::Null));
    assert_eq!(names(&server.get(&format!("{MAPS}?labelSelector=odd%3Dtrue")).await.json()), ["a", "c"]);
    assert_eq!(names(&server.get(&format!("{MAPS}?fieldSelector=metadata.name%3Db")).await.json()), ["b"]);
    let revision = first["metadata"]["resourceVersion"].as_str().expect("a version");
    let exact = server.get(&format!("{MAPS}?resourceVersion={revision}&resourceVersionMatch=Exact")).await.json();
    assert_eq!(names(&exact), ["a", "b", "c", "d", "e"]);
    let fresh = server.get(&format!("{MAPS}?resourceVersion={revision}&resourceVersionMatch=NotOlderThan")).await.json();
    assert_eq!(names(&fresh), ["a", "b", "bb", "c", "e"]);
    // When history is compacted, the old pages are gone.
    server.store.compact(server.store.revision()).await.expect("compaction");
    let token = first["metadata"]["continue"].as_str().expect("a token");
    let expired = server.get(&format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!((expired.code, expired.json()["reason"].clone()), (410, json!("Expired")));
    // The refusal says how to go on with what there is now.
    make(&server, "bc", json!({})).await;
    let token = expired.json()["metadata"]["continue"].as_str().expect("a token").to_owned();
    let rest = server.get(&format!("{MAPS}?continue={token}")).await.json();
    assert_eq!(names(&rest), ["bb", "bc", "c", "e"]);
    let exact = server.get(&format!("{MAPS}?resourceVersion={revision}&resourceVersionMatch=Exact")).await;
    assert_eq!((exact.code, exact.message().as_str()), (410, "The resourceVersion for the provided list is too old."));
    assert_eq!(exact.json()["metadata"], json!({}));
}

#[tokio::test]
async fn a_revision_that_is_not_reached_is_a_timeout() {
    let server = TestServer::start().await;
    let reply = server.get(&format!("{MAPS}?resourceVersion=999999999")).await;
    assert_eq!(reply.code, 504);
    assert!(reply.message().starts_with("Timeout: Too large resource version: 999999999, current: "), "{}", reply.message());
}

#[tokio::test]
async fn a_watch_follows_its_selection() {
    let server = TestServer::start().await;
    let start = make(&server, "a", json!({ "on": "yes" })).await;
    let mut watch = server.watch(&format!("{MAPS}?watch=true&labelSelector=on%3Dyes&resourceVersion={start}")).await;
    make(&server, "other", json!({})).await;
    let set = |on: Value| json!({ "metadata": { "labels": { "on": on } } });
    server.patch(&format!("{MAPS}/other"), "merge", &set(json!("yes"))).await;
    assert_eq!(watch.summary().await, ("ADDED".into(), "other".into()));
    server.patch(&format!("{MAPS}/a"), "merge", &json!({ "data": { "k": "v" } })).await;
    assert_eq!(watch.summary().await, ("MODIFIED".into(), "a".into()));
    let left = server.patch(&format!("{MAPS}/a"), "merge", &set(Value::Null)).await.json();
    let event = watch.next().await.expect("an event");
    assert_eq!((&event["type"], &event["object"]["metadata"]["labels"]["on"]), (&json!("DELETED"), &json!("yes")));
    assert_eq!(event["object"]["metadata"]["resourceVersion"], left["metadata"]["resourceVersion"]);
    server.delete(&format!("{MAPS}/other")).await;
    assert_eq!(watch.summary().await, ("DELETED".into(), "other".into()));
}

#[tokio::test]
async fn a_watch_resumes_without_a_gap() {
    let server = TestServer::start().await;
    let start = make(&server, "a", json!({})).await;
    for name in ["b", "c", "d"] {
        make(&server, name, json!({})).await;
    }
    let mut watch = server.watch(&format!("{MAPS}?watch=1&resourceVersion={start}&timeoutSeconds=1")).await;
    for name in ["b", "c", "d"] {
        assert_eq!(watch.summary().await, ("ADDED".into(), name.into()));
    }
    assert_eq!(watch.next().await, None, "it ends when its time is over");
    // Another server over the same store fills its memory of events from history.
    let other = TestServer::over(server.store.clone()).await;
    let mut watch = other.watch(&format!("{MAPS}?watch=1&resourceVersion={start}")).await;
    assert_eq!(watch.summary().await, ("ADDED".into(), "b".into()));
}

#[tokio::test]
async fn a_quiet_kind_is_resumed_after_a_restart_and_many_writes() {
    let server = TestServer::start().await;
    let start = make(&server, "a", json!({})).await;
    make(&server, "b", json!({})).await;
    for count in 0..5000_u64 {
        let success = vec![Operation::put("elsewhere", count.to_string())];
        let transaction = Transaction { compares: Vec::new(), success, failure: Vec::new(), fence: None };
        server.store.transact(transaction).await.expect("it is written");
    }
    let restarted = TestServer::over(server.store.clone()).await;
    let mut watch = restarted.watch(&format!("{MAPS}?watch=1&resourceVersion={start}")).await;
    assert_eq!(watch.summary().await, ("ADDED".into(), "b".into()));
}

#[tokio::test]
async fn a_watch_of_forgotten_events_is_expired() {
    let server =
        TestServer::with(Arc::new(trireme_storage::local::LocalStore::in_memory().expect("a store")), 2, Duration::from_secs(60))
            .await;
    let start = make(&server, "a", json!({})).await;
    for name in ["b", "c", "d", "e"] {
        make(&server, name, json!({})).await;
    }
    // In the stream, where clients expect it: one that is refused with the status 410 does not list again.
    let mut watch = server.watch(&format!("{MAPS}?watch=1&resourceVersion={start}")).await;
    let event = watch.next().await.expect("an event");
    assert_eq!((&event["type"], &event["object"]["kind"]), (&json!("ERROR"), &json!("Status")));
    assert_eq!((&event["object"]["code"], &event["object"]["reason"]), (&json!(410), &json!("Expired")));
    let message = event["object"]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("too old resource version: "), "{message}");
    assert_eq!(watch.next().await, None, "it is over");
    let mut table = server.watch_accepting(&format!("{MAPS}?watch=1&resourceVersion={start}"), TABLE).await;
    assert_eq!(table.next().await.expect("an event")["object"]["kind"], "Status");
    assert_eq!(server.get(&format!("{MAPS}?watch=1&resourceVersion={start}&timeoutSeconds=x")).await.code, 400);
}

#[tokio::test]
async fn a_watch_may_ask_for_any_time() {
    let server = TestServer::start().await;
    let start = make(&server, "a", json!({})).await;
    let longest = i64::MAX;
    let mut watch = server.watch(&format!("{MAPS}?watch=1&resourceVersion={start}&timeoutSeconds={longest}")).await;
    make(&server, "b", json!({})).await;
    assert_eq!(watch.summary().await, ("ADDED".into(), "b".into()));
}

#[tokio::test]
async fn one_object_is_got_even_with_watch_in_the_query() {
    let server = TestServer::start().await;
    make(&server, "a", json!({})).await;
    let reply = server.get(&format!("{MAPS}/a?watch=true")).await.json();
    assert_eq!((&reply["kind"], &reply["metadata"]["name"]), (&json!("ConfigMap"), &json!("a")));
    let mut watch = server.watch("/api/v1/watch/namespaces/default/configmaps/a?resourceVersion=0").await;
    assert_eq!(watch.summary().await, ("ADDED".into(), "a".into()));
}

#[tokio::test]
async fn a_streaming_list_ends_with_a_bookmark() {
    let server = TestServer::start().await;
    make(&server, "a", json!({})).await;
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = server.watch(&format!("{MAPS}?{query}")).await;
    assert_eq!(watch.summary().await, ("ADDED".into(), "a".into()));
    let bookmark = watch.next().await.expect("a bookmark");
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let next = make(&server, "b", json!({})).await;
    let event = watch.next().await.expect("an event");
    assert_eq!(event["object"]["metadata"]["resourceVersion"], json!(next));
    let refused = server.get(&format!("{MAPS}?watch=1&sendInitialEvents=true")).await;
    assert_eq!(refused.code, 422);
}

#[tokio::test]
async fn bookmarks_move_on_with_what_happens_elsewhere() {
    let store = Arc::new(trireme_storage::local::LocalStore::in_memory().expect("a store"));
    let server = TestServer::with(store, 1000, Duration::from_millis(100)).await;
    let start = make(&server, "a", json!({})).await;
    let mut watch = server.watch(&format!("{MAPS}?watch=1&resourceVersion={start}&allowWatchBookmarks=true")).await;
    let body = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "x" } });
    let elsewhere = server.post("/api/v1/namespaces/kube-system/configmaps", &body).await.json();
    loop {
        let bookmark = watch.next().await.expect("a bookmark");
        assert_eq!(bookmark["type"], "BOOKMARK");
        if bookmark["object"]["metadata"]["resourceVersion"] == elsewhere["metadata"]["resourceVersion"] {
            break;
        }
    }
    let mut without = server.watch(&format!("{MAPS}?watch=1&resourceVersion={start}&timeoutSeconds=1")).await;
    assert_eq!(without.next().await, None, "who does not take bookmarks gets none");
}

#[tokio::test]
async fn tables_and_metadata_alone() {
    let server = TestServer::start().await;
    make(&server, "a", json!({ "x": "y" })).await;
    let table = server.send(http::Method::GET, MAPS, &[("accept", TABLE)], "").await.json();
    assert_eq!((&table["kind"], &table["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
    let columns: Vec<&str> =
        table["columnDefinitions"].as_array().expect("columns").iter().filter_map(|column| column["name"].as_str()).collect();
    assert_eq!(columns, ["Name", "Data", "Age"]);
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let list = server.send(http::Method::GET, MAPS, &[("accept", accept)], "").await.json();
    assert_eq!(
        (&list["kind"], &list["items"][0]["kind"]),
        (&json!("PartialObjectMetadataList"), &json!("PartialObjectMetadata"))
    );
    let mut watch = server.watch_accepting(&format!("{MAPS}?watch=1&resourceVersion=0"), TABLE).await;
    let event = watch.next().await.expect("an event");
    assert_eq!(event["object"]["columnDefinitions"].as_array().map(Vec::len), Some(3));
    make(&server, "b", json!({})).await;
    let event = watch.next().await.expect("an event");
    assert_eq!((&event["object"]["rows"][0]["cells"][0], &event["object"]["columnDefinitions"]), (&json!("b"), &json!([])));
}

#[tokio::test]
async fn discovery_comes_in_both_forms() {
    let server = TestServer::start().await;
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let reply = server.send(http::Method::GET, "/apis", &[("accept", accept)], "").await;
    assert!(reply.headers["content-type"].to_str().is_ok_and(|text| text.contains("as=APIGroupDiscoveryList")));
    let document = reply.json();
    let apps =
        document["items"].as_array().expect("groups").iter().find(|group| group["metadata"]["name"] == "apps").expect("apps");
    let resources = apps["versions"][0]["resources"].as_array().expect("resources");
    let deployments = resources.iter().find(|resource| resource["resource"] == "deployments").expect("deployments");
    assert_eq!(deployments["responseKind"]["kind"], "Deployment");
    let legacy = server.get("/apis").await.json();
    assert_eq!(legacy["kind"], "APIGroupList");
    let core = server.get("/api/v1").await.json();
    let pods = core["resources"].as_array().expect("resources").iter().find(|resource| resource["name"] == "pods").expect("pods");
    assert_eq!((&pods["shortNames"], &pods["namespaced"]), (&json!(["po"]), &json!(true)));
    // kubectl 1.20 takes pods to be evictable when it finds this group.
    let is_policy = |group: &Value| group["name"] == "policy" && group["preferredVersion"]["groupVersion"] == "policy/v1";
    assert!(legacy["groups"].as_array().is_some_and(|groups| groups.iter().any(is_policy)), "{legacy}");
    assert_eq!(server.get("/apis/policy/v1").await.json()["resources"], json!([]));
    let old = [("accept", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf")];
    let described = server.send(http::Method::GET, "/openapi/v2", &old, "").await;
    // A type that RFC 9110 allows, unlike the one that was asked for.
    assert_eq!(described.headers["content-type"], "application/com.github.proto-openapi.spec.v2.v1.0+protobuf");
    let index = server.get("/openapi/v3").await.json();
    let url = index["paths"]["api/v1"]["serverRelativeURL"].as_str().expect("a path").to_owned();
    let openapi = server.get(&url).await;
    assert_eq!(openapi.code, 200);
    let tag = openapi.headers["etag"].to_str().expect("a tag").to_owned();
    let cached = server.send(http::Method::GET, "/openapi/v3/api/v1", &[("if-none-match", &tag)], "").await;
    assert_eq!(cached.code, 304);
    let zipped = server.send(http::Method::GET, "/openapi/v2", &[("accept-encoding", "gzip")], "").await;
    assert_eq!(zipped.headers["content-encoding"], "gzip");
    assert_eq!(server.get("/openapi/v3/apis/none/v1").await.code, 404);
}

#[tokio::test]
async fn kube_rs_lists_writes_and_watches_in_process() {
    let server = TestServer::start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(server.client());
    let mut object = ConfigMap::default();
    object.metadata.name = Some("k".to_owned());
    maps.create(&PostParams::default(), &object).await.expect("it is created");
    assert_eq!(maps.list(&ListParams::default()).await.expect("a list").items.len(), 1);
    let mut seen = std::pin::pin!(watcher(maps.clone(), watcher::Config::default().streaming_lists()).applied_objects());
    let first = tokio::time::timeout(Duration::from_secs(10), seen.try_next()).await.expect("in time").expect("no error");
    assert_eq!(first.and_then(|map| map.metadata.name), Some("k".to_owned()));
    assert!(server.store.revision() > Revision(0));
}

#[tokio::test]
async fn a_server_starts_over_a_compacted_store() {
    let server = TestServer::start().await;
    for name in ["a", "b"] {
        make(&server, name, json!({})).await;
    }
    server.store.compact(server.store.revision()).await.expect("compaction");
    let last = make(&server, "c", json!({})).await;
    let other = TestServer::over(server.store.clone()).await;
    assert_eq!(names(&other.get(MAPS).await.json()), ["a", "b", "c"]);
    let mut watch = other.watch(&format!("{MAPS}?watch=1&resourceVersion={last}")).await;
    // Both servers see what either of them writes.
    make(&server, "d", json!({})).await;
    assert_eq!(watch.summary().await, ("ADDED".into(), "d".into()));
}

#[tokio::test]
async fn events_are_seen_through_both_groups() {
    let server = TestServer::start().await;
    let (core, new) = ("/api/v1/namespaces/default/events", "/apis/events.k8s.io/v1/namespaces/default/events");
    let mut watch = server.watch(&format!("{new}?watch=1")).await;
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": { "name": "e", "namespace": "default" },
        "involvedObject": { "kind": "Pod", "name": "p", "namespace": "default" }, "reason": "Why", "message": "because", "type": "Normal",
        "count": 1, "source": { "component": "test" },
    });
    let created = server.post(core, &event).await;
    assert_eq!(created.code, 201, "{}", created.message());
    let seen = server.get(&format!("{new}/e")).await.json();
    assert_eq!(
        (&seen["apiVersion"], &seen["note"], &seen["regarding"]["name"]),
        (&json!("events.k8s.io/v1"), &json!("because"), &json!("p"))
    );
    let event = watch.next().await.expect("an event");
    assert_eq!((&event["type"], &event["object"]["note"]), (&json!("ADDED"), &json!("because")));
    assert_eq!(names(&server.get(&format!("{core}?fieldSelector=involvedObject.name%3Dp")).await.json()), ["e"]);
    assert_eq!(server.get(new).await.json()["items"][0]["note"], "because");
    let patched = server.patch(&format!("{new}/e"), "merge", &json!({ "metadata": { "labels": { "x": "y" } } })).await;
    assert_eq!(patched.code, 200, "{}", patched.message());
    assert_eq!(server.get(&format!("{core}/e")).await.json()["message"], "because");
    for (path, selector, count) in [
        (core, "involvedObject.name%3Dp,type%3DNormal", 1),
        (new, "regarding.name%3Dp", 1),
        (new, "regarding.name%3Dp,regarding.kind%3DPod,type%3DNormal,metadata.name%3De", 1),
        (new, "regarding.name%3Dq", 0),
        (new, "regarding.name!%3Dp", 0),
    ] {
        let list = server.get(&format!("{path}?fieldSelector={selector}")).await.json();
        assert_eq!(names(&list).len(), count, "{path} {selector}");
    }
    let unknown = server.get(&format!("{new}?fieldSelector=involvedObject.name%3Dp")).await;
    assert_eq!((unknown.code, unknown.message().as_str()), (400, "field label not supported: involvedObject.name"));
    assert_eq!(server.delete(&format!("{new}/e")).await.code, 200);
    assert_eq!(server.get(&format!("{core}/e")).await.code, 404);
}
