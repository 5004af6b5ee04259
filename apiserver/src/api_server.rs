//! The API server as a whole: what every request shares.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use trireme_api::{
    clock::Clock,
    registry::{Registry, Resource},
    schema::Schemas,
    status::Status,
};
use trireme_storage::store::Store;
use uuid::Uuid;

use crate::{
    cache::{CachedObject, Caches, ResourceCache},
    config::{ApiServerConfig, ServiceCidr, VersionInfo},
    context::RequestContext,
    metrics::Metrics,
    openapi::OpenApi,
    service::ApiService,
    subresource::node_client::NodeClient,
};

/// The Kubernetes API over a [`Store`].
pub struct ApiServer {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) registry: Registry,
    pub(crate) schemas: Arc<Schemas>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) caches: Caches,
    pub(crate) metrics: Metrics,
    pub(crate) random: Mutex<StdRng>,
    pub(crate) service_cidr: ServiceCidr,
    pub(crate) bookmark_period: Duration,
    pub(crate) version: VersionInfo,
    pub(crate) node_client: Option<NodeClient>,
    pub(crate) extra: axum::Router,
    pub(crate) openapi: OpenApi,
    /// Ends the watches. Cancelled when the server stops.
    pub(crate) shutdown: CancellationToken,
}

impl ApiServer {
    pub fn new(config: ApiServerConfig) -> Arc<Self> {
        let schemas = Arc::new(Schemas::build(&config.registry));
        Arc::new(Self {
            caches: Caches::new(&config.registry, config.watch_history),
            metrics: Metrics::default(),
            random: Mutex::new(StdRng::from_seed(config.random_seed)),
            schemas,
            store: config.store,
            registry: config.registry,
            clock: config.clock,
            service_cidr: config.service_cidr,
            bookmark_period: config.bookmark_period,
            version: config.version,
            node_client: config.node_client_tls.map(NodeClient::new),
            extra: config.extra,
            openapi: OpenApi::default(),
            shutdown: CancellationToken::new(),
        })
    }

    /// Fills the watch caches and keeps them in step with the store until `shutdown` is cancelled; every watch ends then.
    pub fn start_caches(self: &Arc<Self>, shutdown: CancellationToken) -> JoinHandle<()> {
        let server = self.clone();
        tokio::spawn(async move {
            server.caches.run(server.store.clone(), shutdown).await;
            server.shutdown.cancel();
        })
    }

    /// Whether the watch caches have been filled.
    pub fn is_ready(&self) -> bool {
        self.caches.is_filled()
    }

    /// The API for a caller in this process: a service that `kube::Client::new` takes.
    pub fn service(self: &Arc<Self>, context: RequestContext) -> ApiService {
        ApiService::new(self.clone(), context)
    }

    pub(crate) fn cache(&self, resource: &Resource) -> Result<&Arc<ResourceCache>, Status> {
        self.caches.get(resource).ok_or_else(|| Status::internal(format!("{} has no watch cache", resource.qualified_plural())))
    }

    /// A random (version 4) UID.
    pub(crate) fn new_uid(&self) -> Uuid {
        let bytes: [u8; 16] = self.random.lock().random();
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    }

    /// Whether the objects of a kind are kept in the form of another kind.
    pub(crate) fn is_converted(&self, resource: &Resource) -> bool {
        resource.behaviour.stored_as().is_some()
    }

    /// JSON as it is stored, in the form of the kind that was asked for. Outcomes of writes are in that of the stored kind too.
    pub(crate) fn converted(&self, resource: &Resource, json: Bytes) -> Bytes {
        let Some(stored) = resource.behaviour.stored_as() else { return json };
        match serde_json::from_slice::<Value>(&json) {
            Ok(value) => (stored.from_stored)(value).to_string().into(),
            Err(error) => {
                tracing::error!(%error, "a stored object is not JSON");
                json
            }
        }
    }

    /// The JSON of a cached object in the form of the kind that was asked for.
    pub(crate) fn served(&self, resource: &Resource, object: &CachedObject) -> Bytes {
        self.converted(resource, object.json.clone())
    }

    /// A cached object in the form of the kind that was asked for.
    pub(crate) fn served_object(&self, resource: &Resource, object: Arc<CachedObject>) -> Arc<CachedObject> {
        if !self.is_converted(resource) {
            return object;
        }
        let json = self.converted(resource, object.json.clone());
        Arc::new(object.with_json(json))
    }

    /// The object of another kind, if the caches have it.
    pub(crate) fn cached(&self, group: &str, version: &str, plural: &str, path: &str) -> Option<Arc<CachedObject>> {
        let resource = self.registry.get(group, version, plural)?;
        self.caches.get(resource)?.object(path)
    }
}
