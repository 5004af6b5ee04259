//! Masters come and go while the cluster is used: nothing acknowledged is lost, and one that lost its data does not come back.

use std::{collections::BTreeMap, fs, time::Duration};

use serde_json::Value;
use trireme_tests::{
    cluster::{Cluster, Pods},
    config_maps::{Writers, assert_kept},
    wait::until,
};

const LIMIT: Duration = Duration::from_secs(60);
/// So many acknowledged writes between two changes.
const WRITES: usize = 20;
/// No writer may be without an acknowledgement for longer, whatever is added, moved or removed.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// What `trireme member list` says, by name.
fn members(cluster: &Cluster) -> BTreeMap<String, Value> {
    let listed: Vec<Value> =
        serde_json::from_str(&cluster.trireme(&["member", "list", "-o", "json"])).expect("member list prints JSON");
    let named = listed.into_iter().map(|member| (member["name"].as_str().expect("a member has a name").to_owned(), member));
    named.collect()
}

/// Runs a command that must be refused in one line, and returns that.
fn refused(cluster: &Cluster, arguments: &[&str]) -> String {
    let before = members(cluster).into_keys().collect::<Vec<_>>();
    let output = cluster.try_trireme(arguments);
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    assert!(!output.status.success(), "trireme {} was not refused", arguments.join(" "));
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(members(cluster).into_keys().collect::<Vec<_>>(), before, "a refused change has changed something");
    said
}

fn log_of(cluster: &Cluster, process: &str) -> String {
    fs::read_to_string(cluster.folder().join("processes").join(process).join("trireme.log")).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_and_shrinks_under_writes() {
    let cluster = Cluster::start_with(Pods::Hollow, 1, &["--masters", "1"]);
    let balancer = cluster.client("trireme").await;
    let writers = Writers::start("moving", vec![balancer.clone(), balancer.clone(), balancer]);
    writers.acknowledge(WRITES, LIMIT).await;

    let flags: [&[&str]; 4] = [&["--zone", "zone-b"], &["--zone", "zone-c"], &[], &[]];
    for (count, flags) in (2..).zip(flags) {
        let printed = cluster.trireme(&[&["member", "add"], flags].concat());
        assert!(printed.contains(&format!("master-{count} votes.")), "{printed}");
        writers.acknowledge(WRITES, LIMIT).await;
    }
    let grown = members(&cluster);
    assert_eq!(grown.keys().collect::<Vec<_>>(), ["master-1", "master-2", "master-3", "master-4", "master-5"]);
    assert!(grown.values().all(|member| member["voter"] == true && member["behind"].is_u64()), "{grown:?}");
    assert_eq!(grown.values().filter(|member| member["leader"] == true).count(), 1, "{grown:?}");
    let zones: Vec<&str> = grown.values().filter_map(|member| member["zone"].as_str()).collect();
    assert_eq!(zones, ["zone-a", "zone-b", "zone-c", "zone-a", "zone-b"], "new masters go where the fewest are");
    let masters = cluster.status()["masters"].as_array().cloned().unwrap_or_default();
    assert!(masters.len() == 5 && masters.iter().all(|master| master["state"] == "running"), "{masters:?}");
    // The new masters have a context of their own.
    cluster.kubectl().ok(&["--context", "master-5", "get", "namespaces"]);

    assert!(refused(&cluster, &["member", "add", "master-2"]).contains("has a process `master-2` already"));
    assert!(refused(&cluster, &["member", "add", "x", "--peer-address", "a:1"]).contains("leave --peer-address out"));
    let unknown = refused(&cluster, &["member", "remove", "nobody"]);
    assert!(unknown.contains("there is no member `nobody`; the members are master-1, master-2"), "{unknown}");
    assert!(refused(&cluster, &["member", "promote", "master-2"]).contains("master-2 has a vote already"));

    cluster.trireme(&["leader", "move", "master-3"]);
    assert_eq!(cluster.leader().await, "master-3");
    // A clean stop of the leader: the leadership has moved before the process ends.
    cluster.trireme(&["stop", "master-3"]);
    let log = log_of(&cluster, "master-3");
    assert!(log.contains("transferring leadership") && !log.contains("could not be handed over"), "{log}");
    assert_ne!(cluster.leader().await, "master-3");
    cluster.trireme(&["start", "master-3"]);
    writers.acknowledge(WRITES, LIMIT).await;

    // The first master leads, and goes first: it is the one that the node was started with.
    until("the first master takes over", LIMIT, || async {
        let moved = cluster.try_trireme(&["leader", "move", "master-1"]);
        if moved.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&moved.stderr).into_owned()) }
    })
    .await;
    assert_eq!(cluster.leader().await, "master-1");
    for leaving in ["master-1", "master-4", "master-2", "master-5"] {
        cluster.trireme(&["member", "remove", leaving]);
        assert!(!members(&cluster).contains_key(leaving));
        assert!(!cluster.folder().join("processes").join(leaving).exists(), "{leaving} has left its folder behind");
        writers.acknowledge(WRITES, LIMIT).await;
    }
    assert_eq!(members(&cluster).into_keys().collect::<Vec<_>>(), ["master-3"]);
    let contexts = cluster.kubectl().ok(&["config", "get-contexts", "--output", "name"]);
    assert_eq!(contexts.lines().collect::<Vec<_>>(), ["master-3", "trireme"], "those of masters that are gone went with them");
    assert!(refused(&cluster, &["member", "remove", "master-3"]).contains("is the last voter"));
    until("the node has found the master that is left", LIMIT, || async {
        let status = cluster.status();
        if status["nodes"][0]["ready"] == "True" { Ok(()) } else { Err(status) }
    })
    .await;

    let outcome = writers.stop().await;
    assert!(outcome.longest_wait < LONGEST_WAIT, "a writer waited {:?}", outcome.longest_wait);
    assert_kept(cluster.client("master-3").await, "master-3", &outcome.acknowledged).await;
    // What is left is a cluster that can be resumed.
    cluster.trireme(&["down"]);
    cluster.trireme(&["up", "--detach"]);
    assert_kept(cluster.client("trireme").await, "the resumed cluster", &outcome.acknowledged).await;
}

