//! A kube-rs client: what operators and controllers written in Rust do.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Namespace},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, WatchEvent, WatchParams},
    discovery::Discovery,
};
use serde_json::json;
use trireme_tests::{
    cluster::{Cluster, Pods},
    config_maps::{config_map, revision},
};

const LIMIT: Duration = Duration::from_secs(20);

fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        other => panic!("not an answer of the API: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kube_rs_client_does_its_work() {
    let cluster = Cluster::start(Pods::Hollow, 1);
    let client = cluster.client("trireme").await;

    let version = client.apiserver_version().await.expect("the version is served");
    assert_eq!(version.major, "1");

    let discovery = Discovery::new(client.clone()).run().await.expect("discovery is served");
    for (group, kind) in [("", "Pod"), ("apps", "Deployment"), ("coordination.k8s.io", "Lease")] {
        let found = discovery.get(group).and_then(|group| group.recommended_kind(kind));
        assert!(found.is_some(), "{kind} of {group:?} is not discovered");
    }
    let aggregated = Discovery::new(client.clone()).run_aggregated().await.expect("aggregated discovery is served");
    assert!(aggregated.get("apps").is_some_and(|apps| apps.recommended_kind("ReplicaSet").is_some()));

    let namespaces: Api<Namespace> = Api::all(client.clone());
    let team: Namespace = serde_json::from_value(json!({ "metadata": { "generateName": "team-" } })).expect("a Namespace");
    let team = namespaces.create(&PostParams::default(), &team).await.expect("the namespace is made").name_any();
    assert!(team.starts_with("team-") && team.len() > "team-".len(), "{team}");

    let api: Api<ConfigMap> = Api::namespaced(client.clone(), &team);
    let created = api.create(&PostParams::default(), &config_map("settings", "first")).await.expect("it is made");
    assert!(created.uid().is_some() && created.creation_timestamp().is_some());
    let twice = api.create(&PostParams::default(), &config_map("settings", "second")).await.expect_err("it is there already");
    assert_eq!(code(&twice), 409);

    let start = created.resource_version().expect("it has one");
    let events = api.watch(&WatchParams::default().fields("metadata.name=settings"), &start).await.expect("a watch begins");
    let patched = api
        .patch("settings", &PatchParams::default(), &Patch::Merge(json!({ "data": { "value": "second", "more": "x" } })))
        .await
        .expect("a merge patch");
    let strategic = Patch::Strategic(json!({ "data": { "value": "third" } }));
    let applied = api.patch("settings", &PatchParams::default(), &strategic).await.expect("a strategic merge patch");
    let data = applied.data.clone().expect("it has data");
    assert_eq!((data["value"].as_str(), data["more"].as_str()), ("third", "x"));

    let stale = api.replace("settings", &PostParams::default(), &created).await.expect_err("it has changed since");
    assert_eq!(code(&stale), 409);
    let mut next = applied.clone();
    next.data.get_or_insert_default().insert("value".to_owned(), "fourth".to_owned());
    let replaced = api.replace("settings", &PostParams::default(), &next).await.expect("a replacement of the newest");
    let wrong = Preconditions { uid: Some("another".to_owned()), resource_version: None };
    let refused =
        api.delete("settings", &DeleteParams::default().preconditions(wrong)).await.expect_err("another object is meant");
    assert_eq!(code(&refused), 409);
    api.delete("settings", &DeleteParams::default()).await.expect("it is deleted");
    assert_eq!(code(&api.get("settings").await.expect_err("it is gone")), 404);

    let changes = tokio::time::timeout(LIMIT, events.take(4).try_collect::<Vec<_>>()).await;
    let changes = changes.expect("four events in time").expect("the watch goes on");
    let revisions: Vec<u64> = changes
        .iter()
        .map(|event| match event {
            WatchEvent::Modified(object) => revision(object),
            WatchEvent::Deleted(object) => revision(object),
            other => panic!("not a change: {other:?}"),
        })
        .collect();
    assert_eq!(revisions[..3], [revision(&patched), revision(&applied), revision(&replaced)]);
    assert!(matches!(changes[3], WatchEvent::Deleted(_)) && revisions[3] > revisions[2]);

    for number in 0..5 {
        api.create(&PostParams::default(), &config_map(&format!("page-{number}"), "x")).await.expect("it is made");
    }
    let parameters = ListParams::default().labels("made-by=writers").limit(2);
    let mut names = Vec::new();
    let mut page = api.list(&parameters).await.expect("the first page");
    loop {
        names.extend(page.items.iter().map(ResourceExt::name_any));
        let Some(more) = page.metadata.continue_.clone().filter(|more| !more.is_empty()) else { break };
        assert_eq!(page.items.len(), 2);
        page = api.list(&parameters.clone().continue_token(&more)).await.expect("the next page");
    }
    assert_eq!(names, ["page-0", "page-1", "page-2", "page-3", "page-4"]);

    let leases: Api<Lease> = Api::namespaced(client, &team);
    let lease: Lease = serde_json::from_value(json!({
        "metadata": { "name": "leader" },
        "spec": { "holderIdentity": "one", "leaseDurationSeconds": 15, "renewTime": "2026-01-02T03:04:05.000006Z" },
    }))
    .expect("a Lease");
    let held = leases.create(&PostParams::default(), &lease).await.expect("the lease is made");
    let mut renewed = held.clone();
    renewed.spec.get_or_insert_default().lease_transitions = Some(1);
    leases.replace("leader", &PostParams::default(), &renewed).await.expect("the holder renews");
    let mut stolen = held;
    stolen.spec.get_or_insert_default().holder_identity = Some("two".to_owned());
    assert_eq!(code(&leases.replace("leader", &PostParams::default(), &stolen).await.expect_err("it was renewed")), 409);
    let spec = leases.get("leader").await.expect("it is there").spec.expect("it has a spec");
    assert_eq!(spec.holder_identity.as_deref(), Some("one"));
    assert_eq!(serde_json::to_value(&spec.renew_time).expect("a time"), "2026-01-02T03:04:05.000006Z");
}
