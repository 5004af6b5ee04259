//! Stock etcdctl, with what `trireme status --etcdctl-env` tells it.

use std::{
    io::{BufRead, BufReader, Lines, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
};

use crate::cluster::Cluster;

/// An etcdctl (API version 3) with the certificate and the endpoints of one cluster.
#[derive(Clone, Debug)]
pub struct Etcdctl {
    variables: Vec<(String, String)>,
}

/// An etcdctl that goes on until it is dropped.
pub struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Etcdctl {
    /// With the administrator's certificate, and every master.
    ///
    /// # Panics
    /// When `trireme status --etcdctl-env` prints something else than exports.
    pub fn of(cluster: &Cluster) -> Self {
        let printed = cluster.trireme(&["status", "--etcdctl-env"]);
        let variables = printed.lines().map(|line| {
            let assignment = line.strip_prefix("export ").unwrap_or_else(|| panic!("no export: {line}"));
            let (name, value) = assignment.split_once('=').unwrap_or_else(|| panic!("no assignment: {line}"));
            (name.to_owned(), value.to_owned())
        });
        Self { variables: variables.collect() }
    }

    /// The same with another value of a variable (`ENDPOINTS`, `CERT`, …).
    pub fn with(mut self, name: &str, value: &str) -> Self {
        let name = format!("ETCDCTL_{name}");
        self.variables.retain(|(known, _)| *known != name);
        self.variables.push((name, value.to_owned()));
        self
    }

    /// The value of a variable.
    ///
    /// # Panics
    /// When there is no such variable.
    pub fn variable(&self, name: &str) -> &str {
        let name = format!("ETCDCTL_{name}");
        let found = self.variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.as_str()).unwrap_or_else(|| panic!("{name} is not set"))
    }

    /// Every master's endpoint.
    pub fn endpoints(&self) -> Vec<String> {
        self.variable("ENDPOINTS").split(',').map(str::to_owned).collect()
    }

    /// The certificate of a process of the cluster in place of the administrator's.
    pub fn as_process(self, cluster: &Cluster, process: &str, certificate: &str) -> Self {
        let folder: PathBuf = cluster.folder().join("processes").join(process).join("pki");
        let path = |extension: &str| path_of(&folder, certificate, extension);
        self.with("CERT", &path("crt")).with("KEY", &path("key"))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command.args(arguments).envs(self.variables.iter().cloned());
        command
    }

    /// Runs a command with `input` on its standard input.
    ///
    /// # Panics
    /// When etcdctl cannot be run at all.
    pub fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("etcdctl is installed (Debian's etcd-client)");
        // It may have ended without reading.
        let _ = child.stdin.take().expect("stdin is piped").write_all(input.as_bytes());
        child.wait_with_output().expect("etcdctl ends")
    }

    /// Runs a command that must succeed and returns what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn ok(&self, arguments: &[&str]) -> String {
        self.ok_with_input(arguments, "")
    }

    /// As [`Etcdctl::ok`], with something on standard input.
    ///
    /// # Panics
    /// When it fails.
    pub fn ok_with_input(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, input);
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "etcdctl {}: {}\n{stdout}{stderr}", arguments.join(" "), output.status);
        stdout.into_owned()
    }

    /// Runs a command that must fail and returns everything it printed.
    ///
    /// # Panics
    /// When it succeeds.
    pub fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments, "");
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success(), "etcdctl {} succeeded: {stdout}{stderr}", arguments.join(" "));
        format!("{stdout}{stderr}")
    }

    /// Starts a command that goes on.
    ///
    /// # Panics
    /// When etcdctl cannot be run at all.
    pub fn start(&self, arguments: &[&str]) -> Running {
        let mut child = self.command(arguments).stdout(Stdio::piped()).spawn().expect("etcdctl is installed");
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        Running { child, lines }
    }
}

fn path_of(folder: &Path, certificate: &str, extension: &str) -> String {
    folder.join(format!("{certificate}.{extension}")).display().to_string()
}

impl Running {
    /// The next lines that it prints, which must come.
    ///
    /// # Panics
    /// When it ends first.
    pub fn lines(&mut self, count: usize) -> Vec<String> {
        let lines = (0..count).map(|_| self.lines.next().expect("etcdctl prints another line").expect("etcdctl prints text"));
        lines.collect()
    }

    /// Ends it as Ctrl-C does, so that it cleans up.
    ///
    /// # Panics
    /// When it does not end.
    pub fn interrupt(mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a pid is small"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it runs");
        self.child.wait().expect("it ends");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
