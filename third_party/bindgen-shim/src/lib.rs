//! A stand-in for `bindgen`, with just the calls that `librocksdb-sys`'s build script makes.
//!
//! The real one needs libclang (about 140 MB of packages). RocksDB's C header changes only with the version
//! of `librocksdb-sys`, so its bindings are checked in as `bindings.rs` and written out unchanged. They were
//! made by the real bindgen 0.72 from `rocksdb/include/rocksdb/c.h` of RocksDB 11.8.1 (see `README.md`).

use std::{io, path::Path};

const BINDINGS: &str = include_str!("../bindings.rs");

/// Accepts the settings that the build script gives and ignores them: they are those that `bindings.rs` was made with.
#[derive(Default)]
pub struct Builder;

impl Builder {
    pub fn header(self, _path: impl Into<String>) -> Self {
        self
    }

    pub fn derive_debug(self, _derive: bool) -> Self {
        self
    }

    pub fn blocklist_type(self, _name: impl AsRef<str>) -> Self {
        self
    }

    pub fn ctypes_prefix(self, _prefix: impl Into<String>) -> Self {
        self
    }

    pub fn size_t_is_usize(self, _same: bool) -> Self {
        self
    }

    pub fn generate(self) -> Result<Bindings, io::Error> {
        Ok(Bindings)
    }
}

/// The checked-in bindings.
pub struct Bindings;

impl Bindings {
    pub fn write_to_file(&self, path: impl AsRef<Path>) -> io::Result<()> {
        std::fs::write(path, BINDINGS)
    }
}
