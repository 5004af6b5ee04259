//! `cargo xtask bench`: a local cluster of hollow nodes, measured from outside.
//!
//! Three things are measured: seconds until the cluster is ready, the memory of its processes at rest, and the time from `kill -9`
//! of the leader to the next acknowledged write through a surviving master.

mod cluster;
mod failover;
mod report;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::Args;

use self::{cluster::Cluster, failover::Failover, report::Report};
use crate::workspace;

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The binary to measure [default: `bin/trireme` in the workspace].
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// How often to kill the leader.
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    pub kills: u32,
    /// The first of the ports that the cluster uses.
    #[arg(long, value_name = "PORT", default_value_t = 20443)]
    pub port_base: u16,
    /// How long the cluster rests before its memory is read, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub rest_seconds: u64,
}

/// Measures and prints a table.
///
/// # Errors
/// When the cluster does not start, a master does not come back, or a write that was acknowledged is not there at the end.
pub fn run(args: &BenchArgs) -> Result<()> {
    let binary = args.binary.clone().unwrap_or_else(|| workspace::root().join("bin/trireme"));
    ensure!(binary.is_file(), "{} does not exist; run `make build` first", binary.display());
    let binary = std::path::absolute(binary)?;
    let folder = std::env::temp_dir().join(format!("trireme-bench-{}", std::process::id()));
    eprintln!(
        "The cluster is in {0}. Should this be interrupted: {1} down --purge --data-dir {0}",
        folder.display(),
        binary.display()
    );
    let started = now();
    let cluster = Cluster::start(binary, folder, args.port_base)?;
    let ready = started.elapsed();
    std::thread::sleep(Duration::from_secs(args.rest_seconds));
    let memory = cluster.memory()?;
    let mut failover = Failover::prepare(&cluster)?;
    let mut gaps = Vec::new();
    for round in 1..=args.kills {
        let gap = failover.kill_leader(round)?;
        eprintln!("kill {round} of {}: {:.0} ms", args.kills, gap.as_secs_f64() * 1000.0);
        gaps.push(gap);
    }
    failover.check_last_write()?;
    drop(cluster);
    print!("{}", Report { ready, memory, gaps });
    Ok(())
}

/// The one place where this program reads a clock.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures the time that passes")]
fn now() -> Instant {
    Instant::now()
}
