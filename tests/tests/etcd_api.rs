//! The store as etcd: stock etcdctl through every command, and clients that do what they should not.

use std::time::Duration;

use serde_json::Value;
use trireme_tests::{
    cluster::{Cluster, Pods},
    etcdctl::Etcdctl,
    wait::until,
};

const LIMIT: Duration = Duration::from_secs(30);

/// What `-w json` printed.
fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A member's id as etcdctl's arguments have it.
fn hexadecimal(id: &Value) -> String {
    format!("{:x}", id.as_u64().unwrap_or_else(|| panic!("no id: {id}")))
}

/// The first word of what `etcdctl lease grant` prints after `lease`.
fn grant(etcdctl: &Etcdctl, seconds: &str) -> String {
    let printed = etcdctl.ok(&["lease", "grant", seconds]);
    printed.split_whitespace().nth(1).unwrap_or_else(|| panic!("{printed}")).to_owned()
}

fn key_values(etcdctl: &Etcdctl) {
    assert_eq!(etcdctl.ok(&["put", "k1", "one"]), "OK\n");
    assert_eq!(etcdctl.ok(&["put", "k1", "two", "--prev-kv"]), "OK\nk1\none\n");
    etcdctl.ok(&["put", "k2", "a value"]);
    etcdctl.ok(&["put", "k3", "x"]);
    assert_eq!(etcdctl.ok(&["get", "k1"]), "k1\ntwo\n");
    assert_eq!(etcdctl.ok(&["get", "k1", "--consistency", "s", "--print-value-only"]), "two\n");
    assert_eq!(etcdctl.ok(&["get", "k", "--prefix", "--keys-only", "--limit", "2"]), "k1\n\nk2\n\n");
    let descending = ["get", "k", "--prefix", "--order", "DESCEND", "--sort-by", "VALUE", "--print-value-only"];
    assert_eq!(etcdctl.ok(&descending), "x\ntwo\na value\n");
    assert_eq!(etcdctl.ok(&["get", "k2", "k4", "--print-value-only"]), "a value\nx\n");
    assert_eq!(etcdctl.ok(&["get", "k3", "--from-key", "--print-value-only", "--limit", "1"]), "x\n");
    let then = json(&etcdctl.ok(&["get", "k1", "-w", "json"]))["kvs"][0]["create_revision"].to_string();
    assert_eq!(etcdctl.ok(&["get", "k1", "--rev", &then, "--print-value-only"]), "one\n");
    etcdctl.ok(&["put", "k1", "--ignore-value"]);
    assert_eq!(json(&etcdctl.ok(&["get", "k1", "-w", "json"]))["kvs"][0]["version"], 3);
    assert!(etcdctl.fails(&["put", "nothing", "--ignore-value"]).contains("etcdserver: key not found"));

    let success = "value(\"k1\") = \"two\"\nmod(\"k2\") > \"0\"\n\nput k4 \"yes\"\nget k4\n\nput k4 \"no\"\n\n";
    assert_eq!(etcdctl.ok_with_input(&["txn"], success), "SUCCESS\n\nOK\n\nk4\nyes\n");
    assert!(etcdctl.ok_with_input(&["txn"], "version(\"k1\") = \"0\"\n\n\ndel k4\n\n").starts_with("FAILURE\n\n1\n"));
    assert_eq!(etcdctl.ok(&["del", "k1", "--prev-kv"]), "1\nk1\ntwo\n");
    assert_eq!(etcdctl.ok(&["del", "k", "--prefix"]), "2\n");
    assert_eq!(etcdctl.ok(&["del", "k", "--prefix"]), "0\n");
}

fn watches(etcdctl: &Etcdctl) {
    etcdctl.ok(&["put", "w1", "old"]);
    let first = json(&etcdctl.ok(&["get", "w1", "-w", "json"]))["header"]["revision"].to_string();
    let mut watch = etcdctl.start(&["watch", "w", "--prefix", "--prev-kv", "--rev", &first]);
    assert_eq!(watch.lines(3), ["PUT", "w1", "old"]);
    // Through another member.
    let other = etcdctl.clone().with("ENDPOINTS", &etcdctl.endpoints()[2]);
    other.ok(&["put", "w1", "new"]);
    other.ok(&["del", "w1"]);
    assert_eq!(watch.lines(5), ["PUT", "w1", "old", "w1", "new"]);
    assert_eq!(watch.lines(5), ["DELETE", "w1", "new", "w1", ""]);
    watch.interrupt();
}

