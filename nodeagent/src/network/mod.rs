//! The pods' network on this node: how a pod's namespace gets its interface and address.

mod allocator;
mod bridge;
mod cni;
mod follow;
mod host_ports;
mod links;
mod masquerade;
mod namespace;
mod nft;

use std::{collections::BTreeSet, io, net::IpAddr, path::PathBuf};

use async_trait::async_trait;

pub use bridge::{NetworkConfig, NodeNetwork, Peer, VETH_PREFIX};
pub use cni::{CniConfig, CniNetwork};
pub use follow::follow_nodes;

use crate::runtime::{PodIdentity, PortMapping, RuntimeError};

/// A pod that is to be connected, or is connected.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Names the attachment; the sandbox's id.
    pub sandbox_id: String,
    pub pod: PodIdentity,
    /// The pod's network namespace, as a path that can be opened. `None` when it is gone already.
    pub namespace: Option<PathBuf>,
    pub port_mappings: Vec<PortMapping>,
}

/// Connects pods. Every call may be repeated.
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// `Ok` when pods can be connected.
    async fn ready(&self) -> Result<(), NetworkError>;

    /// Gives the pod's namespace its interface, and returns its addresses.
    async fn attach(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, NetworkError>;

    /// Takes the interface away and frees the addresses.
    async fn detach(&self, attachment: &Attachment) -> Result<(), NetworkError>;

    /// Frees what belongs to sandboxes that are not in the set (after a crash).
    async fn retain(&self, sandbox_ids: &BTreeSet<String>) -> Result<(), NetworkError>;

    /// The node's pod ranges became known or changed (`Node.spec.podCIDRs`). Networks that do not give addresses themselves
    /// need not know them.
    async fn set_pod_cidrs(&self, cidrs: &[String]) -> Result<(), NetworkError> {
        let _ = cidrs;
        Ok(())
    }
}

/// What can go wrong with a pod's network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("the node has no pod CIDR yet")]
    NotConfigured,
    #[error("no address is left in {0}")]
    Exhausted(String),
    #[error("{context}: {source}")]
    Io { context: String, source: io::Error },
    #[error("{context}: {source}")]
    Netlink { context: String, source: Box<rtnetlink::Error> },
    #[error("{0}")]
    Plugin(String),
    #[error("{0}")]
    Invalid(String),
}

impl NetworkError {
    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
        let context = context.into();
        move |source| NetworkError::Io { context, source }
    }

    pub(crate) fn netlink(context: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
        let context = context.into();
        move |source| NetworkError::Netlink { context, source: Box::new(source) }
    }
}

impl From<NetworkError> for RuntimeError {
    fn from(error: NetworkError) -> RuntimeError {
        RuntimeError::Network(error.to_string())
    }
}
