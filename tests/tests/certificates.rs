//! Certificates renew by themselves: a cluster whose certificates last half a minute lives through several of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::Duration,
};

use nix::unistd::Pid;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use trireme_tests::{
    cluster::{Cluster, Pods},
    config_maps::Writers,
    etcdctl::Etcdctl,
    shown,
    wait::until,
};

/// How long a certificate lasts, in seconds, and how many of them each server must have shown.
const LIFETIME: &str = "30";
const GENERATIONS: usize = 4;
const LIMIT: Duration = Duration::from_secs(300);

const POD: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "quiet"},
    "spec": {"containers": [{"name": "main", "image": "quiet:1"}]}}"#;

/// Where a server listens, the name it is asked for, and the certificate that is shown to it.
struct Server {
    what: &'static str,
    port: u16,
    name: String,
    folder: PathBuf,
    certificate: &'static str,
}

fn servers(cluster: &Cluster) -> Vec<Server> {
    let spec = fs::read_to_string(cluster.folder().join("cluster.yaml")).expect("the cluster's description is there");
    let id = spec.lines().find_map(|line| line.strip_prefix("cluster-id: ")).expect("it has an id");
    let base = cluster.port_base();
    let admin = cluster.folder().join("pki");
    let master = cluster.folder().join("processes/master-2/pki");
    let server = |what, port, name: &str, folder: &PathBuf, certificate| Server {
        what,
        port,
        name: name.to_owned(),
        folder: folder.clone(),
        certificate,
    };
    vec![
        server("the API", base + 1, "kubernetes", &admin, "admin"),
        server("the etcd API", base + 301, "localhost", &admin, "admin"),
        server("a peer", base + 101, &format!("{id}.peers.trireme.internal"), &master, "peer"),
        server("a node agent", base + 201, "node-1", &master, "node-client"),
    ]
}

fn pids(cluster: &Cluster) -> Vec<Pid> {
    let nodes = ["node-1".to_owned()];
    cluster.masters().iter().chain(&nodes).map(|name| cluster.pid(name)).collect()
}

/// Runs etcdctl, once more if it fails: it reads the certificate and the key one after the other, and may do so at the very moment in
/// which they are replaced.
fn etcdctl_put(etcdctl: &Etcdctl, number: usize) {
    let value = number.to_string();
    if !etcdctl.run(&["put", "own/key", &value], "").status.success() {
        etcdctl.ok(&["put", "own/key", &value]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_lives_through_several_generations_of_certificates() {
    let cluster = Cluster::start_with(Pods::Hollow, 1, &["--certificate-seconds", LIFETIME]);
    let before = pids(&cluster);
    let (kubectl, etcdctl) = (cluster.kubectl(), Etcdctl::of(&cluster));
    kubectl.ok(&["config", "set-context", "mine", "--cluster", "trireme", "--user", "me"]);
    kubectl.ok_with_input(&["apply", "-f", "-"], POD);
    let mut clients = Vec::new();
    for master in cluster.masters() {
        clients.push(cluster.client(&master).await);
    }
    let writers = Writers::start("renewed", clients);
    let mut watch = etcdctl.start(&["watch", "own/key", "--rev", "1"]);

    // Every command is a new client, with the certificate of its moment.
    let servers = servers(&cluster);
    let mut seen: BTreeMap<&str, BTreeSet<Vec<u8>>> = BTreeMap::new();
    let (mut number, mut failures) = (0, 0);
    let deadline = Instant::now() + LIMIT;
    while seen.len() < servers.len() || seen.values().any(|certificates| certificates.len() < GENERATIONS) {
        let counts: Vec<_> = seen.iter().map(|(what, certificates)| (what, certificates.len())).collect();
        assert!(Instant::now() < deadline, "certificates are not renewed: {counts:?}");
        for server in &servers {
            match shown::certificate(server.port, &server.name, &server.folder, server.certificate).await {
                Ok(certificate) => drop(seen.entry(server.what).or_default().insert(certificate)),
                Err(error) => {
                    // The files may have been replaced while they were read.
                    failures += 1;
                    println!("{}: {error}", server.what);
                }
            }
        }
        number += 1;
        kubectl.ok(&["create", "configmap", &format!("round-{number}")]);
        etcdctl_put(&etcdctl, number);
        sleep(Duration::from_millis(500)).await;
    }
    assert!(failures * 20 < number * servers.len(), "{failures} handshakes of {number} rounds failed");
    assert_eq!(pids(&cluster), before, "nothing was restarted");

    // The masters reach the node's agent with their new certificate.
    until("the pod's log can be read", LIMIT, || async {
        let output = kubectl.run(&["logs", "quiet"], "");
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    })
    .await;
    // An old stream goes on.
    let last = watch.lines(3 * number);
    assert_eq!(last[last.len() - 1], number.to_string());
    let outcome = writers.stop().await;
    let (failed, acknowledged) = (outcome.unknown, outcome.acknowledged.len());
    assert!(failed * 20 < acknowledged, "{failed} writes failed, {acknowledged} were acknowledged");

    // Connections between masters are made anew, with certificates that none of them was started with.
    let leader = cluster.leader().await;
    cluster.trireme(&["kill", &leader]);
    cluster.trireme(&["start", &leader]);
    cluster.leader().await;
    until("the restarted master serves", LIMIT, || async {
        let output = kubectl.context(&leader).run(&["get", "configmap", "round-1"], "");
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    })
    .await;
    check_status(&cluster);
    let contexts = kubectl.ok(&["config", "get-contexts", "-o", "name"]);
    assert!(contexts.lines().any(|name| name == "mine"), "a user's own context stays: {contexts}");

    // By hand, for longer.
    cluster.trireme(&["certs", "renew", "--certificate-days", "30"]);
    let left = certificates(&cluster).into_iter().map(|row| row["daysLeft"].as_i64().unwrap_or_default());
    assert!(left.clone().all(|days| days >= 29), "{:?}", left.collect::<Vec<_>>());
    let refused = cluster.try_trireme(&["certs", "renew", "master-9"]);
    let reason = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && reason.contains("no certificates of `master-9`"), "{reason}");
}

fn certificates(cluster: &Cluster) -> Vec<Value> {
    let printed = cluster.trireme(&["certs", "status", "-o", "json"]);
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

fn check_status(cluster: &Cluster) {
    let rows = certificates(cluster);
    // The administrator's, three of each master and the node's, and the authority's with each of them.
    assert_eq!(rows.len(), 2 + 3 * 4 + 2, "{rows:?}");
    for row in &rows {
        let path = PathBuf::from(row["file"].as_str().expect("a file"));
        let is_authority = path.ends_with("ca.crt");
        let key = row["key"].as_str().unwrap_or_default();
        assert!(key == "fits" || (is_authority && key == "absent"), "{row}");
        assert_eq!(row["authority"], "CN=trireme-ca", "{row}");
        let left = row["secondsLeft"].as_i64().unwrap_or_default();
        assert!(left > 0 && (is_authority || left <= 30), "{row}");
        let key_file = path.with_extension("key");
        if let Ok(metadata) = fs::metadata(&key_file) {
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{}", key_file.display());
        }
    }
}
