//! `subPath`: a file or folder inside a volume, which must not lead out of it.
//!
//! Whoever can write to the volume can change it while this looks. So the way is walked by descriptors that the kernel keeps
//! below the volume, and what was reached is bound onto a folder of the agent's own, which is what a container gets
//! (CVE-2021-25741; `pkg/volume/util/subpath` of Kubernetes).

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, fstat, mkdirat},
};

use super::{pod_directory, tmpfs::mounts_under};

/// Where one mount of a container with a `subPath` is bound to.
pub fn place(data_dir: &Path, uid: &str, container: &str, number: usize) -> PathBuf {
    pod_directory(data_dir, uid).join("volume-subpaths").join(container).join(number.to_string())
}

/// Whether the path as text stays inside a volume.
///
/// # Errors
/// A message, when it does not.
pub fn verify(subpath: &str) -> Result<(), String> {
    let relative = Path::new(subpath);
    if relative.is_absolute() || relative.components().any(|part| part == Component::ParentDir) {
        return Err(format!("subPath {subpath:?} must be relative and must not contain '..'"));
    }
    Ok(())
}

/// Binds what `subpath` leads to in `volume` onto `place`; a missing one is made as a folder. What an earlier instance of the
/// container had there is replaced.
///
/// # Errors
/// A message, when the path leaves the volume or cannot be made.
pub fn bind(volume: &Path, subpath: &str, place: &Path) -> Result<(), String> {
    let reached = reach(volume, subpath)?;
    bind_to(&reached, place).map_err(|error| format!("failed to prepare subPath {subpath:?}: {error}"))
}

/// Walks from the volume, making what is missing, and never leaves it, whatever symlinks there are or come meanwhile.
fn reach(volume: &Path, subpath: &str) -> Result<OwnedFd, String> {
    verify(subpath)?;
    let failed = |error: io::Error| format!("failed to prepare subPath {subpath:?}: {error}");
    let errno = |error: Errno| match error {
        Errno::EXDEV | Errno::ELOOP => format!("subPath {subpath:?} leads out of the volume"),
        error => failed(error.into()),
    };
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let root = open(volume, flags | OFlag::O_DIRECTORY, Mode::empty()).map_err(errno)?;
    let mode = fstat(&root).map_err(errno)?.st_mode & 0o7777;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut walked = PathBuf::from(".");
    let mut reached = openat2(&root, &walked, how).map_err(errno)?;
    for component in Path::new(subpath).components() {
        let Component::Normal(name) = component else { continue };
        walked.push(name);
        reached = match openat2(&root, &walked, how) {
            Ok(found) => found,
            Err(Errno::ENOENT) => {
                mkdirat(&reached, name, Mode::from_bits_truncate(0o755)).map_err(errno)?;
                let made = openat2(&root, &walked, how.flags(flags | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)).map_err(errno)?;
                // As the volume itself: whoever may write there may write here.
                fs::set_permissions(descriptor(&made), fs::Permissions::from_mode(mode)).map_err(failed)?;
                made
            }
            Err(error) => return Err(errno(error)),
        };
    }
    Ok(reached)
}

fn bind_to(reached: &OwnedFd, place: &Path) -> io::Result<()> {
    if mounts_under(place)?.iter().any(|mounted| mounted == place) {
        umount2(place, MntFlags::MNT_DETACH)?;
    }
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder)?;
    }
    let is_folder = SFlag::from_bits_truncate(fstat(reached.as_fd())?.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR;
    match fs::symlink_metadata(place) {
        Ok(found) if found.is_dir() != is_folder => {
            if found.is_dir() {
                fs::remove_dir(place)?
            } else {
                fs::remove_file(place)?
            }
        }
        _ => {}
    }
    if is_folder {
        fs::create_dir_all(place)?;
    } else {
        drop(fs::File::options().create(true).append(true).open(place)?);
    }
    Ok(mount(Some(&descriptor(reached)), place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

/// A path to what the descriptor is of, and to nothing else.
fn descriptor(of: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", of.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn leads_to(volume: &Path, subpath: &str) -> Result<PathBuf, String> {
        reach(volume, subpath).map(|reached| fs::read_link(descriptor(&reached)).unwrap())
    }

    #[test]
    fn stays_in_the_volume() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let volume = root.join("volume");
        fs::create_dir(&volume).unwrap();
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o770)).unwrap();
        assert_eq!(leads_to(&volume, "a/b").unwrap(), volume.join("a/b"));
        assert_eq!(fs::metadata(volume.join("a/b")).unwrap().permissions().mode() & 0o777, 0o770);
        symlink("a", volume.join("inside")).unwrap();
        assert_eq!(leads_to(&volume, "inside/b").unwrap(), volume.join("a/b"));
        fs::write(volume.join("file"), "").unwrap();
        assert_eq!(leads_to(&volume, "file").unwrap(), volume.join("file"));
        for target in ["/etc", "../outside", "/proc/self/root"] {
            let link = volume.join("out");
            symlink(target, &link).unwrap();
            for subpath in ["out", "out/passwd"] {
                let refused = leads_to(&volume, subpath).unwrap_err();
                assert_eq!(refused, format!("subPath {subpath:?} leads out of the volume"), "{target}");
            }
            fs::remove_file(link).unwrap();
        }
        assert!(leads_to(&volume, "../x").is_err());
        assert!(leads_to(&volume, "/x").is_err());
        assert!(!root.join("outside").exists());
    }

    #[test]
    #[ignore = "mounts, and so needs root"]
    fn what_is_bound_stays_what_was_reached() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let volume = root.join("volume");
        fs::create_dir_all(volume.join("data")).unwrap();
        fs::write(volume.join("data/own"), "mine").unwrap();
        let target = place(&root, "u", "c", 0);
        bind(&volume, "data", &target).unwrap();
        // The pod swaps the folder for a link to the node's own.
        fs::rename(volume.join("data"), volume.join("moved")).unwrap();
        symlink("/etc", volume.join("data")).unwrap();
        assert_eq!(fs::read_to_string(target.join("own")).unwrap(), "mine");
        assert!(!target.join("passwd").exists());
        assert!(bind(&volume, "data", &target).is_err(), "and the next instance is refused");
        // A file takes the place of a folder.
        bind(&volume, "moved/own", &target).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "mine");
        crate::volume::setup::tear_down(&root, "u").unwrap();
        assert!(!root.join("pods/u").exists());
        assert_eq!(fs::read_to_string(volume.join("moved/own")).unwrap(), "mine", "only the mount is taken away");
    }
}
