//! Watches and reads through the loss of a leader: every change once and in order, and nothing from the past.

use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::json;
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;
use trireme_tests::{
    cluster::{Cluster, Pods},
    config_maps::{LABEL, Writers, config_map, revision},
    wait::until,
};

const LIMIT: Duration = Duration::from_secs(60);

/// Watches from a revision until `stop`; whenever the watch ends, it goes on at the next server from the last revision seen.
async fn record(
    servers: Vec<Client>,
    from: u64,
    seen: mpsc::UnboundedSender<(u64, String, String)>,
    stop: CancellationToken,
) -> usize {
    let mut last = from;
    let mut watches = 0;
    while !stop.is_cancelled() {
        let api: Api<ConfigMap> = Api::default_namespaced(servers[watches % servers.len()].clone());
        watches += 1;
        // Short, so that watches also change masters when nothing is wrong.
        let parameters = WatchParams::default().labels(LABEL).timeout(3);
        let Ok(events) = api.watch(&parameters, &last.to_string()).await else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        let mut events = std::pin::pin!(events.take_until(stop.cancelled()));
        while let Some(Ok(event)) = events.next().await {
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    last = revision(&object);
                    let value = object.data.as_ref().and_then(|data| data.get("value")).cloned().unwrap_or_default();
                    seen.send((last, object.name_any(), value)).expect("the test still listens");
                }
                WatchEvent::Bookmark(bookmark) => {
                    last = bookmark.metadata.resource_version.parse().expect("resourceVersions are revisions");
                }
                WatchEvent::Deleted(object) => panic!("nobody deleted {}", object.name_any()),
                WatchEvent::Error(status) => panic!("the watch from {last} was refused: {status:?}"),
            }
        }
    }
    watches
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_resumes_at_other_masters_sees_every_change_once_and_in_order() {
    let cluster = Cluster::start(Pods::Hollow, 0);
    let leader = cluster.leader().await;
    let mut clients = Vec::new();
    for master in cluster.masters() {
        clients.push(cluster.client(&master).await);
    }
    let api: Api<ConfigMap> = Api::default_namespaced(clients[0].clone());
    let listed = api.list(&ListParams::default().labels(LABEL)).await.expect("the masters answer");
    let start = listed.metadata.resource_version.and_then(|version| version.parse().ok()).expect("a list has a revision");

    let (sender, mut receiver) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    // At the leader first, so that its death ends a watch.
    let first = cluster.masters().iter().position(|master| *master == leader).expect("the leader is one of them");
    let mut servers = clients.clone();
    servers.rotate_left(first);
    let recording = tokio::spawn(record(servers, start, sender, stop.clone()));
    let writers = Writers::start("watched", [clients.clone(), clients].concat());
    writers.acknowledge(200, LIMIT).await;
    cluster.trireme(&["kill", &leader]);
    writers.acknowledge(200, LIMIT).await;
    cluster.trireme(&["start", &leader]);
    writers.acknowledge(200, LIMIT).await;
    let outcome = writers.stop().await;
    assert_ne!(outcome.unknown, 0, "the leader died while nothing was being written to it");
    let (end, _) = outcome.acknowledged.last_key_value().expect("there were writes");

    let mut seen: Vec<(u64, String, String)> = Vec::new();
    while seen.last().is_none_or(|(revision, ..)| revision < end) {
        let next = tokio::time::timeout(LIMIT, receiver.recv()).await;
        seen.push(next.unwrap_or_else(|_| panic!("the watch stays behind {end}: {:?}", seen.last())).expect("the watch goes on"));
    }
    stop.cancel();
    let watches = recording.await.expect("no watch was refused");
    assert!(watches > 1, "the watch never resumed");

    for pair in seen.windows(2) {
        assert!(pair[0].0 < pair[1].0, "an event was repeated or came out of order: {:?} then {:?}", pair[0], pair[1]);
    }
    let count = seen.len();
    let seen: BTreeMap<u64, (String, String)> =
        seen.into_iter().map(|(revision, name, value)| (revision, (name, value))).collect();
    for (revision, write) in &outcome.acknowledged {
        assert_eq!(seen.get(revision), Some(write), "the change of revision {revision} was not seen as it was acknowledged");
    }
    let unanswered = count - outcome.acknowledged.len();
    assert!(unanswered <= outcome.unknown, "{unanswered} events, but only {} writes had no answer", outcome.unknown);
    println!("{count} events in {watches} watches; {} writes had no answer", outcome.unknown);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_was_frozen_serves_nothing_from_before() {
    let cluster = Cluster::start(Pods::Hollow, 0);
    let client = cluster.client("trireme").await;
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    api.create(&PostParams::default(), &config_map("frozen", "0")).await.expect("the cluster takes writes");
    for round in 1..=4_u64 {
        let leader = cluster.leader().await;
        let frozen = if round % 2 == 1 {
            leader.clone()
        } else {
            cluster.masters().into_iter().find(|master| *master != leader).expect("there are followers")
        };
        let survivor =
            cluster.masters().into_iter().find(|master| *master != frozen && *master != leader).expect("there are three");
        let read_at: Api<ConfigMap> = Api::default_namespaced(cluster.client(&frozen).await);
        // So that there is a connection whose requests wait in the frozen process's socket.
        read_at.get("frozen").await.expect("the master serves reads");
        cluster.trireme(&["pause", &frozen]);

        let through: Api<ConfigMap> = Api::default_namespaced(cluster.client(&survivor).await);
        let patch = Patch::Merge(json!({ "data": { "value": round.to_string() } }));
        let parameters = PatchParams::default();
        let written = until("a write through a survivor", LIMIT, || through.patch("frozen", &parameters, &patch)).await;

        let early = tokio::spawn({
            let read_at = read_at.clone();
            async move { read_at.get("frozen").await }
        });
        sleep(Duration::from_millis(100)).await;
        cluster.trireme(&["resume", &frozen]);
        let early = early.await.expect("the read does not panic");
        let late = until("a read at the master that was frozen", LIMIT, || read_at.get("frozen")).await;
        for read in early.into_iter().chain([late]) {
            assert!(
                revision(&read) >= revision(&written),
                "{frozen} served {} after {} was acknowledged",
                revision(&read),
                revision(&written)
            );
        }
    }
}
