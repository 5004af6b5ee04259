//! `cargo xtask bench-store`: three masters and three members of etcd side by side on this machine, and `trireme bench store`
//! against both in one run. Both sync every write and speak mutual TLS with clients and with one another.

mod etcd;
mod masters;
mod restart;

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::Args;

use self::{etcd::Etcd, masters::Masters};
use crate::{process, workspace};

#[derive(Debug, Args)]
pub struct BenchStoreArgs {
    /// The binary to measure [default: `bin/trireme` in the workspace; `make dist` builds the one to compare].
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// The first of the ports that the stores use.
    #[arg(long, value_name = "PORT", default_value_t = 21443)]
    pub port_base: u16,
    /// Measure a large store instead: lay out so many keys, put while it is compacted and snapshotted, then read memory, disk, and the
    /// time from a restart to serving.
    #[arg(long, value_name = "KEYS")]
    pub large: Option<u64>,
    /// Where the stores' folders go: on the disk to measure [default: the folder for temporary files].
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// What else `trireme bench store` is given, such as `--only puts --rounds 3`.
    #[arg(last = true, value_name = "ARGS")]
    pub rest: Vec<String>,
}

/// Starts both stores, measures them, and takes them away.
///
/// # Errors
/// When a store does not start, or a request of the load fails.
pub fn run(args: &BenchStoreArgs) -> Result<()> {
    let binary = args.binary.clone().unwrap_or_else(|| workspace::root().join("bin/trireme"));
    ensure!(binary.is_file(), "{} does not exist; run `make dist` first", binary.display());
    let binary = std::path::absolute(binary)?;
    let parent = args.folder.clone().unwrap_or_else(std::env::temp_dir);
    let folder = std::path::absolute(parent)?.join(format!("trireme-bench-store-{}", std::process::id()));
    let masters = Masters::start(binary.clone(), folder.join("trireme"), args.port_base)?;
    let mut etcd = Etcd::start(&binary, folder.join("etcd"), &masters.pki(), args.port_base + 500)?;
    let mut command = {
        let mut command = Command::new(&binary);
        command.args(["bench", "store", "--endpoints", &masters.urls()?.join(","), "--against", &etcd.urls().join(",")]);
        command.args(["--against-name", etcd.version()]);
        for (flag, file) in [("--cacert", "ca.crt"), ("--cert", "admin.crt"), ("--key", "admin.key")] {
            command.arg(flag).arg(masters.pki().join(file));
        }
        command
    };
    match args.large {
        None => process::run(command.args(&args.rest))?,
        Some(keys) => {
            command.args(["--fill", &keys.to_string(), "--only", "upkeep-16", "--rounds", "1", "--seconds", UPKEEP_SECONDS]);
            process::run(command.args(&args.rest))?;
            restart::measure(&masters, &mut etcd)?;
        }
    }
    drop((masters, etcd));
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// Long enough for snapshots of a million keys.
const UPKEEP_SECONDS: &str = "30";
/// How long a store may take to serve.
const SERVING_TIMEOUT: Duration = Duration::from_secs(300);

/// Waits until every member of a store answers that it is healthy.
fn wait_healthy(urls: &[String], pki: &std::path::Path) -> Result<()> {
    let started = now();
    for url in urls {
        loop {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--fail", "--output", "/dev/null", "--max-time", "5", &format!("{url}/health")]);
            for (flag, file) in [("--cacert", "ca.crt"), ("--cert", "admin.crt"), ("--key", "admin.key")] {
                curl.arg(flag).arg(pki.join(file));
            }
            if curl.status()?.success() {
                break;
            }
            ensure!(started.elapsed() < SERVING_TIMEOUT, "{url} does not serve after {SERVING_TIMEOUT:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures the time that passes")]
fn now() -> Instant {
    Instant::now()
}
