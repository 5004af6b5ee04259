//! Cutting the power of a local node: its containers, which outlive its agent, die with it as they would with a machine.

use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt, path::Path};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::{layout::Layout, process::ProcessId};
use crate::node;

/// Kills every container of the node and the shims that keep them. Call it when the agent is dead, or it starts them again.
pub fn cut(layout: &Layout, name: &str) -> Result<()> {
    let data_dir = layout.process(name);
    let cgroup = node::cgroup_root(&data_dir, name);
    // A process that forks while it is being killed leaves a child behind, so until nothing is found.
    loop {
        let found = processes(|pid| is_shim(pid, &data_dir) || is_in_cgroup(pid, &cgroup))?;
        if found.is_empty() {
            return Ok(());
        }
        for process in found {
            process.signal(Signal::SIGKILL)?;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// The processes of this machine that `matches`, zombies left out.
fn processes(matches: impl Fn(i32) -> bool) -> Result<Vec<ProcessId>> {
    let entries = fs::read_dir("/proc").context("cannot list /proc")?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let living = pids.filter(|pid| matches(*pid)).filter_map(ProcessId::of);
    Ok(living.filter(|process| process.state() != super::process::ProcessState::Stopped).collect())
}

fn is_shim(pid: i32, data_dir: &Path) -> bool {
    let Ok(command) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let mut arguments = command.split(|byte| *byte == 0);
    let second = arguments.nth(1);
    second == Some(crate::SHIM.as_bytes()) && arguments.any(|argument| lies_in(argument, data_dir))
}

/// Whether a command-line argument is a path in `folder`: whole names count, `node-1` is not the beginning of `node-11`.
fn lies_in(argument: &[u8], folder: &Path) -> bool {
    Path::new(OsStr::from_bytes(argument)).starts_with(folder)
}

/// Whether one of the process's cgroups is `cgroup` or below it (`/proc/<pid>/cgroup` has a line `id:controllers:path` for each hierarchy).
fn is_in_cgroup(pid: i32, cgroup: &Path) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return false };
    text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).any(|path| Path::new(path).starts_with(cgroup))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shims_of_a_node_are_not_those_of_one_whose_name_goes_on() {
        let folder = Path::new("/data/processes/node-1");
        assert!(lies_in(b"/data/processes/node-1/runtime/sandboxes/x", folder));
        assert!(!lies_in(b"/data/processes/node-11/runtime/sandboxes/x", folder));
    }
}
