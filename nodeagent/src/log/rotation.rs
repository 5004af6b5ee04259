//! Keeping log files small: a file that has grown too large is renamed, the runtime opens a new one, and the oldest go.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use crate::runtime::{ContainerState, ContainerStatus, Runtime};

/// Rotates the logs of running containers that are larger than `max_bytes`, keeping `max_files` of each.
pub async fn rotate(runtime: &dyn Runtime, containers: &[ContainerStatus], max_bytes: u64, max_files: usize, now: Timestamp) {
    for container in containers.iter().filter(|container| container.state == ContainerState::Running) {
        let large = fs::metadata(&container.log_path).is_ok_and(|metadata| metadata.len() > max_bytes);
        if !large {
            continue;
        }
        if let Err(error) = rotate_one(runtime, container, max_files, now).await {
            tracing::warn!(log = %container.log_path.display(), error, "the log could not be rotated");
        }
    }
}

async fn rotate_one(runtime: &dyn Runtime, container: &ContainerStatus, max_files: usize, now: Timestamp) -> Result<(), String> {
    let path = &container.log_path;
    // The current file and the one about to be made count.
    remove_oldest(path, max_files.saturating_sub(2)).map_err(|error| error.to_string())?;
    let aside = rotated_name(path, now);
    fs::rename(path, &aside).map_err(|error| error.to_string())?;
    if let Err(error) = runtime.reopen_log(&container.id).await {
        // The container still writes to the old file: it goes back to where readers look.
        fs::rename(&aside, path).map_err(|error| error.to_string())?;
        return Err(error.to_string());
    }
    Ok(())
}

fn rotated_name(path: &Path, now: Timestamp) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(now.strftime(".%Y%m%d-%H%M%S.%6f").to_string());
    PathBuf::from(name)
}

/// The rotated files of a log, oldest first.
///
/// # Errors
/// When the folder cannot be read.
pub fn rotated_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Vec::new()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn remove_oldest(path: &Path, keep: usize) -> io::Result<()> {
    let files = rotated_files(path)?;
    let surplus = files.len().saturating_sub(keep);
    files[..surplus].iter().try_for_each(fs::remove_file)
}

/// Removes every file of one instance's log.
///
/// # Errors
/// When one cannot be removed.
pub fn remove_all(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match remove_oldest(path, 0) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_files_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        fs::write(&path, "now").unwrap();
        fs::write(folder.path().join("10.log"), "another instance").unwrap();
        for second in 0..5 {
            fs::write(rotated_name(&path, Timestamp::from_second(second).unwrap()), second.to_string()).unwrap();
        }
        remove_oldest(&path, 2).unwrap();
        let kept: Vec<String> = rotated_files(&path).unwrap().iter().map(|file| fs::read_to_string(file).unwrap()).collect();
        assert_eq!(kept, ["3", "4"]);
        remove_all(&path).unwrap();
        remove_all(&path).unwrap();
        assert!(!path.exists() && rotated_files(&path).unwrap().is_empty());
        assert!(folder.path().join("10.log").exists());
    }
}
