//! A pod's volumes on this machine. Where they lie follows the kubelet: `pods/<uid>/volumes/kubernetes.io~<kind>/<name>`.

pub mod atomic;
pub mod host_path;
pub mod payload;
pub mod setup;
pub mod shared;
pub mod subpath;
pub mod tmpfs;

use std::path::{Path, PathBuf};

/// The folder that the folders of all pods are in.
pub fn pods_directory(data_dir: &Path) -> PathBuf {
    data_dir.join("pods")
}

/// The folder of everything of one pod.
pub fn pod_directory(data_dir: &Path, uid: &str) -> PathBuf {
    pods_directory(data_dir).join(uid)
}

/// The folder of a volume of a kind: `empty-dir`, `configmap`, `secret`, `downward-api`, `projected`.
pub fn volume_directory(data_dir: &Path, uid: &str, kind: &str, name: &str) -> PathBuf {
    pod_directory(data_dir, uid).join("volumes").join(format!("kubernetes.io~{kind}")).join(name)
}
