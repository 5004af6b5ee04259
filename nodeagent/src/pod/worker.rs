//! The life of one pod: observe, decide, act, publish, wait. One worker serialises everything that happens to its pod.

use std::{future::Future, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::Agent,
    events::Severity,
    pod::{
        backoff::go_duration,
        deadline,
        memory::{Ended, Observed, PodMemory, Waiting},
        model::{self, Slot},
        plan::{self, Decision, Step, View},
        prepare,
        publish::{self, Publication, Removal},
        status,
    },
    runtime::{PodIdentity, RuntimeError},
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
    let (sender, receiver) = watch::channel(desired);
    let (publications, published) = watch::channel(Publication::default());
    let poke = Arc::new(Notify::new());
    let publisher = publish::run(Arc::clone(&agent), receiver.clone(), published);
    let worker = Worker {
        agent,
        identity,
        desired: receiver,
        poke: Arc::clone(&poke),
        publications,
        memory: PodMemory::default(),
        last: None,
        shutdown,
    };
    let life = async move {
        tokio::select! {
            () = worker.live() => {}
            () = publisher => {}
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
    memory: PodMemory,
    /// The last status generated.
    last: Option<PodStatus>,
    shutdown: CancellationToken,
}

/// Why work on a pod was broken off.
enum Interrupted {
    /// The agent is to stop.
    Shutdown,
}

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
    async fn round(&mut self) -> Result<(), Option<Interrupted>> {
        let Desired { pod, presence } = self.desired.borrow_and_update().clone();
        if presence == Presence::Gone {
            self.clean_up(&pod).await?;
            return Err(None);
        }
        if self.memory.ended == Some(Ended::Stopped) {
            let removal = if pod.metadata.deletion_timestamp.is_some() { Removal::Due } else { Removal::NotYet };
            self.publications.send_modify(|publication| publication.removal = removal);
            return self.wait(None).await.map_err(Some);
        }
        let observed = match self.observe().await {
            Ok(observed) => observed,
            Err(error) => {
                tracing::warn!(pod = model::display(&self.identity), %error, "the runtime does not tell the pod's state");
                return self.wait(None).await.map_err(Some);
            }
        };
        let view = View { pod: &pod, observed: &observed, memory: &self.memory, now: self.agent.clock.now() };
        match plan::decide(view) {
            Decision::Terminate { failure } => {
                if let Some(failure) = failure {
                    self.agent.recorder.pod(&pod, Severity::Normal, failure.reason, failure.message.clone());
                    self.memory.failure = Some(failure);
                }
                self.terminate(&pod).await.map_err(Some)
            }
            Decision::Continue { steps, wake_at } => {
                self.note_holds(&pod, &steps);
                self.publish(&pod, &observed);
                let progress = self.act(&pod, &observed, steps).await.map_err(Some)?;
                match progress {
                    Progress::Made => Ok(()),
                    Progress::None => self.wait(wake_at).await.map_err(Some),
                }
            }
        }
    }

    async fn observe(&mut self) -> Result<Observed, RuntimeError> {
        let (sandboxes, containers) = self.agent.runtime.pod_state(&self.identity).await?;
        Ok(Observed::new(sandboxes, containers))
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
    async fn wait(&mut self, wake_at: Option<Timestamp>) -> Result<(), Interrupted> {
        let resync = self.agent.config.resync_interval;
        let until_wake = wake_at.map(|at| Duration::try_from(at.duration_since(self.agent.clock.now())).unwrap_or(Duration::ZERO));
        // A little later than the time asked for, so that it has come for sure.
        let pause = until_wake.map_or(resync, |pause| (pause + Duration::from_millis(1)).min(resync));
        tokio::select! {
            () = self.shutdown.cancelled() => Err(Interrupted::Shutdown),
            changed = self.desired.changed() => changed.map_err(|_| Interrupted::Shutdown),
            () = self.poke.notified() => Ok(()),
            () = tokio::time::sleep(pause) => Ok(()),
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

    async fn act(&mut self, pod: &Pod, observed: &Observed, steps: Vec<Step>) -> Result<Progress, Interrupted> {
        let mut progress = Progress::None;
        for step in steps {
            let done = match step {
                Step::Hold { .. } => Progress::None,
                Step::StopSandbox { id } => self.done(self.agent.runtime.stop_sandbox(&id).await),
                Step::RunSandbox { attempt } => return Ok(self.run_sandbox(pod, attempt).await),
                Step::Remove { id } => {
                    self.done(self.agent.runtime.remove_container(&id).await);
                    Progress::None
                }
                Step::Kill { id, name, message, grace_seconds } => {
                    self.agent.recorder.container(pod, &name, Severity::Normal, "Killing", message);
                    let grace = grace_seconds.map_or_else(|| deadline::grace(pod), deadline::seconds);
                    self.done(self.agent.runtime.stop_container(&id, grace).await)
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

    async fn run_sandbox(&mut self, pod: &Pod, attempt: u32) -> Progress {
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

    async fn start(
        &mut self,
        pod: &Pod,
        observed: &Observed,
        name: &str,
        attempt: u32,
        exited_at: Option<Timestamp>,
    ) -> Result<Progress, Interrupted> {
        let slots = model::all_slots(pod);
        let (Some(slot), Some(sandbox)) = (slots.iter().find(|slot| slot.name() == name), observed.ready_sandbox()) else {
            return Ok(Progress::None);
        };
        let now = self.agent.clock.now();
        if let Some(exited_at) = exited_at {
            self.memory.container(name).restarts.advance(exited_at, now);
        }
        match self.create_and_start(pod, slot, &sandbox.id, attempt).await {
            Ok(()) => {
                self.memory.container(name).waiting = None;
                Ok(Progress::Made)
            }
            Err(waiting) => {
                self.agent.recorder.container(pod, name, Severity::Warning, "Failed", format!("Error: {}", waiting.message));
                self.memory.container(name).waiting = Some(waiting);
                Ok(Progress::None)
            }
        }
    }

    async fn create_and_start(&mut self, pod: &Pod, slot: &Slot<'_>, sandbox: &str, attempt: u32) -> Result<(), Waiting> {
        let sandbox_config = prepare::sandbox_config(&self.agent, pod, 0);
        let config = prepare::container_config(&self.agent, pod, slot, attempt);
        let failed = |reason: &str| {
            let reason = reason.to_owned();
            move |error: RuntimeError| Waiting { reason, message: error.to_string() }
        };
        let id = self
            .agent
            .runtime
            .create_container(sandbox, &sandbox_config, &config)
            .await
            .map_err(failed("CreateContainerError"))?;
        let name = slot.name();
        self.agent.recorder.container(pod, name, Severity::Normal, "Created", format!("Created container: {name}"));
        self.agent.runtime.start_container(&id).await.map_err(failed("RunContainerError"))?;
        self.agent.recorder.container(pod, name, Severity::Normal, "Started", format!("Started container {name}"));
        Ok(())
    }

    /// Stops every container of the pod, then its sandbox, and publishes the final status.
    async fn terminate(&mut self, pod: &Pod) -> Result<(), Interrupted> {
        self.memory.ended = Some(Ended::Stopping);
        self.stop_everything(pod, deadline::grace(pod)).await?;
        self.memory.ended = Some(Ended::Stopped);
        if let Ok(observed) = self.observe().await {
            self.publish(pod, &observed);
        }
        Ok(())
    }

    async fn stop_everything(&mut self, pod: &Pod, grace: Duration) -> Result<(), Interrupted> {
        let Ok(observed) = self.observe().await else { return Ok(()) };
        self.publish(pod, &observed);
        for container in observed.running() {
            let text = format!("Stopping container {}", container.name);
            self.agent.recorder.container(pod, &container.name, Severity::Normal, "Killing", text);
            self.done(self.agent.runtime.stop_container(&container.id, grace).await);
        }
        for sandbox in &observed.sandboxes {
            self.done(self.agent.runtime.stop_sandbox(&sandbox.id).await);
        }
        Ok(())
    }

    /// The pod is gone from the API: nothing of it stays.
    async fn clean_up(&mut self, pod: &Pod) -> Result<(), Option<Interrupted>> {
        if self.memory.ended != Some(Ended::Stopped) {
            self.stop_everything(pod, deadline::grace(pod)).await.map_err(Some)?;
        }
        if let Ok(observed) = self.observe().await {
            for sandbox in &observed.sandboxes {
                self.done(self.agent.runtime.remove_sandbox(&sandbox.id).await);
            }
        }
        Ok(())
    }
}
