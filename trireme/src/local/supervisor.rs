//! Keeps the processes of a local cluster: starts them, answers commands about them, serves the balancer, and stops them.
//!
//! It does not bring back what dies: a killed master stays dead until someone starts it, which is what a fault test needs.
//! Masters and node agents outlive it; a new supervisor finds them again by their pid files.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::Signal,
};
use parking_lot::RwLock;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, UnixListener, UnixStream},
    process::Command,
    sync::{Mutex, watch},
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};
use trireme_api::clock::SystemClock;

use super::{
    balancer, certificates,
    control::{Action, Answer, Process, Request},
    layout::Layout,
    network, power,
    process::{ProcessId, ProcessState},
    spec::ClusterSpec,
    up,
};
use crate::{
    pki,
    tls::{self, LiveIdentity},
};

/// How long a process gets to stop in good order before it is killed.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_POLL: Duration = Duration::from_millis(20);

/// The right to run the one supervisor of a folder.
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// `None` when another supervisor holds it.
    pub fn take(layout: &Layout) -> Result<Option<Self>> {
        pki::create_private_folder(layout.root())?;
        let path = layout.lock();
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Some(Self { _file: file })),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
}

/// The processes of one cluster.
pub struct Supervisor {
    pub(super) layout: Layout,
    /// What the cluster consists of now; changed by [`super::change`] alone.
    pub(super) spec: RwLock<Arc<ClusterSpec>>,
    /// Where the masters serve the API, for the balancer.
    pub(super) masters: watch::Sender<Vec<SocketAddr>>,
    /// Held by whoever changes what the cluster consists of.
    pub(super) changing: Mutex<()>,
    /// This program as it was found at the start: the file may be replaced by a newer version while we run.
    program: PathBuf,
    /// By name; processes that were started at least once.
    pub(super) processes: Mutex<BTreeMap<String, ProcessId>>,
}

impl Supervisor {
    /// Finds the processes that an earlier supervisor left running.
    pub fn new(layout: Layout, spec: ClusterSpec) -> Result<Self> {
        let program = own_path()?;
        let left = spec.process_names().filter_map(|name| Some((name.to_owned(), ProcessId::load(&layout.process_pid(name))?)));
        let processes = Mutex::new(left.collect());
        let masters = watch::Sender::new(spec.masters.iter().map(|master| master.api).collect());
        Ok(Self { layout, spec: RwLock::new(Arc::new(spec)), masters, changing: Mutex::default(), program, processes })
    }

    /// What the cluster consists of now.
    pub fn spec(&self) -> Arc<ClusterSpec> {
        self.spec.read().clone()
    }

    /// Whether a process that an earlier supervisor started still runs.
    pub fn is_running(&self, name: &str) -> bool {
        ProcessId::load(&self.layout.process_pid(name)).is_some_and(|id| id.state() != ProcessState::Stopped)
    }

    /// Starts every process that is not running, serves the balancer and the control socket until `shutdown` or a `Down`
    /// request, then stops everything.
    pub async fn run(self: Arc<Self>, lock: Lock, shutdown: CancellationToken) -> Result<()> {
        let spec = self.spec();
        let mut balancers = vec![listen(spec.balancer()).await?];
        let control = self.listen_for_commands()?;
        if let Err(error) = self.start_all().await {
            // Half a cluster is left to nobody.
            self.stop_all().await?;
            return Err(error);
        }
        // The bridge is there now.
        for address in &spec.balancers()[1..] {
            balancers.push(listen(*address).await?);
        }
        let tasks = TaskTracker::new();
        let admin = LiveIdentity::load(&pki::admin_paths(&self.layout.pki()))?;
        let tls = Arc::new(admin.client()?);
        tasks.spawn(tls::follow(vec![admin.followed()], shutdown.clone()));
        let own = self.clone();
        tasks.spawn(certificates::keep(self.layout.clone(), move || own.spec(), Arc::new(SystemClock), shutdown.clone()));
        let balancing: Vec<_> = balancers
            .into_iter()
            .map(|listener| tasks.spawn(balancer::serve(listener, self.masters.subscribe(), tls.clone(), shutdown.clone())))
            .collect();
        let serving = tasks.spawn(self.clone().serve_commands(control, shutdown.clone()));
        shutdown.cancelled().await;
        info!("stopping every process");
        self.stop_all().await?;
        tasks.close();
        tasks.wait().await;
        for balancer in balancing {
            balancer.await??;
        }
        serving.await?;
        std::fs::remove_file(self.layout.socket()).context("cannot remove the control socket")?;
        drop(lock);
        Ok(())
    }

