//! Writing a pod's status to the API, and removing the pod when it has ended.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::{agent::Agent, pod::worker::Desired};

/// What the API shall know of a pod.
#[derive(Clone, Debug, Default)]
pub struct Publication {
    pub status: Option<PodStatus>,
    pub removal: Removal,
}

/// Whether everything of a deleted pod is gone from the node, so that it may go from the API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Removal {
    #[default]
    NotYet,
    Due,
}

/// How long the API may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Writes what is published, in its newest form, until the worker is gone. Failures are tried again with back-off.
pub async fn run(agent: Arc<Agent>, mut desired: watch::Receiver<Desired>, mut wanted: watch::Receiver<Publication>) {
    let mut known: Arc<Pod> = Arc::clone(&desired.borrow_and_update().pod);
    let mut failures: u32 = 0;
    loop {
        let publication = wanted.borrow_and_update().clone();
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, publish(&agent, &mut known, &publication)).await;
        match answer.unwrap_or_else(|_| Err(kube::Error::Service("no answer in time".into()))) {
            Ok(Done::Written) => failures = 0,
            Ok(Done::PodIsGone) => {
                failures = 0;
                known = Arc::new(Pod { status: publication.status.clone(), ..(*known).clone() });
            }
            Err(error) => {
                failures += 1;
                tracing::debug!(pod = known.metadata.name, %error, "the pod's status could not be written");
                let wait = Duration::from_millis(100 << failures.min(6));
                tokio::time::sleep(wait).await;
                continue;
            }
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            changed = desired.changed() => {
                if changed.is_err() { return }
                let newest = Arc::clone(&desired.borrow_and_update().pod);
                if version(&newest) >= version(&known) {
                    known = newest;
                }
            }
        }
    }
}

enum Done {
    Written,
    PodIsGone,
}

async fn publish(agent: &Agent, known: &mut Arc<Pod>, publication: &Publication) -> Result<Done, kube::Error> {
    let namespace = known.metadata.namespace.as_deref().unwrap_or_default();
    let name = known.metadata.name.as_deref().unwrap_or_default();
    let uid = known.metadata.uid.clone().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(agent.client.clone(), namespace);
    if let Some(status) = &publication.status
        && let Some(mut patch) = status_patch(known.status.as_ref().unwrap_or(&PodStatus::default()), status)
    {
        patch["metadata"] = json!({ "uid": uid });
        match pods.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
            Ok(pod) => {
                // What was sent counts as known, even where the API answers with more or less.
                let pod = Pod { status: Some(merged(pod.status, status)), ..pod };
                *known = Arc::new(pod);
            }
            Err(kube::Error::Api(refusal)) if refusal.code == 404 => return Ok(Done::PodIsGone),
            Err(kube::Error::Api(refusal)) if matches!(refusal.code, 400 | 422) => {
                // The same status would be refused again; the next change may not be.
                tracing::warn!(pod = name, %refusal, "the API refuses this pod's status");
                *known = Arc::new(Pod { status: Some(status.clone()), ..(**known).clone() });
            }
            Err(error) => return Err(error),
        }
    }
    if publication.removal == Removal::Due {
        let name = known.metadata.name.clone().unwrap_or_default();
        let only_this = Preconditions { uid: Some(uid), resource_version: None };
        match pods.delete(&name, &DeleteParams::default().grace_period(0).preconditions(only_this)).await {
            Ok(_) => {}
            Err(kube::Error::Api(refusal)) if matches!(refusal.code, 404 | 409) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Done::Written)
}

fn merged(answered: Option<PodStatus>, sent: &PodStatus) -> PodStatus {
    let mut status = sent.clone();
    let others = answered.and_then(|answered| answered.conditions).unwrap_or_default();
    let conditions = status.conditions.get_or_insert_default();
    for condition in others {
        if !conditions.iter().any(|own| own.type_ == condition.type_) {
            conditions.push(condition);
        }
    }
    status
}

