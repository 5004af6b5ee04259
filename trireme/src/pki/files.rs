//! Where keys and certificates lie on disk.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use jiff::Timestamp;

use super::{Authority, Identity, Subject};

/// A folder of `<name>.crt` and `<name>.key` files.
pub struct KeyFolder {
    folder: PathBuf,
}

impl KeyFolder {
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    pub fn certificate(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.crt"))
    }

    pub fn key(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.key"))
    }

    /// Writes both files, the key first: a certificate without a key is never left behind.
    pub fn write(&self, name: &str, identity: &Identity) -> Result<()> {
        create_private_folder(&self.folder)?;
        write_private(&self.key(name), identity.key.as_bytes())?;
        write_private(&self.certificate(name), identity.certificate.as_bytes())
    }

    pub fn read(&self, name: &str) -> Result<Identity> {
        let read = |path: PathBuf| fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()));
        Ok(Identity { certificate: read(self.certificate(name))?, key: read(self.key(name))? })
    }

    /// What the folder holds under `name`, or a new certificate for `subject`, written there.
    pub fn read_or_issue(&self, name: &str, authority: &Authority, subject: &Subject, now: Timestamp) -> Result<Identity> {
        if self.certificate(name).exists() {
            return self.read(name);
        }
        let identity = authority.issue(subject, now)?;
        self.write(name, &identity)?;
        Ok(identity)
    }
}

/// Makes a folder that its owner alone may enter.
pub fn create_private_folder(folder: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))
}

/// Writes a file that its owner alone may read, whole or not at all.
pub fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    let write = || -> std::io::Result<()> {
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
