//! Where the workspace is, what cargo says of it, and where the project keeps what outlives a clone.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process;

/// The root of the workspace that this program was built in.
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// A command of the cargo that runs us, in the workspace's root.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// What `cargo metadata` prints with these arguments.
///
/// # Errors
/// When cargo fails.
pub fn metadata(arguments: &[&str]) -> Result<Value> {
    let text = process::output(cargo().args(["metadata", "--format-version=1", "--locked"]).args(arguments))?;
    serde_json::from_str(&text).context("cargo metadata did not print JSON")
}

/// The target triple of this machine, such as `x86_64-unknown-linux-gnu`.
///
/// # Errors
/// When rustc fails or does not say.
pub fn host_triple() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let text = process::output(Command::new(rustc).arg("-vV"))?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("`rustc -vV` names no host")
}

/// The project's folder for what is costly to make and does not belong to one clone: `$XDG_CACHE_HOME/trireme`, by default
/// `~/.cache/trireme`. It may not exist yet.
///
/// # Errors
/// When no home folder is known.
pub fn cache() -> Result<PathBuf> {
    let named = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = match named {
        Some(path) => path,
        None => std::env::home_dir().context("no home folder is known; set XDG_CACHE_HOME")?.join(".cache"),
    };
    Ok(base.join("trireme"))
}
