//! What the scheduler writes to the API: bindings, conditions, events, and the removal of pods that make way.

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1 as core,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::{Value, json};
use trireme_api::clock::Clock;

use crate::{config::SchedulerConfig, pod::PodInfo, preemption::Plan, reports::EventRecord};

/// The API as the scheduler writes to it. Cheap to clone.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    clock: Arc<dyn Clock>,
    scheduler_name: Arc<str>,
}

/// Whether something is normal or worth a warning.
#[derive(Clone, Copy)]
enum Severity {
    Normal,
    Warning,
}

impl Writer {
    pub fn new(client: Client, config: &SchedulerConfig, clock: Arc<dyn Clock>) -> Self {
        Self { client, clock, scheduler_name: config.scheduler_name.as_str().into() }
    }

    fn pods(&self, pod: &PodInfo) -> Api<core::Pod> {
        Api::namespaced(self.client.clone(), pod.namespace())
    }

    /// Binds the pod and tells of it.
    ///
    /// # Errors
    /// What the API server answers to the binding. A lost event is not an error.
    pub async fn bind(&self, pod: &PodInfo, node: &str) -> Result<(), kube::Error> {
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": { "name": &*pod.name, "namespace": pod.namespace(), "uid": &*pod.uid },
            "target": { "apiVersion": "v1", "kind": "Node", "name": node },
        });
        // Named before the node can see the pod, so that this event comes before the node's own in a list.
        let event_name = self.new_event_name(pod);
        let _: Value = self.pods(pod).create_subresource("binding", &pod.name, &PostParams::default(), &binding).await?;
        let message = format!("Successfully assigned {} to {node}", pod.full_name());
        self.emit(pod, &event_name, Severity::Normal, "Scheduled", "Binding", &message).await;
        Ok(())
    }

    /// Says in an event and in the pod's status why it waits, and where it is to go once others have left.
    pub async fn report(&self, pod: &PodInfo, record: &EventRecord, plan: Option<&Plan>) {
        if record.is_first() {
            self.emit(pod, &record.name, Severity::Warning, "FailedScheduling", "Scheduling", &record.message).await;
        } else {
            self.count_again(pod, record).await;
        }
        if record.is_first() || plan.is_some() {
            let mut status = json!({ "conditions": [{
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": record.message,
                "lastProbeTime": null,
                "lastTransitionTime": record.since.to_string(),
            }] });
            if let Some(plan) = plan {
                status["nominatedNodeName"] = json!(&*plan.node);
            }
            self.patch_status(pod, status).await;
        }
    }

    /// Makes the pods of a plan leave for `pod`.
    pub async fn evict(&self, pod: &PodInfo, plan: &Plan) {
        for victim in plan.victims.iter().filter(|victim| !victim.terminating) {
            let message = format!("{}: preempting to accommodate a higher priority pod", self.scheduler_name);
            let condition = json!({ "conditions": [{
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "PreemptionByScheduler",
                "message": message,
                "lastProbeTime": null,
                "lastTransitionTime": self.clock.now().to_string(),
            }] });
            self.patch_status(victim, condition).await;
            let preconditions = Preconditions { uid: Some(victim.uid.to_string()), resource_version: None };
            let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            match self.pods(victim).delete(&victim.name, &parameters).await {
                Ok(_) => {
                    let message = format!("Preempted by pod {} on node {}", pod.uid, plan.node);
                    self.emit(victim, &self.new_event_name(victim), Severity::Normal, "Preempted", "Preempting", &message).await;
                }
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => tracing::warn!(pod = victim.full_name(), %error, "could not preempt a pod"),
            }
        }
    }

    /// The pod's reserved room is given to another.
    pub async fn clear_nomination(&self, pod: &PodInfo) {
        self.patch_status(pod, json!({ "nominatedNodeName": null })).await;
    }

    async fn patch_status(&self, pod: &PodInfo, status: Value) {
        let patch = Patch::Strategic(json!({ "metadata": { "uid": &*pod.uid }, "status": status }));
        match self.pods(pod).patch_status(&pod.name, &PatchParams::default(), &patch).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
            Err(error) => tracing::warn!(pod = pod.full_name(), %error, "could not write a pod's status"),
        }
    }

    /// A name for a new event about the pod.
    pub fn new_event_name(&self, pod: &PodInfo) -> String {
        format!("{}.{:x}", pod.name, self.clock.now().as_nanosecond())
    }

    async fn emit(&self, pod: &PodInfo, name: &str, severity: Severity, reason: &str, action: &str, message: &str) {
        let now = Time(self.clock.now());
        let severity = match severity {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        };
        let event = core::Event {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(pod.namespace().to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: core::ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod.name.to_string()),
                namespace: Some(pod.namespace().to_owned()),
                uid: Some(pod.uid.to_string()),
                ..core::ObjectReference::default()
            },
            type_: Some(severity.to_owned()),
            reason: Some(reason.to_owned()),
            action: Some(action.to_owned()),
            message: Some(message.to_owned()),
            count: Some(1),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            source: Some(core::EventSource { component: Some(self.scheduler_name.to_string()), host: None }),
            reporting_component: Some(self.scheduler_name.to_string()),
            reporting_instance: Some(self.scheduler_name.to_string()),
            ..core::Event::default()
        };
        let events: Api<core::Event> = Api::namespaced(self.client.clone(), pod.namespace());
        if let Err(error) = events.create(&PostParams::default(), &event).await {
            tracing::debug!(pod = pod.full_name(), reason, %error, "could not write an event");
        }
    }

    async fn count_again(&self, pod: &PodInfo, record: &EventRecord) {
        let events: Api<core::Event> = Api::namespaced(self.client.clone(), pod.namespace());
        let patch = Patch::Merge(json!({ "count": record.count, "lastTimestamp": self.clock.now().to_string() }));
        if let Err(error) = events.patch(&record.name, &PatchParams::default(), &patch).await {
            tracing::debug!(pod = pod.full_name(), %error, "could not count an event");
        }
    }
}
