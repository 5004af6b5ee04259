//! The objects that a cluster begins with. The leader makes what is missing; doing it again changes nothing.

use std::{net::SocketAddr, sync::Arc};

use serde_json::{Value, json};
use trireme_api::status::Status;

use crate::{
    ApiServer,
    context::RequestContext,
    keys,
    request::Persistence,
    verbs::create::Creation,
    write::{Current, Modification, Plan, Target},
};

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// An object could not be made.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
#[error("{what} could not be made: {status}")]
pub struct BootstrapError {
    pub what: String,
    pub status: Status,
}

impl ApiServer {
    /// Makes the first namespaces, the system's priority classes and the `kubernetes` Service with `masters`, the addresses
    /// at which the API is served, as its endpoints.
    ///
    /// # Errors
    /// When the store does not take a write; it is safe to try again.
    pub async fn bootstrap(self: &Arc<Self>, context: &RequestContext, masters: &[SocketAddr]) -> Result<(), BootstrapError> {
        for name in NAMESPACES {
            let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
            self.ensure(context, ("", "namespaces"), None, namespace).await?;
        }
        for (name, value, description) in [
            (
                "system-cluster-critical",
                2_000_000_000,
                "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
            ),
            (
                "system-node-critical",
                2_000_001_000,
                "Used for system critical pods that must not be moved from their current node.",
            ),
        ] {
            let class = json!({
                "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": { "name": name },
                "value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority",
            });
            self.ensure(context, ("scheduling.k8s.io", "priorityclasses"), None, class).await?;
        }
        self.ensure_kubernetes_service(context, masters).await
    }

    async fn ensure_kubernetes_service(&self, context: &RequestContext, masters: &[SocketAddr]) -> Result<(), BootstrapError> {
        let port = masters.first().map_or(6443, SocketAddr::port);
        let labels = json!({ "component": "apiserver", "provider": "kubernetes" });
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "kubernetes", "namespace": "default", "labels": labels },
            "spec": {
                "clusterIP": self.service_cidr.first().to_string(),
                "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": port }],
            },
        });
        self.ensure(context, ("", "services"), Some("default"), service).await?;
        // Endpoints may not be on loopback, where a cluster of one machine without addresses of its own serves.
        let mut reachable: Vec<&SocketAddr> = masters.iter().filter(|address| !address.ip().is_loopback()).collect();
        reachable.sort_unstable();
        if reachable.is_empty() {
            return Ok(());
        }
        let addresses: Vec<Value> = reachable.iter().map(|address| json!({ "ip": address.ip().to_string() })).collect();
        let endpoints = json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {
                "name": "kubernetes", "namespace": "default", "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" },
            },
            "subsets": [{ "addresses": addresses, "ports": [{ "name": "https", "port": port, "protocol": "TCP" }] }],
        });
        self.ensure_current(context, ("", "endpoints"), endpoints, "subsets").await?;
        let listed: Vec<Value> = reachable
            .iter()
            .map(|address| json!({ "addresses": [address.ip().to_string()], "conditions": { "ready": true } }))
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "kubernetes", "namespace": "default", "labels": { "kubernetes.io/service-name": "kubernetes" } },
            "addressType": "IPv4",
            "endpoints": listed,
            "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
        });
        self.ensure_current(context, ("discovery.k8s.io", "endpointslices"), slice, "endpoints").await
    }

    /// Creates an object that is not there. Kinds that are not registered are passed over.
    async fn ensure(
        &self,
        context: &RequestContext,
        (group, plural): (&str, &str),
        namespace: Option<&str>,
        object: Value,
    ) -> Result<(), BootstrapError> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let Some(resource) = self.registry.get(group, "v1", plural) else { return Ok(()) };
        let target = Target { resource: resource.clone(), namespace: namespace.map(str::to_owned), name };
        let mut creation = Creation { object, warnings: Vec::new() };
        match self.modify(context, &target, Persistence::Kept, &mut creation).await {
            Ok(_) => Ok(()),
            Err(status) if status.reason == "AlreadyExists" => Ok(()),
            Err(status) => Err(BootstrapError { what: format!("{plural}/{}", target.name), status }),
        }
    }

    /// Creates an object of the namespace `default` that is not there; brings `field` up to date when it is.
    async fn ensure_current(
        &self,
        context: &RequestContext,
        (group, plural): (&str, &str),
        object: Value,
        field: &'static str,
    ) -> Result<(), BootstrapError> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let Some(resource) = self.registry.get(group, "v1", plural) else { return Ok(()) };
        let what = keys::object_path(Some("default"), &name);
        let target = Target { resource: resource.clone(), namespace: Some("default".to_owned()), name };
        let mut upkeep = Upkeep { object, field };
        let written = self.modify(context, &target, Persistence::Kept, &mut upkeep).await;
        written.map(|_| ()).map_err(|status| BootstrapError { what: format!("{plural} {what}"), status })
    }
}

/// Keeps one field of an object as it should be.
struct Upkeep {
    object: Value,
    field: &'static str,
}

#[async_trait::async_trait]
impl Modification for Upkeep {
    async fn plan(&mut self, server: &ApiServer, target: &Target, current: Option<&Current>) -> Result<Plan, Status> {
        let Some(current) = current else {
            let mut creation = Creation { object: self.object.clone(), warnings: Vec::new() };
            return creation.plan(server, target, None).await;
        };
        let mut updated = current.value.clone();
        updated[self.field] = self.object[self.field].clone();
        crate::verbs::update::changed(server, target, updated, current, trireme_api::registry::Part::Main).await
    }
}
