//! Validation of environment variables.

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, EnvVarSource, ObjectFieldSelector, ResourceFieldSelector};
use serde_json::json;

use crate::{field::FieldError, kinds::validate, names};

/// Fields of a pod that a variable may take its value from.
const VARIABLE_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Fields of a pod that a file of a downward API volume may take its content from.
pub const FILE_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

const CONTAINER_RESOURCES: &[&str] =
    &["limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"];

pub fn validate_variables(path: &str, variables: &[EnvVar]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, variable) in variables.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let name_path = format!("{path}.name");
        errors.extend(validate::required_name(&name_path, &variable.name, names::is_environment_variable_name));
        if let Some(source) = &variable.value_from {
            let has_value = variable.value.as_deref().is_some_and(|value| !value.is_empty());
            errors.extend(validate_source(&format!("{path}.valueFrom"), source, has_value));
        }
    }
    errors
}

fn validate_source(path: &str, source: &EnvVarSource, has_value: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut sources = 0;
    if let Some(field) = &source.field_ref {
        sources += 1;
        errors.extend(validate_field_reference(&format!("{path}.fieldRef"), field, VARIABLE_FIELDS));
    }
    if let Some(resource) = &source.resource_field_ref {
        sources += 1;
        errors.extend(validate_resource_reference(&format!("{path}.resourceFieldRef"), resource));
    }
    if let Some(key) = &source.config_map_key_ref {
        sources += 1;
        errors.extend(validate_key_reference(&format!("{path}.configMapKeyRef"), &key.name, &key.key));
    }
    if let Some(key) = &source.secret_key_ref {
        sources += 1;
        errors.extend(validate_key_reference(&format!("{path}.secretKeyRef"), &key.name, &key.key));
    }
    if source.file_key_ref.is_some() {
        sources += 1;
    }
    if sources == 0 {
        let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
        errors.push(FieldError::invalid(path, "", why));
    } else if has_value {
        errors.push(FieldError::invalid(path, "", "may not be specified when `value` is not empty"));
    } else if sources > 1 {
        errors.push(FieldError::invalid(path, "", "may not have more than one field specified at a time"));
    }
    errors
}

fn validate_key_reference(path: &str, name: &str, key: &str) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = validate::required(&format!("{path}.name"), name).into_iter().collect();
    errors.extend(validate::required_name(&format!("{path}.key"), key, names::is_config_map_key));
    errors
}

/// A `fieldRef`, whose path must be one of `supported` or name one label or annotation.
pub fn validate_field_reference(path: &str, field: &ObjectFieldSelector, supported: &[&str]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if field.api_version.as_deref().unwrap_or_default().is_empty() {
        errors.push(FieldError::required(format!("{path}.apiVersion"), ""));
        return errors;
    }
    let field_path = format!("{path}.fieldPath");
    if field.field_path.is_empty() {
        errors.push(FieldError::required(field_path, ""));
        return errors;
    }
    if let Some((parent, key)) = field.field_path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        match parent {
            "metadata.annotations" => {
                errors.extend(validate::checked(&field_path, key, |key| names::is_qualified_name(&key.to_lowercase())))
            }
            "metadata.labels" => errors.extend(validate::checked(&field_path, key, names::is_qualified_name)),
            other => errors.push(FieldError::invalid(&field_path, other, "does not support subscript")),
        }
        return errors;
    }
    let known = VARIABLE_FIELDS.contains(&field.field_path.as_str()) || FILE_FIELDS.contains(&field.field_path.as_str());
    if !known {
        let why = format!("error converting fieldPath: field label not supported: {}", field.field_path);
        errors.push(FieldError::invalid(field_path, field.field_path.clone(), why));
    } else if !supported.contains(&field.field_path.as_str()) {
        errors.push(FieldError::not_supported(field_path, field.field_path.clone(), supported));
    }
    errors
}

/// A `resourceFieldRef`.
pub fn validate_resource_reference(path: &str, resource: &ResourceFieldSelector) -> Vec<FieldError> {
    let resource_path = format!("{path}.resource");
    if resource.resource.is_empty() {
        return vec![FieldError::required(resource_path, "")];
    }
    let name = resource.resource.as_str();
    let huge_pages = name.starts_with("limits.hugepages-") || name.starts_with("requests.hugepages-");
    if !huge_pages && !CONTAINER_RESOURCES.contains(&name) {
        return vec![FieldError::not_supported(resource_path, name, CONTAINER_RESOURCES)];
    }
    let allowed: &[&str] = match name.rsplit('.').next().unwrap_or_default() {
        "cpu" => &["", "0", "1", "1m"],
        _ => &["", "0", "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"],
    };
    let divisor = resource.divisor.as_ref().map_or("", |divisor| divisor.0.as_str());
    if allowed.contains(&divisor) {
        return Vec::new();
    }
    let why = if allowed.len() == 4 {
        "only divisor's values 1m and 1 are supported with the cpu resource"
    } else {
        "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the resource"
    };
    vec![FieldError::invalid(format!("{path}.divisor"), json!(divisor), why)]
}

pub fn validate_sources(path: &str, sources: &[EnvFromSource]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if let Some(prefix) = source.prefix.as_deref().filter(|prefix| !prefix.is_empty()) {
            errors.extend(validate::checked(&format!("{path}.prefix"), prefix, names::is_environment_variable_name));
        }
        let config_map = source.config_map_ref.as_ref().map(|reference| ("configMapRef", &reference.name));
        let secret = source.secret_ref.as_ref().map(|reference| ("secretRef", &reference.name));
        for (field, name) in [config_map, secret].into_iter().flatten() {
            errors.extend(validate::required_name(&format!("{path}.{field}.name"), name, names::is_dns1123_subdomain));
        }
        match (config_map, secret) {
            (None, None) => errors.push(FieldError::invalid(&path, "", "must specify one of: `configMapRef` or `secretRef`")),
            (Some(_), Some(_)) => {
                errors.push(FieldError::invalid(&path, "", "may not have more than one field specified at a time"));
            }
            _ => {}
        }
    }
    errors
}
