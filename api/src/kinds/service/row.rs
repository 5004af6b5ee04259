//! A service's row in `kubectl get services`.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use serde_json::{Value, json};

use super::service_type;
use crate::{kinds::table, registry::Column};

pub fn columns() -> Vec<Column> {
    vec![
        table::name_column(),
        table::column("Type", "string", "How the service is reached."),
        table::column("Cluster-IP", "string", "Address of the service inside the cluster."),
        table::column("External-IP", "string", "Addresses of the service from outside."),
        table::column("Port(s)", "string", "Ports of the service, with those on every node."),
        table::age_column(),
        table::wide("Selector", "string", "Labels of the pods behind the service."),
    ]
}

pub fn row(object: &Service, now: Timestamp) -> Vec<Value> {
    let spec = object.spec.clone().unwrap_or_default();
    let cluster_ip = spec.cluster_ips.as_ref().and_then(|all| all.first()).or(spec.cluster_ip.as_ref());
    vec![
        json!(table::name(&object.metadata)),
        json!(service_type(&spec)),
        json!(table::or_none(cluster_ip.map(String::as_str))),
        json!(external_ip(object, &spec)),
        json!(ports(&spec)),
        json!(table::age(&object.metadata, now)),
        json!(table::labels(spec.selector.as_ref())),
    ]
}

fn external_ip(object: &Service, spec: &ServiceSpec) -> String {
    let given = spec.external_ips.clone().unwrap_or_default();
    match service_type(spec) {
        "ClusterIP" | "NodePort" => table::or_none(Some(&given.join(","))),
        "LoadBalancer" => {
            let balancer = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
            let ingress = balancer.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten());
            let mut all: Vec<String> = ingress.filter_map(|ingress| ingress.ip.clone().or(ingress.hostname.clone())).collect();
            all.extend(given);
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        "ExternalName" => spec.external_name.clone().unwrap_or_default(),
        _ => table::UNKNOWN.to_owned(),
    }
}

fn ports(spec: &ServiceSpec) -> String {
    let texts: Vec<String> = spec
        .ports
        .iter()
        .flatten()
        .map(|port| {
            let protocol = port.protocol.as_deref().unwrap_or_default();
            match port.node_port.unwrap_or(0) {
                0 => format!("{}/{protocol}", port.port),
                node_port => format!("{}:{node_port}/{protocol}", port.port),
            }
        })
        .collect();
    table::or_none(Some(&texts.join(",")))
}
