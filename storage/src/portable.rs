//! A snapshot as one stream of bytes, to be kept in a file and carried elsewhere.
//!
//! ```text
//! "TRIREMESNAPSHOT\n" | length of the description (8 bytes, big-endian) | description, an encoded record | the files, in the manifest's order
//!     | zeros up to a multiple of 512 bytes | SHA-256 of everything before (32 bytes)
//! ```
//!
//! The padding and the checksum at the end are those of an etcd snapshot, which etcd's tools look for.

use std::io::Read;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    codec::{self, CodecError},
    format::FORMAT,
    model::Revision,
    snapshot::{SnapshotManifest, SnapshotSource},
    store::StoreError,
};

const MAGIC: &[u8; 16] = b"TRIREMESNAPSHOT\n";
const BLOCK_BYTES: u64 = 512;
const CHECKSUM_BYTES: usize = 32;
/// How much is read at once.
const PIECE_BYTES: usize = 1 << 16;

/// The first page of a bolt file, which etcd's snapshots are, bears this number.
const BOLT_MAGIC: [u8; 4] = 0xED0C_DAED_u32.to_le_bytes();
const BOLT_MAGIC_OFFSET: usize = 16;

/// What a snapshot is, without its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The format of the rows in it.
    pub format: u32,
    /// The cluster that it was taken of: what [`crate::format::claim`] was given.
    pub cluster: Option<String>,
    pub keys: u64,
    /// When it was taken, Unix milliseconds.
    pub saved_at_ms: Option<u64>,
    pub manifest: SnapshotManifest,
}

