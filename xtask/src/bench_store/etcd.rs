//! Three members of etcd, with certificates of the same authority as the masters', so that one client certificate does for both.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

use super::wait_healthy;
use crate::process;

/// So large that no run fills it.
const QUOTA_BYTES: u64 = 8 << 30;

struct Member {
    name: String,
    client_url: String,
    peer_url: String,
}

/// The running members; ended, and their data deleted, when dropped.
pub struct Etcd {
    folder: PathBuf,
    pki: PathBuf,
    version: String,
    members: Vec<Member>,
    running: Vec<Child>,
}

impl Etcd {
    /// Starts three members, with certificates that `binary` makes by the authority in `pki`, and waits until they serve.
    pub fn start(binary: &Path, folder: PathBuf, pki: &Path, port_base: u16) -> Result<Self> {
        fs::create_dir_all(&folder)?;
        let version = process::output(Command::new("etcd").arg("--version"))?;
        let version = version.lines().next().and_then(|line| line.split_whitespace().last()).context("etcd tells no version")?;
        let members: Vec<Member> = (0..3)
            .map(|number| Member {
                name: format!("etcd-{number}"),
                client_url: format!("https://127.0.0.1:{}", port_base + 2 * number),
                peer_url: format!("https://127.0.0.1:{}", port_base + 2 * number + 1),
            })
            .collect();
        for member in &members {
            let mut command = Command::new(binary);
            command.args(["pki", "master", &member.name, "--cluster-id", "etcd", "--address", "127.0.0.1", "--authority-dir"]);
            process::run(command.arg(pki).stdout(Stdio::null()))?;
        }
        let version = format!("etcd-{version}");
        let mut etcd = Self { folder, pki: pki.to_owned(), version, members, running: Vec::new() };
        etcd.run()?;
        Ok(etcd)
    }

    /// Starts every member, with the data that it has, and waits until all serve.
    pub fn run(&mut self) -> Result<()> {
        let initial: Vec<String> = self.members.iter().map(|member| format!("{}={}", member.name, member.peer_url)).collect();
        for member in &self.members {
            let own = self.pki.join(&member.name);
            let mut command = Command::new("etcd");
            command.args(["--name", &member.name, "--initial-cluster", &initial.join(","), "--log-level", "error"]);
            command.args(["--listen-client-urls", &member.client_url, "--advertise-client-urls", &member.client_url]);
            command.args(["--listen-peer-urls", &member.peer_url, "--initial-advertise-peer-urls", &member.peer_url]);
            command.args(["--client-cert-auth", "--peer-client-cert-auth"]);
            command.arg("--quota-backend-bytes").arg(QUOTA_BYTES.to_string());
            command.arg("--data-dir").arg(self.folder.join(&member.name));
            command.arg("--trusted-ca-file").arg(self.pki.join("ca.crt"));
            command.arg("--peer-trusted-ca-file").arg(self.pki.join("ca.crt"));
            command.arg("--cert-file").arg(own.join("api.crt")).arg("--key-file").arg(own.join("api.key"));
            command.arg("--peer-cert-file").arg(own.join("peer.crt")).arg("--peer-key-file").arg(own.join("peer.key"));
            let log = File::create(self.folder.join(format!("{}.log", member.name)))?;
            let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
            self.running.push(child.context("cannot start etcd; is etcd-server installed?")?);
        }
        wait_healthy(&self.urls(), &self.pki)
    }

    /// Kills every member at once.
    pub fn kill(&mut self) -> Result<()> {
        for child in &mut self.running {
            child.kill()?;
        }
        for mut child in self.running.drain(..) {
            child.wait()?;
        }
        Ok(())
    }

    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(|member| member.client_url.clone()).collect()
    }

    /// Its name and version.
    pub fn version(&self) -> &str {
        &self.version
    }

    pub fn pids(&self) -> Vec<u64> {
        self.running.iter().map(|child| u64::from(child.id())).collect()
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("xtask: members of etcd are left behind: {error:#}");
        }
    }
}
