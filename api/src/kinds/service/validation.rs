//! Validation of services (`ValidateService`).

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};

use super::{is_health_checked, needs_cluster_ip, service_type};
use crate::{field::FieldError, kinds::validate, names};

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
/// The port of the node agents' own API.
const AGENT_PORT: i32 = 10_250;
/// A day: the longest that a client keeps its pod.
const MAX_AFFINITY_SECONDS: i32 = 86_400;

pub fn validate(object: &Service) -> Vec<FieldError> {
    let empty = ServiceSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&empty);
    let mut errors = Vec::new();
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ports.is_empty() && !headless && service_type(spec) != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    errors.extend(validate_for_type(spec, ports));
    errors.extend(validate_ports(spec, ports));
    errors.extend(validate::labels("spec.selector", spec.selector.as_ref()));
    errors.extend(validate::one_of("spec.sessionAffinity", spec.session_affinity.as_deref(), &["ClientIP", "None"]));
    let timeout = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    if let Some(seconds) = timeout.filter(|seconds| !(1..=MAX_AFFINITY_SECONDS).contains(seconds)) {
        let why = format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
        errors.push(FieldError::invalid("spec.sessionAffinityConfig.clientIP.timeoutSeconds", seconds, why));
    }
    errors.extend(validate::one_of("spec.type", spec.type_.as_deref(), TYPES));
    for (index, ip) in spec.external_ips.iter().flatten().enumerate() {
        errors.extend(validate::checked(&format!("spec.externalIPs[{index}]"), ip, names::is_ip_address));
    }
    errors.extend(validate_policies(spec));
    errors.extend(validate_cluster_ips(spec));
    errors
}

fn validate_for_type(spec: &ServiceSpec, ports: &[ServicePort]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match service_type(spec) {
        "LoadBalancer" => {
            for (index, _) in ports.iter().enumerate().filter(|(_, port)| port.port == AGENT_PORT) {
                let why = "may not expose port 10250 externally since it is used by kubelet";
                errors.push(FieldError::invalid(format!("spec.ports[{index}]"), AGENT_PORT, why));
            }
            if spec.cluster_ip.as_deref() == Some("None") {
                errors.push(FieldError::invalid(
                    "spec.clusterIPs[0]",
                    "None",
                    "may not be set to 'None' for LoadBalancer services",
                ));
            }
        }
        "NodePort" if spec.cluster_ip.as_deref() == Some("None") => {
            errors.push(FieldError::invalid("spec.clusterIPs[0]", "None", "may not be set to 'None' for NodePort services"));
        }
        "ExternalName" => {
            let set = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
            for (field, given) in [
                ("clusterIPs", set(&spec.cluster_ips)),
                ("ipFamilies", set(&spec.ip_families)),
                ("ipFamilyPolicy", spec.ip_family_policy.is_some()),
            ] {
                if given {
                    errors.push(FieldError::forbidden(format!("spec.{field}"), "may not be set for ExternalName services"));
                }
            }
            let name = spec.external_name.as_deref().unwrap_or_default();
            let name = name.strip_suffix('.').unwrap_or(name);
            if name.is_empty() {
                errors.push(FieldError::required("spec.externalName", ""));
            } else {
                errors.extend(validate::checked("spec.externalName", name, names::is_dns1123_subdomain));
            }
        }
        _ => {}
    }
    errors
}

fn validate_ports(spec: &ServiceSpec, ports: &[ServicePort]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut names_seen = BTreeSet::new();
    let mut numbers_seen = BTreeSet::new();
    let mut node_ports_seen = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        let name = port.name.as_deref().unwrap_or_default();
        let protocol = port.protocol.as_deref().unwrap_or_default();
        if name.is_empty() {
            if ports.len() > 1 {
                errors.push(FieldError::required(format!("{path}.name"), ""));
            }
        } else {
            errors.extend(validate::checked(&format!("{path}.name"), name, names::is_dns1123_label));
            if !names_seen.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
        }
        errors.extend(validate::port_number(&format!("{path}.port"), port.port));
        errors.extend(validate::one_of(&format!("{path}.protocol"), Some(protocol), &["SCTP", "TCP", "UDP"]));
        if let Some(target) = &port.target_port {
            errors.extend(validate::port_or_name(&format!("{path}.targetPort"), target));
        }
        if let Some(protocol) = port.app_protocol.as_deref() {
            errors.extend(validate::checked(&format!("{path}.appProtocol"), protocol, names::is_qualified_name));
        }
        if !numbers_seen.insert((port.port, protocol)) {
            let value = serde_json::json!({ "protocol": protocol, "port": port.port, "targetPort": 0 });
            errors.push(FieldError::duplicate(&path, value));
        }
        let node_port = port.node_port.unwrap_or(0);
        if node_port == 0 {
            continue;
        }
        let node_path = format!("{path}.nodePort");
        match service_type(spec) {
            kind @ ("ClusterIP" | "ExternalName") => {
                errors.push(FieldError::forbidden(node_path, format!("may not be used when `type` is '{kind}'")));
            }
            _ if !node_ports_seen.insert((node_port, protocol)) => errors.push(FieldError::duplicate(node_path, node_port)),
            _ => {}
        }
    }
    errors
}

