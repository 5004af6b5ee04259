//! Watches over heartbeats: what is silent too long becomes Unknown, its pods not ready, and it is given up at its zone's rate.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;
use tracing::{debug, info, warn};
use trireme_api::clock::Clock;

use super::health::{Heartbeat, allowance, condition, is_ready, is_unknown, silent_conditions};
use super::pod_index::PodIndex;
use super::taints::{Eviction, desired, is_evicting};
use super::zones::{Census, Outlook, ZoneKey, Zones, zone_of};
use crate::shared::error::{Doing, is_conflict, is_not_found};
use crate::shared::meta::{self, name, uid};
use crate::shared::{ControllerError, EventKind, Informer, Next, ObjectKey, Recorder, WorkQueue};

/// How often nodes that wait for their zone's rate are looked at.
const GRANT_PERIOD: Duration = Duration::from_millis(100);
/// Requests of one pass that run at the same time.
const CONCURRENCY: usize = 16;

/// Where nodes renew their leases.
const LEASE_NAMESPACE: &str = "kube-node-lease";

pub struct Monitor {
    pub client: Client,
    pub nodes: Arc<Informer<Node>>,
    pub leases: Arc<Informer<Lease>>,
    pub index: Arc<PodIndex>,
    /// Nodes whose taints are to be looked at.
    pub queue: Arc<WorkQueue<ObjectKey>>,
    pub recorder: Recorder,
    pub clock: Arc<dyn Clock>,
    pub grace: Duration,
    pub startup_grace: Duration,
    pub state: Mutex<State>,
}

/// What the monitor remembers between passes.
pub struct State {
    heartbeats: HashMap<String, Heartbeat>,
    zones: Zones,
    /// Nodes that may be given the taint that evicts their pods.
    permitted: HashSet<String>,
}

impl State {
    pub fn new(zones: Zones) -> Self {
        State { heartbeats: HashMap::new(), zones, permitted: HashSet::new() }
    }
}

impl Monitor {
    /// Five seconds, or less where the grace is short.
    fn period(&self) -> Duration {
        (self.grace / 8).clamp(GRANT_PERIOD, Duration::from_secs(5))
    }

    /// Watches until it is dropped.
    pub async fn run(&self) {
        let mut next_pass = Instant::now();
        let mut last_look = Instant::now();
        loop {
            let now = Instant::now();
            self.excuse(now.saturating_duration_since(last_look));
            last_look = now;
            if now >= next_pass {
                self.pass(now).await;
                next_pass = now + self.period();
            }
            let granted = self.grant();
            for node in granted {
                info!(node, "giving up the node's pods");
                self.queue.add(ObjectKey::new("", node));
            }
            tokio::time::sleep(GRANT_PERIOD).await;
        }
    }

    /// A process that was held up for `gap` heard nobody meanwhile: that is not the nodes' silence.
    fn excuse(&self, gap: Duration) {
        if gap > self.period() * 2 {
            warn!(?gap, "the monitor was held up; nodes are given that time");
            self.state.lock().heartbeats.values_mut().for_each(|heartbeat| heartbeat.seen += gap);
        }
    }

    fn grant(&self) -> Vec<String> {
        let mut state = self.state.lock();
        let granted = state.zones.grant(Instant::now());
        state.permitted.extend(granted.iter().cloned());
        granted
    }

    async fn pass(&self, now: Instant) {
        let nodes = self.nodes.list();
        let silent = self.observe(&nodes, now);
        futures::stream::iter(nodes.iter().filter(|node| silent.contains(name(&node.metadata))))
            .for_each_concurrent(CONCURRENCY, |node| self.declare_unknown(node))
            .await;
        let unknown = nodes.iter().filter(|node| silent.contains(name(&node.metadata)) || is_unknown(node));
        let pods: Vec<Arc<Pod>> =
            unknown.flat_map(|node| self.index.pods(name(&node.metadata))).filter(|pod| meta::is_ready(pod)).collect();
        futures::stream::iter(&pods).for_each_concurrent(CONCURRENCY, |pod| self.mark_not_ready(pod)).await;
    }

