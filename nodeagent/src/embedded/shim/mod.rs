//! The shim: one small single-threaded process for each pod. It holds the pod's namespaces, is the parent of its
//! containers, writes their logs and keeps their exit codes on disk. It outlives the agent, which finds it by its socket.
//!
//! It is the same binary under another name of command, started before any thread exists: libcontainer forks, and
//! forking is only sound in a process with one thread.

mod container;
mod executor;
mod log;
mod running;
mod server;
mod setup;
mod signals;

use std::{
    ffi::OsString,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::state::SandboxFolder;

/// What the shim says on its standard output when the sandbox is there.
pub const READY: &str = "ready\n";

/// Runs the shim. `arguments` are what follows the command's own name: the sandbox's folder. Must be called while the
/// process has one thread.
pub fn shim_main(arguments: &[OsString]) -> ExitCode {
    let result = match arguments {
        [mode, empty] if mode == setup::PAUSE => setup::hold_process_namespace(Path::new(empty)),
        [folder] => run(SandboxFolder(PathBuf::from(folder))),
        _ => Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "usage: shim FOLDER")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The agent reads this, or shim.log keeps it; nobody else could be told.
            drop(writeln!(std::io::stderr(), "{error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(folder: SandboxFolder) -> std::io::Result<()> {
    let signals = signals::block()?;
    let (sandbox, record, listener) = setup::become_sandbox(&folder)?;
    let server = server::Server::new(folder, sandbox, record, listener, &signals)?;
    std::io::stdout().write_all(READY.as_bytes())?;
    setup::close_output()?;
    server.run()
}
