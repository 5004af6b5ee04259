//! The runtime that is built in: containers by libcontainer, images by our own store, one shim process for each pod.
//!
//! Needs root and nothing else. Everything that must survive a restart of the agent is on disk or in the shims; this
//! process only remembers what it read there.

mod cgroup;
mod client;
mod protocol;
mod sandbox;
mod shim;
mod spec;
mod state;
mod users;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs::{self, File},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
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
    protocol::{Request, Response},
    sandbox::{Sandbox, blocking, remove_folder},
    state::{ContainerRecord, SandboxFolder, SandboxRecord, ShimRecord},
};
use crate::{
    image::{ImageStore, RegistryOptions},
    network::{Attachment, PodNetwork},
    runtime::{
        ContainerConfig, ContainerState, ContainerStatus, DnsConfig, ExecOutput, Image, PodIdentity, RegistryCredentials,
        Runtime, RuntimeError, RuntimeEvent, RuntimeVersion, SandboxConfig, SandboxState, SandboxStatus,
        SeccompProfile,
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
    events: mpsc::Sender<RuntimeEvent>,
    event_queue: tokio::sync::Mutex<mpsc::Receiver<RuntimeEvent>>,
    /// Held as long as this process uses the data folder.
    _lock: File,
}

const EVENT_QUEUE_LENGTH: usize = 1024;
const FORMAT: &str = "1";
const QUICK: Duration = Duration::from_secs(15);
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
            events,
            event_queue: tokio::sync::Mutex::new(event_queue),
            _lock: lock,
        };
        runtime.reconcile().await?;
        Ok(runtime)
    }

    /// Adopts complete sandboxes and removes the others, with everything that is theirs.
    async fn reconcile(&self) -> Result<(), RuntimeError> {
        let folder = self.config.data_dir.join("sandboxes");
        let mut held = BTreeSet::new();
        let entries: Vec<_> =
            fs::read_dir(&folder).and_then(Iterator::collect::<Result<_, _>>).map_err(at("cannot list", &folder))?;
        for entry in entries {
            let folder = SandboxFolder(entry.path());
            let record: Option<SandboxRecord> = match state::load(&folder.record()) {
                Ok(record) => record,
                Err(error) => return Err(at("cannot read", &folder.record())(error)),
            };
            let Some(record) = record else {
                remove_folder(&folder.0).map_err(at("cannot remove", &folder.0))?;
                continue;
            };
            if !record.complete {
                tracing::info!(sandbox = record.id, "removing a sandbox that was never finished");
                self.destroy(&folder, &record).await?;
                continue;
            }
            let sandbox = Arc::new(self.adopt(folder, record).await);
            held.extend(sandbox::container_names(&sandbox.folder).map_err(at("cannot list", &sandbox.folder.0))?);
            let records = sandbox.containers().map_err(at("cannot read", &sandbox.folder.0))?;
            // A container without a record was never promised to anyone.
            for name in sandbox::container_names(&sandbox.folder).map_err(at("cannot list", &sandbox.folder.0))? {
                if !records.iter().any(|record| record.id == name) {
                    remove_folder(&sandbox.folder.container(&name).0).map_err(at("cannot remove", &sandbox.folder.0))?;
                    held.remove(&name);
                }
            }
            self.containers.lock().extend(records.into_iter().map(|record| (record.id, sandbox.clone())));
            self.sandboxes.lock().insert(sandbox.record.id.clone(), sandbox);
        }
        self.images.retain_holds(&held)?;
        let connected: BTreeSet<String> = {
            let sandboxes = self.sandboxes.lock();
            sandboxes.values().filter(|sandbox| !sandbox.record.stopped).map(|sandbox| sandbox.record.id.clone()).collect()
        };
        Ok(self.config.network.retain(&connected).await?)
    }

    async fn adopt(&self, folder: SandboxFolder, record: SandboxRecord) -> Sandbox {
        Sandbox::adopt(folder, record, self.events.clone(), self.config.clock.clone()).await
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
        let (command, shim_folder) = (self.config.shim_command.clone(), folder.clone());
        blocking(move || client::spawn(&command, &shim_folder)).await.map_err(context("cannot start the sandbox"))?;
        if !record.config.host_network {
            let shim: Option<ShimRecord> = state::load(&folder.shim_record()).map_err(at("cannot read", &folder.0))?;
            let namespace = shim.map(|shim| PathBuf::from(format!("/proc/{}/ns/net", shim.process)));
            record.addresses = self.config.network.attach(&attachment(record, namespace)).await?;
        }
        record.complete = true;
        state::save(&folder.record(), record).map_err(at("cannot write into", &folder.0))
    }

    /// Ends and removes everything of a sandbox that nobody knows of.
    async fn destroy(&self, folder: &SandboxFolder, record: &SandboxRecord) -> Result<(), RuntimeError> {
        sandbox::end_processes(folder, record).await.map_err(context("cannot end the sandbox"))?;
        self.disconnect(record).await?;
        for name in sandbox::container_names(folder).map_err(at("cannot list", &folder.0))? {
            self.images.release(&name)?;
        }
        let path = folder.0.clone();
        blocking(move || remove_folder(&path)).await.map_err(at("cannot remove", &folder.0))
    }

    async fn disconnect(&self, record: &SandboxRecord) -> Result<(), RuntimeError> {
        if record.config.host_network {
            return Ok(());
        }
        Ok(self.config.network.detach(&attachment(record, None)).await?)
    }

    async fn request(&self, container: &str, request: Request, patience: Duration) -> Result<Response, RuntimeError> {
        let sandbox = self.sandbox_of(container)?;
        sandbox.ask(&request, patience).await.map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => RuntimeError::Timeout("the sandbox process", patience),
            _ => RuntimeError::Unavailable(format!("sandbox {}: {error}", sandbox.record.id)),
        })
    }

    async fn status_of(&self, container: &str) -> Result<ContainerStatus, RuntimeError> {
        let sandbox = self.sandbox_of(container)?;
        let id = container.to_owned();
        let status = blocking(move || {
            let record: Option<ContainerRecord> = state::load(&sandbox.folder.container(&id).record())?;
            record.map(|record| sandbox.status(record)).transpose()
        });
        let status = status.await.map_err(context("cannot read the container's state"))?;
        status.ok_or_else(|| RuntimeError::NotFound { what: "container", id: container.to_owned() })
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
            Response::NotRunning => {
                let state = self.status_of(id).await?.state;
                assert_ne!(state, ContainerState::Unknown, "a shim that answers knows its containers");
                Err(RuntimeError::Container(format!("container {id} is not running")))
            }
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

/// `namespace` is only known for sure right after the shim started: later its process number may be another's.
fn attachment(record: &SandboxRecord, namespace: Option<PathBuf>) -> Attachment {
    Attachment {
        sandbox_id: record.id.clone(),
        pod: record.config.pod.clone(),
        namespace,
        port_mappings: record.config.port_mappings.clone(),
    }
}

fn resolver_file(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

/// A signal by name (`SIGTERM`, `TERM`) or number, as images give it.
fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    Signal::from_str(&name).ok().map(|signal| signal as i32)
}

fn new_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

fn restrict(folder: &Path) -> Result<(), RuntimeError> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o711)).map_err(at("cannot restrict", folder))
}

