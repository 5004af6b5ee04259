//! What a worker remembers of its pod beside the runtime's state.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::{
    pod::backoff::Backoff,
    runtime::{ContainerState, ContainerStatus, SandboxState, SandboxStatus},
};

/// The runtime's state of one pod.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Newest first.
    pub sandboxes: Vec<SandboxStatus>,
    /// Newest first.
    pub containers: Vec<ContainerStatus>,
}

impl Observed {
    pub fn new(mut sandboxes: Vec<SandboxStatus>, mut containers: Vec<ContainerStatus>) -> Self {
        sandboxes.sort_by_key(|sandbox| std::cmp::Reverse((sandbox.attempt, sandbox.created_at)));
        containers.sort_by_key(|container| std::cmp::Reverse((container.attempt, container.created_at)));
        Self { sandboxes, containers }
    }

    /// The sandbox that containers may be started in.
    pub fn ready_sandbox(&self) -> Option<&SandboxStatus> {
        self.sandboxes.first().filter(|sandbox| sandbox.state == SandboxState::Ready)
    }

    /// The newest instance of a container.
    pub fn latest(&self, name: &str) -> Option<&ContainerStatus> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// The newest instance in one sandbox.
    pub fn latest_in(&self, sandbox: &str, name: &str) -> Option<&ContainerStatus> {
        self.containers.iter().find(|container| container.name == name && container.sandbox_id == sandbox)
    }

    /// The newest instance before the newest.
    pub fn before_latest(&self, name: &str) -> Option<&ContainerStatus> {
        self.containers.iter().filter(|container| container.name == name).nth(1)
    }

    pub fn running(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.containers.iter().filter(|container| container.state == ContainerState::Running)
    }
}

/// Why a container is not running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

/// What a container's probes have told about one instance of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probed {
    /// The startup probe has succeeded; `None` while there is no verdict.
    pub started: Option<bool>,
    pub ready: Option<bool>,
    /// Why the instance has to be killed.
    pub condemned: Option<Condemned>,
}

/// A verdict of death.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condemned {
    /// The text of the Killing event.
    pub message: String,
    /// The probe's own grace period.
    pub grace_seconds: Option<i64>,
}

/// What is remembered of a container.
#[derive(Clone, Debug, Default)]
pub struct ContainerMemory {
    pub waiting: Option<Waiting>,
    pub restarts: Backoff,
    pub pulls: Backoff,
    /// The image that instances of this agent process were started with, by container id.
    pub images: BTreeMap<String, String>,
}

/// The pod as a whole has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFailure {
    pub reason: &'static str,
    pub message: String,
}

/// What is remembered of a pod.
#[derive(Clone, Debug, Default)]
pub struct PodMemory {
    pub containers: BTreeMap<String, ContainerMemory>,
    /// By container id.
    pub probed: BTreeMap<String, Probed>,
    /// What containers left in their termination log, by container id.
    pub termination_messages: BTreeMap<String, String>,
    /// When the agent first saw the pod.
    pub start_time: Option<Timestamp>,
    pub failure: Option<PodFailure>,
    /// The worker is stopping the pod, or has.
    pub ended: Option<Ended>,
}

/// How far the end of a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Stopping,
    Stopped,
}

impl PodMemory {
    pub fn container(&mut self, name: &str) -> &mut ContainerMemory {
        self.containers.entry(name.to_owned()).or_default()
    }
}