fn version(pod: &Pod) -> u128 {
    pod.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// The fields of the status that the node agent owns.
const OWNED: [&str; 12] = [
    "containerStatuses",
    "initContainerStatuses",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "message",
    "reason",
    "observedGeneration",
    "phase",
    "qosClass",
    "startTime",
];

/// The strategic merge patch that makes the API's status ours; `None` when it is so already. Conditions that others own
/// stay, as conditions merge by `type`.
fn status_patch(api: &PodStatus, ours: &PodStatus) -> Option<Value> {
    let (Ok(Value::Object(api)), Ok(Value::Object(ours))) = (serde_json::to_value(api), serde_json::to_value(ours)) else {
        return None;
    };
    let mut patch = Map::new();
    for field in OWNED {
        match (api.get(field), ours.get(field)) {
            (before, Some(after)) if before != Some(after) => {
                let value = match field {
                    "podIPs" | "hostIPs" => replace_addresses(before, after),
                    _ => after.clone(),
                };
                patch.insert(field.to_owned(), value);
            }
            (Some(_), None) => {
                patch.insert(field.to_owned(), Value::Null);
            }
            _ => {}
        }
    }
    let conditions =
        |status: &Map<String, Value>| status.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let known = conditions(&api);
    let changed: Vec<Value> = conditions(&ours)
        .into_iter()
        .filter(|condition| !known.contains(condition))
        .map(|condition| with_cleared(condition, &known))
        .collect();
    if !changed.is_empty() {
        patch.insert("conditions".to_owned(), Value::Array(changed));
    }
    (!patch.is_empty()).then(|| json!({ "status": patch }))
}

/// A condition that had a reason or message before and has none now says so.
fn with_cleared(mut condition: Value, known: &[Value]) -> Value {
    let before = known.iter().find(|known| known["type"] == condition["type"]);
    for field in ["reason", "message"] {
        if before.is_some_and(|before| before.get(field).is_some()) && condition.get(field).is_none() {
            condition[field] = Value::Null;
        }
    }
    condition
}

/// Addresses merge by `ip`: those that are gone have to be deleted by name.
fn replace_addresses(before: Option<&Value>, after: &Value) -> Value {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let after = list(after);
    let gone = before.map(list).unwrap_or_default().into_iter().filter(|old| !after.contains(old));
    let deletions: Vec<Value> = gone.map(|old| json!({ "$patch": "delete", "ip": old["ip"] })).collect();
    Value::Array(after.iter().cloned().chain(deletions).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn nothing_changed_is_no_patch() {
        let ours = status(json!({ "phase": "Running", "podIP": "10.0.0.1" }));
        let api = status(json!({ "phase": "Running", "podIP": "10.0.0.1", "nominatedNodeName": "n",
            "conditions": [{ "type": "example.com/gate", "status": "True" }] }));
        assert_eq!(status_patch(&api, &ours), None);
    }

    #[test]
    fn only_what_changed_is_sent() {
        let api = status(json!({ "phase": "Pending", "reason": "Old", "conditions": [
            { "type": "Ready", "status": "False", "reason": "ContainersNotReady" }, { "type": "PodScheduled", "status": "True" }] }));
        let ours = status(json!({ "phase": "Running", "conditions": [
            { "type": "Ready", "status": "True" }, { "type": "PodScheduled", "status": "True" }] }));
        assert_eq!(
            status_patch(&api, &ours),
            Some(json!({ "status": {
                "phase": "Running", "reason": null,
                "conditions": [{ "type": "Ready", "status": "True", "reason": null }] } }))
        );
    }

    #[test]
    fn a_changed_address_replaces_the_old_one() {
        let api = status(json!({ "podIPs": [{ "ip": "10.0.0.1" }] }));
        let ours = status(json!({ "podIPs": [{ "ip": "10.0.0.2" }] }));
        let patch = status_patch(&api, &ours).unwrap();
        assert_eq!(patch["status"]["podIPs"], json!([{ "ip": "10.0.0.2" }, { "$patch": "delete", "ip": "10.0.0.1" }]));
    }
}
