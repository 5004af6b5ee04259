//! ReplicationController, ReplicaSet, Deployment and ControllerRevision.

use serde_json::{Value, json};

use super::{create, created, errors, table, update, yaml};
use crate::registry::Part;

const DEPLOYMENT: &str = "
metadata: {name: a, namespace: ns}
spec:
  selector: {matchLabels: {app: a}}
  template: {metadata: {labels: {app: a}}, spec: {containers: [{name: c, image: nginx}]}}
";

#[test]
fn a_deployment_is_filled_in() {
    insta::assert_json_snapshot!(created("apps", "deployments", DEPLOYMENT));
}

#[test]
fn a_replication_controller_takes_its_labels_from_the_template() {
    let text = "metadata: {name: a}\nspec: {template: {metadata: {labels: {app: a}}, spec: {containers: [{name: c, image: x}]}}}";
    let stored = created("", "replicationcontrollers", text);
    assert_eq!(stored["spec"]["selector"], json!({ "app": "a" }));
    assert_eq!(stored["metadata"]["labels"], json!({ "app": "a" }));
    assert_eq!(stored["spec"]["replicas"], 1);
    assert_eq!(stored["status"], json!({ "replicas": 0 }));
}

#[test]
fn deployments_that_are_refused() {
    let template = "template: {metadata: {labels: {app: a}}, spec: {containers: [{name: c, image: x}]}}";
    let good = format!("selector: {{matchLabels: {{app: a}}}}, {template}");
    let cases = [
        (
            format!("{{{template}}}"),
            "spec.selector: Required value\nspec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match \
             template `labels`",
        ),
        (
            format!("{{selector: {{matchLabels: {{app: b}}}}, {template}}}"),
            "spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match template `labels`",
        ),
        (
            format!("{{replicas: -1, {good}}}"),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            format!("{{strategy: {{type: Recreate, rollingUpdate: {{maxSurge: 1}}}}, {good}}}"),
            "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
        ),
        (
            format!("{{strategy: {{type: Slowly}}, {good}}}"),
            "spec.strategy.type: Unsupported value: \"Slowly\": supported values: \"Recreate\", \"RollingUpdate\"",
        ),
        (
            format!("{{strategy: {{rollingUpdate: {{maxSurge: 0, maxUnavailable: 0%}}}}, {good}}}"),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
        ),
        (
            format!("{{minReadySeconds: 700, {good}}}"),
            "spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds",
        ),
        (
            "{selector: {matchLabels: {app: a}}, template: {metadata: {labels: {app: a}}, spec: {restartPolicy: Never, containers: \
             [{name: c, image: x}]}}}"
                .to_owned(),
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        ),
        (
            "{replicas: three}".to_owned(),
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field \
             DeploymentSpec.spec.replicas of type int32",
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(errors(create("apps", "deployments", &format!("metadata: {{name: a}}\nspec: {spec}"))), expected, "{spec}");
    }
}

#[test]
fn generations_and_parts() {
    let old = created("apps", "deployments", DEPLOYMENT);
    let change = |path: &str, value: Value, part: Part| {
        let mut new = old.clone();
        let (parent, field) = path.rsplit_once('/').unwrap();
        new.pointer_mut(parent).unwrap()[field] = value;
        update("apps", "deployments", new, &old, part)
    };
    let generation = |stored: Value| stored["metadata"]["generation"].clone();
    assert_eq!(generation(change("/spec/replicas", json!(2), Part::Main).unwrap()), 2);
    assert_eq!(generation(change("/metadata/annotations", json!({ "a": "b" }), Part::Main).unwrap()), 2);
    assert_eq!(generation(change("/metadata/labels", json!({ "a": "b" }), Part::Main).unwrap()), 1);
    assert_eq!(change("/status/replicas", json!(2), Part::Main).unwrap(), old);
    let status = change("/status", json!({ "replicas": 2, "conditions": [] }), Part::Status).unwrap();
    assert_eq!(status["status"], json!({ "replicas": 2 }));
    assert_eq!(change("/spec/replicas", json!(2), Part::Status).unwrap(), old);
    assert_eq!(
        errors(change("/spec/selector", json!({ "matchLabels": { "app": "b" } }), Part::Main)),
        "spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match template `labels`\n\
         spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"b\"}}: field is immutable"
    );
    assert_eq!(
        errors(change("/status", json!({ "replicas": 1, "readyReplicas": 2 }), Part::Status)),
        "status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas"
    );
}

#[test]
fn rows_of_workloads() {
    let metadata = "{name: a, creationTimestamp: '2026-01-01T23:57:30Z'}";
    let template = "{spec: {containers: [{name: c, image: nginx}, {name: d, image: 'busybox:1'}]}}";
    let set = yaml(&format!(
        "metadata: {metadata}\nspec: {{replicas: 3, selector: {{matchLabels: {{app: a}}, matchExpressions: [{{key: tier, operator: In, \
         values: [z, x]}}, {{key: old, operator: DoesNotExist}}]}}, template: {template}}}\nstatus: {{replicas: 2, readyReplicas: 1, updatedReplicas: 2, availableReplicas: 1}}"
    ));
    let controller = yaml(&format!(
        "metadata: {metadata}\nspec: {{replicas: 3, selector: {{b: x, a: z}}, template: {template}}}\nstatus: {{replicas: 2, readyReplicas: 1}}"
    ));
    let revision = yaml(
        "metadata: {name: a-1, ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: a, uid: u, controller: true}]}\nrevision: 4",
    );
    let shown = [
        table("apps", "replicasets", std::slice::from_ref(&set)),
        table("apps", "deployments", &[set]),
        table("", "replicationcontrollers", &[controller]),
        table("apps", "controllerrevisions", &[revision]),
    ];
    insta::assert_snapshot!(shown.join("\n\n"));
}