/// Why a stream is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum PortableError {
    #[error("this is not a snapshot of trireme")]
    NotSnapshot,
    #[error("this is a snapshot of etcd, not of trireme")]
    OfEtcd,
    #[error("the snapshot was taken by a newer version of trireme: its format is {found}, this version knows up to {FORMAT}")]
    NewerFormat { found: u32 },
    #[error("the snapshot is cut off")]
    Truncated,
    #[error("the snapshot is damaged: its checksum is wrong")]
    Checksum,
    #[error("the snapshot is followed by something else")]
    TooLong,
    #[error("the snapshot cannot be read: {0}")]
    Manifest(#[from] CodecError),
    #[error("the snapshot cannot be read: {0}")]
    Io(std::io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What comes next of a stream that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    Front,
    File { number: usize, offset: u64 },
    End,
    Done,
}

/// A snapshot that is written out. It does not change meanwhile.
pub struct PortableSnapshot {
    source: SnapshotSource,
    /// The magic and the manifest.
    front: Bytes,
    hasher: Sha256,
    position: Position,
}

impl PortableSnapshot {
    pub fn new(source: SnapshotSource) -> Result<Self, StoreError> {
        Self::taken_at(source, None)
    }

    /// As [`PortableSnapshot::new`], saying when it was taken: Unix milliseconds.
    pub fn taken_at(source: SnapshotSource, saved_at_ms: Option<u64>) -> Result<Self, StoreError> {
        let description = Description {
            format: FORMAT,
            cluster: source.identity().map(str::to_owned),
            keys: source.keys(),
            saved_at_ms,
            manifest: source.manifest().clone(),
        };
        let record = codec::encode(&description).map_err(|error| StoreError::Failed(error.to_string()))?;
        let mut front = BytesMut::with_capacity(MAGIC.len() + 8 + record.len());
        front.put_slice(MAGIC);
        front.put_u64(record.len() as u64);
        front.put_slice(&record);
        Ok(Self { source, front: front.freeze(), hasher: Sha256::new(), position: Position::Front })
    }

    /// The revision of the state in it.
    pub fn revision(&self) -> Revision {
        self.source.manifest().revision
    }

    fn covered_bytes(&self) -> u64 {
        self.front.len() as u64 + self.source.files().iter().map(|file| file.size_bytes).sum::<u64>()
    }

    /// How long the whole stream is.
    pub fn size_bytes(&self) -> u64 {
        self.covered_bytes().next_multiple_of(BLOCK_BYTES) + CHECKSUM_BYTES as u64
    }

    /// The next piece, of at most about `length` bytes; `None` at the end. Blocks.
    pub fn read(&mut self, length: usize) -> Result<Option<Bytes>, StoreError> {
        let length = length.max(1);
        loop {
            match self.position {
                Position::Front => {
                    self.position = Position::File { number: 0, offset: 0 };
                    self.hasher.update(&self.front);
                    return Ok(Some(self.front.clone()));
                }
                Position::File { number, offset } => {
                    let Some(file) = self.source.files().get(number) else {
                        self.position = Position::End;
                        continue;
                    };
                    if offset == file.size_bytes {
                        self.position = Position::File { number: number + 1, offset: 0 };
                        continue;
                    }
                    let piece = self.source.read_at(&file.name, offset, length)?;
                    if piece.is_empty() {
                        return Err(StoreError::Failed(format!("snapshot file {} is shorter than it should be", file.name)));
                    }
                    self.position = Position::File { number, offset: offset + piece.len() as u64 };
                    self.hasher.update(&piece);
                    return Ok(Some(piece));
                }
                Position::End => {
                    self.position = Position::Done;
                    let covered = self.covered_bytes();
                    let padding = usize::try_from(covered.next_multiple_of(BLOCK_BYTES) - covered).unwrap_or(0);
                    let mut end = BytesMut::zeroed(padding);
                    self.hasher.update(&end);
                    end.put_slice(&self.hasher.finalize_reset());
                    return Ok(Some(end.freeze()));
                }
                Position::Done => return Ok(None),
            }
        }
    }
}

/// Takes in a piece of a file of a snapshot: its name, the offset of the piece, the piece.
pub type TakePiece<'a> = dyn FnMut(&str, u64, &[u8]) -> Result<(), StoreError> + 'a;

/// Reads a snapshot from a stream and hands out its files, piece by piece, an empty one first for each file. Blocks. The pieces are
/// to be trusted only once this has returned the manifest.
pub fn read(stream: &mut dyn Read, take: &mut TakePiece<'_>) -> Result<SnapshotManifest, PortableError> {
    read_described(stream, take).map(|description| description.manifest)
}

/// Reads a snapshot to its end, and tells what it is. Blocks.
pub fn verify(stream: &mut dyn Read) -> Result<Description, PortableError> {
    read_described(stream, &mut |_, _, _| Ok(()))
}

/// As [`read`], with everything that the snapshot says of itself.
pub fn read_described(stream: &mut dyn Read, take: &mut TakePiece<'_>) -> Result<Description, PortableError> {
    let mut input = Input { stream, hasher: Sha256::new(), read_bytes: 0 };
    let magic: [u8; 16] = input.array().map_err(|error| match error {
        PortableError::Truncated => PortableError::NotSnapshot,
        other => other,
    })?;
    if magic != *MAGIC {
        const _: () = assert!(BOLT_MAGIC_OFFSET == MAGIC.len(), "bolt's number stands right behind what was read");
        let is_bolt = input.array::<4>().is_ok_and(|next| next == BOLT_MAGIC);
        return Err(if is_bolt { PortableError::OfEtcd } else { PortableError::NotSnapshot });
    }
    let length = u64::from_be_bytes(input.array()?);
    let length = usize::try_from(length).ok().filter(|length| *length <= codec::LIMIT_BYTES).ok_or(CodecError::TooLong)?;
    let mut record = Vec::new();
    while record.len() < length {
        // Piece by piece: a wrong length must not take memory that the file does not fill.
        let start = record.len();
        record.resize(length.min(start + PIECE_BYTES), 0);
        input.fill(&mut record[start..])?;
    }
    let description: Description = codec::decode(&record)?;
    if description.format > FORMAT {
        return Err(PortableError::NewerFormat { found: description.format });
    }
    let manifest = &description.manifest;
    let mut piece = vec![0; PIECE_BYTES];
    for file in &manifest.files {
        take(&file.name, 0, &[])?;
        let mut offset = 0;
        while offset < file.size_bytes {
            let length = usize::try_from(file.size_bytes - offset).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            input.fill(&mut piece[..length])?;
            take(&file.name, offset, &piece[..length])?;
            offset += length as u64;
        }
    }
    let padding = usize::try_from(input.read_bytes.next_multiple_of(BLOCK_BYTES) - input.read_bytes).unwrap_or(0);
    input.fill(&mut piece[..padding])?;
    let computed: [u8; CHECKSUM_BYTES] = input.hasher.clone().finalize().into();
    let stored: [u8; CHECKSUM_BYTES] = input.array()?;
    if computed != stored {
        return Err(PortableError::Checksum);
    }
    if input.stream.read(&mut piece[..1]).map_err(PortableError::Io)? > 0 {
        return Err(PortableError::TooLong);
    }
    Ok(description)
}

/// A stream that is read, and the checksum so far.
struct Input<'a> {
    stream: &'a mut dyn Read,
    hasher: Sha256,
    read_bytes: u64,
}

