//! What a large store costs: memory, disk, and the time from the start of all members to serving again.

use std::{path::Path, time::Duration};

use anyhow::Result;

use super::{etcd::Etcd, masters::Masters, now};
use crate::process;

/// How often each store is started again; the report gives the median.
const RESTARTS: usize = 5;

fn resident_mebibytes(pids: &[u64]) -> Result<u64> {
    Ok(pids.iter().map(|pid| process::resident_kib(*pid)).sum::<Result<u64>>()? / 1024)
}

fn disk_mebibytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.metadata()?;
        bytes += if kind.is_dir() { disk_mebibytes(&entry.path())? << 20 } else { kind.len() };
    }
    Ok(bytes >> 20)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Measures both stores and prints a table.
pub fn measure(masters: &Masters, etcd: &mut Etcd) -> Result<()> {
    let filled = (resident_mebibytes(&masters.pids()?)?, resident_mebibytes(&etcd.pids())?);
    let disk = (disk_mebibytes(masters.folder())?, disk_mebibytes(etcd.folder())?);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..RESTARTS {
        masters.kill()?;
        let started = now();
        masters.run()?;
        ours.push(started.elapsed());
        etcd.kill()?;
        let started = now();
        etcd.run()?;
        theirs.push(started.elapsed());
    }
    let restarted = (resident_mebibytes(&masters.pids()?)?, resident_mebibytes(&etcd.pids())?);
    println!("{:<40} {:>10} {:>12}", "ALL THREE MEMBERS", "trireme", etcd.version());
    println!("{:<40} {:>10} {:>12}", "resident MiB after the fill", filled.0, filled.1);
    println!("{:<40} {:>10} {:>12}", "resident MiB after a restart", restarted.0, restarted.1);
    println!("{:<40} {:>10} {:>12}", "MiB on disk", disk.0, disk.1);
    println!(
        "{:<40} {:>10.2} {:>12.2}",
        "seconds from start to serving (median)",
        median(ours).as_secs_f64(),
        median(theirs).as_secs_f64()
    );
    Ok(())
}
