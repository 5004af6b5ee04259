//! The runtime that is built in: containers by libcontainer, images by our own store, one shim process for each pod.
//!
//! Needs root and nothing else. Everything that must survive a restart of the agent is on disk or in the shims; this
//! process only remembers what it read there.

mod cgroup;
mod client;
mod files;
mod pod_cgroup;
mod protocol;
mod reconcile;
mod sandbox;
mod shim;
mod spec;
mod state;
mod stop_signal;
mod users;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs::{self, File},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use trireme_api::clock::Clock;

pub use shim::shim_main;

use self::{
    files::{check_format, lock_folder, resolver_file, restrict},
    protocol::{Request, Response},
    reconcile::attachment,
    sandbox::{Sandbox, blocking, remove_folder},
    state::{ContainerRecord, SandboxFolder, SandboxRecord, ShimRecord},
    stop_signal::parse_signal,
};
use crate::{
    image::{ImageStore, RegistryOptions},
    network::PodNetwork,
    runtime::{
        ContainerConfig, ContainerStatus, ExecOutput, Image, PodIdentity, RegistryCredentials, Runtime, RuntimeError,
        RuntimeEvent, RuntimeVersion, SandboxConfig, SandboxState, SandboxStatus, SeccompProfile,
    },
};

/// How the embedded runtime is set up.
pub struct EmbeddedConfig {
    /// Where sandboxes and containers are kept; one agent's own.
    pub data_dir: PathBuf,
    /// Where images are kept; may be shared by the agents of a machine.
    pub image_store: PathBuf,
    /// Names this agent among those that share the image store.
    pub node_name: String,
    /// The cgroup below which all pods are, absolute in each hierarchy: `/trireme/node-1`.
    pub cgroup_root: PathBuf,
    /// The command that runs [`shim_main`]; the sandbox's folder is appended.
    pub shim_command: Vec<OsString>,
    pub network: Arc<dyn PodNetwork>,
    pub registries: RegistryOptions,
    pub clock: Arc<dyn Clock>,
}

/// The embedded runtime.
pub struct EmbeddedRuntime {
    config: EmbeddedConfig,
    images: ImageStore,
    /// Those that are complete.
    sandboxes: Mutex<BTreeMap<String, Arc<Sandbox>>>,
    /// Which sandbox a container is in.
    containers: Mutex<BTreeMap<String, Arc<Sandbox>>>,
    /// The folders of sandboxes that could be neither adopted nor removed yet.
    unsettled: Mutex<BTreeSet<PathBuf>>,
    events: mpsc::Sender<RuntimeEvent>,
    event_queue: tokio::sync::Mutex<mpsc::Receiver<RuntimeEvent>>,
    /// Held as long as this process uses the data folder.
    _lock: File,
}

const EVENT_QUEUE_LENGTH: usize = 1024;
const QUICK: Duration = Duration::from_secs(15);
/// Starting a sandbox's process on a busy machine.
const SPAWN_PATIENCE: Duration = Duration::from_secs(60);
/// Creating and starting a container on a busy machine.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// A killed container ends at once, unless the kernel is in trouble.
const KILL_PATIENCE: Duration = Duration::from_secs(60);

impl EmbeddedRuntime {
    /// Opens the data folder, adopts the pods that run, and clears away what an earlier process left half made.
    pub async fn open(config: EmbeddedConfig) -> Result<EmbeddedRuntime, RuntimeError> {
        if !config.cgroup_root.is_absolute() || config.cgroup_root.components().count() < 2 {
            return Err(RuntimeError::Unavailable(format!(
                "the cgroup root {} is not an absolute path below the root cgroup",
                config.cgroup_root.display()
            )));
        }
        if !nix::unistd::Uid::effective().is_root() {
            return Err(RuntimeError::Unavailable("the embedded runtime needs root".to_owned()));
        }
        let sandboxes_folder = config.data_dir.join("sandboxes");
        fs::create_dir_all(&sandboxes_folder).map_err(at("cannot create", &sandboxes_folder))?;
        restrict(&config.data_dir)?;
        let config = EmbeddedConfig {
            data_dir: config.data_dir.canonicalize().map_err(at("cannot resolve", &config.data_dir))?,
            ..config
        };
        let lock = lock_folder(&config.data_dir)?;
        check_format(&config.data_dir)?;
        let images = ImageStore::open(&config.image_store, &config.node_name)?;
        let (events, event_queue) = mpsc::channel(EVENT_QUEUE_LENGTH);
        let runtime = EmbeddedRuntime {
            config,
            images,
            sandboxes: Mutex::default(),
            containers: Mutex::default(),
            unsettled: Mutex::default(),
            events,
            event_queue: tokio::sync::Mutex::new(event_queue),
            _lock: lock,
        };
        runtime.reconcile().await?;
        Ok(runtime)
    }

