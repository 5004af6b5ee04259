//! The loops together against the fake API server: what a user would see.

use std::sync::Arc;

use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use trireme_api::clock::SystemClock;

use crate::shared::fake_api::{FakeApi, Stall};
use crate::{ControllersConfig, run};

/// All loops over a server; time is paused, so waiting costs nothing.
struct Cluster {
    api: FakeApi,
    shutdown: CancellationToken,
    loops: JoinHandle<()>,
}

fn start() -> Cluster {
    let api = FakeApi::default();
    let shutdown = CancellationToken::new();
    let loops = tokio::spawn(run(api.client(), ControllersConfig::default(), Arc::new(SystemClock), shutdown.clone()));
    Cluster { api, shutdown, loops }
}

impl Cluster {
    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(std::time::Duration::from_secs(1), self.loops).await.expect("the loops stop promptly").unwrap();
    }

    /// Makes every pod ready, as node agents would.
    fn make_ready(&self) {
        for pod in self.api.list("pods") {
            if pod["status"].is_null() {
                self.api.edit("pods", pod["metadata"]["name"].as_str().unwrap(), |pod| {
                    pod["status"] = json!({"phase": "Running",
                        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
                });
            }
        }
    }

    /// Waits, with node agents at work, until `condition` holds.
    async fn settle(&self, what: &str, condition: impl Fn(&FakeApi) -> bool) {
        self.api
            .until(what, |api| {
                self.make_ready();
                condition(api)
            })
            .await;
    }
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn replica_set(name: &str, replicas: i32) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name, "namespace": "n"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template("i:1")}})
}

fn deployment(replicas: i32, strategy: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "n"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template("i:1"),
            "strategy": {"type": strategy}, "revisionHistoryLimit": 1, "progressDeadlineSeconds": 600}})
}

fn reasons(api: &FakeApi) -> Vec<String> {
    let event = |event: Value| format!("{}: {}", event["reason"].as_str().unwrap(), event["message"].as_str().unwrap());
    api.list("events").into_iter().map(event).collect()
}

