//! Validation of node affinity, pod affinity and pod anti-affinity.

use k8s_openapi::api::core::v1::{Affinity, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, WeightedPodAffinityTerm};

use crate::{field::FieldError, kinds::validate, names};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub fn validate_affinity(path: &str, affinity: &Affinity) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(node) = &affinity.node_affinity {
        let path = format!("{path}.nodeAffinity");
        if let Some(selector) = &node.required_during_scheduling_ignored_during_execution {
            let path = format!("{path}.{REQUIRED}.nodeSelectorTerms");
            if selector.node_selector_terms.is_empty() {
                errors.push(FieldError::required(&path, "must have at least one node selector term"));
            }
            for (index, term) in selector.node_selector_terms.iter().enumerate() {
                errors.extend(node_selector_term(&format!("{path}[{index}]"), term));
            }
        }
        for (index, preferred) in node.preferred_during_scheduling_ignored_during_execution.iter().flatten().enumerate() {
            let path = format!("{path}.{PREFERRED}[{index}]");
            errors.extend(weight(&path, preferred.weight));
            errors.extend(node_selector_term(&format!("{path}.preference"), &preferred.preference));
        }
    }
    if let Some(pods) = &affinity.pod_affinity {
        let path = format!("{path}.podAffinity");
        errors.extend(required_terms(&path, pods.required_during_scheduling_ignored_during_execution.as_deref()));
        errors.extend(preferred_terms(&path, pods.preferred_during_scheduling_ignored_during_execution.as_deref()));
    }
    if let Some(pods) = &affinity.pod_anti_affinity {
        let path = format!("{path}.podAntiAffinity");
        errors.extend(required_terms(&path, pods.required_during_scheduling_ignored_during_execution.as_deref()));
        errors.extend(preferred_terms(&path, pods.preferred_during_scheduling_ignored_during_execution.as_deref()));
    }
    errors
}

fn weight(path: &str, weight: i32) -> Option<FieldError> {
    (!(1..=100).contains(&weight)).then(|| FieldError::invalid(format!("{path}.weight"), weight, "must be in the range 1-100"))
}

fn node_selector_term(path: &str, term: &NodeSelectorTerm) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, requirement) in term.match_expressions.iter().flatten().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        errors.extend(node_requirement(&path, requirement));
        errors.extend(validate::checked(&format!("{path}.key"), &requirement.key, names::is_qualified_name));
    }
    for (index, requirement) in term.match_fields.iter().flatten().enumerate() {
        let path = format!("{path}.matchFields[{index}]");
        errors.extend(node_field_requirement(&path, requirement));
    }
    errors
}

fn node_requirement(path: &str, requirement: &NodeSelectorRequirement) -> Option<FieldError> {
    let values = requirement.values.as_deref().unwrap_or_default();
    let values_path = format!("{path}.values");
    match requirement.operator.as_str() {
        "In" | "NotIn" => {
            values.is_empty().then(|| FieldError::required(values_path, "must be specified when `operator` is 'In' or 'NotIn'"))
        }
        "Exists" | "DoesNotExist" => (!values.is_empty())
            .then(|| FieldError::forbidden(values_path, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")),
        "Gt" | "Lt" => (values.len() != 1)
            .then(|| FieldError::required(values_path, "must be specified single value when `operator` is 'Lt' or 'Gt'")),
        other => Some(FieldError::invalid(format!("{path}.operator"), other, "not a valid selector operator")),
    }
}

fn node_field_requirement(path: &str, requirement: &NodeSelectorRequirement) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let values = requirement.values.as_deref().unwrap_or_default();
    match requirement.operator.as_str() {
        "In" | "NotIn" if values.len() != 1 => {
            let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.push(FieldError::required(format!("{path}.values"), why));
        }
        "In" | "NotIn" => {}
        other => errors.push(FieldError::invalid(format!("{path}.operator"), other, "not a valid selector operator")),
    }
    if requirement.key != "metadata.name" {
        errors.push(FieldError::invalid(format!("{path}.key"), requirement.key.clone(), "not a valid field selector key"));
        return errors;
    }
    for (index, value) in values.iter().enumerate() {
        errors.extend(validate::checked(&format!("{path}.values[{index}]"), value, names::is_dns1123_subdomain));
    }
    errors
}

fn required_terms(path: &str, terms: Option<&[PodAffinityTerm]>) -> Vec<FieldError> {
    let terms = terms.into_iter().flatten().enumerate();
    terms.flat_map(|(index, term)| pod_term(&format!("{path}.{REQUIRED}[{index}]"), term)).collect()
}

fn preferred_terms(path: &str, terms: Option<&[WeightedPodAffinityTerm]>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, term) in terms.into_iter().flatten().enumerate() {
        let path = format!("{path}.{PREFERRED}[{index}]");
        errors.extend(weight(&path, term.weight));
        errors.extend(pod_term(&format!("{path}.podAffinityTerm"), &term.pod_affinity_term));
    }
    errors
}

fn pod_term(path: &str, term: &PodAffinityTerm) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(selector) = &term.label_selector {
        errors.extend(validate::label_selector(&format!("{path}.labelSelector"), selector));
    }
    if let Some(selector) = &term.namespace_selector {
        errors.extend(validate::label_selector(&format!("{path}.namespaceSelector"), selector));
    }
    for (index, namespace) in term.namespaces.iter().flatten().enumerate() {
        errors.extend(validate::checked(&format!("{path}.namespaces[{index}]"), namespace, names::is_dns1123_label));
    }
    if term.topology_key.is_empty() {
        errors.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
    } else {
        errors.extend(validate::checked(&format!("{path}.topologyKey"), &term.topology_key, names::is_qualified_name));
    }
    errors
}
