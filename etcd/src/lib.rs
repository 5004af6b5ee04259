//! The store of Trireme, spoken as the etcd v3 gRPC API: key-values, watches, leases, the cluster, maintenance, locks and elections.
//!
//! It owns the mapping between etcd's messages and the words of [`trireme_storage::model`], etcd's checks of requests and etcd's
//! errors. It knows no objects and no kinds: Kubernetes' keys are to it a part of the key space that few may write. What a member
//! knows of its group comes through one small trait, [`group::Group`]. Start at [`server::EtcdServer`]; `key_value` is the way of a
//! read and of a write, `answer` how a large answer is sent while it is read, `convert` what requests and answers become, `watch` the
//! streams.

#![forbid(unsafe_code)]

mod answer;
mod auth;
mod caller;
mod check;
mod cluster;
mod convert;
mod cork;
mod election;
mod error;
pub mod group;
mod key_value;
mod lease;
mod lock;
mod maintenance;
mod ownership;
mod pages;
pub mod proto;
mod range;
mod serve;
mod server;
mod transport_error;
mod watch;

pub use caller::Caller;
pub use error::REASON;
pub use serve::ServeError;
pub use server::{EtcdServer, EtcdServerConfig, SERVED_VERSION};
