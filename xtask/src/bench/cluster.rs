//! The cluster under measurement: started, looked at and taken away with the binary's own commands.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::now;
use crate::process;

/// How long the masters may take to be whole again after one was started.
const HEAL_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// Three masters and three hollow nodes; deleted with its folder when dropped.
pub struct Cluster {
    binary: PathBuf,
    folder: PathBuf,
}

/// One master, as `trireme status` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    pub name: String,
    pub pid: Option<u64>,
    /// `host:port` of its API.
    pub api: String,
    pub role: Option<String>,
}

/// The resident memory of one process, in KiB.
pub struct Memory {
    pub name: String,
    pub resident_kib: u64,
}

impl Cluster {
    /// Starts a new cluster in a folder and returns when it is ready.
    ///
    /// # Errors
    /// When it does not become ready; nothing is left behind then.
    pub fn start(binary: PathBuf, folder: PathBuf, port_base: u16) -> Result<Self> {
        let cluster = Self { binary, folder };
        let port = port_base.to_string();
        let shape =
            ["--masters", "3", "--nodes", "3", "--runtime", "hollow", "--netns", "none", "--port-base", &port, "--detach"];
        process::run(cluster.command("up").args(shape).stdout(Stdio::null()))?;
        Ok(cluster)
    }

    /// A command of the binary on this cluster.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg(name).arg("--data-dir").arg(&self.folder);
        command
    }

    /// The folder with the administrator's certificate.
    pub fn pki(&self) -> PathBuf {
        self.folder.join("pki")
    }

    fn status(&self) -> Result<Value> {
        let text = process::output(self.command("status").args(["--output", "json"]))?;
        serde_json::from_str(&text).context("`trireme status` did not print JSON")
    }

    /// The masters, in the order of their names.
    pub fn masters(&self) -> Result<Vec<Master>> {
        Ok(masters(&self.status()?))
    }

    /// Waits until every master answers and one of them leads.
    pub fn wait_whole(&self) -> Result<Vec<Master>> {
        let started = now();
        loop {
            let masters = self.masters()?;
            if is_whole(&masters) {
                return Ok(masters);
            }
            if started.elapsed() > HEAL_TIMEOUT {
                bail!("the masters are not whole after {HEAL_TIMEOUT:?}: {masters:?}");
            }
            std::thread::sleep(POLL);
        }
    }

    /// What every process holds in memory now.
    pub fn memory(&self) -> Result<Vec<Memory>> {
        let status = self.status()?;
        let processes = ["masters", "nodes"].into_iter().flat_map(|kind| status[kind].as_array().into_iter().flatten());
        let read = processes.map(|process| {
            let name = process["name"].as_str().context("a process has no name")?.to_owned();
            let pid = process["pid"].as_u64().with_context(|| format!("{name} is not running"))?;
            Ok(Memory { name, resident_kib: process::resident_kib(pid)? })
        });
        read.collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = process::run(self.command("down").arg("--purge").stdout(Stdio::null())) {
            eprintln!("xtask: the cluster in {} is left behind: {error:#}", self.folder.display());
        }
    }
}

fn masters(status: &Value) -> Vec<Master> {
    let listed = status["masters"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let read = listed.filter_map(|master| {
        let (name, api) = (text(&master["name"])?, text(&master["api"])?);
        Some(Master { name, pid: master["pid"].as_u64(), api, role: text(&master["role"]) })
    });
    read.collect()
}

impl Master {
    pub fn leads(&self) -> bool {
        self.role.as_deref().is_some_and(|role| role.eq_ignore_ascii_case("leader"))
    }
}

/// Every master runs, answers, and exactly one leads.
fn is_whole(masters: &[Master]) -> bool {
    let all_answer = masters.iter().all(|master| master.pid.is_some() && master.role.is_some());
    all_answer && masters.iter().filter(|master| master.leads()).count() == 1
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(roles: [Option<&str>; 3]) -> Value {
        let masters = roles.iter().enumerate().map(|(index, role)| {
            json!({"name": format!("master-{}", index + 1), "pid": 10 + index, "api": "127.0.0.1:1", "role": role})
        });
        json!({"masters": masters.collect::<Vec<_>>()})
    }

    #[test]
    fn a_cluster_is_whole_when_all_answer_and_one_leads() {
        assert!(is_whole(&masters(&status([Some("follower"), Some("leader"), Some("follower")]))));
        assert!(!is_whole(&masters(&status([None, Some("leader"), Some("follower")]))));
        assert!(!is_whole(&masters(&status([Some("follower"); 3]))));
        assert!(!is_whole(&masters(&status([Some("leader"), Some("leader"), Some("follower")]))));
    }

    #[test]
    fn a_master_that_does_not_run_is_not_whole() {
        let mut read = masters(&status([Some("follower"), Some("leader"), Some("follower")]));
        read[0].pid = None;
        assert!(!is_whole(&read));
    }
}
