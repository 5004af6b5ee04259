//! Room that is kept on an engine's disk for what must be written although the disk is full: what was accepted before that was
//! known, votes, and what RocksDB needs to open anew and to give space back.
//!
//! The room is a file of its own. It is given up when a write finds no space, and made again when there is plenty.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU8, Ordering},
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
    sys::statvfs::statvfs,
};
use parking_lot::Mutex;

use super::folder;
use crate::engine::Space;

const FILE: &str = "reserve";
const LEAST_BYTES: u64 = 1 << 20;
const MOST_BYTES: u64 = 32 << 20;
/// Of a small disk no more than such a part is set aside, and of what is free at the beginning no more than such a part.
const PART_OF_DISK: u64 = 32;
const PART_OF_FREE: u64 = 16;
/// Space is short when less than such a part of the disk is free, and less than so much: RocksDB takes as much at one stroke for a
/// new log file.
const SHORT_PART_OF_DISK: u64 = 8;
const SHORT_BYTES: u64 = 32 << 20;

/// The room of one engine.
pub(super) struct Reserve {
    root: PathBuf,
    size_bytes: u64,
    space: AtomicU8,
    /// Held by whoever makes the file or gives it up.
    changing: Mutex<()>,
}

/// What is to be done about the reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Note(Space),
    /// Make the file; there is room enough then.
    Make,
}

/// What `free_bytes`, besides the reserve of `size_bytes`, mean for an engine that was seen as `before`, on a disk on which less than
/// `short_bytes` is little. Space counts as returned only when there is half as much again, so that the verdict does not flutter.
fn judge(free_bytes: u64, size_bytes: u64, short_bytes: u64, before: Space) -> Step {
    let enough = short_bytes + short_bytes / 2;
    match before {
        Space::Exhausted if free_bytes >= enough + size_bytes => Step::Make,
        Space::Exhausted => Step::Note(Space::Exhausted),
        Space::Low if free_bytes < enough => Step::Note(Space::Low),
        Space::Low => Step::Note(Space::Enough),
        Space::Enough if free_bytes < short_bytes => Step::Note(Space::Low),
        Space::Enough => Step::Note(Space::Enough),
    }
}

/// The most that is set aside on a disk of that size.
fn most_bytes(disk_bytes: u64) -> u64 {
    (disk_bytes / PART_OF_DISK).clamp(LEAST_BYTES, MOST_BYTES)
}

fn wanted_bytes(disk_bytes: u64, free_bytes: u64) -> u64 {
    most_bytes(disk_bytes).min(free_bytes / PART_OF_FREE).max(LEAST_BYTES)
}

/// Less free space than this is little.
fn short_bytes(disk_bytes: u64) -> u64 {
    (disk_bytes / SHORT_PART_OF_DISK).min(SHORT_BYTES)
}

/// The size of the disk under a folder and what is free on it.
fn disk(path: &Path) -> Result<(u64, u64), Errno> {
    let disk = statvfs(path)?;
    let block = disk.fragment_size() as u64;
    Ok((disk.blocks() as u64 * block, disk.blocks_available() as u64 * block))
}

impl Reserve {
    /// Finds the reserve in the engine's folder, or makes it if there is room.
    pub fn open(root: &Path) -> Self {
        let path = root.join(FILE);
        let mut found = fs::metadata(&path).map(|file| file.len()).ok().filter(|size| *size >= LEAST_BYTES);
        let disk = disk(root).ok();
        // A folder that came from a larger disk brings a reserve that is too large for this one.
        if let (Some(size), Some((all, _))) = (found, disk)
            && size > most_bytes(all)
            && File::options().write(true).open(&path).and_then(|file| file.set_len(most_bytes(all))).is_ok()
        {
            found = Some(most_bytes(all));
        }
        let size_bytes = found.or(disk.map(|(all, free)| wanted_bytes(all, free))).unwrap_or(LEAST_BYTES);
        let before = if found.is_some() { Space::Enough } else { Space::Exhausted };
        let reserve = Self { root: root.to_owned(), size_bytes, space: AtomicU8::new(before as u8), changing: Mutex::new(()) };
        reserve.check();
        reserve
    }

    pub fn space(&self) -> Space {
        Space::from_level(self.space.load(Ordering::Acquire))
    }

    /// Gives the room up, after a write found none. Tells whether there was any.
    pub fn release(&self) -> bool {
        let _changing = self.changing.lock();
        let before = self.note(Space::Exhausted);
        let removed = fs::remove_file(self.path()).is_ok();
        if before != Space::Exhausted {
            tracing::error!(path = %self.root.display(), "no space left on the disk; using the reserve");
        }
        removed
    }

