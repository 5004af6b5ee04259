//! Events about objects, with Kubernetes' aggregation: the same event again raises a count, many similar ones are combined, and
//! an object that causes a flood is rate-limited.

mod correlator;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, ObjectReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use trireme_api::clock::Clock;

use super::error::is_not_found;
use correlator::{Correlator, Verdict};

/// Events that may wait to be written. More are dropped: events must never hold up a controller.
const BACKLOG: usize = 1000;
/// How often one event is tried when the API server does not answer.
const ATTEMPTS: u32 = 4;

/// `type` of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    Normal,
    Warning,
}

impl EventKind {
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Normal => "Normal",
            EventKind::Warning => "Warning",
        }
    }
}

/// Something that happened to an object.
#[derive(Clone, Debug)]
struct Occurrence {
    component: &'static str,
    involved: ObjectReference,
    kind: EventKind,
    reason: &'static str,
    message: String,
    at: Timestamp,
}

/// Records events in the name of one component. Cheap to clone; never blocks and never fails.
#[derive(Clone)]
pub struct Recorder {
    component: &'static str,
    clock: Arc<dyn Clock>,
    sender: mpsc::Sender<Occurrence>,
}

impl Recorder {
    /// Records an event about `object`.
    pub fn event<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        kind: EventKind,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let mut involved = object.object_ref(&());
        involved.resource_version.clone_from(&object.meta().resource_version);
        self.event_about(involved, kind, reason, message);
    }

    /// Records an event about an object that is known only by reference.
    pub fn event_about(&self, involved: ObjectReference, kind: EventKind, reason: &'static str, message: impl Into<String>) {
        let occurrence =
            Occurrence { component: self.component, involved, kind, reason, message: message.into(), at: self.clock.now() };
        if let Err(dropped) = self.sender.try_send(occurrence) {
            debug!(component = self.component, reason, error = %dropped, "event dropped");
        }
    }
}

/// Writes what the recorders of the process record.
pub struct RecorderSink {
    sender: mpsc::Sender<Occurrence>,
    receiver: mpsc::Receiver<Occurrence>,
    clock: Arc<dyn Clock>,
}

impl RecorderSink {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        RecorderSink { sender, receiver, clock }
    }

    /// A recorder for one component, for example `replicaset-controller`.
    pub fn recorder(&self, component: &'static str) -> Recorder {
        Recorder { component, clock: self.clock.clone(), sender: self.sender.clone() }
    }

    /// Writes events until `shutdown` is cancelled or every recorder is gone.
    pub async fn run(self, client: Client, shutdown: CancellationToken) {
        let RecorderSink { sender, mut receiver, .. } = self;
        drop(sender);
        let mut correlator = Correlator::default();
        let write = async {
            while let Some(occurrence) = receiver.recv().await {
                let verdict = correlator.observe(&occurrence);
                if let Some(written) = write(&client, &occurrence, verdict).await {
                    correlator.written(&occurrence, &written);
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = write => {}
        }
    }
}

/// Writes one event; returns it as it was written, or nothing if it was dropped.
async fn write(client: &Client, occurrence: &Occurrence, verdict: Verdict) -> Option<Event> {
    let (mut event, mut exists) = match verdict {
        Verdict::Drop => return None,
        Verdict::Create(event) => (event, false),
        Verdict::Repeat(event) => (event, true),
    };
    let namespace = event.metadata.namespace.clone().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    for attempt in 0..ATTEMPTS {
        let outcome = if exists {
            let patch =
                serde_json::json!({"count": event.count, "lastTimestamp": event.last_timestamp, "message": event.message});
            api.patch(event.metadata.name.as_deref().unwrap_or_default(), &PatchParams::default(), &Patch::Merge(patch)).await
        } else {
            api.create(&PostParams::default(), &event).await
        };
        match outcome {
            Ok(_) => return Some(*event),
            Err(failure) if exists && is_not_found(&failure) => {
                // The event has expired: start a new one.
                event.metadata.name = Some(correlator::event_name(occurrence));
                exists = false;
            }
            Err(kube::Error::Api(status)) if status.code < 500 && status.code != 429 => {
                debug!(reason = occurrence.reason, error = %status, "event refused");
                return None;
            }
            Err(failure) => {
                debug!(reason = occurrence.reason, error = %failure, "event not written; trying again");
                tokio::time::sleep(std::time::Duration::from_millis(250) * 2_u32.pow(attempt)).await;
            }
        }
    }
    warn!(reason = occurrence.reason, message = occurrence.message, "event given up");
    None
}
