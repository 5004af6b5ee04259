//! Lease: who holds something, and until when (`coordination.k8s.io/v1`).

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use serde_json::{Value, json};

use super::{table, typed::Kind, validate};
use crate::{field::FieldError, names, registry::Column};

pub struct LeaseKind;

impl Kind for LeaseKind {
    type Object = Lease;

    const CREATED_BY_UPDATE: bool = true;

    fn columns() -> Vec<Column> {
        vec![table::name_column(), table::column("Holder", "string", "Identity of the holder of the lease."), table::age_column()]
    }

    fn default(object: &mut Lease) {
        object.spec.get_or_insert_default();
    }

    fn validate(object: &Lease) -> Vec<FieldError> {
        let empty = LeaseSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&empty);
        let mut errors = Vec::new();
        if let Some(seconds) = spec.lease_duration_seconds.filter(|seconds| *seconds <= 0) {
            errors.push(FieldError::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
        }
        errors.extend(validate::non_negative(i64::from(spec.lease_transitions.unwrap_or(0)), "spec.leaseTransitions"));
        if let Some(strategy) = spec.strategy.as_deref() {
            errors.extend(validate::checked("spec.strategy", strategy, names::is_qualified_name));
        }
        if spec.preferred_holder.as_deref().is_some_and(|holder| !holder.is_empty()) && spec.strategy.is_none() {
            let why = "may only be specified if `strategy` is defined";
            errors.push(FieldError::forbidden("spec.preferredHolder", why));
        }
        errors
    }

    fn row(object: &Lease, now: Timestamp) -> Vec<Value> {
        let holder = object.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
        vec![json!(table::name(&object.metadata)), json!(holder), json!(table::age(&object.metadata, now))]
    }
}
