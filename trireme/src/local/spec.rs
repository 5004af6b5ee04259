//! What a local cluster consists of: decided once by `up`, kept in the cluster's folder, the same at every resume.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::layout::Layout;
use crate::{
    pki::{Lifetime, write_private},
    settings::{MemberId, RuntimeChoice},
};

/// The version of `cluster.yaml` that this binary writes and the newest that it reads.
const FORMAT: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ClusterSpec {
    pub format: u32,
    pub cluster_id: String,
    /// The balancer's port; the masters' follow it.
    pub port_base: u16,
    pub runtime: RuntimeChoice,
    pub network: NetworkMode,
    /// The third byte of the machine-local subnet `100.64.<n>.0/24` that joins the namespaces; unused in [`NetworkMode::Shared`].
    pub subnet: u8,
    /// How long a node may be silent before it counts as not ready, in seconds; the masters' own default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_grace_seconds: Option<u64>,
    /// How long new certificates are valid; the default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_lifetime: Option<Lifetime>,
    pub masters: Vec<MasterSpec>,
    pub nodes: Vec<NodeSpec>,
}

/// Which processes live in a network namespace of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// None: all share loopback.
    Shared,
    /// Every node.
    Nodes,
    /// Every node and every master.
    Masters,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MasterSpec {
    pub name: String,
    pub zone: String,
    /// Where the API is reached from this machine.
    pub api: SocketAddr,
    /// Where the other masters reach it.
    pub peer: SocketAddr,
    /// The id under which it belongs to the group. Absent as long as the masters are those that the cluster began with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member_id: Option<MemberId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NodeSpec {
    pub name: String,
    pub zone: String,
    pub address: IpAddr,
    pub port: u16,
}

/// What the user asked of a new cluster.
#[derive(Clone, Debug)]
pub struct Wishes {
    pub masters: usize,
    pub nodes: usize,
    pub zones: Vec<String>,
    pub runtime: RuntimeChoice,
    pub port_base: u16,
    pub network: NetworkMode,
    pub node_grace_seconds: Option<u64>,
    pub certificate_lifetime: Option<Lifetime>,
}

/// How many characters of the cluster's id tell it from others of this machine.
const SHORT_ID: usize = 8;
/// The first port of the masters' peers lies so far above the base.
const PEER_PORTS: u16 = 100;
/// The first port of node agents that share loopback lies so far above the base.
const AGENT_PORTS: u16 = 200;
/// The first port of the masters' etcd API lies so far above the base.
const CLIENT_PORTS: u16 = 300;
/// The most masters or nodes: what fits between the port ranges.
pub const MOST_MASTERS: usize = 9;
pub const MOST_NODES: usize = 99;

impl ClusterSpec {
    /// A new cluster; masters and nodes are dealt round the zones.
    pub fn new(wishes: &Wishes, cluster_id: String, subnet: u8) -> Self {
        let zone = |index: usize| wishes.zones[index % wishes.zones.len()].clone();
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let masters = (0..wishes.masters).map(|index| {
            let (api, peer) = master_sockets(wishes.network, subnet, wishes.port_base, index);
            MasterSpec { name: format!("master-{}", index + 1), zone: zone(index), api, peer, member_id: None }
        });
        let nodes = (0..wishes.nodes).map(|index| {
            let (address, port) = match wishes.network {
                NetworkMode::Shared => (loopback, wishes.port_base + AGENT_PORTS + 1 + index as u16),
                NetworkMode::Nodes | NetworkMode::Masters => (host(subnet, 2 + index as u8), 10250),
            };
            NodeSpec { name: format!("node-{}", index + 1), zone: zone(index), address, port }
        });
        Self {
            format: FORMAT,
            cluster_id,
            port_base: wishes.port_base,
            runtime: wishes.runtime,
            network: wishes.network,
            subnet,
            node_grace_seconds: wishes.node_grace_seconds,
            certificate_lifetime: wishes.certificate_lifetime,
            masters: masters.collect(),
            nodes: nodes.collect(),
        }
    }

