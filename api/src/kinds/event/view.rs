//! Events as `events.k8s.io/v1` shows them: the same objects with other names for some fields.

use jiff::Timestamp;
use k8s_openapi::api::{core::v1::Event as StoredEvent, events::v1::Event};
use serde_json::{Map, Value, json};

use crate::{
    field::FieldError,
    kinds::{
        event,
        typed::{Change, Kind},
    },
    names,
    registry::{Column, StoredAs},
};

pub struct EventViewKind;

/// Names of a field in this view and in the stored form.
const RENAMED: &[(&str, &str)] = &[
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

/// The same for what field selectors name (`AddFieldLabelConversionsForEvent`).
const SELECTABLE: &[(&str, &str)] = &[
    ("regarding.kind", "involvedObject.kind"),
    ("regarding.namespace", "involvedObject.namespace"),
    ("regarding.name", "involvedObject.name"),
    ("regarding.uid", "involvedObject.uid"),
    ("regarding.apiVersion", "involvedObject.apiVersion"),
    ("regarding.resourceVersion", "involvedObject.resourceVersion"),
    ("regarding.fieldPath", "involvedObject.fieldPath"),
    ("reportingController", "reportingComponent"),
];

fn to_stored(mut view: Value) -> Value {
    if let Some(fields) = view.as_object_mut() {
        rename(fields, |(view, stored)| (view, stored));
        fields.insert("apiVersion".to_owned(), json!("v1"));
        fields.entry("involvedObject").or_insert_with(|| json!({}));
    }
    view
}

fn from_stored(mut stored: Value) -> Value {
    if let Some(fields) = stored.as_object_mut() {
        rename(fields, |(view, stored)| (stored, view));
        fields.insert("apiVersion".to_owned(), json!("events.k8s.io/v1"));
        // The new form's time is always there; old events have none.
        fields.entry("eventTime").or_insert(Value::Null);
    }
    stored
}

fn rename(fields: &mut Map<String, Value>, direction: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str)) {
    for &pair in RENAMED {
        let (from, to) = direction(pair);
        if let Some(value) = fields.remove(from) {
            fields.insert(to.to_owned(), value);
        }
    }
}

impl Kind for EventViewKind {
    type Object = Event;

    const SHORT_NAMES: &'static [&'static str] = &["ev"];
    const CREATED_BY_UPDATE: bool = true;

    fn columns() -> Vec<Column> {
        event::columns()
    }

    fn validate(object: &Event) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if object.event_time.is_none() {
            errors.push(FieldError::required("eventTime", ""));
        }
        let controller = object.reporting_controller.as_deref().unwrap_or_default();
        if controller.is_empty() {
            errors.push(FieldError::required("reportingController", ""));
        } else {
            let why = names::is_qualified_name(controller);
            errors.extend(why.into_iter().map(|why| FieldError::invalid("reportingController", controller, why)));
        }
        for (field, value, limit) in [
            ("reportingInstance", &object.reporting_instance, 128),
            ("action", &object.action, 128),
            ("reason", &object.reason, 128),
        ] {
            let value = value.as_deref().unwrap_or_default();
            if value.is_empty() {
                errors.push(FieldError::required(field, ""));
            } else if value.len() > limit {
                errors.push(FieldError::invalid(field, "", format!("can have at most {limit} characters")));
            }
        }
        let event_type = object.type_.as_deref().unwrap_or_default();
        if !matches!(event_type, "Normal" | "Warning") {
            errors.push(FieldError::invalid("type", "", format!("has invalid value: {event_type}")));
        }
        if object.note.as_ref().is_some_and(|note| note.len() > 1024) {
            errors.push(FieldError::invalid("message", "", "can have at most 1024 characters"));
        }
        errors
    }

    fn validate_update(change: &Change<Event>) -> Vec<FieldError> {
        let (new, old) = (change.new, change.old);
        let fixed = [
            ("involvedObject", new.regarding != old.regarding),
            ("reason", new.reason != old.reason),
            ("message", new.note != old.note),
            ("type", new.type_ != old.type_),
            ("eventTime", new.event_time != old.event_time),
            ("action", new.action != old.action),
            ("related", new.related != old.related),
            ("reportingController", new.reporting_controller != old.reporting_controller),
            ("reportingInstance", new.reporting_instance != old.reporting_instance),
        ];
        let changed = fixed.into_iter().filter(|(_, changed)| *changed);
        changed.map(|(field, _)| FieldError::invalid(field, "", "field is immutable")).collect()
    }

    fn selectable_fields(object: &Event) -> Vec<(&'static str, String)> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let regarding = object.regarding.clone().unwrap_or_default();
        vec![
            ("regarding.kind", text(&regarding.kind)),
            ("regarding.namespace", text(&regarding.namespace)),
            ("regarding.name", text(&regarding.name)),
            ("regarding.uid", text(&regarding.uid)),
            ("regarding.apiVersion", text(&regarding.api_version)),
            ("regarding.resourceVersion", text(&regarding.resource_version)),
            ("regarding.fieldPath", text(&regarding.field_path)),
            ("reason", text(&object.reason)),
            ("reportingController", text(&object.reporting_controller)),
            ("type", text(&object.type_)),
        ]
    }

    fn row(object: &Event, now: Timestamp) -> Vec<Value> {
        let stored = serde_json::to_value(object).map(to_stored).and_then(serde_json::from_value::<StoredEvent>);
        event::row(&stored.unwrap_or_default(), now)
    }

    fn stored_as() -> Option<StoredAs> {
        Some(StoredAs { group: "", version: "v1", plural: "events", to_stored, from_stored, selectable: SELECTABLE })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_inverse() {
        let stored = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": { "name": "a" }, "message": "m", "count": 2, "eventTime": null,
            "involvedObject": { "kind": "Pod", "name": "p" }, "reportingComponent": "c", "source": { "component": "c" }
        });
        let view = from_stored(stored.clone());
        assert_eq!(view["note"], "m");
        assert_eq!(view["regarding"]["name"], "p");
        assert_eq!(view["deprecatedCount"], 2);
        assert_eq!(to_stored(view), stored);
    }
}
