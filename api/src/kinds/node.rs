//! Node: a machine that runs pods.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, Taint};
use serde_json::{Value, json};

use super::{
    pod_template, table,
    typed::{Change, Kind, Quantities, status_subresource},
    validate,
};
use crate::{
    field::FieldError,
    names,
    registry::{Column, Part, Scope, Subresource},
};

pub struct NodeKind;

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
const ROLE_LABEL: &str = "kubernetes.io/role";

impl Kind for NodeKind {
    type Object = Node;

    const SHORT_NAMES: &'static [&'static str] = &["no"];
    const SCOPE: Scope = Scope::Cluster;
    const QUANTITIES: Quantities = Quantities::Present;

    fn subresources() -> Vec<Subresource> {
        vec![status_subresource::<Node>()]
    }

    fn columns() -> Vec<Column> {
        vec![
            table::name_column(),
            table::column("Status", "string", "Whether the node is ready, and whether pods are scheduled to it."),
            table::column("Roles", "string", "Roles that the node's labels give it."),
            table::age_column(),
            table::column("Version", "string", "Version of the node's agent."),
            table::wide("Internal-IP", "string", "Address of the node inside the cluster."),
            table::wide("External-IP", "string", "Address of the node from outside."),
            table::wide("OS-Image", "string", "Operating system, as the node reports it."),
            table::wide("Kernel-Version", "string", "Kernel, as the node reports it."),
            table::wide("Container-Runtime", "string", "Container runtime, as the node reports it."),
        ]
    }

    fn default(object: &mut Node) {
        let spec = object.spec.get_or_insert_default();
        match (&spec.pod_cidr, spec.pod_cidrs.as_ref().and_then(|all| all.first())) {
            (Some(cidr), None) if !cidr.is_empty() => spec.pod_cidrs = Some(vec![cidr.clone()]),
            (None, Some(first)) => spec.pod_cidr = Some(first.clone()),
            _ => {}
        }
        if let Some(status) = &mut object.status
            && status.allocatable.is_none()
        {
            status.allocatable.clone_from(&status.capacity);
        }
    }

    fn validate(object: &Node) -> Vec<FieldError> {
        let empty = NodeSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&empty);
        let mut errors = validate_taints("spec.taints", spec.taints.as_deref().unwrap_or_default());
        for (index, cidr) in spec.pod_cidrs.iter().flatten().enumerate() {
            if !is_cidr(cidr) {
                let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                errors.push(FieldError::invalid(format!("spec.podCIDRs[{index}]"), cidr.clone(), why));
            }
        }
        errors
    }

    fn validate_update(change: &Change<Node>) -> Vec<FieldError> {
        if change.part == Part::Status {
            return Vec::new();
        }
        let empty = NodeSpec::default();
        let new = change.new.spec.as_ref().unwrap_or(&empty);
        let old = change.old.spec.as_ref().unwrap_or(&empty);
        let mut errors = Self::validate(change.new);
        let set = |cidrs: &Option<Vec<String>>| cidrs.as_ref().is_some_and(|cidrs| !cidrs.is_empty());
        if set(&old.pod_cidrs) && new.pod_cidrs != old.pod_cidrs {
            let why = "node updates may not change podCIDR except from \"\" to valid";
            errors.push(FieldError::forbidden("spec.podCIDRs", why));
        }
        if old.provider_id.as_deref().is_some_and(|id| !id.is_empty()) && new.provider_id != old.provider_id {
            let why = "node updates may not change providerID except from \"\" to valid";
            errors.push(FieldError::forbidden("spec.providerID", why));
        }
        errors
    }

    fn selectable_fields(object: &Node) -> Vec<(&'static str, String)> {
        vec![("spec.unschedulable", is_unschedulable(object).to_string())]
    }

    fn row(object: &Node, now: Timestamp) -> Vec<Value> {
        let empty = NodeStatus::default();
        let status = object.status.as_ref().unwrap_or(&empty);
        let info = status.node_info.clone().unwrap_or_default();
        let or_unknown = |text: String| if text.is_empty() { table::UNKNOWN.to_owned() } else { text };
        vec![
            json!(table::name(&object.metadata)),
            json!(readiness(object, status)),
            json!(roles(object)),
            json!(table::age(&object.metadata, now)),
            json!(info.kubelet_version),
            json!(address(status, "InternalIP")),
            json!(address(status, "ExternalIP")),
            json!(or_unknown(info.os_image)),
            json!(or_unknown(info.kernel_version)),
            json!(or_unknown(info.container_runtime_version)),
        ]
    }
}

fn validate_taints(path: &str, taints: &[Taint]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, taint) in taints.iter().enumerate() {
        let path = format!("{path}[{index}]");
        errors.extend(validate::checked(&format!("{path}.key"), &taint.key, names::is_qualified_name));
        let value = taint.value.as_deref().unwrap_or_default();
        errors.extend(validate::checked(&format!("{path}.value"), value, names::is_label_value));
        errors.extend(pod_template::taint_effect(&format!("{path}.effect"), &taint.effect));
        if !seen.insert((&taint.key, &taint.effect)) {
            let mut error = FieldError::duplicate(path, validate::json(taint));
            error.detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(error);
        }
    }
    errors
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    match (address.parse::<std::net::IpAddr>(), length.parse::<u8>()) {
        (Ok(std::net::IpAddr::V4(_)), Ok(length)) => length <= 32,
        (Ok(std::net::IpAddr::V6(_)), Ok(length)) => length <= 128,
        _ => false,
    }
}

fn is_unschedulable(object: &Node) -> bool {
    object.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
}

fn readiness(object: &Node, status: &NodeStatus) -> String {
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
    let mut words = vec![match ready {
        Some(condition) if condition.status == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if is_unschedulable(object) {
        words.push("SchedulingDisabled");
    }
    words.join(",")
}

fn roles(object: &Node) -> String {
    let labels = object.metadata.labels.iter().flatten();
    let roles: BTreeSet<&str> = labels
        .filter_map(|(key, value)| match key.strip_prefix(ROLE_PREFIX) {
            Some(role) => Some(role),
            None if key == ROLE_LABEL => Some(value.as_str()),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    table::or_none(Some(&roles.into_iter().collect::<Vec<_>>().join(",")))
}

fn address(status: &NodeStatus, address_type: &str) -> String {
    let found = status.addresses.iter().flatten().find(|address| address.type_ == address_type);
    table::or_none(found.map(|address| address.address.as_str()))
}
