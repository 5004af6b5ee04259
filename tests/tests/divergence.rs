//! A master whose disk holds something else than the others': found out, kept from serving, told everywhere.

use std::{fs, path::Path, process::Command, time::Duration};

use serde_json::Value;
use trireme_storage::engine::{
    Durability, Engine, Keyspace, WriteBatch,
    rocks::{RocksEngine, RocksOptions},
};
use trireme_tests::{
    cluster::{Cluster, Pods, binary},
    etcdctl::Etcdctl,
    wait::until,
};

const LIMIT: Duration = Duration::from_secs(90);

/// Changes the last byte of a value in a stopped master's folder.
fn change_behind_the_back(master: &Path, key: &str) {
    let engine = RocksEngine::open(master.join("state"), RocksOptions::for_state()).expect("the master has stopped");
    let mut row = engine.get(Keyspace::Current, key.as_bytes()).expect("it can be read").expect("the key is there").to_vec();
    *row.last_mut().expect("the value is not empty") ^= 1;
    let mut rows = WriteBatch::new();
    rows.put(Keyspace::Current, key.to_owned(), row);
    engine.write(&rows, Durability::Sync).expect("it can be written");
}

fn master<'a>(status: &'a Value, name: &str) -> &'a Value {
    let masters = status["masters"].as_array().expect("there are masters");
    masters.iter().find(|master| master["name"] == name).expect("the master is there")
}

async fn wait_for_divergence(cluster: &Cluster, name: &str) {
    until("the master has stopped serving", LIMIT, || async {
        let status = cluster.status();
        if master(&status, name)["diverged"] == true { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
}

fn readyz(client: &kube::Client) -> impl Future<Output = kube::Result<String>> + use<> {
    let client = client.clone();
    async move { client.request_text(http::Request::get("/readyz").body(Vec::new()).expect("a request")).await }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_with_other_data_stops_serving_and_the_others_go_on() {
    let cluster = Cluster::start(Pods::Hollow, 0);
    let etcdctl = Etcdctl::of(&cluster);
    let only = |number: usize| etcdctl.clone().with("ENDPOINTS", &etcdctl.endpoints()[number - 1]);
    etcdctl.ok(&["put", "key", "value"]);
    assert!(cluster.trireme(&["store", "hash"]).contains("All 3 masters hold the same"));
    assert!(cluster.trireme(&["store", "verify"]).contains("All 3 masters hold the same"));

    let folder = cluster.folder().join("processes/master-2");
    let verify =
        || Command::new(binary()).args(["store", "verify", "--data-dir"]).arg(&folder).output().expect("the binary runs");
    let busy = verify();
    assert!(!busy.status.success() && String::from_utf8_lossy(&busy.stderr).contains("is in use by process"), "{busy:?}");
    cluster.trireme(&["stop", "master-2"]);
    let whole = verify();
    assert!(whole.status.success() && String::from_utf8_lossy(&whole.stdout).contains("Everything is whole"), "{whole:?}");
    change_behind_the_back(&folder, "key");
    let damaged = verify();
    let told = String::from_utf8_lossy(&damaged.stdout).into_owned();
    assert!(!damaged.status.success() && told.contains("changed by something else than the log"), "{damaged:?}");
    cluster.trireme(&["start", "master-2"]);

    wait_for_divergence(&cluster, "master-2").await;
    for again in ["found", "remembered"] {
        assert_eq!(only(1).ok(&["get", "key", "--print-value-only"]), "value\n");
        assert_eq!(only(3).ok(&["put", "other", again]), "OK\n");
        assert!(only(2).fails(&["get", "key"]).contains("etcdserver: corrupt cluster"), "{again}");
        let id = master(&cluster.status(), "master-2")["id"].as_str().expect("it has an id").to_owned();
        let id = u64::from_str_radix(&id, 16).expect("a hexadecimal id");
        assert_eq!(etcdctl.ok(&["alarm", "list"]), format!("memberID:{id} alarm:CORRUPT \n"));
        let odd = cluster.client("master-2").await;
        assert!(readyz(&odd).await.is_err(), "it says that it is ready");
        let refused =
            odd.request_text(http::Request::get("/api/v1/namespaces?resourceVersion=0").body(Vec::new()).expect("a request"));
        let refused = refused.await.expect_err("it hands out what it has").to_string();
        assert!(refused.contains("have diverged from the group's"), "{refused}");
        let metrics = odd.request_text(http::Request::get("/metrics").body(Vec::new()).expect("a request")).await;
        assert!(metrics.expect("it can be watched").contains("trireme_store_diverged 1"));
        assert_eq!(readyz(&cluster.client("master-1").await).await.expect("it is ready"), "ok");
        assert!(cluster.trireme(&["status"]).contains("master-2 does not serve: "));
        let hashes = cluster.try_trireme(&["store", "hash"]);
        let told = String::from_utf8_lossy(&hashes.stderr).into_owned();
        assert!(!hashes.status.success() && told.contains("1 of 3 masters gave no hash"), "{told}");
        assert_ne!(cluster.leader().await, "master-2");

        cluster.trireme(&["kill", "master-2"]);
        cluster.trireme(&["start", "master-2"]);
        wait_for_divergence(&cluster, "master-2").await;
    }
    let log = fs::read_to_string(folder.join("trireme.log")).expect("the master has a log");
    assert!(log.contains("add a new one with an empty data folder"), "the mend is not told");
}
