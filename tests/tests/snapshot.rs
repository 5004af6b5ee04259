//! Snapshots as files: saved from a running cluster, looked at, and restored into new ones.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Node, Pod},
};
use kube::{Api, api::PostParams};
use serde_json::Value;
use trireme_tests::{
    cluster::{Cluster, Pods, binary, free_ports, take_turn},
    config_maps::config_map,
    etcdctl::Etcdctl,
    pods::web,
    wait::until,
};

const LIMIT: Duration = Duration::from_secs(90);
const REPLICAS: usize = 3;

fn trireme(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).output().expect("the binary runs")
}

fn ok(arguments: &[&str]) -> String {
    let output = trireme(arguments);
    assert!(output.status.success(), "trireme {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Checks that a command failed with one line on standard error that holds `reason`.
fn refused(arguments: &[&str], reason: &str) {
    let output = trireme(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "not refused: {reason}");
    assert!(stderr.contains(reason) && stderr.trim_end().lines().count() == 1, "`{reason}`: {stderr}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is text")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the folder is there");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

async fn settled(cluster: &Cluster) {
    let client = cluster.client("trireme").await;
    let (nodes, deployments) = (Api::<Node>::all(client.clone()), Api::<Deployment>::default_namespaced(client.clone()));
    let pods = Api::<Pod>::default_namespaced(client);
    until("three nodes and all replicas, running", LIMIT, || async {
        let listed = nodes.list(&Default::default()).await.map_err(|error| error.to_string())?;
        let web = deployments.get("web").await.map_err(|error| error.to_string())?;
        let running = pods.list(&Default::default()).await.map_err(|error| error.to_string())?;
        let running = running.items.iter().filter(|pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
        });
        let available = web.status.and_then(|status| status.available_replicas).unwrap_or(0);
        let seen = (listed.items.len(), available, running.count());
        if seen == (3, REPLICAS as i32, REPLICAS) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_saved_and_begins_anew_elsewhere() {
    let cluster = Cluster::start(Pods::Hollow, 3);
    let place = tempfile::tempdir().expect("a folder");
    let file = place.path().join("saved");
    cluster.kubectl().ok_with_input(&["apply", "-f", "-"], &web(REPLICAS, "one").to_string());
    settled(&cluster).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(cluster.client("trireme").await);
    let kept = maps.create(&PostParams::default(), &config_map("kept", "1")).await.expect("the cluster takes writes");
    let etcdctl = Etcdctl::of(&cluster);
    let lease = etcdctl.ok(&["lease", "grant", "600"]).split_whitespace().nth(1).expect("an id").to_owned();
    etcdctl.ok(&["put", "mine", "one", "--lease", &lease]);

    // Saved, for the owner alone, never over another file, and told apart from what is none.
    cluster.trireme(&["snapshot", "save", text(&file)]);
    assert_eq!(fs::metadata(&file).expect("it is there").permissions().mode() & 0o777, 0o600);
    assert_eq!(names(place.path()), ["saved"]);
    let again = cluster.try_trireme(&["snapshot", "save", text(&file)]);
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("--force"), "{again:?}");
    cluster.trireme(&["snapshot", "save", text(&file), "--force"]);
    let status: Value = serde_json::from_str(&ok(&["snapshot", "status", text(&file), "-o", "json"])).expect("JSON");
    let revision = status["revision"].as_u64().expect("a revision");
    assert!(status["totalKeys"].as_u64().is_some_and(|keys| keys > 20) && status["savedAt"].is_string(), "{status}");
    let old_id = status["clusterId"].as_str().expect("an id").to_owned();
    assert!(ok(&["snapshot", "status", text(&file)]).contains(&old_id));

    // Through the endpoints of masters, with keys of one's own.
    let other = place.path().join("other");
    let (ca, cert, key) = (etcdctl.variable("CACERT"), etcdctl.variable("CERT"), etcdctl.variable("KEY"));
    let endpoint = etcdctl.endpoints()[1].clone();
    ok(&["snapshot", "save", text(&other), "--endpoints", &endpoint, "--cacert", ca, "--cert", cert, "--key", key]);
    assert!(fs::metadata(&other).expect("it is there").len() > 1000);

    // The history goes, and what was read before compaction cannot be read any more.
    let compacted = cluster.trireme(&["store", "compact"]);
    assert!(compacted.contains("cannot be read any more"), "{compacted}");
    assert!(etcdctl.fails(&["get", "mine", "--rev", "2"]).contains("has been compacted"));

    // The old cluster goes on a little, and is gone.
    etcdctl.ok(&["put", "mine", "too late"]);
    let old_master = place.path().join("old-master");
    let arguments = fs::read_to_string(format!("/proc/{}/cmdline", cluster.pid("master-1"))).expect("it runs");
    cluster.trireme(&["down"]);
    let copied = Command::new("cp").arg("-a").arg(cluster.folder().join("processes/master-1")).arg(&old_master).status();
    assert!(copied.expect("cp is there").success());
    cluster.trireme(&["down", "--purge"]);

    let base = cluster.port_base().to_string();
    let shape = ["--runtime", "hollow", "--netns", "none", "--nodes", "3", "--port-base", &base];
    let restored = cluster.trireme(&[&["snapshot", "restore", text(&file)], &shape[..]].concat());
    assert!(restored.contains(&format!("keys of revision {revision}")), "{restored}");
    // A stopped master of the new cluster is whole.
    for master in cluster.masters() {
        let folder = cluster.folder().join("processes").join(master);
        assert!(ok(&["store", "verify", "--data-dir", text(&folder)]).contains("Everything is whole"));
    }
    cluster.up();
    settled(&cluster).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(cluster.client("trireme").await);
    let found = maps.get("kept").await.expect("it is there");
    assert_eq!((found.metadata.uid, found.data), (kept.metadata.uid, kept.data));
    let etcdctl = Etcdctl::of(&cluster);
    assert_eq!(etcdctl.ok(&["get", "mine", "--print-value-only"]), "one\n");
    assert!(etcdctl.ok(&["lease", "timetolive", &lease, "--keys"]).contains("attached keys([mine])"));
    assert!(cluster.trireme(&["store", "hash"]).contains("All 3 masters hold the same"));
    // Clients that knew the old cluster never see a revision go back, and what they knew is compacted.
    let header: Value = serde_json::from_str(&etcdctl.ok(&["get", "mine", "-w", "json"])).expect("JSON");
    assert!(header["header"]["revision"].as_u64().is_some_and(|now| now > revision + 1_000_000), "{header}");
    assert!(etcdctl.fails(&["get", "mine", "--rev", &revision.to_string()]).contains("has been compacted"));
    let old_watch = format!("/api/v1/pods?watch=true&timeoutSeconds=5&resourceVersion={revision}");
    let expired = cluster.kubectl().run(&["get", "--raw", &old_watch], "");
    let expired = String::from_utf8_lossy(&[expired.stdout, expired.stderr].concat()).into_owned();
    assert!(expired.contains("\"code\":410"), "{expired}");

    // A master of the old cluster has no place in the new one.
    cluster.trireme(&["stop", "master-1"]);
    let arguments: Vec<String> = arguments.split('\0').skip(1).filter(|word| !word.is_empty()).map(str::to_owned).collect();
    let place_of = |flag: &str| arguments.iter().position(|argument| argument == flag).expect("the flag is there") + 1;
    for new_id in [false, true] {
        let mut arguments = arguments.clone();
        arguments[place_of("--data-dir")] = text(&old_master).to_owned();
        if new_id {
            let spec = fs::read_to_string(cluster.folder().join("cluster.yaml")).expect("it is there");
            let line = spec.lines().find_map(|line| line.strip_prefix("cluster-id: ")).expect("it has an id");
            arguments[place_of("--cluster-id")] = line.trim_matches(['"', '\'']).to_owned();
        }
        let output = Command::new("timeout").arg("30").arg(binary()).args(&arguments).output().expect("the binary runs");
        let told = [output.stdout, output.stderr].concat();
        assert!(output.status.code().is_some_and(|code| code != 0 && code != 124), "{}", String::from_utf8_lossy(&told));
    }
    cluster.trireme(&["start", "master-1"]);
    cluster.up();
    assert!(cluster.trireme(&["store", "hash"]).contains("All 3 masters hold the same"));
}

fn restore<'a>(file: &'a Path, target: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    [&["snapshot", "restore", text(file), "--data-dir", text(target)], more].concat()
}

#[test]
fn what_is_no_whole_snapshot_is_refused_and_nothing_is_made() {
    let place = tempfile::tempdir().expect("a folder");
    let file = place.path().join("saved");
    {
        let cluster = Cluster::start(Pods::Hollow, 0);
        cluster.trireme(&["snapshot", "save", text(&file)]);
    }
    let whole = fs::read(&file).expect("it is there");
    let (broken, target) = (place.path().join("broken"), place.path().join("target"));
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        bytes
    };
    let bolt = [&[0; 16][..], &[0xED, 0xDA, 0x0C, 0xED], &[0; 4096]].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (changed(&|bytes| bytes.truncate(bytes.len() - 1)), "the snapshot is cut off"),
        (changed(&|bytes| bytes.truncate(bytes.len() / 2)), "the snapshot is cut off"),
        (changed(&|bytes| bytes.push(0)), "followed by something else"),
        (changed(&|bytes| bytes[30] ^= 1), "cannot be read"),
        (changed(&|bytes| *bytes.last_mut().expect("it is not empty") ^= 1), "its checksum is wrong"),
        (
            changed(&|bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x40;
            }),
            "its checksum is wrong",
        ),
        (bolt, "this is a snapshot of etcd, not of trireme"),
        (b"apiVersion: v1\nkind: List\n".to_vec(), "this is not a snapshot of trireme"),
        (Vec::new(), "this is not a snapshot of trireme"),
    ];
    for (bytes, reason) in cases {
        fs::write(&broken, bytes).expect("it can be written");
        refused(&["snapshot", "status", text(&broken)], reason);
        refused(&restore(&broken, &target, &["--runtime", "hollow", "--netns", "none"]), reason);
        assert!(!target.exists(), "{reason}: something was made");
    }
    refused(&["snapshot", "status", text(&place.path().join("nothing"))], "cannot open");

    // Places and names that will not do.
    let status: Value = serde_json::from_str(&ok(&["snapshot", "status", text(&file), "-o", "json"])).expect("JSON");
    let old_id = status["clusterId"].as_str().expect("an id").to_owned();
    let one = |id: &str| ["--name", "m1", "--cluster-id", id, "--initial-members"].map(str::to_owned).to_vec();
    let with = |id: &str, members: &str, reason: &str| {
        let flags = [one(id), vec![members.to_owned()]].concat();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        refused(&restore(&file, &target, &flags), reason);
        assert!(!target.exists(), "{reason}: something was made");
    };
    with(&old_id, "m1=127.0.0.1:1", "the snapshot is of the cluster");
    with("new", "m2=127.0.0.1:1", "does not name this master");
    with("new", "m1=127.0.0.1:1,m2=127.0.0.1:1", "twice");
    refused(
        &restore(&file, &target, &["--bump-revision", "18446744073709551615", "--runtime", "hollow", "--netns", "none"]),
        "too large",
    );
    assert!(!target.exists());
    fs::create_dir(&target).expect("it can be made");
    fs::write(target.join("thesis.tex"), "the only copy").expect("it can be written");
    refused(&restore(&file, &target, &["--runtime", "hollow", "--netns", "none"]), "is not empty");
    assert_eq!(names(&target), ["thesis.tex"]);
}

