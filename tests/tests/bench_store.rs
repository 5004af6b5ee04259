//! `trireme bench store` against masters, and the pages beside the etcd API from which it reads what they cost.

use std::process::Command;

use hyper::Method;
use serde_json::Value;
use trireme_tests::{
    cluster::{self, Cluster, Pods},
    connection::Connection,
    etcdctl::Etcdctl,
};

fn bench(etcdctl: &Etcdctl, arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new(cluster::binary());
    command.args(["bench", "store", "--endpoints", etcdctl.variable("ENDPOINTS")]);
    for (flag, name) in [("--cacert", "CACERT"), ("--cert", "CERT"), ("--key", "KEY")] {
        command.args([flag, etcdctl.variable(name)]);
    }
    command.args(arguments).output().expect("the binary runs")
}

#[test]
fn a_store_is_measured_and_left_as_it_was() {
    let cluster = Cluster::start(Pods::Hollow, 1);
    let etcdctl = Etcdctl::of(&cluster);
    let shape = ["--rounds", "1", "--seconds", "1", "--value-bytes", "100", "-o", "json"];
    let done = bench(&etcdctl, &[&["--only", "puts-16,gets-followers-64,watchers-100"], &shape[..]].concat());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let lines: Value = serde_json::from_slice(&done.stdout).expect("JSON");
    let loads: Vec<&str> = lines.as_array().unwrap().iter().filter_map(|line| line["load"].as_str()).collect();
    assert_eq!(loads, ["puts-16", "gets-followers-64", "watchers-100"]);
    let figure = |line: usize, name: &str| lines[line][name].as_f64().unwrap_or_else(|| panic!("no {name}: {lines}"));
    for line in 0..loads.len() {
        for name in ["operations_per_second", "p99_milliseconds", "server_cpu_microseconds", "resident_mebibytes"] {
            assert!(figure(line, name) > 0.0, "{name}: {lines}");
        }
        assert!(figure(line, "p50_milliseconds") <= figure(line, "p99_milliseconds"), "{lines}");
    }
    assert!(figure(0, "fsyncs") > 0.0 && figure(1, "fsyncs") < 0.1, "puts are synced, gets are not: {lines}");
    let left = etcdctl.ok(&["get", "trireme-bench/", "--prefix", "--keys-only"]);
    assert_eq!(left, "", "nothing is left behind");

    let unknown = bench(&etcdctl, &["--only", "nothing"]);
    assert!(!unknown.status.success());
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(said.starts_with("trireme: --only chooses no load; there are puts-1, "), "{said}");
    let nobody = bench(&etcdctl.with("ENDPOINTS", "https://127.0.0.1:1"), &[]);
    let said = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(!nobody.status.success() && said.contains("cannot connect to https://127.0.0.1:1"), "{said}");
}

#[tokio::test]
async fn masters_have_the_pages_that_etcd_has() {
    let cluster = Cluster::start(Pods::Hollow, 1);
    let etcdctl = Etcdctl::of(&cluster);
    let endpoint = etcdctl.endpoints().remove(0);
    let port = endpoint.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let mut connection = Connection::open(port, cluster.folder()).await;
    let health = connection.send(Method::GET, "/health", "", "").await;
    assert_eq!((health.code.as_u16(), &health.body["health"]), (200, &Value::from("true")));
    let version = connection.send(Method::GET, "/version", "", "").await;
    assert_eq!(version.body["etcdcluster"], "3.5.0");
    assert_eq!(connection.send(Method::GET, "/metrics", "", "").await.code.as_u16(), 200);
    assert_eq!(connection.send(Method::POST, "/health", "", "").await.code.as_u16(), 405);
}
