//! ConfigMap, Namespace and the other kinds without much inside.

use serde_json::json;

use super::{create, created, errors, table, update, with_resource};
use crate::registry::Part;

#[test]
fn config_map_is_stored_as_it_came() {
    let stored = created("", "configmaps", "metadata: {name: a, labels: {}}\ndata: {k: v}\nunknown: 1");
    assert_eq!(
        stored,
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": { "k": "v" } })
    );
}

#[test]
fn config_map_errors() {
    let cases = [
        (
            "data: {'a b': x}",
            "data[a b]: Invalid value: \"a b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. \
             'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
        ),
        ("data: {a: x}\nbinaryData: {a: eA==}", "data[a]: Invalid value: \"a\": duplicate of key present in binaryData"),
        (
            "data: [1]",
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal array into Go struct field \
             ConfigMap.data of type map[string]string",
        ),
        (
            "data: {a: 1}",
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field \
             ConfigMap.data of type string",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(errors(create("", "configmaps", &format!("metadata: {{name: a}}\n{text}"))), expected, "{text}");
    }
}

#[test]
fn immutable_config_map_stays() {
    let old = created("", "configmaps", "metadata: {name: a}\ndata: {k: v}\nimmutable: true");
    let mut new = old.clone();
    new["data"]["k"] = json!("w");
    new["immutable"] = json!(false);
    assert_eq!(
        errors(update("", "configmaps", new, &old, Part::Main)),
        "immutable: Forbidden: field is immutable when `immutable` is set\ndata: Forbidden: field is immutable when `immutable` is set"
    );
}

#[test]
fn namespace_lives_and_ends() {
    let stored = created("", "namespaces", "metadata: {name: a, creationTimestamp: '2026-01-01T00:00:00Z'}");
    assert_eq!(stored["spec"], json!({ "finalizers": ["kubernetes"] }));
    assert_eq!(stored["status"], json!({ "phase": "Active" }));
    assert_eq!(stored["metadata"]["labels"], json!({ "kubernetes.io/metadata.name": "a" }));

    let mut changed = stored.clone();
    changed["spec"] = json!({});
    changed["status"]["phase"] = json!("Terminating");
    assert_eq!(update("", "namespaces", changed, &stored, Part::Main).unwrap(), stored, "neither spec nor status is a client's");

    with_resource("", "namespaces", |resource| {
        let mut ending = stored.clone();
        assert!(resource.behaviour.is_held(&ending));
        resource.behaviour.begin_deletion(&mut ending);
        assert_eq!(ending["status"]["phase"], "Terminating");
        let mut asked = ending.clone();
        asked["spec"]["finalizers"] = json!([]);
        let finalized = super::super::namespace::finalize(&asked, &ending);
        assert!(!resource.behaviour.is_held(&finalized));
    });
    assert_eq!(table("", "namespaces", &[stored]), "NAME | STATUS | AGE\na | Active | 24h");
}