    async fn start_all(&self) -> Result<()> {
        let spec = self.spec();
        network::ensure(&spec).await?;
        for name in spec.process_names() {
            self.start(name).await?;
        }
        Ok(())
    }

    fn listen_for_commands(&self) -> Result<UnixListener> {
        let path = self.layout.socket();
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove the stale {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    }

    async fn serve_commands(self: Arc<Self>, listener: UnixListener, shutdown: CancellationToken) {
        let answering = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    let supervisor = self.clone();
                    let shutdown = shutdown.clone();
                    answering.spawn(async move {
                        if let Err(error) = supervisor.answer(stream, shutdown).await {
                            warn!("a command was not answered: {error:#}");
                        }
                    });
                }
                Err(error) => {
                    warn!(%error, "accept failed");
                    sleep(STOP_POLL).await;
                }
            }
        }
        answering.close();
        answering.wait().await;
    }

    async fn answer(&self, stream: UnixStream, shutdown: CancellationToken) -> Result<()> {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let request: Request = serde_json::from_str(&line)?;
        info!(?request, "command");
        let answer = match self.carry_out(&request).await {
            Ok(processes) => Answer::Processes(processes),
            Err(error) => Answer::Refused(format!("{error:#}")),
        };
        let mut line = serde_json::to_string(&answer)?;
        line.push('\n');
        stream.write_all(line.as_bytes()).await?;
        stream.shutdown().await?;
        if matches!(request, Request::Down) {
            shutdown.cancel();
        }
        Ok(())
    }

    async fn carry_out(&self, request: &Request) -> Result<Vec<Process>> {
        let spec = self.spec();
        match request {
            Request::List | Request::Down => Ok(self.list(spec.process_names().map(str::to_owned)).await),
            Request::AddMaster { master, ids } => {
                self.add_master(master, ids).await?;
                Ok(self.list(std::iter::once(master.name.clone())).await)
            }
            Request::RemoveMaster { name, ids } => {
                self.remove_master(name, ids).await?;
                Ok(Vec::new())
            }
            Request::Act { name, action } => {
                let names = spec.processes_named(name)?;
                for name in &names {
                    self.act(name, *action).await.with_context(|| format!("cannot {action:?} {name}").to_lowercase())?;
                }
                // A zone that is killed has lost its power; one process that is killed has only crashed.
                if *action == Action::Kill && !spec.process_names().any(|process| process == name) {
                    self.cut_power(&names).await?;
                }
                Ok(self.list(names.into_iter()).await)
            }
        }
    }

    /// Kills the containers of those of `names` that are nodes.
    async fn cut_power(&self, names: &[String]) -> Result<()> {
        let nodes: Vec<String> =
            self.spec().nodes.iter().map(|node| node.name.clone()).filter(|name| names.contains(name)).collect();
        let layout = self.layout.clone();
        tokio::task::spawn_blocking(move || nodes.iter().try_for_each(|name| power::cut(&layout, name))).await?
    }

    async fn list(&self, names: impl Iterator<Item = String>) -> Vec<Process> {
        let processes = self.processes.lock().await;
        names
            .map(|name| {
                let id = processes.get(&name);
                let state = id.map_or(ProcessState::Stopped, ProcessId::state);
                let pid = id.filter(|_| state != ProcessState::Stopped).map(ProcessId::pid);
                Process { name, state, pid }
            })
            .collect()
    }

    async fn act(&self, name: &str, action: Action) -> Result<()> {
        let id = self.processes.lock().await.get(name).copied();
        let running = id.filter(|id| id.state() != ProcessState::Stopped);
        match (action, running) {
            (Action::Start, None) => self.start(name).await,
            (Action::Start, Some(_)) => Ok(()),
            // What is dead already needs no killing: a zone may have lost a process before.
            (Action::Kill | Action::Stop, None) => Ok(()),
            (_, None) => bail!("it is not running"),
            (Action::Stop, Some(id)) => stop(id, STOP_TIMEOUT).await,
            (Action::Kill, Some(id)) => {
                id.signal(Signal::SIGKILL)?;
                wait_gone(id, STOP_TIMEOUT).await
            }
            (Action::Pause, Some(id)) => id.signal(Signal::SIGSTOP),
            (Action::Resume, Some(id)) => id.signal(Signal::SIGCONT),
        }
    }

    /// Starts a process unless it is running. It writes to its own log file and leads its own session, so that it outlives us.
    pub(super) async fn start(&self, name: &str) -> Result<()> {
        let mut processes = self.processes.lock().await;
        if processes.get(name).is_some_and(|id| id.state() != ProcessState::Stopped) {
            return Ok(());
        }
        let mut command = process_command(&self.layout, &self.spec(), &self.program, name)?;
        let log_path = self.layout.process_log(name);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)
            .with_context(|| format!("cannot open {}", log_path.display()))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(false)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let pid = child.id().context("the process ended at once")? as i32;
        let id = ProcessId::of(pid).context("the process ended at once")?;
        // On a full disk, say. A later supervisor will not know of it; this one does.
        if let Err(error) = id.save(&self.layout.process_pid(name)) {
            warn!(name, pid, "the process runs, and its pid cannot be kept: {error:#}");
        }
        processes.insert(name.to_owned(), id);
        info!(name, pid, "started");
        let name = name.to_owned();
        tokio::spawn(async move {
            match child.wait().await {
                Ok(status) => info!(name, %status, "ended"),
                Err(error) => warn!(name, %error, "cannot wait for the process"),
            }
        });
        Ok(())
    }

    /// Stops the nodes, then the masters, each kind all at once.
    pub async fn stop_all(&self) -> Result<()> {
        let processes = self.processes.lock().await.clone();
        let spec = self.spec();
        let masters: Vec<&str> = spec.masters.iter().map(|master| master.name.as_str()).collect();
        let (masters, nodes): (Vec<_>, Vec<_>) = processes.into_iter().partition(|(name, _)| masters.contains(&name.as_str()));
        for group in [nodes, masters] {
            for (_, id) in &group {
                // A frozen process cannot end.
                id.signal(Signal::SIGCONT)?;
                id.signal(Signal::SIGTERM)?;
            }
            for (_, id) in group {
                stop(id, STOP_TIMEOUT).await?;
            }
        }
        Ok(())
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listening = TcpListener::bind(address).await;
    listening.with_context(|| format!("cannot listen on {address}; choose other ports with --port-base"))
}

