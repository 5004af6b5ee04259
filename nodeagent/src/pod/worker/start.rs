//! Starting a container: volumes, image, configuration, the container itself, its `postStart` hook.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::{Interrupted, Progress, Worker};
use crate::{
    events::Severity,
    pod::{
        bundle, deadline, hooks, images,
        memory::{ContainerMemory, Observed, Waiting},
        model::{self, Slot},
        prepare,
    },
    volume::setup::Paths,
};

impl Worker {
    /// Brings the files of volumes up to date from time to time, so that running containers see changes.
    pub(super) async fn refresh_volumes(&mut self, pod: &Arc<Pod>, observed: &Observed) {
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
    pub(super) async fn make_volumes(&mut self, pod: &Arc<Pod>, observed: &Observed) -> Result<(), Waiting> {
        let failed = |reason: &str, message: String| Waiting { reason: reason.to_owned(), message };
        if bundle::references(pod).is_empty() {
            self.bundle = Arc::default();
        } else {
            let fetched = bundle::fetch(&self.agent.client, pod, &self.bundle, self.agent.clock.now()).await;
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

    pub(super) async fn start(
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
    pub(super) async fn try_start(
        &mut self,
        pod: &Arc<Pod>,
        observed: &Observed,
        slot: &Slot<'_>,
        sandbox: &str,
        (attempt, exited_at): (u32, Option<Timestamp>),
        memory: &mut ContainerMemory,
    ) -> Result<Result<(), Waiting>, Interrupted> {
        if let Err(waiting) = self.make_volumes(pod, observed).await {
            return Ok(Err(waiting));
        }
        let image = match self.guard(images::ensure(&self.agent, pod, slot, memory)).await? {
            Ok(image) => image,
            Err(waiting) => return Ok(Err(waiting)),
        };
        if let Some(exited_at) = exited_at {
            memory.restarts.advance(exited_at, self.agent.clock.now());
        }
        let failed = |reason: &str, message: String| Ok(Err(Waiting { reason: reason.to_owned(), message }));
        let services = match self.service_variables(pod).await? {
            Ok(variables) => variables,
            Err(message) => return failed("CreateContainerConfigError", message),
        };
        let no_paths = Paths::new();
        let pod_ips = prepare::addresses(&self.agent, pod, observed);
        let ingredients = prepare::Ingredients {
            pod,
            slot,
            attempt,
            bundle: &self.bundle,
            services: &services,
            volumes: self.volumes.as_ref().map_or(&no_paths, |(paths, _)| paths),
            pod_ips: &pod_ips,
            image: &image,
        };
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

    /// The variables of Services; none where there are no processes to read them.
    async fn service_variables(&self, pod: &Pod) -> Result<Result<BTreeMap<String, String>, String>, Interrupted> {
        match &self.agent.services {
            Some(services) => self.guard(services.variables(pod)).await,
            None => Ok(Ok(BTreeMap::new())),
        }
    }

    pub(super) async fn post_start(
        &self,
        pod: &Pod,
        slot: &Slot<'_>,
        id: &str,
        address: &str,
    ) -> Result<Result<(), Waiting>, Interrupted> {
        /// Kubernetes sets no limit to a postStart hook; a container that hangs in one longer than this has failed.
        const LIMIT: Duration = Duration::from_secs(3600);
        let Some(hook) = slot.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref()) else {
            return Ok(Ok(()));
        };
        let running = hooks::run(&*self.agent.runtime, slot.container, id, address, hook, LIMIT);
        let Err(error) = self.guard(running).await? else { return Ok(Ok(())) };
        let name = slot.name();
        tracing::warn!(container = name, error, "the postStart hook failed");
        self.agent.recorder.container(pod, name, Severity::Warning, "FailedPostStartHook", "PostStartHook failed");
        self.agent.recorder.container(pod, name, Severity::Normal, "Killing", "FailedPostStartHook");
        self.done(self.agent.runtime.stop_container(id, deadline::grace(pod)).await);
        Ok(Err(Waiting { reason: "PostStartHookError".to_owned(), message: format!("PostStartHook failed: {error}") }))
    }
}
