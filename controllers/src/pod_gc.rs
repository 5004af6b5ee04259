//! Removes pods that nobody else will: of nodes that are gone, never bound ones that are being deleted, finished ones beyond a
//! number, and those stuck on nodes that an operator has put out of service.
//!
//! Watches Pods and Nodes. Owns nothing: it deletes by force, after it has marked the pod as failed.

mod decide;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client};
use tokio::time::Instant;
use tracing::{info, warn};
use trireme_api::clock::Clock;

use crate::LoopContext;
use crate::node_lifecycle::node_of;
use crate::shared::error::{Doing, is_conflict, is_not_found};
use crate::shared::meta::{is_finished, name, uid};
use crate::shared::{ControllerError, Informer, ObjectKey};

/// The loop's name.
pub const LOOP: &str = "pod-garbage-collector";

/// How often pods are looked through.
const PERIOD: Duration = Duration::from_secs(20);
/// How long a node has to be gone before its pods are.
const QUARANTINE: Duration = Duration::from_secs(40);
/// Requests of one pass that run at the same time.
const CONCURRENCY: usize = 16;

struct Collector {
    client: Client,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    clock: Arc<dyn Clock>,
    /// Finished pods that may be kept (`--terminated-pod-gc-threshold`).
    threshold: usize,
}

/// Starts the loop.
pub fn start(context: LoopContext) -> BoxFuture<'static, ()> {
    let collector = Collector {
        client: context.client,
        nodes: context.informers.get(),
        pods: context.informers.get(),
        clock: context.clock,
        threshold: context.config.terminated_pod_threshold,
    };
    let shutdown = context.shutdown;
    Box::pin(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = collector.run() => {}
        }
    })
}

/// The message of the condition that tells why a pod was removed; `None` for a pod that had run to its end.
type Why = Option<&'static str>;

impl Collector {
    async fn run(&self) {
        tokio::join!(self.nodes.synced(), self.pods.synced());
        // Since when each node that pods are bound to has not been there.
        let mut missing: HashMap<String, Instant> = HashMap::new();
        loop {
            let (pods, nodes) = (self.pods.list(), self.nodes.list());
            let mut victims: Vec<(Arc<Pod>, Why)> = Vec::new();
            victims.extend(decide::surplus(&pods, self.threshold).into_iter().map(|pod| (pod, None)));
            victims.extend(decide::unscheduled(&pods).into_iter().map(|pod| (pod, None)));
            let out_of_service = decide::out_of_service(&pods, &nodes).into_iter();
            victims.extend(out_of_service.map(|pod| (pod, Some("PodGC: node is out of service"))));
            let orphaned = self.orphaned(&pods, &nodes, &mut missing).await;
            victims.extend(orphaned.into_iter().map(|pod| (pod, Some("PodGC: node no longer exists"))));
            futures::stream::iter(&victims)
                .for_each_concurrent(CONCURRENCY, |(pod, why)| async move {
                    if let Err(failure) = self.remove(pod, *why).await {
                        warn!(pod = %ObjectKey::of(&**pod), error = %failure, "could not remove the pod; trying again");
                    }
                })
                .await;
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// The pods of nodes that have been gone for the quarantine and that the API server does not know either.
    async fn orphaned(&self, pods: &[Arc<Pod>], nodes: &[Arc<Node>], missing: &mut HashMap<String, Instant>) -> Vec<Arc<Pod>> {
        let mut by_node: HashMap<String, Vec<Arc<Pod>>> = HashMap::new();
        for pod in decide::orphaned(pods, nodes) {
            by_node.entry(node_of(&pod).unwrap_or_default().to_owned()).or_default().push(pod);
        }
        missing.retain(|node, _| by_node.contains_key(node));
        let api: Api<Node> = Api::all(self.client.clone());
        let now = Instant::now();
        let mut orphaned = Vec::new();
        for (node, pods) in by_node {
            let since = *missing.entry(node.clone()).or_insert(now);
            if now.saturating_duration_since(since) < QUARANTINE {
                continue;
            }
            match api.get_opt(&node).await {
                Ok(None) => orphaned.extend(pods),
                Ok(Some(_)) => {}
                Err(failure) => warn!(node, error = %failure, "could not tell whether the node is gone"),
            }
        }
        orphaned
    }

    async fn remove(&self, pod: &Pod, why: Why) -> Result<(), ControllerError> {
        let key = ObjectKey::of(pod);
        info!(pod = %key, node = node_of(pod), "removing the pod");
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        if !is_finished(pod) {
            match api.replace_status(&key.name, &PostParams::default(), &failed(pod, why, self.clock.now())).await {
                Err(failure) if is_not_found(&failure) => return Ok(()),
                outcome => outcome.map(drop).doing(|| format!("marking pod {key} as failed"))?,
            }
        }
        let only_this_one = Preconditions { uid: Some(uid(&pod.metadata).to_owned()), resource_version: None };
        match api.delete(name(&pod.metadata), &DeleteParams::default().grace_period(0).preconditions(only_this_one)).await {
            Err(failure) if is_not_found(&failure) || is_conflict(&failure) => Ok(()),
            outcome => outcome.map(drop).doing(|| format!("deleting pod {key}")),
        }
    }
}

/// The pod in the phase Failed, with the condition that tells why.
fn failed(pod: &Pod, why: Why, now: Timestamp) -> Pod {
    let mut pod = pod.clone();
    let status = pod.status.get_or_insert_default();
    status.phase = Some("Failed".to_owned());
    if let Some(message) = why {
        let conditions = status.conditions.get_or_insert_default();
        conditions.retain(|condition| condition.type_ != "DisruptionTarget");
        conditions.push(PodCondition {
            type_: "DisruptionTarget".to_owned(),
            status: "True".to_owned(),
            reason: Some("DeletionByPodGC".to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: Some(Time(now)),
            ..PodCondition::default()
        });
    }
    pod
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Method;
    use serde_json::{Value, json};

    use crate::shared::fake_api::FakeApi;
    use crate::shared::test_loop::{Running, node};

    #[tokio::test(start_paused = true)]
    async fn pods_of_a_node_that_is_gone_go_after_the_quarantine() {
        let api = FakeApi::default();
        api.add(node("a", Value::Null));
        api.add(node("b", Value::Null));
        for node in ["a", "b"] {
            api.add(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("on-{node}"), "namespace": "n"},
                "spec": {"nodeName": node, "containers": []}, "status": {"phase": "Running"}}));
        }
        let running = Running::start(&api, super::LOOP, super::start);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(api.list("pods").len(), 2);
        api.fail(Method::DELETE, "/pods/", 500, 1);
        api.delete("nodes", "a", "Background");
        tokio::time::sleep(Duration::from_secs(39)).await;
        assert!(api.get("pods", "on-a").is_some());
        tokio::time::sleep(Duration::from_secs(62)).await;
        assert!(api.get("pods", "on-a").is_none() && api.get("pods", "on-b").is_some());
        assert_eq!(api.requests().iter().filter(|request| request.starts_with("PUT")).count(), 1, "marked as failed once");
        running.stop().await;
    }
}
