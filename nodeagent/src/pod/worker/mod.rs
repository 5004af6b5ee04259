//! The life of one pod: observe, decide, act, publish, wait. One worker serialises everything that happens to its pod.

mod end;
mod start;

use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::Agent,
    events::Severity,
    node::reporter::NO_POD_CIDR,
    pod::{
        backoff::go_duration,
        bundle::Bundle,
        deadline,
        memory::{Ended, Observed, PodMemory, Waiting},
        model,
        plan::{self, Decision, Step, View},
        prepare,
        publish::{self, Publication},
        status, stop, termination,
    },
    probe::manager::Probes,
    runtime::{ContainerState, ContainerStatus, PodIdentity, RuntimeError},
    volume::{self, setup::Paths},
};

/// What the API wants of a pod.
#[derive(Clone, Debug)]
pub struct Desired {
    pub pod: Arc<Pod>,
    pub presence: Presence,
}

/// Whether the pod is still in the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Present,
    Gone,
}

/// The agent's end of a worker.
pub struct Handle {
    pub desired: watch::Sender<Desired>,
    /// Something happened in the runtime.
    pub poke: Arc<Notify>,
}

/// A worker for a pod, and the future that is its life: it ends when the pod is gone from the API and from the node, or
/// at `shutdown` (which leaves the pod's containers running).
pub fn new(agent: Arc<Agent>, desired: Desired, shutdown: CancellationToken) -> (Handle, impl Future<Output = ()> + Send) {
    let identity = model::identity(&desired.pod);
    let handled = Arc::clone(&desired.pod);
    let (sender, receiver) = watch::channel(desired);
    let (publications, published) = watch::channel(Publication::default());
    let poke = Arc::new(Notify::new());
    let publisher = publish::run(Arc::clone(&agent), receiver.clone(), published);
    let pod_cidrs = agent.pod_cidrs.subscribe();
    let worker = Worker {
        probes: Probes::new(Arc::clone(&agent), Arc::clone(&poke)),
        agent,
        identity,
        bundle: Arc::default(),
        volumes: None,
        handled,
        desired: receiver,
        poke: Arc::clone(&poke),
        publications,
        pod_cidrs,
        memory: PodMemory::default(),
        last: None,
        shutdown,
    };
    let life = async move {
        tokio::select! {
            () = worker.live() => {}
            // The publisher ends when the pod is gone from the API; the worker then still has to clean up.
            () = async { publisher.await; std::future::pending().await } => {}
        }
    };
    (Handle { desired: sender, poke }, life)
}

struct Worker {
    agent: Arc<Agent>,
    identity: PodIdentity,
    desired: watch::Receiver<Desired>,
    poke: Arc<Notify>,
    publications: watch::Sender<Publication>,
    /// Whether the node has addresses for pods.
    pod_cidrs: watch::Receiver<Option<Vec<String>>>,
    memory: PodMemory,
    /// The last status generated.
    last: Option<PodStatus>,
    /// The pod as the last round saw it.
    handled: Arc<Pod>,
    probes: Probes,
    /// What the pod refers to, as last fetched.
    bundle: Arc<Bundle>,
    /// Where the volumes are, and when they were last brought up to date.
    volumes: Option<(Paths, Instant)>,
    shutdown: CancellationToken,
}

/// Why work on a pod was broken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interrupted {
    /// The agent is to stop.
    Shutdown,
    /// The pod is to end: what was going on is of no use any more.
    Deleted,
}

/// The worker has nothing more to do.
struct Finished;

/// What came of the steps of one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Something changed: look again at once.
    Made,
    None,
}

impl Worker {
    async fn live(mut self) {
        let started = self.desired.borrow().pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
        self.memory.start_time = Some(started.unwrap_or_else(|| self.agent.clock.now()));
        while self.round().await.is_ok() {}
    }

    /// One round; `Err` ends the worker.
    async fn round(&mut self) -> Result<(), Finished> {
        let Desired { pod, presence } = self.desired.borrow_and_update().clone();
        self.handled = Arc::clone(&pod);
        if presence == Presence::Gone {
            return self.clean_up(&pod).await;
        }
        if self.memory.ended == Some(Ended::Stopped) {
            if pod.metadata.deletion_timestamp.is_some() {
                self.allow_removal().await;
            }
            return self.wait(None).await;
        }
        let observed = match self.observe(&pod).await {
            Ok(observed) => observed,
            Err(error) => {
                tracing::warn!(pod = model::display(&self.identity), %error, "the runtime does not tell the pod's state");
                return self.wait(None).await;
            }
        };
        self.probes.follow(&pod, &observed);
        self.memory.probed = self.probes.found();
        let view = View { pod: &pod, observed: &observed, memory: &self.memory, now: self.agent.clock.now() };
        match plan::decide(view) {
            Decision::Terminate { failure } => {
                if let Some(failure) = failure {
                    self.agent.recorder.pod(&pod, Severity::Normal, failure.reason, failure.message.clone());
                    self.memory.failure = Some(failure);
                }
                self.terminate(&pod).await
            }
            Decision::Continue { steps, wake_at } => {
                self.note_holds(&pod, &steps);
                self.publish(&pod, &observed);
                self.refresh_volumes(&pod, &observed).await;
                match self.act(&pod, &observed, steps).await {
                    Ok(Progress::Made) | Err(Interrupted::Deleted) => Ok(()),
                    Ok(Progress::None) => self.wait(wake_at).await,
                    Err(Interrupted::Shutdown) => Err(Finished),
                }
            }
        }
    }