/// The path of this program.
pub fn own_path() -> Result<PathBuf> {
    std::env::current_exe().context("this program's own path is not known")
}

/// What starts a master or node, in its own network namespace if it has one.
fn process_command(layout: &Layout, spec: &ClusterSpec, program: &Path, name: &str) -> Result<Command> {
    let mut command = own_program(spec, program, name);
    command.args(up::process_arguments(layout, spec, name)?);
    Ok(command)
}

/// The settings that the processes of a local cluster take from the environment of `up`.
const PASSED_ON: [&str; 2] = ["TRIREME_LOG_FORMAT", "TRIREME_LOG_LEVEL"];

/// This program, to be run where a process of the cluster runs.
pub fn own_program(spec: &ClusterSpec, program: &Path, name: &str) -> Command {
    let mut command = match network::namespace_path(spec, name) {
        None => Command::new(program),
        Some(namespace) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", namespace.display())).arg("--").arg(program);
            command
        }
    };
    // Settings meant for `up` must not reach the processes, whose flags say everything but how they log.
    for (variable, _) in std::env::vars_os() {
        let name = variable.to_string_lossy();
        if name.starts_with("TRIREME_") && !PASSED_ON.contains(&name.as_ref()) {
            command.env_remove(variable);
        }
    }
    command
}

/// Asks a process to end, and kills it when it does not.
pub(super) async fn stop(id: ProcessId, limit: Duration) -> Result<()> {
    id.signal(Signal::SIGCONT)?;
    id.signal(Signal::SIGTERM)?;
    if wait_gone(id, limit).await.is_err() {
        warn!(pid = id.pid(), "did not stop in {limit:?}; killing it");
        id.signal(Signal::SIGKILL)?;
        wait_gone(id, limit).await?;
    }
    Ok(())
}

async fn wait_gone(id: ProcessId, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    while id.state() != ProcessState::Stopped {
        if Instant::now() > deadline {
            bail!("process {} does not end", id.pid());
        }
        sleep(STOP_POLL).await;
    }
    Ok(())
}

/// What the supervisor's socket path may be at the longest (`sun_path`).
const SOCKET_PATH_LIMIT: usize = 107;

/// Refuses a folder whose path is too long for a Unix socket in it.
pub fn check_socket_path(path: PathBuf) -> Result<()> {
    if path.as_os_str().len() > SOCKET_PATH_LIMIT {
        bail!(
            "the path {} is longer than a Unix socket's may be ({SOCKET_PATH_LIMIT} bytes); choose a shorter --data-dir",
            path.display()
        );
    }
    Ok(())
}
