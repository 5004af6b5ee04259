//! Checks that several kinds share, in the words of Kubernetes' own validation.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString};
use serde_json::Value;

use crate::{
    field::{FieldError, FieldErrorKind},
    names,
};

/// The most that the data of one ConfigMap or Secret may hold, in bytes.
pub const MAX_DATA_BYTES: usize = 1024 * 1024;

pub fn too_long(path: impl Into<String>, limit: usize) -> FieldError {
    FieldError {
        kind: FieldErrorKind::TooLong,
        path: path.into(),
        value: None,
        detail: format!("may not be more than {limit} bytes"),
    }
}

pub fn too_many(path: &str, count: usize, limit: usize) -> FieldError {
    FieldError {
        kind: FieldErrorKind::TooMany,
        path: path.to_owned(),
        value: Some(Value::from(count)),
        detail: format!("must have at most {limit} items"),
    }
}

/// For each field and whether it changed in an object whose `immutable` is set.
pub fn immutable_when_set(changed: &[(&str, bool)]) -> Vec<FieldError> {
    changed
        .iter()
        .filter(|(_, changed)| *changed)
        .map(|(path, _)| FieldError::forbidden(*path, "field is immutable when `immutable` is set"))
        .collect()
}

/// One error when a field that never changes did.
pub fn unchanged<T: PartialEq>(new: &T, old: &T, path: &str, value: impl Into<Value>) -> Option<FieldError> {
    (new != old).then(|| FieldError::invalid(path, value, "field is immutable"))
}

/// A value that may be zero, not less.
pub fn non_negative(value: i64, path: &str) -> Option<FieldError> {
    (value < 0).then(|| FieldError::invalid(path, value, "must be greater than or equal to 0"))
}

/// Every message of a name check as an error of the field.
pub fn checked(path: &str, value: &str, check: fn(&str) -> Vec<String>) -> Vec<FieldError> {
    check(value).into_iter().map(|why| FieldError::invalid(path, value, why)).collect()
}

/// A field that must be there, and must pass a name check.
pub fn required_name(path: &str, value: &str, check: fn(&str) -> Vec<String>) -> Vec<FieldError> {
    if value.is_empty() { vec![FieldError::required(path, "")] } else { checked(path, value, check) }
}

/// A field that must hold something.
pub fn required(path: &str, value: &str) -> Option<FieldError> {
    value.is_empty().then(|| FieldError::required(path, ""))
}

/// A field with a closed set of values, which must be sorted as Kubernetes sorts them. Defaults have been filled in, so
/// that an empty value is a missing one.
pub fn one_of(path: &str, value: Option<&str>, supported: &[&str]) -> Option<FieldError> {
    match value.unwrap_or_default() {
        "" => Some(FieldError::required(path, "")),
        value => one_of_given(path, Some(value), supported),
    }
}

/// The same for a field that may be absent.
pub fn one_of_given(path: &str, value: Option<&str>, supported: &[&str]) -> Option<FieldError> {
    let value = value.filter(|value| !value.is_empty())?;
    (!supported.contains(&value)).then(|| FieldError::not_supported(path, value, supported))
}

pub fn port_number(path: &str, port: i32) -> Vec<FieldError> {
    names::is_port_number(i64::from(port)).into_iter().map(|why| FieldError::invalid(path, port, why)).collect()
}

/// A port by number or by the name of a container's port.
pub fn port_or_name(path: &str, port: &IntOrString) -> Vec<FieldError> {
    match port {
        IntOrString::Int(number) => port_number(path, *number),
        IntOrString::String(name) => checked(path, name, names::is_port_name),
    }
}

pub fn labels(path: &str, labels: Option<&BTreeMap<String, String>>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels.into_iter().flatten() {
        errors.extend(checked(path, key, names::is_qualified_name));
        errors.extend(checked(path, value, names::is_label_value));
    }
    errors
}

/// A label selector, without asking whether it selects anything.
pub fn label_selector(path: &str, selector: &LabelSelector) -> Vec<FieldError> {
    let mut errors = labels(&format!("{path}.matchLabels"), selector.match_labels.as_ref());
    for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        let values = expression.values.as_deref().unwrap_or_default();
        match expression.operator.as_str() {
            "In" | "NotIn" => {
                if values.is_empty() {
                    let why = "must be specified when `operator` is 'In' or 'NotIn'";
                    errors.push(FieldError::required(format!("{path}.values"), why));
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.push(FieldError::forbidden(format!("{path}.values"), why));
                }
            }
            other => {
                errors.push(FieldError::invalid(format!("{path}.operator"), other, "not a valid selector operator"));
            }
        }
        errors.extend(checked(&format!("{path}.key"), &expression.key, names::is_qualified_name));
        for (index, value) in values.iter().enumerate() {
            errors.extend(checked(&format!("{path}.values[{index}]"), value, names::is_label_value));
        }
    }
    errors
}

/// Whether a label selector selects these labels. An invalid one selects nothing.
pub fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    crate::selector::LabelSelector::from_json(&json(selector)).is_ok_and(|selector| selector.matches(labels))
}

/// Whether a label selector names nothing: it then selects everything.
pub fn is_empty_selector(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty) && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// The value of an error: any typed object as JSON.
pub fn json<T: serde::Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// A finalizer is one of Kubernetes' own or has a domain.
pub fn finalizer(name: &str, path: &str) -> Option<FieldError> {
    let standard = matches!(name, "kubernetes" | "orphan" | "foregroundDeletion");
    (!standard && !name.contains('/'))
        .then(|| FieldError::invalid(path, name, "name is neither a standard finalizer name nor is it fully qualified"))
}
