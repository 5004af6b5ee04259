//! The pod's status as the API shall show it: a pure function. After the kubelet's `generateAPIPodStatus`, `getPhase` and
//! `pkg/kubelet/status/generate.go`.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus as ApiContainerStatus, HostIP, PodCondition, PodIP, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::{
    pod::{
        memory::Ended,
        model::{Role, Slot, host_network, init_slots, regular_slots},
        plan::{Outcome, View, initialized, outcome, started},
        qos::qos_class,
    },
    runtime::{ContainerState, ContainerStatus, SandboxState},
};

/// The facts of the node that a pod's status shows.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    pub node_ip: IpAddr,
    /// The scheme of container ids: `trireme`, `containerd`, …
    pub runtime_name: String,
}

/// The status. `previous` is the last one generated, or the API's: times of transitions are taken over from it.
pub fn generate(view: View<'_>, node: &NodeFacts, previous: Option<&PodStatus>) -> PodStatus {
    let generator = Generator { view, node, previous };
    let init: Vec<ApiContainerStatus> = init_slots(view.pod).iter().map(|slot| generator.container(slot)).collect();
    let regular: Vec<ApiContainerStatus> = regular_slots(view.pod).iter().map(|slot| generator.container(slot)).collect();
    let phase = generator.phase(&init, &regular);
    let addresses = generator.addresses();
    let generation = view.pod.metadata.generation;
    let failure = view.memory.failure.as_ref();
    let api = view.pod.status.as_ref();
    PodStatus {
        conditions: Some(generator.conditions(phase, &init, &regular)),
        container_statuses: Some(regular),
        init_container_statuses: (!init.is_empty()).then_some(init),
        host_ip: Some(node.node_ip.to_string()),
        host_ips: Some(vec![HostIP { ip: node.node_ip.to_string() }]),
        pod_ip: addresses.first().map(ToString::to_string),
        pod_ips: (!addresses.is_empty()).then(|| addresses.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()),
        message: failure.map(|failure| failure.message.clone()).or_else(|| api?.message.clone()),
        reason: failure.map(|failure| failure.reason.to_owned()).or_else(|| api?.reason.clone()),
        observed_generation: generation,
        phase: Some(phase.to_owned()),
        qos_class: Some(qos_class(view.pod).as_str().to_owned()),
        start_time: view.memory.start_time.map(Time),
        ..PodStatus::default()
    }
}

struct Generator<'a> {
    view: View<'a>,
    node: &'a NodeFacts,
    previous: Option<&'a PodStatus>,
}

