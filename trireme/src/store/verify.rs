//! `trireme store verify`: whether what lies in a stopped master's folder is whole.

use std::{fs::File, path::Path};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, fcntl};
use serde::Serialize;
use trireme_storage::{
    engine::rocks::reader::RocksReader,
    verify::{self, Contents, Report},
};

use super::{VerifyArgs, hash};
use crate::{
    cli::OutputFormat,
    etcd_client::Masters,
    master::{LOG_FOLDER, STATE_FOLDER},
};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    folder: String,
    revision: u64,
    compacted_revision: u64,
    hash: String,
    keys: u64,
    /// How many revisions can be read.
    revisions: u64,
    changes: u64,
    leases: u64,
    log_records: u64,
    last_log_index: Option<u64>,
    size_bytes: u64,
    remarks: Vec<String>,
    /// What is wrong, the first of them in words.
    findings: Vec<String>,
    wrong: u64,
}

pub async fn run(args: VerifyArgs) -> Result<()> {
    let folder = args.masters.folder.data_dir.clone().filter(|folder| holds_master(folder) && args.masters.endpoints.is_empty());
    let Some(folder) = folder else {
        let masters = Masters::find(&args.masters)?;
        return hash::compare(&masters, None, args.output).await;
    };
    let outcome = tokio::task::spawn_blocking(move || check(&folder)).await??;
    match args.output {
        OutputFormat::Json => say!("{}", serde_json::to_string_pretty(&outcome)?),
        OutputFormat::Table => print(&outcome),
    }
    if outcome.wrong > 0 {
        bail!("{} is damaged: {} findings; replace this master, or restore a snapshot", outcome.folder, outcome.wrong);
    }
    Ok(())
}

/// Whether a folder is a master's data folder.
fn holds_master(folder: &Path) -> bool {
    folder.join(STATE_FOLDER).is_dir() || folder.join(LOG_FOLDER).is_dir()
}

fn check(folder: &Path) -> Result<Outcome> {
    let parts = [folder.join(STATE_FOLDER), folder.join(LOG_FOLDER)];
    for part in &parts {
        if let Some(pid) = owner(part)? {
            bail!("{} is in use by process {pid}; stop the master first", folder.display());
        }
    }
    let [state, log] = &parts;
    let state = verify::state(state).with_context(|| format!("cannot read the state in {}", state.display()))?;
    let log = verify::log(log).with_context(|| format!("cannot read the log in {}", log.display()))?;
    Ok(outcome(folder, state, log))
}

fn outcome(folder: &Path, state: Report, log: Report) -> Outcome {
    let held = match state.contents {
        Contents::State(held) => held,
        Contents::Nothing | Contents::Log(_) => Default::default(),
    };
    let records = match log.contents {
        Contents::Log(records) => records,
        Contents::Nothing | Contents::State(_) => Default::default(),
    };
    Outcome {
        folder: folder.display().to_string(),
        revision: held.revision.0,
        compacted_revision: held.compacted.0,
        hash: format!("{:016x}", held.hash),
        keys: held.keys,
        revisions: if held.revision.0 == 0 { 0 } else { held.revision.0 - held.compacted.0.max(1) + 1 },
        changes: held.changes,
        leases: held.leases,
        log_records: records.records,
        last_log_index: records.last,
        size_bytes: state.size_bytes + log.size_bytes,
        remarks: [state.remarks, log.remarks].concat(),
        findings: [state.findings, log.findings].concat(),
        wrong: state.wrong + log.wrong,
    }
}

fn print(outcome: &Outcome) {
    say!(
        "{}: revision {} (readable from {}), hash {}, {} keys, {} revisions with {} changes, {} leases, {} log records, {:.1} MiB.",
        outcome.folder,
        outcome.revision,
        outcome.compacted_revision,
        outcome.hash,
        outcome.keys,
        outcome.revisions,
        outcome.changes,
        outcome.leases,
        outcome.log_records,
        outcome.size_bytes as f64 / f64::from(1 << 20)
    );
    for remark in &outcome.remarks {
        say!("Note: {remark}");
    }
    for finding in &outcome.findings {
        say!("Wrong: {finding}");
    }
    let untold = outcome.wrong.saturating_sub(outcome.findings.len() as u64);
    if untold > 0 {
        say!("… and {untold} more.");
    }
    if outcome.wrong == 0 {
        say!("Everything is whole.");
    }
}

/// The process that has an engine open: it holds a lock on a file of the database.
fn owner(engine: &Path) -> Result<Option<i32>> {
    let path = RocksReader::lock_path(engine)?;
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot open {}", path.display())),
    };
    let whole_file =
        |kind: i32| libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
    let mut lock = whole_file(libc::F_WRLCK);
    fcntl(&file, FcntlArg::F_GETLK(&mut lock)).with_context(|| format!("cannot look at the lock of {}", path.display()))?;
    Ok((i32::from(lock.l_type) != libc::F_UNLCK).then_some(lock.l_pid))
}
