//! Bytes between members: mutual TLS, connections, gRPC channels, and openraft's network trait over them.

mod channel;
mod network;
mod server;
mod snapshot_sender;
mod tls;

pub use channel::{Channels, Dialer, Lane, PeerStream, TcpDialer};
pub use network::NetworkFactory;
pub use server::serve;
pub use tls::{PeerTls, TlsError, peer_dns_name};

/// A message on the wire: one entry may be larger than the cap of a log read, as large as the largest command.
const MESSAGE_BYTES: usize = 64 << 20;

/// Request metadata with which a connection is checked to have reached the cluster and the member that was meant.
const CLUSTER_HEADER: &str = "trireme-cluster";
const TARGET_HEADER: &str = "trireme-target";
/// The data folder that the member is known by, where the sender knows one: an id may come back with another folder, by mistake.
const FOLDER_HEADER: &str = "trireme-folder";