    /// Looks at the disk.
    pub fn check(&self) -> Space {
        let _changing = self.changing.lock();
        let before = self.space();
        let (all, free) = match disk(&self.root) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(path = %self.root.display(), %error, "cannot look at the disk");
                return before;
            }
        };
        let size_bytes = self.size_bytes;
        let now = match judge(free, size_bytes, short_bytes(all), before) {
            Step::Note(space) => space,
            Step::Make => match allocate_or_remove(&self.path(), size_bytes) {
                Ok(()) => Space::Enough,
                Err(error) => {
                    tracing::warn!(path = %self.root.display(), %error, "cannot set space aside on the disk");
                    Space::Exhausted
                }
            },
        };
        self.note(now);
        match (before, now) {
            (Space::Enough, Space::Low) => {
                tracing::error!(path = %self.root.display(), free_bytes = free, "the disk is nearly full");
            }
            (Space::Low | Space::Exhausted, Space::Enough) => {
                tracing::info!(path = %self.root.display(), free_bytes = free, "the disk has space again");
            }
            _ => {}
        }
        now
    }

    fn note(&self, space: Space) -> Space {
        Space::from_level(self.space.swap(space as u8, Ordering::AcqRel))
    }

    fn path(&self) -> PathBuf {
        self.root.join(FILE)
    }
}

/// Makes a file whose blocks exist, or none: what was begun takes the space that is short.
fn allocate_or_remove(path: &Path, size_bytes: u64) -> io::Result<()> {
    allocate(path, size_bytes).inspect_err(|_| drop(fs::remove_file(path)))
}

/// Makes a file whose blocks exist.
fn allocate(path: &Path, size_bytes: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let length = i64::try_from(size_bytes).map_err(io::Error::other)?;
    match fallocate(&file, FallocateFlags::empty(), 0, length) {
        Ok(()) => {}
        // A file system that cannot set blocks aside is written to.
        Err(Errno::EOPNOTSUPP) => file.write_all(&vec![0; usize::try_from(size_bytes).map_err(io::Error::other)?])?,
        Err(error) => return Err(error.into()),
    }
    file.sync_all()?;
    folder::sync_folder(path.parent().unwrap_or(path)).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_runs_short_and_returns_with_a_gap_between() {
        use Space::{Enough, Exhausted, Low};
        for (free, before, expected) in [
            (100, Enough, Step::Note(Enough)),
            (10, Enough, Step::Note(Enough)),
            (9, Enough, Step::Note(Low)),
            (14, Low, Step::Note(Low)),
            (15, Low, Step::Note(Enough)),
            (0, Low, Step::Note(Low)),
            (19, Exhausted, Step::Note(Exhausted)),
            (20, Exhausted, Step::Make),
        ] {
            assert_eq!(judge(free, 5, 10, before), expected, "{free} bytes free, {before:?} before");
        }
    }

    #[test]
    fn a_small_disk_is_not_eaten_up_by_the_reserve() {
        let mib = |count: u64| count << 20;
        for (disk, free, expected) in [
            (mib(1 << 20), mib(1 << 19), mib(32)),
            (mib(512), mib(500), mib(16)),
            (mib(96), mib(90), mib(3)),
            (mib(100_000), mib(64), mib(4)),
            (mib(8), mib(0), mib(1)),
        ] {
            assert_eq!(wanted_bytes(disk, free), expected);
        }
    }

    #[test]
    fn a_reserve_from_a_larger_disk_is_cut_to_this_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        // Without blocks of its own: only its length counts here.
        File::create(&path).unwrap().set_len(MOST_BYTES * 4).unwrap();
        Reserve::open(folder.path());
        assert!(fs::metadata(&path).unwrap().len() <= MOST_BYTES);
    }

    #[test]
    fn the_reserve_is_made_given_up_once_and_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(folder.path());
        assert_eq!(reserve.space(), Space::Enough, "the machine that runs this test has space");
        let size = fs::metadata(folder.path().join(FILE)).unwrap().len();
        assert!((LEAST_BYTES..=MOST_BYTES).contains(&size));
        assert!(reserve.release());
        assert!(!reserve.release());
        assert_eq!(reserve.space(), Space::Exhausted);
        assert!(!folder.path().join(FILE).exists());
        assert_eq!(reserve.check(), Space::Enough);
        assert!(folder.path().join(FILE).exists());
    }
}
