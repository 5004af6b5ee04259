//! `subPath`: a file or folder inside a volume, which must not lead out of it.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
};

/// The real path of `subpath` in `volume`; a missing one is made as a folder.
///
/// # Errors
/// A message, when the path leaves the volume or cannot be made.
pub fn resolve(volume: &Path, subpath: &str) -> Result<PathBuf, String> {
    let relative = Path::new(subpath);
    if relative.is_absolute() || relative.components().any(|part| part == Component::ParentDir) {
        return Err(format!("subPath {subpath:?} must be relative and must not contain '..'"));
    }
    let failed = |error: io::Error| format!("failed to prepare subPath {subpath:?}: {error}");
    let root = volume.canonicalize().map_err(failed)?;
    // Made part by part: a symlink in the middle is followed and then checked, never created through.
    let mut path = root.clone();
    for part in relative.components() {
        path.push(part);
        if fs::symlink_metadata(&path).is_err() {
            fs::create_dir(&path).map_err(failed)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(failed)?;
        }
        path = path.canonicalize().map_err(failed)?;
        if !path.starts_with(&root) {
            return Err(format!("subPath {subpath:?} leads out of the volume"));
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn stays_in_the_volume() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let volume = root.join("volume");
        fs::create_dir(&volume).unwrap();
        assert_eq!(resolve(&volume, "a/b").unwrap(), volume.join("a/b"));
        assert!(volume.join("a/b").is_dir());
        symlink("a", volume.join("inside")).unwrap();
        assert_eq!(resolve(&volume, "inside/b").unwrap(), volume.join("a/b"));
        symlink("/etc", volume.join("out")).unwrap();
        assert_eq!(resolve(&volume, "out/passwd").unwrap_err(), "subPath \"out/passwd\" leads out of the volume");
        assert!(resolve(&volume, "../x").is_err());
        assert!(resolve(&volume, "/x").is_err());
    }
}
