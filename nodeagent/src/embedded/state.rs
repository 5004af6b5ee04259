//! What the embedded runtime keeps on disk, so that a restarted agent knows what runs.
//!
//! ```text
//! sandboxes/<id>/sandbox.json                     SandboxRecord, by the agent
//! sandboxes/<id>/shim.sock, shim.json, shim.log   the shim's socket, ShimRecord, its error output
//! sandboxes/<id>/containers/<id>/container.json   ContainerRecord, by the agent
//! sandboxes/<id>/containers/<id>/status.json      ContainerOutcome, by the shim
//! sandboxes/<id>/libcontainer/<id>/               libcontainer's own state
//! ```

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    image::{ProcessDefaults, write_atomically},
    runtime::{ContainerConfig, PodIdentity, SandboxConfig},
};

/// A sandbox as the agent made it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxRecord {
    pub id: String,
    pub config: SandboxConfig,
    pub created_at: Timestamp,
    /// The pod's cgroup, absolute in each hierarchy.
    pub cgroup: PathBuf,
    /// Empty until the network is set up, and for pods on the node's network.
    pub addresses: Vec<IpAddr>,
    /// Whether everything that makes the sandbox is done. One that is not complete is removed at start-up.
    pub complete: bool,
    /// Set when the agent stopped it.
    pub stopped: bool,
}

/// The shim that holds a sandbox, as it wrote it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShimRecord {
    pub process: i32,
    /// The process that holds a shared process namespace.
    pub pause: Option<i32>,
}

/// A container as the agent made it: all that the shim needs to start it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub id: String,
    pub sandbox_id: String,
    pub pod: PodIdentity,
    pub config: ContainerConfig,
    pub image_id: String,
    pub image_reference: String,
    pub defaults: ProcessDefaults,
    /// The folder that `layers` are names in.
    pub layers_folder: PathBuf,
    /// The topmost first, as overlayfs takes them.
    pub layers: Vec<String>,
    pub cgroup: PathBuf,
    pub log_path: PathBuf,
    pub created_at: Timestamp,
}

/// What became of a started container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerOutcome {
    pub started_at: Option<Timestamp>,
    pub process: Option<i32>,
    pub finished_at: Option<Timestamp>,
    pub exit_code: i32,
    pub signal: i32,
    pub reason: String,
    pub message: String,
}

/// The paths of a sandbox.
#[derive(Clone, Debug)]
pub struct SandboxFolder(pub PathBuf);

impl SandboxFolder {
    pub fn record(&self) -> PathBuf {
        self.0.join("sandbox.json")
    }

    pub fn shim_record(&self) -> PathBuf {
        self.0.join("shim.json")
    }

    pub fn socket(&self) -> PathBuf {
        self.0.join("shim.sock")
    }

    pub fn containers(&self) -> PathBuf {
        self.0.join("containers")
    }

    pub fn container(&self, id: &str) -> ContainerFolder {
        ContainerFolder(self.containers().join(id))
    }

    pub fn libcontainer(&self) -> PathBuf {
        self.0.join("libcontainer")
    }

    pub fn shared_memory(&self) -> PathBuf {
        self.0.join("shm")
    }

    pub fn resolver(&self) -> PathBuf {
        self.0.join("resolv.conf")
    }

    pub fn hostname(&self) -> PathBuf {
        self.0.join("hostname")
    }
}

/// The paths of a container; the folder is its OCI bundle.
#[derive(Clone, Debug)]
pub struct ContainerFolder(pub PathBuf);

impl ContainerFolder {
    pub fn record(&self) -> PathBuf {
        self.0.join("container.json")
    }

    pub fn outcome(&self) -> PathBuf {
        self.0.join("status.json")
    }

    pub fn root(&self) -> PathBuf {
        self.0.join("rootfs")
    }
}

/// Writes a record so that a reader sees the old one or the new one.
pub fn save<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    write_atomically(path, &serde_json::to_vec(record)?)
}

/// Reads a record; `None` when there is none.
pub fn load<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
