//! Sends a snapshot to a peer, in chunks. A broken connection is taken up again where it broke.

use std::{sync::Arc, time::Duration};

use openraft::{
    errors::{NetworkError, StreamingError, Unreachable},
    raft::SnapshotResponse,
    type_config::alias::SnapshotOf,
};
use tonic::{Code, Status};
use trireme_storage::{codec, fail_point, snapshot::SnapshotSource};

use super::channel::Client;
use crate::{
    machine::SnapshotData,
    snapshot,
    types::{NodeId, TypeConfig, Vote},
    wire::proto::{BeginSnapshotRequest, InstallSnapshotRequest, SnapshotChunk},
};

const CHUNK_BYTES: usize = 1 << 20;
/// After so many broken attempts in a row in which nothing arrived the peer is given up, until openraft tries again.
const FRUITLESS_ATTEMPTS: u32 = 5;
const RETRY_PAUSE: Duration = Duration::from_millis(200);

type Sent = Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>>;

pub async fn send(client: &Client, target: NodeId, vote: Vote, snapshot: SnapshotOf<TypeConfig, SnapshotData>) -> Sent {
    let SnapshotData::Own(machine) = snapshot.snapshot else {
        return Err(NetworkError::from_string("a received snapshot is not sent on").into());
    };
    let source = tokio::task::spawn_blocking(move || machine.begin_snapshot())
        .await
        .map_err(|error| NetworkError::new(&error))?
        .map_err(|error| NetworkError::new(&error))?;
    // Whoever lost the leadership meanwhile may have applied a later leader's entries: not to be sent in the name of an earlier term.
    let applied = snapshot::applied_of(source.manifest()).map_err(|error| NetworkError::new(&error))?;
    if !applied.is_within(&vote) {
        return Err(NetworkError::from_string("the snapshot is of a later term than its sender").into());
    }
    let source = Arc::new(source);
    let manifest = codec::encode(source.manifest()).map_err(|error| NetworkError::new(&error))?;
    let id = format!("{}-{}-{}", vote.leader_id.voted_for, vote.leader_id.term, source.manifest().revision);
    let begin = BeginSnapshotRequest { vote: Some((&vote).into()), id: id.clone(), manifest: manifest.into() };
    let size_bytes: u64 = source.files().iter().map(|file| file.size_bytes).sum();
    tracing::info!(peer = %target, snapshot = id, size_bytes, "sending a snapshot");

    let mut arrived_before = 0;
    let mut fruitless = 0;
    loop {
        let status = match attempt(client, &begin, &source, &mut arrived_before, &mut fruitless).await {
            Ok(vote) => return Ok(SnapshotResponse::new(vote)),
            Err(status) => status,
        };
        fruitless += 1;
        tracing::warn!(peer = %target, snapshot = id, %status, "sending the snapshot broke off");
        if fruitless >= FRUITLESS_ATTEMPTS {
            return Err(match status.code() {
                Code::Unavailable => Unreachable::new(&status).into(),
                _ => NetworkError::new(&status).into(),
            });
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn attempt(
    client: &Client,
    begin: &BeginSnapshotRequest,
    source: &Arc<SnapshotSource>,
    arrived_before: &mut u64,
    fruitless: &mut u32,
) -> Result<Vote, Status> {
    let mut client = client.clone();
    fail_point!("snapshot/send/before");
    let begun = client.begin_snapshot(begin.clone()).await?.into_inner();
    if let Some(higher) = begun.higher_vote {
        return Ok(higher.into());
    }
    let arrived: u64 = begun.received.iter().sum();
    if arrived > *arrived_before {
        *arrived_before = arrived;
        *fruitless = 0;
    }
    let chunks = chunks(begin.id.clone(), source.clone(), begun.received);
    client.send_snapshot(chunks).await?;
    fail_point!("snapshot/send/install");
    let install = InstallSnapshotRequest { vote: begin.vote, id: begin.id.clone() };
    let installed = client.install_snapshot(install).await?.into_inner();
    installed.vote.map(Vote::from).ok_or_else(|| Status::internal("the answer has no vote"))
}

/// The pieces that the receiver lacks. A piece that cannot be read ends the stream; the receiver then finds it incomplete.
fn chunks(
    id: String,
    source: Arc<SnapshotSource>,
    received: Vec<u64>,
) -> impl futures::Stream<Item = SnapshotChunk> + Send + 'static {
    let start = (0_usize, received.first().copied().unwrap_or(0));
    futures::stream::unfold(start, move |(mut file, mut offset)| {
        let id = id.clone();
        let source = source.clone();
        let received = received.clone();
        async move {
            while source.files().get(file)?.size_bytes <= offset {
                file += 1;
                offset = received.get(file).copied().unwrap_or(0);
            }
            let reader = source.clone();
            let read = move || reader.read_at(&reader.files()[file].name, offset, CHUNK_BYTES);
            let data = match tokio::task::spawn_blocking(read).await {
                Ok(Ok(data)) if !data.is_empty() => data,
                Ok(Ok(_)) => return None,
                Ok(Err(error)) => {
                    tracing::error!(%error, "cannot read the snapshot");
                    return None;
                }
                Err(_) => return None,
            };
            fail_point!("snapshot/send/piece");
            let next = offset + data.len() as u64;
            let chunk = SnapshotChunk { id, file: u32::try_from(file).ok()?, offset, data };
            Some((chunk, (file, next)))
        }
    })
}
