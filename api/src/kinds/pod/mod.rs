//! Pod: the unit that is scheduled and run.

pub mod binding;
mod row;
pub mod tolerations;
mod update;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus};
use serde_json::Value;

use super::{
    pod_resources, pod_template, table,
    typed::{Change, Generation, Kind, Quantities, status_subresource},
};
use crate::{
    field::FieldError,
    registry::{Column, Deletion, Part, Subresource},
};

pub struct PodKind;

impl Kind for PodKind {
    type Object = Pod;

    const SHORT_NAMES: &'static [&'static str] = &["po"];
    const CATEGORIES: &'static [&'static str] = &["all"];
    const GENERATION: Generation = Generation::Spec;
    const QUANTITIES: Quantities = Quantities::Present;

    fn subresources() -> Vec<Subresource> {
        let create_only = |name: &'static str, group: &'static str, kind: &'static str| Subresource {
            name: name.into(),
            group: group.into(),
            version: "v1".into(),
            kind: kind.into(),
            verbs: vec!["create".into()],
        };
        vec![
            create_only("binding", "", "Binding"),
            create_only("eviction", "policy", "Eviction"),
            Subresource {
                name: "log".into(),
                group: "".into(),
                version: "v1".into(),
                kind: "Pod".into(),
                verbs: vec!["get".into()],
            },
            status_subresource::<Pod>(),
        ]
    }

    fn columns() -> Vec<Column> {
        vec![
            table::name_column(),
            table::column("Ready", "string", "Containers that are ready, of those that should run."),
            table::column("Status", "string", "Phase of the pod, or the reason that matters most."),
            table::column("Restarts", "string", "Restarts of the pod's containers, and how long ago the last one was."),
            table::age_column(),
            table::wide("IP", "string", "Address of the pod."),
            table::wide("Node", "string", "Node that the pod runs on."),
            table::wide("Nominated Node", "string", "Node that preemption makes room on for the pod."),
            table::wide("Readiness Gates", "string", "Readiness gates that are true, of those the pod has."),
        ]
    }

    fn default(object: &mut Pod) {
        let spec = object.spec.get_or_insert_default();
        pod_template::default_spec(spec);
        pod_template::default_request_from_limits(spec);
        pod_template::share_host_network_ports(spec);
        spec.enable_service_links.get_or_insert(true);
        if let Some(status) = &mut object.status {
            sync_addresses(status);
        }
    }

    fn prepare_create(object: &mut Pod) {
        let empty = PodSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&empty);
        let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
        let condition = PodCondition {
            type_: "PodScheduled".to_owned(),
            status: "False".to_owned(),
            reason: Some("SchedulingGated".to_owned()),
            message: Some("Scheduling is blocked due to non-empty scheduling gates".to_owned()),
            ..PodCondition::default()
        };
        object.status = Some(PodStatus {
            phase: Some("Pending".to_owned()),
            qos_class: Some(pod_resources::qos_class(spec).to_owned()),
            conditions: gated.then(|| vec![condition]),
            ..PodStatus::default()
        });
    }

    fn prepare_update(new: &mut Pod, old: &Pod, part: Part) {
        if part == Part::Status {
            let qos_class = old.status.as_ref().and_then(|status| status.qos_class.clone());
            let status = new.status.get_or_insert_default();
            if status.qos_class.is_none() {
                status.qos_class = qos_class;
            }
        }
    }

    fn validate(object: &Pod) -> Vec<FieldError> {
        let empty = PodSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&empty);
        let mut errors = pod_template::validate_spec("spec", spec);
        let placed = spec.node_name.as_deref().is_some_and(|name| !name.is_empty());
        if placed && spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()) {
            errors.push(FieldError::forbidden("spec.nodeName", "cannot be set until all schedulingGates have been cleared"));
        }
        if spec.ephemeral_containers.as_ref().is_some_and(|containers| !containers.is_empty()) {
            errors.push(FieldError::forbidden("spec.ephemeralContainers", "cannot be set on create"));
        }
        errors
    }

    fn validate_update(change: &Change<Pod>) -> Vec<FieldError> {
        match change.part {
            Part::Main => update::validate_spec_update(change.new, change.old),
            Part::Status => update::validate_status_update(change.new, change.old),
        }
    }

    fn selectable_fields(object: &Pod) -> Vec<(&'static str, String)> {
        let text = |text: Option<&String>| text.cloned().unwrap_or_default();
        let spec = object.spec.as_ref();
        let status = object.status.as_ref();
        let host_network = spec.and_then(|spec| spec.host_network).unwrap_or(false);
        vec![
            ("spec.nodeName", text(spec.and_then(|spec| spec.node_name.as_ref()))),
            ("spec.restartPolicy", text(spec.and_then(|spec| spec.restart_policy.as_ref()))),
            ("spec.schedulerName", text(spec.and_then(|spec| spec.scheduler_name.as_ref()))),
            ("spec.serviceAccountName", text(spec.and_then(|spec| spec.service_account_name.as_ref()))),
            ("spec.hostNetwork", host_network.to_string()),
            ("status.phase", text(status.and_then(|status| status.phase.as_ref()))),
            ("status.podIP", text(status.and_then(|status| status.pod_ip.as_ref()))),
            ("status.nominatedNodeName", text(status.and_then(|status| status.nominated_node_name.as_ref()))),
        ]
    }

    fn row(object: &Pod, now: Timestamp) -> Vec<Value> {
        row::row(object, now)
    }

    fn deletion(object: &Pod, requested_seconds: Option<i64>) -> Deletion {
        let spec = object.spec.as_ref();
        let placed = spec.and_then(|spec| spec.node_name.as_deref()).is_some_and(|name| !name.is_empty());
        let phase = object.status.as_ref().and_then(|status| status.phase.as_deref());
        let finished = matches!(phase, Some("Failed" | "Succeeded"));
        let own = spec.and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(0);
        match requested_seconds.unwrap_or(own) {
            _ if !placed || finished => Deletion::Now,
            0 => Deletion::Now,
            seconds if seconds < 0 => Deletion::Graceful { seconds: 1 },
            seconds => Deletion::Graceful { seconds },
        }
    }
}

/// The singular field of an address is the first of the plural one, whichever was given.
fn sync_addresses(status: &mut PodStatus) {
    match (&status.pod_ip, status.pod_ips.as_ref().and_then(|all| all.first())) {
        (Some(ip), None) if !ip.is_empty() => status.pod_ips = Some(vec![PodIP { ip: ip.clone() }]),
        (None, Some(first)) => status.pod_ip = Some(first.ip.clone()),
        _ => {}
    }
    match (&status.host_ip, status.host_ips.as_ref().and_then(|all| all.first())) {
        (Some(ip), None) if !ip.is_empty() => status.host_ips = Some(vec![HostIP { ip: ip.clone() }]),
        (None, Some(first)) => status.host_ip = Some(first.ip.clone()),
        _ => {}
    }
}
