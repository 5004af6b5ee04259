//! Secret: configuration that is not for every eye.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use serde_json::{Value, json};

use super::{
    table,
    typed::{Change, Kind},
    validate::{self, MAX_DATA_BYTES},
};
use crate::{
    field::FieldError,
    names,
    registry::{Column, Part},
};

pub struct SecretKind;

const OPAQUE: &str = "Opaque";
const REDACTED: &str = "<secret contents redacted>";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";

impl Kind for SecretKind {
    type Object = Secret;

    fn columns() -> Vec<Column> {
        vec![
            table::name_column(),
            table::column("Type", "string", "What the secret is for, and which keys it must have."),
            table::column("Data", "string", "Number of entries."),
            table::age_column(),
        ]
    }

    fn default(object: &mut Secret) {
        if let Some(texts) = object.string_data.take() {
            let data = object.data.get_or_insert_default();
            data.extend(texts.into_iter().map(|(key, text)| (key, ByteString(text.into_bytes()))));
        }
    }

    fn prepare_create(object: &mut Secret) {
        if object.type_.as_deref().is_none_or(str::is_empty) {
            object.type_ = Some(OPAQUE.to_owned());
        }
    }

    fn prepare_update(new: &mut Secret, old: &Secret, _part: Part) {
        if new.type_.as_deref().is_none_or(str::is_empty) {
            new.type_.clone_from(&old.type_);
        }
    }

    fn validate(object: &Secret) -> Vec<FieldError> {
        let empty = BTreeMap::new();
        let data = object.data.as_ref().unwrap_or(&empty);
        let mut errors: Vec<FieldError> =
            data.keys().flat_map(|key| validate::checked(&format!("data[{key}]"), key, names::is_config_map_key)).collect();
        if data.values().map(|bytes| bytes.0.len()).sum::<usize>() > MAX_DATA_BYTES {
            errors.push(validate::too_long("data", MAX_DATA_BYTES));
        }
        errors.extend(validate_type(object, data));
        errors
    }

    fn validate_update(change: &Change<Secret>) -> Vec<FieldError> {
        let (new, old) = (change.new, change.old);
        let mut errors: Vec<FieldError> =
            validate::unchanged(&new.type_, &old.type_, "type", new.type_.clone()).into_iter().collect();
        if old.immutable == Some(true) {
            errors.extend(validate::immutable_when_set(&[
                ("immutable", new.immutable != Some(true)),
                ("data", new.data != old.data),
            ]));
        }
        errors.extend(Self::validate(new));
        errors
    }

    fn selectable_fields(object: &Secret) -> Vec<(&'static str, String)> {
        vec![("type", object.type_.clone().unwrap_or_default())]
    }

    fn row(object: &Secret, now: Timestamp) -> Vec<Value> {
        vec![
            json!(table::name(&object.metadata)),
            json!(object.type_.clone().unwrap_or_default()),
            json!(object.data.as_ref().map_or(0, BTreeMap::len)),
            json!(table::age(&object.metadata, now)),
        ]
    }
}

/// What each of Kubernetes' own types of secret must hold.
fn validate_type(object: &Secret, data: &BTreeMap<String, ByteString>) -> Vec<FieldError> {
    let needs = |keys: &[&str]| -> Vec<FieldError> {
        let missing = keys.iter().filter(|key| !data.contains_key(**key));
        missing.map(|key| FieldError::required(format!("data[{key}]"), "")).collect()
    };
    let needs_json = |key: &str| match data.get(key) {
        None => needs(&[key]),
        Some(bytes) => match serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes.0) {
            Ok(_) => Vec::new(),
            Err(error) => vec![FieldError::invalid(format!("data[{key}]"), REDACTED, error.to_string())],
        },
    };
    match object.type_.as_deref().unwrap_or_default() {
        "kubernetes.io/service-account-token" => {
            let account = object.metadata.annotations.as_ref().and_then(|annotations| annotations.get(ACCOUNT_NAME));
            let missing = account.is_none_or(String::is_empty);
            missing.then(|| FieldError::required(format!("metadata.annotations[{ACCOUNT_NAME}]"), "")).into_iter().collect()
        }
        "kubernetes.io/dockercfg" => needs_json(".dockercfg"),
        "kubernetes.io/dockerconfigjson" => needs_json(".dockerconfigjson"),
        "kubernetes.io/basic-auth" if !data.contains_key("username") && !data.contains_key("password") => {
            needs(&["username", "password"])
        }
        "kubernetes.io/ssh-auth" => {
            if data.get("ssh-privatekey").is_none_or(|key| key.0.is_empty()) {
                vec![FieldError::required("data[ssh-privatekey]", "")]
            } else {
                Vec::new()
            }
        }
        "kubernetes.io/tls" => needs(&["tls.crt", "tls.key"]),
        _ => Vec::new(),
    }
}
