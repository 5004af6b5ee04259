//! How long writes are refused after the leader was killed.
//!
//! Each surviving master is sent the same write over and over by `curl`, on a thread of its own; the first success ends the round.
//! Starting a `curl` takes 10 to 20 ms, which is how exact the figures are.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    cluster::{Cluster, Master},
    now,
};
use crate::process;

/// How long writes may be refused before the measurement is given up.
const GIVE_UP: Duration = Duration::from_secs(30);
/// How long one request may take; a master without a leader may hold it until there is one.
const REQUEST_SECONDS: &str = "10";
const COLLECTION: &str = "/api/v1/namespaces/default/configmaps";
const NAME: &str = "bench";

/// The writes of one measurement.
pub struct Failover<'a> {
    cluster: &'a Cluster,
    client: Client,
    /// The round whose write was acknowledged last.
    last_round: u32,
}

/// The administrator, through curl.
#[derive(Clone)]
struct Client {
    pki: PathBuf,
}

impl<'a> Failover<'a> {
    /// Makes the object that the rounds write to.
    ///
    /// # Errors
    /// When the cluster takes no writes.
    pub fn prepare(cluster: &'a Cluster) -> Result<Self> {
        let client = Client { pki: cluster.pki() };
        let masters = cluster.wait_whole()?;
        let first = masters.first().context("the cluster has no masters")?;
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME}, "data": {"round": "0"}});
        client.send(&first.api, "POST", COLLECTION, "application/json", &object).context("cannot write to the new cluster")?;
        Ok(Self { cluster, client, last_round: 0 })
    }

    /// Kills the leader, measures, and starts it again.
    ///
    /// # Errors
    /// When no write is acknowledged in time, or the killed master does not come back.
    pub fn kill_leader(&mut self, round: u32) -> Result<Duration> {
        let masters = self.cluster.wait_whole()?;
        let (leaders, survivors): (Vec<Master>, Vec<Master>) = masters.into_iter().partition(Master::leads);
        let leader = leaders.first().context("there is no leader")?;
        let pid = leader.pid.context("the leader has no process")?;
        let killed = now();
        process::run(Command::new("kill").args(["-KILL", &pid.to_string()]))?;
        let gap = self.first_write(&survivors, round, killed)?;
        self.last_round = round;
        process::run(self.cluster.command("start").arg(&leader.name).stdout(Stdio::null()))?;
        self.cluster.wait_whole()?;
        Ok(gap)
    }

    /// The time from `killed` until one of the survivors acknowledged this round's write.
    fn first_write(&self, survivors: &[Master], round: u32, killed: Instant) -> Result<Duration> {
        let (sender, acknowledged) = mpsc::channel();
        let writers: Vec<_> = survivors
            .iter()
            .map(|master| {
                let (client, api, sender) = (self.client.clone(), master.api.clone(), sender.clone());
                std::thread::spawn(move || client.write_until_acknowledged(&api, round, killed, &sender))
            })
            .collect();
        drop(sender);
        let gap = acknowledged.recv_timeout(GIVE_UP);
        // The receiver's end tells the other writers to stop.
        drop(acknowledged);
        for writer in writers {
            ensure!(writer.join().is_ok(), "a writer panicked");
        }
        gap.with_context(|| format!("no write was acknowledged within {GIVE_UP:?} after the leader was killed"))
    }

    /// Reads the object at every master: each must have the last acknowledged write.
    ///
    /// # Errors
    /// When a master has something else.
    pub fn check_last_write(&self) -> Result<()> {
        for master in self.cluster.wait_whole()? {
            let answer = self.client.get(&master.api)?;
            let found = answer["data"]["round"].as_str();
            if found != Some(self.last_round.to_string().as_str()) {
                bail!("{} lost an acknowledged write: it has round {found:?}, not {}", master.name, self.last_round);
            }
        }
        Ok(())
    }
}

impl Client {
    fn write_until_acknowledged(&self, api: &str, round: u32, killed: Instant, acknowledged: &mpsc::Sender<Duration>) {
        let patch = json!({"data": {"round": round.to_string()}});
        let path = format!("{COLLECTION}/{NAME}");
        while killed.elapsed() < GIVE_UP {
            if self.send(api, "PATCH", &path, "application/merge-patch+json", &patch).is_ok() {
                // Nobody listens any more when another master was first.
                let _first = acknowledged.send(killed.elapsed());
                return;
            }
        }
    }

    fn send(&self, api: &str, method: &str, path: &str, content_type: &str, body: &Value) -> Result<String> {
        let header = format!("Content-Type: {content_type}");
        let body = body.to_string();
        self.curl(api, path, &["--request", method, "--header", &header, "--data", &body])
    }

    fn get(&self, api: &str) -> Result<Value> {
        let text = self.curl(api, &format!("{COLLECTION}/{NAME}"), &[])?;
        serde_json::from_str(&text).context("a master did not answer with JSON")
    }

    /// One request; fails on any status but success.
    fn curl(&self, api: &str, path: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("curl");
        command.args(["--silent", "--fail", "--max-time", REQUEST_SECONDS]);
        for (flag, file) in [("--cacert", "ca.crt"), ("--cert", "admin.crt"), ("--key", "admin.key")] {
            command.arg(flag).arg(self.pki.join(file));
        }
        process::output(command.args(arguments).arg(format!("https://{api}{path}")))
    }
}