    async fn observe(&mut self, pod: &Pod) -> Result<Observed, RuntimeError> {
        let (sandboxes, containers) = self.agent.runtime.pod_state(&self.identity).await?;
        let observed = Observed::new(sandboxes, containers);
        self.memory.termination_messages.retain(|id, _| observed.containers.iter().any(|container| container.id == *id));
        for container in observed.containers.iter().filter(|container| container.state == ContainerState::Exited) {
            if !self.memory.termination_messages.contains_key(&container.id) {
                let message = self.termination_message(pod, container);
                self.memory.termination_messages.insert(container.id.clone(), message);
            }
        }
        Ok(observed)
    }

    fn termination_message(&self, pod: &Pod, container: &ContainerStatus) -> String {
        let Some(folder) = self.pod_folder() else { return container.message.clone() };
        let message = termination::from_file(&prepare::termination_log(&folder, &container.name, container.attempt));
        let slots = model::all_slots(pod);
        let slot = slots.iter().find(|slot| slot.name() == container.name);
        let falls_back =
            slot.and_then(|slot| slot.container.termination_message_policy.as_deref()) == Some("FallbackToLogsOnError");
        match message {
            message if !message.is_empty() => message,
            _ if falls_back && container.exit_code != 0 => termination::from_log(&container.log_path),
            _ => container.message.clone(),
        }
    }

    fn pod_folder(&self) -> Option<PathBuf> {
        self.agent.config.data_dir.as_deref().map(|folder| volume::pod_directory(folder, &self.identity.uid))
    }

    fn publish(&mut self, pod: &Pod, observed: &Observed) {
        let view = View { pod, observed, memory: &self.memory, now: self.agent.clock.now() };
        let previous = self.last.as_ref().or(pod.status.as_ref());
        let status = status::generate(view, &self.agent.facts, previous);
        if self.last.as_ref() != Some(&status) {
            self.last = Some(status.clone());
            self.publications.send_modify(|publication| publication.status = Some(status));
        }
    }