    /// Takes note of heartbeats and zones; returns the nodes that have been silent for too long.
    fn observe(&self, nodes: &[Arc<Node>], now: Instant) -> HashSet<String> {
        let mut state = self.state.lock();
        let present: HashSet<&str> = nodes.iter().map(|node| name(&node.metadata)).collect();
        state.heartbeats.retain(|node, _| present.contains(node.as_str()));
        state.permitted.retain(|node| present.contains(node.as_str()));
        let mut silent = HashSet::new();
        let mut census: BTreeMap<ZoneKey, Census> = BTreeMap::new();
        for node in nodes {
            let node_name = name(&node.metadata);
            let lease = self.leases.get(&ObjectKey::new(LEASE_NAMESPACE, node_name));
            let current = Heartbeat::observe(node, lease.as_deref(), now);
            let heartbeat = state.heartbeats.entry(node_name.to_owned()).or_insert_with(|| current.clone());
            heartbeat.update(current);
            let is_silent = now.saturating_duration_since(heartbeat.seen) > allowance(node, self.grace, self.startup_grace);
            if is_silent {
                silent.insert(node_name.to_owned());
            }
            let zone = census.entry(zone_of(node)).or_default();
            if is_ready(node) && !is_silent {
                zone.ready += 1;
            } else {
                zone.not_ready += 1;
            }
        }
        let outlook = state.zones.update(&census, now);
        match outlook {
            Outlook::Dark => {
                state.permitted.clear();
                for node in nodes.iter().filter(|node| is_evicting(node)) {
                    self.queue.add(ObjectKey::of(&**node));
                }
            }
            Outlook::Dawn => state.heartbeats.values_mut().for_each(|heartbeat| heartbeat.seen = now),
            Outlook::Usual => {
                // A node that fell silent just now has its turn when its condition says so.
                for node in nodes.iter().filter(|node| !is_evicting(node) && says_not_ready(node)) {
                    let node_name = name(&node.metadata);
                    if (!is_unknown(node) || silent.contains(node_name)) && !state.permitted.contains(node_name) {
                        state.zones.enqueue(&zone_of(node), node_name);
                    }
                }
            }
        }
        silent
    }

    async fn declare_unknown(&self, node: &Node) {
        let Some(conditions) = silent_conditions(node, self.clock.now()) else { return };
        let node_name = name(&node.metadata);
        let was_ready = is_ready(node);
        let api: Api<Node> = Api::all(self.client.clone());
        match api.replace_status(node_name, &PostParams::default(), &with_conditions(node, conditions)).await {
            Ok(_) => {
                info!(node = node_name, "node stopped posting its status");
                if was_ready {
                    let text = format!("Node {node_name} status is now: NodeNotReady");
                    self.recorder.event(node, EventKind::Normal, "NodeNotReady", text);
                }
            }
            Err(failure) if is_conflict(&failure) || is_not_found(&failure) => {
                debug!(node = node_name, "the node changed meanwhile")
            }
            Err(failure) => warn!(node = node_name, error = %failure, "could not write the node's status; trying again"),
        }
    }

    /// Endpoints leave out pods that are not ready. The node agent says how they are when it is back.
    async fn mark_not_ready(&self, pod: &Pod) {
        let key = ObjectKey::of(pod);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        match api.replace_status(&key.name, &PostParams::default(), &not_ready(pod, self.clock.now())).await {
            Ok(_) => self.recorder.event(pod, EventKind::Warning, "NodeNotReady", "Node is not ready"),
            Err(failure) if is_conflict(&failure) || is_not_found(&failure) => debug!(pod = %key, "the pod changed meanwhile"),
            Err(failure) => warn!(pod = %key, error = %failure, "could not mark the pod; trying again"),
        }
    }

    /// Gives one node the taints its conditions call for.
    pub async fn taint(&self, key: &ObjectKey) -> Result<Next, ControllerError> {
        let Some(node) = self.nodes.get(key) else {
            self.state.lock().zones.dequeue(&key.name);
            return Ok(Next::Done);
        };
        let Some(taints) = desired(&node, self.eviction(&node), self.clock.now()) else { return Ok(Next::Done) };
        let patch = json!({
            "metadata": {"uid": uid(&node.metadata), "resourceVersion": node.metadata.resource_version},
            "spec": {"taints": (!taints.is_empty()).then_some(taints)},
        });
        let api: Api<Node> = Api::all(self.client.clone());
        match api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(failure) if is_not_found(&failure) => Ok(Next::Done),
            outcome => outcome.map(|_| Next::Done).doing(|| format!("tainting node {key}")),
        }
    }

    fn eviction(&self, node: &Node) -> Eviction {
        let mut state = self.state.lock();
        let node_name = name(&node.metadata);
        if is_ready(node) {
            // It was given up for nothing, or is back.
            state.permitted.remove(node_name);
            state.zones.dequeue(node_name);
        }
        if state.zones.all_dark() {
            Eviction::Forbidden
        } else if state.permitted.contains(node_name) {
            Eviction::Permitted
        } else {
            Eviction::Waiting
        }
    }
}

/// Whether the node's Ready condition is there and not True.
fn says_not_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|ready| ready.status != "True")
}

fn with_conditions(node: &Node, conditions: Vec<NodeCondition>) -> Node {
    let mut node = node.clone();
    node.status.get_or_insert_default().conditions = Some(conditions);
    node
}

fn not_ready(pod: &Pod, now: Timestamp) -> Pod {
    let mut pod = pod.clone();
    for condition in pod.status.iter_mut().flat_map(|status| status.conditions.iter_mut().flatten()) {
        if condition.type_ == "Ready" {
            condition.status = "False".to_owned();
            condition.last_transition_time = Some(Time(now));
        }
    }
    pod
}
