//! Events about pods and the node, in the kubelet's words (`core/v1`, counted up when they repeat).

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::mpsc;
use trireme_api::clock::Clock;

use crate::pod::model;

/// Events waiting to be written; further ones are dropped, as the API is away then.
const QUEUE: usize = 1000;
/// Distinct events remembered for counting.
const REMEMBERED: usize = 2000;

/// How long the API may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How serious an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    Normal,
    Warning,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// One thing to tell.
#[derive(Clone, Debug)]
pub struct Report {
    about: ObjectReference,
    severity: Severity,
    reason: &'static str,
    message: String,
    at: Timestamp,
}

/// Takes events without blocking.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Report>,
    clock: Arc<dyn Clock>,
}

impl Recorder {
    /// A recorder, and the queue to give to [`write()`].
    pub fn new(clock: Arc<dyn Clock>) -> (Self, mpsc::Receiver<Report>) {
        let (queue, reports) = mpsc::channel(QUEUE);
        (Self { queue, clock }, reports)
    }

    /// Tells something about a pod.
    pub fn pod(&self, pod: &Pod, severity: Severity, reason: &'static str, message: impl Into<String>) {
        self.send(pod_reference(pod, None), severity, reason, message.into());
    }

    /// Tells something about a container of a pod; `field` is `spec.containers{name}` or `spec.initContainers{name}`.
    pub fn container(&self, pod: &Pod, name: &str, severity: Severity, reason: &'static str, message: impl Into<String>) {
        let is_init = model::init_slots(pod).iter().any(|slot| slot.name() == name);
        let list = if is_init { "initContainers" } else { "containers" };
        self.send(pod_reference(pod, Some(format!("spec.{list}{{{name}}}"))), severity, reason, message.into());
    }

    /// Tells something about the node.
    pub fn node(&self, name: &str, severity: Severity, reason: &'static str, message: impl Into<String>) {
        let about = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(name.to_owned()),
            uid: Some(name.to_owned()),
            ..ObjectReference::default()
        };
        self.send(about, severity, reason, message.into());
    }

    fn send(&self, about: ObjectReference, severity: Severity, reason: &'static str, message: String) {
        let report = Report { about, severity, reason, message, at: self.clock.now() };
        if self.queue.try_send(report).is_err() {
            tracing::debug!(reason, "an event was dropped: the queue is full");
        }
    }
}

fn pod_reference(pod: &Pod, field_path: Option<String>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path,
    }
}

/// What makes two reports the same event.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    uid: Option<String>,
    name: Option<String>,
    field_path: Option<String>,
    reason: &'static str,
    message: String,
}

struct Written {
    name: String,
    count: i32,
}

/// Writes queued events until every [`Recorder`] is gone.
pub async fn write(client: Client, node_name: String, mut reports: mpsc::Receiver<Report>) {
    let mut latest = 0;
    let mut written: HashMap<Key, Written> = HashMap::new();
    while let Some(report) = reports.recv().await {
        if written.len() >= REMEMBERED {
            written.clear();
        }
        let key = Key {
            uid: report.about.uid.clone(),
            name: report.about.name.clone(),
            field_path: report.about.field_path.clone(),
            reason: report.reason,
            message: report.message.clone(),
        };
        let namespace = report.about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
        if let Some(known) = written.get_mut(&key) {
            let patch = json!({ "count": known.count + 1, "lastTimestamp": Time(report.at) });
            let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
            let patching = events.patch(&known.name, &params, &patch);
            if matches!(tokio::time::timeout(ANSWER_TIMEOUT, patching).await, Ok(Ok(_))) {
                known.count += 1;
                continue;
            }
            written.remove(&key);
        }
        latest = stamp(report.at, latest);
        let name = format!("{}.{latest:016x}", report.about.name.as_deref().unwrap_or("unknown"));
        let event = event(&name, &namespace, &node_name, report);
        match tokio::time::timeout(ANSWER_TIMEOUT, events.create(&PostParams::default(), &event)).await {
            Ok(Ok(_)) => {
                written.insert(key, Written { name, count: 1 });
            }
            Ok(Err(error)) => tracing::debug!(%error, "an event could not be written"),
            Err(_) => tracing::debug!("the API did not take an event in time"),
        }
    }
}

/// The number in an event's name: when it happened in nanoseconds, but above `latest`, so that names are unique and their order,
/// which is the order of lists, is the order of what happened.
fn stamp(at: Timestamp, latest: u64) -> u64 {
    let nanoseconds = u64::try_from(at.as_nanosecond()).unwrap_or_default();
    nanoseconds.max(latest.saturating_add(1))
}

fn event(name: &str, namespace: &str, node_name: &str, report: Report) -> Event {
    Event {
        metadata: ObjectMeta { name: Some(name.to_owned()), namespace: Some(namespace.to_owned()), ..ObjectMeta::default() },
        involved_object: report.about,
        type_: Some(report.severity.as_str().to_owned()),
        reason: Some(report.reason.to_owned()),
        message: Some(report.message),
        count: Some(1),
        first_timestamp: Some(Time(report.at)),
        last_timestamp: Some(Time(report.at)),
        source: Some(EventSource { component: Some("kubelet".to_owned()), host: Some(node_name.to_owned()) }),
        reporting_component: Some("kubelet".to_owned()),
        reporting_instance: Some(node_name.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_follow_the_clock_and_never_repeat() {
        let at = |nanoseconds: i128| Timestamp::from_nanosecond(nanoseconds).expect("a time");
        let mut latest = 0;
        let mut stamps = Vec::new();
        for now in [5, 5, 5, 1000, 999, 2000] {
            latest = stamp(at(now), latest);
            stamps.push(latest);
        }
        assert_eq!(stamps, [5, 6, 7, 1000, 1001, 2000]);
        assert_eq!(stamp(at(-7), 0), 1);
    }
}
