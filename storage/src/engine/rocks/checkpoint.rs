//! Checkpoints of a RocksDB engine, going out and coming in.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{Inner, folder};
use crate::engine::{Checkpoint, CheckpointFile, EngineError, Stage, View, check_file_name};

fn read_piece(file: &File, path: &Path, offset: u64, length: usize) -> Result<Bytes, EngineError> {
    let mut piece = vec![0; length];
    let mut filled = 0;
    while filled < length {
        let read = file.read_at(&mut piece[filled..], offset + filled as u64).map_err(folder::io_error("cannot read", path))?;
        if read == 0 {
            break;
        }
        filled += read;
    }
    piece.truncate(filled);
    Ok(piece.into())
}

/// A folder that goes with its owner.
struct TemporaryFolder(PathBuf);

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove a temporary folder");
        }
    }
}

/// Hard links to the tables of one moment.
pub(super) struct RocksCheckpoint {
    folder: TemporaryFolder,
    files: Vec<CheckpointFile>,
}

impl RocksCheckpoint {
    /// Takes over a folder that RocksDB has filled.
    pub fn new(path: PathBuf) -> Result<Self, EngineError> {
        let folder = TemporaryFolder(path);
        let mut files = Vec::new();
        for entry in fs::read_dir(&folder.0).map_err(folder::io_error("cannot list", &folder.0))? {
            let entry = entry.map_err(folder::io_error("cannot list", &folder.0))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            check_file_name(&name)?;
            let size_bytes = entry.metadata().map_err(folder::io_error("cannot read", &entry.path()))?.len();
            files.push(CheckpointFile { name, size_bytes });
        }
        files.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(Self { folder, files })
    }
}

impl Checkpoint for RocksCheckpoint {
    fn files(&self) -> &[CheckpointFile] {
        &self.files
    }

    fn read_at(&self, file: &str, offset: u64, length: usize) -> Result<Bytes, EngineError> {
        check_file_name(file)?;
        let path = self.folder.0.join(file);
        let opened = File::open(&path).map_err(folder::io_error("cannot open", &path))?;
        read_piece(&opened, &path, offset, length)
    }
}

/// A folder in which a checkpoint is being collected.
pub(super) struct RocksStage {
    engine: Arc<Inner>,
    folder: TemporaryFolder,
    files: BTreeMap<String, File>,
}

impl RocksStage {
    pub fn new(engine: Arc<Inner>, path: PathBuf) -> Result<Self, EngineError> {
        fs::create_dir(&path).map_err(folder::io_error("cannot create", &path))?;
        Ok(Self { engine, folder: TemporaryFolder(path), files: BTreeMap::new() })
    }

    fn open(&mut self, name: &str) -> Result<&File, EngineError> {
        check_file_name(name)?;
        if !self.files.contains_key(name) {
            let path = self.folder.0.join(name);
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            self.files.insert(name.to_owned(), file.map_err(folder::io_error("cannot create", &path))?);
        }
        self.files.get(name).ok_or_else(|| EngineError::Corruption(format!("snapshot file {name} is not open")))
    }
}

impl Stage for RocksStage {
    fn write_at(&mut self, file: &str, offset: u64, bytes: &[u8]) -> Result<(), EngineError> {
        let path = self.folder.0.join(file);
        self.open(file)?.write_all_at(bytes, offset).map_err(folder::io_error("cannot write", &path))
    }

    fn files(&self) -> Result<Vec<CheckpointFile>, EngineError> {
        let size = |(name, file): (&String, &File)| {
            let size_bytes = file.metadata().map_err(folder::io_error("cannot read", &self.folder.0.join(name)))?.len();
            Ok(CheckpointFile { name: name.clone(), size_bytes })
        };
        self.files.iter().map(size).collect()
    }

    fn read_at(&self, file: &str, offset: u64, length: usize) -> Result<Bytes, EngineError> {
        let path = self.folder.0.join(file);
        let opened = self.files.get(file).ok_or_else(|| EngineError::Io {
            context: format!("cannot read {}", path.display()),
            message: "no such snapshot file".into(),
        })?;
        read_piece(opened, &path, offset, length)
    }

    fn commit(&mut self, validate: &mut dyn FnMut(&dyn View) -> Result<(), EngineError>) -> Result<(), EngineError> {
        for (name, file) in &self.files {
            file.sync_all().map_err(folder::io_error("cannot sync", &self.folder.0.join(name)))?;
        }
        folder::sync_folder(&self.folder.0)?;
        self.engine.replace_data(&self.folder.0, validate)
    }
}