impl Input<'_> {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), PortableError> {
        self.stream.read_exact(buffer).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => PortableError::Truncated,
            _ => PortableError::Io(error),
        })?;
        self.hasher.update(&*buffer);
        self.read_bytes += buffer.len() as u64;
        Ok(())
    }

    fn array<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH], PortableError> {
        let mut array = [0; LENGTH];
        self.fill(&mut array)?;
        Ok(array)
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        command::Command,
        local::LocalStore,
        model::{Operation, Transaction},
    };

    use super::*;

    fn written() -> (LocalStore, Vec<u8>) {
        let store = LocalStore::in_memory().unwrap();
        for number in 0..100 {
            let put = Operation::put(format!("key-{number}"), vec![number; 1000]);
            store.apply(Command::Transact(Transaction { success: vec![put], ..Transaction::default() })).unwrap();
        }
        let mut snapshot = PortableSnapshot::new(store.state_machine().begin_snapshot().unwrap()).unwrap();
        let size = snapshot.size_bytes();
        let mut bytes = Vec::new();
        while let Some(piece) = snapshot.read(1000).unwrap() {
            bytes.extend_from_slice(&piece);
        }
        assert_eq!(bytes.len() as u64, size);
        assert_eq!(bytes.len() % 512, 32, "etcd's tools tell by it that a checksum is there");
        (store, bytes)
    }

    #[test]
    fn what_is_written_can_be_read_into_another_store() {
        let (store, bytes) = written();
        let other = LocalStore::in_memory().unwrap();
        let mut sink = other.state_machine().begin_install().unwrap();
        let manifest = read(&mut bytes.as_slice(), &mut |file, offset, piece| sink.write_at(file, offset, piece)).unwrap();
        sink.finish(&manifest).unwrap();
        assert_eq!(other.state_machine().hash(), store.state_machine().hash());
    }

    #[test]
    fn a_snapshot_that_is_cut_off_flipped_or_something_else_is_refused() {
        let (_, bytes) = written();
        let refused = |bytes: &[u8]| read(&mut &*bytes, &mut |_, _, _| Ok(())).unwrap_err();
        for length in [0, 10, 16, 20, 100, bytes.len() / 2, bytes.len() - 33, bytes.len() - 1] {
            let error = refused(&bytes[..length]);
            assert!(matches!(error, PortableError::Truncated | PortableError::NotSnapshot), "{length}: {error}");
        }
        for position in (0..bytes.len()).step_by(997).chain([0, 17, 23, bytes.len() - 1]) {
            let mut flipped = bytes.clone();
            flipped[position] ^= 1;
            refused(&flipped);
        }
        assert!(matches!(refused(&[&bytes[..], b"x"].concat()), PortableError::TooLong));
        assert!(matches!(refused(b"something else, and longer than the magic"), PortableError::NotSnapshot));
        let bolt = [&[0; 16][..], &[0xED, 0xDA, 0x0C, 0xED], &[0; 100]].concat();
        assert!(matches!(refused(&bolt), PortableError::OfEtcd));
    }

    #[test]
    fn a_snapshot_says_what_it_is() {
        let (store, bytes) = written();
        let description = verify(&mut bytes.as_slice()).unwrap();
        assert_eq!((description.keys, description.cluster, description.saved_at_ms), (100, None, None));
        assert_eq!((description.manifest.revision, description.manifest.hash), store.state_machine().hash());
    }

    #[test]
    fn a_snapshot_of_a_newer_format_is_refused() {
        let manifest = SnapshotManifest { files: Vec::new(), applied: None, revision: Revision(1), hash: 2 };
        let newer = Description { format: FORMAT + 1, cluster: None, keys: 0, saved_at_ms: None, manifest };
        let record = codec::encode(&newer).unwrap();
        let bytes = [&MAGIC[..], &(record.len() as u64).to_be_bytes(), &record].concat();
        assert!(matches!(verify(&mut bytes.as_slice()), Err(PortableError::NewerFormat { found }) if found == FORMAT + 1));
    }
}
