//! One task for each probe of each running container of a pod.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Pod, Probe};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    agent::Agent,
    events::Severity,
    pod::{
        memory::{Condemned, Observed, Probed},
        model::{Role, all_slots},
    },
    probe::{
        counter::{Counter, Outcome, Timing},
        handler::{Found, Target},
    },
    runtime::{ContainerState, ContainerStatus, Fidelity},
};

type Shared = Arc<Mutex<BTreeMap<String, Probed>>>;

/// The probes of one pod.
pub struct Probes {
    agent: Arc<Agent>,
    found: Shared,
    /// By container id. Dropping a handle ends its task.
    tasks: BTreeMap<String, Vec<AbortOnDropHandle<()>>>,
    poke: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

impl Probes {
    /// `poke` is notified when a verdict changes.
    pub fn new(agent: Arc<Agent>, poke: Arc<Notify>) -> Self {
        Self { agent, found: Shared::default(), tasks: BTreeMap::new(), poke }
    }

    /// Probes the containers that run, and no others.
    pub fn follow(&mut self, pod: &Arc<Pod>, observed: &Observed) {
        let running: Vec<&ContainerStatus> = observed.running().collect();
        self.tasks.retain(|id, _| running.iter().any(|container| container.id == *id));
        self.found.lock().retain(|id, _| running.iter().any(|container| container.id == *id));
        for container in running {
            if !self.tasks.contains_key(&container.id) {
                let tasks = self.begin(pod, observed, container);
                self.tasks.insert(container.id.clone(), tasks);
            }
        }
    }

    /// Ends every probe.
    pub fn stop(&mut self) {
        self.tasks.clear();
    }

    /// What has been found, by container id.
    pub fn found(&self) -> BTreeMap<String, Probed> {
        self.found.lock().clone()
    }

    fn begin(&self, pod: &Arc<Pod>, observed: &Observed, container: &ContainerStatus) -> Vec<AbortOnDropHandle<()>> {
        let slots = all_slots(pod);
        let Some(slot) = slots.iter().find(|slot| slot.name() == container.name && slot.role != Role::Init) else {
            return Vec::new();
        };
        if self.agent.runtime.fidelity() == Fidelity::Simulated {
            let all_well = Probed { started: Some(true), ready: Some(true), condemned: None };
            self.found.lock().insert(container.id.clone(), all_well);
            return Vec::new();
        }
        self.found.lock().insert(container.id.clone(), adopted(pod, &container.id));
        let probes = [
            (Kind::Startup, &slot.container.startup_probe),
            (Kind::Liveness, &slot.container.liveness_probe),
            (Kind::Readiness, &slot.container.readiness_probe),
        ];
        let address = observed.ready_sandbox().and_then(|sandbox| sandbox.addresses.first().copied());
        let address = address.unwrap_or(self.agent.config.node_ip).to_string();
        let task = |(kind, probe): (Kind, &Option<Probe>)| {
            let prober = Prober {
                agent: Arc::clone(&self.agent),
                pod: Arc::clone(pod),
                container: slot.container.clone(),
                id: container.id.clone(),
                address: address.clone(),
                kind,
                probe: probe.clone()?,
                found: Arc::clone(&self.found),
                poke: Arc::clone(&self.poke),
                runs_for: container
                    .started_at
                    .and_then(|started| Duration::try_from(self.agent.clock.now().duration_since(started)).ok())
                    .unwrap_or_default(),
            };
            Some(AbortOnDropHandle::new(tokio::spawn(prober.run())))
        };
        debug_assert_eq!(container.state, ContainerState::Running);
        probes.into_iter().filter_map(task).collect()
    }
}

/// What an earlier agent found of this instance: its pods must not become unready because the agent was restarted.
fn adopted(pod: &Pod, id: &str) -> Probed {
    let Some(status) = &pod.status else { return Probed::default() };
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let known = lists.into_iter().flatten().flatten().find(|status| {
        status.container_id.as_deref().and_then(|known| known.split_once("://")).is_some_and(|(_, known)| known == id)
    });
    known.map_or_else(Probed::default, |known| Probed {
        started: known.started.filter(|started| *started),
        ready: known.ready.then_some(true),
        condemned: None,
    })
}

struct Prober {
    agent: Arc<Agent>,
    pod: Arc<Pod>,
    container: k8s_openapi::api::core::v1::Container,
    id: String,
    address: String,
    kind: Kind,
    probe: Probe,
    found: Shared,
    poke: Arc<Notify>,
    /// How long the container has run when probing begins.
    runs_for: Duration,
}

impl Prober {
    async fn run(self) {
        let timing = Timing::of(&self.probe);
        tokio::time::sleep(timing.initial_delay.saturating_sub(self.runs_for)).await;
        let mut counter = Counter::new(timing);
        let mut ticks = tokio::time::interval(timing.period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if self.kind != Kind::Startup && self.container.startup_probe.is_some() {
                self.wait_for_startup().await;
            }
            ticks.tick().await;
            if self.kind == Kind::Startup && self.is_started() {
                return;
            }
            let target = Target {
                runtime: &*self.agent.runtime,
                container: &self.container,
                container_id: &self.id,
                address: &self.address,
            };
            let (outcome, message) = match target.probe(&self.probe, timing.timeout).await {
                Found::Result(outcome, text) => {
                    (outcome, (outcome == Outcome::Failure).then(|| format!("{} probe failed: {text}", self.kind.title())))
                }
                Found::Unknown(text) => {
                    self.tell(format!("{} probe errored: {text}", self.kind.title()));
                    continue;
                }
            };
            if let Some(message) = message {
                self.tell(message);
            }
            if let Some(verdict) = counter.take(outcome)
                && self.judge(verdict) == Next::Stop
            {
                return;
            }
        }
    }

    fn tell(&self, message: String) {
        self.agent.recorder.container(&self.pod, &self.container.name, Severity::Warning, "Unhealthy", message);
    }

    fn is_started(&self) -> bool {
        self.found.lock().get(&self.id).and_then(|found| found.started) == Some(true)
    }

    async fn wait_for_startup(&self) {
        while !self.is_started() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn judge(&self, verdict: Outcome) -> Next {
        let name = &self.container.name;
        let well = verdict == Outcome::Success;
        let mut found = self.found.lock();
        let found = found.entry(self.id.clone()).or_default();
        let before = found.clone();
        let mut next = Next::GoOn;
        match (self.kind, well) {
            (Kind::Readiness, well) => found.ready = Some(well),
            (Kind::Startup, true) => {
                found.started = Some(true);
                next = Next::Stop;
            }
            (Kind::Liveness, true) => {}
            (Kind::Startup | Kind::Liveness, false) => {
                found.condemned = Some(Condemned {
                    message: format!("Container {name} failed {} probe, will be restarted", self.kind.title().to_lowercase()),
                    grace_seconds: self.probe.termination_grace_period_seconds,
                });
                next = Next::Stop;
            }
        }
        if *found != before {
            self.poke.notify_one();
        }
        next
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    GoOn,
    Stop,
}
