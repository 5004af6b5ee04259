//! What should happen next to a pod: a pure function of its spec, the runtime's state, what the worker remembers, and
//! the time. After the kubelet's `computePodActions`, `computeInitContainerActions` and `doBackOff`.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::{
    pod::{
        deadline,
        memory::{Observed, PodFailure, PodMemory},
        model::{RestartPolicy, Role, Slot, init_slots, regular_slots, restart_policy},
    },
    runtime::{ContainerState, ContainerStatus, SandboxState},
};

/// Everything a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub pod: &'a Pod,
    pub observed: &'a Observed,
    pub memory: &'a PodMemory,
    pub now: Timestamp,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The sandbox is dead: end what is left of it, and free its address and ports.
    StopSandbox {
        id: String,
    },
    RunSandbox {
        attempt: u32,
    },
    Start {
        name: String,
        attempt: u32,
        exited_at: Option<Timestamp>,
    },
    /// Wait with the restart.
    Hold {
        name: String,
        delay: Duration,
    },
    Kill {
        id: String,
        name: String,
        message: String,
        grace_seconds: Option<i64>,
    },
    /// An instance that nobody will ask for, or that was made and may or may not have been started.
    Remove {
        id: String,
    },
    /// A dead sandbox that holds no containers any more.
    RemoveSandbox {
        id: String,
    },
}

/// How a pod ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Succeeded,
    Failed,
}

/// What to do with a pod now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Keep it going: do these, and look again at the time given.
    Continue { steps: Vec<Step>, wake_at: Option<Timestamp> },
    /// Stop everything in it. `failure` is set when the agent ends the pod, not its containers.
    Terminate { failure: Option<PodFailure> },
}

/// Decides.
pub fn decide(view: View<'_>) -> Decision {
    if view.memory.failure.is_some() || view.pod.metadata.deletion_timestamp.is_some() || outcome(view).is_some() {
        return Decision::Terminate { failure: None };
    }
    let deadline = deadline::active_deadline(view.pod, view.memory.start_time);
    if deadline.is_some_and(|deadline| deadline <= view.now) {
        let message = "Pod was active on the node longer than the specified deadline".to_owned();
        return Decision::Terminate { failure: Some(PodFailure { reason: "DeadlineExceeded", message }) };
    }
    let mut plan = Plan { view, steps: Vec::new(), wake_at: deadline };
    plan.sandbox_and_containers();
    plan.prune();
    Decision::Continue { steps: plan.steps, wake_at: plan.wake_at }
}

/// Whether and how the pod's own containers have ended it for good.
pub fn outcome(view: View<'_>) -> Option<Outcome> {
    let pod = view.pod;
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    match phase {
        Some("Succeeded") => return Some(Outcome::Succeeded),
        Some("Failed") => return Some(Outcome::Failed),
        _ => {}
    }
    let ended = |slot: &Slot<'_>| {
        let latest = view.observed.latest(slot.name()).filter(|container| container.state == ContainerState::Exited)?;
        (!slot.restart_policy(pod).restarts(latest.exit_code)).then_some(latest.exit_code)
    };
    let failed_init = init_slots(pod).iter().any(|slot| slot.role == Role::Init && ended(slot).is_some_and(|code| code != 0));
    if failed_init {
        return Some(Outcome::Failed);
    }
    let codes: Option<Vec<i32>> = regular_slots(pod).iter().map(ended).collect();
    let codes = codes.filter(|codes| !codes.is_empty())?;
    Some(if codes.iter().all(|code| *code == 0) { Outcome::Succeeded } else { Outcome::Failed })
}

/// Whether the init containers are behind the pod: one of the regular containers was made in this sandbox.
pub fn initialized(view: View<'_>) -> bool {
    let Some(sandbox) = view.observed.sandboxes.first() else { return false };
    let init = init_slots(view.pod);
    let all_done = init.iter().all(|slot| match view.observed.latest_in(&sandbox.id, slot.name()) {
        None => false,
        Some(container) => match slot.role {
            Role::Sidecar => container.state == ContainerState::Running && started(view, slot, container),
            _ => container.state == ContainerState::Exited && container.exit_code == 0,
        },
    });
    all_done || regular_slots(view.pod).iter().any(|slot| view.observed.latest_in(&sandbox.id, slot.name()).is_some())
}

/// Whether a running container's startup probe, if it has one, has succeeded.
pub fn started(view: View<'_>, slot: &Slot<'_>, container: &ContainerStatus) -> bool {
    container.state == ContainerState::Running
        && (slot.container.startup_probe.is_none()
            || view.memory.probed.get(&container.id).and_then(|probed| probed.started) == Some(true))
}

/// The number of the next instance of a container.
pub fn next_attempt(view: View<'_>, name: &str) -> u32 {
    match view.observed.latest(name) {
        Some(latest) => latest.attempt + 1,
        None => lost_restarts(view.pod, name),
    }
}

/// Restarts that the API remembers of a container that the runtime has lost (the machine was rebooted, say).
fn lost_restarts(pod: &Pod, name: &str) -> u32 {
    let Some(status) = &pod.status else { return 0 };
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let known = lists.into_iter().flatten().flatten().find(|status| status.name == name);
    known.map_or(0, |status| {
        let restarts = u32::try_from(status.restart_count).unwrap_or(0);
        restarts + u32::from(status.container_id.as_ref().is_some_and(|id| !id.is_empty()))
    })
}

struct Plan<'a> {
    view: View<'a>,
    steps: Vec<Step>,
    wake_at: Option<Timestamp>,
}

