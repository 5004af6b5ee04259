//! Stopping a pod's containers: `preStop`, the stop signal, the grace period, the kill; sidecars last and in reverse.

use std::{collections::HashSet, time::Duration};

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    agent::Agent,
    events::Severity,
    pod::{
        hooks,
        memory::Observed,
        model::{Role, all_slots},
    },
    runtime::{ContainerStatus, RuntimeError},
};

/// A container has at least this long between the stop signal and the kill, whatever its hook took.
const LEAST_GRACE: Duration = Duration::from_secs(2);

/// The containers that have been told of their end, by id: a `preStop` hook is run once, however often the stop is tried.
#[derive(Debug, Default)]
pub struct Told(Mutex<HashSet<String>>);

impl Told {
    /// Whether the container hears of it for the first time.
    fn note(&self, id: &str) -> bool {
        self.0.lock().insert(id.to_owned())
    }
}

/// Stops everything that runs. Returns when nothing does, or after the runtime failed.
pub async fn everything(agent: &Agent, pod: &Pod, observed: &Observed, grace: Duration, told: &Told) {
    let began = Instant::now();
    let slots = all_slots(pod);
    let role = |container: &ContainerStatus| slots.iter().find(|slot| slot.name() == container.name).map(|slot| slot.role);
    let (sidecars, others): (Vec<_>, Vec<_>) = observed.running().partition(|container| role(container) == Some(Role::Sidecar));
    let address = observed.sandboxes.first().and_then(|sandbox| sandbox.addresses.first().copied());
    let address = address.unwrap_or(agent.config.node_ip).to_string();
    let stopping = others.into_iter().map(async |container| {
        tell(container, one(agent, pod, container, &address, grace, told, None).await);
    });
    join_all(stopping).await;
    let mut sidecars = sidecars;
    sidecars.sort_by_key(|container| std::cmp::Reverse(slots.iter().position(|slot| slot.name() == container.name)));
    for container in sidecars {
        let left = grace.saturating_sub(began.elapsed()).max(LEAST_GRACE.min(grace));
        tell(container, one(agent, pod, container, &address, left, told, None).await);
    }
}

/// Stops one container. `message` is the text of its Killing event.
///
/// # Errors
/// When the runtime fails.
pub async fn one(
    agent: &Agent,
    pod: &Pod,
    container: &ContainerStatus,
    address: &str,
    grace: Duration,
    told: &Told,
    message: Option<String>,
) -> Result<(), RuntimeError> {
    let name = &container.name;
    let began = Instant::now();
    let slots = all_slots(pod);
    let mut slot = slots.iter().find(|slot| slot.name() == *name);
    if told.note(&container.id) {
        let text = message.unwrap_or_else(|| format!("Stopping container {name}"));
        agent.recorder.container(pod, name, Severity::Normal, "Killing", text);
    } else {
        slot = None;
    }
    let hook = slot.and_then(|slot| Some((slot.container, slot.container.lifecycle.as_ref()?.pre_stop.as_ref()?)));
    if let Some((spec, hook)) = hook {
        let running = hooks::run(&*agent.runtime, spec, &container.id, address, hook, grace);
        match tokio::time::timeout(grace, running).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(container = name, error, "the preStop hook failed");
                agent.recorder.container(pod, name, Severity::Warning, "FailedPreStopHook", "PreStopHook failed");
            }
            Err(_) => tracing::warn!(container = name, "the preStop hook took longer than the grace period"),
        }
    }
    let left = grace.saturating_sub(began.elapsed()).max(LEAST_GRACE.min(grace));
    agent.runtime.stop_container(&container.id, left).await
}

fn tell(container: &ContainerStatus, stopped: Result<(), RuntimeError>) {
    if let Err(error) = stopped {
        tracing::warn!(container = container.name, %error, "the container could not be stopped");
    }
}
