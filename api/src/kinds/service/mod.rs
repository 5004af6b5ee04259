//! Service: one name and address for changing pods. Addresses and node ports are allocated by the API server.

mod row;
mod validation;

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ClientIPConfig, LoadBalancerStatus, Service, ServiceSpec, ServiceStatus, SessionAffinityConfig},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::Value;

use super::typed::{Change, Kind, status_subresource};
use crate::{
    field::FieldError,
    registry::{Column, Part, Subresource},
};

pub struct ServiceKind;

/// Seconds for which a client keeps its pod when it does not say.
const AFFINITY_SECONDS: i32 = 10_800;

impl Kind for ServiceKind {
    type Object = Service;

    const SHORT_NAMES: &'static [&'static str] = &["svc"];
    const CATEGORIES: &'static [&'static str] = &["all"];
    const CREATED_BY_UPDATE: bool = true;

    fn subresources() -> Vec<Subresource> {
        vec![status_subresource::<Service>()]
    }

    fn columns() -> Vec<Column> {
        row::columns()
    }

    fn default(object: &mut Service) {
        default_spec(object.spec.get_or_insert_default());
    }

    fn prepare_create(object: &mut Service) {
        object.status = Some(ServiceStatus { load_balancer: Some(LoadBalancerStatus::default()), conditions: None });
    }

    fn prepare_update(new: &mut Service, old: &Service, part: Part) {
        if part == Part::Main
            && let (Some(new), Some(old)) = (new.spec.as_mut(), old.spec.as_ref())
        {
            keep_allocated(new, old);
        }
    }

    fn validate(object: &Service) -> Vec<FieldError> {
        validation::validate(object)
    }

    fn validate_update(change: &Change<Service>) -> Vec<FieldError> {
        match change.part {
            Part::Main => validation::validate_update(change.new, change.old),
            Part::Status => Vec::new(),
        }
    }

    fn selectable_fields(object: &Service) -> Vec<(&'static str, String)> {
        let spec = object.spec.clone().unwrap_or_default();
        vec![("spec.clusterIP", spec.cluster_ip.unwrap_or_default()), ("spec.type", spec.type_.unwrap_or_default())]
    }

    fn row(object: &Service, now: Timestamp) -> Vec<Value> {
        row::row(object, now)
    }
}

/// The type after defaulting.
fn service_type(spec: &ServiceSpec) -> &str {
    spec.type_.as_deref().unwrap_or_default()
}

fn needs_cluster_ip(spec: &ServiceSpec) -> bool {
    matches!(service_type(spec), "ClusterIP" | "NodePort" | "LoadBalancer")
}

/// Whether a balancer asks the nodes which of them have pods of the service.
fn is_health_checked(spec: &ServiceSpec) -> bool {
    service_type(spec) == "LoadBalancer" && spec.external_traffic_policy.as_deref() == Some("Local")
}

fn needs_node_ports(spec: &ServiceSpec) -> bool {
    match service_type(spec) {
        "NodePort" => true,
        "LoadBalancer" => spec.allocate_load_balancer_node_ports != Some(false),
        _ => false,
    }
}

fn is_blank(text: Option<&String>) -> bool {
    text.is_none_or(String::is_empty)
}

fn default_spec(spec: &mut ServiceSpec) {
    for (field, value) in [(&mut spec.session_affinity, "None"), (&mut spec.type_, "ClusterIP")] {
        if is_blank(field.as_ref()) {
            *field = Some(value.to_owned());
        }
    }
    match spec.session_affinity.as_deref() {
        Some("ClientIP") => {
            let client = spec.session_affinity_config.get_or_insert_with(SessionAffinityConfig::default);
            let timeout = client.client_ip.get_or_insert_with(ClientIPConfig::default);
            timeout.timeout_seconds.get_or_insert(AFFINITY_SECONDS);
        }
        _ => spec.session_affinity_config = None,
    }
    for port in spec.ports.iter_mut().flatten() {
        if is_blank(port.protocol.as_ref()) {
            port.protocol = Some("TCP".to_owned());
        }
        let number = port.port;
        let target = port.target_port.get_or_insert(IntOrString::Int(number));
        if matches!(target, IntOrString::Int(0)) || matches!(target, IntOrString::String(name) if name.is_empty()) {
            *target = IntOrString::Int(number);
        }
    }
    let external = matches!(service_type(spec), "NodePort" | "LoadBalancer")
        || (service_type(spec) == "ClusterIP" && spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty()));
    if external && is_blank(spec.external_traffic_policy.as_ref()) {
        spec.external_traffic_policy = Some("Cluster".to_owned());
    }
    if needs_cluster_ip(spec) && spec.internal_traffic_policy.is_none() {
        spec.internal_traffic_policy = Some("Cluster".to_owned());
    }
    if service_type(spec) == "LoadBalancer" {
        spec.allocate_load_balancer_node_ports.get_or_insert(true);
    }
    default_addresses(spec);
}

