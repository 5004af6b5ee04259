//! What ReplicationController, ReplicaSet and Deployment share: their template, columns and rules.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::PodTemplateSpec,
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use serde_json::{Value, json};

use super::{pod_template, table, validate};
use crate::{field::FieldError, registry::Column};

/// Defaults of a template of pods.
pub fn default_template(template: &mut PodTemplateSpec) {
    pod_template::default_spec(template.spec.get_or_insert_default());
    template.metadata.get_or_insert_default();
}

/// The columns of a kind that keeps a number of pods running.
pub fn replica_columns() -> Vec<Column> {
    let mut columns = vec![
        table::name_column(),
        table::column("Desired", "integer", "Pods that should run."),
        table::column("Current", "integer", "Pods that exist."),
        table::column("Ready", "integer", "Pods that are ready."),
        table::age_column(),
    ];
    columns.extend(template_columns());
    columns
}

/// The columns that tell what the template holds, and what is selected.
pub fn template_columns() -> [Column; 3] {
    [
        table::wide("Containers", "string", "Names of the template's containers."),
        table::wide("Images", "string", "Images of the template's containers."),
        table::wide("Selector", "string", "Labels of the pods that are counted."),
    ]
}

/// The cells of [`replica_columns`].
pub fn replica_row(
    metadata: &ObjectMeta,
    counts: [i32; 3],
    template: Option<&PodTemplateSpec>,
    selector: String,
    now: Timestamp,
) -> Vec<Value> {
    let [desired, current, ready] = counts;
    let mut cells =
        vec![json!(table::name(metadata)), json!(desired), json!(current), json!(ready), json!(table::age(metadata, now))];
    cells.extend(template_cells(template, selector));
    cells
}

/// The cells of [`template_columns`].
pub fn template_cells(template: Option<&PodTemplateSpec>, selector: String) -> [Value; 3] {
    let containers =
        template.and_then(|template| template.spec.as_ref()).map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let names: Vec<&str> = containers.iter().map(|container| container.name.as_str()).collect();
    let images: Vec<&str> = containers.iter().map(|container| container.image.as_deref().unwrap_or_default()).collect();
    [json!(names.join(",")), json!(images.join(",")), json!(selector)]
}

/// A selector that must be there, as a Deployment and a ReplicaSet need it.
pub fn validate_selector(selector: &LabelSelector) -> Vec<FieldError> {
    if validate::is_empty_selector(selector) {
        return vec![FieldError::required("spec.selector", "")];
    }
    validate::label_selector("spec.selector", selector)
}

/// A template, or the error that it is missing.
pub fn validate_template(template: Option<&PodTemplateSpec>, selector: &LabelSelector) -> Vec<FieldError> {
    match template {
        Some(template) => pod_template::validate_template("spec.template", template, selector),
        None => vec![FieldError::required("spec.template", "")],
    }
}

/// Counts in a status: none negative, and the parts not more than the whole.
pub fn validate_counts(replicas: i32, parts: &[(&str, i32)]) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = validate::non_negative(i64::from(replicas), "status.replicas").into_iter().collect();
    for (field, count) in parts {
        let path = format!("status.{field}");
        errors.extend(validate::non_negative(i64::from(*count), &path));
        if *count > replicas {
            errors.push(FieldError::invalid(path, *count, "cannot be greater than status.replicas"));
        }
    }
    errors
}

/// A number of pods or a share of them (`25%`).
pub fn validate_share(path: &str, share: &IntOrString) -> Vec<FieldError> {
    match share {
        IntOrString::Int(count) => validate::non_negative(i64::from(*count), path).into_iter().collect(),
        IntOrString::String(text) if percent(text).is_some() => Vec::new(),
        IntOrString::String(text) => {
            let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex \
                       used for validation is '[0-9]+%')";
            vec![FieldError::invalid(path, text.clone(), why)]
        }
    }
}

/// The number in `25%`.
pub fn percent(text: &str) -> Option<u32> {
    let digits = text.strip_suffix('%')?;
    (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().unwrap_or(u32::MAX))
}

/// Whether the share is of nothing: `0` or `0%`.
pub fn is_zero(share: &IntOrString) -> bool {
    match share {
        IntOrString::Int(count) => *count == 0,
        IntOrString::String(text) => percent(text) == Some(0),
    }
}
