//! The folder of the pods as a mount of its own whose later mounts are seen by what was started before: the sandboxes, which
//! have mount namespaces of their own, and container runtimes. A machine's root is not such a mount everywhere.

use std::{fs, io, path::Path};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::tmpfs::mounts_under;

/// Makes the folder a shared mount (mount_namespaces(7)), unless it is a mount already.
///
/// # Errors
/// When the kernel refuses (without root, say).
pub fn share(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    if !mounts_under(folder)?.iter().any(|mounted| mounted == folder) {
        mount(Some(folder), folder, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    }
    Ok(mount(None::<&str>, folder, None::<&str>, MsFlags::MS_SHARED, None::<&str>)?)
}

/// Takes the mount away if nothing is mounted inside, so that the folder can be deleted.
///
/// # Errors
/// When the list of mounts cannot be read, or the kernel refuses.
pub fn release(folder: &Path) -> io::Result<()> {
    match mounts_under(folder)?.as_slice() {
        [only] if only == folder => Ok(umount2(folder, MntFlags::MNT_DETACH)?),
        _ => Ok(()),
    }
}
