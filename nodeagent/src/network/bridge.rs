//! The built-in network of a node: a bridge with the first address of the node's range, a pair of interfaces for each pod,
//! and a route to each other node's range by that node's address.
//!
//! "The node" is the network namespace that this process runs in.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd,
    path::PathBuf,
};

use async_trait::async_trait;
use rtnetlink::Handle;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use trireme_api::cidr::Ipv4Cidr;

use super::{
    Attachment, NetworkError, PodNetwork,
    allocator::AddressAllocator,
    host_ports::{HostPorts, Place},
    links, masquerade, namespace, nft,
};

/// How the node's network is set up.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Where addresses are remembered; this node's own.
    pub state_dir: PathBuf,
    /// The bridge's name, at most 15 bytes; other interfaces of the node must not start with [`VETH_PREFIX`].
    pub bridge: String,
    pub mtu: u32,
}

impl NetworkConfig {
    pub fn new(state_dir: PathBuf) -> NetworkConfig {
        NetworkConfig { state_dir, bridge: "trireme0".to_owned(), mtu: 1500 }
    }
}

/// Pods' interfaces on the node start so.
pub const VETH_PREFIX: &str = "trv";

/// Another node: its pods' range, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    pub pod_cidr: Ipv4Cidr,
    pub address: Ipv4Addr,
}

/// The node's network.
pub struct NodeNetwork {
    config: NetworkConfig,
    state: Mutex<State>,
}

struct State {
    allocator: AddressAllocator,
    host_ports: HostPorts,
    /// Set once the bridge is there.
    range: Option<Ipv4Cidr>,
    bridge: u32,
    peers: BTreeSet<Peer>,
    said_no_nft: bool,
}

impl NodeNetwork {
    pub fn open(config: NetworkConfig) -> Result<NodeNetwork, NetworkError> {
        let allocator = AddressAllocator::open(config.state_dir.join("addresses"))?;
        let host_ports = HostPorts::open(config.state_dir.join("host-ports"))?;
        let state = State { allocator, host_ports, range: None, bridge: 0, peers: BTreeSet::new(), said_no_nft: false };
        Ok(NodeNetwork { config, state: Mutex::new(state) })
    }

    /// Takes the node's range (`Node.spec.podCIDR`) into use: from now on the network is ready.
    pub async fn set_pod_cidr(&self, range: Ipv4Cidr) -> Result<(), NetworkError> {
        let gateway = gateway(range)?;
        let mut state = self.state.lock().await;
        let netlink = Netlink::open()?;
        state.bridge = links::bridge(&netlink.handle, &self.config.bridge, gateway, range, self.config.mtu).await?;
        let forwarding = "/proc/sys/net/ipv4/ip_forward";
        fs::write(forwarding, "1").map_err(NetworkError::io(format!("cannot write {forwarding}")))?;
        state.range = Some(range);
        self.masquerade(&mut state).await?;
        state.host_ports.apply(self.place(range)).await
    }

    /// Makes the routes to the other nodes' pods exactly these.
    pub async fn set_peers(&self, peers: BTreeSet<Peer>) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        let netlink = Netlink::open()?;
        let wanted: Vec<_> = peers.iter().map(|peer| (peer.pod_cidr, peer.address)).collect();
        state.peers = peers;
        self.masquerade(&mut state).await?;
        links::routes(&netlink.handle, &wanted).await
    }

    fn place(&self, range: Ipv4Cidr) -> Place<'_> {
        Place { bridge: &self.config.bridge, range }
    }

    async fn masquerade(&self, state: &mut State) -> Result<(), NetworkError> {
        let Some(range) = state.range else { return Ok(()) };
        let applied = masquerade::apply(&self.config.bridge, range, &state.peers).await?;
        if applied == nft::Outcome::NoNft && !state.said_no_nft {
            state.said_no_nft = true;
            tracing::warn!("nft is not installed: pods cannot reach addresses outside the cluster");
        }
        Ok(())
    }
}

#[async_trait]
impl PodNetwork for NodeNetwork {
    async fn ready(&self) -> Result<(), NetworkError> {
        self.state.lock().await.range.map(drop).ok_or(NetworkError::NotConfigured)
    }

