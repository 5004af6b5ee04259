//! Snapshots on their way: what openraft passes around for one, and what a member collects until it is whole.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use trireme_storage::{
    engine::Space,
    fail_point,
    snapshot::{SnapshotManifest, SnapshotSink},
    state_machine::StateMachine,
    store::StoreError,
};

use crate::{
    record::{self, AppliedState, RecordError},
    wire::proto::SnapshotChunk,
};

/// The data of a snapshot.
pub enum SnapshotData {
    /// What this member's state machine holds: the checkpoint is taken when it is sent, so that one exists no longer than needed.
    /// It holds at least what the snapshot's description says.
    Own(StateMachine),
    /// A whole snapshot that another member sent, verified.
    Received(Box<ReceivedSnapshot>),
}

/// See [`SnapshotData::Received`].
pub struct ReceivedSnapshot {
    pub sink: SnapshotSink,
    pub manifest: SnapshotManifest,
}

/// What a snapshot holds, by its manifest.
pub fn applied_of(manifest: &SnapshotManifest) -> Result<AppliedState, RecordError> {
    manifest.applied.as_deref().map_or_else(|| Ok(AppliedState::default()), record::decode_applied)
}

/// Why a piece of a snapshot is not taken.
#[derive(Debug, thiserror::Error)]
pub enum IncomingError {
    #[error("no snapshot {0:?} is being received")]
    NotBegun(String),
    #[error("there is no file {0} in the snapshot")]
    NoSuchFile(u32),
    #[error("file {file} goes on at {expected}, not at {found}")]
    Offset { file: String, expected: u64, found: u64 },
    #[error("file {0} is longer than the manifest says")]
    TooLong(String),
    #[error("file {0} is not complete")]
    Incomplete(String),
    #[error("the checksum of file {0} is wrong; it must be sent again")]
    Checksum(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How far one file has arrived.
struct Arrived {
    bytes: u64,
    hash: Sha256,
}

struct Incoming {
    id: String,
    manifest: SnapshotManifest,
    sink: SnapshotSink,
    files: Vec<Arrived>,
    /// When something of it arrived last.
    heard: Instant,
}

/// Collects the snapshot that is being sent to this member, one at a time; a newer one replaces an unfinished older one.
#[derive(Clone)]
pub struct Receiver {
    machine: StateMachine,
    incoming: Arc<Mutex<Option<Incoming>>>,
}

impl Receiver {
    pub fn new(machine: StateMachine) -> Self {
        Self { machine, incoming: Arc::default() }
    }

    /// Begins to collect a snapshot, or goes on with it. Returns how much of each file is here. Blocks.
    pub fn begin(&self, id: &str, manifest: SnapshotManifest) -> Result<Vec<u64>, IncomingError> {
        let mut incoming = self.incoming.lock();
        if incoming.as_ref().is_none_or(|current| current.id != id || current.manifest != manifest) {
            // The old one's place must be free before a new one is made.
            *incoming = None;
            if self.machine.space() != Space::Enough {
                return Err(StoreError::NoSpace.into());
            }
            let files = manifest.files.iter().map(|_| Arrived { bytes: 0, hash: Sha256::new() }).collect();
            let mut sink = self.machine.begin_install()?;
            for file in manifest.files.iter().filter(|file| file.size_bytes == 0) {
                sink.write_at(&file.name, 0, &[])?;
            }
            *incoming = Some(Incoming { id: id.to_owned(), manifest, sink, files, heard: Instant::now() });
        }
        fail_point!("snapshot/receive/begin");
        Ok(incoming.iter().flat_map(|current| current.files.iter().map(|file| file.bytes)).collect())
    }

    /// Takes the next piece of a file. Blocks.
    pub fn take(&self, chunk: &SnapshotChunk) -> Result<(), IncomingError> {
        let mut incoming = self.incoming.lock();
        let current = incoming
            .as_mut()
            .filter(|current| current.id == chunk.id)
            .ok_or_else(|| IncomingError::NotBegun(chunk.id.clone()))?;
        let position = chunk.file as usize;
        let (Some(file), Some(arrived)) = (current.manifest.files.get(position), current.files.get_mut(position)) else {
            return Err(IncomingError::NoSuchFile(chunk.file));
        };
        if chunk.offset != arrived.bytes {
            return Err(IncomingError::Offset { file: file.name.clone(), expected: arrived.bytes, found: chunk.offset });
        }
        let end = chunk.offset + chunk.data.len() as u64;
        if end > file.size_bytes {
            return Err(IncomingError::TooLong(file.name.clone()));
        }
        if let Err(error) = current.sink.write_at(&file.name, chunk.offset, &chunk.data) {
            // A part of a snapshot is of no use to a full disk; it is sent anew when there is space.
            if error == StoreError::NoSpace {
                *incoming = None;
            }
            return Err(error.into());
        }
        current.heard = Instant::now();
        fail_point!("snapshot/receive/piece");
        arrived.hash.update(&chunk.data);
        arrived.bytes = end;
        Ok(())
    }

    /// Forgets a snapshot of which nothing has arrived for `limit`: its sender has given it up, or is gone.
    pub fn give_up_abandoned(&self, limit: Duration) {
        // Whoever holds it is at work on it.
        let Some(mut incoming) = self.incoming.try_lock() else { return };
        if let Some(abandoned) = incoming.take_if(|current| current.heard.elapsed() >= limit) {
            tracing::info!(snapshot = abandoned.id, "gave up a snapshot that does not go on");
        }
    }

    /// Hands out the whole, verified snapshot. A damaged one is forgotten, so that it is sent anew.
    pub fn finish(&self, id: &str) -> Result<ReceivedSnapshot, IncomingError> {
        let mut incoming = self.incoming.lock();
        let current = incoming.take_if(|current| current.id == id).ok_or_else(|| IncomingError::NotBegun(id.to_owned()))?;
        for (file, arrived) in current.manifest.files.iter().zip(&current.files) {
            if arrived.bytes != file.size_bytes {
                let name = file.name.clone();
                *incoming = Some(current);
                return Err(IncomingError::Incomplete(name));
            }
            let digest: [u8; 32] = arrived.hash.clone().finalize().into();
            if digest != file.sha256 {
                return Err(IncomingError::Checksum(file.name.clone()));
            }
        }
        fail_point!("snapshot/receive/finish");
        Ok(ReceivedSnapshot { sink: current.sink, manifest: current.manifest })
    }
}

/// Copies what `from` holds into `to`, as if it had been sent. Blocks.
pub fn copy(from: &StateMachine, to: &StateMachine) -> io::Result<SnapshotManifest> {
    const PIECE_BYTES: usize = 1 << 20;
    let source = from.begin_snapshot().map_err(io::Error::other)?;
    let mut sink = to.begin_install().map_err(io::Error::other)?;
    for file in source.files() {
        let mut offset = 0;
        sink.write_at(&file.name, 0, &[]).map_err(io::Error::other)?;
        while offset < file.size_bytes {
            let piece: Bytes = source.read_at(&file.name, offset, PIECE_BYTES).map_err(io::Error::other)?;
            sink.write_at(&file.name, offset, &piece).map_err(io::Error::other)?;
            offset += piece.len() as u64;
        }
    }
    sink.finish(source.manifest()).map_err(io::Error::other)?;
    Ok(source.manifest().clone())
}

#[cfg(test)]
mod tests {
    use trireme_storage::{
        command::{ApplyBatch, ApplyEntry, Command},
        engine::memory::MemoryEngine,
        model::{Operation, Term, Transaction},
        snapshot::SnapshotSource,
    };

    use super::*;

    fn machine() -> StateMachine {
        StateMachine::open(Arc::new(MemoryEngine::new())).unwrap()
    }

    fn filled() -> StateMachine {
        let machine = machine();
        let put = Transaction { success: vec![Operation::put("key", "x".repeat(1000))], ..Transaction::default() };
        let entries = vec![ApplyEntry { term: Term(1), commands: vec![Command::Transact(put)] }];
        machine.apply(ApplyBatch { entries, applied: Bytes::from_static(b"opaque") }).unwrap();
        machine
    }

    fn chunk(source: &SnapshotSource, id: &str, file: usize, offset: u64, length: usize) -> SnapshotChunk {
        let data = source.read_at(&source.files()[file].name, offset, length).unwrap();
        SnapshotChunk { id: id.to_owned(), file: u32::try_from(file).unwrap(), offset, data }
    }

    #[test]
    fn a_broken_transfer_goes_on_where_it_broke() {
        let (from, to) = (filled(), machine());
        let source = from.begin_snapshot().unwrap();
        let receiver = Receiver::new(to.clone());
        let manifest = || source.manifest().clone();
        assert!(receiver.begin("one", manifest()).unwrap().iter().all(|received| *received == 0));
        receiver.take(&chunk(&source, "one", 0, 0, 10)).unwrap();
        assert!(matches!(receiver.finish("one"), Err(IncomingError::Incomplete(_))));

        // The sender comes back, and hears what is here already; a piece out of turn is refused.
        assert_eq!(receiver.begin("one", manifest()).unwrap()[0], 10);
        assert!(matches!(receiver.take(&chunk(&source, "one", 0, 0, 10)), Err(IncomingError::Offset { expected: 10, .. })));
        assert!(matches!(receiver.take(&chunk(&source, "other", 0, 10, 10)), Err(IncomingError::NotBegun(_))));
        for file in 0..source.files().len() {
            let start = if file == 0 { 10 } else { 0 };
            receiver.take(&chunk(&source, "one", file, start, usize::MAX >> 1)).unwrap();
        }
        let ReceivedSnapshot { mut sink, manifest } = receiver.finish("one").unwrap();
        sink.finish(&manifest).unwrap();
        assert_eq!(to.hash(), from.hash());
        assert_eq!(to.applied(), from.applied());
    }

    #[test]
    fn a_damaged_transfer_is_refused_and_begins_anew() {
        let (from, to) = (filled(), machine());
        let source = from.begin_snapshot().unwrap();
        let receiver = Receiver::new(to.clone());
        receiver.begin("one", source.manifest().clone()).unwrap();
        for file in 0..source.files().len() {
            let mut damaged = chunk(&source, "one", file, 0, usize::MAX >> 1);
            damaged.data = damaged.data.iter().map(|byte| byte ^ 1).collect();
            receiver.take(&damaged).unwrap();
        }
        assert!(matches!(receiver.finish("one"), Err(IncomingError::Checksum(_))));
        assert!(receiver.begin("one", source.manifest().clone()).unwrap().iter().all(|received| *received == 0));
        assert_eq!(to.applied(), None);
    }

    #[test]
    fn a_transfer_that_does_not_go_on_is_given_up_with_its_space() {
        let (from, to) = (filled(), machine());
        let source = from.begin_snapshot().unwrap();
        let receiver = Receiver::new(to);
        receiver.begin("one", source.manifest().clone()).unwrap();
        receiver.give_up_abandoned(Duration::from_secs(3600));
        receiver.take(&chunk(&source, "one", 0, 0, 10)).unwrap();
        receiver.give_up_abandoned(Duration::ZERO);
        assert!(matches!(receiver.take(&chunk(&source, "one", 0, 10, 10)), Err(IncomingError::NotBegun(_))));
    }

    #[test]
    fn a_full_disk_takes_no_snapshot_until_it_has_space() {
        let engine = MemoryEngine::new();
        let source = filled().begin_snapshot().unwrap();
        let receiver = Receiver::new(StateMachine::open(Arc::new(engine.clone())).unwrap());
        engine.set_space(Space::Low);
        let refused = receiver.begin("one", source.manifest().clone());
        assert!(matches!(refused, Err(IncomingError::Store(StoreError::NoSpace))));
        engine.set_space(Space::Enough);
        receiver.begin("one", source.manifest().clone()).unwrap();
    }
}
