//! A cluster of real processes on this machine, and the faults that tests put on it.

use std::{
    fs::{self, File, OpenOptions},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{kubectl::Kubectl, wait::until};

/// How long a cluster of this machine may take to elect a leader.
pub const ELECTION_LIMIT: Duration = Duration::from_secs(20);
/// Where the search for free ports begins; every cluster uses ports up to [`PORTS`] above its base.
const FIRST_PORT: u16 = 21_000;
const PORTS: u16 = 310;
/// Held by the one cluster that tests may run at a time on this machine, whatever runs the tests.
const TURN: &str = "trireme-tests.lock";

/// What runs the pods of a test's cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pods {
    /// Simulated.
    Hollow,
    /// Real containers, each node in a network namespace of its own. Needs root.
    Real,
}

/// One cluster, alone on this machine. Dropping it stops it and deletes its folder.
pub struct Cluster {
    folder: PathBuf,
    port_base: u16,
    flags: Vec<String>,
    binary: PathBuf,
    _turn: Flock<File>,
}

impl Cluster {
    /// Starts three masters and `nodes` nodes in three zones, and waits until they are ready.
    ///
    /// # Panics
    /// When that fails, with what the command printed.
    pub fn start(pods: Pods, nodes: usize) -> Self {
        Self::start_with(pods, nodes, &[])
    }

    /// As [`Cluster::start`], with more flags for `trireme up`.
    ///
    /// # Panics
    /// When the cluster does not start.
    pub fn start_with(pods: Pods, nodes: usize, more_flags: &[&str]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let turn = take_turn();
        let port_base = free_ports();
        let folder = std::env::temp_dir().join(format!("trireme-e2e-{}-{port_base}", std::process::id()));
        let kind: &[&str] = match pods {
            Pods::Hollow => &["--runtime", "hollow", "--netns", "none"],
            Pods::Real => {
                assert!(nix::unistd::geteuid().is_root(), "real containers need root; run this test as root");
                &["--runtime", "embedded", "--netns", "nodes"]
            }
        };
        let mut flags: Vec<String> = kind.iter().chain(more_flags).map(|flag| (*flag).to_owned()).collect();
        flags.extend(["--nodes".to_owned(), nodes.to_string(), "--port-base".to_owned(), port_base.to_string()]);
        let cluster = Self { folder, port_base, flags, binary: binary(), _turn: turn };
        cluster.up();
        cluster
    }

