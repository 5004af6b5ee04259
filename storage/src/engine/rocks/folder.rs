//! The folder of an engine: which data folder in it counts, and how that changes all at once.
//!
//! ```text
//! FORMAT        the format's number; written first of all, read before anything is touched
//! reserve       room for what must be written on a full disk; see `reserve`
//! DATA          the name of the data folder that counts; absent means data-1
//! data-N/       RocksDB's files
//! checkpoint-N/ snapshots that are being read; removed at open
//! stage-N/      snapshots that are being received; removed at open
//! ```

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use crate::{engine::EngineError, format::FORMAT};

const FORMAT_FILE: &str = "FORMAT";
const FORMAT_WORDS: &str = "trireme storage format ";
const DATA_FILE: &str = "DATA";
const DATA_PREFIX: &str = "data-";
const TEMPORARY_PREFIXES: [&str; 3] = [DATA_PREFIX, "checkpoint-", "stage-"];

pub(super) fn io_error(doing: &str, path: &Path) -> impl Fn(io::Error) -> EngineError {
    let context = format!("{doing} {}", path.display());
    move |error| EngineError::io(context.clone(), &error)
}

/// Makes the entries of a folder durable.
pub(super) fn sync_folder(path: &Path) -> Result<(), EngineError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(io_error("cannot sync", path))
}

/// Writes a small file durably and all at once.
fn replace_file(root: &Path, name: &str, content: &str) -> Result<(), EngineError> {
    let (path, temporary) = (root.join(name), root.join(format!("{name}.new")));
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write().map_err(io_error("cannot write", &path))?;
    sync_folder(root)
}

fn read_file(path: &Path) -> Result<Option<String>, EngineError> {
    match fs::read_to_string(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("cannot read", path)(error)),
    }
}

/// Makes a folder, and those above it that are missing, durably.
fn create(path: &Path) -> Result<(), EngineError> {
    let missing: Vec<&Path> = path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).collect();
    fs::create_dir_all(path).map_err(io_error("cannot create", path))?;
    for folder in missing {
        let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync_folder(parent.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

/// Checks the folder's format, or begins the folder.
pub(super) fn prepare(root: &Path) -> Result<(), EngineError> {
    if is_begun(root)? {
        return Ok(());
    }
    create(root)?;
    replace_file(root, FORMAT_FILE, &format!("{FORMAT_WORDS}{FORMAT}\n"))
}

/// Whether the folder is an engine's, in a format that is known here. Changes nothing.
pub(super) fn is_begun(root: &Path) -> Result<bool, EngineError> {
    let path = root.join(FORMAT_FILE);
    let Some(content) = read_file(&path)? else { return Ok(false) };
    let number = content.strip_prefix(FORMAT_WORDS).and_then(|number| number.trim_end().parse::<u32>().ok());
    match number {
        Some(found) if found > FORMAT => Err(EngineError::NewerFormat { found, supported: FORMAT }),
        Some(_) => Ok(true),
        None => Err(EngineError::Corruption(format!("{} names no format", path.display()))),
    }
}

/// The number of the data folder that counts.
pub(super) fn current_data(root: &Path) -> Result<u64, EngineError> {
    let path = root.join(DATA_FILE);
    let Some(content) = read_file(&path)? else {
        return Ok(1);
    };
    let number = content.trim_end().strip_prefix(DATA_PREFIX).and_then(|number| number.parse().ok());
    number.ok_or_else(|| EngineError::Corruption(format!("{} names no data folder", path.display())))
}

/// Makes another data folder the one that counts.
pub(super) fn set_current_data(root: &Path, number: u64) -> Result<(), EngineError> {
    replace_file(root, DATA_FILE, &format!("{DATA_PREFIX}{number}\n"))
}

pub(super) fn data_path(root: &Path, number: u64) -> PathBuf {
    root.join(format!("{DATA_PREFIX}{number}"))
}

/// Removes what an earlier process left behind. Call it only when the data folder's lock is held.
pub(super) fn remove_leftovers(root: &Path, current: u64) -> Result<(), EngineError> {
    let keep = data_path(root, current);
    for entry in fs::read_dir(root).map_err(io_error("cannot list", root))? {
        let path = entry.map_err(io_error("cannot list", root))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path != keep && TEMPORARY_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            fs::remove_dir_all(&path).map_err(io_error("cannot remove", &path))?;
        }
    }
    Ok(())
}

/// How long the files of a data folder are.
pub(super) fn size_bytes(data: &Path) -> u64 {
    bytes_of(data, |_| true)
}

/// How long the files of a data folder are whose content RocksDB may have to write again when it opens.
pub(super) fn log_bytes(data: &Path) -> u64 {
    bytes_of(data, |file| file.extension().is_some_and(|extension| extension == "log"))
}

fn bytes_of(data: &Path, is_meant: impl Fn(&Path) -> bool) -> u64 {
    // Files come and go while one looks.
    let Ok(entries) = fs::read_dir(data) else { return 0 };
    let files = entries.flatten().filter(|entry| is_meant(&entry.path()));
    files.filter_map(|entry| entry.metadata().ok()).map(|file| file.len()).sum()
}

/// Whether a file of `size_bytes` could be written now.
pub(super) fn has_space(root: &Path, size_bytes: u64) -> bool {
    let path = root.join("probe.new");
    let write = || {
        let mut file = File::create(&path)?;
        io::copy(&mut io::repeat(0).take(size_bytes), &mut file)?;
        file.sync_all()
    };
    let written: io::Result<()> = write();
    let removed = fs::remove_file(&path);
    written.and(removed).is_ok()
}
