//! Many hollow nodes in one process, for work at scale.

use std::{net::IpAddr, sync::Arc, time::Duration};

use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use trireme_api::clock::Clock;

use crate::{
    agent::{self, NodeAgentError},
    config::{Capacity, NodeAgentConfig},
    runtime::hollow::{HollowConfig, HollowRuntime},
};

/// A fleet of hollow nodes.
#[derive(Clone)]
pub struct FleetConfig {
    /// Nodes are named `<name_prefix>-<number>`.
    pub name_prefix: String,
    /// Nodes are dealt round these zones.
    pub zones: Vec<String>,
    pub region: String,
    pub capacity: Capacity,
    pub max_pods: u32,
    pub start_latency: Duration,
    /// The starts of the nodes are spread over this time.
    pub ramp: Duration,
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self {
            name_prefix: "hollow".to_owned(),
            zones: Vec::new(),
            region: String::new(),
            capacity: Capacity { cpu_millis: 8000, memory_bytes: 32 << 30, ephemeral_storage_bytes: 100 << 30 },
            max_pods: 110,
            start_latency: Duration::ZERO,
            ramp: Duration::from_secs(10),
        }
    }
}

/// Runs `count` hollow nodes until `shutdown`.
///
/// # Errors
/// When one of the agents cannot start.
pub async fn run_hollow_fleet(
    client: Client,
    count: u32,
    fleet: FleetConfig,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) -> Result<(), NodeAgentError> {
    let mut agents = JoinSet::new();
    for number in 0..count {
        let (client, clock, shutdown) = (client.clone(), Arc::clone(&clock), shutdown.clone());
        let config = node_config(&fleet, number);
        let network = pod_network(number);
        let start = fleet.ramp.mul_f64(f64::from(number) / f64::from(count.max(1)));
        let hollow =
            HollowConfig { start_latency: fleet.start_latency, first_range: Some((network, 24)), ..HollowConfig::default() };
        agents.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(start) => {}
            }
            let runtime = Arc::new(HollowRuntime::new(hollow, Arc::clone(&clock)));
            agent::run(client, config, runtime, clock, shutdown).await
        });
    }
    while let Some(ended) = agents.join_next().await {
        if let Ok(result) = ended {
            result?;
        }
    }
    Ok(())
}

fn node_config(fleet: &FleetConfig, number: u32) -> NodeAgentConfig {
    // Addresses of nodes are from 198.18.0.0/15, which is set aside for benchmarks (RFC 2544).
    let address = IpAddr::V4((0xC612_0000 + (number & 0x1_FFFF)).into());
    let mut config = NodeAgentConfig::new(format!("{}-{number}", fleet.name_prefix), address);
    if !fleet.zones.is_empty() {
        config.zone = fleet.zones[number as usize % fleet.zones.len()].clone();
    }
    config.region = fleet.region.clone();
    config.capacity = Some(fleet.capacity);
    config.max_pods = fleet.max_pods;
    config.resync_interval = Duration::from_secs(60);
    config.status_check_interval = Duration::from_secs(60);
    config.labels.insert("trireme.io/hollow".to_owned(), "true".to_owned());
    config
}

/// A /24 of 10.0.0.0/8 for each node.
fn pod_network(number: u32) -> std::net::Ipv4Addr {
    (0x0A00_0000 + ((number & 0xFFFF) << 8)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_dealt_round_the_zones() {
        let fleet = FleetConfig { zones: vec!["a".to_owned(), "b".to_owned()], ..FleetConfig::default() };
        let zones: Vec<String> = (0..4).map(|number| node_config(&fleet, number).zone).collect();
        assert_eq!(zones, ["a", "b", "a", "b"]);
        assert_eq!(node_config(&fleet, 3).node_ip.to_string(), "198.18.0.3");
        assert_eq!(pod_network(258).to_string(), "10.1.2.0");
    }
}
