//! What may change in a pod that exists (`ValidatePodUpdate`, `ValidatePodStatusUpdate`).

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus};
use serde_json::Value;

use crate::{
    field::FieldError,
    kinds::{pod_template, validate},
};

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
                         `spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` \
                         (allow it to be set to 1 if it was previously negative)";

/// The rules for a change of the main resource.
pub fn validate_spec_update(new: &Pod, old: &Pod) -> Vec<FieldError> {
    let empty = PodSpec::default();
    let (new, old) = (new.spec.as_ref().unwrap_or(&empty), old.spec.as_ref().unwrap_or(&empty));
    let mut errors = Vec::new();
    if new.containers.len() != old.containers.len() {
        return vec![FieldError::forbidden("spec.containers", "pod updates may not add or remove containers")];
    }
    if new.init_containers.as_ref().map_or(0, Vec::len) != old.init_containers.as_ref().map_or(0, Vec::len) {
        return vec![FieldError::forbidden("spec.initContainers", "pod updates may not add or remove containers")];
    }
    errors.extend(images("spec.containers", &new.containers));
    errors.extend(images("spec.initContainers", new.init_containers.as_deref().unwrap_or_default()));
    errors.extend(active_deadline(new, old));
    errors.extend(tolerations(new, old));
    errors.extend(scheduling_gates(new, old));
    if !errors.is_empty() {
        return errors;
    }
    let without_allowed = with_old_values(new, old);
    if without_allowed != *old {
        let difference = differences(&validate::json(&without_allowed), &validate::json(old));
        errors.push(FieldError::forbidden(
            "spec",
            format!("pod updates may not change fields other than {UPDATABLE}\n{difference}"),
        ));
        return errors;
    }
    pod_template::validate_spec("spec", new)
}

fn images(path: &str, containers: &[Container]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, container) in containers.iter().enumerate() {
        let image = container.image.as_deref().unwrap_or_default();
        let path = format!("{path}[{index}].image");
        if image.is_empty() {
            errors.push(FieldError::required(path, ""));
        } else if image.trim() != image {
            errors.push(FieldError::invalid(path, image, "must not have leading or trailing whitespace"));
        }
    }
    errors
}

fn active_deadline(new: &PodSpec, old: &PodSpec) -> Option<FieldError> {
    let path = "spec.activeDeadlineSeconds";
    match (new.active_deadline_seconds, old.active_deadline_seconds) {
        (Some(seconds), _) if !(0..=i64::from(i32::MAX)).contains(&seconds) => {
            Some(FieldError::invalid(path, seconds, "must be between 0 and 2147483647, inclusive"))
        }
        (Some(seconds), Some(before)) if seconds > before => {
            Some(FieldError::invalid(path, seconds, "must be less than or equal to previous value"))
        }
        (None, Some(_)) => Some(FieldError::invalid(path, Value::Null, "must not update from a positive integer to nil value")),
        _ => None,
    }
}

fn tolerations(new: &PodSpec, old: &PodSpec) -> Vec<FieldError> {
    let kept = |toleration: &k8s_openapi::api::core::v1::Toleration| {
        new.tolerations.iter().flatten().any(|candidate| {
            let mut same = candidate.clone();
            same.toleration_seconds = toleration.toleration_seconds;
            same == *toleration
        })
    };
    if old.tolerations.iter().flatten().all(kept) {
        return pod_template::validate_added_tolerations(new);
    }
    let why = "existing toleration can not be modified except its tolerationSeconds";
    vec![FieldError::forbidden("spec.tolerations", why)]
}

fn scheduling_gates(new: &PodSpec, old: &PodSpec) -> Vec<FieldError> {
    let old_gates = old.scheduling_gates.as_deref().unwrap_or_default();
    let added = new.scheduling_gates.iter().flatten().filter(|gate| !old_gates.contains(gate));
    added
        .map(|gate| {
            let why = format!("only deletion is allowed, but found new scheduling gate '{}'", gate.name);
            FieldError::forbidden("spec.schedulingGates", why)
        })
        .collect()
}

