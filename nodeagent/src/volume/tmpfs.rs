//! Memory-backed folders, and taking mounts away again.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Mounts a tmpfs on `target`, unless one is there.
///
/// # Errors
/// When the kernel refuses (without root, say).
pub fn ensure(target: &Path, size_bytes: Option<u64>) -> io::Result<()> {
    if mounts_under(target)?.iter().any(|mounted| mounted == target) {
        return Ok(());
    }
    let size = size_bytes.map(|bytes| format!("size={bytes}"));
    mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, size.as_deref())?;
    Ok(())
}

/// Unmounts everything at and under `folder`.
///
/// # Errors
/// When the list of mounts cannot be read, or one cannot be unmounted.
pub fn unmount_under(folder: &Path) -> io::Result<()> {
    let mut mounts = mounts_under(folder)?;
    // The innermost first.
    mounts.sort_by_key(|mounted| std::cmp::Reverse(mounted.components().count()));
    for mounted in mounts {
        umount2(&mounted, MntFlags::MNT_DETACH)?;
    }
    Ok(())
}

/// The mounts at and under `folder`, by the folders that they are on.
///
/// # Errors
/// When the list of mounts cannot be read.
pub fn mounts_under(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mount_points(&table).filter(|mounted| mounted.starts_with(folder)).collect())
}

/// The fifth field of each line, with its octal escapes read (proc(5)).
fn mount_points(table: &str) -> impl Iterator<Item = PathBuf> {
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(|escaped| {
        let text = escaped.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\");
        PathBuf::from(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_from_the_table() {
        let table = "36 35 98:0 / /mnt/a\\040b rw,noatime master:1 - ext3 /dev/root rw\n37 36 0:5 / /mnt rw - tmpfs tmpfs rw\n";
        let points: Vec<PathBuf> = mount_points(table).collect();
        assert_eq!(points, [PathBuf::from("/mnt/a b"), PathBuf::from("/mnt")]);
    }
}
