//! Snapshot files on disk: written beside their place and put there whole, read to their end before anything is believed.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufReader, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use trireme_storage::portable::{self, Description, PortableError};

/// How much is read at once.
const READ_BYTES: usize = 1 << 20;

/// Whether a file may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    Refuse,
    Replace,
}

/// A file that is being written; gone unless it is put in its place.
pub struct Partial {
    file: File,
    path: PathBuf,
    place: PathBuf,
    existing: Existing,
    placed: bool,
}

impl Partial {
    /// Begins a file that is to be put at `place`, readable by its owner alone.
    pub fn begin(place: &Path, existing: Existing) -> Result<Self> {
        check_free(place, existing)?;
        let name = place.file_name().with_context(|| format!("{} does not name a file", place.display()))?;
        let path = place.with_file_name(format!(".{}.{}.partial", name.to_string_lossy(), std::process::id()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { file, path, place: place.to_owned(), existing, placed: false })
    }

    pub fn write(&mut self, piece: &[u8]) -> Result<()> {
        self.file.write_all(piece).with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Makes what was written durable, checks that it is a whole snapshot, and puts it in its place.
    pub fn finish(mut self) -> Result<Description> {
        let failed = || format!("cannot write {}", self.path.display());
        self.file.sync_all().with_context(failed)?;
        let description = verify(&self.path).context("what arrived is not a whole snapshot")?;
        // It took a while: somebody may have been faster.
        check_free(&self.place, self.existing)?;
        fs::rename(&self.path, &self.place).with_context(|| format!("cannot write {}", self.place.display()))?;
        self.placed = true;
        let folder = self.place.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.with_context(|| format!("cannot sync {}", folder.display()))?;
        Ok(description)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.placed
            && let Err(error) = fs::remove_file(&self.path)
        {
            remark!("trireme: cannot remove {}: {error}", self.path.display());
        }
    }
}

fn check_free(place: &Path, existing: Existing) -> Result<()> {
    if place.is_dir() {
        bail!("{} is a folder; name a file", place.display());
    }
    if existing == Existing::Refuse && place.symlink_metadata().is_ok() {
        bail!("{} exists; choose another name, or replace it with --force", place.display());
    }
    Ok(())
}

/// Opens a snapshot.
pub fn open(path: &Path) -> Result<BufReader<File>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        bail!("{} is a folder; name a snapshot file", path.display());
    }
    Ok(BufReader::with_capacity(READ_BYTES, file))
}

/// Reads a whole snapshot and tells what it is.
pub fn verify(path: &Path) -> Result<Description> {
    portable::verify(&mut open(path)?).map_err(|error| explain(path, &error))
}

/// What is wrong with a file, in one line.
pub fn explain(path: &Path, error: &PortableError) -> anyhow::Error {
    anyhow::anyhow!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use trireme_storage::{
        command::Command, local::LocalStore, model::Operation, model::Transaction, portable::PortableSnapshot,
    };

    use super::*;

    fn pieces() -> Vec<bytes::Bytes> {
        let store = LocalStore::in_memory().unwrap();
        let put = Operation::put("key", "value");
        store.apply(Command::Transact(Transaction { success: vec![put], ..Transaction::default() })).unwrap();
        let mut snapshot = PortableSnapshot::new(store.state_machine().begin_snapshot().unwrap()).unwrap();
        std::iter::from_fn(|| snapshot.read(100).unwrap()).collect()
    }

    #[test]
    fn a_file_is_written_whole_for_its_owner_and_never_over_another() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("snapshot");
        let write = |existing, pieces: &[bytes::Bytes]| {
            let mut partial = Partial::begin(&place, existing)?;
            pieces.iter().try_for_each(|piece| partial.write(piece))?;
            partial.finish()
        };
        let pieces = pieces();
        assert!(write(Existing::Refuse, &pieces[..pieces.len() - 1]).is_err(), "it is cut off");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(write(Existing::Refuse, &pieces).unwrap().keys, 1);
        assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(write(Existing::Refuse, &pieces).unwrap_err().to_string().contains("--force"));
        write(Existing::Replace, &pieces).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(verify(&place).unwrap().keys, 1);
        fs::write(&place, "something else").unwrap();
        assert!(verify(&place).unwrap_err().to_string().contains("this is not a snapshot of trireme"));
    }
}