async fn leases(etcdctl: &Etcdctl) {
    let lease = grant(etcdctl, "100");
    etcdctl.ok(&["put", "leased", "v", "--lease", &lease]);
    let left = etcdctl.ok(&["lease", "timetolive", &lease, "--keys"]);
    assert!(left.contains("granted with TTL(100s), remaining(") && left.contains("attached keys([leased])"), "{left}");
    assert!(etcdctl.ok(&["lease", "list"]).contains(&lease));
    assert!(etcdctl.ok(&["lease", "keep-alive", &lease, "--once"]).contains("keepalived with TTL(100)"));
    assert!(etcdctl.ok(&["lease", "revoke", &lease]).contains("revoked"));
    assert_eq!(etcdctl.ok(&["get", "leased"]), "");
    assert!(etcdctl.fails(&["lease", "revoke", &lease]).contains("etcdserver: requested lease not found"));
    assert!(etcdctl.fails(&["put", "k", "v", "--lease", &lease]).contains("etcdserver: requested lease not found"));

    // One that nobody keeps alive ends by itself, and takes its key along.
    let short = grant(etcdctl, "2");
    etcdctl.ok(&["put", "short", "v", "--lease", &short]);
    until("the end of the lease", LIMIT, || async {
        let found = etcdctl.ok(&["get", "short"]);
        if found.is_empty() { Ok(()) } else { Err(found) }
    })
    .await;
    assert!(etcdctl.ok(&["lease", "timetolive", &short]).contains("already expired"));
}

fn locks_and_elections(etcdctl: &Etcdctl) {
    let mut holder = etcdctl.start(&["lock", "the-lock"]);
    let key = holder.lines(1).remove(0);
    assert!(key.starts_with("the-lock/"), "{key}");
    let mut waiter = etcdctl.start(&["lock", "the-lock", "echo", "locked"]);
    assert!(etcdctl.ok(&["get", "the-lock/", "--prefix", "--keys-only"]).contains(&key));
    holder.interrupt();
    assert_eq!(waiter.lines(1), ["locked"]);

    let mut leader = etcdctl.start(&["elect", "the-election", "me"]);
    let elected = leader.lines(2);
    assert!(elected[0].starts_with("the-election/") && elected[1] == "me", "{elected:?}");
    let mut listener = etcdctl.start(&["elect", "-l", "the-election"]);
    assert_eq!(listener.lines(2), elected);
    leader.interrupt();
    listener.interrupt();
}

/// Every member's status: `(endpoint, member id, leader's id)`.
fn statuses(etcdctl: &Etcdctl) -> Vec<(String, Value, Value)> {
    let statuses = json(&etcdctl.ok(&["endpoint", "status", "--cluster", "-w", "json"]));
    let all = statuses.as_array().cloned().unwrap_or_default();
    let described = all.iter().map(|one| {
        let status = &one["Status"];
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{one}")).to_owned();
        assert!(text(&status["version"]).starts_with("3.5."));
        assert!(status["dbSize"].as_u64() > Some(0) && status["raftAppliedIndex"].as_u64() > Some(0), "{one}");
        (text(&one["Endpoint"]), status["header"]["member_id"].clone(), status["leader"].clone())
    });
    described.collect()
}

async fn the_cluster(etcdctl: &Etcdctl, folder: &std::path::Path) {
    let members = json(&etcdctl.ok(&["member", "list", "-w", "json"]));
    let members = members["members"].as_array().cloned().unwrap_or_default();
    let mut names: Vec<&str> = members.iter().filter_map(|member| member["name"].as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["master-1", "master-2", "master-3"]);
    let mut urls: Vec<&str> = members.iter().filter_map(|member| member["clientURLs"][0].as_str()).collect();
    urls.sort_unstable();
    assert_eq!(urls, etcdctl.endpoints());
    // It is printed to standard error.
    let health = etcdctl.run(&["endpoint", "health", "--cluster"], "");
    assert_eq!(String::from_utf8_lossy(&health.stderr).matches("is healthy").count(), 3);

    let hashes = json(&etcdctl.ok(&["endpoint", "hashkv", "--cluster", "-w", "json"]));
    let hashes: Vec<&Value> = hashes.as_array().into_iter().flatten().map(|one| &one["HashKV"]["hash"]).collect();
    assert!(hashes.len() == 3 && hashes.iter().all(|hash| hash.as_u64().is_some()), "{hashes:?}");

    assert_eq!(etcdctl.ok(&["alarm", "list"]), "");
    etcdctl.ok(&["alarm", "disarm"]);
    assert_eq!(etcdctl.ok(&["defrag", "--cluster"]).matches("Finished defragmenting").count(), 3);
    let file = folder.join("etcd.snapshot").display().to_string();
    let one = etcdctl.clone().with("ENDPOINTS", &etcdctl.endpoints()[0]);
    assert!(one.ok(&["snapshot", "save", &file]).contains("Snapshot saved"));
    let size = std::fs::metadata(&file).expect("the snapshot is there").len();
    assert!(size > 1000 && size % 512 == 32, "{size}");

    // The leader moves to where it is asked to; a follower refuses to move it.
    let before = statuses(etcdctl);
    let leads = |(_, own, leader): &&(String, Value, Value)| own == leader;
    let (leader, ..) = before.iter().find(leads).expect("one leads");
    let (follower, target, _) = before.iter().find(|one| !leads(one)).expect("others follow");
    let target = hexadecimal(target);
    let refused = etcdctl.clone().with("ENDPOINTS", follower).fails(&["move-leader", &target]);
    assert!(refused.contains("no leader endpoint given"), "{refused}");
    etcdctl.clone().with("ENDPOINTS", leader).ok(&["move-leader", &target]);
    until("the new leader", LIMIT, || async {
        let now = statuses(etcdctl);
        if now.iter().all(|(_, _, leader)| hexadecimal(leader) == target) { Ok(()) } else { Err(now) }
    })
    .await;
    let bad = etcdctl.fails(&["move-leader", "1234"]);
    assert!(bad.contains("etcdserver: bad leader transferee"), "{bad}");
}

