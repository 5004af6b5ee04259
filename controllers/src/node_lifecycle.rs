//! Follows the life of nodes: heartbeats, conditions, taints, and the eviction of pods from nodes that are lost.
//!
//! Watches Nodes, Leases and Pods. Owns the `node.kubernetes.io/…` taints that follow from conditions, the conditions of nodes
//! that fell silent, and the Ready condition of pods on them. [`eviction`] acts on the taints, whoever set them.

pub mod eviction;
mod health;
mod monitor;
mod pod_index;
mod taints;
mod tolerations;
mod zones;

#[cfg(test)]
mod loop_tests;

use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;

use crate::LoopContext;
use crate::shared::meta::name;
use crate::shared::{Change, EventKind, ObjectKey, WorkQueue, run_workers};
use monitor::{Monitor, State};
use pod_index::PodIndex;
pub use pod_index::node_of;
use zones::{Rates, Zones};

/// The loop's name.
pub const LOOP: &str = "node-controller";

/// Starts the loop.
pub fn start(context: LoopContext) -> BoxFuture<'static, ()> {
    let config = &context.config;
    let rates = Rates { primary: config.node_eviction_rate, secondary: config.secondary_node_eviction_rate };
    let pods = context.informers.get::<Pod>();
    let monitor = Arc::new(Monitor {
        client: context.client,
        nodes: context.informers.get(),
        leases: context.informers.get(),
        index: PodIndex::follow(pods.clone()),
        queue: WorkQueue::new(LOOP, context.seed),
        recorder: context.recorder,
        clock: context.clock,
        grace: config.node_grace,
        startup_grace: config.node_startup_grace,
        state: Mutex::new(State::new(Zones::new(rates))),
    });
    let listener = Arc::downgrade(&monitor);
    monitor.nodes.on_change(move |change| {
        if let Some(monitor) = listener.upgrade() {
            tell(&monitor, change);
            monitor.queue.add(ObjectKey::of(&**change.object()));
        }
    });
    let (workers, shutdown) = (context.config.workers, context.shutdown);
    Box::pin(async move {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = async { tokio::join!(monitor.nodes.synced(), monitor.leases.synced(), pods.synced()); } => {}
        }
        let tainter = monitor.clone();
        let taint = run_workers(monitor.queue.clone(), workers, shutdown.clone(), move |key| {
            let tainter = tainter.clone();
            async move { tainter.taint(&key).await }
        });
        let watch = async {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = monitor.run() => {}
            }
        };
        tokio::join!(taint, watch);
    })
}

/// Records that a node came or went.
fn tell(monitor: &Monitor, change: &Change<Node>) {
    let node = change.object();
    let node_name = name(&node.metadata);
    let (reason, what) = match change {
        Change::Added(_) => ("RegisteredNode", format!("Registered Node {node_name} in Controller")),
        Change::Deleted(_) => ("RemovingNode", format!("Removing Node {node_name} from Controller")),
        Change::Updated { .. } => return,
    };
    monitor.recorder.event(&**node, EventKind::Normal, reason, format!("Node {node_name} event: {what}"));
}