#[tokio::test(start_paused = true)]
async fn a_replica_set_keeps_its_count_through_failures() {
    let cluster = start();
    let api = &cluster.api;
    api.fail(Method::POST, "/pods", 500, 2);
    api.add(replica_set("web", 5));
    cluster.settle("five available", |api| api.get("replicasets", "web").unwrap()["status"]["availableReplicas"] == 5).await;
    assert_eq!(api.list("pods").len(), 5);
    let owner = &api.list("pods")[0]["metadata"]["ownerReferences"][0];
    assert_eq!(
        (&owner["kind"], &owner["controller"], &owner["blockOwnerDeletion"]),
        (&json!("ReplicaSet"), &json!(true), &json!(true))
    );
    let status = api.get("replicasets", "web").unwrap()["status"].clone();
    assert_eq!((&status["fullyLabeledReplicas"], &status["observedGeneration"]), (&json!(5), &json!(1)));
    assert!(status["conditions"].is_null(), "the failure is over: {status}");

    let victim = api.list("pods")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    api.delete("pods", &victim, "Background");
    cluster.settle("replaced", |api| api.get("pods", &victim).is_none() && api.list("pods").len() == 5).await;

    api.edit("replicasets", "web", |set| set["spec"]["replicas"] = json!(2));
    cluster.settle("scaled down", |api| api.get("replicasets", "web").unwrap()["status"]["replicas"] == 2).await;
    assert_eq!(api.list("pods").len(), 2);
    api.until("events", |api| {
        let reasons = reasons(api);
        [
            "SuccessfulCreate: Created pod: web-",
            "SuccessfulDelete: Deleted pod: web-",
            "FailedCreate: Error creating: planned failure",
        ]
        .iter()
        .all(|wanted| reasons.iter().any(|reason| reason.starts_with(wanted)))
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_cache_never_leads_to_doubles() {
    let cluster = start();
    let api = &cluster.api;
    api.add(replica_set("web", 2));
    cluster.settle("two", |api| api.get("replicasets", "web").unwrap()["status"]["availableReplicas"] == 2).await;
    api.stall("pods", Stall::Hold);
    api.edit("replicasets", "web", |set| set["spec"]["replicas"] = json!(6));
    api.until("six", |api| api.list("pods").len() == 6).await;
    for round in 0..5 {
        // Each change of the owner is a reason for a pass, with a cache that still shows two pods.
        api.edit("replicasets", "web", |set| set["metadata"]["annotations"] = json!({"round": round.to_string()}));
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        assert_eq!(api.list("pods").len(), 6, "round {round}");
    }
    api.stall("pods", Stall::Flow);
    cluster.settle("six seen", |api| api.get("replicasets", "web").unwrap()["status"]["availableReplicas"] == 6).await;

    api.stall("pods", Stall::Hold);
    api.edit("replicasets", "web", |set| set["spec"]["replicas"] = json!(3));
    api.until("three", |api| api.list("pods").len() == 3).await;
    api.edit("replicasets", "web", |set| set["metadata"]["annotations"] = json!({"round": "last"}));
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert_eq!(api.list("pods").len(), 3);
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn loops_survive_a_server_that_is_away_and_stop_while_it_is() {
    let api = FakeApi::default();
    for (method, times) in [(Method::GET, 40), (Method::POST, 8), (Method::PUT, 8)] {
        api.fail(method, "/api", 503, times);
    }
    let shutdown = CancellationToken::new();
    let loops = tokio::spawn(run(api.client(), ControllersConfig::default(), Arc::new(SystemClock), shutdown.clone()));
    let cluster = Cluster { api, shutdown, loops };
    cluster.api.add(deployment(2, "RollingUpdate"));
    cluster.settle("running", |api| api.get("deployments", "web").unwrap()["status"]["availableReplicas"] == 2).await;
    assert_eq!(cluster.api.list("pods").len(), 2);
    for method in [Method::GET, Method::POST, Method::PUT] {
        cluster.api.fail(method, "/api", 503, usize::MAX);
    }
    cluster.api.edit("deployments", "web", |web| web["spec"]["replicas"] = json!(5));
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_replica_set_adopts_orphans_and_releases_strangers() {
    let cluster = start();
    let api = &cluster.api;
    let pod = |name: &str, app: &str| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "n", "labels": {"app": app}}, "spec": {}});
    api.add(pod("orphan", "web"));
    api.add(pod("stranger", "db"));
    api.add(replica_set("web", 2));
    cluster.settle("two", |api| api.get("replicasets", "web").unwrap()["status"]["availableReplicas"] == 2).await;
    assert_eq!(api.list("pods").len(), 3, "the orphan counts");
    assert_eq!(api.get("pods", "orphan").unwrap()["metadata"]["ownerReferences"][0]["name"], "web");
    assert!(api.get("pods", "stranger").unwrap()["metadata"]["ownerReferences"].is_null());

    api.edit("pods", "orphan", |pod| pod["metadata"]["labels"]["app"] = json!("other"));
    cluster.settle("released and replaced", |api| api.list("pods").len() == 4).await;
    api.until("released", |api| api.get("pods", "orphan").unwrap()["metadata"]["ownerReferences"] == json!([])).await;
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_replication_controller_is_the_same_loop() {
    let cluster = start();
    cluster.api.add(json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "rc", "namespace": "n"},
        "spec": {"replicas": 3, "selector": {"app": "web"}, "template": template("i:1")}}));
    cluster.settle("three", |api| api.get("replicationcontrollers", "rc").unwrap()["status"]["availableReplicas"] == 3).await;
    let status = &cluster.api.get("replicationcontrollers", "rc").unwrap()["status"];
    assert!(status["terminatingReplicas"].is_null(), "{status}");
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_deployment_rolls_out_rolls_back_and_keeps_its_history() {
    let cluster = start();
    let api = &cluster.api;
    api.add(deployment(4, "RollingUpdate"));
    let complete = |revision: &'static str| {
        move |api: &FakeApi| {
            let web = api.get("deployments", "web").unwrap();
            let progressing = web["status"]["conditions"].as_array().and_then(|conditions| {
                conditions
                    .iter()
                    .find(|condition| condition["type"] == "Progressing")
                    .map(|condition| condition["reason"].clone())
            });
            web["status"]["observedGeneration"] == web["metadata"]["generation"]
                && web["status"]["updatedReplicas"] == 4
                && web["status"]["replicas"] == 4
                && web["status"]["availableReplicas"] == 4
                && web["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == revision
                && progressing == Some(json!("NewReplicaSetAvailable"))
        }
    };
    cluster.settle("first rollout", complete("1")).await;
    let first = api.list("replicasets")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    for (image, revision) in [("i:2", "2"), ("i:3", "3")] {
        api.edit("deployments", "web", |web| web["spec"]["template"] = template(image));
        cluster.settle("next rollout", complete(revision)).await;
        assert!(api.list("pods").iter().all(|pod| pod["spec"]["containers"][0]["image"] == image));
    }
    cluster.settle("one old revision is kept", |api| api.list("replicasets").len() == 2).await;
    assert!(api.get("replicasets", &first).is_none(), "the oldest went");

    // kubectl rollout undo puts the earlier template back.
    api.edit("deployments", "web", |web| web["spec"]["template"] = template("i:2"));
    cluster.settle("rolled back", complete("4")).await;
    let set = api.list("replicasets").into_iter().find(|set| set["spec"]["replicas"] == 4).unwrap();
    assert_eq!(set["metadata"]["annotations"]["deployment.kubernetes.io/revision-history"], "2");
    let name = &set["metadata"]["name"].as_str().unwrap();
    assert!(name.ends_with(set["spec"]["selector"]["matchLabels"]["pod-template-hash"].as_str().unwrap()));
    api.until("events", |api| reasons(api).contains(&format!("ScalingReplicaSet: Scaled up replica set {first} from 0 to 4")))
        .await;
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn recreate_never_runs_old_and_new_together() {
    let cluster = start();
    let api = &cluster.api;
    api.add(deployment(3, "Recreate"));
    cluster.settle("first", |api| api.get("deployments", "web").unwrap()["status"]["availableReplicas"] == 3).await;
    api.edit("deployments", "web", |web| web["spec"]["template"] = template("i:2"));
    cluster
        .settle("replaced", |api| {
            let images: std::collections::BTreeSet<String> =
                api.list("pods").iter().map(|pod| pod["spec"]["containers"][0]["image"].to_string()).collect();
            assert!(images.len() <= 1, "both templates run at once");
            images.contains("\"i:2\"") && api.get("deployments", "web").unwrap()["status"]["updatedReplicas"] == 3
        })
        .await;
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_paused_deployment_scales_but_does_not_roll() {
    let cluster = start();
    let api = &cluster.api;
    api.add(deployment(2, "RollingUpdate"));
    cluster.settle("first", |api| api.get("deployments", "web").unwrap()["status"]["availableReplicas"] == 2).await;
    api.edit("deployments", "web", |web| {
        web["spec"]["paused"] = json!(true);
        web["spec"]["replicas"] = json!(3);
        web["spec"]["template"] = template("i:2");
    });
    cluster.settle("scaled", |api| api.get("deployments", "web").unwrap()["status"]["availableReplicas"] == 3).await;
    assert_eq!(api.list("replicasets").len(), 1);
    api.edit("deployments", "web", |web| web["spec"]["paused"] = json!(false));
    cluster.settle("rolled", |api| api.get("deployments", "web").unwrap()["status"]["updatedReplicas"] == 3).await;
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_taken_name_is_a_collision_and_another_is_found() {
    let cluster = start();
    let api = &cluster.api;
    let spec: k8s_openapi::api::core::v1::PodTemplateSpec = serde_json::from_value(template("i:1")).unwrap();
    let taken = format!("web-{}", crate::deployment::template_hash(&spec, None).unwrap());
    let mut other = replica_set(&taken, 0);
    other["spec"]["selector"] = json!({"matchLabels": {"app": "other"}});
    api.add(other);
    api.add(deployment(1, "RollingUpdate"));
    cluster.settle("another name", |api| api.get("deployments", "web").unwrap()["status"]["availableReplicas"] == 1).await;
    assert_eq!(api.get("deployments", "web").unwrap()["status"]["collisionCount"], 1);
    assert_eq!(api.list("replicasets").len(), 2);
    cluster.stop().await;
}

async fn cascade(policy: &str) -> (Cluster, String) {
    let cluster = start();
    cluster.api.add(deployment(2, "RollingUpdate"));
    cluster.settle("running", |api| api.get("deployments", "web").unwrap()["status"]["availableReplicas"] == 2).await;
    let set = cluster.api.list("replicasets")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    cluster.api.delete("deployments", "web", policy);
    (cluster, set)
}

#[tokio::test(start_paused = true)]
async fn background_deletion_cascades() {
    let (cluster, _) = cascade("Background").await;
    cluster
        .api
        .until("all gone", |api| ["deployments", "replicasets", "pods"].iter().all(|plural| api.list(plural).is_empty()))
        .await;
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn foreground_deletion_takes_the_owner_last() {
    let (cluster, set) = cascade("Foreground").await;
    cluster
        .api
        .until("all gone", |api| {
            let (deployments, sets) = (api.list("deployments").len(), api.list("replicasets").len());
            assert!(deployments >= sets, "the owner went before its dependents");
            deployments == 0 && api.list("pods").is_empty()
        })
        .await;
    assert!(cluster.api.get("replicasets", &set).is_none());
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn orphan_deletion_leaves_the_dependents() {
    let (cluster, set) = cascade("Orphan").await;
    cluster.api.until("owner gone", |api| api.list("deployments").is_empty()).await;
    tokio::time::sleep(std::time::Duration::from_secs(120)).await;
    assert_eq!(cluster.api.get("replicasets", &set).unwrap()["metadata"]["ownerReferences"], json!([]));
    assert_eq!(cluster.api.list("pods").len(), 2);
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_deleted_while_owners_cannot_be_looked_up() {
    let cluster = start();
    let api = &cluster.api;
    let child = |name: &str, owners: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "n", "ownerReferences": owners}});
    let owner = |kind: &str, api_version: &str, name: &str, uid: &str| json!({"apiVersion": api_version, "kind": kind, "name": name, "uid": uid});
    api.fail(Method::GET, "/configmaps/flaky-owner", 500, 5);
    let kept = api.add(child("kept", json!([])));
    let kept_uid = kept["metadata"]["uid"].as_str().unwrap().to_owned();
    api.add(child("of-unknown-kind", json!([owner("Unknown", "example.com/v1", "x", "u1")])));
    api.add(child("of-flaky", json!([owner("ConfigMap", "v1", "flaky-owner", "u2")])));
    api.add(child("of-two", json!([owner("ConfigMap", "v1", "gone", "u3"), owner("ConfigMap", "v1", "kept", &kept_uid)])));
    api.add(child("of-replaced", json!([owner("ConfigMap", "v1", "kept", "another-uid")])));
    api.until("settled", |api| {
        api.get("configmaps", "of-flaky").is_none()
            && api.get("configmaps", "of-replaced").is_none()
            && api.get("configmaps", "of-two").unwrap()["metadata"]["ownerReferences"].as_array().unwrap().len() == 1
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    assert!(api.get("configmaps", "of-unknown-kind").is_some());
    assert!(api.get("configmaps", "kept").is_some());
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_is_emptied_and_then_let_go() {
    let cluster = start();
    let api = &cluster.api;
    api.add(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}}));
    api.add(json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "held", "namespace": "n", "finalizers": ["example.com/hold"]}}));
    api.add(deployment(2, "RollingUpdate"));
    cluster.settle("running", |api| api.get("deployments", "web").unwrap()["status"]["availableReplicas"] == 2).await;
    api.delete("namespaces", "n", "Background");
    api.until("reported", |api| {
        let namespace = api.get("namespaces", "n").unwrap();
        let told = |reason: &str| {
            namespace["status"]["conditions"]
                .as_array()
                .is_some_and(|conditions| conditions.iter().any(|condition| condition["reason"] == reason))
        };
        namespace["status"]["phase"] == "Terminating" && told("SomeFinalizersRemain")
    })
    .await;
    assert!(api.get("configmaps", "held").is_some());
    api.edit("configmaps", "held", |held| held["metadata"]["finalizers"] = json!([]));
    api.until("gone", |api| api.get("namespaces", "n").is_none()).await;
    assert!(["deployments", "replicasets", "pods", "configmaps"].iter().all(|plural| api.list(plural).is_empty()));
    cluster.stop().await;
}
