//! ReplicationController: the older ReplicaSet, with a selector of plain labels.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ReplicationController, ReplicationControllerSpec, ReplicationControllerStatus},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
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

pub struct ReplicationControllerKind;

impl Kind for ReplicationControllerKind {
    type Object = ReplicationController;

    const SHORT_NAMES: &'static [&'static str] = &["rc"];
    const CATEGORIES: &'static [&'static str] = &["all"];
    const GENERATION: Generation = Generation::Spec;
    const QUANTITIES: Quantities = Quantities::Present;

    fn subresources() -> Vec<Subresource> {
        vec![scale_subresource(), status_subresource::<ReplicationController>()]
    }

    fn columns() -> Vec<Column> {
        workload::replica_columns()
    }

    fn default(object: &mut ReplicationController) {
        let spec = object.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        let Some(template) = spec.template.as_mut() else { return };
        workload::default_template(template);
        let labels = template.metadata.as_ref().and_then(|metadata| metadata.labels.clone()).filter(|labels| !labels.is_empty());
        if let Some(labels) = labels {
            if spec.selector.as_ref().is_none_or(|selector| selector.is_empty()) {
                spec.selector = Some(labels.clone());
            }
            if object.metadata.labels.as_ref().is_none_or(|own| own.is_empty()) {
                object.metadata.labels = Some(labels);
            }
        }
    }

    fn prepare_create(object: &mut ReplicationController) {
        object.status = Some(ReplicationControllerStatus::default());
    }

    fn validate(object: &ReplicationController) -> Vec<FieldError> {
        let empty = ReplicationControllerSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&empty);
        let mut errors = Vec::new();
        errors.extend(validate::non_negative(i64::from(spec.min_ready_seconds.unwrap_or(0)), "spec.minReadySeconds"));
        if spec.selector.as_ref().is_none_or(|selector| selector.is_empty()) {
            errors.push(FieldError::required("spec.selector", ""));
        }
        errors.extend(validate::non_negative(i64::from(spec.replicas.unwrap_or(0)), "spec.replicas"));
        let selector = LabelSelector { match_labels: spec.selector.clone(), match_expressions: None };
        errors.extend(workload::validate_template(spec.template.as_ref(), &selector));
        errors
    }

    fn validate_update(change: &Change<ReplicationController>) -> Vec<FieldError> {
        if change.part == Part::Main {
            return Self::validate(change.new);
        }
        let status = change.new.status.clone().unwrap_or_default();
        workload::validate_counts(
            status.replicas,
            &[
                ("fullyLabeledReplicas", status.fully_labeled_replicas.unwrap_or(0)),
                ("readyReplicas", status.ready_replicas.unwrap_or(0)),
                ("availableReplicas", status.available_replicas.unwrap_or(0)),
            ],
        )
    }

    fn selectable_fields(object: &ReplicationController) -> Vec<(&'static str, String)> {
        vec![("status.replicas", object.status.as_ref().map_or(0, |status| status.replicas).to_string())]
    }

    fn row(object: &ReplicationController, now: Timestamp) -> Vec<Value> {
        let spec = object.spec.clone().unwrap_or_default();
        let status = object.status.clone().unwrap_or_default();
        let counts = [spec.replicas.unwrap_or(0), status.replicas, status.ready_replicas.unwrap_or(0)];
        workload::replica_row(&object.metadata, counts, spec.template.as_ref(), table::labels(spec.selector.as_ref()), now)
    }
}
