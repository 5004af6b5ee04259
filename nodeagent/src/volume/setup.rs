//! Making a pod's volumes, keeping their files up to date, and taking them away.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Volume};

use super::{atomic, host_path, payload, pod_directory, tmpfs, volume_directory};
use crate::{
    pod::{bundle::Bundle, fields::Downward, resources},
    runtime::Fidelity,
};

/// What volumes are made with.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    pub data_dir: &'a Path,
    pub uid: &'a str,
    pub downward: Downward<'a>,
    pub bundle: &'a Bundle,
    pub fs_group: Option<i64>,
    pub fidelity: Fidelity,
    pub now: Timestamp,
}

/// Where each volume is on the machine.
pub type Paths = BTreeMap<String, PathBuf>;

/// A volume that could not be set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub volume: String,
    pub message: String,
}

/// Where the files of a volume are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Medium {
    Disk,
    Memory,
}

impl Setup<'_> {
    /// Makes every volume; what is there already is brought up to date. Blocking.
    ///
    /// # Errors
    /// The first volume that cannot be set up.
    pub fn all(&self, volumes: &[Volume]) -> Result<Paths, Failure> {
        let one = |volume: &Volume| match self.one(volume) {
            Ok(path) => Ok((volume.name.clone(), path)),
            Err(message) => Err(Failure { volume: volume.name.clone(), message }),
        };
        volumes.iter().map(one).collect()
    }

    fn one(&self, volume: &Volume) -> Result<PathBuf, String> {
        if let Some(source) = &volume.host_path {
            let path = PathBuf::from(&source.path);
            if self.fidelity == Fidelity::Real {
                host_path::prepare(&path, source.type_.as_deref().unwrap_or_default())?;
            }
            return Ok(path);
        }
        if let Some(source) = &volume.empty_dir {
            return self.empty_dir(&volume.name, source).map_err(|error| error.to_string());
        }
        let kind = match volume {
            Volume { config_map: Some(_), .. } => "configmap",
            Volume { secret: Some(_), .. } => "secret",
            Volume { downward_api: Some(_), .. } => "downward-api",
            Volume { projected: Some(_), .. } => "projected",
            _ => return Err("the volume's type is not supported by this node".to_owned()),
        };
        let files = payload::of_volume(volume, self.downward, self.bundle).ok_or("the volume has no source")??;
        let target = volume_directory(self.data_dir, self.uid, kind, &volume.name);
        // Secrets and tokens never reach a disk.
        let medium = if volume.config_map.is_some() { Medium::Disk } else { Medium::Memory };
        self.write(&target, &files, medium).map_err(|error| error.to_string())?;
        Ok(target)
    }

    fn write(&self, target: &Path, files: &payload::Payload, medium: Medium) -> io::Result<()> {
        let is_new = !target.exists();
        fs::create_dir_all(target)?;
        if medium == Medium::Memory && self.fidelity == Fidelity::Real {
            tmpfs::ensure(target, None)?;
        }
        if is_new {
            fs::set_permissions(target, fs::Permissions::from_mode(0o755))?;
            self.give_to_group(target)?;
        }
        let mut files = files.clone();
        if self.fs_group.is_some() {
            // The group must be able to read what it owns.
            files.values_mut().for_each(|file| file.mode |= 0o440);
        }
        atomic::write(target, &files, self.now, |made| self.give_to_group(made)).map(|_| ())
    }

    fn empty_dir(&self, name: &str, source: &EmptyDirVolumeSource) -> io::Result<PathBuf> {
        let target = volume_directory(self.data_dir, self.uid, "empty-dir", name);
        let is_new = !target.exists();
        fs::create_dir_all(&target)?;
        if source.medium.as_deref() == Some("Memory") && self.fidelity == Fidelity::Real {
            let limit = source
                .size_limit
                .as_ref()
                .and_then(|limit| resources::whole(&limit.0))
                .and_then(|limit| u64::try_from(limit).ok());
            tmpfs::ensure(&target, limit)?;
        }
        if is_new {
            fs::set_permissions(&target, fs::Permissions::from_mode(0o777))?;
            self.give_to_group(&target)?;
        }
        Ok(target)
    }

    /// `fsGroup`: the group owns the volume, and new files are the group's too.
    fn give_to_group(&self, target: &Path) -> io::Result<()> {
        let Some(group) = self.fs_group.and_then(|group| u32::try_from(group).ok()).filter(|_| self.fidelity == Fidelity::Real)
        else {
            return Ok(());
        };
        give(target, group)
    }
}

fn give(path: &Path, group: u32) -> io::Result<()> {
    let kind = fs::symlink_metadata(path)?;
    if kind.file_type().is_symlink() {
        return std::os::unix::fs::lchown(path, None, Some(group));
    }
    chown(path, None, Some(group))?;
    if kind.is_dir() {
        let mode = kind.permissions().mode() & 0o777;
        fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o2070))?;
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), group)?;
        }
    }
    Ok(())
}

/// Takes away everything of a pod: its mounts, then its folder. Blocking.
///
/// # Errors
/// When something cannot be unmounted or removed.
pub fn tear_down(data_dir: &Path, uid: &str) -> io::Result<()> {
    let folder = pod_directory(data_dir, uid);
    if !folder.exists() {
        return Ok(());
    }
    tmpfs::unmount_under(&folder)?;
    fs::remove_dir_all(&folder)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;
    use crate::config::Capacity;

    #[test]
    fn volumes_are_made_and_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "web", "labels": { "a": "b" } },
            "spec": { "containers": [], "volumes": [
                { "name": "scratch", "emptyDir": {} },
                { "name": "info", "downwardAPI": { "items": [{ "path": "name", "fieldRef": { "fieldPath": "metadata.name" } }] } },
                { "name": "host", "hostPath": { "path": "/etc", "type": "Directory" } }] },
        }))
        .unwrap();
        let capacity = Capacity { cpu_millis: 1, memory_bytes: 1, ephemeral_storage_bytes: 1 };
        let bundle = Bundle::default();
        let setup = Setup {
            data_dir: folder.path(),
            uid: "u",
            downward: Downward { pod: &pod, capacity, host_ip: "", pod_ips: &[] },
            bundle: &bundle,
            fs_group: None,
            fidelity: Fidelity::Simulated,
            now: Timestamp::UNIX_EPOCH,
        };
        let volumes = pod.spec.as_ref().unwrap().volumes.as_ref().unwrap();
        let paths = setup.all(volumes).unwrap();
        assert_eq!(fs::metadata(&paths["scratch"]).unwrap().permissions().mode() & 0o777, 0o777);
        assert_eq!(fs::read_to_string(paths["info"].join("name")).unwrap(), "web");
        assert_eq!(paths["host"], Path::new("/etc"));
        fs::write(paths["scratch"].join("kept"), "x").unwrap();
        setup.all(volumes).unwrap();
        assert!(paths["scratch"].join("kept").exists(), "setting up again keeps the content");
        let unsupported: Volume = serde_json::from_value(json!({ "name": "x", "nfs": { "path": "/", "server": "s" } })).unwrap();
        assert_eq!(setup.all(&[unsupported]).unwrap_err().volume, "x");
        tear_down(folder.path(), "u").unwrap();
        assert!(!pod_directory(folder.path(), "u").exists());
        assert!(Path::new("/etc").exists());
    }
}
