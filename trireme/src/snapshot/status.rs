//! `trireme snapshot status`.

use std::fs;

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use serde::Serialize;
use trireme_storage::portable::Description;

use super::{StatusArgs, file, time_of};
use crate::cli::OutputFormat;

/// What a file is, once it has been read to its end.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    revision: u64,
    hash: String,
    total_keys: u64,
    total_size_bytes: u64,
    cluster_id: Option<String>,
    format: u32,
    saved_at: Option<String>,
}

impl Status {
    fn new(description: &Description, total_size_bytes: u64) -> Self {
        Self {
            revision: description.manifest.revision.0,
            hash: format!("{:016x}", description.manifest.hash),
            total_keys: description.keys,
            total_size_bytes,
            cluster_id: description.cluster.clone(),
            format: description.format,
            saved_at: description.saved_at_ms.map(time_of),
        }
    }
}

pub fn run(args: &StatusArgs) -> Result<()> {
    let description = file::verify(&args.file)?;
    let size = fs::metadata(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?.len();
    let status = Status::new(&description, size);
    match args.output {
        OutputFormat::Json => say!("{}", serde_json::to_string_pretty(&status)?),
        OutputFormat::Table => say!("{}", table(&status)),
    }
    Ok(())
}

fn table(status: &Status) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_width(u16::MAX);
    table.set_header(["REVISION", "HASH", "TOTAL KEYS", "TOTAL SIZE", "CLUSTER", "FORMAT", "SAVED AT"]);
    table.add_row([
        status.revision.to_string(),
        status.hash.clone(),
        status.total_keys.to_string(),
        format!("{:.1} MiB", status.total_size_bytes as f64 / f64::from(1 << 20)),
        status.cluster_id.clone().unwrap_or_else(|| "-".to_owned()),
        status.format.to_string(),
        status.saved_at.clone().unwrap_or_else(|| "-".to_owned()),
    ]);
    table
}