/// `new` with the old values of all that may change.
fn with_old_values(new: &PodSpec, old: &PodSpec) -> PodSpec {
    let mut spec = new.clone();
    for (container, old) in spec.containers.iter_mut().zip(&old.containers) {
        container.image.clone_from(&old.image);
    }
    let old_inits = old.init_containers.as_deref().unwrap_or_default();
    for (container, old) in spec.init_containers.iter_mut().flatten().zip(old_inits) {
        container.image.clone_from(&old.image);
    }
    spec.active_deadline_seconds = old.active_deadline_seconds;
    spec.tolerations.clone_from(&old.tolerations);
    spec.scheduling_gates.clone_from(&old.scheduling_gates);
    if old.termination_grace_period_seconds.is_some_and(|seconds| seconds < 0) && spec.termination_grace_period_seconds == Some(1)
    {
        spec.termination_grace_period_seconds = old.termination_grace_period_seconds;
    }
    let gated = old.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
    let narrowed = old
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| spec.node_selector.as_ref().and_then(|selector| selector.get(key)) == Some(value));
    if gated && narrowed {
        spec.node_selector.clone_from(&old.node_selector);
    }
    spec
}

/// The fields that differ, one line for each old and new value.
fn differences(new: &Value, old: &Value) -> String {
    let mut lines = Vec::new();
    collect_differences("spec", new, old, &mut lines);
    lines.join("\n")
}

fn collect_differences(path: &str, new: &Value, old: &Value, lines: &mut Vec<String>) {
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => {
            let mut names: Vec<&String> = new.keys().chain(old.keys()).collect();
            names.sort();
            names.dedup();
            for name in names {
                let null = Value::Null;
                let (new, old) = (new.get(name).unwrap_or(&null), old.get(name).unwrap_or(&null));
                collect_differences(&format!("{path}.{name}"), new, old, lines);
            }
        }
        (Value::Array(new), Value::Array(old)) if new.len() == old.len() => {
            for (index, (new, old)) in new.iter().zip(old).enumerate() {
                collect_differences(&format!("{path}[{index}]"), new, old, lines);
            }
        }
        (new, old) if new != old => lines.push(format!("-  {path}: {old}\n+  {path}: {new}")),
        _ => {}
    }
}

/// The rules for a change of the status.
pub fn validate_status_update(new: &Pod, old: &Pod) -> Vec<FieldError> {
    let empty = PodStatus::default();
    let (new_status, old_status) = (new.status.as_ref().unwrap_or(&empty), old.status.as_ref().unwrap_or(&empty));
    let mut errors = Vec::new();
    if new_status.qos_class != old_status.qos_class && old_status.qos_class.is_some() {
        let value = new_status.qos_class.clone().unwrap_or_default();
        errors.push(FieldError::invalid("status.qosClass", value, "field is immutable"));
    }
    let policy = old.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
    let new_statuses = new_status.container_statuses.as_deref().unwrap_or_default();
    let old_statuses = old_status.container_statuses.as_deref().unwrap_or_default();
    errors.extend(state_transitions("status.containerStatuses", new_statuses, old_statuses, policy));
    errors
}

/// A container that ended may not run again when the pod's policy says that it does not.
fn state_transitions(path: &str, new: &[ContainerStatus], old: &[ContainerStatus], policy: &str) -> Vec<FieldError> {
    if policy == "Always" {
        return Vec::new();
    }
    let terminated = |status: &ContainerStatus| {
        status.state.as_ref().and_then(|state| state.terminated.as_ref()).map(|terminated| terminated.exit_code)
    };
    let mut errors = Vec::new();
    for old in old {
        let Some(exit_code) = terminated(old) else { continue };
        if policy == "OnFailure" && exit_code != 0 {
            continue;
        }
        for (index, new) in new.iter().enumerate().filter(|(_, new)| new.name == old.name) {
            if terminated(new).is_none() {
                let path = format!("{path}[{index}].state");
                errors.push(FieldError::forbidden(path, "may not be transitioned to non-terminated state"));
            }
        }
    }
    errors
}