/// The arguments of one of three masters on this machine.
fn master_arguments(place: &Path, number: u16, base: u16, members: &str) -> Vec<String> {
    let name = format!("m{number}");
    let port = |offset: u16| format!("127.0.0.1:{}", base + offset + number);
    let path = |folder: PathBuf| text(&folder).to_owned();
    [
        ("name", name.clone()),
        ("zone", format!("zone-{number}")),
        ("data-dir", path(place.join("data").join(&name))),
        ("pki-dir", path(place.join("pki").join(&name))),
        ("cluster-id", "second".to_owned()),
        ("initial-members", members.to_owned()),
        ("listen-api", port(0)),
        ("advertise-api", port(0)),
        ("listen-peer", port(100)),
        ("listen-client", port(200)),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [format!("--{flag}"), value])
    .collect()
}

/// Masters that were started by hand; killed at the end.
struct Masters(Vec<std::process::Child>);

impl Drop for Masters {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_masters_are_restored_one_by_one_as_on_real_machines() {
    let place = tempfile::tempdir().expect("a folder");
    let file = place.path().join("saved");
    {
        let cluster = Cluster::start(Pods::Hollow, 0);
        Etcdctl::of(&cluster).ok(&["put", "mine", "one"]);
        cluster.trireme(&["snapshot", "save", text(&file)]);
    }
    let _turn = take_turn();
    let base = free_ports();
    let members = (1..=3).map(|number| format!("m{number}=127.0.0.1:{}", base + 100 + number)).collect::<Vec<_>>().join(",");
    let pki = place.path().join("pki");
    let mut masters = Masters(Vec::new());
    for number in 1..=3 {
        let name = format!("m{number}");
        ok(&["pki", "master", &name, "--authority-dir", text(&pki), "--cluster-id", "second", "--address", "127.0.0.1"]);
        let data = place.path().join("data").join(&name);
        // Two of them into a folder that is there already, as a mounted disk is.
        if number > 1 {
            fs::create_dir_all(&data).expect("it can be made");
        }
        let flags = ["--name", &name, "--cluster-id", "second", "--initial-members", &members];
        ok(&restore(&file, &data, &flags));
        let log = fs::File::create(place.path().join(format!("{name}.log"))).expect("it can be written");
        let mut command = Command::new(binary());
        command.arg("master").args(master_arguments(place.path(), number, base, &members));
        command.stdout(log.try_clone().expect("a file")).stderr(log);
        masters.0.push(command.spawn().expect("the binary runs"));
    }
    ok(&[
        "pki",
        "admin",
        "--authority-dir",
        text(&pki),
        "--server",
        "https://127.0.0.1:1",
        "--output",
        text(&place.path().join("kubeconfig")),
    ]);
    let endpoints = (1..=3).map(|number| format!("127.0.0.1:{}", base + 200 + number)).collect::<Vec<_>>().join(",");
    let (ca, cert, key) = (pki.join("ca.crt"), pki.join("admin.crt"), pki.join("admin.key"));
    let keys = ["--endpoints", &endpoints, "--cacert", text(&ca), "--cert", text(&cert), "--key", text(&key)];
    until("all three agree", LIMIT, || async {
        let output = trireme(&[&["store", "hash"], &keys[..]].concat());
        let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if told.contains("All 3 masters hold the same") { Ok(()) } else { Err(told) }
    })
    .await;
    let copy = place.path().join("copy");
    ok(&[&["snapshot", "save", text(&copy)], &keys[..]].concat());
    let status: Value = serde_json::from_str(&ok(&["snapshot", "status", text(&copy), "-o", "json"])).expect("JSON");
    assert_eq!(status["clusterId"], "second");
}
