//! ReplicaSet: keeps a number of equal pods running.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec, ReplicaSetStatus};
use serde_json::Value;

use super::{
    table,
    typed::{Change, Generation, Kind, Quantities, scale_subresource, status_subresource},
    validate, workload,
};
use crate::{
    field::FieldError,
    registry::{Column, Part, Subresource},
};

pub struct ReplicaSetKind;

impl Kind for ReplicaSetKind {
    type Object = ReplicaSet;

    const SHORT_NAMES: &'static [&'static str] = &["rs"];
    const CATEGORIES: &'static [&'static str] = &["all"];
    const GENERATION: Generation = Generation::Spec;
    const QUANTITIES: Quantities = Quantities::Present;

    fn subresources() -> Vec<Subresource> {
        vec![scale_subresource(), status_subresource::<ReplicaSet>()]
    }

    fn columns() -> Vec<Column> {
        workload::replica_columns()
    }

    fn default(object: &mut ReplicaSet) {
        let spec = object.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        workload::default_template(spec.template.get_or_insert_default());
    }

    fn prepare_create(object: &mut ReplicaSet) {
        object.status = Some(ReplicaSetStatus::default());
    }

    fn validate(object: &ReplicaSet) -> Vec<FieldError> {
        let empty = ReplicaSetSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&empty);
        let mut errors = Vec::new();
        errors.extend(validate::non_negative(i64::from(spec.replicas.unwrap_or(0)), "spec.replicas"));
        errors.extend(validate::non_negative(i64::from(spec.min_ready_seconds.unwrap_or(0)), "spec.minReadySeconds"));
        errors.extend(workload::validate_selector(&spec.selector));
        errors.extend(workload::validate_template(spec.template.as_ref(), &spec.selector));
        errors
    }

    fn validate_update(change: &Change<ReplicaSet>) -> Vec<FieldError> {
        if change.part == Part::Status {
            let status = change.new.status.clone().unwrap_or_default();
            return workload::validate_counts(
                status.replicas,
                &[
                    ("fullyLabeledReplicas", status.fully_labeled_replicas.unwrap_or(0)),
                    ("readyReplicas", status.ready_replicas.unwrap_or(0)),
                    ("availableReplicas", status.available_replicas.unwrap_or(0)),
                ],
            );
        }
        let selector = |object: &ReplicaSet| object.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
        let (new, old) = (selector(change.new), selector(change.old));
        let mut errors = Self::validate(change.new);
        errors.extend(validate::unchanged(&new, &old, "spec.selector", validate::json(&new)));
        errors
    }

    fn selectable_fields(object: &ReplicaSet) -> Vec<(&'static str, String)> {
        vec![("status.replicas", object.status.as_ref().map_or(0, |status| status.replicas).to_string())]
    }

    fn row(object: &ReplicaSet, now: Timestamp) -> Vec<Value> {
        let spec = object.spec.clone().unwrap_or_default();
        let status = object.status.clone().unwrap_or_default();
        let counts = [spec.replicas.unwrap_or(0), status.replicas, status.ready_replicas.unwrap_or(0)];
        workload::replica_row(&object.metadata, counts, spec.template.as_ref(), table::selector(&spec.selector), now)
    }
}
