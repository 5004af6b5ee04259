//! The variables that tell containers where Services are (`enableServiceLinks`), and the Services as this node knows them.
//!
//! Rules: "Accessing the Service", "Environment variables" in the Kubernetes documentation; `pkg/kubelet/envvars` for names
//! and forms.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt,
        reflector::{self, Store, store::Writer},
        watcher,
    },
};
use tokio_util::sync::CancellationToken;

use super::model;

/// How long a container's start waits for the first list of Services.
const PATIENCE: Duration = Duration::from_secs(5);
/// The Service that every pod is told of: the API itself.
const MASTER: (&str, &str) = ("default", "kubernetes");

/// The Services that this node knows.
pub struct Services {
    store: Store<Service>,
}

/// Makes the list of Services and the future that keeps it until `shutdown`.
pub fn follow(client: Client, shutdown: CancellationToken) -> (Services, impl Future<Output = ()> + Send) {
    let (store, writer) = reflector::store();
    (Services { store }, keep(client, writer, shutdown))
}

async fn keep(client: Client, writer: Writer<Service>, shutdown: CancellationToken) {
    let changes = watcher(Api::<Service>::all(client), watcher::Config::default()).default_backoff();
    let mut changes = reflector::reflector(writer, changes).boxed();
    loop {
        tokio::select! {
            change = changes.next() => match change {
                Some(Ok(_)) => {}
                Some(Err(error)) => tracing::warn!(%error, "the watch on Services failed; trying again"),
                None => return,
            },
            () = shutdown.cancelled() => return,
        }
    }
}

impl Services {
    /// The variables for the pod's containers, by name.
    ///
    /// # Errors
    /// The message of `CreateContainerConfigError`, when the API has not told the Services even once.
    pub async fn variables(&self, pod: &Pod) -> Result<BTreeMap<String, String>, String> {
        let ready = tokio::time::timeout(PATIENCE, self.store.wait_until_ready()).await;
        if !matches!(ready, Ok(Ok(()))) {
            return Err("services have not yet been read at least once, cannot construct envvars".to_owned());
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let links = if model::spec(pod).enable_service_links.unwrap_or(true) { Links::Wanted } else { Links::Unwanted };
        Ok(variables(&self.store.state(), namespace, links))
    }
}

/// Whether a pod wants to be told of the Services of its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Links {
    Wanted,
    Unwanted,
}

fn variables(services: &[Arc<Service>], namespace: &str, links: Links) -> BTreeMap<String, String> {
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let place = service.metadata.namespace.as_deref().unwrap_or_default();
        if place == namespace && links == Links::Wanted {
            chosen.insert(name, service);
        } else if (place, name) == MASTER {
            // One of the same name in the pod's own namespace goes before it.
            chosen.entry(name).or_insert(service);
        }
    }
    let mut variables = BTreeMap::new();
    for (name, service) in chosen {
        describe(name, service, &mut variables);
    }
    variables
}

/// The variables of one Service; none if it has no address.
fn describe(name: &str, service: &Service, variables: &mut BTreeMap<String, String>) {
    let Some(spec) = &service.spec else { return };
    let Some(address) = spec.cluster_ip.as_deref().filter(|address| !address.is_empty() && *address != "None") else { return };
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let name = variable_name(name);
    variables.insert(format!("{name}_SERVICE_HOST"), address.to_owned());
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let number = port.port.to_string();
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let small = protocol.to_ascii_lowercase();
        let url = format!("{small}://{host}:{number}");
        if index == 0 {
            variables.insert(format!("{name}_SERVICE_PORT"), number.clone());
            variables.insert(format!("{name}_PORT"), url.clone());
        }
        if let Some(port_name) = port.name.as_deref().filter(|port_name| !port_name.is_empty()) {
            variables.insert(format!("{name}_SERVICE_PORT_{}", variable_name(port_name)), number.clone());
        }
        let prefix = format!("{name}_PORT_{number}_{}", protocol.to_ascii_uppercase());
        variables.insert(format!("{prefix}_PROTO"), small);
        variables.insert(format!("{prefix}_PORT"), number);
        variables.insert(format!("{prefix}_ADDR"), address.to_owned());
        variables.insert(prefix, url);
    }
}

fn variable_name(name: &str) -> String {
    name.replace('-', "_").to_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(namespace: &str, name: &str, address: &str, ports: Value) -> Arc<Service> {
        let metadata = json!({ "namespace": namespace, "name": name });
        serde_json::from_value(json!({ "metadata": metadata, "spec": { "clusterIP": address, "ports": ports } })).unwrap()
    }

    fn lines(services: &[Arc<Service>], namespace: &str, links: Links) -> Vec<String> {
        variables(services, namespace, links).into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn a_service_is_described_as_docker_links_were() {
        let ports = json!([{ "name": "http-web", "port": 80 }, { "name": "dns", "port": 53, "protocol": "UDP" }]);
        let found = lines(&[service("ns", "my-app", "10.96.0.7", ports)], "ns", Links::Wanted);
        assert_eq!(
            found,
            [
                "MY_APP_PORT=tcp://10.96.0.7:80",
                "MY_APP_PORT_53_UDP=udp://10.96.0.7:53",
                "MY_APP_PORT_53_UDP_ADDR=10.96.0.7",
                "MY_APP_PORT_53_UDP_PORT=53",
                "MY_APP_PORT_53_UDP_PROTO=udp",
                "MY_APP_PORT_80_TCP=tcp://10.96.0.7:80",
                "MY_APP_PORT_80_TCP_ADDR=10.96.0.7",
                "MY_APP_PORT_80_TCP_PORT=80",
                "MY_APP_PORT_80_TCP_PROTO=tcp",
                "MY_APP_SERVICE_HOST=10.96.0.7",
                "MY_APP_SERVICE_PORT=80",
                "MY_APP_SERVICE_PORT_DNS=53",
                "MY_APP_SERVICE_PORT_HTTP_WEB=80",
            ]
        );
    }

    #[test]
    fn the_api_is_told_to_all_and_others_to_their_namespace() {
        let port = || json!([{ "port": 443 }]);
        let services = [
            service("default", "kubernetes", "10.96.0.1", port()),
            service("default", "near", "10.96.0.2", port()),
            service("ns", "own", "fd00::1", port()),
            service("ns", "headless", "None", port()),
            service("ns", "external", "", port()),
        ];
        let hosts = |namespace: &str, links: Links| -> Vec<String> {
            lines(&services, namespace, links).into_iter().filter(|line| line.contains("_SERVICE_HOST")).collect()
        };
        assert_eq!(hosts("ns", Links::Unwanted), ["KUBERNETES_SERVICE_HOST=10.96.0.1"]);
        assert_eq!(hosts("ns", Links::Wanted), ["KUBERNETES_SERVICE_HOST=10.96.0.1", "OWN_SERVICE_HOST=fd00::1"]);
        assert_eq!(hosts("default", Links::Wanted), ["KUBERNETES_SERVICE_HOST=10.96.0.1", "NEAR_SERVICE_HOST=10.96.0.2"]);
        assert!(lines(&services, "ns", Links::Wanted).contains(&"OWN_PORT=tcp://[fd00::1]:443".to_owned()));

        let with_own = [services.as_slice(), &[service("ns", "kubernetes", "10.96.9.9", port())]].concat();
        assert!(lines(&with_own, "ns", Links::Wanted).contains(&"KUBERNETES_SERVICE_HOST=10.96.9.9".to_owned()));
        assert!(lines(&with_own, "ns", Links::Unwanted).contains(&"KUBERNETES_SERVICE_HOST=10.96.0.1".to_owned()));
    }
}
