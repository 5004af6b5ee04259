//! One master as a process of its own, started and watched from outside.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
};

use nix::sys::signal::Signal;

use crate::wait::until;

/// A member that comes to a halt is to say all it knows.
const LOG_LEVEL: &str = "info,trireme_consensus::silence=debug";
/// By this variable a master is told its fail point; `-` has it read them from standard input. See `trireme/src/fail_points.rs`.
const VARIABLE: &str = "TRIREME_FAIL_POINT";

/// Where and how one master runs. Its process comes and goes.
pub struct Master {
    pub name: String,
    pub client_port: u16,
    pub peer_port: u16,
    binary: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    process: Option<Process>,
}

struct Process {
    child: Child,
    orders: ChildStdin,
    /// How long the log was when the process began.
    log_start: usize,
}

/// How a process ended.
#[derive(Debug)]
pub struct Death {
    pub status: ExitStatus,
    /// The fail points at which it said to be, on its way out.
    pub reached: Vec<String>,
}

impl Death {
    /// Whether the process killed itself at `point`, and at no other.
    pub fn is_at(&self, point: &str) -> bool {
        self.status.signal() == Some(Signal::SIGKILL as i32) && self.reached == [point]
    }
}

impl Master {
    /// A master that does not run yet. Its log goes to `log`.
    pub fn new(name: String, binary: PathBuf, arguments: Vec<String>, log: PathBuf, client_port: u16, peer_port: u16) -> Self {
        Self { name, client_port, peer_port, binary, arguments, log, process: None }
    }

    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Starts the process, ready for [`Master::arm`]; or with a fail point armed from its first moment on.
    ///
    /// # Panics
    /// When it runs already, or cannot be started.
    pub fn start(&mut self, point: Option<&str>) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("the log file can be written");
        let log_start = self.log_text().len();
        let mut command = Command::new(&self.binary);
        for (variable, _) in std::env::vars_os().filter(|(variable, _)| variable.to_string_lossy().starts_with("TRIREME_")) {
            command.env_remove(variable);
        }
        command.arg("master").args(&self.arguments).env(VARIABLE, point.unwrap_or("-")).env("TRIREME_LOG_LEVEL", LOG_LEVEL);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run {}: {error}", self.binary.display()));
        let orders = child.stdin.take().expect("standard input is piped");
        self.process = Some(Process { child, orders, log_start });
    }

    /// Has the running process kill itself when it reaches `point` for the `nth` time from now on.
    ///
    /// # Panics
    /// When it does not run, or does not obey.
    pub async fn arm(&mut self, point: &str, nth: u64) {
        let process = self.process.as_mut().unwrap_or_else(|| panic!("{} does not run", self.name));
        writeln!(process.orders, "{point}:{nth}").unwrap_or_else(|error| panic!("{} does not listen: {error}", self.name));
        let confirmation = format!("fail point armed: {point}\n");
        until("a fail point is armed", || async {
            if self.said().contains(&confirmation) { Ok(()) } else { Err(self.last_words()) }
        })
        .await;
    }

    /// Whether the process has ended by itself.
    ///
    /// # Panics
    /// When it was not running.
    pub fn has_ended(&mut self) -> bool {
        let process = self.process.as_mut().unwrap_or_else(|| panic!("{} does not run", self.name));
        process.child.try_wait().expect("the process is ours").is_some()
    }

    /// Waits until the process has ended by itself.
    pub async fn death(&mut self) -> Death {
        let mut process = self.process.take().unwrap_or_else(|| panic!("{} does not run", self.name));
        let deadline = tokio::time::Instant::now() + crate::wait::PATIENCE;
        let status = loop {
            if let Some(status) = process.child.try_wait().expect("the process is ours") {
                break status;
            }
            if tokio::time::Instant::now() >= deadline {
                self.process = Some(process);
                panic!("{} does not end; its log:\n{}", self.name, self.last_words());
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        };
        let text = self.log_text();
        let said = text.get(process.log_start..).unwrap_or_default();
        let reached = said.lines().filter_map(|line| line.strip_prefix("fail point reached: ")).map(str::to_owned).collect();
        Death { status, reached }
    }

    /// `kill -9`, and waits for the end.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        let mut process = self.process.take().unwrap_or_else(|| panic!("{} does not run", self.name));
        process.child.kill().expect("the process is ours");
        process.child.wait().expect("the process is ours");
    }

    fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// What the running process has logged.
    fn said(&self) -> String {
        let start = self.process.as_ref().map_or(0, |process| process.log_start);
        self.log_text().get(start..).unwrap_or_default().to_owned()
    }

    /// The end of the log.
    pub fn last_words(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
    }
}