fn members_come_and_go(etcdctl: &Etcdctl) {
    let added = json(&etcdctl.ok(&["member", "add", "four", "--learner", "--peer-urls", "https://127.0.0.1:9", "-w", "json"]));
    let id = hexadecimal(&added["member"]["ID"]);
    assert!(
        etcdctl.fails(&["member", "promote", &id]).contains("can only promote a learner member which is in sync with leader")
    );
    let twice = etcdctl.fails(&["member", "add", "five", "--learner", "--peer-urls", "https://127.0.0.1:9"]);
    assert!(twice.contains("Peer URLs already exists"), "{twice}");
    etcdctl.ok(&["member", "update", &id, "--peer-urls", "https://127.0.0.1:10"]);
    assert!(etcdctl.ok(&["member", "list"]).contains("https://127.0.0.1:10"));
    assert!(etcdctl.ok(&["member", "remove", &id]).contains("removed from cluster"));
    assert!(etcdctl.fails(&["member", "remove", &id]).contains("member not found"));
    assert_eq!(etcdctl.ok(&["member", "list"]).lines().count(), 3);
}

fn history(etcdctl: &Etcdctl) {
    let revision = |etcdctl: &Etcdctl| json(&etcdctl.ok(&["get", "h", "-w", "json"]))["header"]["revision"].to_string();
    etcdctl.ok(&["put", "h", "1"]);
    let first = revision(etcdctl);
    etcdctl.ok(&["put", "h", "2"]);
    let second = revision(etcdctl);
    assert!(etcdctl.ok(&["compaction", "--physical", &second]).contains("compacted revision"));
    let words = "etcdserver: mvcc: required revision has been compacted";
    assert!(etcdctl.fails(&["get", "h", "--rev", &first]).contains(words));
    assert!(etcdctl.fails(&["compaction", &second]).contains(words));
    assert!(etcdctl.run(&["watch", "h", "--rev", &first], "").stderr.windows(9).any(|word| word == b"compacted"));
    let future = etcdctl.fails(&["get", "h", "--rev", "99999999"]);
    assert!(future.contains("etcdserver: mvcc: required revision is a future revision"), "{future}");
}

fn permissions(cluster: &Cluster, etcdctl: &Etcdctl) {
    cluster.kubectl().ok(&["create", "configmap", "seen", "--from-literal=a=b"]);
    let key = "/registry/core/configmaps/default/seen";
    let ordinary = etcdctl.clone().as_process(cluster, "master-1", "peer");
    for client in [etcdctl, &ordinary] {
        let object = json(&client.ok(&["get", key, "--print-value-only"]));
        assert_eq!(object["data"]["a"], "b");
    }
    for command in [&["put", key, "{}"][..], &["del", key], &["del", "", "--from-key"], &["compaction", "1"]] {
        assert!(ordinary.fails(command).contains("etcdserver: permission denied"), "{command:?}");
    }
    assert_eq!(ordinary.ok(&["put", "its-own", "1"]), "OK\n");
    // A node would read every Secret here.
    let node = etcdctl.clone().as_process(cluster, "node-1", "node");
    assert!(!node.run(&["--command-timeout=2s", "get", key], "").status.success());
    // The administrator's delete is Kubernetes' own, too.
    assert_eq!(etcdctl.ok(&["del", key]), "1\n");
    assert!(!cluster.kubectl().ok(&["get", "configmaps", "-o", "name"]).contains("seen"));
    for command in [&["auth", "enable"][..], &["user", "list"], &["role", "list"]] {
        assert!(etcdctl.fails(command).contains("authentication is not enabled"), "{command:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_works_for_every_command() {
    let cluster = Cluster::start(Pods::Hollow, 1);
    let etcdctl = Etcdctl::of(&cluster);
    assert_eq!(etcdctl.endpoints().len(), 3);
    key_values(&etcdctl);
    watches(&etcdctl);
    leases(&etcdctl).await;
    locks_and_elections(&etcdctl);
    the_cluster(&etcdctl, cluster.folder()).await;
    members_come_and_go(&etcdctl);
    permissions(&cluster, &etcdctl);
    history(&etcdctl);
}
