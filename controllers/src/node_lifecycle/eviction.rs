//! Deletes pods from nodes with NoExecute taints that they do not tolerate, or no longer.
//!
//! Watches Pods and Nodes. How long a pod has been on a tainted node is counted from when this process saw it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::info;
use trireme_api::clock::Clock;

use super::pod_index::{PodIndex, node_of};
use super::tolerations::{Stay, stay};
use crate::LoopContext;
use crate::shared::error::{Doing, is_conflict, is_not_found};
use crate::shared::meta::{is_deleting, name, uid};
use crate::shared::{Change, ControllerError, EventKind, Informer, Next, ObjectKey, Recorder, WorkQueue, run_workers};

/// The loop's name.
pub const LOOP: &str = "taint-eviction-controller";

const REASON: &str = "TaintManagerEviction";

struct Controller {
    client: Client,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    index: Arc<PodIndex>,
    queue: Arc<WorkQueue<ObjectKey>>,
    /// UID of each pod that has a term and since when it runs.
    terms: Mutex<HashMap<ObjectKey, (String, Instant)>>,
    recorder: Recorder,
    clock: Arc<dyn Clock>,
}

/// Starts the loop.
pub fn start(context: LoopContext) -> BoxFuture<'static, ()> {
    let pods = context.informers.get::<Pod>();
    let controller = Arc::new(Controller {
        client: context.client,
        nodes: context.informers.get(),
        index: PodIndex::follow(pods.clone()),
        pods,
        queue: WorkQueue::new(LOOP, context.seed),
        terms: Mutex::default(),
        recorder: context.recorder,
        clock: context.clock,
    });
    let listener = Arc::downgrade(&controller);
    controller.pods.on_change(move |change| {
        if let Some(controller) = listener.upgrade() {
            controller.queue.add(ObjectKey::of(&**change.object()));
        }
    });
    let listener = Arc::downgrade(&controller);
    controller.nodes.on_change(move |change| {
        if let Some(controller) = listener.upgrade() {
            controller.node_changed(change);
        }
    });
    let (workers, shutdown) = (context.config.workers, context.shutdown);
    Box::pin(async move {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = async { tokio::join!(controller.nodes.synced(), controller.pods.synced()); } => {}
        }
        let queue = controller.queue.clone();
        run_workers(queue, workers, shutdown, move |key| {
            let controller = controller.clone();
            async move { controller.pass(&key).await }
        })
        .await;
    })
}

/// The taints of a node that evict pods.
fn evicting_taints(node: &Node) -> Vec<Taint> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.filter(|taint| taint.effect == "NoExecute").cloned().collect()
}

/// The pod with the condition that tells why it goes.
fn with_disruption(pod: &Pod, now: Timestamp) -> Pod {
    let mut pod = pod.clone();
    let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != "DisruptionTarget");
    conditions.push(PodCondition {
        type_: "DisruptionTarget".to_owned(),
        status: "True".to_owned(),
        reason: Some("DeletionByTaintManager".to_owned()),
        message: Some("Taint manager: deleting due to NoExecute taint".to_owned()),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    });
    pod
}

impl Controller {
    fn node_changed(&self, change: &Change<Node>) {
        let changed = match change {
            Change::Updated { old, new } => evicting_taints(old) != evicting_taints(new),
            Change::Added(_) | Change::Deleted(_) => true,
        };
        if changed {
            for key in self.index.keys(name(&change.object().metadata)) {
                self.queue.add(key);
            }
        }
    }

    async fn pass(&self, key: &ObjectKey) -> Result<Next, ControllerError> {
        let Some(pod) = self.pods.get(key).filter(|pod| !is_deleting(&pod.metadata)) else {
            self.terms.lock().remove(key);
            return Ok(Next::Done);
        };
        let Some(remaining) = self.remaining(key, &pod) else { return Ok(Next::Done) };
        if !remaining.is_zero() {
            return Ok(Next::After(remaining));
        }
        self.evict(key, &pod).await?;
        self.terms.lock().remove(key);
        Ok(Next::Done)
    }

    /// How long the pod may still stay; `None` for good.
    fn remaining(&self, key: &ObjectKey, pod: &Pod) -> Option<Duration> {
        let node = node_of(pod).and_then(|node| self.nodes.get(&ObjectKey::new("", node)));
        let taints = node.map(|node| evicting_taints(&node)).unwrap_or_default();
        let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
        let (now, pod_uid) = (Instant::now(), uid(&pod.metadata));
        let mut terms = self.terms.lock();
        match stay(&taints, tolerations) {
            Stay::Forever => {
                if terms.remove(key).is_some() {
                    self.recorder.event(pod, EventKind::Normal, REASON, format!("Cancelling deletion of Pod {key}"));
                }
                None
            }
            Stay::For(term) => {
                let entry = terms.entry(key.clone()).or_insert_with(|| (pod_uid.to_owned(), now));
                if entry.0 != pod_uid {
                    *entry = (pod_uid.to_owned(), now);
                }
                // A time that cannot be told is never.
                entry.1.checked_add(term).map(|end| end.saturating_duration_since(now))
            }
        }
    }

    async fn evict(&self, key: &ObjectKey, pod: &Pod) -> Result<(), ControllerError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        info!(pod = %key, "evicting a pod from a tainted node");
        let marked = api.replace_status(&key.name, &PostParams::default(), &with_disruption(pod, self.clock.now())).await;
        match marked {
            Err(failure) if is_not_found(&failure) => return Ok(()),
            outcome => outcome.map(drop).doing(|| format!("marking pod {key} as disrupted"))?,
        }
        self.recorder.event(pod, EventKind::Normal, REASON, format!("Marking for deletion Pod {key}"));
        let only_this_one = Preconditions { uid: Some(uid(&pod.metadata).to_owned()), resource_version: None };
        match api.delete(&key.name, &DeleteParams::default().preconditions(only_this_one)).await {
            Err(failure) if is_not_found(&failure) || is_conflict(&failure) => Ok(()),
            outcome => outcome.map(drop).doing(|| format!("deleting pod {key}")),
        }
    }
}
