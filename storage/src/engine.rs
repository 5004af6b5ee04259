//! The small face of a key-value engine on which everything else in this crate is built.
//!
//! Two engines implement it: [`rocks::RocksEngine`] on disk and [`memory::MemoryEngine`], whose
//! [`crash`](memory::MemoryEngine::crash) drops what was not synced. The traits are object-safe; both engines pass the
//! same conformance tests.

pub mod memory;
pub mod rocks;

use std::ops::ControlFlow;

use bytes::Bytes;

/// The separate ordered key spaces of one engine (column families in RocksDB).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Keyspace {
    /// Few single records: format, identity, applied record, head of the state, meta records of the log.
    Meta,
    /// The current value of every key of the store.
    Current,
    /// One row for each change, by revision: how to undo it.
    History,
    /// Which revisions changed a key: (key, revision). See [`Engine::discard_below`].
    Versions,
    /// Leases, and the keys attached to them.
    Leases,
    /// The records of the Raft log, by index.
    Log,
}

impl Keyspace {
    pub const ALL: [Self; 6] = [Self::Meta, Self::Current, Self::History, Self::Versions, Self::Leases, Self::Log];

    /// The name of the column family.
    pub fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Current => "current",
            Self::History => "history",
            Self::Versions => "versions",
            Self::Leases => "leases",
            Self::Log => "log",
        }
    }
}

/// Whether a write waits for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// This write, and every write before it, survives a loss of power once the call returns.
    Sync,
    /// The write survives the end of the process; a loss of power may drop it, and then every write after it too.
    NoSync,
}

/// How much room the disk under an engine has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Space {
    #[default]
    Enough,
    /// Little is left: enough for what is under way, and for what gives space back.
    Low,
    /// A write found no space. What was kept for this case is in use.
    Exhausted,
}

impl Space {
    /// The inverse of `as u8`; a level that does not exist is the worst.
    pub fn from_level(level: u8) -> Self {
        match level {
            0 => Self::Enough,
            1 => Self::Low,
            _ => Self::Exhausted,
        }
    }
}

/// Why an engine did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum EngineError {
    /// The disk is full. Reads go on; writes work again once there is space.
    #[error("no space left on device")]
    NoSpace,
    #[error("{context}: {message}")]
    Io { context: String, message: String },
    #[error("the stored data are corrupt: {0}")]
    Corruption(String),
    /// The data were written by a later version of Trireme. Nothing was changed.
    #[error("storage was written by a newer version of trireme: its format is {found}, this version knows up to {supported}")]
    NewerFormat { found: u32, supported: u32 },
    /// The data belong to something else: another cluster, or another use of an engine.
    #[error("storage belongs to {found:?}, not to {expected:?}")]
    Foreign { found: String, expected: String },
}

impl EngineError {
    /// Wraps an I/O error, telling a full disk from the rest.
    pub fn io(context: impl Into<String>, error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Io { context: context.into(), message: error.to_string() },
        }
    }
}

/// One change inside a [`WriteBatch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOperation {
    Put {
        keyspace: Keyspace,
        key: Bytes,
        value: Bytes,
    },
    Delete {
        keyspace: Keyspace,
        key: Bytes,
    },
    /// Deletes `start` up to and without `end`.
    DeleteRange {
        keyspace: Keyspace,
        start: Bytes,
        end: Bytes,
    },
}

/// Changes that happen all together or not at all, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteBatch {
    operations: Vec<WriteOperation>,
}

impl WriteBatch {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn put(&mut self, keyspace: Keyspace, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.operations.push(WriteOperation::Put { keyspace, key: key.into(), value: value.into() });
    }

    pub fn delete(&mut self, keyspace: Keyspace, key: impl Into<Bytes>) {
        self.operations.push(WriteOperation::Delete { keyspace, key: key.into() });
    }

    /// Deletes `start` up to and without `end`; nothing when `end` is not after `start`.
    pub fn delete_range(&mut self, keyspace: Keyspace, start: impl Into<Bytes>, end: impl Into<Bytes>) {
        let (start, end) = (start.into(), end.into());
        if start < end {
            self.operations.push(WriteOperation::DeleteRange { keyspace, start, end });
        }
    }

    /// Adds the changes of `other` after those of this batch.
    pub fn append(&mut self, mut other: Self) {
        self.operations.append(&mut other.operations);
    }

    pub fn operations(&self) -> &[WriteOperation] {
        &self.operations
    }

    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }
}

/// A half-open range of raw keys; an empty `end` is "to the end".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span<'a> {
    pub start: &'a [u8],
    pub end: &'a [u8],
}

impl Span<'_> {
    /// Every key.
    pub const ALL: Span<'static> = Span { start: &[], end: &[] };

    /// Whether no key can be inside.
    pub fn is_empty(&self) -> bool {
        !self.end.is_empty() && self.start >= self.end
    }
}

