//! The Raft group of Trireme's masters: openraft over gRPC with mutual TLS, handing out one [`trireme_storage::store::Store`].
//!
//! It owns proposals, replication, linearizable reads, leadership, membership and snapshots between members. It knows no Kubernetes
//! kinds and no JSON, and nothing outside it names an openraft type. Start at [`Consensus`]; the way of a write is `core` →
//! `proposer` (or `forward`, on a follower) → `log_store` and `writer` → `machine`; the way of a read is `read`.

#![forbid(unsafe_code)]

mod admin;
mod agreement;
mod bootstrap;
mod compaction;
mod config;
mod consensus;
mod core;
mod divergence;
mod error;
mod forward;
mod identity;
mod leadership;
mod lease;
mod log_keeper;
mod log_store;
mod machine;
mod membership;
mod metrics;
mod proposer;
mod read;
mod record;
mod reopening;
mod restore;
mod silence;
mod snapshot;
mod space;
mod standing;
mod status;
#[cfg(test)]
mod suite;
mod transport;
mod types;
mod wire;
mod writer;

pub use bootstrap::FolderIds;
pub use config::{Limits, MasterConfig, Timing, WallClock};
pub use consensus::Consensus;
pub use error::ConsensusError;
pub use leadership::{Leadership, Role};
pub use membership::Refusal;
pub use restore::{Restore, RestoreError, restore};
pub use status::{GroupMember, MemberStatus};
pub use transport::{Dialer, PeerStream, PeerTls, TcpDialer, TlsError, peer_dns_name};
pub use types::{Member, NodeId};