/// Waits until a process that was started has ended by itself, and gives the end of its log.
async fn ended(cluster: &Cluster, process: &str) -> String {
    until("the process ends by itself", LIMIT, || async {
        let status = cluster.status();
        let masters = status["masters"].as_array().cloned().unwrap_or_default();
        let is_ended = masters.iter().any(|master| master["name"] == process && master["state"] == "stopped");
        if is_ended { Ok(()) } else { Err(status) }
    })
    .await;
    log_of(cluster, process).lines().last().unwrap_or_default().to_owned()
}

/// Empties the data folder of a master that does not run.
fn wipe(cluster: &Cluster, process: &str) {
    for folder in ["log", "state"] {
        fs::remove_dir_all(cluster.folder().join("processes").join(process).join(folder)).expect("the folder is there");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_lost_its_data_is_replaced_and_never_comes_back() {
    let cluster = Cluster::start(Pods::Hollow, 0);
    cluster.trireme(&["leader", "move", "master-1"]);

    // One that the cluster began with.
    cluster.trireme(&["kill", "master-2"]);
    wipe(&cluster, "master-2");
    cluster.trireme(&["start", "master-2"]);
    let why = ended(&cluster, "master-2").await;
    assert!(why.contains("has another data folder than the one that the cluster knows"), "{why}");
    let before = members(&cluster);
    assert_eq!(before["master-2"]["behind"], Value::Null, "it does not answer");
    let printed = cluster.trireme(&["member", "replace", "master-2"]);
    assert!(printed.contains("master-4 votes.") && printed.contains("master-2 is removed."), "{printed}");
    let after = members(&cluster);
    assert_eq!(after.keys().collect::<Vec<_>>(), ["master-1", "master-3", "master-4"]);
    assert_eq!(after["master-4"]["zone"], "zone-b", "the new one is where the old one was");

    // A change that would leave no quorum is refused.
    cluster.trireme(&["kill", "master-4"]);
    let quorum = refused(&cluster, &["member", "remove", "master-3"]);
    let words = "master-3 cannot be removed: the group would lose its quorum: of 2 voters only 1 answer, 2 are needed";
    assert!(quorum.contains(words), "{quorum}");

    // One that came later.
    wipe(&cluster, "master-4");
    cluster.trireme(&["start", "master-4"]);
    let why = ended(&cluster, "master-4").await;
    assert!(why.contains("has another data folder than the one that the cluster knows"), "{why}");
    cluster.trireme(&["member", "remove", "master-4"]);
    assert_eq!(members(&cluster).into_keys().collect::<Vec<_>>(), ["master-1", "master-3"]);

    // A learner stays one until it is promoted, and cannot lead.
    let printed = cluster.trireme(&["member", "add", "--learner", "--zone", "zone-b"]);
    assert!(printed.contains("master-4 has no vote"), "{printed}");
    assert_eq!(members(&cluster)["master-4"]["voter"], false);
    assert!(refused(&cluster, &["leader", "move", "master-4"]).contains("master-4 has no vote, so it cannot lead"));
    cluster.trireme(&["member", "promote", "master-4"]);
    assert_ne!(members(&cluster)["master-4"]["id"], after["master-4"]["id"], "an id was given twice");
    let leader = cluster.leader().await;
    cluster.trireme(&["leader", "move"]);
    assert_ne!(cluster.leader().await, leader);
}
