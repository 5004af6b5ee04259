//! The engine on disk: RocksDB with a column family for each key space.
//!
//! The database lies in a numbered data folder; a restore fills another one and then switches to it by
//! replacing one small file (see `folder`). A write that finds the disk full leaves RocksDB in an error state; with what was kept
//! for that case (see `reserve`), or once there is space again, the next write goes through, if need be after the database was
//! opened anew.

mod checkpoint;
mod folder;
mod options;
pub mod reader;
mod reserve;

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use rocksdb::{ColumnFamily, DB, ErrorKind, ReadOptions, Snapshot};

pub use self::options::RocksOptions;
use self::{
    checkpoint::{RocksCheckpoint, RocksStage},
    options::Shared,
    reserve::Reserve,
};
use super::{
    Checkpoint, Durability, Engine, EngineError, Keyspace, Reader, Space, Span, Stage, View, Visit, WriteBatch, WriteOperation,
};
use crate::fail_point;

/// A full disk counts as healed when so much can be written, besides what RocksDB may have to write again when it opens.
const HEALED_BYTES: u64 = 1 << 20;

/// The engine on disk. Clones share the database; it is closed with the last of them.
#[derive(Clone)]
pub struct RocksEngine {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    options: RocksOptions,
    shared: Shared,
    /// The open database; `None` when it could not be opened anew after the disk was full. Whoever reads or writes holds the lock
    /// for reading, whoever replaces the database for writing.
    slot: RwLock<Slot>,
    /// How many wait for `slot` for writing.
    awaiting: AtomicUsize,
    /// A write failed for want of space, and none has succeeded since.
    full: AtomicBool,
    reserve: Reserve,
    /// Numbers temporary folders.
    sequence: AtomicU64,
}

struct Slot {
    database: Option<DB>,
    /// The number of the data folder.
    data: u64,
}

fn engine_error(error: rocksdb::Error) -> EngineError {
    let kind = error.kind();
    let message = error.into_string();
    if message.contains("No space left on device") || message.contains("Disk quota exceeded") {
        EngineError::NoSpace
    } else if kind == ErrorKind::Corruption {
        EngineError::Corruption(message)
    } else {
        EngineError::Io { context: "RocksDB".into(), message }
    }
}

fn family(database: &DB, keyspace: Keyspace) -> Result<&ColumnFamily, EngineError> {
    database.cf_handle(keyspace.name()).ok_or_else(|| EngineError::Io {
        context: "RocksDB".into(),
        message: format!("this engine was opened without the key space {}", keyspace.name()),
    })
}

