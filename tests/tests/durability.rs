//! What was acknowledged is on disk: `kill -9` of every master at once loses none of it.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, ResourceExt, api::ListParams};
use trireme_tests::{
    cluster::{Cluster, Pods},
    config_maps::{LABEL, Writers, revision},
};

const ROUNDS: usize = 3;
const WRITES: usize = 150;
const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_all_masters_loses_no_acknowledged_write() {
    let cluster = Cluster::start(Pods::Hollow, 0);
    let mut last: BTreeMap<String, (u64, String)> = BTreeMap::new();
    for round in 0..ROUNDS {
        let mut clients = Vec::new();
        for master in cluster.masters().iter().cycle().take(6) {
            clients.push(cluster.client(master).await);
        }
        let writers = Writers::start(&format!("round-{round}"), clients);
        writers.acknowledge(WRITES, LIMIT).await;
        cluster.kill_at_once(&cluster.masters());
        let outcome = writers.stop().await;
        assert!(outcome.unknown > 0, "the masters died while nothing was being written");
        let acknowledged = outcome.acknowledged.len();
        // In order of revision, so the last write of an object that was changed wins.
        last.extend(outcome.acknowledged.into_iter().map(|(revision, (name, value))| (name, (revision, value))));

        cluster.up();
        for master in cluster.masters() {
            let api: Api<ConfigMap> = Api::default_namespaced(cluster.client(&master).await);
            let listed = api.list(&ListParams::default().labels(LABEL)).await.expect("the master answers after the restart");
            let stored: BTreeMap<String, &ConfigMap> = listed.iter().map(|object| (object.name_any(), object)).collect();
            for (name, (acknowledged, value)) in &last {
                let object = stored.get(name).unwrap_or_else(|| panic!("{master} lost {name}, acknowledged at {acknowledged}"));
                let stored_value = object.data.as_ref().and_then(|data| data.get("value"));
                if revision(*object) == *acknowledged {
                    assert_eq!(stored_value, Some(value), "{name} on {master}");
                } else {
                    // Only an object that is changed over and over may be newer: by the write that had no answer.
                    assert!(revision(*object) > *acknowledged, "{master} has {name} as it was before {acknowledged}");
                    let number = |text: &str| text.parse::<u64>().expect("writers write numbers");
                    let newer = stored_value.map(|value| number(value));
                    assert!(
                        newer.is_some_and(|newer| newer > number(value)),
                        "{name} on {master}: {stored_value:?} after {value}"
                    );
                }
            }
        }
        println!("round {round}: {acknowledged} acknowledged writes, {} objects there", last.len());
    }
}
