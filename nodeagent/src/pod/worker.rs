//! The life of one pod: observe, decide, act, publish, wait. One worker serialises everything that happens to its pod.

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
    pod::{
        backoff::go_duration,
        bundle::{self, Bundle},
        deadline,
        memory::{Ended, Observed, PodMemory, Waiting},
        model::{self, Slot},
        plan::{self, Decision, Step, View},
        prepare,
        publish::{self, Publication, Removal},
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
    let (sender, receiver) = watch::channel(desired);
    let (publications, published) = watch::channel(Publication::default());
    let poke = Arc::new(Notify::new());
    let publisher = publish::run(Arc::clone(&agent), receiver.clone(), published);
    let worker = Worker {
        probes: Probes::new(Arc::clone(&agent), Arc::clone(&poke)),
        agent,
        identity,
        bundle: Arc::default(),
        volumes: None,
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
    memory: PodMemory,
    /// The last status generated.
    last: Option<PodStatus>,
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
        let falls_back = slot.and_then(|slot| slot.container.termination_message_policy.as_deref()) == Some("FallbackToLogsOnError");
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
        let until_wake = wake_at.map(|at| Duration::try_from(at.duration_since(self.agent.clock.now())).unwrap_or(Duration::ZERO));
        // A little later than the time asked for, so that it has come for sure.
        let pause = until_wake.map_or(resync, |pause| (pause + Duration::from_millis(1)).min(resync));
        tokio::select! {
            () = self.shutdown.cancelled() => Err(Finished),
            changed = self.desired.changed() => changed.map_err(|_| Finished),
            () = self.poke.notified() => Ok(()),
            () = tokio::time::sleep(pause) => Ok(()),
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
        for step in steps {
            let done = match step {
                Step::Hold { .. } => Progress::None,
                Step::StopSandbox { id } => self.done(self.agent.runtime.stop_sandbox(&id).await),
                Step::RunSandbox { attempt } => return Ok(self.run_sandbox(pod, attempt).await),
                Step::Remove { id } => {
                    self.remove_container(observed, &id).await;
                    Progress::None
                }
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

    async fn remove_container(&self, observed: &Observed, id: &str) {
        if self.done(self.agent.runtime.remove_container(id).await) == Progress::None {
            return;
        }
        if let Some(container) = observed.containers.iter().find(|container| container.id == id)
            && self.agent.config.data_dir.is_some()
            && let Err(error) = crate::log::rotation::remove_all(&container.log_path)
        {
            tracing::warn!(log = %container.log_path.display(), %error, "an old log could not be removed");
        }
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
        self.guard(stop::one(&self.agent, pod, container, &address, grace, Some(message))).await?;
        Ok(Progress::Made)
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

    /// Brings the files of volumes up to date from time to time, so that running containers see changes.
    async fn refresh_volumes(&mut self, pod: &Arc<Pod>, observed: &Observed) {
        let interval = self.agent.config.volume_refresh_interval;
        let due = self.volumes.as_ref().is_none_or(|(_, at)| at.elapsed() >= interval);
        if !due || observed.running().next().is_none() {
            return;
        }
        if let Err(waiting) = self.make_volumes(pod, observed).await {
            tracing::debug!(pod = model::display(&self.identity), waiting.message, "the volumes could not be brought up to date");
        }
    }

    /// Fetches what the pod refers to, and makes its volumes.
    async fn make_volumes(&mut self, pod: &Arc<Pod>, observed: &Observed) -> Result<(), Waiting> {
        let failed = |reason: &str, message: String| Waiting { reason: reason.to_owned(), message };
        if bundle::references(pod).is_empty() {
            self.bundle = Arc::default();
        } else {
            let fetched = bundle::fetch(&self.agent.client, pod, &self.bundle).await;
            self.bundle = Arc::new(fetched.map_err(|message| failed("CreateContainerConfigError", message))?);
        }
        let pod_ips = prepare::addresses(&self.agent, pod, observed);
        match prepare::volumes(&self.agent, pod, &self.bundle, pod_ips).await {
            Ok(paths) => {
                self.volumes = Some((paths, Instant::now()));
                Ok(())
            }
            Err(failure) => {
                let text = format!("MountVolume.SetUp failed for volume {:?} : {}", failure.volume, failure.message);
                self.agent.recorder.pod(pod, Severity::Warning, "FailedMount", text.clone());
                Err(failed("ContainerCreating", String::new()))
            }
        }
    }

    async fn start(
        &mut self,
        pod: &Arc<Pod>,
        observed: &Observed,
        name: &str,
        attempt: u32,
        exited_at: Option<Timestamp>,
    ) -> Result<Progress, Interrupted> {
        let slots = model::all_slots(pod);
        let (Some(slot), Some(sandbox)) = (slots.iter().find(|slot| slot.name() == name), observed.ready_sandbox()) else {
            return Ok(Progress::None);
        };
        let mut memory = std::mem::take(self.memory.container(name));
        let result = self.try_start(pod, observed, slot, &sandbox.id, (attempt, exited_at), &mut memory).await;
        let progress = match result {
            Ok(Ok(())) => {
                memory.waiting = None;
                Ok(Progress::Made)
            }
            Ok(Err(waiting)) => {
                if waiting.reason != "ContainerCreating" {
                    let told = match waiting.reason.as_str() {
                        // The kubelet names these by their reason, and tells the cause in an event of its own.
                        reason @ ("ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName") => reason,
                        _ => &waiting.message,
                    };
                    self.agent.recorder.container(pod, name, Severity::Warning, "Failed", format!("Error: {told}"));
                }
                memory.waiting = (waiting.reason != "ContainerCreating").then_some(waiting);
                Ok(Progress::None)
            }
            Err(interrupted) => Err(interrupted),
        };
        *self.memory.container(name) = memory;
        if progress == Ok(Progress::None)
            && let Ok(observed) = self.observe(pod).await
        {
            self.publish(pod, &observed);
        }
        progress
    }

    /// Volumes, image, container, start, postStart: the inner error is why the container waits.
    async fn try_start(
        &mut self,
        pod: &Arc<Pod>,
        observed: &Observed,
        slot: &Slot<'_>,
        sandbox: &str,
        (attempt, exited_at): (u32, Option<Timestamp>),
        memory: &mut crate::pod::memory::ContainerMemory,
    ) -> Result<Result<(), Waiting>, Interrupted> {
        if let Err(waiting) = self.make_volumes(pod, observed).await {
            return Ok(Err(waiting));
        }
        let image = match self.guard(super::images::ensure(&self.agent, pod, slot, memory)).await? {
            Ok(image) => image,
            Err(waiting) => return Ok(Err(waiting)),
        };
        if let Some(exited_at) = exited_at {
            memory.restarts.advance(exited_at, self.agent.clock.now());
        }
        let no_paths = Paths::new();
        let pod_ips = prepare::addresses(&self.agent, pod, observed);
        let ingredients = prepare::Ingredients {
            pod,
            slot,
            attempt,
            bundle: &self.bundle,
            volumes: self.volumes.as_ref().map_or(&no_paths, |(paths, _)| paths),
            pod_ips: &pod_ips,
            image: &image,
        };
        let failed = |reason: &str, message: String| Ok(Err(Waiting { reason: reason.to_owned(), message }));
        let config = match prepare::container_config(&self.agent, ingredients) {
            Ok(config) => config,
            Err(message) => return failed("CreateContainerConfigError", message),
        };
        let attempt_of_sandbox = observed.ready_sandbox().map_or(0, |sandbox| sandbox.attempt);
        let sandbox_config = prepare::sandbox_config(&self.agent, pod, attempt_of_sandbox);
        let name = slot.name();
        let id = match self.agent.runtime.create_container(sandbox, &sandbox_config, &config).await {
            Ok(id) => id,
            Err(error) => return failed("CreateContainerError", error.to_string()),
        };
        self.agent.recorder.container(pod, name, Severity::Normal, "Created", format!("Created container: {name}"));
        memory.images.insert(id.clone(), config.image.clone());
        if let Err(error) = self.agent.runtime.start_container(&id).await {
            return failed("RunContainerError", error.to_string());
        }
        self.agent.recorder.container(pod, name, Severity::Normal, "Started", format!("Started container {name}"));
        self.post_start(pod, slot, &id, pod_ips.first().map_or("", String::as_str)).await
    }

    async fn post_start(&self, pod: &Pod, slot: &Slot<'_>, id: &str, address: &str) -> Result<Result<(), Waiting>, Interrupted> {
        /// Kubernetes sets no limit to a postStart hook; a container that hangs in one longer than this has failed.
        const LIMIT: Duration = Duration::from_secs(3600);
        let Some(hook) = slot.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref()) else {
            return Ok(Ok(()));
        };
        let running = super::hooks::run(&*self.agent.runtime, slot.container, id, address, hook, LIMIT);
        let Err(error) = self.guard(running).await? else { return Ok(Ok(())) };
        let name = slot.name();
        tracing::warn!(container = name, error, "the postStart hook failed");
        self.agent.recorder.container(pod, name, Severity::Warning, "FailedPostStartHook", "PostStartHook failed");
        self.agent.recorder.container(pod, name, Severity::Normal, "Killing", "FailedPostStartHook");
        self.done(self.agent.runtime.stop_container(id, deadline::grace(pod)).await);
        Ok(Err(Waiting { reason: "PostStartHookError".to_owned(), message: format!("PostStartHook failed: {error}") }))
    }

    /// Stops every container of the pod, then its sandbox, and publishes the final status.
    async fn terminate(&mut self, pod: &Pod) -> Result<(), Finished> {
        self.memory.ended = Some(Ended::Stopping);
        self.stop_everything(pod).await?;
        self.memory.ended = Some(Ended::Stopped);
        if let Ok(observed) = self.observe(pod).await {
            self.publish(pod, &observed);
        }
        Ok(())
    }

    /// Returns when nothing of the pod runs. A shorter grace period that comes meanwhile counts from then on.
    async fn stop_everything(&mut self, pod: &Pod) -> Result<(), Finished> {
        self.probes.stop();
        loop {
            let observed = match self.observe(pod).await {
                Ok(observed) => observed,
                Err(error) => {
                    tracing::warn!(pod = model::display(&self.identity), %error, "the runtime does not tell the pod's state");
                    self.pause().await?;
                    continue;
                }
            };
            self.publish(pod, &observed);
            let grace = deadline::grace(&self.desired.borrow().pod);
            let shutdown = self.shutdown.clone();
            tokio::select! {
                () = shutdown.cancelled() => return Err(Finished),
                () = stop::everything(&self.agent, pod, &observed, grace) => {}
                () = shorter_grace(self.desired.clone(), grace) => continue,
            }
            for sandbox in &observed.sandboxes {
                self.done(self.agent.runtime.stop_sandbox(&sandbox.id).await);
            }
            match self.observe(pod).await {
                Ok(observed) if observed.running().next().is_none() => return Ok(()),
                _ => self.pause().await?,
            }
        }
    }

    async fn pause(&self) -> Result<(), Finished> {
        tokio::select! {
            () = self.shutdown.cancelled() => Err(Finished),
            () = tokio::time::sleep(Duration::from_secs(1)) => Ok(()),
        }
    }

    /// Takes the pod's volumes away, and lets the publisher delete it from the API.
    async fn allow_removal(&mut self) {
        if self.tear_down_volumes().await {
            self.publications.send_if_modified(|publication| {
                let due = publication.removal != Removal::Due;
                publication.removal = Removal::Due;
                due
            });
        }
    }

    async fn tear_down_volumes(&mut self) -> bool {
        let Some(data_dir) = self.agent.config.data_dir.clone() else { return true };
        let uid = self.identity.uid.clone();
        let work = tokio::task::spawn_blocking(move || volume::setup::tear_down(&data_dir, &uid));
        match work.await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::warn!(pod = model::display(&self.identity), %error, "the pod's volumes could not be taken away");
                false
            }
            Err(_) => false,
        }
    }

    /// The pod is gone from the API: nothing of it stays.
    async fn clean_up(&mut self, pod: &Pod) -> Result<(), Finished> {
        if self.memory.ended != Some(Ended::Stopped) {
            self.memory.ended = Some(Ended::Stopping);
            self.stop_everything(pod).await?;
            self.memory.ended = Some(Ended::Stopped);
        }
        if let Ok(observed) = self.observe(pod).await {
            for sandbox in &observed.sandboxes {
                self.done(self.agent.runtime.remove_sandbox(&sandbox.id).await);
            }
        }
        self.tear_down_volumes().await;
        if let Some(data_dir) = &self.agent.config.data_dir {
            let logs = crate::log::pod_directory(data_dir, &self.identity);
            match std::fs::remove_dir_all(&logs) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(folder = %logs.display(), %error, "the pod's logs could not be removed");
                }
                _ => {}
            }
        }
        Err(Finished)
    }
}

/// Ends when the pod is to end.
async fn deletion(mut desired: watch::Receiver<Desired>) {
    let ends = |desired: &Desired| desired.presence == Presence::Gone || desired.pod.metadata.deletion_timestamp.is_some();
    if desired.wait_for(ends).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Ends when the pod's grace period has become shorter than `grace`.
async fn shorter_grace(mut desired: watch::Receiver<Desired>, grace: Duration) {
    if desired.wait_for(|desired| deadline::grace(&desired.pod) < grace).await.is_err() {
        std::future::pending::<()>().await;
    }
}
