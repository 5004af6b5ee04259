//! Checks that several kinds share, in the words of Kubernetes' own validation.

use serde_json::Value;

use crate::field::{FieldError, FieldErrorKind};

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

/// A key of a ConfigMap or Secret: a file name.
pub fn config_map_key(key: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if key.len() > 253 {
        errors.push("must be no more than 253 characters".to_owned());
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if key.is_empty() || !key.chars().all(allowed) {
        errors.push(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  \
             or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
                .to_owned(),
        );
    }
    match key {
        "." => errors.push("must not be '.'".to_owned()),
        ".." => errors.push("must not be '..'".to_owned()),
        _ if key.starts_with("..") => errors.push("must not start with '..'".to_owned()),
        _ => {}
    }
    errors
}

/// A finalizer is one of Kubernetes' own or has a domain.
pub fn finalizer(name: &str, path: &str) -> Option<FieldError> {
    let standard = matches!(name, "kubernetes" | "orphan" | "foregroundDeletion");
    (!standard && !name.contains('/'))
        .then(|| FieldError::invalid(path, name, "name is neither a standard finalizer name nor is it fully qualified"))
}
