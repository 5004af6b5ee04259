//! Puts while the store is looked after: its history compacted, and whole snapshots of it taken, again and again. What the puts wait for,
//! they wait for here.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Error, Result, ensure};
use tonic::Code;
use trireme_etcd::proto::etcdserverpb::{CompactionRequest, SnapshotRequest, StatusRequest};

use super::{
    load::Seen,
    target::{Target, Through},
};

/// What was done beside the load.
#[derive(Default)]
struct Done {
    compactions: AtomicU64,
    snapshot_bytes: AtomicU64,
}

/// Runs `load` with the chores beside it.
///
/// # Errors
/// When a chore fails, or was not even begun while the load ran: then nothing was measured.
pub async fn beside(target: &Target, load: impl Future<Output = Result<Seen>>) -> Result<Seen> {
    let done = Done::default();
    let seen = tokio::select! {
        seen = load => seen?,
        error = compact(target, &done.compactions) => return Err(error),
        error = snapshot(target, &done.snapshot_bytes) => return Err(error),
    };
    let (compactions, bytes) = (done.compactions.into_inner(), done.snapshot_bytes.into_inner());
    ensure!(compactions > 0 && bytes > 0, "the load ended before a compaction and a piece of a snapshot; let it run longer");
    remark!("{}: {compactions} compactions and {} MiB of snapshots meanwhile", target.name, bytes >> 20);
    Ok(seen)
}

/// Compacts to the newest revision, over and over, until that fails.
async fn compact(target: &Target, done: &AtomicU64) -> Error {
    loop {
        match compact_once(target).await {
            Ok(()) => done.fetch_add(1, Ordering::Relaxed),
            Err(error) => return error.context("compaction"),
        };
    }
}

async fn compact_once(target: &Target) -> Result<()> {
    let status = target.maintenance(0).status(StatusRequest {}).await?.into_inner();
    let revision = status.header.context("a status without a header")?.revision;
    let request = CompactionRequest { revision, physical: true };
    match target.key_value(Through::All, 0).compact(request).await {
        // Nothing was written since the last time.
        Err(status) if status.code() == Code::OutOfRange => Ok(()),
        other => Ok(other.map(|_| ())?),
    }
}

/// Takes snapshots from one member after the other, until that fails.
async fn snapshot(target: &Target, bytes: &AtomicU64) -> Error {
    let mut member = 0;
    loop {
        if let Err(error) = snapshot_once(target, member, bytes).await {
            return error.context("a snapshot");
        }
        member += 1;
    }
}

async fn snapshot_once(target: &Target, member: usize, bytes: &AtomicU64) -> Result<()> {
    let mut pieces = target.maintenance(member).snapshot(SnapshotRequest {}).await?.into_inner();
    while let Some(piece) = pieces.message().await? {
        bytes.fetch_add(piece.blob.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}
