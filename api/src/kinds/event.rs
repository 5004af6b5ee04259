//! Event: something that happened to an object. One stored kind (core) with a second view of it (`events.k8s.io`).

mod view;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use serde_json::{Value, json};

pub use self::view::EventViewKind;
use super::{
    table,
    typed::{Change, Kind},
};
use crate::{field::FieldError, registry::Column};

pub struct EventKind;

impl Kind for EventKind {
    type Object = Event;

    const SHORT_NAMES: &'static [&'static str] = &["ev"];
    const CREATED_BY_UPDATE: bool = true;

    fn columns() -> Vec<Column> {
        columns()
    }

    fn validate(object: &Event) -> Vec<FieldError> {
        let own = object.metadata.namespace.as_deref().unwrap_or_default();
        let involved = object.involved_object.namespace.as_deref().unwrap_or_default();
        // Events of objects without a namespace are kept in the default one.
        let matches = if involved.is_empty() { matches!(own, "" | "default") } else { involved == own };
        if matches {
            return Vec::new();
        }
        vec![FieldError::invalid("involvedObject.namespace", involved, "does not match event.namespace")]
    }

    fn validate_update(change: &Change<Event>) -> Vec<FieldError> {
        Self::validate(change.new)
    }

    fn selectable_fields(object: &Event) -> Vec<(&'static str, String)> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let involved = &object.involved_object;
        let component = object.source.as_ref().map(|source| text(&source.component)).filter(|name| !name.is_empty());
        vec![
            ("involvedObject.kind", text(&involved.kind)),
            ("involvedObject.namespace", text(&involved.namespace)),
            ("involvedObject.name", text(&involved.name)),
            ("involvedObject.uid", text(&involved.uid)),
            ("involvedObject.apiVersion", text(&involved.api_version)),
            ("involvedObject.resourceVersion", text(&involved.resource_version)),
            ("involvedObject.fieldPath", text(&involved.field_path)),
            ("reason", text(&object.reason)),
            ("reportingComponent", text(&object.reporting_component)),
            ("source", component.unwrap_or_else(|| text(&object.reporting_component))),
            ("type", text(&object.type_)),
        ]
    }

    fn row(object: &Event, now: Timestamp) -> Vec<Value> {
        row(object, now)
    }
}

fn columns() -> Vec<Column> {
    vec![
        table::column("Last Seen", "string", "Time since the event was last seen."),
        table::column("Type", "string", "Normal or Warning."),
        table::column("Reason", "string", "Short word for what happened."),
        table::column("Object", "string", "The object that the event is about."),
        table::wide("Subobject", "string", "The part of the object that the event is about."),
        table::wide("Source", "string", "Component that reported the event."),
        table::column("Message", "string", "What happened, for a person to read."),
        table::wide("First Seen", "string", "Time since the event was first seen."),
        table::wide("Count", "string", "How often the event was seen."),
        Column { priority: 1, ..table::name_column() },
    ]
}

/// The row of an event in its stored form.
fn row(event: &Event, now: Timestamp) -> Vec<Value> {
    let involved = &event.involved_object;
    let kind = involved.kind.clone().unwrap_or_default().to_lowercase();
    let target = match involved.name.as_deref() {
        Some(name) if !name.is_empty() => format!("{kind}/{name}"),
        _ => kind,
    };
    let happened = event.event_time.as_ref().map(|time| time.0);
    let first = event.first_timestamp.as_ref().map(|time| time.0).or(happened);
    let mut last = event.last_timestamp.as_ref().map(|time| time.0).or(first);
    let mut count = event.count.filter(|count| *count != 0).unwrap_or(1);
    if let Some(series) = &event.series {
        last = series.last_observed_time.as_ref().map(|time| time.0);
        count = series.count.unwrap_or(0);
    }
    let since =
        |time: Option<Timestamp>| time.map_or_else(|| table::UNKNOWN.to_owned(), |time| table::since_timestamp(time, now));
    vec![
        json!(since(last)),
        json!(event.type_.clone().unwrap_or_default()),
        json!(event.reason.clone().unwrap_or_default()),
        json!(target),
        json!(involved.field_path.clone().unwrap_or_default()),
        json!(source(event)),
        json!(event.message.as_deref().unwrap_or_default().trim()),
        json!(since(first)),
        json!(count),
        json!(table::name(&event.metadata)),
    ]
}

fn source(event: &Event) -> String {
    let pick =
        |old: Option<&String>, new: Option<&String>| old.filter(|text| !text.is_empty()).or(new).cloned().unwrap_or_default();
    let old = event.source.as_ref();
    let component = pick(old.and_then(|source| source.component.as_ref()), event.reporting_component.as_ref());
    let host = pick(old.and_then(|source| source.host.as_ref()), event.reporting_instance.as_ref());
    if host.is_empty() { component } else { format!("{component}, {host}") }
}