    /// Divides the processors between the classes of pods anew.
    async fn balance(&self) {
        let records: Vec<SandboxRecord> = {
            let sandboxes = self.sandboxes.lock();
            sandboxes.values().filter(|sandbox| !sandbox.record.stopped).map(|sandbox| sandbox.record.clone()).collect()
        };
        let root = self.config.cgroup_root.clone();
        if let Err(error) = blocking(move || pod_cgroup::balance(&root, &records)).await {
            tracing::warn!(%error, "the processors cannot be divided between the classes of pods");
        }
    }

    fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, RuntimeError> {
        self.sandboxes.lock().get(id).cloned().ok_or_else(|| RuntimeError::NotFound { what: "sandbox", id: id.to_owned() })
    }

    fn sandbox_of(&self, container: &str) -> Result<Arc<Sandbox>, RuntimeError> {
        let found = self.containers.lock().get(container).cloned();
        found.ok_or_else(|| RuntimeError::NotFound { what: "container", id: container.to_owned() })
    }

    async fn make_sandbox(&self, folder: &SandboxFolder, record: &mut SandboxRecord) -> Result<(), RuntimeError> {
        fs::create_dir_all(folder.containers()).map_err(at("cannot create", &folder.0))?;
        fs::create_dir_all(folder.libcontainer()).map_err(at("cannot create", &folder.0))?;
        let written = || {
            fs::write(folder.hostname(), format!("{}\n", record.config.hostname))?;
            if let Some(dns) = &record.config.dns {
                fs::write(folder.resolver(), resolver_file(dns))?;
            }
            state::save(&folder.record(), record)
        };
        written().map_err(at("cannot write into", &folder.0))?;
        let limited = record.clone();
        if let Err(error) = blocking(move || pod_cgroup::limit(&limited)).await {
            tracing::warn!(pod = record.config.pod.name, %error, "the limits of the pod as a whole cannot be set");
        }
        let (command, shim_folder) = (self.config.shim_command.clone(), folder.clone());
        blocking(move || client::spawn(&command, &shim_folder, SPAWN_PATIENCE))
            .await
            .map_err(context("cannot start the sandbox"))?;
        if !record.config.host_network {
            let shim: Option<ShimRecord> = state::load(&folder.shim_record()).map_err(at("cannot read", &folder.0))?;
            let namespace = shim.map(|shim| PathBuf::from(format!("/proc/{}/ns/net", shim.process)));
            record.addresses = self.config.network.attach(&attachment(record, namespace)).await?;
        }
        record.complete = true;
        state::save(&folder.record(), record).map_err(at("cannot write into", &folder.0))
    }

