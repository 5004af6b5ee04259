//! Unpacks one layer's tar stream into a folder, as overlayfs wants it: whiteouts become 0/0 character devices, opaque
//! folders an extended attribute.
//!
//! The archive is not trusted. Every path is resolved by the kernel inside the layer's folder (`openat2` with
//! `RESOLVE_IN_ROOT`), so that no symbolic link, absolute name or `..` reaches anything outside it.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2},
    sys::{
        stat::{FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstatat, futimens, makedev, mkdirat, mknodat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat},
};
use tar::{Archive, Entry, EntryType};
use xattr::FileExt;

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("cannot read the archive: {0}")]
    Archive(#[source] io::Error),
    #[error("entry {path:?} is refused: {problem}")]
    Refused { path: PathBuf, problem: &'static str },
    #[error("cannot {action} {path:?}: {source}")]
    Entry { action: &'static str, path: PathBuf, source: io::Error },
}

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const WHITEOUT_META_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
const OPAQUE_ATTRIBUTE: &str = "trusted.overlay.opaque";

/// Unpacks the tar stream (already decompressed) into `destination`, which must exist and be empty. Returns the number of
/// bytes of file content. Needs root, for owners and device nodes.
pub fn unpack_layer(reader: impl Read, destination: &Path) -> Result<u64, UnpackError> {
    let root = open(destination, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(entry_error("open", destination))?;
    let mut unpacker = Unpacker { root, parent: None, folder_times: HashMap::new(), content_bytes: 0 };
    let mut archive = Archive::new(reader);
    for entry in archive.entries().map_err(UnpackError::Archive)? {
        unpacker.entry(entry.map_err(UnpackError::Archive)?)?;
    }
    unpacker.set_folder_times()?;
    Ok(unpacker.content_bytes)
}

struct Unpacker {
    root: OwnedFd,
    /// The folder of the entry before, as most entries share theirs.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Set when everything is in place, since adding a file changes its folder's time.
    folder_times: HashMap<PathBuf, TimeSpec>,
    content_bytes: u64,
}

/// Owner, permission and time of an entry.
struct Attributes {
    owner: Uid,
    group: Gid,
    mode: Mode,
    modified: TimeSpec,
    extended: Vec<(OsString, Vec<u8>)>,
}

impl Unpacker {
    fn entry<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<(), UnpackError> {
        let raw = PathBuf::from(OsString::from_vec(entry.path_bytes().into_owned()));
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader | EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink) {
            return Ok(());
        }
        let path = relative(&raw)?;
        let attributes = Attributes::of(&mut entry).map_err(UnpackError::Archive)?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            return self.root_folder(attributes, kind, &raw);
        };
        let parent_path = path.parent().map(Path::to_owned).unwrap_or_default();
        self.open_parent(&parent_path)?;

        if name.as_bytes() == OPAQUE_MARKER {
            let folder = self.reopen_folder(&parent_path)?;
            return folder.set_xattr(OPAQUE_ATTRIBUTE, b"y").map_err(io_entry_error("mark as opaque", &parent_path));
        }
        if name.as_bytes().starts_with(WHITEOUT_META_PREFIX) {
            return Ok(());
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT_PREFIX) {
            return self.whiteout(&path, OsStr::from_bytes(hidden));
        }
        match kind {
            EntryType::Directory => self.folder(&path, &name, attributes),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => self.file(&path, &name, &mut entry, attributes),
            EntryType::Symlink => {
                let target = link_target(&entry, &path)?;
                self.clear(&path, &name)?;
                let parent = self.parent_fd();
                symlinkat(target.as_os_str(), parent, name.as_os_str()).map_err(entry_error("link", &path))?;
                self.attributes_of_link(&path, &name, &attributes)
            }
            EntryType::Link => {
                let target = relative(&PathBuf::from(link_target(&entry, &path)?))?;
                self.hard_link(&path, &name, &target)
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => self.device(&path, &name, kind, &entry, attributes),
            _ => Err(UnpackError::Refused { path, problem: "its type is not known" }),
        }
    }

    fn root_folder(&mut self, attributes: Attributes, kind: EntryType, raw: &Path) -> Result<(), UnpackError> {
        if kind != EntryType::Directory {
            return Err(UnpackError::Refused { path: raw.to_owned(), problem: "the root can only be a folder" });
        }
        let folder = self.reopen_folder(Path::new(""))?;
        attributes.apply(&folder).map_err(io_entry_error("set the attributes of", raw))?;
        self.folder_times.insert(PathBuf::new(), attributes.modified);
        Ok(())
    }

    fn folder(&mut self, path: &Path, name: &OsStr, attributes: Attributes) -> Result<(), UnpackError> {
        let there = self.stat(name).map_err(entry_error("look at", path))?;
        if !there.is_some_and(|stat| is_folder(&stat)) {
            self.clear(path, name)?;
            mkdirat(self.parent_fd(), name, Mode::S_IRWXU).map_err(entry_error("create", path))?;
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let folder = File::from(openat(self.parent_fd(), name, flags, Mode::empty()).map_err(entry_error("open", path))?);
        attributes.apply(&folder).map_err(io_entry_error("set the attributes of", path))?;
        self.folder_times.insert(path.to_owned(), attributes.modified);
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        path: &Path,
        name: &OsStr,
        entry: &mut Entry<'_, R>,
        attributes: Attributes,
    ) -> Result<(), UnpackError> {
        self.clear(path, name)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let descriptor =
            openat(self.parent_fd(), name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(entry_error("create", path))?;
        let mut file = File::from(descriptor);
        self.content_bytes += io::copy(entry, &mut file).map_err(io_entry_error("write", path))?;
        attributes.apply(&file).map_err(io_entry_error("set the attributes of", path))?;
        futimens(&file, &attributes.modified, &attributes.modified).map_err(entry_error("set the time of", path))
    }

    fn hard_link(&mut self, path: &Path, name: &OsStr, target: &Path) -> Result<(), UnpackError> {
        let Some(target_name) = target.file_name() else {
            return Err(UnpackError::Refused { path: path.to_owned(), problem: "a hard link to the root" });
        };
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(in_root());
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let target_parent = openat2(&self.root, folder, how).map_err(entry_error("link to the target of", path))?;
        if target == path {
            return Ok(());
        }
        self.clear(path, name)?;
        linkat(&target_parent, target_name, self.parent_fd(), name, LinkatFlags::empty()).map_err(entry_error("link", path))
    }

    fn device<R: Read>(
        &mut self,
        path: &Path,
        name: &OsStr,
        kind: EntryType,
        entry: &Entry<'_, R>,
        attributes: Attributes,
    ) -> Result<(), UnpackError> {
        let number =
            |value: io::Result<Option<u32>>| value.map_err(UnpackError::Archive).map(|value| u64::from(value.unwrap_or(0)));
        let (major, minor) = (number(entry.header().device_major())?, number(entry.header().device_minor())?);
        let flag = match kind {
            EntryType::Char => SFlag::S_IFCHR,
            EntryType::Block => SFlag::S_IFBLK,
            _ => SFlag::S_IFIFO,
        };
        if flag == SFlag::S_IFCHR && major == 0 && minor == 0 {
            return Err(UnpackError::Refused { path: path.to_owned(), problem: "a 0/0 device is an overlay's whiteout" });
        }
        self.clear(path, name)?;
        mknodat(self.parent_fd(), name, flag, attributes.mode, makedev(major, minor)).map_err(entry_error("create", path))?;
        self.attributes_of_link(path, name, &attributes)?;
        nix::sys::stat::fchmodat(self.parent_fd(), name, attributes.mode, nix::sys::stat::FchmodatFlags::FollowSymlink)
            .map_err(entry_error("set the mode of", path))
    }

    fn whiteout(&mut self, path: &Path, hidden: &OsStr) -> Result<(), UnpackError> {
        if matches!(hidden.as_bytes(), b"" | b"." | b"..") {
            return Err(UnpackError::Refused { path: path.to_owned(), problem: "a whiteout of nothing" });
        }
        self.clear(path, hidden)?;
        mknodat(self.parent_fd(), hidden, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).map_err(entry_error("white out", path))
    }

    fn attributes_of_link(&self, path: &Path, name: &OsStr, attributes: &Attributes) -> Result<(), UnpackError> {
        let parent = self.parent_fd();
        fchownat(parent, name, Some(attributes.owner), Some(attributes.group), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(entry_error("set the owner of", path))?;
        utimensat(parent, name, &attributes.modified, &attributes.modified, UtimensatFlags::NoFollowSymlink)
            .map_err(entry_error("set the time of", path))
    }

    /// Opens the folder that the entry lies in, making what is missing of it.
    fn open_parent(&mut self, path: &Path) -> Result<(), UnpackError> {
        if self.parent.as_ref().is_some_and(|(known, _)| known == path) {
            return Ok(());
        }
        let mut walked = PathBuf::new();
        let mut folder = self.open_in_root(Path::new("."), OFlag::O_PATH).map_err(entry_error("open", path))?;
        if !path.as_os_str().is_empty() {
            match self.open_in_root(path, OFlag::O_PATH) {
                Ok(found) => folder = found,
                Err(Errno::ENOENT) => {
                    for component in path.components() {
                        walked.push(component);
                        folder = match self.open_in_root(&walked, OFlag::O_PATH) {
                            Ok(found) => found,
                            Err(Errno::ENOENT) => {
                                mkdirat(&folder, component.as_os_str(), Mode::from_bits_truncate(0o755))
                                    .map_err(entry_error("create", &walked))?;
                                self.open_in_root(&walked, OFlag::O_PATH).map_err(entry_error("open", &walked))?
                            }
                            Err(error) => return Err(entry_error("open", &walked)(error)),
                        };
                    }
                }
                Err(error) => return Err(entry_error("open", path)(error)),
            }
        }
        self.parent = Some((path.to_owned(), folder));
        Ok(())
    }

    fn open_in_root(&self, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
        openat2(&self.root, path, OpenHow::new().flags(flags | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(in_root()))
    }

    fn reopen_folder(&self, path: &Path) -> Result<File, UnpackError> {
        let inside = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        self.open_in_root(inside, OFlag::O_RDONLY).map(File::from).map_err(entry_error("open", path))
    }

    fn parent_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.parent.as_ref().map_or(self.root.as_fd(), |(_, descriptor)| descriptor.as_fd())
    }

    fn stat(&self, name: &OsStr) -> Result<Option<FileStat>, Errno> {
        match fstatat(self.parent_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes what is at the entry's place: a later entry of the same name wins.
    fn clear(&mut self, path: &Path, name: &OsStr) -> Result<(), UnpackError> {
        let Some(stat) = self.stat(name).map_err(entry_error("look at", path))? else { return Ok(()) };
        if is_folder(&stat) {
            let place = PathBuf::from(format!("/proc/self/fd/{}", self.parent_fd().as_raw_fd())).join(name);
            std::fs::remove_dir_all(&place).map_err(io_entry_error("replace", path))?;
            self.folder_times.retain(|folder, _| !folder.starts_with(path));
            return Ok(());
        }
        unlinkat(self.parent_fd(), name, UnlinkatFlags::NoRemoveDir).map_err(entry_error("replace", path))
    }

    fn set_folder_times(&mut self) -> Result<(), UnpackError> {
        for (path, time) in &self.folder_times {
            match self.reopen_folder(path) {
                Ok(folder) => futimens(&folder, time, time).map_err(entry_error("set the time of", path))?,
                Err(UnpackError::Entry { source, .. })
                    if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Attributes {
    fn of<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Attributes> {
        let mut extended = Vec::new();
        if let Some(extensions) = entry.pax_extensions()? {
            for extension in extensions {
                let extension = extension?;
                if let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.")
                    && is_allowed_attribute(name)
                {
                    extended.push((OsString::from_vec(name.to_vec()), extension.value_bytes().to_vec()));
                }
            }
        }
        let header = entry.header();
        let id = |value: u64| u32::try_from(value).map_err(|_| io::Error::other("an owner's number is too large"));
        Ok(Attributes {
            owner: Uid::from_raw(id(header.uid()?)?),
            group: Gid::from_raw(id(header.gid()?)?),
            mode: Mode::from_bits_truncate(header.mode()? & 0o7777),
            modified: TimeSpec::new(i64::try_from(header.mtime()?).unwrap_or(0), 0),
            extended,
        })
    }

    /// The owner goes first: changing it clears set-user-id bits and capabilities.
    fn apply(&self, file: &File) -> io::Result<()> {
        fchown(file, Some(self.owner), Some(self.group))?;
        fchmod(file, self.mode)?;
        for (name, value) in &self.extended {
            match file.set_xattr(name, value) {
                Err(error) if error.raw_os_error() == Some(Errno::ENOTSUP as i32) => {}
                result => result?,
            }
        }
        Ok(())
    }
}

/// Attributes that an image may bring. Never `trusted.overlay.*`: they would steer overlayfs itself.
fn is_allowed_attribute(name: &[u8]) -> bool {
    name == b"security.capability"
        || name.starts_with(b"user.") && !name.starts_with(b"user.overlay.")
        || name.starts_with(b"system.posix_acl_")
}

fn in_root() -> ResolveFlag {
    ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS
}

fn is_folder(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR
}

/// The entry's path below the layer's root; a path that climbs is refused.
fn relative(raw: &Path) -> Result<PathBuf, UnpackError> {
    let mut path = PathBuf::new();
    for component in raw.components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(UnpackError::Refused { path: raw.to_owned(), problem: "its path climbs out of the layer" });
            }
        }
    }
    Ok(path)
}

fn link_target<R: Read>(entry: &Entry<'_, R>, path: &Path) -> Result<OsString, UnpackError> {
    match entry.link_name_bytes() {
        Some(target) if !target.is_empty() => Ok(OsString::from_vec(target.into_owned())),
        _ => Err(UnpackError::Refused { path: path.to_owned(), problem: "a link without a target" }),
    }
}

fn entry_error(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> UnpackError {
    let path = path.to_owned();
    move |errno| UnpackError::Entry { action, path, source: errno.into() }
}

fn io_entry_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> UnpackError {
    let path = path.to_owned();
    move |source| UnpackError::Entry { action, path, source }
}
