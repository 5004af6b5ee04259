//! Keeps the Node object registered, its heartbeat fresh and its status true.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeStatus};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::Agent,
    events::Severity,
    node::{
        lease, machine,
        object::{self, Health, Verdict},
    },
    runtime::Fidelity,
};

/// The first look after registration; later ones are twice as long apart, up to the interval, until the node has the address
/// range without which it is not ready.
const FIRST_CHECK: Duration = Duration::from_millis(100);

/// Why a node without an address range is not ready, and its pods wait.
pub const NO_POD_CIDR: &str = "container runtime network not ready: the node has no pod CIDR yet";

/// How long the API may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Registers the node and keeps it up to date until `shutdown`.
pub async fn run(agent: Arc<Agent>, shutdown: CancellationToken) {
    let mut reporter = Reporter {
        nodes: Api::all(agent.client.clone()),
        agent: Arc::clone(&agent),
        conditions: Vec::new(),
        images: Vec::new(),
        reported: None,
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = reporter.live() => {}
    }
}

/// Renews the node's lease again and again, beside everything else: nothing slow may hold up a heartbeat.
async fn beat(agent: Arc<Agent>) {
    const FIRST_RETRY: Duration = Duration::from_millis(200);
    const LAST_RETRY: Duration = Duration::from_secs(7);
    let config = &agent.config;
    let mut retry = FIRST_RETRY;
    loop {
        // The Node may have been deleted and registered anew.
        let node_uid = agent.node_uid.read().clone();
        let renewal = lease::renew(&agent.client, config, node_uid.as_deref(), agent.clock.now());
        let pause = match tokio::time::timeout(ANSWER_TIMEOUT, renewal).await {
            Ok(Ok(())) => {
                retry = FIRST_RETRY;
                config.lease_renew_interval
            }
            failed => {
                let why = failed.map_or_else(
                    |_| "no answer".to_owned(),
                    |refused| refused.err().map_or_else(String::new, |error| error.to_string()),
                );
                tracing::warn!(node = config.name, why, "the node's lease could not be renewed");
                let pause = retry;
                retry = (retry * 2).min(LAST_RETRY);
                pause
            }
        };
        sleep(pause).await;
    }
}

struct Reporter {
    agent: Arc<Agent>,
    nodes: Api<Node>,
    conditions: Vec<NodeCondition>,
    images: Vec<k8s_openapi::api::core::v1::ContainerImage>,
    /// When the status was last written.
    reported: Option<Instant>,
}

