//! ConfigMap: configuration as files and variables of pods.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::ConfigMap};
use serde_json::{Value, json};

use super::{
    table,
    typed::{Change, Kind},
    validate::{self, MAX_DATA_BYTES},
};
use crate::{field::FieldError, names, registry::Column};

pub struct ConfigMapKind;

impl Kind for ConfigMapKind {
    type Object = ConfigMap;

    const SHORT_NAMES: &'static [&'static str] = &["cm"];

    fn columns() -> Vec<Column> {
        vec![
            table::name_column(),
            table::column("Data", "string", "Number of entries in data and binaryData."),
            table::age_column(),
        ]
    }

    fn validate(object: &ConfigMap) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let empty_text = BTreeMap::new();
        let empty_bytes = BTreeMap::new();
        let text = object.data.as_ref().unwrap_or(&empty_text);
        let bytes: &BTreeMap<String, ByteString> = object.binary_data.as_ref().unwrap_or(&empty_bytes);
        for key in text.keys() {
            let path = format!("data[{key}]");
            errors.extend(validate::checked(&path, key, names::is_config_map_key));
            if bytes.contains_key(key) {
                errors.push(FieldError::invalid(&path, key.clone(), "duplicate of key present in binaryData"));
            }
        }
        for key in bytes.keys() {
            let path = format!("binaryData[{key}]");
            errors.extend(validate::checked(&path, key, names::is_config_map_key));
        }
        let size: usize = text.values().map(String::len).sum::<usize>() + bytes.values().map(|data| data.0.len()).sum::<usize>();
        if size > MAX_DATA_BYTES {
            errors.push(validate::too_long("[]", MAX_DATA_BYTES));
        }
        errors
    }

    fn validate_update(change: &Change<ConfigMap>) -> Vec<FieldError> {
        let (new, old) = (change.new, change.old);
        let mut errors = Vec::new();
        if old.immutable == Some(true) {
            let changed = [
                ("immutable", new.immutable != Some(true)),
                ("data", new.data != old.data),
                ("binaryData", new.binary_data != old.binary_data),
            ];
            errors.extend(validate::immutable_when_set(&changed));
        }
        errors.extend(Self::validate(new));
        errors
    }

    fn row(object: &ConfigMap, now: Timestamp) -> Vec<Value> {
        let entries = object.data.as_ref().map_or(0, BTreeMap::len) + object.binary_data.as_ref().map_or(0, BTreeMap::len);
        vec![json!(table::name(&object.metadata)), json!(entries), json!(table::age(&object.metadata, now))]
    }
}