fn validate_policies(spec: &ServiceSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let policies = &["Cluster", "Local"];
    let external = spec.external_traffic_policy.as_deref().filter(|policy| !policy.is_empty());
    let reachable = matches!(service_type(spec), "NodePort" | "LoadBalancer")
        || (service_type(spec) == "ClusterIP" && spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty()));
    match external {
        Some(policy) if !reachable => {
            let why = "may only be set for externally-accessible services";
            errors.push(FieldError::invalid("spec.externalTrafficPolicy", policy, why));
        }
        policy => errors.extend(validate::one_of_given("spec.externalTrafficPolicy", policy, policies)),
    }
    let health_port = spec.health_check_node_port.unwrap_or(0);
    if health_port < 0 {
        errors.push(FieldError::invalid("spec.healthCheckNodePort", health_port, "must be greater than or equal to 0"));
    } else if health_port > 0 && !is_health_checked(spec) {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid("spec.healthCheckNodePort", health_port, why));
    }
    errors.extend(validate::one_of_given("spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref(), policies));
    let is_balancer = service_type(spec) == "LoadBalancer";
    if !is_balancer && spec.allocate_load_balancer_node_ports.is_some() {
        let why = "may only be used when `type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden("spec.allocateLoadBalancerNodePorts", why));
    }
    if !is_balancer && spec.load_balancer_source_ranges.as_ref().is_some_and(|ranges| !ranges.is_empty()) {
        let why = "may only be used when `type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden("spec.LoadBalancerSourceRanges", why));
    }
    if !is_balancer && spec.load_balancer_class.is_some() {
        errors.push(FieldError::forbidden("spec.loadBalancerClass", "may only be used when `type` is 'LoadBalancer'"));
    }
    errors
}

fn validate_cluster_ips(spec: &ServiceSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let families = spec.ip_families.as_deref().unwrap_or_default();
    for (index, family) in families.iter().enumerate() {
        let path = format!("spec.ipFamilies[{index}]");
        errors.extend(validate::one_of_given(&path, Some(family), &["IPv4", "IPv6"]));
        if families[..index].contains(family) {
            errors.push(FieldError::duplicate(path, family.clone()));
        }
    }
    let policies = &["PreferDualStack", "RequireDualStack", "SingleStack"];
    errors.extend(validate::one_of_given("spec.ipFamilyPolicy", spec.ip_family_policy.as_deref(), policies));
    if service_type(spec) == "ExternalName" {
        return errors;
    }
    let addresses = spec.cluster_ips.as_deref().unwrap_or_default();
    for (index, ip) in addresses.iter().enumerate() {
        let path = format!("spec.clusterIPs[{index}]");
        if ip == "None" {
            if addresses.len() > 1 {
                errors.push(FieldError::invalid(path, ip.clone(), "must be empty when 'None' is set"));
            }
        } else if !ip.is_empty() {
            errors.extend(validate::checked(&path, ip, names::is_ip_address));
        }
    }
    if addresses.len() > 1 && !addresses.iter().any(|ip| ip == "None") {
        let why = "may only hold one value: this cluster is not configured for dual-stack services";
        errors.push(FieldError::invalid("spec.clusterIPs", validate::json(&addresses), why));
    }
    if addresses.first() != spec.cluster_ip.as_ref() {
        let why = "first value must match `clusterIP`";
        errors.push(FieldError::invalid("spec.clusterIPs", validate::json(&addresses), why));
    }
    errors
}

/// A service that goes on having an address goes on having the same one.
pub fn validate_update(new: &Service, old: &Service) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let (Some(new), Some(old)) = (&new.spec, &old.spec)
        && needs_cluster_ip(new)
        && needs_cluster_ip(old)
        && let Some(before) = old.cluster_ip.as_ref().filter(|ip| !ip.is_empty())
    {
        let addresses = validate::json(&new.cluster_ips.clone().unwrap_or_default());
        match new.cluster_ip.as_deref() {
            None | Some("") => {
                errors.push(FieldError::invalid("spec.clusterIPs[0]", addresses, "primary clusterIP can not be unset"));
            }
            Some(after) if after != before => {
                errors.push(FieldError::invalid("spec.clusterIPs[0]", addresses, "may not change once set"));
            }
            Some(_) => {}
        }
    }
    if let (Some(new), Some(old)) = (&new.spec, &old.spec)
        && is_health_checked(new)
        && is_health_checked(old)
    {
        let (after, before) = (new.health_check_node_port.unwrap_or(0), old.health_check_node_port.unwrap_or(0));
        errors.extend(validate::unchanged(&after, &before, "spec.healthCheckNodePort", after));
    }
    errors.extend(validate(new));
    errors
}
