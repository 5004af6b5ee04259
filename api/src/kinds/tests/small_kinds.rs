//! ConfigMap, Namespace and the other kinds without much inside.

use serde_json::json;

use super::{create, created, errors, table, update, with_resource};
use crate::registry::Part;

#[test]
fn config_map_is_stored_as_it_came() {
    let stored = created("", "configmaps", "metadata: {name: a, labels: {}}\ndata: {k: v}\nunknown: 1");
    assert_eq!(stored, json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": { "k": "v" } }));
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

#[test]
fn secrets() {
    let stored = created("", "secrets", "metadata: {name: a}\ndata: {b: eA==}\nstringData: {a: hello}");
    assert_eq!(stored["data"], json!({ "a": "aGVsbG8=", "b": "eA==" }));
    assert_eq!(stored["type"], "Opaque");
    assert_eq!(stored.get("stringData"), None);
    let cases = [
        ("type: kubernetes.io/tls", "data[tls.crt]: Required value\ndata[tls.key]: Required value"),
        ("type: kubernetes.io/basic-auth", "data[username]: Required value\ndata[password]: Required value"),
        ("type: kubernetes.io/service-account-token", "metadata.annotations[kubernetes.io/service-account.name]: Required value"),
    ];
    for (text, expected) in cases {
        assert_eq!(errors(create("", "secrets", &format!("metadata: {{name: a}}\n{text}"))), expected);
    }
    let mut other = stored.clone();
    other["type"] = json!("x/y");
    assert_eq!(errors(update("", "secrets", other, &stored, Part::Main)), "type: Invalid value: \"x/y\": field is immutable");
}

#[test]
fn nodes() {
    let stored =
        created("", "nodes", "metadata: {name: n1}\nspec: {podCIDR: 10.1.0.0/24}\nstatus: {capacity: {cpu: 2, memory: 1024Ki}}");
    assert_eq!(stored["spec"]["podCIDRs"], json!(["10.1.0.0/24"]));
    assert_eq!(stored["status"]["allocatable"], json!({ "cpu": "2", "memory": "1Mi" }));
    let text = "metadata: {name: n1}\nspec: {taints: [{key: a, effect: NoSchedule}, {key: a, effect: NoSchedule}, {key: b, effect: Go}]}";
    assert_eq!(
        errors(create("", "nodes", text)),
        "spec.taints[1]: Duplicate value: {\"effect\":\"NoSchedule\",\"key\":\"a\"}: taints must be unique by key and effect pair\n\
         spec.taints[2].effect: Unsupported value: \"Go\": supported values: \"NoExecute\", \"NoSchedule\", \"PreferNoSchedule\""
    );
    let mut moved = stored.clone();
    moved["spec"] = json!({ "podCIDR": "10.2.0.0/24" });
    assert_eq!(
        errors(update("", "nodes", moved, &stored, Part::Main)),
        "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"
    );
}

#[test]
fn rows_of_small_kinds() {
    let object = |text: &str| super::yaml(&format!("{text}\n"));
    let nodes = [
        object(
            "metadata: {name: n1, labels: {node-role.kubernetes.io/control-plane: '', node-role.kubernetes.io/a: ''}}\nspec: \
             {unschedulable: true}\nstatus: {conditions: [{type: Ready, status: 'True'}], addresses: [{type: InternalIP, address: \
             10.0.0.1}], nodeInfo: {kubeletVersion: v1, osImage: Debian, kernelVersion: '6', containerRuntimeVersion: 'x://1'}}",
        ),
        object("metadata: {name: m}\nstatus: {conditions: [{type: Ready, status: Unknown}]}"),
        object("metadata: {name: new}"),
    ];
    let events = [
        object(
            "metadata: {name: e}\ninvolvedObject: {kind: Pod, name: p, fieldPath: 'spec.containers{c}'}\ntype: Normal\nreason: \
             Started\nmessage: 'ok '\ncount: 3\nfirstTimestamp: '2026-01-01T23:00:00Z'\nlastTimestamp: '2026-01-01T23:59:00Z'\nsource: \
             {component: kubelet, host: n1}",
        ),
        object(
            "metadata: {name: f}\ninvolvedObject: {kind: Pod, name: p}\ntype: Normal\nreason: Scheduled\nmessage: \
             ok\neventTime: '2026-01-01T23:59:30.000000Z'\nreportingComponent: default-scheduler\nreportingInstance: s",
        ),
    ];
    let shown = [
        table("", "nodes", &nodes),
        table("", "events", &events),
        table("", "configmaps", &[object("metadata: {name: a}\ndata: {a: b}\nbinaryData: {c: eA==}")]),
        table("", "secrets", &[object("metadata: {name: a}\ntype: Opaque\ndata: {a: eA==}")]),
        table("", "serviceaccounts", &[object("metadata: {name: a}")]),
        table("coordination.k8s.io", "leases", &[object("metadata: {name: a}\nspec: {holderIdentity: h}")]),
        table("scheduling.k8s.io", "priorityclasses", &[object("metadata: {name: a}\nvalue: 5\npreemptionPolicy: Never")]),
    ];
    insta::assert_snapshot!(shown.join("\n\n"));
}

#[test]
fn priority_classes() {
    let cases = [
        (
            "metadata: {name: high}\nvalue: 1000000001",
            "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
        ),
        ("metadata: {name: system-cluster-critical}\nvalue: 2000000000", "none"),
        (
            "metadata: {name: system-mine}\nvalue: 1",
            "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: system-mine \
             is not a known system priority class",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(errors(create("scheduling.k8s.io", "priorityclasses", text)), expected, "{text}");
    }
}

#[test]
fn both_views_of_an_event() {
    let view = "
metadata: {name: e, namespace: default}
eventTime: '2026-01-01T00:00:00.000001Z'
reportingController: c
reportingInstance: i
action: Binding
reason: Scheduled
type: Normal
note: hello
regarding: {kind: Pod, name: p, namespace: default}
";
    let seen = created("events.k8s.io", "events", view);
    with_resource("events.k8s.io", "events", |resource| {
        let stored_as = resource.behaviour.stored_as().unwrap();
        let stored = (stored_as.to_stored)(seen.clone());
        assert_eq!(stored["message"], "hello");
        assert_eq!(stored["reportingComponent"], "c");
        assert_eq!(stored["eventTime"], "2026-01-01T00:00:00.000001Z");
        assert_eq!((stored_as.from_stored)(stored), seen);
    });
    assert_eq!(
        errors(create("events.k8s.io", "events", "metadata: {name: e}\ntype: Odd")),
        "eventTime: Required value\nreportingController: Required value\nreportingInstance: Required value\naction: Required \
         value\nreason: Required value\ntype: Invalid value: \"\": has invalid value: Odd"
    );
}

#[test]
fn every_kind_agrees_with_itself() {
    let registry = super::super::registry();
    for resource in registry.iter() {
        let cells = resource.behaviour.row(&json!({ "metadata": { "name": "a" } }), super::now());
        assert_eq!(cells.len(), resource.columns.len(), "{}", resource.kind);
        assert_eq!(resource.columns.iter().filter(|column| column.format == "name").count(), 1, "{}", resource.kind);
        if let Some(stored_as) = resource.behaviour.stored_as() {
            assert!(registry.get(stored_as.group, stored_as.version, stored_as.plural).is_some());
        }
        let mut generator = schemars::SchemaGenerator::default();
        (resource.schema)(&mut generator);
        assert!(generator.definitions().contains_key(resource.schema_name.as_ref()), "{}", resource.schema_name);
    }
    assert_eq!(registry.iter().count(), 17);
}