impl Reporter {
    async fn live(&mut self) {
        let config = self.agent.config.clone();
        let mut wait = Duration::from_millis(200);
        while let Err(error) = self.register().await {
            tracing::warn!(node = config.name, %error, "the node could not be registered; trying again");
            sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(7));
        }
        tracing::info!(node = config.name, "the node is registered");
        self.agent.recorder.node(&config.name, Severity::Normal, "Starting", "Starting kubelet.");
        let beats = beat(Arc::clone(&self.agent));
        tokio::join!(beats, self.watch_over());
    }

    async fn watch_over(&mut self) {
        let interval = self.agent.config.status_check_interval;
        let mut pause = FIRST_CHECK.min(interval);
        loop {
            sleep(pause).await;
            pause = if self.agent.pod_cidrs.borrow().is_none() { (pause * 2).min(interval) } else { interval };
            let name = self.agent.config.name.clone();
            match tokio::time::timeout(ANSWER_TIMEOUT, self.check()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(node = name, %error, "the node's status could not be written"),
                Err(_) => tracing::warn!(node = name, "the API did not answer about the node's status"),
            }
        }
    }

    async fn register(&mut self) -> Result<(), kube::Error> {
        let config = &self.agent.config;
        self.conditions = object::conditions(&self.verdicts().await, &self.conditions, self.agent.clock.now());
        let status = NodeStatus { conditions: Some(self.conditions.clone()), ..self.fixed_status() };
        let wanted = object::node(config, status);
        let node = match self.nodes.create(&PostParams::default(), &wanted).await {
            Ok(node) => node,
            Err(kube::Error::Api(refusal)) if refusal.code == 409 => {
                let patch = json!({ "metadata": { "labels": object::labels(config) } });
                self.nodes.patch(&config.name, &PatchParams::default(), &Patch::Merge(&patch)).await?
            }
            Err(error) => return Err(error),
        };
        // The Node's address range decides whether pods can be run: an agent that comes back is as ready as it was.
        self.learn(&node).await;
        let known = node.status.and_then(|status| status.conditions).unwrap_or_default();
        self.conditions = object::conditions(&self.verdicts().await, &known, self.agent.clock.now());
        self.report().await
    }

    /// Looks at the machine, and writes the status when it is old or differs from what is stored: the control plane turns the
    /// conditions of a node that it did not hear of to Unknown, and the node itself has to take that back.
    async fn check(&mut self) -> Result<(), kube::Error> {
        let Some(node) = self.nodes.get_opt(&self.agent.config.name).await? else {
            tracing::warn!(node = self.agent.config.name, "the Node object was deleted; registering again");
            return self.register().await;
        };
        self.learn(&node).await;
        self.conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
        let verdicts = self.verdicts().await;
        let now = self.agent.clock.now();
        let conditions = object::conditions(&verdicts, &self.conditions, now);
        let images = self.images().await;
        let changed = !object::same_conditions(&conditions, &self.conditions) || images != self.images;
        let interval = self.agent.config.status_report_interval;
        let old = self.reported.is_none_or(|at| at.elapsed() >= interval);
        if !changed && !old {
            return Ok(());
        }
        self.tell_transition(&conditions);
        (self.conditions, self.images) = (conditions, images);
        // Written at the next check when it fails now.
        self.reported = None;
        self.report().await
    }

    fn tell_transition(&self, conditions: &[NodeCondition]) {
        let ready = |conditions: &[NodeCondition]| {
            conditions.iter().find(|condition| condition.type_ == "Ready").map(|condition| condition.status.clone())
        };
        let (before, after) = (ready(&self.conditions), ready(conditions));
        if before == after {
            return;
        }
        let name = &self.agent.config.name;
        let reason = if after.as_deref() == Some("True") { "NodeReady" } else { "NodeNotReady" };
        self.agent.recorder.node(name, Severity::Normal, reason, format!("Node {name} status is now: {reason}"));
    }

    async fn report(&mut self) -> Result<(), kube::Error> {
        let images = (!self.images.is_empty()).then(|| self.images.clone());
        let status = NodeStatus { conditions: Some(self.conditions.clone()), images, ..self.fixed_status() };
        let patch = json!({ "status": status });
        match self.nodes.patch_status(&self.agent.config.name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
            Ok(node) => {
                self.reported = Some(Instant::now());
                self.learn(&node).await;
                Ok(())
            }
            Err(kube::Error::Api(refusal)) if refusal.code == 404 => {
                tracing::warn!(node = self.agent.config.name, "the Node object was deleted; registering again");
                Box::pin(self.register()).await
            }
            Err(error) => Err(error),
        }
    }

    async fn learn(&mut self, node: &Node) {
        let uid = node.metadata.uid.clone();
        let before = std::mem::replace(&mut *self.agent.node_uid.write(), uid.clone());
        let spec = node.spec.as_ref();
        let many = spec.and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default();
        let cidrs = if many.is_empty() { spec.and_then(|spec| spec.pod_cidr.clone()).into_iter().collect() } else { many };
        if cidrs.is_empty() {
            if before.is_some() && before != uid {
                // Another Node: the range of the one before may be another node's by now.
                self.agent.pod_cidrs.send_replace(None);
            }
            return;
        }
        if self.agent.pod_cidrs.borrow().as_ref() == Some(&cidrs) {
            return;
        }
        match self.agent.runtime.update_pod_cidrs(&cidrs).await {
            Ok(()) => drop(self.agent.pod_cidrs.send_replace(Some(cidrs))),
            Err(error) => tracing::warn!(%error, "the runtime did not take the node's pod address range"),
        }
    }

    fn fixed_status(&self) -> NodeStatus {
        let config = &self.agent.config;
        object::fixed_status(
            config,
            self.agent.capacity,
            machine::system_info(&config.kubelet_version, self.agent.runtime_version.clone()),
        )
    }

    async fn verdicts(&self) -> Vec<Verdict> {
        object::verdicts(&self.health().await, &self.agent.config.eviction_hard)
    }

    async fn health(&self) -> Health {
        let has_range = self.agent.pod_cidrs.borrow().is_some();
        let runtime_error = match has_range {
            true => self.agent.runtime.ready().await.err().map(|error| error.to_string()),
            false => Some(NO_POD_CIDR.to_owned()),
        };
        if self.agent.runtime.fidelity() == Fidelity::Simulated {
            return Health { runtime_error, ..Health::default() };
        }
        Health {
            runtime_error,
            memory_bytes: machine::memory(),
            disk: self.agent.config.data_dir.as_deref().and_then(machine::disk),
            processes: machine::processes(),
        }
    }

    async fn images(&self) -> Vec<k8s_openapi::api::core::v1::ContainerImage> {
        self.agent.runtime.list_images().await.map(|images| object::images(&images)).unwrap_or_default()
    }
}
