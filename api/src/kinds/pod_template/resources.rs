//! Validation of a container's resource requests and limits.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity as QuantityText};

use crate::{field::FieldError, names, quantity::Quantity};

pub fn validate_resources(path: &str, resources: &ResourceRequirements) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let limits_path = format!("{path}.limits");
    let requests_path = format!("{path}.requests");
    let empty = BTreeMap::new();
    let limits = resources.limits.as_ref().unwrap_or(&empty);
    let requests = resources.requests.as_ref().unwrap_or(&empty);
    for (name, amount) in limits {
        errors.extend(validate_amount(&limits_path, name, amount));
    }
    for (name, amount) in requests {
        errors.extend(validate_amount(&requests_path, name, amount));
        let Some(request) = parsed(amount) else { continue };
        match limits.get(name).and_then(parsed) {
            Some(limit) if !may_overcommit(name) && request != limit => {
                let why = format!("must be equal to {name} limit of {limit}");
                errors.push(FieldError::invalid(&requests_path, amount.0.clone(), why));
            }
            Some(limit) if request > limit => {
                let why = format!("must be less than or equal to {name} limit of {limit}");
                errors.push(FieldError::invalid(&requests_path, amount.0.clone(), why));
            }
            None if !may_overcommit(name) => {
                errors.push(FieldError::required(&limits_path, "Limit must be set for non overcommitable resources"));
            }
            _ => {}
        }
    }
    errors
}

fn parsed(text: &QuantityText) -> Option<Quantity> {
    Quantity::parse(&text.0).ok()
}

/// Resources of Kubernetes' own, except huge pages, may be limited above what is requested.
fn may_overcommit(name: &str) -> bool {
    is_native(name) && !name.starts_with("hugepages-")
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.split('/').next().is_some_and(|prefix| prefix.ends_with("kubernetes.io"))
}

fn is_container_resource(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")
}

fn validate_amount(list: &str, name: &str, amount: &QuantityText) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> =
        names::is_qualified_name(name).into_iter().map(|why| FieldError::invalid(list, name, why)).collect();
    let path = format!("{list}[{name}]");
    if errors.is_empty() && !name.contains('/') && !is_container_resource(name) {
        errors.push(FieldError::invalid(&path, name, "must be a standard resource for containers"));
        errors.push(FieldError::invalid(&path, name, "must be a standard resource type or fully qualified"));
    }
    let Some(quantity) = parsed(amount) else { return errors };
    if quantity.sign() < 0 {
        errors.push(FieldError::invalid(&path, amount.0.clone(), "must be greater than or equal to 0"));
    }
    let fractional = quantity.millis() % 1000 != 0;
    if (!is_native(name) || name.starts_with("hugepages-")) && fractional {
        errors.push(FieldError::invalid(&path, amount.0.clone(), "must be an integer"));
    }
    errors
}
