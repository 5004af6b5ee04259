//! Metrics under the names that Kubernetes' own API server uses.

use std::{
    sync::atomic::{AtomicBool, AtomicI64},
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::{ApiServer, router::path::ResourcePath};

/// Upper bounds in seconds, as `apiserver_request_duration_seconds` has them in Kubernetes.
const DURATION_BUCKETS: [f64; 22] =
    [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0];

/// What a request is counted under.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: String,
}

impl RequestLabels {
    pub fn new(verb: &str, path: &ResourcePath) -> Self {
        let scope = match (&path.name, &path.namespace) {
            (Some(_), _) => "resource",
            (None, Some(_)) => "namespace",
            (None, None) => "cluster",
        };
        Self {
            verb: verb.to_uppercase(),
            group: path.group.clone(),
            version: path.version.clone(),
            resource: path.plural.clone(),
            subresource: path.subresource.clone().unwrap_or_default(),
            scope: scope.to_owned(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: String,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InFlightLabels {
    request_kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabels {
    group: String,
    resource: String,
}

/// The counters of one server.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<AnswerLabels, Counter>,
    durations: Family<RequestLabels, Histogram, fn() -> Histogram>,
    in_flight: Family<InFlightLabels, Gauge>,
    objects: Family<ResourceLabels, Gauge>,
    watchers: Family<ResourceLabels, Gauge>,
    terminated: Family<ResourceLabels, Gauge>,
    applied: Gauge<i64, AtomicI64>,
    /// Set when the server begins to stop.
    pub is_stopping: AtomicBool,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::default()),
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS)),
            in_flight: Family::default(),
            objects: Family::default(),
            watchers: Family::default(),
            terminated: Family::default(),
            applied: Gauge::default(),
            is_stopping: AtomicBool::new(false),
        };
        let mut registry = metrics.registry.lock();
        registry.register("apiserver_request", "Requests by verb, resource and code", metrics.requests.clone());
        registry.register("apiserver_request_duration_seconds", "Time until the answer began", metrics.durations.clone());
        registry.register("apiserver_current_inflight_requests", "Requests being carried out", metrics.in_flight.clone());
        registry.register("apiserver_storage_objects", "Objects by resource", metrics.objects.clone());
        registry.register("apiserver_longrunning_requests", "Watches by resource", metrics.watchers.clone());
        let help = "Watchers cut off because they did not read, by resource";
        registry.register("apiserver_terminated_watchers", help, metrics.terminated.clone());
        let help = "The revision up to which the watch caches hold everything";
        registry.register("apiserver_watch_cache_resource_version", help, metrics.applied.clone());
        drop(registry);
        metrics
    }
}

/// A request that is being carried out; it counts until it is dropped.
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Counts a request while it is being carried out.
    pub fn begin(&self, verb: &str) -> InFlight {
        let request_kind = if matches!(verb, "get" | "list" | "watch") { "readOnly" } else { "mutating" };
        let gauge = self.in_flight.get_or_create_owned(&InFlightLabels { request_kind });
        gauge.inc();
        InFlight(gauge)
    }

    /// Counts an answer. Requests for no resource are not counted.
    pub fn observe(&self, labels: &RequestLabels, code: u16, took: Duration) {
        if labels.verb.is_empty() {
            return;
        }
        let RequestLabels { verb, group, version, resource, subresource, scope } = labels.clone();
        self.requests.get_or_create(&AnswerLabels { verb, group, version, resource, subresource, scope, code }).inc();
        self.durations.get_or_create(labels).observe(took.as_secs_f64());
    }

    /// The text of all metrics, in the OpenMetrics format.
    pub fn encode(&self, server: &ApiServer) -> String {
        for resource in server.registry.iter() {
            let Some(cache) = server.caches.get(resource) else { continue };
            let labels = ResourceLabels { group: resource.group.to_string(), resource: resource.plural.to_string() };
            let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
            self.objects.get_or_create(&labels).set(count(cache.object_count()));
            self.watchers.get_or_create(&labels).set(count(cache.watcher_count()));
            self.terminated.get_or_create(&labels).set(i64::try_from(cache.terminated_count()).unwrap_or(i64::MAX));
        }
        self.applied.set(i64::try_from(server.caches.applied().0).unwrap_or(i64::MAX));
        let mut text = String::new();
        if encode(&mut text, &self.registry.lock()).is_err() {
            tracing::error!("the metrics could not be written");
        }
        text
    }
}

impl ApiServer {
    /// Lets other parts of the process add their metrics to `/metrics`.
    pub fn register_metrics(&self, register: impl FnOnce(&mut Registry)) {
        register(&mut self.metrics.registry.lock());
    }

    /// The text of `/metrics`, in the OpenMetrics format.
    pub fn metrics_text(&self) -> String {
        self.metrics.encode(self)
    }
}
