//! Snapshots of the state: the files of an engine's checkpoint, with checksums, in pieces.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    engine::{Checkpoint, CheckpointFile, EngineError, Stage},
    fail_point,
    model::Revision,
    state_machine::StateMachine,
    store::StoreError,
};

/// How much is read at once to compute checksums.
const PIECE_BYTES: usize = 1 << 20;

/// One file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFile {
    /// Unique within the snapshot; no path separators.
    pub name: String,
    pub size_bytes: u64,
    pub sha256: [u8; 32],
}

/// What a snapshot holds, and how to tell that it arrived whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotManifest {
    pub files: Vec<SnapshotFile>,
    /// Consensus's record of how far the snapshot has applied.
    pub applied: Option<Bytes>,
    pub revision: Revision,
    pub hash: u64,
}

/// A snapshot to be read. It does not change; its files are deleted on drop.
pub struct SnapshotSource {
    checkpoint: Box<dyn Checkpoint>,
    manifest: SnapshotManifest,
    keys: u64,
    identity: Option<String>,
}

impl SnapshotSource {
    pub(crate) fn new(
        checkpoint: Box<dyn Checkpoint>,
        applied: Option<Bytes>,
        (revision, hash): (Revision, u64),
        keys: u64,
        identity: Option<String>,
    ) -> Result<Self, EngineError> {
        let files = checkpoint
            .files()
            .iter()
            .map(|file| {
                let sha256 = digest(file, |offset, length| checkpoint.read_at(&file.name, offset, length))?;
                fail_point!("snapshot/file/after");
                Ok(SnapshotFile { name: file.name.clone(), size_bytes: file.size_bytes, sha256 })
            })
            .collect::<Result<_, EngineError>>()?;
        fail_point!("snapshot/manifest/after");
        Ok(Self { checkpoint, manifest: SnapshotManifest { files, applied, revision, hash }, keys, identity })
    }

    pub fn manifest(&self) -> &SnapshotManifest {
        &self.manifest
    }

    pub fn files(&self) -> &[SnapshotFile] {
        &self.manifest.files
    }

    /// How many keys it holds.
    pub fn keys(&self) -> u64 {
        self.keys
    }

    /// Whose state it is: what [`crate::format::claim`] was given.
    pub fn identity(&self) -> Option<&str> {
        self.identity.as_deref()
    }

    /// Up to `length` bytes of a file from `offset`; fewer only at its end.
    pub fn read_at(&self, file: &str, offset: u64, length: usize) -> Result<Bytes, StoreError> {
        Ok(self.checkpoint.read_at(file, offset, length)?)
    }
}

fn digest(file: &CheckpointFile, read_at: impl Fn(u64, usize) -> Result<Bytes, EngineError>) -> Result<[u8; 32], EngineError> {
    let mut hasher = Sha256::new();
    let mut offset = 0;
    while offset < file.size_bytes {
        let piece = read_at(offset, PIECE_BYTES)?;
        if piece.is_empty() {
            return Err(EngineError::Corruption(format!("snapshot file {} is shorter than it should be", file.name)));
        }
        offset += piece.len() as u64;
        hasher.update(&piece);
    }
    Ok(hasher.finalize().into())
}

/// A snapshot that is being received. Dropped before [`SnapshotSink::finish`], it leaves nothing behind.
pub struct SnapshotSink {
    machine: StateMachine,
    stage: Box<dyn Stage>,
    /// What was staged is what the manifest says; opening it, in vain, may have changed it since.
    is_verified: bool,
}

impl SnapshotSink {
    pub(crate) fn new(machine: StateMachine, stage: Box<dyn Stage>) -> Self {
        Self { machine, stage, is_verified: false }
    }

    /// Writes a piece of a file. Pieces may come in any order, and again.
    pub fn write_at(&mut self, file: &str, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        Ok(self.stage.write_at(file, offset, bytes)?)
    }

    /// The files so far, with their sizes.
    pub fn received(&self) -> Result<Vec<CheckpointFile>, StoreError> {
        Ok(self.stage.files()?)
    }

    /// Verifies the files against `manifest`, makes them the state machine's data, all at once, and loads them. After an error the
    /// state is what it was; after [`StoreError::NoSpace`] this may be called again.
    pub fn finish(&mut self, manifest: &SnapshotManifest) -> Result<(), StoreError> {
        if !self.is_verified {
            verify(self.stage.as_ref(), manifest)?;
            self.is_verified = true;
        }
        self.machine.install(self.stage.as_mut(), manifest)
    }
}

fn verify(stage: &dyn Stage, manifest: &SnapshotManifest) -> Result<(), EngineError> {
    let staged = stage.files()?;
    for file in &manifest.files {
        let Some(found) = staged.iter().find(|found| found.name == file.name) else {
            return Err(EngineError::Corruption(format!("snapshot file {} has not arrived", file.name)));
        };
        if found.size_bytes != file.size_bytes {
            let (found, expected) = (found.size_bytes, file.size_bytes);
            return Err(EngineError::Corruption(format!("snapshot file {} has {found} bytes instead of {expected}", file.name)));
        }
        if digest(found, |offset, length| stage.read_at(&found.name, offset, length))? != file.sha256 {
            return Err(EngineError::Corruption(format!("the checksum of snapshot file {} is wrong", file.name)));
        }
    }
    if let Some(stray) = staged.iter().find(|found| manifest.files.iter().all(|file| file.name != found.name)) {
        return Err(EngineError::Corruption(format!("snapshot file {} is not in the manifest", stray.name)));
    }
    Ok(())
}
