//! The HTTPS front of Trireme: the Kubernetes REST API over a replicated store.
//!
//! It owns routing, authentication, authorization, admission, the watch cache, tables, discovery and the generic verbs. It
//! knows no RocksDB and no Raft, and no handler names a kind but for the few kinds that have subresources or admission of
//! their own. Start at [`ApiServer`], then [`handle`](mod@handle) for the way of a request, then any file under `verbs/`.

#![forbid(unsafe_code)]
#![expect(clippy::result_large_err, reason = "a refusal ends its request; it is not on a hot path")]

mod admission;
mod answer;
mod api_server;
mod authorize;
mod body;
mod bootstrap;
mod cache;
mod config;
mod context;
mod decode_body;
mod discovery;
mod filter;
mod handle;
mod health;
mod impersonation;
mod keys;
mod metadata;
mod metrics;
mod negotiate;
mod node_restriction;
mod openapi;
mod protobuf;
mod request;
mod respond;
mod router;
mod serve;
mod service;
mod store_error;
mod subresource;
mod table;
mod verbs;
mod write;

pub use api_server::ApiServer;
pub use body::{BodyError, BoxError, RequestBody, ResponseBody};
pub use bootstrap::BootstrapError;
pub use config::{ApiServerConfig, ConfigError, ServiceCidr, VersionInfo};
pub use context::RequestContext;
pub use serve::ServeError;
pub use service::ApiService;
