//! A Deployment of real containers: spread over the zones, reachable, and rolled while its leader dies.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Api, ResourceExt,
    api::PostParams,
    runtime::{WatchStreamExt, watcher},
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use trireme_tests::{
    cluster::{Cluster, Pods},
    config_maps::config_map,
    image,
    pods::{self, is_ready, web},
    wait::until,
};

const REPLICAS: usize = 6;
const LIMIT: Duration = Duration::from_secs(90);

/// The states that the pods went through: name, readiness and whether they are gone, in the order of their events.
#[derive(Default)]
struct Recorder {
    ready: BTreeMap<String, bool>,
    /// The fewest that were Ready at once.
    fewest: Option<usize>,
    events: usize,
}

impl Recorder {
    fn record(&mut self, pod: &Pod, gone: bool) {
        self.events += 1;
        if gone {
            self.ready.remove(&pod.name_any());
        } else {
            self.ready.insert(pod.name_any(), is_ready(pod));
        }
        let ready = self.ready.values().filter(|ready| **ready).count();
        self.fewest = Some(self.fewest.map_or(ready, |fewest| fewest.min(ready)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_keeps_every_replica_ready_while_the_leader_is_killed() {
    let cluster = Cluster::start(Pods::Real, 3);
    image::load(&cluster);
    let kubectl = cluster.kubectl();
    let client = cluster.client("trireme").await;
    assert_eq!(kubectl.ok_with_input(&["apply", "-f", "-"], &web(REPLICAS, "one").to_string()), "deployment.apps/web created\n");
    kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);

    let first = pods::settled(&client, REPLICAS, &[], LIMIT).await;
    let zones = pods::by_zone(&client, &first).await;
    assert_eq!(zones.values().copied().collect::<Vec<_>>(), [2, 2, 2], "{zones:?}");

    // Every pod says who it is, under its own address, to a pod on another node.
    let asker = &first[0];
    for pod in &first {
        let address = pod.status.as_ref().and_then(|status| status.pod_ip.clone()).expect("a Ready pod has an address");
        assert_eq!(kubectl.ok(&["logs", &pod.name_any()]), "started one\n");
        let name = format!("ask-{}", pod.name_any());
        ask(&cluster, &name, &pods::node_of(asker), &address);
        until("the answer of a pod", LIMIT, || async {
            let said = kubectl.run(&["logs", &name], "").stdout;
            if String::from_utf8_lossy(&said).trim() == pod.name_any() { Ok(()) } else { Err(said) }
        })
        .await;
    }
    kubectl.ok(&["delete", "pods", "-l", "app=asker", "--grace-period=0", "--force"]);

    let leader = cluster.leader().await;
    let survivor = cluster.masters().into_iter().find(|master| *master != leader).expect("there are three");
    let through = cluster.client(&survivor).await;

    // The watch goes through a survivor, so that it sees every state.
    let recorder = Arc::new(Mutex::new(Recorder::default()));
    let recording = tokio::spawn({
        let (recorder, api) = (recorder.clone(), Api::<Pod>::default_namespaced(through.clone()));
        async move {
            let config = watcher::Config::default().labels("app=web");
            let mut events = watcher(api, config).default_backoff().boxed();
            // A watch that ends goes on from where it was; what is wrong with the cluster shows in the states.
            loop {
                match events.try_next().await {
                    Ok(Some(watcher::Event::Apply(pod))) => recorder.lock().await.record(&pod, false),
                    Ok(Some(watcher::Event::InitApply(pod))) => {
                        recorder.lock().await.ready.insert(pod.name_any(), is_ready(&pod));
                    }
                    Ok(Some(watcher::Event::Delete(pod))) => recorder.lock().await.record(&pod, true),
                    Ok(Some(watcher::Event::Init | watcher::Event::InitDone)) | Err(_) => {}
                    Ok(None) => return,
                }
            }
        }
    });
    until("the recorder has the first state", LIMIT, || async {
        let known = recorder.lock().await.ready.len();
        if known == REPLICAS { Ok(()) } else { Err(known) }
    })
    .await;

    assert_eq!(
        kubectl.ok_with_input(&["apply", "-f", "-"], &web(REPLICAS, "two").to_string()),
        "deployment.apps/web configured\n"
    );
    let deployments: Api<Deployment> = Api::default_namespaced(through.clone());
    until("the update has begun", LIMIT, || async {
        let status = deployments.get("web").await.ok().and_then(|web| web.status);
        let updated = status.as_ref().and_then(|status| status.updated_replicas).unwrap_or_default();
        if (1..REPLICAS as i32).contains(&updated) { Ok(()) } else { Err(status) }
    })
    .await;
    cluster.kill_at_once(std::slice::from_ref(&leader));
    let killed = Instant::now();
    let maps: Api<ConfigMap> = Api::default_namespaced(through.clone());
    let mut count = 0;
    until("a write through a survivor", LIMIT, || {
        count += 1;
        let (maps, name) = (maps.clone(), format!("after-{count}"));
        async move {
            let written = timeout(Duration::from_millis(500), maps.create(&PostParams::default(), &config_map(&name, "x"))).await;
            written.map_err(|_| "no answer".to_owned())?.map_err(|error| error.to_string())
        }
    })
    .await;
    println!("next acknowledged write {} ms after the leader's death", killed.elapsed().as_millis());
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?} without a write", killed.elapsed());

    let status = kubectl.context(&survivor).ok(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    assert!(status.contains("deployment \"web\" successfully rolled out"), "{status}");
    let second = pods::settled(&through, REPLICAS, &[], LIMIT).await;
    for pod in &second {
        assert!(first.iter().all(|old| old.name_any() != pod.name_any()), "{} is of the first generation", pod.name_any());
        assert_eq!(kubectl.context(&survivor).ok(&["logs", &pod.name_any()]), "started two\n");
    }
    let recorder = recorder.lock().await;
    assert!(recorder.events >= 4 * REPLICAS, "only {} states were seen", recorder.events);
    assert!(recorder.fewest.is_some_and(|fewest| fewest >= REPLICAS), "only {:?} pods were Ready at a time", recorder.fewest);
    recording.abort();
}

/// Starts a pod on a node that asks the web server at an address, and logs what it says.
fn ask(cluster: &Cluster, name: &str, node: &str, address: &str) {
    let pod = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": "asker" } },
        "spec": {
            "nodeName": node,
            "restartPolicy": "OnFailure",
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "ask",
                "image": image::BUSYBOX,
                "command": ["sh", "-c", format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} 8080 | tail -n 1")],
            }],
        },
    });
    cluster.kubectl().ok_with_input(&["create", "-f", "-"], &pod.to_string());
}