impl Generator<'_> {
    fn addresses(&self) -> Vec<IpAddr> {
        match self.view.observed.sandboxes.first() {
            Some(_) if host_network(self.view.pod) => vec![self.node.node_ip],
            Some(sandbox) if !sandbox.addresses.is_empty() => sandbox.addresses.clone(),
            // A stopped sandbox has given its address back; the status goes on showing the one it had.
            _ => {
                let kept = self.previous.and_then(|previous| previous.pod_ips.as_ref());
                kept.into_iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect()
            }
        }
    }

    fn container(&self, slot: &Slot<'_>) -> ApiContainerStatus {
        let view = self.view;
        let name = slot.name();
        let image = slot.container.image.clone().unwrap_or_default();
        let old = self.previous_container(name);
        let Some(latest) = view.observed.latest(name) else {
            return self.without_instance(slot, old, image);
        };
        let waiting = view.memory.containers.get(name).and_then(|memory| memory.waiting.as_ref());
        let mut state = self.state(latest);
        let mut last_state =
            view.observed.before_latest(name).map(|before| self.state(before)).or_else(|| old?.last_state.clone());
        let stopping = view.memory.ended.is_some() || outcome(view).is_some();
        let stays_down = stopping || !slot.restart_policy(view.pod).restarts(latest.exit_code);
        if latest.state != ContainerState::Running
            && !stays_down
            && let Some(waiting) = waiting
        {
            if state.terminated.is_some() {
                last_state = Some(state);
            }
            state = waiting_state(&waiting.reason, Some(&waiting.message));
        }
        let running = latest.state == ContainerState::Running;
        let is_started = started(view, slot, latest);
        ApiContainerStatus {
            name: name.to_owned(),
            container_id: Some(self.container_id(&latest.id)),
            image: if latest.image.is_empty() { image } else { latest.image.clone() },
            image_id: latest.image_id.clone(),
            ready: match slot.role {
                Role::Init => latest.state == ContainerState::Exited && latest.exit_code == 0,
                Role::Sidecar | Role::Regular => running && is_started && self.probed_ready(slot, &latest.id),
            },
            restart_count: i32::try_from(latest.attempt).unwrap_or(i32::MAX),
            started: Some(is_started),
            state: Some(state),
            last_state: last_state.filter(|state| *state != ApiState::default()),
            resources: slot.container.resources.clone().filter(|_| running),
            allocated_resources: slot
                .container
                .resources
                .as_ref()
                .and_then(|resources| resources.requests.clone())
                .filter(|_| running),
            ..ApiContainerStatus::default()
        }
    }

    /// The status of a container that the runtime knows nothing of: not made yet, or cleaned away, or lost.
    fn without_instance(&self, slot: &Slot<'_>, old: Option<&ApiContainerStatus>, image: String) -> ApiContainerStatus {
        let view = self.view;
        let mut status =
            ApiContainerStatus { name: slot.name().to_owned(), image, started: Some(false), ..ApiContainerStatus::default() };
        let waiting = view.memory.containers.get(slot.name()).and_then(|memory| memory.waiting.as_ref());
        let old_state = old.and_then(|old| old.state.as_ref());
        if let (Some(old), Some(terminated)) = (old, old_state.and_then(|state| state.terminated.as_ref()))
            && (view.memory.ended.is_some() || slot.role == Role::Init || outcome(view).is_some())
        {
            status.state = Some(ApiState { terminated: Some(terminated.clone()), ..ApiState::default() });
            (status.container_id, status.image_id) = (old.container_id.clone(), old.image_id.clone());
            (status.restart_count, status.last_state) = (old.restart_count, old.last_state.clone());
            status.ready = slot.role == Role::Init && terminated.exit_code == 0;
            return status;
        }
        if let Some(old) = old {
            status.restart_count = old.restart_count;
            status.last_state = old.last_state.clone();
            if old_state.is_some_and(|state| state.running.is_some()) {
                status.last_state = Some(lost_state(&old.container_id));
                status.restart_count += 1;
            }
        }
        if view.memory.ended.is_some() {
            status.state = Some(lost_state(&None));
            return status;
        }
        status.state = Some(match waiting {
            Some(waiting) => waiting_state(&waiting.reason, Some(&waiting.message)),
            None if !init_slots(view.pod).is_empty() => waiting_state("PodInitializing", None),
            None => waiting_state("ContainerCreating", None),
        });
        status
    }

    fn previous_container(&self, name: &str) -> Option<&ApiContainerStatus> {
        let previous = self.previous?;
        let lists = [&previous.container_statuses, &previous.init_container_statuses];
        lists.into_iter().flatten().flatten().find(|status| status.name == name)
    }

    fn container_id(&self, id: &str) -> String {
        format!("{}://{id}", self.node.runtime_name)
    }

    fn probed_ready(&self, slot: &Slot<'_>, id: &str) -> bool {
        slot.container.readiness_probe.is_none()
            || self.view.memory.probed.get(id).and_then(|probed| probed.ready).unwrap_or(false)
    }

    fn state(&self, container: &ContainerStatus) -> ApiState {
        match container.state {
            ContainerState::Running => ApiState {
                running: Some(ContainerStateRunning {
                    started_at: Some(Time(container.started_at.unwrap_or(container.created_at))),
                }),
                ..ApiState::default()
            },
            ContainerState::Exited => ApiState {
                terminated: Some(ContainerStateTerminated {
                    container_id: Some(self.container_id(&container.id)),
                    exit_code: container.exit_code,
                    signal: (container.signal != 0).then_some(container.signal),
                    reason: Some(exit_reason(container)),
                    message: self
                        .view
                        .memory
                        .termination_messages
                        .get(&container.id)
                        .or(Some(&container.message))
                        .filter(|message| !message.is_empty())
                        .cloned(),
                    started_at: container.started_at.map(Time),
                    finished_at: container.finished_at.map(Time),
                }),
                ..ApiState::default()
            },
            ContainerState::Created => waiting_state("ContainerCreating", None),
            ContainerState::Unknown => lost_state(&Some(self.container_id(&container.id))),
        }
    }

    /// The kubelet's `getPhase`.
    fn phase(&self, init: &[ApiContainerStatus], regular: &[ApiContainerStatus]) -> &'static str {
        let view = self.view;
        let terminal = match (view.memory.failure.is_some(), outcome(view)) {
            (true, _) | (false, Some(Outcome::Failed)) => Some("Failed"),
            (false, Some(Outcome::Succeeded)) => Some("Succeeded"),
            (false, None) => None,
        };
        match terminal {
            Some(phase) if view.observed.running().next().is_none() => return phase,
            // Controllers take a finished pod for one that holds nothing any more: not before its last container has ended.
            Some(_) => return self.phase_so_far(),
            None => {}
        }
        if view.memory.ended == Some(Ended::Stopped) {
            let clean = regular.iter().all(|status| exit_code(status) == Some(0));
            return if clean { "Succeeded" } else { "Failed" };
        }
        let initializing = !init.is_empty() && !initialized(view) && view.memory.ended.is_none();
        let never_ran = |status: &ApiContainerStatus| {
            status.state.as_ref().is_none_or(|state| state.waiting.is_some())
                && status.last_state.as_ref().is_none_or(|state| state.terminated.is_none())
        };
        if initializing || regular.iter().any(never_ran) { "Pending" } else { "Running" }
    }

    fn phase_so_far(&self) -> &'static str {
        match self.previous.and_then(|previous| previous.phase.as_deref()) {
            Some("Succeeded") => "Succeeded",
            Some("Failed") => "Failed",
            Some("Pending") => "Pending",
            _ => "Running",
        }
    }

    fn conditions(&self, phase: &str, init: &[ApiContainerStatus], regular: &[ApiContainerStatus]) -> Vec<PodCondition> {
        let view = self.view;
        let sandbox_ready = view.observed.sandboxes.first().is_some_and(|sandbox| {
            sandbox.state == SandboxState::Ready && (host_network(view.pod) || !sandbox.addresses.is_empty())
        });
        let containers_ready = self.containers_ready(phase, init, regular);
        let all = [
            verdict("PodReadyToStartContainers", sandbox_ready),
            self.initialized_condition(phase, init),
            self.ready(&containers_ready),
            containers_ready,
            verdict("PodScheduled", true),
        ];
        all.into_iter().map(|condition| self.with_times(condition)).collect()
    }

    fn initialized_condition(&self, phase: &str, init: &[ApiContainerStatus]) -> PodCondition {
        if phase == "Succeeded" {
            return PodCondition { reason: Some("PodCompleted".to_owned()), ..verdict("Initialized", true) };
        }
        let anything_ran = regular_slots(self.view.pod).iter().any(|slot| self.view.observed.latest(slot.name()).is_some());
        if init.is_empty() || initialized(self.view) || (anything_ran && self.view.memory.ended.is_some()) {
            return verdict("Initialized", true);
        }
        let done = |status: &&ApiContainerStatus| !status.ready && status.started != Some(true);
        let names: Vec<&str> = init.iter().filter(done).map(|status| status.name.as_str()).collect();
        PodCondition {
            reason: Some("ContainersNotInitialized".to_owned()),
            message: Some(format!("containers with incomplete status: [{}]", names.join(" "))),
            ..verdict("Initialized", false)
        }
    }

    fn containers_ready(&self, phase: &str, init: &[ApiContainerStatus], regular: &[ApiContainerStatus]) -> PodCondition {
        let because = |reason: &str, message: Option<String>| PodCondition {
            reason: Some(reason.to_owned()),
            message,
            ..verdict("ContainersReady", false)
        };
        match phase {
            "Succeeded" => return because("PodCompleted", None),
            "Failed" => return because("PodFailed", None),
            _ => {}
        }
        let slots = init_slots(self.view.pod);
        let sidecars = slots.iter().zip(init).filter(|(slot, _)| slot.role == Role::Sidecar).map(|(_, status)| status);
        let unready: Vec<&str> =
            sidecars.chain(regular).filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
        if unready.is_empty() {
            return verdict("ContainersReady", true);
        }
        because("ContainersNotReady", Some(format!("containers with unready status: [{}]", unready.join(" "))))
    }

    fn ready(&self, containers_ready: &PodCondition) -> PodCondition {
        if containers_ready.status != "True" {
            return PodCondition { type_: "Ready".to_owned(), ..containers_ready.clone() };
        }
        let gates = self.view.pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_deref()).unwrap_or_default();
        let conditions = self.view.pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let closed: Vec<String> = gates
            .iter()
            .filter_map(|gate| {
                let kind = &gate.condition_type;
                match conditions.iter().find(|condition| condition.type_ == *kind) {
                    None => Some(format!("corresponding condition of pod readiness gate {kind:?} does not exist.")),
                    Some(condition) if condition.status != "True" => {
                        Some(format!("the status of pod readiness gate {kind:?} is not \"True\", but {}", condition.status))
                    }
                    Some(_) => None,
                }
            })
            .collect();
        if closed.is_empty() {
            return verdict("Ready", true);
        }
        PodCondition {
            reason: Some("ReadinessGatesNotReady".to_owned()),
            message: Some(closed.join(", ")),
            ..verdict("Ready", false)
        }
    }

    fn with_times(&self, mut condition: PodCondition) -> PodCondition {
        let previous = self.previous.and_then(|previous| previous.conditions.as_deref()).unwrap_or_default();
        let same = previous.iter().find(|old| old.type_ == condition.type_ && old.status == condition.status);
        condition.last_transition_time = same.and_then(|old| old.last_transition_time.clone()).or(Some(Time(self.view.now)));
        condition.observed_generation = self.view.pod.metadata.generation;
        condition
    }
}

