//! Deployment: replaces the pods of an application step by step.

use jiff::Timestamp;
use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, DeploymentStrategy, RollingUpdateDeployment},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::{Value, json};

use super::{
    table,
    typed::{Change, Generation, Kind, Quantities, scale_subresource, status_subresource},
    validate,
    workload::{self, is_zero, percent},
};
use crate::{
    field::FieldError,
    registry::{Column, Part, Subresource},
};

pub struct DeploymentKind;

impl Kind for DeploymentKind {
    type Object = Deployment;

    const SHORT_NAMES: &'static [&'static str] = &["deploy"];
    const CATEGORIES: &'static [&'static str] = &["all"];
    const GENERATION: Generation = Generation::SpecAndAnnotations;
    const QUANTITIES: Quantities = Quantities::Present;

    fn subresources() -> Vec<Subresource> {
        vec![scale_subresource(), status_subresource::<Deployment>()]
    }

    fn columns() -> Vec<Column> {
        let mut columns = vec![
            table::name_column(),
            table::column("Ready", "string", "Pods that are ready, of those that should run."),
            table::column("Up-to-date", "string", "Pods made from the newest template."),
            table::column("Available", "string", "Pods that have been ready for long enough."),
            table::age_column(),
        ];
        columns.extend(workload::template_columns());
        columns
    }

    fn default(object: &mut Deployment) {
        let spec = object.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        spec.revision_history_limit.get_or_insert(10);
        spec.progress_deadline_seconds.get_or_insert(600);
        let strategy = spec.strategy.get_or_insert_default();
        if strategy.type_.as_deref().is_none_or(str::is_empty) {
            strategy.type_ = Some("RollingUpdate".to_owned());
        }
        if strategy.type_.as_deref() == Some("RollingUpdate") {
            let quarter = || IntOrString::String("25%".to_owned());
            let rolling = strategy.rolling_update.get_or_insert_default();
            rolling.max_unavailable.get_or_insert_with(quarter);
            rolling.max_surge.get_or_insert_with(quarter);
        }
        workload::default_template(&mut spec.template);
    }

    fn prepare_create(object: &mut Deployment) {
        object.status = Some(DeploymentStatus::default());
    }

    fn prepare_update(new: &mut Deployment, old: &Deployment, part: Part) {
        if part == Part::Status {
            new.metadata.labels.clone_from(&old.metadata.labels);
        }
    }

    fn validate(object: &Deployment) -> Vec<FieldError> {
        let empty = DeploymentSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&empty);
        let mut errors = Vec::new();
        errors.extend(validate::non_negative(i64::from(spec.replicas.unwrap_or(0)), "spec.replicas"));
        errors.extend(workload::validate_selector(&spec.selector));
        errors.extend(workload::validate_template(Some(&spec.template), &spec.selector));
        errors.extend(validate_strategy("spec.strategy", &spec.strategy.clone().unwrap_or_default()));
        let min_ready = spec.min_ready_seconds.unwrap_or(0);
        errors.extend(validate::non_negative(i64::from(min_ready), "spec.minReadySeconds"));
        if let Some(limit) = spec.revision_history_limit {
            errors.extend(validate::non_negative(i64::from(limit), "spec.revisionHistoryLimit"));
        }
        if let Some(deadline) = spec.progress_deadline_seconds {
            let path = "spec.progressDeadlineSeconds";
            errors.extend(validate::non_negative(i64::from(deadline), path));
            if deadline <= min_ready {
                errors.push(FieldError::invalid(path, deadline, "must be greater than minReadySeconds"));
            }
        }
        errors
    }

    fn validate_update(change: &Change<Deployment>) -> Vec<FieldError> {
        if change.part == Part::Status {
            return validate_status(change);
        }
        let selector = |object: &Deployment| object.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
        let (new, old) = (selector(change.new), selector(change.old));
        let mut errors = Self::validate(change.new);
        errors.extend(validate::unchanged(&new, &old, "spec.selector", validate::json(&new)));
        errors
    }

    fn row(object: &Deployment, now: Timestamp) -> Vec<Value> {
        let spec = object.spec.clone().unwrap_or_default();
        let status = object.status.clone().unwrap_or_default();
        let ready = format!("{}/{}", status.ready_replicas.unwrap_or(0), spec.replicas.unwrap_or(0));
        let mut cells = vec![
            json!(table::name(&object.metadata)),
            json!(ready),
            json!(status.updated_replicas.unwrap_or(0)),
            json!(status.available_replicas.unwrap_or(0)),
            json!(table::age(&object.metadata, now)),
        ];
        cells.extend(workload::template_cells(Some(&spec.template), table::selector(&spec.selector)));
        cells
    }
}

fn validate_strategy(path: &str, strategy: &DeploymentStrategy) -> Vec<FieldError> {
    let rolling_path = format!("{path}.rollingUpdate");
    match (strategy.type_.as_deref().unwrap_or_default(), &strategy.rolling_update) {
        ("Recreate", Some(_)) => {
            vec![FieldError::forbidden(rolling_path, "may not be specified when strategy `type` is 'Recreate'")]
        }
        ("Recreate", None) => Vec::new(),
        ("RollingUpdate", Some(rolling)) => validate_rolling_update(&rolling_path, rolling),
        ("RollingUpdate", None) => vec![FieldError::required(rolling_path, "this should be defaulted and never be nil")],
        (other, _) => vec![FieldError::not_supported(format!("{path}.type"), other, &["Recreate", "RollingUpdate"])],
    }
}

fn validate_rolling_update(path: &str, rolling: &RollingUpdateDeployment) -> Vec<FieldError> {
    let zero = IntOrString::Int(0);
    let unavailable = rolling.max_unavailable.as_ref().unwrap_or(&zero);
    let surge = rolling.max_surge.as_ref().unwrap_or(&zero);
    let unavailable_path = format!("{path}.maxUnavailable");
    let mut errors = workload::validate_share(&unavailable_path, unavailable);
    errors.extend(workload::validate_share(&format!("{path}.maxSurge"), surge));
    if is_zero(unavailable) && is_zero(surge) {
        let why = "may not be 0 when `maxSurge` is 0";
        errors.push(FieldError::invalid(&unavailable_path, validate::json(unavailable), why));
    }
    if let IntOrString::String(text) = unavailable
        && percent(text).is_some_and(|percent| percent > 100)
    {
        errors.push(FieldError::invalid(&unavailable_path, text.clone(), "must not be greater than 100%"));
    }
    errors
}

fn validate_status(change: &Change<Deployment>) -> Vec<FieldError> {
    let new = change.new.status.clone().unwrap_or_default();
    let old = change.old.status.clone().unwrap_or_default();
    let mut errors = workload::validate_counts(
        new.replicas.unwrap_or(0),
        &[
            ("updatedReplicas", new.updated_replicas.unwrap_or(0)),
            ("readyReplicas", new.ready_replicas.unwrap_or(0)),
            ("availableReplicas", new.available_replicas.unwrap_or(0)),
        ],
    );
    let (ready, available) = (new.ready_replicas.unwrap_or(0), new.available_replicas.unwrap_or(0));
    if available > ready {
        errors.push(FieldError::invalid("status.availableReplicas", available, "cannot be greater than readyReplicas"));
    }
    if new.collision_count.unwrap_or(0) < old.collision_count.unwrap_or(0) {
        errors.push(FieldError::invalid("status.collisionCount", new.collision_count, "cannot be decremented"));
    }
    errors
}
