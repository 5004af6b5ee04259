//! Validation of a pod's specification as a whole, and of templates of pods.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::core::v1::{PodSpec, PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use super::{
    affinity::validate_affinity,
    containers::validate_containers,
    scheduling::{validate_scheduling_gates, validate_tolerations, validate_topology_spread},
    security::validate_pod_security,
    volumes::validate_volumes,
};
use crate::{field::FieldError, kinds::validate, names};

/// All rules for a pod's specification (`pkg/apis/core/validation`, `ValidatePodSpec`).
pub fn validate_spec(path: &str, spec: &PodSpec) -> Vec<FieldError> {
    let volumes = spec.volumes.as_deref().unwrap_or_default();
    let mut errors = validate_volumes(&format!("{path}.volumes"), volumes);
    let init_containers = spec.init_containers.as_deref().unwrap_or_default();
    errors.extend(validate_containers(path, &spec.containers, init_containers, volumes));
    errors.extend(host_ports(path, spec));
    let restart_policies = &["Always", "Never", "OnFailure"];
    errors.extend(validate::one_of(&format!("{path}.restartPolicy"), spec.restart_policy.as_deref(), restart_policies));
    errors.extend(dns(path, spec));
    errors.extend(validate::labels(&format!("{path}.nodeSelector"), spec.node_selector.as_ref()));
    errors.extend(names_of_others(path, spec));
    if let Some(seconds) = spec.active_deadline_seconds
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let why = "must be between 1 and 2147483647, inclusive";
        errors.push(FieldError::invalid(format!("{path}.activeDeadlineSeconds"), seconds, why));
    }
    if let Some(context) = &spec.security_context {
        errors.extend(validate_pod_security(&format!("{path}.securityContext"), context, spec));
    }
    if let Some(affinity) = &spec.affinity {
        errors.extend(validate_affinity(&format!("{path}.affinity"), affinity));
    }
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    errors.extend(validate_tolerations(&format!("{path}.tolerations"), tolerations));
    let constraints = spec.topology_spread_constraints.as_deref().unwrap_or_default();
    errors.extend(validate_topology_spread(&format!("{path}.topologySpreadConstraints"), constraints));
    let gates = spec.scheduling_gates.as_deref().unwrap_or_default();
    errors.extend(validate_scheduling_gates(&format!("{path}.schedulingGates"), gates));
    for (index, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        let path = format!("{path}.readinessGates[{index}].conditionType");
        errors.extend(validate::checked(&path, &gate.condition_type, names::is_qualified_name));
    }
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let path = format!("{path}.hostAliases[{index}]");
        errors.extend(validate::checked(&format!("{path}.ip"), &alias.ip, names::is_ip_address));
        for (index, host) in alias.hostnames.iter().flatten().enumerate() {
            errors.extend(validate::checked(&format!("{path}.hostnames[{index}]"), host, names::is_dns1123_subdomain));
        }
    }
    errors
}

/// Names of other objects and of the pod's host.
fn names_of_others(path: &str, spec: &PodSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let subdomain: fn(&str) -> Vec<String> = names::is_dns1123_subdomain;
    for (field, value, check) in [
        ("serviceAccountName", &spec.service_account_name, subdomain),
        ("nodeName", &spec.node_name, subdomain),
        ("priorityClassName", &spec.priority_class_name, subdomain),
        ("runtimeClassName", &spec.runtime_class_name, subdomain),
        ("hostname", &spec.hostname, names::is_dns1123_label),
        ("subdomain", &spec.subdomain, names::is_dns1123_label),
    ] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            errors.extend(validate::checked(&format!("{path}.{field}"), value, check));
        }
    }
    errors
}

fn dns(path: &str, spec: &PodSpec) -> Vec<FieldError> {
    let policies = &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    let mut errors: Vec<FieldError> =
        validate::one_of(&format!("{path}.dnsPolicy"), spec.dns_policy.as_deref(), policies).into_iter().collect();
    let servers = spec.dns_config.as_ref().and_then(|config| config.nameservers.as_deref()).unwrap_or_default();
    if spec.dns_policy.as_deref() == Some("None") {
        if spec.dns_config.is_none() {
            errors.push(FieldError::required(format!("{path}.dnsConfig"), "must provide `dnsConfig` when `dnsPolicy` is None"));
        } else if servers.is_empty() {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.push(FieldError::required(format!("{path}.dnsConfig.nameservers"), why));
        }
    }
    if servers.len() > 3 {
        let why = "must not have more than 3 nameservers";
        errors.push(FieldError::invalid(format!("{path}.dnsConfig.nameservers"), validate::json(&servers), why));
    }
    for (index, server) in servers.iter().enumerate() {
        errors.extend(validate::checked(&format!("{path}.dnsConfig.nameservers[{index}]"), server, names::is_ip_address));
    }
    errors
}

/// On the host's network, ports are the host's; and no two containers of a pod may want the same port of the host.
fn host_ports(path: &str, spec: &PodSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (container_index, container) in spec.containers.iter().enumerate() {
        for (port_index, port) in container.ports.iter().flatten().enumerate() {
            let path = format!("{path}.containers[{container_index}].ports[{port_index}]");
            let host_port = port.host_port.unwrap_or(0);
            if spec.host_network == Some(true) && host_port != 0 && host_port != port.container_port {
                let why = "must match `hostPort` when `hostNetwork` is true";
                errors.push(FieldError::invalid(format!("{path}.containerPort"), port.container_port, why));
            }
            if host_port != 0 {
                let key = format!(
                    "{}/{}/{host_port}",
                    port.protocol.as_deref().unwrap_or_default(),
                    port.host_ip.as_deref().unwrap_or_default()
                );
                if !seen.insert(key.clone()) {
                    errors.push(FieldError::duplicate(format!("{path}.hostPort"), key));
                }
            }
        }
    }
    errors
}

/// A template of pods that a controller keeps running: its labels must be selected, and its pods must restart for ever.
pub fn validate_template(path: &str, template: &PodTemplateSpec, selector: &LabelSelector) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let labels = template.metadata.as_ref().and_then(|metadata| metadata.labels.clone()).unwrap_or_default();
    if validate::is_empty_selector(selector) || !validate::selects(selector, &labels) {
        let why = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid(format!("{path}.metadata.labels"), validate::json(&labels), why));
    }
    errors.extend(validate::labels(&format!("{path}.labels"), Some(&labels)));
    let annotations = template.metadata.as_ref().and_then(|metadata| metadata.annotations.as_ref());
    for key in annotations.into_iter().flatten().map(|(key, _)| key) {
        let check = |key: &str| names::is_qualified_name(&key.to_lowercase());
        errors.extend(validate::checked(&format!("{path}.annotations"), key, check));
    }
    let default = PodSpec::default();
    let spec = template.spec.as_ref().unwrap_or(&default);
    errors.extend(validate_spec(&format!("{path}.spec"), spec));
    let policy = spec.restart_policy.as_deref().unwrap_or_default();
    if policy != "Always" {
        errors.push(FieldError::not_supported(format!("{path}.spec.restartPolicy"), policy, &["Always"]));
    }
    if spec.active_deadline_seconds.is_some() {
        let why = "activeDeadlineSeconds in ReplicaSet is not Supported";
        errors.push(FieldError::forbidden(format!("{path}.spec.activeDeadlineSeconds"), why));
    }
    if spec.ephemeral_containers.as_ref().is_some_and(|containers| !containers.is_empty()) {
        let why = "ephemeral containers not allowed in pod template";
        errors.push(FieldError::forbidden(format!("{path}.spec.ephemeralContainers"), why));
    }
    errors
}
