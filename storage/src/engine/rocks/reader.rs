//! A look into the folder of an engine that nobody uses, without changing anything in it: for checks of what lies on the disk.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use rocksdb::{DB, DBRecoveryMode, ReadOptions};

use super::{
    RocksOptions, RocksView, engine_error, family, folder,
    options::{self, Shared},
};
use crate::engine::{EngineError, Keyspace, View};

/// An engine's database, opened to be read.
pub struct RocksReader {
    database: DB,
    options: RocksOptions,
    path: PathBuf,
    damaged_log: Option<String>,
}

/// Something that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub file: String,
    pub what: String,
}

impl RocksReader {
    /// Opens the engine in the folder `root`.
    ///
    /// # Errors
    /// [`EngineError::Io`] when there is none, or when its database cannot be opened at all.
    pub fn open(root: &Path, options: RocksOptions) -> Result<Self, EngineError> {
        let missing =
            || EngineError::Io { context: root.display().to_string(), message: "there is no store in this folder".into() };
        if !folder::is_begun(root)? {
            return Err(missing());
        }
        let path = folder::data_path(root, folder::current_data(root)?);
        if !path.is_dir() {
            return Err(missing());
        }
        // A damaged end of RocksDB's own log costs the newest writes: it is told, and what is left is looked at.
        let strict = open(&path, &options, DBRecoveryMode::AbsoluteConsistency);
        let (database, damaged_log) = match strict {
            Ok(database) => (database, None),
            Err(error) => {
                (open(&path, &options, DBRecoveryMode::PointInTime).map_err(|_| error.clone())?, Some(error.to_string()))
            }
        };
        Ok(Self { database, options, path, damaged_log })
    }

    /// What is wrong with RocksDB's own log: the newest writes may be missing. The Raft log brings them back to a state.
    pub fn damaged_log(&self) -> Option<&str> {
        self.damaged_log.as_deref()
    }

    /// What the database holds.
    pub fn view(&self) -> impl View + '_ {
        RocksView { database: &self.database, snapshot: self.database.snapshot() }
    }

    /// The file `LOCK` of the database, which a running master holds.
    pub fn lock_path(root: &Path) -> Result<PathBuf, EngineError> {
        Ok(folder::data_path(root, folder::current_data(root)?).join("LOCK"))
    }

    /// Reads every block of every table, each of which has a checksum, and names the files in which one is wrong.
    pub fn damaged_files(&self) -> Result<Vec<Damage>, EngineError> {
        let mut damaged = BTreeSet::new();
        for file in self.database.live_files().map_err(engine_error)? {
            let Some(keyspace) = self.options.keyspaces().iter().find(|keyspace| keyspace.name() == file.column_family_name)
            else {
                continue;
            };
            let (Some(start), Some(end)) = (file.start_key, file.end_key) else { continue };
            if let Err(error) = self.read_range(*keyspace, &start, &end) {
                // RocksDB's words name the file, which may be another one of the same range.
                let words = error.to_string();
                let named = table_in(&words).unwrap_or_else(|| file.name.trim_start_matches('/').to_owned());
                damaged.insert((named, words));
            }
        }
        let damaged = damaged.into_iter().map(|(name, what)| Damage { file: self.path.join(name).display().to_string(), what });
        Ok(damaged.collect())
    }

    fn read_range(&self, keyspace: Keyspace, start: &[u8], end: &[u8]) -> Result<(), EngineError> {
        let mut options = ReadOptions::default();
        options.set_verify_checksums(true);
        options.fill_cache(false);
        let mut rows = self.database.raw_iterator_cf_opt(family(&self.database, keyspace)?, options);
        rows.seek(start);
        while rows.key().is_some_and(|key| key <= end) {
            rows.next();
        }
        rows.status().map_err(engine_error)
    }
}

fn open(path: &Path, options: &RocksOptions, recovery: DBRecoveryMode) -> Result<DB, EngineError> {
    let families = options::families(options, &Shared::new(options));
    DB::open_cf_descriptors_read_only(&options::reading(recovery), path, families, false).map_err(engine_error)
}

/// The name of the table file that an error of RocksDB is about.
fn table_in(words: &str) -> Option<String> {
    let end = words.find(".sst")? + ".sst".len();
    let start = words[..end].rfind(['/', ' ']).map_or(0, |position| position + 1);
    Some(words[start..end].to_owned())
}

/// How many bytes the files of an engine take.
pub fn size_bytes(root: &Path) -> Result<u64, EngineError> {
    let path = folder::data_path(root, folder::current_data(root)?);
    let entries = fs::read_dir(&path).map_err(folder::io_error("cannot list", &path))?;
    Ok(entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_an_error_is_found_in_its_words() {
        let words = "block checksum mismatch: stored = 1, computed = 2, type = 4 in /a/data-1/000012.sst offset 0 size 4096";
        assert_eq!(table_in(words).as_deref(), Some("000012.sst"));
        assert_eq!(table_in("no such thing"), None);
    }
}