impl RocksEngine {
    /// Opens the engine in the folder `path`, or begins one there.
    ///
    /// # Errors
    /// [`EngineError::NewerFormat`], with nothing changed; [`EngineError::NoSpace`], after which it may be tried again;
    /// [`EngineError::Io`], for one when another process has it open.
    pub fn open(path: impl AsRef<Path>, options: RocksOptions) -> Result<Self, EngineError> {
        let root = path.as_ref().to_owned();
        folder::prepare(&root)?;
        let data = folder::current_data(&root)?;
        let shared = Shared::new(&options);
        let path = folder::data_path(&root, data);
        let mut opened = open_database(&path, &options, &shared);
        let reserve = Reserve::open(&root);
        if matches!(opened, Err(EngineError::NoSpace)) && reserve.release() {
            opened = open_database(&path, &options, &shared);
        }
        let database = opened?;
        folder::sync_folder(&root)?;
        folder::remove_leftovers(&root, data)?;
        let inner = Inner {
            root,
            options,
            shared,
            slot: RwLock::new(Slot { database: Some(database), data }),
            awaiting: AtomicUsize::new(0),
            full: AtomicBool::new(false),
            reserve,
            sequence: AtomicU64::new(1),
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}

fn open_database(path: &Path, options: &RocksOptions, shared: &Shared) -> Result<DB, EngineError> {
    let database = DB::open_cf_descriptors(&options::database(options), path, options::families(options, shared));
    database.map_err(|error| match engine_error(error) {
        EngineError::Io { message, .. } if message.contains("lock") && message.contains("LOCK") => EngineError::Io {
            context: format!("cannot open {}", path.display()),
            message: "it is in use by another process".into(),
        },
        EngineError::Io { message, .. } => EngineError::Io { context: format!("cannot open {}", path.display()), message },
        other => other,
    })
}

impl Inner {
    fn with_database<T>(&self, run: impl FnOnce(&DB) -> Result<T, EngineError>) -> Result<T, EngineError> {
        let slot: RwLockReadGuard<'_, Slot> = self.slot.read();
        run(slot.database.as_ref().ok_or(EngineError::NoSpace)?)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, Slot> {
        self.awaiting.fetch_add(1, Ordering::Relaxed);
        let slot = self.slot.write();
        self.awaiting.fetch_sub(1, Ordering::Relaxed);
        slot
    }

    fn write_once(&self, batch: &WriteBatch, durability: Durability) -> Result<(), EngineError> {
        self.with_database(|database| {
            let mut rows = rocksdb::WriteBatch::default();
            for operation in batch.operations() {
                match operation {
                    WriteOperation::Put { keyspace, key, value } => rows.put_cf(family(database, *keyspace)?, key, value),
                    WriteOperation::Delete { keyspace, key } => rows.delete_cf(family(database, *keyspace)?, key),
                    WriteOperation::DeleteRange { keyspace, start, end } => {
                        rows.delete_range_cf(family(database, *keyspace)?, start, end);
                    }
                }
            }
            if durability == Durability::Sync {
                fail_point!("engine/sync/before");
            }
            database.write_opt(rows, &options::write(durability)).map_err(engine_error)
        })
    }

    /// After a full disk: opens the database anew, if there is space.
    fn reopen(&self) -> Result<(), EngineError> {
        let mut slot = self.exclusive();
        let path = folder::data_path(&self.root, slot.data);
        // Were the database closed and could not be opened, there would be no reads either.
        if !folder::has_space(&self.root, HEALED_BYTES + folder::log_bytes(&path)) {
            return Err(EngineError::NoSpace);
        }
        slot.database = None;
        slot.database = Some(open_database(&path, &self.options, &self.shared)?);
        tracing::info!(path = %self.root.display(), "opened the store anew after its disk was full");
        Ok(())
    }

    fn temporary_path(&self, kind: &str) -> PathBuf {
        self.root.join(format!("{kind}-{}", self.sequence.fetch_add(1, Ordering::Relaxed)))
    }

    /// Makes the files in `staged` the engine's data. See [`Stage::commit`].
    fn replace_data(
        &self,
        staged: &Path,
        validate: &mut dyn FnMut(&dyn View) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let mut slot = self.exclusive();
        let number = slot.data + 1;
        let (old, new) = (folder::data_path(&self.root, slot.data), folder::data_path(&self.root, number));
        // The horizon was that of the old data.
        self.shared.horizon.store(0, Ordering::Release);
        fail_point!("snapshot/install/rename-before");
        fs::rename(staged, &new).map_err(folder::io_error("cannot move", staged))?;
        fail_point!("snapshot/install/rename-after");
        folder::sync_folder(&self.root)?;
        let opened = self.open_restored(&new, validate).and_then(|database| {
            fail_point!("snapshot/install/pointer-before");
            folder::set_current_data(&self.root, number)?;
            fail_point!("snapshot/install/pointer-after");
            Ok(database)
        });
        let database = match opened {
            Ok(database) => database,
            // The pointer may have changed although its folder could not be synced: what counts is what it says.
            Err(error) => {
                if folder::current_data(&self.root)? == number {
                    return Err(error);
                }
                match error {
                    // What has arrived is kept, to be tried again.
                    EngineError::NoSpace => fs::rename(&new, staged).map_err(folder::io_error("cannot move", &new))?,
                    _ => remove_folder(&new),
                }
                return Err(error);
            }
        };
        *slot = Slot { database: Some(database), data: number };
        drop(slot);
        fail_point!("snapshot/install/remove-before");
        remove_folder(&old);
        Ok(())
    }

    fn open_restored(
        &self,
        path: &Path,
        validate: &mut dyn FnMut(&dyn View) -> Result<(), EngineError>,
    ) -> Result<DB, EngineError> {
        // A folder without this file is no database, and RocksDB would begin a new one in it.
        if !path.join("CURRENT").exists() {
            return Err(EngineError::Corruption("the snapshot holds no database".into()));
        }
        let database = open_database(path, &self.options, &self.shared)?;
        validate(&RocksView { database: &database, snapshot: database.snapshot() })?;
        database.flush_wal(true).map_err(engine_error)?;
        Ok(database)
    }
}

fn remove_folder(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove a data folder that is no longer used");
    }
}

impl Engine for RocksEngine {
    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), EngineError> {
        let inner = &self.inner;
        let mut result = inner.write_once(batch, durability);
        if result == Err(EngineError::NoSpace) {
            // RocksDB stays in its error state when there is space again.
            if inner.full.swap(true, Ordering::SeqCst) && inner.reopen().is_ok() {
                result = inner.write_once(batch, durability);
            }
            if result == Err(EngineError::NoSpace) && inner.reserve.release() && inner.reopen().is_ok() {
                result = inner.write_once(batch, durability);
            }
        }
        if result.is_ok() && inner.full.load(Ordering::Relaxed) {
            inner.full.store(false, Ordering::SeqCst);
        }
        result
    }

    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.inner.with_database(|database| {
            let found = database.get_pinned_cf(family(database, keyspace)?, key).map_err(engine_error)?;
            Ok(found.map(|value| Bytes::copy_from_slice(&value)))
        })
    }

