//! Three masters without nodes, run by the binary's own commands.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::wait_healthy;
use crate::process;

/// The running masters; ended, and their data deleted, when dropped.
pub struct Masters {
    binary: PathBuf,
    folder: PathBuf,
}

impl Masters {
    pub fn start(binary: PathBuf, folder: PathBuf, port_base: u16) -> Result<Self> {
        let masters = Self { binary, folder };
        let port = port_base.to_string();
        let shape =
            ["--masters", "3", "--nodes", "0", "--runtime", "hollow", "--netns", "none", "--detach", "--port-base", &port];
        process::run(masters.command("up").args(shape).stdout(Stdio::null()))?;
        Ok(masters)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg(name).arg("--data-dir").arg(&self.folder);
        command
    }

    /// The folder with the authority and the administrator's certificate.
    pub fn pki(&self) -> PathBuf {
        self.folder.join("pki")
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The masters' client URLs.
    pub fn urls(&self) -> Result<Vec<String>> {
        let text = process::output(self.command("status").arg("--etcdctl-env"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("export ETCDCTL_ENDPOINTS="));
        Ok(line.context("`trireme status` names no endpoints")?.split(',').map(str::to_owned).collect())
    }

    fn listed(&self) -> Result<Vec<(String, Option<u64>)>> {
        let status: Value = serde_json::from_str(&process::output(self.command("status").args(["--output", "json"]))?)?;
        let masters = status["masters"].as_array().into_iter().flatten();
        masters
            .map(|master| Ok((master["name"].as_str().context("a master has no name")?.to_owned(), master["pid"].as_u64())))
            .collect()
    }

    pub fn pids(&self) -> Result<Vec<u64>> {
        Ok(self.listed()?.into_iter().filter_map(|(_, pid)| pid).collect())
    }

    /// Kills every master, one right after the other.
    pub fn kill(&self) -> Result<()> {
        self.listed()?.iter().try_for_each(|(name, _)| process::run(self.command("kill").arg(name).stdout(Stdio::null())))
    }

    /// Starts every master that does not run, with the data that it has, and waits until all serve.
    pub fn run(&self) -> Result<()> {
        let starting: Result<Vec<_>> =
            self.listed()?.iter().map(|(name, _)| Ok(self.command("start").arg(name).stdout(Stdio::null()).spawn()?)).collect();
        for mut child in starting? {
            child.wait()?;
        }
        wait_healthy(&self.urls()?, &self.pki())
    }
}

impl Drop for Masters {
    fn drop(&mut self) {
        if let Err(error) = process::run(self.command("down").arg("--purge").stdout(Stdio::null())) {
            eprintln!("xtask: the cluster in {} is left behind: {error:#}", self.folder.display());
        }
    }
}