/// The singular address is the first of the plural ones; a service with an address belongs to the IPv4 family.
fn default_addresses(spec: &mut ServiceSpec) {
    if is_blank(spec.cluster_ip.as_ref()) {
        spec.cluster_ip = spec.cluster_ips.as_ref().and_then(|all| all.first()).cloned();
    } else if spec.cluster_ips.as_ref().is_none_or(Vec::is_empty) {
        spec.cluster_ips = spec.cluster_ip.clone().map(|ip| vec![ip]);
    }
    if needs_cluster_ip(spec) {
        spec.ip_family_policy.get_or_insert_with(|| "SingleStack".to_owned());
        if spec.ip_families.as_ref().is_none_or(Vec::is_empty) {
            spec.ip_families = Some(vec!["IPv4".to_owned()]);
        }
    }
}

/// An update that leaves out what was allocated keeps it, and one that changes the type gives back what the new type
/// has no use for.
fn keep_allocated(new: &mut ServiceSpec, old: &ServiceSpec) {
    if needs_cluster_ip(old) && needs_cluster_ip(new) {
        if is_blank(new.cluster_ip.as_ref()) {
            new.cluster_ip.clone_from(&old.cluster_ip);
            new.cluster_ips.clone_from(&old.cluster_ips);
        } else if new.cluster_ip == old.cluster_ip && new.cluster_ips.as_ref().is_none_or(Vec::is_empty) {
            new.cluster_ips.clone_from(&old.cluster_ips);
        }
    }
    let same_type = service_type(new) == service_type(old);
    if needs_node_ports(old) && needs_node_ports(new) {
        keep_node_ports(new, old);
    } else if !same_type && !needs_node_ports(new) {
        drop_node_ports(new, old);
    }
    if is_health_checked(old) {
        let health_port = new.health_check_node_port.unwrap_or(0);
        if is_health_checked(new) && health_port == 0 {
            new.health_check_node_port = old.health_check_node_port;
        } else if !is_health_checked(new) && Some(health_port) == old.health_check_node_port {
            // It goes back with what it was for.
            new.health_check_node_port = None;
        }
    }
    if service_type(new) == "ExternalName" && !same_type {
        let kept = new.cluster_ip == old.cluster_ip;
        if kept {
            new.cluster_ip = None;
            new.cluster_ips = None;
        }
        if new.ip_families == old.ip_families {
            new.ip_families = None;
        }
        if new.ip_family_policy == old.ip_family_policy {
            new.ip_family_policy = None;
        }
        new.internal_traffic_policy = None;
    }
    if service_type(new) != "LoadBalancer"
        && !same_type
        && new.allocate_load_balancer_node_ports == old.allocate_load_balancer_node_ports
    {
        new.allocate_load_balancer_node_ports = None;
    }
    if !matches!(service_type(new), "NodePort" | "LoadBalancer")
        && !same_type
        && new.external_traffic_policy == old.external_traffic_policy
        && new.external_ips.as_ref().is_none_or(Vec::is_empty)
    {
        new.external_traffic_policy = None;
    }
}

/// Ports that name no node port get the one that the same port had.
fn keep_node_ports(new: &mut ServiceSpec, old: &ServiceSpec) {
    let old_ports = old.ports.as_deref().unwrap_or_default();
    let mut taken: BTreeSet<i32> = new.ports.iter().flatten().filter_map(|port| port.node_port).collect();
    for port in new.ports.iter_mut().flatten().filter(|port| port.node_port.unwrap_or(0) == 0) {
        let before = old_ports.iter().find(|before| before.port == port.port && before.protocol == port.protocol);
        if let Some(number) = before.and_then(|before| before.node_port).filter(|number| *number != 0)
            && taken.insert(number)
        {
            port.node_port = Some(number);
        }
    }
}

fn drop_node_ports(new: &mut ServiceSpec, old: &ServiceSpec) {
    let before: BTreeSet<i32> = old.ports.iter().flatten().filter_map(|port| port.node_port).collect();
    for port in new.ports.iter_mut().flatten() {
        if port.node_port.is_some_and(|number| before.contains(&number)) {
            port.node_port = None;
        }
    }
}