    async fn request(&self, container: &str, request: Request, patience: Duration) -> Result<Response, RuntimeError> {
        let sandbox = self.sandbox_of(container)?;
        sandbox.ask(&request, patience).await.map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => RuntimeError::Timeout("the sandbox process", patience),
            _ => RuntimeError::Unavailable(format!("sandbox {}: {error}", sandbox.record.id)),
        })
    }

    /// Waits until the container has exited; `false` when it still runs after the time.
    async fn wait_for_exit(&self, container: &str, patience: Duration) -> Result<bool, RuntimeError> {
        match self.request(container, Request::Wait { id: container.to_owned() }, patience).await {
            Ok(_) | Err(RuntimeError::Unavailable(_)) => Ok(true),
            Err(RuntimeError::Timeout(..)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl Runtime for EmbeddedRuntime {
    async fn version(&self) -> Result<RuntimeVersion, RuntimeError> {
        Ok(RuntimeVersion { name: "trireme".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() })
    }

    async fn ready(&self) -> Result<(), RuntimeError> {
        Ok(self.config.network.ready().await?)
    }

    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<String, RuntimeError> {
        let id = new_id();
        let folder = SandboxFolder(self.config.data_dir.join("sandboxes").join(&id));
        let parent = config.cgroup_parent.trim_start_matches('/');
        if Path::new(parent).components().any(|component| !matches!(component, std::path::Component::Normal(_))) {
            return Err(RuntimeError::Container(format!("the cgroup parent {:?} is not a relative path", config.cgroup_parent)));
        }
        let mut record = SandboxRecord {
            id: id.clone(),
            config: config.clone(),
            created_at: self.config.clock.now(),
            cgroup: self.config.cgroup_root.join(parent).join(&id),
            addresses: Vec::new(),
            complete: false,
            stopped: false,
        };
        if let Err(error) = self.make_sandbox(&folder, &mut record).await {
            if let Err(cleaning) = self.destroy(&folder, &record).await {
                tracing::warn!(sandbox = id, error = %cleaning, "cannot remove a sandbox that could not be made");
            }
            return Err(error);
        }
        let sandbox = Arc::new(self.adopt(folder, record).await);
        self.sandboxes.lock().insert(id.clone(), sandbox);
        self.balance().await;
        Ok(id)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        if sandbox.record.stopped {
            return Ok(());
        }
        sandbox::end_processes(&sandbox.folder, &sandbox.record).await.map_err(context("cannot end the sandbox"))?;
        let (folder, clock) = (sandbox.folder.clone(), self.config.clock.clone());
        blocking(move || sandbox::settle_outcomes(&folder, &*clock)).await.map_err(context("cannot settle the containers"))?;
        self.disconnect(&sandbox.record).await?;
        let record = SandboxRecord { stopped: true, ..sandbox.record.clone() };
        state::save(&sandbox.folder.record(), &record).map_err(at("cannot write into", &sandbox.folder.0))?;
        let stopped = Arc::new(self.adopt(sandbox.folder.clone(), record).await);
        for holder in self.containers.lock().values_mut() {
            if holder.record.id == id {
                *holder = stopped.clone();
            }
        }
        self.sandboxes.lock().insert(id.to_owned(), stopped);
        self.balance().await;
        Ok(())
    }

    async fn remove_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        self.stop_sandbox(id).await?;
        self.destroy(&sandbox.folder, &sandbox.record).await?;
        self.containers.lock().retain(|_, holder| holder.record.id != id);
        self.sandboxes.lock().remove(id);
        Ok(())
    }

    async fn list_sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        Ok(self.sandboxes.lock().values().map(|sandbox| sandbox_status(sandbox)).collect())
    }

    async fn pod_state(&self, pod: &PodIdentity) -> Result<(Vec<SandboxStatus>, Vec<ContainerStatus>), RuntimeError> {
        let sandboxes: Vec<Arc<Sandbox>> = {
            let all = self.sandboxes.lock();
            all.values().filter(|sandbox| sandbox.record.config.pod.uid == pod.uid).cloned().collect()
        };
        let statuses = sandboxes.iter().map(|sandbox| sandbox_status(sandbox)).collect();
        Ok((statuses, container_statuses(sandboxes).await?))
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        _sandbox: &SandboxConfig,
        container: &ContainerConfig,
    ) -> Result<String, RuntimeError> {
        let sandbox = self.sandbox(sandbox_id)?;
        spec::verify(&container.security, cgroup::is_unified()).map_err(RuntimeError::Container)?;
        if let SeccompProfile::Localhost(profile) = &container.security.seccomp {
            let why = format!("seccomp profile {} cannot be loaded: this runtime has no seccomp filters", profile.display());
            return Err(RuntimeError::Container(why));
        }
        let reference = container.image.clone();
        let id = new_id();
        let hold = id.clone();
        let found = self.images.blocking(move |images| {
            let Some(image) = images.find(&reference)? else { return Ok(None) };
            images.hold(&hold, &image.id)?;
            let configuration = images.configuration(&image.id)?;
            Ok(Some((image, configuration)))
        });
        let Some((image, configuration)) = found.await? else {
            return Err(RuntimeError::NotFound { what: "image", id: container.image.clone() });
        };
        let repository_digest = image.references.iter().find(|reference| reference.contains('@')).cloned();
        let record = ContainerRecord {
            id: id.clone(),
            sandbox_id: sandbox_id.to_owned(),
            pod: sandbox.record.config.pod.clone(),
            config: container.clone(),
            image_id: repository_digest.unwrap_or_else(|| image.id.clone()),
            image_reference: container.image.clone(),
            defaults: configuration.config.unwrap_or_default(),
            layers_folder: self.images.layers_folder(),
            layers: image.layers.iter().rev().map(|layer| ImageStore::layer_name(layer)).collect(),
            cgroup: sandbox.record.cgroup.join(&id),
            log_path: sandbox.record.config.log_directory.join(&container.log_path),
            created_at: self.config.clock.now(),
        };
        let folder = sandbox.folder.container(&id);
        let made = fs::create_dir_all(&folder.0).and_then(|()| state::save(&folder.record(), &record));
        if let Err(error) = made {
            self.images.release(&id)?;
            return Err(at("cannot write into", &folder.0)(error));
        }
        self.containers.lock().insert(id.clone(), sandbox);
        Ok(id)
    }

    async fn start_container(&self, id: &str) -> Result<(), RuntimeError> {
        match self.request(id, Request::Start { id: id.to_owned() }, START_PATIENCE).await? {
            Response::Done => Ok(()),
            Response::Failed { message } => Err(RuntimeError::Container(message)),
            other => Err(unexpected(&other)),
        }
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        let Ok(sandbox) = self.sandbox_of(id) else { return Ok(()) };
        if !grace.is_zero() {
            let folder = sandbox.folder.container(id);
            let record: Option<ContainerRecord> = state::load(&folder.record()).map_err(at("cannot read", &folder.0))?;
            let signal = record.and_then(|record| record.defaults.stop_signal).and_then(|text| parse_signal(&text));
            let request = Request::Signal { id: id.to_owned(), signal: signal.unwrap_or(Signal::SIGTERM as i32) };
            match self.request(id, request, QUICK).await {
                Ok(Response::NotRunning) | Err(RuntimeError::Unavailable(_)) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
            if self.wait_for_exit(id, grace).await? {
                return Ok(());
            }
        }
        match self.request(id, Request::Kill { id: id.to_owned() }, QUICK).await {
            Ok(Response::NotRunning) | Err(RuntimeError::Unavailable(_)) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
        match self.wait_for_exit(id, KILL_PATIENCE).await? {
            true => Ok(()),
            false => Err(RuntimeError::Timeout("the killed container", KILL_PATIENCE)),
        }
    }

    async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        let Ok(sandbox) = self.sandbox_of(id) else { return Ok(()) };
        self.stop_container(id, Duration::ZERO).await?;
        let folder = sandbox.folder.container(id).0;
        let record = sandbox.folder.container(id).record();
        blocking(move || {
            // The record goes first: what is half removed is no container, and is cleared away at the next start.
            match fs::remove_file(&record) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            remove_folder(&folder)
        })
        .await
        .map_err(at("cannot remove", &sandbox.folder.0))?;
        self.images.release(id)?;
        self.containers.lock().remove(id);
        Ok(())
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        let sandboxes: Vec<Arc<Sandbox>> = self.sandboxes.lock().values().cloned().collect();
        container_statuses(sandboxes).await
    }

    async fn exec(&self, id: &str, command: &[String], timeout: Duration) -> Result<ExecOutput, RuntimeError> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let request = Request::Exec { id: id.to_owned(), command: command.to_vec(), timeout_ms };
        match self.request(id, request, timeout.saturating_add(QUICK)).await? {
            Response::Executed { exit_code, stdout, stderr } => Ok(ExecOutput { exit_code, stdout, stderr }),
            Response::TimedOut => Err(RuntimeError::Timeout("the command", timeout)),
            Response::Failed { message } => Err(RuntimeError::Container(message)),
            Response::NotRunning => Err(RuntimeError::Container(format!("container {id} is not running"))),
            other => Err(unexpected(&other)),
        }
    }

    async fn reopen_log(&self, id: &str) -> Result<(), RuntimeError> {
        match self.request(id, Request::ReopenLog { id: id.to_owned() }, QUICK).await? {
            Response::Done | Response::NotRunning => Ok(()),
            Response::Failed { message } => Err(RuntimeError::Container(message)),
            other => Err(unexpected(&other)),
        }
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>, RuntimeError> {
        let reference = reference.to_owned();
        Ok(self.images.blocking(move |images| images.find(&reference)).await?.map(Image::from))
    }

    async fn list_images(&self) -> Result<Vec<Image>, RuntimeError> {
        Ok(self.images.blocking(ImageStore::list).await?.into_iter().map(Image::from).collect())
    }

    async fn pull_image(&self, reference: &str, credentials: &[RegistryCredentials]) -> Result<Image, RuntimeError> {
        Ok(self.images.pull(&self.config.registries, reference, credentials).await?.into())
    }

    async fn load_image(&self, file: &Path, reference: &str) -> Result<Image, RuntimeError> {
        let (file, reference) = (file.to_owned(), reference.to_owned());
        Ok(self.images.blocking(move |images| images.load(&file, &reference)).await?.into())
    }

    async fn remove_image(&self, reference: &str) -> Result<(), RuntimeError> {
        let reference = reference.to_owned();
        Ok(self.images.blocking(move |images| images.remove(&reference)).await?)
    }

    async fn update_pod_cidrs(&self, cidrs: &[String]) -> Result<(), RuntimeError> {
        Ok(self.config.network.set_pod_cidrs(cidrs).await?)
    }

    async fn tidy(&self) {
        self.settle().await;
    }

    async fn next_event(&self) -> RuntimeEvent {
        match self.event_queue.lock().await.recv().await {
            Some(event) => event,
            // The sender is this struct's own, so the queue does not end.
            None => std::future::pending().await,
        }
    }
}

fn sandbox_status(sandbox: &Sandbox) -> SandboxStatus {
    SandboxStatus {
        id: sandbox.record.id.clone(),
        pod: sandbox.record.config.pod.clone(),
        attempt: sandbox.record.config.attempt,
        state: if sandbox.is_alive() { SandboxState::Ready } else { SandboxState::NotReady },
        created_at: sandbox.record.created_at,
        addresses: if sandbox.record.stopped { Vec::<IpAddr>::new() } else { sandbox.record.addresses.clone() },
    }
}

/// The containers of these sandboxes, as they lie on disk.
async fn container_statuses(sandboxes: Vec<Arc<Sandbox>>) -> Result<Vec<ContainerStatus>, RuntimeError> {
    let listed = blocking(move || {
        let mut listed = Vec::new();
        for sandbox in sandboxes {
            for record in sandbox.containers()? {
                listed.push(sandbox.status(record)?);
            }
        }
        Ok(listed)
    });
    listed.await.map_err(context("cannot read the containers' states"))
}

fn new_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

fn unexpected(response: &Response) -> RuntimeError {
    RuntimeError::Unavailable(format!("the sandbox process gave an answer that makes no sense: {response:?}"))
}

fn at(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> RuntimeError {
    context(format!("{doing} {}", path.display()))
}

fn context(context: impl Into<String>) -> impl FnOnce(io::Error) -> RuntimeError {
    let context = context.into();
    move |source| RuntimeError::Io { context, source }
}
