//! Processes of a local cluster, known by pid and start time, so that a pid that was given to another program is not mistaken.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Serialize;

use crate::pki::write_private;

/// One process, for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessId {
    pid: i32,
    /// Clock ticks from boot to its start (`/proc/<pid>/stat`, field 22).
    started_ticks: u64,
}

/// What a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProcessState {
    Running,
    Paused,
    Stopped,
}

impl ProcessId {
    /// The process that has this pid now.
    pub fn of(pid: i32) -> Option<Self> {
        let (_, started_ticks) = stat(pid)?;
        Some(Self { pid, started_ticks })
    }

    pub fn load(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let (pid, started_ticks) = text.trim().split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, started_ticks: started_ticks.parse().ok()? })
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        write_private(path, format!("{} {}\n", self.pid, self.started_ticks).as_bytes())
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn state(&self) -> ProcessState {
        match stat(self.pid) {
            Some((state, started_ticks)) if started_ticks == self.started_ticks => match state {
                'Z' | 'X' | 'x' => ProcessState::Stopped,
                'T' | 't' => ProcessState::Paused,
                _ => ProcessState::Running,
            },
            _ => ProcessState::Stopped,
        }
    }

    /// Sends a signal; a process that is gone needs none.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.state() == ProcessState::Stopped {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot send {signal} to process {}", self.pid)),
        }
    }
}

/// State and start time from `/proc/<pid>/stat`. The command in it may hold spaces and brackets, so the rest is taken from its last `)`.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = &text[text.rfind(')')? + 1..];
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let started_ticks = fields.nth(18)?.parse().ok()?;
    Some((state, started_ticks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_followed_from_running_to_gone() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(child.id() as i32).unwrap();
        assert_eq!(id.state(), ProcessState::Running);
        let folder = tempfile::tempdir().unwrap();
        id.save(&folder.path().join("pid")).unwrap();
        assert_eq!(ProcessId::load(&folder.path().join("pid")), Some(id));
        id.signal(Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        assert_eq!(id.state(), ProcessState::Stopped);
        id.signal(Signal::SIGKILL).unwrap();
    }

    #[test]
    fn another_process_with_the_same_pid_is_not_mistaken() {
        let own = ProcessId::of(std::process::id() as i32).unwrap();
        let other = ProcessId { started_ticks: own.started_ticks + 1, ..own };
        assert_eq!(other.state(), ProcessState::Stopped);
    }
}
