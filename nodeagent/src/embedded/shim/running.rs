//! What runs in a sandbox, and what it says: containers and commands.

use std::os::{fd::OwnedFd, unix::net::UnixStream};

use jiff::Timestamp;
use nix::{errno::Errno, sys::wait::WaitStatus};
use trireme_api::clock::{Clock, SystemClock};

use super::{
    super::state::{ContainerOutcome, ContainerRecord},
    log::{Lines, LogFile, Stream},
};

/// How much is read at once.
pub const READ_BYTES: usize = 64 * 1024;
/// What a command run in a container may say; the rest is dropped.
const MAX_EXEC_OUTPUT_BYTES: usize = 16 << 20;

/// A container that runs.
pub struct Running {
    pub process: i32,
    pub record: ContainerRecord,
    pub outcome: ContainerOutcome,
    pub log: LogFile,
    pub outputs: Vec<(OwnedFd, Lines)>,
}

/// A command that runs in a container.
pub struct Exec {
    pub process: i32,
    pub client: UnixStream,
    pub deadline: Timestamp,
    pub exit: Option<WaitStatus>,
    pub timed_out: bool,
    pub outputs: Vec<(OwnedFd, Stream)>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Running {
    /// Writes to the log what the container has said.
    pub fn read_outputs(&mut self) {
        let log = &mut self.log;
        self.outputs.retain_mut(|(output, lines)| {
            let (bytes, ended) = read_available(output);
            let now = SystemClock.now();
            log.write(&lines.push(&bytes, now));
            if ended {
                log.write(&lines.finish(now));
            }
            !ended
        });
    }

    /// The same to the end, after the container's.
    pub fn finish_outputs(&mut self) {
        loop {
            let mut read_something = false;
            for (output, lines) in &mut self.outputs {
                let (bytes, _) = read_available(output);
                read_something |= !bytes.is_empty();
                self.log.write(&lines.push(&bytes, SystemClock.now()));
            }
            if !read_something {
                break;
            }
        }
        for (_, lines) in &mut self.outputs {
            self.log.write(&lines.finish(SystemClock.now()));
        }
    }
}

impl Exec {
    /// Keeps what the command has said.
    pub fn read_outputs(&mut self) {
        let (stdout, stderr) = (&mut self.stdout, &mut self.stderr);
        self.outputs.retain_mut(|(output, stream)| {
            let kept = match stream {
                Stream::Stdout => &mut *stdout,
                Stream::Stderr => &mut *stderr,
            };
            loop {
                let (bytes, ended) = read_available(output);
                let room = MAX_EXEC_OUTPUT_BYTES.saturating_sub(kept.len());
                kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
                if ended || bytes.is_empty() {
                    return !ended;
                }
            }
        });
    }
}

/// What can be read now, at most one buffer full, and whether the end was reached.
fn read_available(output: &OwnedFd) -> (Vec<u8>, bool) {
    let mut bytes = vec![0; READ_BYTES];
    match nix::unistd::read(output, &mut bytes) {
        Ok(0) => (Vec::new(), true),
        Ok(count) => {
            bytes.truncate(count);
            (bytes, false)
        }
        Err(Errno::EAGAIN | Errno::EINTR) => (Vec::new(), false),
        Err(_) => (Vec::new(), true),
    }
}
