//! Where things lie in a local cluster's folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::pki;

/// A new cluster is not begun on a disk with less space.
const LEAST_FREE_BYTES: u64 = 256 << 20;

/// The folder of one local cluster.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The folder that is named, or the user's default one.
    pub fn find(named: Option<&Path>) -> Result<Self> {
        let root = match named {
            Some(path) => std::path::absolute(path).with_context(|| format!("{} is not a usable path", path.display()))?,
            None if nix::unistd::geteuid().is_root() => PathBuf::from("/var/lib/trireme"),
            None => {
                let home = std::env::home_dir().context("no home folder is known; name a folder with --data-dir")?;
                home.join(".local/share/trireme")
            }
        };
        Ok(Self { root })
    }

    /// Refuses a folder that holds something and has no cluster in it: it would be deleted with the cluster.
    pub fn check_ours(&self) -> Result<()> {
        let entries = match std::fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.root.display())),
        };
        // What a first start that was broken off leaves behind.
        let own = [self.lock(), self.supervisor_log(), pki::partial(&self.spec())];
        for entry in entries {
            let path = entry.with_context(|| format!("cannot read {}", self.root.display()))?.path();
            if !own.contains(&path) {
                bail!("{} is not empty and holds no cluster; choose another folder with --data-dir", self.root.display());
            }
        }
        Ok(())
    }

    /// Refuses a disk on which a new cluster would come to a stop half made.
    pub fn check_space(&self) -> Result<()> {
        // The folder itself is not there yet.
        let existing = self.root.ancestors().find(|folder| folder.exists()).context("no folder of the path exists")?;
        let disk =
            nix::sys::statvfs::statvfs(existing).with_context(|| format!("cannot look at the disk of {}", existing.display()))?;
        let free = disk.blocks_available() as u64 * disk.fragment_size() as u64;
        if free < LEAST_FREE_BYTES {
            bail!(
                "the disk of {} has {} MiB free and a cluster needs at least {}; make space, or choose another folder with --data-dir",
                self.root.display(),
                free >> 20,
                LEAST_FREE_BYTES >> 20
            );
        }
        Ok(())
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the cluster consists of ([`super::spec::ClusterSpec`]).
    pub fn spec(&self) -> PathBuf {
        self.root.join("cluster.yaml")
    }

    /// The authority's key and certificate, and the administrator's.
    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    /// The folder of one master or node.
    pub fn process(&self, name: &str) -> PathBuf {
        self.root.join("processes").join(name)
    }

    /// The certificates of one master or node.
    pub fn process_pki(&self, name: &str) -> PathBuf {
        self.process(name).join("pki")
    }

    pub fn process_log(&self, name: &str) -> PathBuf {
        self.process(name).join("trireme.log")
    }

    pub fn process_pid(&self, name: &str) -> PathBuf {
        self.process(name).join("pid")
    }

    /// The image store that all local nodes share.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// The supervisor's lock: held while one runs.
    pub fn lock(&self) -> PathBuf {
        self.root.join("supervisor.lock")
    }

    pub fn supervisor_log(&self) -> PathBuf {
        self.root.join("supervisor.log")
    }

    /// The socket over which the supervisor takes commands.
    pub fn socket(&self) -> PathBuf {
        self.root.join("supervisor.sock")
    }
}
