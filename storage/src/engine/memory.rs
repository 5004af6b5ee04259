//! An engine in memory, for tests and the simulator. Its crash keeps exactly what was synced; so does a cut of its power, after which
//! no handle of before works any more.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
    sync::Arc,
};

use bytes::{BufMut, Bytes};
use imbl::OrdMap;
use parking_lot::{Mutex, MutexGuard};

use super::{
    Checkpoint, CheckpointFile, Durability, Engine, EngineError, Keyspace, Reader, Space, Span, Stage, View, Visit, WriteBatch,
    WriteOperation, check_file_name,
};
use crate::fail_point;

const FILE_NAME: &str = "memory";

/// All key spaces; cloning is cheap because the maps share their structure.
#[derive(Clone, Default)]
struct Data {
    spaces: [OrdMap<Bytes, Bytes>; Keyspace::ALL.len()],
}

impl Data {
    fn space(&self, keyspace: Keyspace) -> &OrdMap<Bytes, Bytes> {
        &self.spaces[keyspace as usize]
    }

    fn space_mut(&mut self, keyspace: Keyspace) -> &mut OrdMap<Bytes, Bytes> {
        &mut self.spaces[keyspace as usize]
    }

    fn delete_range(&mut self, keyspace: Keyspace, start: &[u8], end: &[u8]) {
        let keys: Vec<Bytes> = bounded(self.space(keyspace), Span { start, end }).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.space_mut(keyspace).remove(&key);
        }
    }

    fn carry_out(&mut self, batch: &WriteBatch) {
        for operation in batch.operations() {
            match operation {
                WriteOperation::Put { keyspace, key, value } => {
                    self.space_mut(*keyspace).insert(key.clone(), value.clone());
                }
                WriteOperation::Delete { keyspace, key } => {
                    self.space_mut(*keyspace).remove(key);
                }
                WriteOperation::DeleteRange { keyspace, start, end } => self.delete_range(*keyspace, start, end),
            }
        }
    }

    fn size_bytes(&self) -> u64 {
        self.spaces.iter().flatten().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }

    /// Keyspace, key and value of every row, lengths first.
    fn to_file(&self) -> Bytes {
        let mut file = Vec::new();
        for keyspace in Keyspace::ALL {
            for (key, value) in self.space(keyspace) {
                file.put_u8(keyspace as u8);
                file.put_u32(key.len() as u32);
                file.put_slice(key);
                file.put_u32(value.len() as u32);
                file.put_slice(value);
            }
        }
        file.into()
    }

    fn from_file(mut file: Bytes) -> Result<Self, EngineError> {
        fn piece(file: &mut Bytes, length: usize) -> Result<Bytes, EngineError> {
            if file.len() < length {
                return Err(EngineError::Corruption("the snapshot file ends too early".into()));
            }
            Ok(file.split_to(length))
        }
        fn length(file: &mut Bytes) -> Result<usize, EngineError> {
            let raw = piece(file, 4)?;
            Ok(raw.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
        }
        let mut data = Self::default();
        while !file.is_empty() {
            let number = piece(&mut file, 1)?[0];
            let space = data
                .spaces
                .get_mut(usize::from(number))
                .ok_or_else(|| EngineError::Corruption(format!("unknown key space {number}")))?;
            let key_length = length(&mut file)?;
            let key = piece(&mut file, key_length)?;
            let value_length = length(&mut file)?;
            let value = piece(&mut file, value_length)?;
            space.insert(key, value);
        }
        Ok(data)
    }
}

fn bounded<'a>(space: &'a OrdMap<Bytes, Bytes>, span: Span<'a>) -> impl Iterator<Item = (&'a Bytes, &'a Bytes)> {
    // A range whose start lies behind its end would panic in the map; it is empty.
    let start = if span.is_empty() { span.end } else { span.start };
    let end = if span.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(span.end) };
    space.range::<_, [u8]>((Bound::Included(start), end)).take_while(move |_| !span.is_empty())
}