    fn view(&self, reader: &mut Reader<'_>) -> Result<(), EngineError> {
        self.inner.with_database(|database| {
            reader(&RocksView { database, snapshot: database.snapshot() });
            Ok(())
        })
    }

    fn sync(&self) -> Result<(), EngineError> {
        fail_point!("engine/sync/before");
        self.inner.with_database(|database| database.flush_wal(true).map_err(engine_error))
    }

    fn discard_below(&self, revision: u64) {
        self.inner.shared.horizon.fetch_max(revision, Ordering::AcqRel);
        let dropped = self.inner.with_database(|database| {
            let history = family(database, Keyspace::History)?;
            database.delete_file_in_range_cf(history, [0_u8; 8], revision.to_be_bytes()).map_err(engine_error)
        });
        if let Err(error) = dropped {
            tracing::warn!(%error, "cannot drop the files of compacted history; they go with later compactions");
        }
    }

    fn prepare_checkpoint(&self) -> Result<(), EngineError> {
        self.inner.with_database(|database| {
            let families = self.inner.options.keyspaces().iter().map(|keyspace| family(database, *keyspace));
            families.into_iter().try_for_each(|family| database.flush_cf(family?).map_err(engine_error))
        })
    }

    fn checkpoint(&self) -> Result<Box<dyn Checkpoint>, EngineError> {
        let path = self.inner.temporary_path("checkpoint");
        self.inner.with_database(|database| {
            let checkpoint = rocksdb::checkpoint::Checkpoint::new(database).map_err(engine_error)?;
            checkpoint.create_checkpoint(&path).map_err(engine_error)
        })?;
        Ok(Box::new(RocksCheckpoint::new(path)?))
    }

    fn stage(&self) -> Result<Box<dyn Stage>, EngineError> {
        Ok(Box::new(RocksStage::new(Arc::clone(&self.inner), self.inner.temporary_path("stage"))?))
    }

    fn is_awaited(&self) -> bool {
        self.inner.awaiting.load(Ordering::Relaxed) > 0
    }

    fn size_bytes(&self) -> u64 {
        let data = self.inner.slot.read().data;
        folder::size_bytes(&folder::data_path(&self.inner.root, data))
    }

    fn space(&self) -> Space {
        self.inner.reserve.space()
    }

    fn check_space(&self) -> Space {
        let inner = &self.inner;
        // RocksDB takes no writes before it is opened anew, whatever the disk has by now.
        if inner.full.load(Ordering::SeqCst) {
            match inner.reopen() {
                Ok(()) => inner.full.store(false, Ordering::SeqCst),
                Err(_) => return inner.reserve.space(),
            }
        }
        inner.reserve.check()
    }
}

struct RocksView<'d> {
    database: &'d DB,
    snapshot: Snapshot<'d>,
}

impl View for RocksView<'_> {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let found = self.snapshot.get_pinned_cf(family(self.database, keyspace)?, key).map_err(engine_error)?;
        Ok(found.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, keyspace: Keyspace, span: Span<'_>, visit: &mut Visit<'_>) -> Result<(), EngineError> {
        if span.is_empty() {
            return Ok(());
        }
        let mut read = ReadOptions::default();
        // The cache is for point reads: a scan would put what it passes once in the place of what they use, and take longer for it.
        read.fill_cache(false);
        if !span.end.is_empty() {
            read.set_iterate_upper_bound(span.end);
        }
        let mut rows = self.snapshot.raw_iterator_cf_opt(family(self.database, keyspace)?, read);
        rows.seek(span.start);
        while let Some((key, value)) = rows.item() {
            if let ControlFlow::Break(()) = visit(key, value) {
                return Ok(());
            }
            rows.next();
        }
        rows.status().map_err(engine_error)
    }
}