/// What a scan calls for each key and value, in key order, until it breaks.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// The engine's data as of one moment.
pub trait View {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Visits the keys of `span` in order.
    fn scan(&self, keyspace: Keyspace, span: Span<'_>, visit: &mut Visit<'_>) -> Result<(), EngineError>;
}

/// What [`Engine::view`] runs.
pub type Reader<'a> = dyn FnMut(&dyn View) + 'a;

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointFile {
    /// Unique within the checkpoint; no path separators.
    pub name: String,
    pub size_bytes: u64,
}

/// The engine's data as of one moment, as files that do not change. Deleted on drop.
pub trait Checkpoint: Send + Sync {
    fn files(&self) -> &[CheckpointFile];

    /// Up to `length` bytes from `offset`; fewer only at the end of the file.
    fn read_at(&self, file: &str, offset: u64, length: usize) -> Result<Bytes, EngineError>;
}

/// A place in which the files of a checkpoint are collected before they replace the engine's data. Deleted on drop.
pub trait Stage: Send {
    /// Writes a piece of a file; pieces may come in any order, and again.
    fn write_at(&mut self, file: &str, offset: u64, bytes: &[u8]) -> Result<(), EngineError>;

    /// The files so far.
    fn files(&self) -> Result<Vec<CheckpointFile>, EngineError>;

    /// Reads back what was written, for verification.
    fn read_at(&self, file: &str, offset: u64, length: usize) -> Result<Bytes, EngineError>;

    /// Opens what was staged, lets `validate` look at it, and replaces the engine's data by it, durably and all at once. After an
    /// error or a crash the engine holds either all of the old data or all of the new. After [`EngineError::NoSpace`] what was staged is
    /// still there, and this may be called again.
    fn commit(&mut self, validate: &mut dyn FnMut(&dyn View) -> Result<(), EngineError>) -> Result<(), EngineError>;
}

/// An ordered key-value store with atomic batches. All calls block.
pub trait Engine: Send + Sync + 'static {
    /// Carries out the whole batch or, on an error, nothing of it that a later read of this process could see.
    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), EngineError>;

    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Runs `reader` over a consistent snapshot. The reader must not call the engine itself. [`read`] is the comfortable form.
    fn view(&self, reader: &mut Reader<'_>) -> Result<(), EngineError>;

    /// Makes everything written so far durable.
    fn sync(&self) -> Result<(), EngineError>;

    /// Allows the engine to drop, whenever it likes and from snapshots too, history rows (revision in the first 8 bytes of the key,
    /// big-endian) and version rows (revision in the last 8 bytes) of revisions below this one.
    fn discard_below(&self, revision: u64);

    /// Does the slow part of a checkpoint in advance, so that one that follows soon is quick.
    fn prepare_checkpoint(&self) -> Result<(), EngineError>;

    fn checkpoint(&self) -> Result<Box<dyn Checkpoint>, EngineError>;

    /// Begins to replace the engine's data by those of a checkpoint.
    fn stage(&self) -> Result<Box<dyn Stage>, EngineError>;

    /// Whether somebody waits to have the engine for himself, to replace or reopen the data: everyone else waits behind him, so who
    /// reads for long should end.
    fn is_awaited(&self) -> bool {
        false
    }

    /// How much the data take on the disk.
    fn size_bytes(&self) -> u64;

    /// How much room there is, as was last seen. Does not block. An engine that cannot tell has enough.
    fn space(&self) -> Space {
        Space::Enough
    }

    /// Looks how much room there is, and sets space aside again if that was used up and there is plenty now.
    fn check_space(&self) -> Space {
        self.space()
    }
}

/// Runs `reader` over a consistent snapshot of the engine and hands out its result.
pub fn read<T, E>(engine: &dyn Engine, reader: impl FnOnce(&dyn View) -> Result<T, E>) -> Result<T, E>
where
    E: From<EngineError>,
{
    let mut reader = Some(reader);
    let mut result = None;
    engine.view(&mut |view| {
        if let Some(reader) = reader.take() {
            result = Some(reader(view));
        }
    })?;
    result.unwrap_or_else(|| Err(EngineError::Corruption("the engine gave no view".into()).into()))
}

/// Whether `name` may name a file of a checkpoint: names come from the network and must not lead out of the folder.
pub(crate) fn check_file_name(name: &str) -> Result<(), EngineError> {
    let ok = !name.is_empty()
        && name.len() <= 200
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if ok { Ok(()) } else { Err(EngineError::Corruption(format!("{name:?} cannot name a file of a snapshot"))) }
}

/// The revision that a row of [`Keyspace::Versions`] ends with; the greatest one for a key too short to hold any.
pub(crate) fn trailing_revision(key: &[u8]) -> u64 {
    key.last_chunk::<8>().map_or(u64::MAX, |raw| u64::from_be_bytes(*raw))
}
