//! Gives every node a part of the pods' address range of its own.
//!
//! Watches Nodes. Owns `spec.podCIDR` and `spec.podCIDRs` of those that come without. What nodes hold is read from the nodes
//! themselves, so a new leader knows it from its first list; a part is free again when its node is deleted.

mod allocator;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use tracing::{info, warn};

use crate::LoopContext;
use crate::shared::error::{Doing, is_not_found};
use crate::shared::meta::{is_deleting, name, uid};
use crate::shared::{Change, ControllerError, EventKind, Informer, Next, ObjectKey, Recorder, WorkQueue, run_workers};
use allocator::Allocator;

/// The loop's name, as Kubernetes' range allocator signs its events.
pub const LOOP: &str = "cidrAllocator";

/// How soon a node that found no free part tries again, besides at every deletion of a node.
const RETRY_WHEN_FULL: Duration = Duration::from_secs(30);

struct Controller {
    client: Client,
    nodes: Arc<Informer<Node>>,
    queue: Arc<WorkQueue<ObjectKey>>,
    allocator: Mutex<Allocator>,
    recorder: Recorder,
}

/// Starts the loop.
pub fn start(context: LoopContext) -> BoxFuture<'static, ()> {
    let allocator = Allocator::new(context.config.pod_cidr, context.config.node_cidr_prefix);
    let controller = Arc::new(Controller {
        client: context.client,
        nodes: context.informers.get(),
        queue: WorkQueue::new(LOOP, context.seed),
        allocator: Mutex::new(allocator),
        recorder: context.recorder,
    });
    let listener = Arc::downgrade(&controller);
    controller.nodes.on_change(move |change| {
        if let Some(controller) = listener.upgrade() {
            controller.node_changed(change);
        }
    });
    let shutdown = context.shutdown;
    Box::pin(async move {
        // Nothing is given away before all that is held is known.
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = controller.nodes.synced() => {}
        }
        let queue = controller.queue.clone();
        run_workers(queue, 1, shutdown, move |key| {
            let controller = controller.clone();
            async move { controller.pass(&key).await }
        })
        .await;
    })
}

/// The CIDRs the node has, as texts.
fn cidrs(node: &Node) -> Vec<&String> {
    let spec = node.spec.iter();
    let both = spec.flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr));
    both.filter(|cidr| !cidr.is_empty()).collect()
}

impl Controller {
    fn node_changed(&self, change: &Change<Node>) {
        let node = change.object();
        if let Change::Deleted(_) = change {
            self.allocator.lock().release(name(&node.metadata));
            for waiting in self.nodes.list().iter().filter(|node| cidrs(node).is_empty()) {
                self.queue.add(ObjectKey::of(&**waiting));
            }
            return;
        }
        let texts = cidrs(node);
        if texts.is_empty() {
            self.queue.add(ObjectKey::of(&**node));
        }
        let mut allocator = self.allocator.lock();
        // An IPv6 CIDR takes nothing from this range.
        for cidr in texts.into_iter().filter_map(|text| text.parse().ok()) {
            allocator.occupy(name(&node.metadata), cidr);
        }
    }

    async fn pass(&self, key: &ObjectKey) -> Result<Next, ControllerError> {
        let Some(node) = self.nodes.get(key) else { return Ok(Next::Done) };
        if !cidrs(&node).is_empty() || is_deleting(&node.metadata) {
            return Ok(Next::Done);
        }
        let Some(cidr) = self.allocator.lock().allocate(&key.name) else {
            warn!(node = key.name, "no part of the pods' range is free");
            let text = format!("Node {} status is now: CIDRNotAvailable", key.name);
            self.recorder.event(&*node, EventKind::Normal, "CIDRNotAvailable", text);
            return Ok(Next::After(RETRY_WHEN_FULL));
        };
        let text = cidr.to_string();
        let patch = json!({"metadata": {"uid": uid(&node.metadata)}, "spec": {"podCIDR": text, "podCIDRs": [text]}});
        let nodes: Api<Node> = Api::all(self.client.clone());
        match nodes.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => {
                info!(node = key.name, cidr = text, "pod CIDR given");
                Ok(Next::Done)
            }
            // The deletion may have been seen before the part was taken.
            Err(failure) if is_not_found(&failure) => {
                self.allocator.lock().release(&key.name);
                Ok(Next::Retry)
            }
            // The part stays the node's: the patch may have been applied although the answer was lost.
            Err(failure) => Err(failure).doing(|| format!("giving {text} to node {key}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use http::Method;
    use serde_json::{Value, json};

    use crate::shared::fake_api::FakeApi;
    use crate::shared::test_loop::{Running, node};

    fn cidr_of(api: &FakeApi, name: &str) -> String {
        let node = api.get("nodes", name).unwrap_or_default();
        assert!(node["spec"]["podCIDR"].is_null() || node["spec"]["podCIDRs"] == json!([node["spec"]["podCIDR"]]));
        node["spec"]["podCIDR"].as_str().unwrap_or_default().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_have_parts_of_their_own_through_failures_and_restarts() {
        let api = FakeApi::default();
        api.add(node("kept", json!({"spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]}})));
        api.fail(Method::PATCH, "/nodes/", 500, 3);
        let running = Running::start(&api, super::LOOP, super::start);
        for number in 0..5 {
            api.add(node(&format!("n{number}"), Value::Null));
        }
        let all_given = |api: &FakeApi| api.list("nodes").iter().all(|node| node["spec"]["podCIDR"].is_string());
        api.until("all given", all_given).await;
        running.stop().await;
        let running = Running::start(&api, super::LOOP, super::start);
        api.add(node("late", Value::Null));
        api.until("all given", all_given).await;
        let texts: BTreeSet<String> =
            api.list("nodes").iter().map(|node| cidr_of(&api, node["metadata"]["name"].as_str().unwrap())).collect();
        assert_eq!(texts.len(), 7, "{texts:?}");
        assert_eq!(cidr_of(&api, "kept"), "10.244.1.0/24");
        running.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_range_is_told_and_a_deleted_node_makes_room() {
        let api = FakeApi::default();
        api.add(node("a", Value::Null));
        api.add(node("b", Value::Null));
        let running = Running::start_with(&api, super::LOOP, super::start, |config| {
            config.pod_cidr = "10.0.0.0/24".parse().unwrap();
        });
        api.until("one given", |api| !cidr_of(api, "a").is_empty() || !cidr_of(api, "b").is_empty()).await;
        api.until("told", |api| {
            api.list("events").iter().any(|event| {
                let node = event["involvedObject"]["name"].as_str().unwrap();
                event["reason"] == "CIDRNotAvailable"
                    && event["message"] == format!("Node {node} status is now: CIDRNotAvailable")
            })
        })
        .await;
        let (has, lacks) = if cidr_of(&api, "a").is_empty() { ("b", "a") } else { ("a", "b") };
        api.delete("nodes", has, "Background");
        api.until("room was made", |api| cidr_of(api, lacks) == "10.0.0.0/24").await;
        running.stop().await;
    }
}
