//! `hostPath` volumes and their `type`.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
};

/// Makes or checks what the volume's type asks for.
///
/// # Errors
/// A message for `FailedMount`.
pub fn prepare(path: &Path, kind: &str) -> Result<(), String> {
    let failed = |error: io::Error| format!("hostPath {}: {error}", path.display());
    let found = fs::metadata(path).ok().map(|metadata| metadata.file_type());
    let check = |fits: bool, what: &str| {
        if fits { Ok(()) } else { Err(format!("hostPath type check failed: {} is not a {what}", path.display())) }
    };
    match kind {
        // Nothing is checked; but what is missing is made, as the container runtimes do.
        "" if found.is_some() => Ok(()),
        "" | "DirectoryOrCreate" => {
            if found.is_none() {
                fs::create_dir_all(path).map_err(failed)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(failed)?;
            }
            check(path.is_dir(), "directory")
        }
        "FileOrCreate" => {
            if found.is_none() {
                fs::File::create(path).map_err(failed)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(failed)?;
            }
            check(path.is_file(), "file")
        }
        "Directory" => check(found.is_some_and(|kind| kind.is_dir()), "directory"),
        "File" => check(found.is_some_and(|kind| kind.is_file()), "file"),
        "Socket" => check(found.is_some_and(|kind| kind.is_socket()), "socket file"),
        "CharDevice" => check(found.is_some_and(|kind| kind.is_char_device()), "character device"),
        "BlockDevice" => check(found.is_some_and(|kind| kind.is_block_device()), "block device"),
        other => Err(format!("{other} is an invalid volume type")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_made_or_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        prepare(&path("new/folder"), "DirectoryOrCreate").unwrap();
        prepare(&path("new/file"), "FileOrCreate").unwrap();
        prepare(&path("new/folder"), "Directory").unwrap();
        prepare(&path("new/file"), "File").unwrap();
        prepare(&path("new/file"), "").unwrap();
        assert!(!path("made").exists());
        prepare(&path("made"), "").unwrap();
        assert!(path("made").is_dir());
        prepare(Path::new("/dev/null"), "CharDevice").unwrap();
        for (name, kind, message) in [
            ("new/file", "Directory", "is not a directory"),
            ("new/folder", "FileOrCreate", "is not a file"),
            ("absent", "Socket", "is not a socket file"),
            ("absent", "Nonsense", "Nonsense is an invalid volume type"),
        ] {
            let error = prepare(&path(name), kind).unwrap_err();
            assert!(error.ends_with(message), "{error}");
        }
    }
}