fn lock_folder(folder: &Path) -> Result<File, RuntimeError> {
    let path = folder.join("lock");
    let lock = File::options().create(true).truncate(false).write(true).open(&path).map_err(at("cannot open", &path))?;
    lock.try_lock().map_err(|_| RuntimeError::Unavailable(format!("{} is in use by another process", folder.display())))?;
    Ok(lock)
}

fn check_format(folder: &Path) -> Result<(), RuntimeError> {
    let path = folder.join("format");
    match fs::read_to_string(&path) {
        Ok(found) if found.trim() == FORMAT => Ok(()),
        Ok(found) => Err(RuntimeError::Unavailable(format!(
            "{} has format {}; this version knows {FORMAT}",
            folder.display(),
            found.trim()
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::write(&path, FORMAT).map_err(at("cannot write", &path)),
        Err(error) => Err(at("cannot read", &path)(error)),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_are_read_as_images_write_them() {
        for (text, expected) in [("SIGTERM", Some(15)), ("quit", Some(3)), ("9", Some(9)), ("0", None), ("SIGWHAT", None)] {
            assert_eq!(parse_signal(text), expected, "{text}");
        }
    }

    #[test]
    fn the_resolver_file_has_the_order_of_the_cri_runtimes() {
        let dns = DnsConfig {
            servers: vec!["10.0.0.10".to_owned()],
            searches: vec!["a.svc".to_owned(), "svc".to_owned()],
            options: vec!["ndots:5".to_owned()],
        };
        assert_eq!(resolver_file(&dns), "search a.svc svc\nnameserver 10.0.0.10\noptions ndots:5\n");
    }
}
