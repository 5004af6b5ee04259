//! Namespace: a room for names. Its own finalizer holds it until its content is gone.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceSpec};
use serde_json::{Value, json};

use super::{
    table,
    typed::{Change, Kind, status_subresource},
    validate,
};
use crate::{
    field::FieldError,
    registry::{Column, Part, Scope, Subresource},
};

pub struct NamespaceKind;

/// The label that every namespace carries with its own name, for selectors.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// The finalizer that the namespace controller removes when the namespace is empty.
const FINALIZER: &str = "kubernetes";

/// The outcome of a request to the `finalize` subresource: `old` with the `spec.finalizers` of `new`.
pub fn finalize(new: &Value, old: &Value) -> Value {
    let mut result = old.clone();
    result["spec"] = match new.pointer("/spec/finalizers") {
        Some(finalizers) if finalizers.as_array().is_some_and(|items| !items.is_empty()) => json!({ "finalizers": finalizers }),
        _ => json!({}),
    };
    result
}

impl Kind for NamespaceKind {
    type Object = Namespace;

    const SHORT_NAMES: &'static [&'static str] = &["ns"];
    const SCOPE: Scope = Scope::Cluster;

    fn subresources() -> Vec<Subresource> {
        vec![
            Subresource {
                name: "finalize".into(),
                group: "".into(),
                version: "v1".into(),
                kind: "Namespace".into(),
                verbs: vec!["update".into()],
            },
            status_subresource::<Namespace>(),
        ]
    }

    fn columns() -> Vec<Column> {
        vec![
            table::name_column(),
            table::column("Status", "string", "Active, or Terminating while its content is removed."),
            table::age_column(),
        ]
    }

    fn default(object: &mut Namespace) {
        if let Some(name) = object.metadata.name.clone().filter(|name| !name.is_empty()) {
            object.metadata.labels.get_or_insert_default().insert(NAME_LABEL.to_owned(), name);
        }
    }

    fn prepare_create(object: &mut Namespace) {
        object.status = Some(k8s_openapi::api::core::v1::NamespaceStatus { phase: Some("Active".to_owned()), conditions: None });
        let finalizers = object.spec.get_or_insert_default().finalizers.get_or_insert_default();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
        }
    }

    fn prepare_update(new: &mut Namespace, old: &Namespace, part: Part) {
        if part == Part::Main {
            let finalizers = old.spec.as_ref().and_then(|spec| spec.finalizers.clone());
            new.spec = Some(NamespaceSpec { finalizers });
        }
    }

    fn validate(object: &Namespace) -> Vec<FieldError> {
        let finalizers = object.spec.as_ref().and_then(|spec| spec.finalizers.as_deref());
        finalizer_errors(finalizers.unwrap_or_default())
    }

    fn validate_update(change: &Change<Namespace>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if change.part == Part::Status {
            let phase = change.new.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
            let deleted = change.new.metadata.deletion_timestamp.is_some();
            if !deleted && phase != "Active" {
                errors.push(FieldError::invalid("status.Phase", phase, "may only be 'Active' if `deletionTimestamp` is empty"));
            }
            if deleted && phase != "Terminating" {
                errors.push(FieldError::invalid(
                    "status.Phase",
                    phase,
                    "may only be 'Terminating' if `deletionTimestamp` is not empty",
                ));
            }
        }
        errors
    }

    fn selectable_fields(object: &Namespace) -> Vec<(&'static str, String)> {
        vec![("status.phase", phase(object))]
    }

    fn row(object: &Namespace, now: Timestamp) -> Vec<Value> {
        vec![json!(table::name(&object.metadata)), json!(phase(object)), json!(table::age(&object.metadata, now))]
    }

    fn begin_deletion(object: &mut Value) {
        object["status"]["phase"] = json!("Terminating");
    }

    fn is_held(object: &Namespace) -> bool {
        object.spec.as_ref().and_then(|spec| spec.finalizers.as_ref()).is_some_and(|finalizers| !finalizers.is_empty())
    }
}

/// What is wrong with the finalizers of a namespace (`spec.finalizers`).
pub fn finalizer_errors(finalizers: &[String]) -> Vec<FieldError> {
    finalizers.iter().filter_map(|finalizer| validate::finalizer(finalizer, "spec.finalizers")).collect()
}

fn phase(object: &Namespace) -> String {
    object.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default()
}
