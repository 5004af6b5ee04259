//! A pod's row in `kubectl get pods`, as `printPod` of Kubernetes shows it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus, Pod, PodCondition, PodSpec, PodStatus};
use serde_json::{Value, json};

use crate::kinds::{pod_resources::is_sidecar, table};

pub fn row(pod: &Pod, now: Timestamp) -> Vec<Value> {
    let (empty_spec, empty_status) = (PodSpec::default(), PodStatus::default());
    let spec = pod.spec.as_ref().unwrap_or(&empty_spec);
    let status = pod.status.as_ref().unwrap_or(&empty_status);
    let summary = Summary::of(pod, spec, status);
    let address = status.pod_ips.iter().flatten().next().map(|address| address.ip.as_str()).or(status.pod_ip.as_deref());
    vec![
        json!(table::name(&pod.metadata)),
        json!(format!("{}/{}", summary.ready, summary.total)),
        json!(summary.reason),
        json!(summary.restarts.shown(now)),
        json!(table::age(&pod.metadata, now)),
        json!(table::or_none(address)),
        json!(table::or_none(spec.node_name.as_deref())),
        json!(table::or_none(status.nominated_node_name.as_deref())),
        json!(readiness_gates(spec, status)),
    ]
}

struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: Restarts,
}

/// A number of restarts and the time of the last.
#[derive(Default)]
struct Restarts {
    count: i32,
    last: Option<Timestamp>,
}

impl Restarts {
    fn count(&mut self, container: &ContainerStatus) {
        self.count = self.count.saturating_add(container.restart_count);
        let finished = container
            .last_state
            .as_ref()
            .and_then(|state| state.terminated.as_ref())
            .and_then(|terminated| terminated.finished_at.as_ref())
            .map(|time| time.0);
        self.last = self.last.max(finished);
    }

    fn shown(&self, now: Timestamp) -> String {
        match self.last {
            Some(last) if self.count != 0 => format!("{} ({} ago)", self.count, table::since_timestamp(last, now)),
            _ => self.count.to_string(),
        }
    }
}

/// How far the init containers are.
enum Initialization {
    Done,
    /// Held up at one of them, for this reason.
    At(String),
}

impl Summary {
    fn of(pod: &Pod, spec: &PodSpec, status: &PodStatus) -> Self {
        let conditions = status.conditions.as_deref().unwrap_or_default();
        let phase = status.phase.clone().unwrap_or_default();
        let own_reason = status.reason.clone().unwrap_or_default();
        let mut reason = if own_reason.is_empty() { phase.clone() } else { own_reason.clone() };
        if conditions.iter().any(|it| it.type_ == "PodScheduled" && it.reason.as_deref() == Some("SchedulingGated")) {
            reason = "SchedulingGated".to_owned();
        }
        let sidecars = spec.init_containers.iter().flatten().filter(|container| is_sidecar(container)).count();
        let mut summary = Self { ready: 0, total: spec.containers.len() + sidecars, reason, restarts: Restarts::default() };
        let mut sidecar_restarts = Restarts::default();
        let initialization = summary.initialization(spec, status, &mut sidecar_restarts);
        let initialized = matches!(initialization, Initialization::Done);
        if let Initialization::At(reason) = initialization {
            summary.reason = reason;
        }
        if initialized || is_true(conditions, "Initialized") {
            summary.restarts = sidecar_restarts;
            summary.main_containers(status);
        }
        if pod.metadata.deletion_timestamp.is_some() {
            if own_reason == "NodeLost" {
                summary.reason = "Unknown".to_owned();
            } else if !matches!(phase.as_str(), "Failed" | "Succeeded") {
                summary.reason = "Terminating".to_owned();
            }
        }
        summary
    }

    fn initialization(&mut self, spec: &PodSpec, status: &PodStatus, sidecar_restarts: &mut Restarts) -> Initialization {
        let init_containers = spec.init_containers.as_deref().unwrap_or_default();
        let by_name: BTreeMap<&str, &Container> =
            init_containers.iter().map(|container| (container.name.as_str(), container)).collect();
        for (index, container) in status.init_container_statuses.iter().flatten().enumerate() {
            let sidecar = by_name.get(container.name.as_str()).is_some_and(|container| is_sidecar(container));
            self.restarts.count(container);
            if sidecar {
                sidecar_restarts.count(container);
            }
            let empty = ContainerState::default();
            let state = container.state.as_ref().unwrap_or(&empty);
            let waiting = state.waiting.as_ref().and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default();
            let reason = match &state.terminated {
                Some(terminated) if terminated.exit_code == 0 => continue,
                _ if sidecar && container.started == Some(true) => {
                    self.ready += usize::from(container.ready);
                    continue;
                }
                Some(terminated) => format!("Init:{}", end_reason(terminated)),
                None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
                None => format!("Init:{index}/{}", init_containers.len()),
            };
            return Initialization::At(reason);
        }
        Initialization::Done
    }

    fn main_containers(&mut self, status: &PodStatus) {
        let mut running = false;
        for container in status.container_statuses.iter().flatten().rev() {
            self.restarts.count(container);
            let empty = ContainerState::default();
            let state = container.state.as_ref().unwrap_or(&empty);
            let waiting = state.waiting.as_ref().and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default();
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if let Some(terminated) = &state.terminated {
                self.reason = end_reason(terminated);
            } else if container.ready && state.running.is_some() {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && running {
            let ready = is_true(status.conditions.as_deref().unwrap_or_default(), "Ready");
            self.reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
}

fn end_reason(terminated: &k8s_openapi::api::core::v1::ContainerStateTerminated) -> String {
    match (terminated.reason.as_deref().unwrap_or_default(), terminated.signal.unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", terminated.exit_code),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn is_true(conditions: &[PodCondition], condition_type: &str) -> bool {
    conditions.iter().any(|condition| condition.type_ == condition_type && condition.status == "True")
}

fn readiness_gates(spec: &PodSpec, status: &PodStatus) -> String {
    let gates = spec.readiness_gates.as_deref().unwrap_or_default();
    if gates.is_empty() {
        return table::NONE.to_owned();
    }
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let open = gates.iter().filter(|gate| is_true(conditions, &gate.condition_type)).count();
    format!("{open}/{}", gates.len())
}