    async fn attach(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, NetworkError> {
        let path = attachment.namespace.clone();
        let path = path.ok_or_else(|| NetworkError::Invalid("the pod has no network namespace".to_owned()))?;
        let pod_namespace = File::open(&path).map_err(NetworkError::io(format!("cannot open {}", path.display())))?;
        let (range, bridge, address) = {
            let mut state = self.state.lock().await;
            let range = state.range.ok_or(NetworkError::NotConfigured)?;
            let address = state.allocator.allocate(range, &attachment.sandbox_id)?;
            (range, state.bridge, address)
        };
        let gateway = gateway(range)?;
        let netlink = Netlink::open()?;
        let name = interface_name(&attachment.sandbox_id);
        let connect = async {
            links::veth(&netlink.handle, &name, bridge, pod_namespace.as_raw_fd(), self.config.mtu).await?;
            namespace::inside(path, move |handle| async move {
                links::loopback(&handle).await?;
                links::pod_interface(&handle, address, range, gateway).await
            })
            .await?;
            let mut state = self.state.lock().await;
            state.host_ports.publish(self.place(range), &attachment.sandbox_id, address, &attachment.port_mappings).await
        };
        match connect.await {
            Ok(()) => Ok(vec![IpAddr::V4(address)]),
            Err(error) => {
                self.detach(attachment).await?;
                Err(error)
            }
        }
    }

    async fn detach(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        let netlink = Netlink::open()?;
        links::delete(&netlink.handle, &interface_name(&attachment.sandbox_id)).await?;
        let mut state = self.state.lock().await;
        let range = state.range;
        // Before the address is free: the next pod that gets it must not get the ports too.
        state.host_ports.withdraw(range.map(|range| self.place(range)), |id| id == attachment.sandbox_id).await?;
        state.allocator.free(&attachment.sandbox_id)
    }

    async fn retain(&self, sandbox_ids: &BTreeSet<String>) -> Result<(), NetworkError> {
        let netlink = Netlink::open()?;
        let kept: BTreeSet<String> = sandbox_ids.iter().map(|id| interface_name(id)).collect();
        for name in links::names(&netlink.handle, VETH_PREFIX).await? {
            if !kept.contains(&name) {
                links::delete(&netlink.handle, &name).await?;
            }
        }
        let mut state = self.state.lock().await;
        let range = state.range;
        state.host_ports.withdraw(range.map(|range| self.place(range)), |id| !sandbox_ids.contains(id)).await?;
        state.allocator.retain(sandbox_ids)
    }

    async fn set_pod_cidrs(&self, cidrs: &[String]) -> Result<(), NetworkError> {
        let Some(range) = cidrs.iter().find_map(|cidr| cidr.parse().ok()) else {
            return Err(NetworkError::Invalid(format!("none of the pod CIDRs {cidrs:?} is for IPv4")));
        };
        self.set_pod_cidr(range).await
    }
}

/// A netlink connection that ends with this value.
struct Netlink {
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Netlink {
    fn open() -> Result<Netlink, NetworkError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|error: io::Error| NetworkError::io("cannot open netlink")(error))?;
        Ok(Netlink { handle, task: tokio::spawn(connection) })
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn gateway(range: Ipv4Cidr) -> Result<Ipv4Addr, NetworkError> {
    let address = range.nth(1).filter(|_| range.size() >= 4);
    address.ok_or_else(|| NetworkError::Invalid(format!("{range} is too small for pods")))
}

/// An interface's name has at most 15 bytes: the prefix and 12 digits of a hash.
fn interface_name(sandbox_id: &str) -> String {
    let hash = Sha256::digest(sandbox_id.as_bytes());
    hash.iter().take(6).fold(VETH_PREFIX.to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_fit_and_differ() {
        let (one, other) = (interface_name("one"), interface_name("other"));
        assert_ne!(one, other);
        assert_eq!(one.len(), 15);
        assert!(one.starts_with(VETH_PREFIX));
    }

    #[test]
    fn a_range_needs_room_for_a_pod() {
        assert_eq!(gateway("10.1.2.0/24".parse().unwrap()).unwrap(), Ipv4Addr::new(10, 1, 2, 1));
        assert!(gateway("10.1.2.0/31".parse().unwrap()).is_err());
    }
}