    /// Waits for news of the pod, or until `wake_at`.
    async fn wait(&mut self, wake_at: Option<Timestamp>) -> Result<(), Finished> {
        let resync = self.agent.config.resync_interval;
        let until_wake =
            wake_at.map(|at| Duration::try_from(at.duration_since(self.agent.clock.now())).unwrap_or(Duration::ZERO));
        // A little later than the time asked for, so that it has come for sure.
        let pause = until_wake.map_or(resync, |pause| (pause + Duration::from_millis(1)).min(resync));
        let end = Instant::now() + pause;
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return Err(Finished),
                changed = self.desired.changed() => {
                    changed.map_err(|_| Finished)?;
                    let desired = self.desired.borrow_and_update();
                    if desired.presence == Presence::Gone || concerns(&self.handled, &desired.pod) {
                        return Ok(());
                    }
                }
                () = self.poke.notified() => return Ok(()),
                Ok(()) = self.pod_cidrs.changed() => return Ok(()),
                () = tokio::time::sleep_until(end) => return Ok(()),
            }
        }
    }

    /// Does work that may take long, unless the agent is to stop or the pod to end.
    async fn guard<T>(&self, work: impl Future<Output = T>) -> Result<T, Interrupted> {
        tokio::select! {
            () = self.shutdown.cancelled() => Err(Interrupted::Shutdown),
            () = deletion(self.desired.clone()) => Err(Interrupted::Deleted),
            result = work => Ok(result),
        }
    }

    fn note_holds(&mut self, pod: &Pod, steps: &[Step]) {
        for step in steps {
            let Step::Hold { name, delay } = step else { continue };
            let whole = model::display(&self.identity);
            let message = format!("back-off {} restarting failed container={name} pod={whole}", go_duration(*delay));
            let waiting = Waiting { reason: "CrashLoopBackOff".to_owned(), message };
            let memory = self.memory.container(name);
            if memory.waiting.as_ref() != Some(&waiting) {
                memory.waiting = Some(waiting);
                let text = format!("Back-off restarting failed container {name} in pod {whole}");
                self.agent.recorder.container(pod, name, Severity::Warning, "BackOff", text);
            }
        }
    }

    async fn act(&mut self, pod: &Arc<Pod>, observed: &Observed, steps: Vec<Step>) -> Result<Progress, Interrupted> {
        let mut progress = Progress::None;
        // Containers of which an instance may still come to life: another would run beside it.
        let mut unsettled: Vec<String> = Vec::new();
        for step in steps {
            let done = match step {
                Step::Hold { .. } => Progress::None,
                Step::StopSandbox { id } => self.done(self.agent.runtime.stop_sandbox(&id).await),
                Step::RunSandbox { attempt } => return Ok(self.run_sandbox(pod, attempt).await),
                Step::Remove { id } => {
                    let container = observed.containers.iter().find(|container| container.id == id);
                    if self.remove_container(observed, &id).await == Progress::None {
                        unsettled.extend(container.map(|container| container.name.clone()));
                    }
                    Progress::None
                }
                Step::RemoveSandbox { id } => {
                    self.done(self.agent.runtime.remove_sandbox(&id).await);
                    Progress::None
                }
                Step::Start { name, .. } if unsettled.contains(&name) => Progress::None,
                Step::Kill { id, message, grace_seconds, .. } => {
                    let grace = grace_seconds.map_or_else(|| deadline::grace(pod), deadline::seconds);
                    self.kill(pod, observed, &id, message, grace).await?
                }
                Step::Start { name, attempt, exited_at } => self.start(pod, observed, &name, attempt, exited_at).await?,
            };
            if done == Progress::Made {
                progress = Progress::Made;
            }
        }
        Ok(progress)
    }

    fn done(&self, result: Result<(), RuntimeError>) -> Progress {
        match result {
            Ok(()) => Progress::Made,
            Err(error) => {
                tracing::warn!(pod = model::display(&self.identity), %error, "the runtime failed");
                Progress::None
            }
        }
    }

    async fn remove_container(&self, observed: &Observed, id: &str) -> Progress {
        if self.done(self.agent.runtime.remove_container(id).await) == Progress::None {
            return Progress::None;
        }
        if let Some(container) = observed.containers.iter().find(|container| container.id == id)
            && self.agent.config.data_dir.is_some()
            && let Err(error) = crate::log::rotation::remove_all(&container.log_path)
        {
            tracing::warn!(log = %container.log_path.display(), %error, "an old log could not be removed");
        }
        Progress::Made
    }

    async fn kill(
        &mut self,
        pod: &Pod,
        observed: &Observed,
        id: &str,
        message: String,
        grace: Duration,
    ) -> Result<Progress, Interrupted> {
        let Some(container) = observed.containers.iter().find(|container| container.id == id) else { return Ok(Progress::None) };
        let address = prepare::addresses(&self.agent, pod, observed).into_iter().next().unwrap_or_default();
        let stopped =
            self.guard(stop::one(&self.agent, pod, container, &address, grace, &stop::Told::default(), Some(message))).await?;
        Ok(self.done(stopped))
    }

    async fn run_sandbox(&mut self, pod: &Pod, attempt: u32) -> Progress {
        if !model::host_network(pod) && self.pod_cidrs.borrow_and_update().is_none() {
            let text = format!("network is not ready: {NO_POD_CIDR}");
            self.agent.recorder.pod(pod, Severity::Warning, "NetworkNotReady", text);
            return Progress::None;
        }
        if attempt > 0 {
            let text = "Pod sandbox changed, it will be killed and re-created.";
            self.agent.recorder.pod(pod, Severity::Normal, "SandboxChanged", text);
        }
        let config = prepare::sandbox_config(&self.agent, pod, attempt);
        match self.agent.runtime.run_sandbox(&config).await {
            Ok(_) => Progress::Made,
            Err(error) => {
                let text = format!("Failed to create pod sandbox: {error}");
                self.agent.recorder.pod(pod, Severity::Warning, "FailedCreatePodSandBox", text);
                Progress::None
            }
        }
    }
}

/// Whether a change of the pod is a reason to look at it: most changes are only the status that the agent itself wrote.
fn concerns(before: &Pod, after: &Pod) -> bool {
    let gates = |pod: &Pod| {
        let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
        let conditions = || pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let holds = |kind: &str| conditions().find(|condition| condition.type_ == kind).map(|condition| condition.status.clone());
        gates.map(|gate| holds(&gate.condition_type)).collect::<Vec<_>>()
    };
    let (old, new) = (&before.metadata, &after.metadata);
    before.spec != after.spec
        || old.labels != new.labels
        || old.annotations != new.annotations
        || old.deletion_timestamp != new.deletion_timestamp
        || old.deletion_grace_period_seconds != new.deletion_grace_period_seconds
        || gates(before) != gates(after)
}

/// Ends when the pod is to end.
async fn deletion(mut desired: watch::Receiver<Desired>) {
    let ends = |desired: &Desired| desired.presence == Presence::Gone || desired.pod.metadata.deletion_timestamp.is_some();
    if desired.wait_for(ends).await.is_err() {
        std::future::pending::<()>().await;
    }
}