    /// Reads the cluster of a folder; `None` when the folder holds none.
    pub fn load(layout: &Layout) -> Result<Option<Self>> {
        let path = layout.spec();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        #[derive(Deserialize)]
        struct Versioned {
            format: u32,
        }
        let versioned: Versioned =
            serde_saphyr::from_str(&text).with_context(|| format!("{} does not describe a cluster", path.display()))?;
        if versioned.format > FORMAT {
            bail!(
                "{} was written by a newer trireme (format {}; this one reads up to {FORMAT}); use that version",
                path.display(),
                versioned.format
            );
        }
        let spec: Self =
            serde_saphyr::from_str(&text).with_context(|| format!("{} does not describe a cluster", path.display()))?;
        if let Some(fault) = spec.fault() {
            bail!("{} does not describe a cluster: {fault}", path.display());
        }
        Ok(Some(spec))
    }

    /// Why no cluster is like this: somebody has changed its file.
    fn fault(&self) -> Option<&'static str> {
        if self.masters.is_empty() {
            Some("it names no master")
        } else if self.cluster_id.len() < SHORT_ID || !trireme_api::names::is_dns1123_label(&self.cluster_id).is_empty() {
            Some("its cluster-id is none that `trireme up` gives")
        } else if self.masters.iter().any(|master| master.api.port().checked_add(CLIENT_PORTS).is_none()) {
            Some("a master's port is too high")
        } else {
            None
        }
    }

    /// The cluster of a folder that must hold one.
    pub fn load_existing(layout: &Layout) -> Result<Self> {
        Self::load(layout)?.with_context(|| format!("{} holds no cluster; start one with `trireme up`", layout.root().display()))
    }

    pub fn save(&self, layout: &Layout) -> Result<()> {
        write_private(&layout.spec(), serde_saphyr::to_string(self)?.as_bytes())
    }

    /// The address of the balancer over all masters.
    pub fn balancer(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), self.port_base)
    }

    /// The host's own address on the bridge between the namespaces.
    pub fn bridge_address(&self) -> IpAddr {
        host(self.subnet, 1)
    }

    /// A name for network interfaces and namespaces that no other cluster of this machine has.
    pub fn short_id(&self) -> &str {
        &self.cluster_id[..SHORT_ID]
    }

    /// Where node agents reach the masters, those of `zone` first. The balancer is the last: it knows the masters that came later.
    pub fn masters_seen_by(&self, zone: &str) -> Vec<SocketAddr> {
        let mut masters: Vec<&MasterSpec> = self.masters.iter().collect();
        masters.sort_by_key(|master| master.zone != zone);
        let masters = masters.into_iter().map(|master| self.master_api_for_nodes(master));
        masters.chain(self.balancers().pop()).collect()
    }

    /// Where the balancer listens: on loopback and, where nodes have namespaces of their own, on the bridge.
    pub fn balancers(&self) -> Vec<SocketAddr> {
        let on_bridge = (self.network != NetworkMode::Shared).then(|| SocketAddr::new(self.bridge_address(), self.port_base));
        std::iter::once(self.balancer()).chain(on_bridge).collect()
    }

    /// One more master: with the next number for a name, in the zone that has the fewest masters, unless the caller says otherwise.
    ///
    /// # Errors
    /// When there is no room for it, or the name is taken.
    pub fn new_master(&self, name: Option<&str>, zone: Option<&str>) -> Result<MasterSpec> {
        let number = |name: &str| name.strip_prefix("master-")?.parse::<usize>().ok();
        let next = 1 + self.masters.iter().filter_map(|master| number(&master.name)).max().unwrap_or(0);
        let name = name.map_or_else(|| format!("master-{next}"), str::to_owned);
        let wrong = trireme_api::names::is_dns1123_label(&name);
        ensure!(wrong.is_empty(), "`{name}` is not a master's name: {}", wrong.join("; "));
        ensure!(!self.process_names().any(|process| process == name), "this cluster has a process `{name}` already");
        ensure!(!self.zones().contains(&name.as_str()), "`{name}` is not a master's name: a zone is called so");
        let zone = zone.map_or_else(|| self.emptiest_zone(), str::to_owned);
        ensure!(
            !zone.is_empty()
                && trireme_api::names::is_label_value(&zone).is_empty()
                && !self.process_names().any(|one| one == zone),
            "`{zone}` is not a zone's name: it must be a label value, and no process's name"
        );
        // Those of a master that was removed come last.
        let slots = (self.masters.len()..MOST_MASTERS).chain(0..self.masters.len());
        let mut sockets = slots.map(|slot| master_sockets(self.network, self.subnet, self.port_base, slot));
        let free = |peer: SocketAddr| !self.masters.iter().any(|master| master.peer == peer);
        let (api, peer) = sockets.find(|(_, peer)| free(*peer)).with_context(|| {
            format!("a local cluster has at most {MOST_MASTERS} masters; remove one first (`trireme member remove`)")
        })?;
        Ok(MasterSpec { name, zone, api, peer, member_id: None })
    }

    /// The zones in which there is something, in the order in which they were named.
    fn zones(&self) -> Vec<&str> {
        let mut zones = Vec::new();
        let all = self.masters.iter().map(|master| &master.zone).chain(self.nodes.iter().map(|node| &node.zone));
        for zone in all {
            if !zones.contains(&zone.as_str()) {
                zones.push(zone.as_str());
            }
        }
        zones
    }

    fn emptiest_zone(&self) -> String {
        let masters_in = |zone: &str| self.masters.iter().filter(|master| master.zone == zone).count();
        self.zones().into_iter().min_by_key(|zone| masters_in(zone)).unwrap_or("zone-a").to_owned()
    }

    /// Where node agents reach this master: over the bridge when they have namespaces of their own.
    pub fn master_api_for_nodes(&self, master: &MasterSpec) -> SocketAddr {
        match self.network {
            NetworkMode::Nodes => SocketAddr::new(self.bridge_address(), master.api.port()),
            NetworkMode::Shared | NetworkMode::Masters => master.api,
        }
    }

    /// Where this master serves the etcd API: a port of its own where the masters share an address.
    pub fn etcd_address(&self, master: &MasterSpec) -> SocketAddr {
        let port = match self.network {
            NetworkMode::Masters => 2379,
            NetworkMode::Shared | NetworkMode::Nodes => master.api.port() + CLIENT_PORTS,
        };
        SocketAddr::new(master.api.ip(), port)
    }

    /// The names of the processes that `name` means: one master or node, or all of a zone.
    pub fn processes_named(&self, name: &str) -> Result<Vec<String>> {
        let all = || {
            let masters = self.masters.iter().map(|master| (&master.name, &master.zone));
            masters.chain(self.nodes.iter().map(|node| (&node.name, &node.zone)))
        };
        let meant: Vec<String> =
            all().filter(|(process, zone)| *process == name || *zone == name).map(|(process, _)| process.clone()).collect();
        if meant.is_empty() {
            let known: Vec<&str> = all().map(|(process, _)| process.as_str()).collect();
            bail!("this cluster has no process and no zone `{name}`; its processes are {}", known.join(", "));
        }
        Ok(meant)
    }

    /// Every process, masters first.
    pub fn process_names(&self) -> impl Iterator<Item = &str> {
        let masters = self.masters.iter().map(|master| master.name.as_str());
        masters.chain(self.nodes.iter().map(|node| node.name.as_str()))
    }
}

