//! ServiceAccount: an identity for pods.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ServiceAccount;
use serde_json::{Value, json};

use super::{table, typed::Kind};
use crate::{field::FieldError, registry::Column};

pub struct ServiceAccountKind;

impl Kind for ServiceAccountKind {
    type Object = ServiceAccount;

    const SHORT_NAMES: &'static [&'static str] = &["sa"];

    fn columns() -> Vec<Column> {
        vec![
            table::name_column(),
            table::column("Secrets", "string", "Number of secrets that pods of the account may use."),
            table::age_column(),
        ]
    }

    fn validate(_object: &ServiceAccount) -> Vec<FieldError> {
        Vec::new()
    }

    fn row(object: &ServiceAccount, now: Timestamp) -> Vec<Value> {
        let secrets = object.secrets.as_ref().map_or(0, Vec::len);
        vec![json!(table::name(&object.metadata)), json!(secrets), json!(table::age(&object.metadata, now))]
    }
}
