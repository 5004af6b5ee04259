//! ControllerRevision: a state of a controller that it can go back to. Its data never changes.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ControllerRevision;
use serde_json::{Value, json};

use super::{
    table,
    typed::{Change, Kind},
    validate,
};
use crate::{field::FieldError, registry::Column};

pub struct ControllerRevisionKind;

impl Kind for ControllerRevisionKind {
    type Object = ControllerRevision;

    fn columns() -> Vec<Column> {
        vec![
            table::name_column(),
            table::column("Controller", "string", "The object that the revision is of."),
            table::column("Revision", "string", "Number of the revision."),
            table::age_column(),
        ]
    }

    fn validate(object: &ControllerRevision) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if object.data.is_none() {
            errors.push(FieldError::required("data", "data is mandatory"));
        }
        errors.extend(validate::non_negative(object.revision, "revision"));
        errors
    }

    fn validate_update(change: &Change<ControllerRevision>) -> Vec<FieldError> {
        let mut errors = Self::validate(change.new);
        let data = validate::json(&change.new.data);
        errors.extend(validate::unchanged(&change.new.data, &change.old.data, "data", data));
        errors
    }

    fn row(object: &ControllerRevision, now: Timestamp) -> Vec<Value> {
        let owners = object.metadata.owner_references.iter().flatten();
        let controller = owners.into_iter().find(|owner| owner.controller == Some(true)).map(|owner| {
            let kind = owner.kind.to_lowercase();
            match owner.api_version.split_once('/') {
                Some((group, _)) => format!("{kind}.{group}/{}", owner.name),
                None => format!("{kind}/{}", owner.name),
            }
        });
        vec![
            json!(table::name(&object.metadata)),
            json!(table::or_none(controller.as_deref())),
            json!(object.revision),
            json!(table::age(&object.metadata, now)),
        ]
    }
}
