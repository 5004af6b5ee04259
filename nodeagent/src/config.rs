//! What an operator may set about a node agent.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::Taint;

use crate::node::eviction::EvictionThresholds;

/// The settings of one node agent. [`NodeAgentConfig::new`] gives the kubelet's defaults.
#[derive(Clone)]
pub struct NodeAgentConfig {
    /// The Node's name; its host name too.
    pub name: String,
    /// `topology.kubernetes.io/zone`; no label when empty.
    pub zone: String,
    /// `topology.kubernetes.io/region`; no label when empty.
    pub region: String,
    /// Labels beside the well-known ones.
    pub labels: BTreeMap<String, String>,
    /// Taints given when the Node is first registered.
    pub taints: Vec<Taint>,
    /// The address other machines reach this node at; `status.hostIP` of its pods.
    pub node_ip: IpAddr,
    /// Where the agent's HTTPS API listens.
    pub listen: SocketAddr,
    /// TLS of that API (it should require client certificates); without it the API is not served.
    pub serving_tls: Option<Arc<rustls::ServerConfig>>,
    /// Volumes, logs and hosts files live here. `None` (hollow fleets) writes nothing to disk.
    pub data_dir: Option<PathBuf>,
    pub max_pods: u32,
    /// When the node is short of memory, space or processes (`MemoryPressure` and its like).
    pub eviction_hard: EvictionThresholds,
    /// Instead of what the machine has.
    pub capacity: Option<Capacity>,
    /// The servers in `/etc/resolv.conf` of pods with `dnsPolicy: ClusterFirst`.
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// The node's own resolver settings, for `dnsPolicy: Default`.
    pub resolv_conf: PathBuf,
    /// How long a heartbeat is good for (`spec.leaseDurationSeconds`).
    pub lease_duration: Duration,
    pub lease_renew_interval: Duration,
    /// How often the node's status is written though nothing changed.
    pub status_report_interval: Duration,
    /// How often the node's conditions are looked at.
    pub status_check_interval: Duration,
    /// How often a pod is looked at though nothing was heard of it.
    pub resync_interval: Duration,
    /// How often the contents of configMap, secret, downwardAPI and projected volumes are brought up to date.
    pub volume_refresh_interval: Duration,
    /// A container's log file is rotated when it is larger than this.
    pub log_max_bytes: u64,
    /// How many log files of one container instance are kept, the current one included.
    pub log_max_files: usize,
    /// `nodeInfo.kubeletVersion`.
    pub kubelet_version: String,
    /// Seed for jitter.
    pub seed: u64,
}

/// A node's resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub ephemeral_storage_bytes: u64,
}

impl NodeAgentConfig {
    /// The kubelet's defaults for a node of this name and address.
    pub fn new(name: impl Into<String>, node_ip: IpAddr) -> Self {
        Self {
            name: name.into(),
            zone: String::new(),
            region: String::new(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            node_ip,
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 10250),
            serving_tls: None,
            data_dir: None,
            max_pods: 110,
            eviction_hard: EvictionThresholds::default(),
            capacity: None,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            lease_duration: Duration::from_secs(40),
            lease_renew_interval: Duration::from_secs(10),
            status_report_interval: Duration::from_secs(300),
            status_check_interval: Duration::from_secs(10),
            resync_interval: Duration::from_secs(10),
            volume_refresh_interval: Duration::from_secs(30),
            log_max_bytes: 10 << 20,
            log_max_files: 5,
            kubelet_version: concat!("v1.36.0+trireme-", env!("CARGO_PKG_VERSION")).to_owned(),
            seed: 0,
        }
    }
}
