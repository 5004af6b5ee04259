//! The hollow runtime, passed off as a real one: its commands and pulls answer as the test says, and what was asked is
//! written down.

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use trireme_nodeagent::runtime::{
    ContainerConfig, ContainerStatus, ExecOutput, Fidelity, Image, PodIdentity, RegistryCredentials, Runtime, RuntimeError,
    RuntimeEvent, RuntimeVersion, SandboxConfig, SandboxStatus, hollow::HollowRuntime,
};

#[derive(Clone)]
pub struct ScriptedRuntime {
    pub hollow: HollowRuntime,
    script: Arc<Mutex<Script>>,
}

#[derive(Default)]
struct Script {
    /// Exit codes by a command's first word; 0 for others.
    codes: HashMap<String, i32>,
    /// Whether the next look at a pod ends the one who looks.
    panics_once: bool,
    /// How many requests to stop a container fail before one succeeds.
    failing_stops: u32,
    /// Whether images can be pulled; none is there before.
    registry_up: bool,
    pulled: Vec<String>,
    /// What was asked, in words.
    asked: Vec<String>,
    configs: Vec<ContainerConfig>,
}

impl ScriptedRuntime {
    pub fn new(hollow: HollowRuntime) -> Self {
        let script = Script { registry_up: true, ..Script::default() };
        Self { hollow, script: Arc::new(Mutex::new(script)) }
    }

    pub fn set_code(&self, command: &str, code: i32) {
        self.script.lock().codes.insert(command.to_owned(), code);
    }

    pub fn set_registry(&self, up: bool) {
        self.script.lock().registry_up = up;
    }

    pub fn panic_once(&self) {
        self.script.lock().panics_once = true;
    }

    pub fn fail_stops(&self, count: u32) {
        self.script.lock().failing_stops = count;
    }

    pub fn asked(&self) -> Vec<String> {
        self.script.lock().asked.clone()
    }

    pub fn configs(&self) -> Vec<ContainerConfig> {
        self.script.lock().configs.clone()
    }

    fn note(&self, what: String) {
        self.script.lock().asked.push(what);
    }
}

#[async_trait]
impl Runtime for ScriptedRuntime {
    async fn version(&self) -> Result<RuntimeVersion, RuntimeError> {
        Ok(RuntimeVersion { name: "scripted".to_owned(), version: "1".to_owned() })
    }

    async fn ready(&self) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<String, RuntimeError> {
        self.hollow.run_sandbox(config).await
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        self.note("stop-sandbox".to_owned());
        self.hollow.stop_sandbox(id).await
    }

    async fn remove_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        self.hollow.remove_sandbox(id).await
    }

    async fn list_sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        self.hollow.list_sandboxes().await
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        sandbox: &SandboxConfig,
        container: &ContainerConfig,
    ) -> Result<String, RuntimeError> {
        self.note(format!("create {} {}", container.name, container.attempt));
        self.script.lock().configs.push(container.clone());
        self.hollow.create_container(sandbox_id, sandbox, container).await
    }

    async fn start_container(&self, id: &str) -> Result<(), RuntimeError> {
        self.hollow.start_container(id).await
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        let name = self.list_containers().await?.into_iter().find(|container| container.id == id).map(|container| container.name);
        self.note(format!("stop {}", name.unwrap_or_default()));
        let fails = {
            let mut script = self.script.lock();
            let fails = script.failing_stops > 0;
            script.failing_stops = script.failing_stops.saturating_sub(1);
            fails
        };
        if fails {
            return Err(RuntimeError::Unavailable("as the test says".to_owned()));
        }
        self.hollow.stop_container(id, grace).await
    }

    async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        self.hollow.remove_container(id).await
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        self.hollow.list_containers().await
    }

    async fn pod_state(&self, pod: &PodIdentity) -> Result<(Vec<SandboxStatus>, Vec<ContainerStatus>), RuntimeError> {
        let panics = std::mem::take(&mut self.script.lock().panics_once);
        assert!(!panics, "as the test says");
        self.hollow.pod_state(pod).await
    }

    async fn update_pod_cidrs(&self, cidrs: &[String]) -> Result<(), RuntimeError> {
        self.hollow.update_pod_cidrs(cidrs).await
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Real
    }

    async fn exec(&self, _id: &str, command: &[String], _timeout: Duration) -> Result<ExecOutput, RuntimeError> {
        let word = command.first().cloned().unwrap_or_default();
        let exit_code = self.script.lock().codes.get(&word).copied().unwrap_or(0);
        self.note(format!("exec {word}"));
        Ok(ExecOutput { exit_code, stdout: b"said".to_vec(), stderr: Vec::new() })
    }

    async fn reopen_log(&self, id: &str) -> Result<(), RuntimeError> {
        self.hollow.reopen_log(id).await
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>, RuntimeError> {
        if self.script.lock().pulled.iter().any(|pulled| pulled == reference) {
            return self.hollow.image(reference).await;
        }
        Ok(None)
    }

    async fn list_images(&self) -> Result<Vec<Image>, RuntimeError> {
        Ok(Vec::new())
    }

    async fn pull_image(&self, reference: &str, credentials: &[RegistryCredentials]) -> Result<Image, RuntimeError> {
        self.note(format!("pull {reference}"));
        if !self.script.lock().registry_up {
            return Err(RuntimeError::Image { reason: "ErrImagePull", message: "the registry is away".to_owned() });
        }
        self.script.lock().pulled.push(reference.to_owned());
        self.hollow.pull_image(reference, credentials).await
    }

    async fn load_image(&self, file: &Path, reference: &str) -> Result<Image, RuntimeError> {
        self.hollow.load_image(file, reference).await
    }

    async fn remove_image(&self, reference: &str) -> Result<(), RuntimeError> {
        self.hollow.remove_image(reference).await
    }

    async fn next_event(&self) -> RuntimeEvent {
        self.hollow.next_event().await
    }
}