impl Plan<'_> {
    fn sandbox_and_containers(&mut self) {
        let view = self.view;
        let Some(sandbox) = view.observed.ready_sandbox() else {
            self.new_sandbox();
            return;
        };
        if initialized(view) {
            for slot in init_slots(view.pod).iter().filter(|slot| slot.role == Role::Sidecar) {
                self.keep_running(slot, &sandbox.id);
            }
            for slot in &regular_slots(view.pod) {
                self.keep_running(slot, &sandbox.id);
            }
            return;
        }
        for slot in &init_slots(view.pod) {
            let done = match view.observed.latest_in(&sandbox.id, slot.name()) {
                Some(container) if container.state == ContainerState::Exited && slot.role == Role::Init => {
                    container.exit_code == 0
                }
                Some(container) => slot.role == Role::Sidecar && started(view, slot, container),
                None => false,
            };
            self.keep_running(slot, &sandbox.id);
            if !done {
                return;
            }
        }
        for slot in &regular_slots(view.pod) {
            self.keep_running(slot, &sandbox.id);
        }
    }

    /// The pod has no sandbox, or a dead one.
    fn new_sandbox(&mut self) {
        let view = self.view;
        let was_running = !view.observed.containers.is_empty();
        let stays_down = was_running && restart_policy(view.pod) == RestartPolicy::Never;
        for sandbox in &view.observed.sandboxes {
            let alive = view.observed.running().any(|container| container.sandbox_id == sandbox.id);
            // One that comes after a dead one needs its host ports, and perhaps its address.
            if alive || !stays_down {
                self.steps.push(Step::StopSandbox { id: sandbox.id.clone() });
            }
        }
        if stays_down {
            return;
        }
        let attempt = view.observed.sandboxes.first().map_or(0, |sandbox| sandbox.attempt + 1);
        self.steps.push(Step::RunSandbox { attempt });
    }

    /// Starts what should run and does not, and kills what runs and should not.
    fn keep_running(&mut self, slot: &Slot<'_>, sandbox: &str) {
        let view = self.view;
        let name = slot.name();
        let latest = view.observed.latest(name);
        let here = latest.filter(|container| container.sandbox_id == sandbox);
        match here.map(|container| (container.state, container)) {
            Some((ContainerState::Running, container)) => self.condemn(slot, container),
            Some((ContainerState::Exited, container)) => {
                if slot.restart_policy(view.pod).restarts(container.exit_code) {
                    self.restart(name, container);
                }
            }
            Some((ContainerState::Created | ContainerState::Unknown, container)) => {
                // Made but never started, or lost sight of: an attempt that failed. Or one that an earlier agent asked for and
                // that starts at this moment: without its end there would be two.
                self.restart(name, container);
            }
            None => {
                let ended_before = latest.is_some_and(|container| {
                    container.state == ContainerState::Exited
                        && slot.role == Role::Regular
                        && !slot.restart_policy(view.pod).restarts(container.exit_code)
                });
                if !ended_before {
                    self.start(name, None);
                }
            }
        }
    }

    fn condemn(&mut self, slot: &Slot<'_>, container: &ContainerStatus) {
        let view = self.view;
        let name = slot.name();
        let condemned = view.memory.probed.get(&container.id).and_then(|probed| probed.condemned.as_ref());
        let started_with = view.memory.containers.get(name).and_then(|memory| memory.images.get(&container.id));
        // What an earlier agent started, the runtime tells.
        let started_with = started_with.or(Some(&container.image).filter(|image| !image.is_empty()));
        let changed = started_with.is_some_and(|image| Some(image) != slot.container.image.as_ref());
        let (message, grace_seconds) = match condemned {
            Some(condemned) => (condemned.message.clone(), condemned.grace_seconds),
            None if changed => (format!("Container {name} definition changed, will be restarted"), None),
            None => return,
        };
        self.steps.push(Step::Kill { id: container.id.clone(), name: name.to_owned(), message, grace_seconds });
    }

    fn restart(&mut self, name: &str, container: &ContainerStatus) {
        let view = self.view;
        let ended = container.finished_at.unwrap_or(container.created_at);
        let backoff = view.memory.containers.get(name).map(|memory| memory.restarts).unwrap_or_default();
        match backoff.waiting(ended, view.now) {
            Some((until, delay)) => {
                self.wake(until);
                self.steps.push(Step::Hold { name: name.to_owned(), delay });
            }
            None => {
                if container.state != ContainerState::Exited {
                    self.steps.push(Step::Remove { id: container.id.clone() });
                }
                self.start(name, Some(ended));
            }
        }
    }

    fn start(&mut self, name: &str, exited_at: Option<Timestamp>) {
        let attempt = next_attempt(self.view, name);
        self.steps.push(Step::Start { name: name.to_owned(), attempt, exited_at });
    }

    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Keeps the newest two instances of each container: what runs, and what `--previous` shows. Of a container only the newest
    /// may run. Dead sandboxes before the newest go with the last of their containers.
    fn prune(&mut self) {
        let Observed { containers, sandboxes } = self.view.observed;
        for (index, container) in containers.iter().enumerate() {
            let newer = containers[..index].iter().filter(|other| other.name == container.name).count();
            if newer >= 1 && container.state == ContainerState::Running {
                self.steps.push(Step::Kill {
                    id: container.id.clone(),
                    name: container.name.clone(),
                    message: format!("Container {} has a newer instance, will be stopped", container.name),
                    grace_seconds: None,
                });
            } else if newer >= 2 {
                self.steps.push(Step::Remove { id: container.id.clone() });
            }
        }
        for sandbox in sandboxes.iter().skip(1).filter(|sandbox| sandbox.state == SandboxState::NotReady) {
            if !containers.iter().any(|container| container.sandbox_id == sandbox.id) {
                self.steps.push(Step::RemoveSandbox { id: sandbox.id.clone() });
            }
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