    /// `trireme up`: the first start, or a later one of what is not running.
    ///
    /// # Panics
    /// When the cluster does not become ready.
    pub fn up(&self) {
        let mut arguments = vec!["up", "--detach"];
        arguments.extend(self.flags.iter().map(String::as_str));
        self.trireme(&arguments);
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The balancer's port; the API ports of the masters follow it.
    pub fn port_base(&self) -> u16 {
        self.port_base
    }

    /// Runs a `trireme` command on this cluster and returns what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn trireme(&self, arguments: &[&str]) -> String {
        let output = self.try_trireme(arguments);
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "trireme {}: {}\n{stdout}{stderr}", arguments.join(" "), output.status);
        stdout.into_owned()
    }

    /// Runs a `trireme` command on this cluster.
    ///
    /// # Panics
    /// When the binary cannot be run at all.
    pub fn try_trireme(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.binary);
        command.args(arguments).arg("--data-dir").arg(&self.folder);
        command.output().unwrap_or_else(|error| panic!("cannot run {}: {error}", self.binary.display()))
    }

    /// What `trireme status` says.
    ///
    /// # Panics
    /// When the command fails.
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.trireme(&["status", "-o", "json"])).expect("status prints JSON")
    }

    /// Waits until exactly one of the running masters leads, in the newest term that any of them knows, and gives its name.
    pub async fn leader(&self) -> String {
        until("a leader", ELECTION_LIMIT, || async {
            let status = self.status();
            let masters = status["masters"].as_array().cloned().unwrap_or_default();
            let newest = masters.iter().filter_map(|master| master["term"].as_u64()).max();
            let leads = |master: &&Value| master["role"] == "leader" && master["term"].as_u64() == newest;
            masters.iter().find(leads).and_then(|master| master["name"].as_str().map(str::to_owned)).ok_or(status)
        })
        .await
    }

    pub fn masters(&self) -> [String; 3] {
        ["master-1", "master-2", "master-3"].map(str::to_owned)
    }

    /// The process id of a master or node.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self, name: &str) -> Pid {
        let status = self.status();
        let processes = ["masters", "nodes"].iter().filter_map(|kind| status[*kind].as_array()).flatten();
        let pid = processes.into_iter().find(|process| process["name"] == name).and_then(|process| process["pid"].as_i64());
        Pid::from_raw(pid.and_then(|pid| i32::try_from(pid).ok()).unwrap_or_else(|| panic!("{name} does not run: {status}")))
    }

    /// `kill -9` of all these at once: the signals are sent before any of the deaths is awaited.
    ///
    /// # Panics
    /// When one of them does not run.
    pub fn kill_at_once(&self, names: &[String]) {
        let pids: Vec<Pid> = names.iter().map(|name| self.pid(name)).collect();
        for pid in pids {
            kill(pid, Signal::SIGKILL).expect("the process was there a moment ago");
        }
        for name in names {
            self.trireme(&["kill", name]);
        }
    }

    /// A client of one server: a master's name, or `trireme` for the balancer.
    ///
    /// # Panics
    /// When the cluster's kubeconfig cannot be used.
    pub async fn client(&self, context: &str) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig()).expect("the cluster's kubeconfig is readable");
        let options = KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("the context is there");
        config.connect_timeout = Some(Duration::from_secs(2));
        config.read_timeout = Some(Duration::from_secs(10));
        config.write_timeout = Some(Duration::from_secs(10));
        Client::try_from(config).expect("the kubeconfig makes a client")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// The machine's own kubectl, against the balancer.
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::of_machine(self.kubeconfig(), &self.folder)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        let output = self.try_trireme(&["down", "--purge"]);
        if !output.status.success() && self.folder.exists() {
            eprintln!("cannot clear {} away: {}", self.folder.display(), String::from_utf8_lossy(&output.stderr));
        }
    }
}

impl Cluster {
    /// The end of every process's log, for a test that has failed.
    fn print_logs(&self) {
        let processes = fs::read_dir(self.folder.join("processes")).into_iter().flatten().flatten();
        for process in processes {
            let text = fs::read_to_string(process.path().join("trireme.log")).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let shown = &lines[lines.len().saturating_sub(15)..];
            eprintln!("--- {}\n{}", process.file_name().to_string_lossy(), shown.join("\n"));
        }
    }
}

/// The binary under test: `TRIREME_BIN`, else `bin/trireme` of the workspace.
///
/// # Panics
/// When there is none.
pub fn binary() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bin/trireme");
    let binary = std::env::var_os("TRIREME_BIN").map_or(built, PathBuf::from);
    assert!(binary.is_file(), "{} is not there: build it with `make build`, or name one in TRIREME_BIN", binary.display());
    binary
}

/// Waits until no other test of this machine has a cluster.
///
/// # Panics
/// When the lock file cannot be used.
pub fn take_turn() -> Flock<File> {
    let path = std::env::temp_dir().join(TURN);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
    Flock::lock(file, FlockArg::LockExclusive).unwrap_or_else(|(_, error)| panic!("cannot lock {}: {error}", path.display()))
}

/// A base from which all the ports that a cluster uses are free.
///
/// # Panics
/// When this machine has no such range.
pub fn free_ports() -> u16 {
    let offsets = || (0..10).chain(100..110).chain(200..210);
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut bases = (FIRST_PORT..32_000).step_by(usize::from(PORTS));
    bases.find(|base| offsets().all(|offset| is_free(base + offset))).expect("this machine has a range of free ports")
}
