//! Files that change all at once (`pkg/volume/util/atomic_writer.go`): the real files are in a folder with a time in its
//! name, `..data` is a symlink to it that is swapped by a rename, and what users see are symlinks through `..data`.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Component, Path, PathBuf},
};

use jiff::Timestamp;

use super::payload::Payload;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// Whether a write changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Written,
    None,
}

/// Makes the files in `target` those of `payload`. Files stay as they are when nothing differs. `finish` gets the folder of new
/// files before anybody sees them, and makes them anybody's who is to read them.
///
/// # Errors
/// When a path leaves the volume, the disk fails, or `finish` does.
pub fn write(
    target: &Path,
    payload: &Payload,
    now: Timestamp,
    finish: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<Change> {
    for path in payload.keys() {
        let inside =
            path.components().all(|part| matches!(part, Component::Normal(name) if !name.to_string_lossy().starts_with("..")));
        if !inside || path.as_os_str().is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path {:?} in volume", path.display())));
        }
    }
    fs::create_dir_all(target)?;
    let current = fs::read_link(target.join(DATA)).ok().map(|name| target.join(name));
    if let Some(current) = &current
        && current.is_dir()
        && same(current, payload)?
    {
        link_names(target, payload)?;
        return Ok(Change::None);
    }
    let name = unused_name(target, now);
    let folder = target.join(&name);
    fs::create_dir(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let path = folder.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, &file.data)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
    }
    finish(&folder)?;
    let new_data = target.join(NEW_DATA);
    match fs::remove_file(&new_data) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(&name, &new_data)?;
    fs::rename(&new_data, target.join(DATA))?;
    link_names(target, payload)?;
    remove_stale(target, payload, &name)?;
    Ok(Change::Written)
}

fn unused_name(target: &Path, now: Timestamp) -> String {
    let stamp = now.strftime("..%Y_%m_%d_%H_%M_%S.%9f").to_string();
    let mut name = stamp.clone();
    let mut number = 1;
    while target.join(&name).exists() {
        name = format!("{stamp}_{number}");
        number += 1;
    }
    name
}

/// Whether the files are there with this content and these modes, and no others.
fn same(folder: &Path, payload: &Payload) -> io::Result<bool> {
    if files_under(folder, Path::new(""))? != payload.keys().cloned().collect() {
        return Ok(false);
    }
    for (path, file) in payload {
        let path = folder.join(path);
        if fs::metadata(&path)?.permissions().mode() & 0o777 != file.mode || fs::read(&path)? != file.data {
            return Ok(false);
        }
    }
    Ok(true)
}

fn files_under(folder: &Path, relative: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = relative.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            files.extend(files_under(&entry.path(), &path)?);
        } else {
            files.insert(path);
        }
    }
    Ok(files)
}

/// The first parts of the files' paths: what users see in the volume's top folder.
fn top_names(payload: &Payload) -> BTreeSet<PathBuf> {
    payload.keys().filter_map(|path| path.components().next()).map(|part| PathBuf::from(part.as_os_str())).collect()
}

fn link_names(target: &Path, payload: &Payload) -> io::Result<()> {
    for name in top_names(payload) {
        let link = target.join(&name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(&name), link)?;
        }
    }
    Ok(())
}

fn remove_stale(target: &Path, payload: &Payload, current: &str) -> io::Result<()> {
    let names = top_names(payload);
    for entry in fs::read_dir(target)? {
        let entry = entry?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        if text == DATA || text == current {
            continue;
        }
        if text.starts_with("..") && entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else if entry.file_type()?.is_symlink() && !names.contains(Path::new(&name)) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::payload::File;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files.iter().map(|(path, data)| (PathBuf::from(path), File { data: data.as_bytes().to_vec(), mode: 0o640 })).collect()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn visible(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with("..")).collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_swapped_together() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("volume");
        assert_eq!(write(&target, &payload(&[("a", "1"), ("sub/b", "2")]), at(1), |_| Ok(())).unwrap(), Change::Written);
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(target.join("sub/b")).unwrap(), "2");
        assert_eq!(fs::metadata(target.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        let first = fs::read_link(target.join(DATA)).unwrap();
        assert_eq!(write(&target, &payload(&[("a", "1"), ("sub/b", "2")]), at(2), |_| Ok(())).unwrap(), Change::None);
        assert_eq!(fs::read_link(target.join(DATA)).unwrap(), first);
        assert_eq!(write(&target, &payload(&[("a", "9"), ("c", "3")]), at(3), |_| Ok(())).unwrap(), Change::Written);
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "9");
        assert_eq!(visible(&target), ["a", "c"]);
        assert!(!target.join(first).exists(), "the old files are gone");
    }

    #[test]
    fn new_files_are_finished_before_they_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("volume");
        for content in ["1", "2"] {
            let before = fs::read_to_string(target.join("a")).ok();
            let finish = |made: &Path| {
                assert_eq!(fs::read_to_string(made.join("a"))?, content);
                assert_eq!(fs::read_to_string(target.join("a")).ok(), before);
                fs::set_permissions(made.join("a"), fs::Permissions::from_mode(0o600))
            };
            write(&target, &payload(&[("a", content)]), at(1), finish).unwrap();
            assert_eq!(fs::metadata(target.join("a")).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_path_cannot_leave_the_volume() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["../x", "/etc/passwd", "..data", "a/../../b", ""] {
            assert!(write(folder.path(), &payload(&[(path, "")]), at(1), |_| Ok(())).is_err(), "{path}");
        }
        assert!(visible(folder.path()).is_empty());
    }
}