impl View for Data {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.space(keyspace).get(key).cloned())
    }

    fn scan(&self, keyspace: Keyspace, span: Span<'_>, visit: &mut Visit<'_>) -> Result<(), EngineError> {
        for (key, value) in bounded(self.space(keyspace), span) {
            if let ControlFlow::Break(()) = visit(key, value) {
                break;
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Inner {
    /// What reads see.
    live: Data,
    /// What a crash leaves; changed by each sync.
    synced: Data,
    /// Writes that would go beyond so many bytes of keys and values fail with [`EngineError::NoSpace`].
    capacity_bytes: Option<u64>,
    /// Counts the times that the power was cut.
    power_cuts: u64,
    /// What the engine says of its room, whatever the capacity is.
    space: Space,
}

/// The engine in memory. Clones share their data.
#[derive(Clone, Default)]
pub struct MemoryEngine {
    inner: Arc<Mutex<Inner>>,
    /// How often the power had been cut when this handle was made: it works until the next time.
    power_cuts: u64,
}

impl MemoryEngine {
    pub fn new() -> Self {
        Self::default()
    }

    /// Loses power: everything written after the last sync is gone. Whoever holds the engine must open anew what it builds on it.
    pub fn crash(&self) {
        let mut inner = self.inner.lock();
        inner.live = inner.synced.clone();
    }

    /// Loses power: everything written after the last sync is gone, and nothing of what this handle and its clones do from here on
    /// succeeds. [`MemoryEngine::power_on`] gives a handle that works.
    pub fn cut_power(&self) {
        let mut inner = self.inner.lock();
        inner.live = inner.synced.clone();
        inner.power_cuts += 1;
    }

    /// The engine after its power was cut, and now is back.
    pub fn power_on(&self) -> Self {
        Self { inner: self.inner.clone(), power_cuts: self.inner.lock().power_cuts }
    }

    /// The data, if there is power.
    fn access(&self) -> Result<MutexGuard<'_, Inner>, EngineError> {
        let inner = self.inner.lock();
        if inner.power_cuts == self.power_cuts {
            Ok(inner)
        } else {
            Err(EngineError::Io { context: "the engine in memory".into(), message: "its power was cut".into() })
        }
    }

    /// Sets the size of the "disk"; `None` is endless.
    pub fn set_capacity_bytes(&self, capacity_bytes: Option<u64>) {
        self.inner.lock().capacity_bytes = capacity_bytes;
    }

    /// Has the engine say that it has so much room; writes go through all the same, as into a reserve.
    pub fn set_space(&self, space: Space) {
        self.inner.lock().space = space;
    }
}

impl Engine for MemoryEngine {
    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), EngineError> {
        let mut inner = self.access()?;
        let mut next = inner.live.clone();
        next.carry_out(batch);
        if inner.capacity_bytes.is_some_and(|capacity| next.size_bytes() > capacity) {
            return Err(EngineError::NoSpace);
        }
        inner.live = next;
        drop(inner);
        match durability {
            Durability::Sync => self.sync(),
            Durability::NoSync => Ok(()),
        }
    }

    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.access()?.live.get(keyspace, key)
    }

    fn view(&self, reader: &mut Reader<'_>) -> Result<(), EngineError> {
        let snapshot = self.access()?.live.clone();
        reader(&snapshot);
        Ok(())
    }

    fn sync(&self) -> Result<(), EngineError> {
        fail_point!("engine/sync/before");
        let mut inner = self.access()?;
        inner.synced = inner.live.clone();
        Ok(())
    }

    fn discard_below(&self, revision: u64) {
        let Ok(mut inner) = self.access() else { return };
        inner.live.delete_range(Keyspace::History, &[], &revision.to_be_bytes());
        let stale: Vec<Bytes> =
            inner.live.space(Keyspace::Versions).keys().filter(|key| super::trailing_revision(key) < revision).cloned().collect();
        for key in stale {
            inner.live.space_mut(Keyspace::Versions).remove(&key);
        }
    }

    fn prepare_checkpoint(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn checkpoint(&self) -> Result<Box<dyn Checkpoint>, EngineError> {
        let file = self.access()?.live.to_file();
        let files = vec![CheckpointFile { name: FILE_NAME.into(), size_bytes: file.len() as u64 }];
        Ok(Box::new(MemoryCheckpoint { files, file }))
    }

    fn stage(&self) -> Result<Box<dyn Stage>, EngineError> {
        Ok(Box::new(MemoryStage { engine: self.clone(), files: BTreeMap::new() }))
    }

    fn size_bytes(&self) -> u64 {
        self.inner.lock().live.size_bytes()
    }

    fn space(&self) -> Space {
        self.inner.lock().space
    }
}

fn slice_at(file: &Bytes, offset: u64, length: usize) -> Bytes {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(file.len());
    file.slice(start..start.saturating_add(length).min(file.len()))
}

struct MemoryCheckpoint {
    files: Vec<CheckpointFile>,
    file: Bytes,
}

impl Checkpoint for MemoryCheckpoint {
    fn files(&self) -> &[CheckpointFile] {
        &self.files
    }

    fn read_at(&self, file: &str, offset: u64, length: usize) -> Result<Bytes, EngineError> {
        if file != FILE_NAME {
            return Err(EngineError::Io { context: format!("snapshot file {file:?}"), message: "no such file".into() });
        }
        Ok(slice_at(&self.file, offset, length))
    }
}

struct MemoryStage {
    engine: MemoryEngine,
    files: BTreeMap<String, Vec<u8>>,
}

impl Stage for MemoryStage {
    fn write_at(&mut self, file: &str, offset: u64, bytes: &[u8]) -> Result<(), EngineError> {
        check_file_name(file)?;
        let content = self.files.entry(file.to_owned()).or_default();
        let start = usize::try_from(offset).map_err(|_| EngineError::NoSpace)?;
        let end = start.checked_add(bytes.len()).ok_or(EngineError::NoSpace)?;
        if content.len() < end {
            content.resize(end, 0);
        }
        content[start..end].copy_from_slice(bytes);
        Ok(())
    }

    fn files(&self) -> Result<Vec<CheckpointFile>, EngineError> {
        Ok(self
            .files
            .iter()
            .map(|(name, content)| CheckpointFile { name: name.clone(), size_bytes: content.len() as u64 })
            .collect())
    }

    fn read_at(&self, file: &str, offset: u64, length: usize) -> Result<Bytes, EngineError> {
        let content = self.files.get(file).map(Vec::as_slice).unwrap_or_default();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
        Ok(Bytes::copy_from_slice(&content[start..start.saturating_add(length).min(content.len())]))
    }

    fn commit(&mut self, validate: &mut dyn FnMut(&dyn View) -> Result<(), EngineError>) -> Result<(), EngineError> {
        let file = self.files.get(FILE_NAME).ok_or_else(|| EngineError::Corruption("the snapshot holds no data file".into()))?;
        let data = Data::from_file(Bytes::copy_from_slice(file))?;
        validate(&data)?;
        let mut inner = self.engine.access()?;
        if inner.capacity_bytes.is_some_and(|capacity| data.size_bytes() > capacity) {
            return Err(EngineError::NoSpace);
        }
        inner.synced = data.clone();
        inner.live = data;
        Ok(())
    }
}