fn verdict(kind: &str, holds: bool) -> PodCondition {
    let status = if holds { "True" } else { "False" };
    PodCondition { type_: kind.to_owned(), status: status.to_owned(), ..PodCondition::default() }
}

fn waiting_state(reason: &str, message: Option<&str>) -> ApiState {
    ApiState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: message.filter(|message| !message.is_empty()).map(ToOwned::to_owned),
        }),
        ..ApiState::default()
    }
}

fn lost_state(id: &Option<String>) -> ApiState {
    ApiState {
        terminated: Some(ContainerStateTerminated {
            container_id: id.clone(),
            exit_code: 137,
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some("The container could not be located when the pod was terminated".to_owned()),
            ..ContainerStateTerminated::default()
        }),
        ..ApiState::default()
    }
}

fn exit_code(status: &ApiContainerStatus) -> Option<i32> {
    Some(status.state.as_ref()?.terminated.as_ref()?.exit_code)
}

fn exit_reason(container: &ContainerStatus) -> String {
    if !container.reason.is_empty() {
        return container.reason.clone();
    }
    if container.exit_code == 0 { "Completed" } else { "Error" }.to_owned()
}

/// When the pod became ready; for events and metrics.
pub fn ready_since(status: &PodStatus) -> Option<Timestamp> {
    let conditions = status.conditions.as_deref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
