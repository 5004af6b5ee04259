//! Becomes the container's command: the last step inside the container.

use std::{
    ffi::{CString, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::unistd::{AccessFlags, eaccess, execve};
use oci_spec::runtime::Spec;

use super::signals;

/// Runs the command of the configuration, looked up in its own `PATH`.
#[derive(Clone, Copy, Debug)]
pub struct CommandExecutor;

impl Executor for CommandExecutor {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        find_command(spec).map(drop).map_err(ExecutorValidationError::ArgValidationError)
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let command = find_command(spec).map_err(ExecutorError::Other)?;
        let arguments = spec.process().as_ref().and_then(|process| process.args().clone()).unwrap_or_default();
        let text = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| ExecutorError::InvalidArg);
        let path = text(command.as_os_str().as_bytes().to_vec())?;
        let arguments = arguments.into_iter().map(|argument| text(argument.into_bytes())).collect::<Result<Vec<_>, _>>()?;
        let environment = std::env::vars_os()
            .map(|(name, value)| {
                let variable: OsString = [name, OsString::from("="), value].into_iter().collect();
                text(variable.into_vec())
            })
            .collect::<Result<Vec<_>, _>>()?;
        signals::restore().map_err(|error| ExecutorError::Other(error.to_string()))?;
        match execve(&path, &arguments, &environment) {
            Ok(never) => match never {},
            Err(error) => Err(ExecutorError::Other(format!("exec {}: {}", command.display(), error.desc()))),
        }
    }
}

/// The file to execute, or why there is none, in the words of runc.
fn find_command(spec: &Spec) -> Result<PathBuf, String> {
    let process = spec.process().as_ref();
    let arguments = process.and_then(|process| process.args().as_ref());
    let Some(name) = arguments.and_then(|arguments| arguments.first()) else { return Err("no command specified".to_owned()) };
    let check = |path: &Path| -> Result<(), nix::errno::Errno> {
        eaccess(path, AccessFlags::X_OK)?;
        if path.is_dir() { Err(nix::errno::Errno::EISDIR) } else { Ok(()) }
    };
    let said = |errno: nix::errno::Errno| errno.desc().to_lowercase();
    if name.contains('/') {
        return match check(Path::new(name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            Err(nix::errno::Errno::ENOENT) => Err(format!("exec: {name:?}: stat {name}: no such file or directory")),
            Err(errno) => Err(format!("exec: {name:?}: {}", said(errno))),
        };
    }
    let environment = process.and_then(|process| process.env().as_ref());
    let search = environment.into_iter().flatten().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or_default();
    let mut refused = None;
    for folder in search.split(':').filter(|folder| !folder.is_empty()) {
        let path = Path::new(folder).join(name);
        match check(&path) {
            Ok(()) => return Ok(path),
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => {}
            Err(errno) => refused = Some(errno),
        }
    }
    Err(match refused {
        Some(errno) => format!("exec: {name:?}: {}", said(errno)),
        None => format!("exec: {name:?}: executable file not found in $PATH"),
    })
}
