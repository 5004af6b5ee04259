//! Ports of the node that lead to pods. The node and a machine outside the cluster are network namespaces with a cable
//! between them. Needs root, busybox-static, iproute2 and nftables.

mod real;

use std::{path::Path, process::Command, sync::Arc, time::Duration};

use real::{
    Bench, container,
    namespace::{Namespace, WHO_SERVER, plain, who, who_at_last},
    start, words,
};
use trireme_nodeagent::{
    embedded::EmbeddedRuntime,
    network::{NetworkConfig, NodeNetwork},
    runtime::{PortMapping, Runtime, SandboxConfig},
};

const RANGE: &str = "10.244.8.0/24";

fn with_port(mut config: SandboxConfig) -> SandboxConfig {
    config.port_mappings.push(PortMapping { protocol: "TCP".to_owned(), container_port: 8080, host_port: 18080, host_ip: None });
    config
}

async fn network(state: &Path) -> Arc<NodeNetwork> {
    let network = Arc::new(NodeNetwork::open(NetworkConfig::new(state.to_owned())).unwrap());
    network.set_pod_cidr(RANGE.parse().unwrap()).await.unwrap();
    network
}

/// What the pod's server says to a pod that asks through the node's address.
async fn asked_by_pod(runtime: &EmbeddedRuntime, container_id: &str) -> String {
    let ask = words(&["wget", "-q", "-O", "-", "http://172.30.8.1:18080/cgi-bin/who"]);
    let answer = runtime.exec(container_id, &ask, Duration::from_secs(20)).await.unwrap();
    assert_eq!(answer.exit_code, 0, "{answer:?}");
    plain(&String::from_utf8_lossy(&answer.stdout)).to_owned()
}

fn tables() -> String {
    let output = Command::new("nft").args(["list", "tables"]).output().expect("this test needs nftables");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_host_port_leads_to_its_pod_from_everywhere_as_long_as_the_pod_is() {
    let (node, outside) = (Namespace::new(), Namespace::new());
    node.join("172.30.8.1/24", &outside, "172.30.8.2/24");
    let state = tempfile::tempdir().unwrap();
    let state_folder = state.path().to_owned();

    let (mut bench, sandbox) = node.run(async move || {
        let bench = Bench::with_network(network(&state_folder).await);
        let runtime = bench.open_with_image().await;
        let config = with_port(bench.sandbox("server"));
        let sandbox = runtime.run_sandbox(&config).await.unwrap();
        let server = start(&runtime, &sandbox, &config, &container("main", WHO_SERVER)).await;
        assert_eq!(who_at_last("172.30.8.1:18080").await, "172.30.8.1", "from the node, by its address");
        assert_eq!(who_at_last("127.0.0.1:18080").await, "10.244.8.1", "from the node, by its loopback address");
        assert_eq!(asked_by_pod(&runtime, &server).await, "10.244.8.1", "from the pod itself");

        let client_config = bench.sandbox("client");
        let client = runtime.run_sandbox(&client_config).await.unwrap();
        let client_container = start(&runtime, &client, &client_config, &container("main", "sleep 1000")).await;
        assert_eq!(asked_by_pod(&runtime, &client_container).await, "10.244.8.1", "from a pod beside it");

        let error = runtime.run_sandbox(&with_port(bench.sandbox("second"))).await.unwrap_err().to_string();
        assert!(error.contains("host port 18080/tcp leads to another pod already"), "{error}");
        runtime.remove_sandbox(&client).await.unwrap();
        assert_eq!(runtime.list_sandboxes().await.unwrap().len(), 1);
        (bench, sandbox)
    });
    assert_eq!(outside.run(async || who_at_last("172.30.8.1:18080").await), "172.30.8.2", "the client's address is kept");

    let state_folder = state.path().to_owned();
    node.run(async move || {
        // A restarted agent, on a machine that has lost its rules meanwhile.
        assert!(Command::new("nft").args(["flush", "ruleset"]).status().unwrap().success());
        assert_eq!(who("172.30.8.1:18080").await, None);
        bench.network = network(&state_folder).await;
        let runtime = bench.open().await;
        assert_eq!(who_at_last("172.30.8.1:18080").await, "172.30.8.1");
        assert!(tables().contains("trireme-host-ports"));
        runtime.remove_sandbox(&sandbox).await.unwrap();
        assert_eq!(who("172.30.8.1:18080").await, None);
        assert!(!tables().contains("trireme-host-ports"), "{}", tables());
        assert_eq!(std::fs::read_dir(state_folder.join("host-ports")).unwrap().count(), 0);
        assert_eq!(bench.leftovers(), Vec::<String>::new());
    });
}

#[test]
fn a_pod_cannot_reach_the_nodes_loopback_services() {
    let node = Namespace::new();
    let state = tempfile::tempdir().unwrap();
    let state_folder = state.path().to_owned();
    node.run(async move || {
        let bench = Bench::with_network(network(&state_folder).await);
        let runtime = bench.open_with_image().await;
        let config = with_port(bench.sandbox("attacker"));
        let sandbox = runtime.run_sandbox(&config).await.unwrap();
        let mut attacker = container("main", "sleep 1000");
        attacker.security.privileged = true;
        let id = start(&runtime, &sandbox, &config, &attacker).await;
        let service = tokio::net::TcpListener::bind("127.0.0.1:19090").await.unwrap();
        let script = "ip addr del 127.0.0.1/8 dev lo 2>/dev/null; ip route replace 127.0.0.1/32 via 10.244.8.1 dev eth0; \
                      echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet; echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet; \
                      exec nc -w 2 127.0.0.1 19090 < /dev/null";
        let command = words(&["sh", "-c", script]);
        let attack = async || {
            // Closed as soon as it is accepted, so that the attacker's client ends.
            let accepted = tokio::time::timeout(Duration::from_secs(4), async { service.accept().await.map(drop) });
            let (accepted, ended) = tokio::join!(accepted, runtime.exec(&id, &command, Duration::from_secs(20)));
            ended.unwrap();
            accepted.is_ok()
        };
        assert!(!attack().await, "the pod has reached the node's loopback address");
        let flush = ["flush", "chain", "ip", "trireme-host-ports", "input"];
        assert!(Command::new("nft").args(flush).status().unwrap().success());
        assert!(attack().await, "without the rule the attack works: the test attacks in earnest");
        runtime.remove_sandbox(&sandbox).await.unwrap();
        assert_eq!(bench.leftovers(), Vec::<String>::new());
    });
}
