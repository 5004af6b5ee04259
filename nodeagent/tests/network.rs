//! Pods on two nodes reach each other. Each node is a network namespace on this machine, as with a local cluster. Needs
//! root, busybox-static and iproute2.

mod real;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    process::Command,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use real::{Bench, container, require_root, start, words};
use trireme_nodeagent::{
    network::{NetworkConfig, NodeNetwork, Peer},
    runtime::{Runtime, RuntimeError},
};

/// Two namespaces with a cable between them.
struct TwoNodes {
    names: [String; 2],
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().expect("this test needs iproute2");
    assert!(status.success(), "ip {arguments}");
}

impl TwoNodes {
    fn new() -> TwoNodes {
        require_root();
        let names = ["a", "b"].map(|name| format!("trireme-test-{}-{name}", std::process::id()));
        for name in &names {
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
        }
        let [a, b] = &names;
        ip(&format!("-n {a} link add wire type veth peer name wire netns {b}"));
        for (name, address) in [(a, "172.30.0.1/24"), (b, "172.30.0.2/24")] {
            ip(&format!("-n {name} addr add {address} dev wire"));
            ip(&format!("-n {name} link set wire up"));
        }
        TwoNodes { names }
    }

    /// Runs the node's part on a thread inside its namespace.
    fn run<T: Send + 'static>(&self, node: usize, part: impl AsyncFnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let path = format!("/run/netns/{}", self.names[node]);
        thread::spawn(move || {
            let namespace = std::fs::File::open(path).unwrap();
            nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(part())
        })
    }
}

impl Drop for TwoNodes {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// The address as busybox's httpd tells it, without its mapping into IPv6.
fn plain(answer: &str) -> &str {
    answer.trim().trim_start_matches("[::ffff:").trim_end_matches(']')
}

async fn node(bench: &Bench, network: &NodeNetwork, range: &str, peer_range: &str, peer_address: &str) {
    network.set_pod_cidr(range.parse().unwrap()).await.unwrap();
    let peer = Peer { pod_cidr: peer_range.parse().unwrap(), address: peer_address.parse().unwrap() };
    network.set_peers(BTreeSet::from([peer])).await.unwrap();
    network.set_peers(BTreeSet::from([peer])).await.unwrap();
    assert!(bench.folder.path().exists());
}

fn node_bench() -> (Bench, Arc<NodeNetwork>) {
    let state = tempfile::tempdir().unwrap().keep();
    let network = Arc::new(NodeNetwork::open(NetworkConfig::new(state)).unwrap());
    (Bench::with_network(network.clone()), network)
}

#[test]
fn pods_of_two_nodes_speak_without_translation() {
    let nodes = TwoNodes::new();
    let (say_address, address) = mpsc::channel::<IpAddr>();
    let (say_done, mut done) = tokio::sync::mpsc::channel::<()>(1);

    let server = nodes.run(0, async move || {
        let (bench, network) = node_bench();
        let runtime = bench.open_with_image().await;
        let config = bench.sandbox("server");
        assert!(runtime.ready().await.is_err(), "no pod CIDR yet");
        assert!(matches!(runtime.run_sandbox(&config).await, Err(RuntimeError::Network(_))));
        node(&bench, &network, "10.244.0.0/24", "10.244.1.0/24", "172.30.0.2").await;
        runtime.ready().await.unwrap();
        let sandbox = runtime.run_sandbox(&config).await.unwrap();
        let script = "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho; echo $REMOTE_ADDR' > /www/cgi-bin/who; chmod +x /www/cgi-bin/who; exec httpd -f -p 8080 -h /www";
        let id = start(&runtime, &sandbox, &config, &container("main", script)).await;
        let own = runtime.list_sandboxes().await.unwrap()[0].addresses[0];

        // A restarted agent frees what is not adopted and keeps what is.
        drop(runtime);
        let runtime = bench.open().await;
        assert_eq!(runtime.list_sandboxes().await.unwrap()[0].addresses, [own]);
        // The server may not listen yet.
        let itself = format!("until wget -q -O - http://{own}:8080/cgi-bin/who 2>/dev/null; do sleep 0.1; done");
        let own_answer = runtime.exec(&id, &words(&["sh", "-c", &itself]), Duration::from_secs(10)).await.unwrap();
        assert_eq!(plain(&String::from_utf8_lossy(&own_answer.stdout)), own.to_string());
        say_address.send(own).unwrap();
        done.recv().await;
        runtime.remove_sandbox(&sandbox).await.unwrap();
        assert_eq!(bench.leftovers(), Vec::<String>::new());
        let links = String::from_utf8(Command::new("ip").args(["-br", "link"]).output().unwrap().stdout).unwrap();
        assert!(!links.contains("trv"), "{links}");
    });

    let server_address = address.recv_timeout(Duration::from_secs(60)).expect("the server's address");
    let client = nodes.run(1, async move || {
        let (bench, network) = node_bench();
        let runtime = bench.open_with_image().await;
        node(&bench, &network, "10.244.1.0/24", "10.244.0.0/24", "172.30.0.1").await;
        let config = bench.sandbox("client");
        let sandbox = runtime.run_sandbox(&config).await.unwrap();
        let own = runtime.list_sandboxes().await.unwrap()[0].addresses[0];
        let id = start(&runtime, &sandbox, &config, &container("main", "sleep 1000")).await;
        let request = format!("printf 'GET /cgi-bin/who HTTP/1.0\\r\\n\\r\\n' | nc -w 10 {server_address} 8080 | tail -n 1");
        let ask = words(&["sh", "-c", &request]);
        let answer = runtime.exec(&id, &ask, Duration::from_secs(20)).await.unwrap();
        let log = String::from_utf8(answer.stdout.clone()).unwrap();
        assert!(!log.is_empty(), "{answer:?}");

        // The node itself reaches the pod of the other node too.
        let stream = tokio::time::timeout(Duration::from_secs(10), tokio::net::TcpStream::connect((server_address, 8080)));
        stream.await.expect("in time").expect("connected");
        runtime.remove_sandbox(&sandbox).await.unwrap();
        assert_eq!(bench.leftovers(), Vec::<String>::new());
        (log, own)
    });
    let client = client.join();
    say_done.blocking_send(()).unwrap();
    server.join().unwrap();
    let (log, own) = client.unwrap();
    assert_eq!(plain(&log), own.to_string(), "the server sees the pod's own address");
}
