//! Container logs on disk, in the CRI's format: `<data>/logs/pods/<namespace>_<name>_<uid>/<container>/<attempt>.log`.

pub mod line;
pub mod options;
pub mod reader;
pub mod rotation;

use std::path::{Path, PathBuf};

use crate::runtime::PodIdentity;

/// The folder of all pods' logs.
pub fn root(data_dir: &Path) -> PathBuf {
    data_dir.join("logs").join("pods")
}

/// The folder of one pod's logs.
pub fn pod_directory(data_dir: &Path, pod: &PodIdentity) -> PathBuf {
    root(data_dir).join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid))
}
