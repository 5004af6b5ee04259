//! `trireme snapshot save`.

use std::time::Duration;

use anyhow::{Context, Result};
use trireme_etcd::proto::etcdserverpb::SnapshotRequest;

use super::{
    SaveArgs,
    file::{Existing, Partial},
};
use crate::etcd_client::{Masters, refusal};

/// A piece of a snapshot may take so long to come.
const PIECE_TIMEOUT: Duration = Duration::from_secs(60);

pub async fn run(args: SaveArgs) -> Result<()> {
    let existing = if args.force { Existing::Replace } else { Existing::Refuse };
    let masters = Masters::find(&args.masters)?;
    let mut partial = Partial::begin(&args.file, existing)?;
    // What was acknowledged before this command is in it.
    let master = masters.connect_to_any().await?;
    let mut client = master.maintenance();
    let mut pieces = master.within_limit(PIECE_TIMEOUT, client.snapshot(SnapshotRequest {})).await?;
    let mut remaining = None;
    while remaining != Some(0) {
        let next = tokio::time::timeout(PIECE_TIMEOUT, pieces.message()).await;
        let next = next.with_context(|| format!("{} stopped sending", master.name))?;
        let Some(piece) = next.map_err(|status| refusal(&master.name, &status))? else { break };
        remaining = Some(piece.remaining_bytes);
        partial.write(&piece.blob)?;
    }
    let description = tokio::task::spawn_blocking(move || partial.finish()).await??;
    say!(
        "{} holds the store at revision {}: {} keys, saved from {}.",
        args.file.display(),
        description.manifest.revision,
        description.keys,
        master.name
    );
    Ok(())
}
