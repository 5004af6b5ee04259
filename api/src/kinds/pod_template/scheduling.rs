//! Validation of what the scheduler reads: tolerations, topology spread constraints, scheduling gates.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{PodSchedulingGate, PodSpec, Toleration, TopologySpreadConstraint};

use crate::{field::FieldError, kinds::validate, names};

const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "PreferNoSchedule"];

/// The effect of a taint.
pub fn taint_effect(path: &str, effect: &str) -> Option<FieldError> {
    if effect.is_empty() { Some(FieldError::required(path, "")) } else { validate::one_of_given(path, Some(effect), EFFECTS) }
}

/// The tolerations of a pod that exists.
pub fn validate_added_tolerations(spec: &PodSpec) -> Vec<FieldError> {
    validate_tolerations("spec.tolerations", spec.tolerations.as_deref().unwrap_or_default())
}

pub fn validate_tolerations(path: &str, tolerations: &[Toleration]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, toleration) in tolerations.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let key = toleration.key.as_deref().unwrap_or_default();
        let operator = toleration.operator.as_deref().unwrap_or_default();
        let value = toleration.value.as_deref().unwrap_or_default();
        let effect = toleration.effect.as_deref().unwrap_or_default();
        if !key.is_empty() {
            errors.extend(validate::checked(&format!("{path}.key"), key, names::is_qualified_name));
        } else if operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(format!("{path}.operator"), operator, why));
        }
        if toleration.toleration_seconds.is_some() && effect != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(format!("{path}.effect"), effect, why));
        }
        match operator {
            "Equal" | "" => errors.extend(validate::checked(&format!("{path}.operator"), value, names::is_label_value)),
            "Exists" if !value.is_empty() => {
                let why = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(format!("{path}.operator"), validate::json(toleration), why));
            }
            "Exists" => {}
            other => errors.push(FieldError::not_supported(format!("{path}.operator"), other, &["Equal", "Exists"])),
        }
        errors.extend(validate::one_of_given(&format!("{path}.effect"), Some(effect), EFFECTS));
    }
    errors
}

pub fn validate_topology_spread(path: &str, constraints: &[TopologySpreadConstraint]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut pairs = BTreeSet::new();
    for (index, constraint) in constraints.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if constraint.max_skew <= 0 {
            errors.push(FieldError::invalid(format!("{path}.maxSkew"), constraint.max_skew, "must be greater than zero"));
        }
        if constraint.topology_key.is_empty() {
            errors.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
        }
        let when = constraint.when_unsatisfiable.as_str();
        if !matches!(when, "DoNotSchedule" | "ScheduleAnyway") {
            let supported = &["DoNotSchedule", "ScheduleAnyway"];
            errors.push(FieldError::not_supported(format!("{path}.whenUnsatisfiable"), when, supported));
        }
        if !pairs.insert((constraint.topology_key.as_str(), when)) {
            let pair = format!("{{{}, {when}}}", constraint.topology_key);
            errors.push(FieldError::duplicate(format!("{path}.{{topologyKey, whenUnsatisfiable}}"), pair));
        }
        if let Some(domains) = constraint.min_domains {
            let path = format!("{path}.minDomains");
            if domains <= 0 {
                errors.push(FieldError::invalid(&path, domains, "must be greater than zero"));
            } else if when != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}");
                errors.push(FieldError::invalid(&path, domains, why));
            }
        }
        for (field, policy) in
            [("nodeAffinityPolicy", &constraint.node_affinity_policy), ("nodeTaintsPolicy", &constraint.node_taints_policy)]
        {
            errors.extend(validate::one_of_given(&format!("{path}.{field}"), policy.as_deref(), &["Honor", "Ignore"]));
        }
        if let Some(selector) = &constraint.label_selector {
            errors.extend(validate::label_selector(&format!("{path}.labelSelector"), selector));
        } else if constraint.match_label_keys.as_ref().is_some_and(|keys| !keys.is_empty()) {
            let why = "must not be specified when labelSelector is not set";
            errors.push(FieldError::forbidden(format!("{path}.matchLabelKeys"), why));
        }
    }
    errors
}

pub fn validate_scheduling_gates(path: &str, gates: &[PodSchedulingGate]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, gate) in gates.iter().enumerate() {
        errors.extend(validate::required_name(&format!("{path}[{index}].name"), &gate.name, names::is_qualified_name));
        if !seen.insert(&gate.name) {
            errors.push(FieldError::duplicate(format!("{path}[{index}].name"), gate.name.clone()));
        }
    }
    errors
}
