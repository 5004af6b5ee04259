//! What the server itself writes into `metadata`.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// RFC 3339 with whole seconds, as Kubernetes writes times.
pub fn time(timestamp: Timestamp) -> String {
    timestamp.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The metadata of an object; an empty map is put in its place when it is something else.
pub fn of(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    let metadata = &mut object["metadata"];
    if !metadata.is_object() {
        *metadata = json!({});
    }
    match metadata {
        Value::Object(fields) => fields,
        _ => unreachable!("it was made an object above"),
    }
}

pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|metadata| metadata.get(field)).and_then(Value::as_str).unwrap_or_default()
}

pub fn name(object: &Value) -> &str {
    text(object, "name")
}

pub fn finalizers(object: &Value) -> Vec<&str> {
    let list = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.map(|list| list.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

pub fn set_finalizers(object: &mut Value, finalizers: Vec<String>) {
    let metadata = of(object);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".to_owned(), json!(finalizers));
    }
}

pub fn is_being_deleted(object: &Value) -> bool {
    !text(object, "deletionTimestamp").is_empty()
}

pub fn deletion_grace_seconds(object: &Value) -> Option<i64> {
    object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64)
}

/// Fills in a new object's metadata and drops what a client may not set.
pub fn fill_new(object: &mut Value, namespace: Option<&str>, name: &str, uid: Uuid, now: Timestamp) {
    let metadata = of(object);
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion", "managedFields"] {
        metadata.remove(field);
    }
    metadata.insert("name".to_owned(), json!(name));
    match namespace {
        Some(namespace) => metadata.insert("namespace".to_owned(), json!(namespace)),
        None => metadata.remove("namespace"),
    };
    metadata.insert("uid".to_owned(), json!(uid.to_string()));
    metadata.insert("creationTimestamp".to_owned(), json!(time(now)));
}

/// Carries over from the old object what an update may not change, and what it may leave out.
pub fn carry_over(new: &mut Value, old: &Value) {
    let empty = Map::new();
    let old = old.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    let metadata = of(new);
    for field in ["selfLink", "managedFields"] {
        metadata.remove(field);
    }
    // A client can neither begin nor undo a deletion by an update.
    for field in
        ["deletionTimestamp", "deletionGracePeriodSeconds", "creationTimestamp", "generation", "resourceVersion", "generateName"]
    {
        match old.get(field) {
            Some(value) => metadata.insert(field.to_owned(), value.clone()),
            None => metadata.remove(field),
        };
    }
    // What a client leaves out stays; another value is refused by validation.
    for field in ["uid", "name", "namespace"] {
        let is_missing = metadata.get(field).is_none_or(|value| value.is_null() || value == "");
        if let Some(value) = old.get(field).filter(|_| is_missing) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
}

/// Marks an object as being deleted, `grace_seconds` from now.
pub fn mark_deleted(object: &mut Value, now: Timestamp, grace_seconds: i64) {
    let grace_seconds = grace_seconds.max(0);
    let at = now.checked_add(SignedDuration::from_secs(grace_seconds)).unwrap_or(Timestamp::MAX);
    let metadata = of(object);
    metadata.insert("deletionTimestamp".to_owned(), json!(time(at)));
    metadata.insert("deletionGracePeriodSeconds".to_owned(), json!(grace_seconds));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_cannot_change_the_servers_fields() {
        let old =
            json!({ "metadata": { "name": "a", "uid": "1", "creationTimestamp": "t", "generation": 3, "resourceVersion": "9" } });
        let mut new = json!({ "metadata": {
            "labels": { "x": "y" }, "uid": "", "creationTimestamp": null, "generation": 99, "deletionTimestamp": "z", "managedFields": [],
        } });
        carry_over(&mut new, &old);
        let expected = json!({ "metadata": {
            "name": "a", "uid": "1", "creationTimestamp": "t", "generation": 3, "resourceVersion": "9", "labels": { "x": "y" },
        } });
        assert_eq!(new, expected);
    }

    #[test]
    fn metadata_of_the_wrong_shape_is_replaced() {
        let mut object = json!({ "metadata": "x" });
        fill_new(&mut object, Some("n"), "a", Uuid::nil(), Timestamp::UNIX_EPOCH);
        assert_eq!(object["metadata"]["namespace"], "n");
        assert_eq!(object["metadata"]["creationTimestamp"], "1970-01-01T00:00:00Z");
    }
}