/// Where the master at `slot` serves the API and its peers.
fn master_sockets(network: NetworkMode, subnet: u8, port_base: u16, slot: usize) -> (SocketAddr, SocketAddr) {
    match network {
        NetworkMode::Masters => {
            let address = host(subnet, 101 + slot as u8);
            (SocketAddr::new(address, 6443), SocketAddr::new(address, 2380))
        }
        NetworkMode::Shared | NetworkMode::Nodes => {
            let (loopback, port) = (IpAddr::V4(Ipv4Addr::LOCALHOST), port_base + 1 + slot as u16);
            (SocketAddr::new(loopback, port), SocketAddr::new(loopback, port + PEER_PORTS))
        }
    }
}

fn host(subnet: u8, last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(100, 64, subnet, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(network: NetworkMode) -> Wishes {
        Wishes {
            masters: 3,
            nodes: 4,
            zones: vec!["zone-a".into(), "zone-b".into(), "zone-c".into()],
            runtime: RuntimeChoice::Hollow,
            port_base: 6443,
            network,
            node_grace_seconds: Some(8),
            certificate_lifetime: None,
        }
    }

    #[test]
    fn masters_and_nodes_are_dealt_round_the_zones() {
        let spec = ClusterSpec::new(&wishes(NetworkMode::Shared), "0123456789".into(), 0);
        let zones: Vec<&str> = spec.nodes.iter().map(|node| node.zone.as_str()).collect();
        assert_eq!(zones, ["zone-a", "zone-b", "zone-c", "zone-a"]);
        assert_eq!(spec.masters[2].zone, "zone-c");
    }

    #[test]
    fn no_two_sockets_of_a_cluster_share_an_address() {
        for network in [NetworkMode::Shared, NetworkMode::Nodes, NetworkMode::Masters] {
            let spec = ClusterSpec::new(&wishes(network), "0123456789".into(), 7);
            let mut sockets: Vec<SocketAddr> = vec![spec.balancer()];
            sockets.extend(spec.masters.iter().flat_map(|master| [master.api, master.peer, spec.etcd_address(master)]));
            sockets.extend(spec.nodes.iter().map(|node| SocketAddr::new(node.address, node.port)));
            let all = sockets.len();
            sockets.sort();
            sockets.dedup();
            assert_eq!(sockets.len(), all, "{network:?}");
        }
    }

    #[test]
    fn another_master_gets_what_is_free() {
        let mut spec = ClusterSpec::new(&wishes(NetworkMode::Shared), "0123456789".into(), 0);
        let port = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let fourth = spec.new_master(None, None).unwrap();
        assert_eq!((fourth.name.as_str(), fourth.zone.as_str(), fourth.peer), ("master-4", "zone-a", port(6547)));
        spec.masters.push(fourth);
        spec.masters.remove(1);
        let fifth = spec.new_master(None, Some("zone-c")).unwrap();
        assert_eq!((fifth.name.as_str(), fifth.zone.as_str(), fifth.api), ("master-5", "zone-c", port(6448)));
        assert_eq!(spec.new_master(None, None).unwrap().zone, "zone-b");
        for taken in ["master-1", "node-2", "zone-a", "Upper"] {
            assert!(spec.new_master(Some(taken), None).is_err(), "{taken}");
        }
        while spec.masters.len() < MOST_MASTERS {
            spec.masters.push(spec.new_master(None, None).unwrap());
        }
        assert!(spec.new_master(None, None).unwrap_err().to_string().contains("at most 9 masters"));
    }

    #[test]
    fn a_file_that_somebody_has_spoiled_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::find(Some(folder.path())).unwrap();
        type Spoil = fn(&mut ClusterSpec);
        let spoil: [(Spoil, &str); 4] = [
            (|spec| spec.masters.clear(), "no master"),
            (|spec| spec.cluster_id = "short".into(), "cluster-id"),
            (|spec| spec.cluster_id = "0123456\u{e9}9".into(), "cluster-id"),
            (|spec| spec.masters[0].api.set_port(65500), "port"),
        ];
        for (spoil, reason) in spoil {
            let mut spec = ClusterSpec::new(&wishes(NetworkMode::Shared), "0123456789".into(), 0);
            spoil(&mut spec);
            spec.save(&layout).unwrap();
            let refused = ClusterSpec::load(&layout).unwrap_err().to_string();
            assert!(refused.contains("does not describe a cluster") && refused.contains(reason), "{refused}");
        }
    }

    #[test]
    fn a_zone_means_all_its_processes() {
        let spec = ClusterSpec::new(&wishes(NetworkMode::Shared), "0123456789".into(), 0);
        assert_eq!(spec.processes_named("zone-a").unwrap(), ["master-1", "node-1", "node-4"]);
        assert_eq!(spec.processes_named("node-2").unwrap(), ["node-2"]);
        assert!(spec.processes_named("node-9").unwrap_err().to_string().contains("no zone `node-9`"));
    }

    #[test]
    fn a_cluster_is_read_back_as_written_and_a_newer_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::find(Some(folder.path())).unwrap();
        assert_eq!(ClusterSpec::load(&layout).unwrap(), None);
        let mut spec = ClusterSpec::new(&wishes(NetworkMode::Nodes), "0123456789".into(), 3);
        // Ids that would pass for numbers if they were not quoted.
        for (master, id) in spec.masters.iter_mut().zip([0x1234, 0x1e5, u64::MAX]) {
            master.member_id = Some(MemberId(id));
        }
        spec.save(&layout).unwrap();
        assert_eq!(ClusterSpec::load(&layout).unwrap().as_ref(), Some(&spec));
        spec.format = FORMAT + 1;
        spec.save(&layout).unwrap();
        assert!(ClusterSpec::load(&layout).unwrap_err().to_string().contains("newer trireme"));
    }
}
