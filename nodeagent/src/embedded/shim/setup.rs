//! How a shim comes to life: it leaves the agent's session, cgroup and namespaces, and makes the pod's.

use std::{
    fs, io,
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Stdio},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::{
        prctl,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, chdir, daemon, dup2_stdout, pause, pivot_root, sethostname},
};

use super::{
    super::{
        cgroup,
        state::{self, SandboxFolder, SandboxRecord, ShimRecord},
    },
    signals,
};
use crate::runtime::SandboxConfig;

/// The argument that makes the command the holder of a shared process namespace.
pub const PAUSE: &str = "pause";

const SHARED_MEMORY_OPTIONS: &str = "mode=1777,size=67108864";
const OOM_SCORE_ADJUSTMENT: &str = "-998";

/// Detaches from the agent and makes the sandbox. Afterwards this process is the sandbox.
pub fn become_sandbox(folder: &SandboxFolder) -> io::Result<(SandboxRecord, ShimRecord, UnixListener)> {
    let sandbox: SandboxRecord =
        state::load(&folder.record())?.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no sandbox record"))?;
    chdir(&folder.0)?;
    daemon(true, true)?;
    prctl::set_child_subreaper(true)?;
    prctl::set_name(c"trireme-shim")?;
    let own = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    cgroup::join(&sandbox.cgroup.join("shim"), own)?;
    protect_from_memory_shortage();

    let config = &sandbox.config;
    let mut flags = CloneFlags::CLONE_NEWNS;
    if !config.host_network {
        flags |= CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
    }
    if !config.host_ipc {
        flags |= CloneFlags::CLONE_NEWIPC;
    }
    unshare(flags)?;
    // The root file systems of containers are mounted here alone, and go when this process goes.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
    if !config.host_network {
        sethostname(&config.hostname)?;
    }
    set_sysctls(config)?;
    if !config.host_ipc {
        let place = folder.shared_memory();
        fs::create_dir_all(&place)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("shm"), &place, Some("tmpfs"), flags, Some(SHARED_MEMORY_OPTIONS))?;
    }
    let pause = if config.share_process_namespace && !config.host_pid { Some(start_pause(&folder.0)?) } else { None };

    match fs::remove_file(folder.socket()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // By its short name: the whole path may be longer than a socket's address can be.
    let listener = UnixListener::bind("shim.sock")?;
    listener.set_nonblocking(true)?;
    let record = ShimRecord { process: own, pause };
    state::save(&folder.shim_record(), &record)?;
    Ok((sandbox, record, listener))
}

/// Sets the pod's kernel parameters, in its own namespaces. One that is not of a namespace of the pod's own is refused: it
/// would be the whole machine's.
fn set_sysctls(config: &SandboxConfig) -> io::Result<()> {
    for (name, value) in &config.sysctls {
        let name = name.replace('/', ".");
        let of_ipc =
            ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| name.starts_with(prefix)) || name == "kernel.sem";
        let is_own = of_ipc && !config.host_ipc || name.starts_with("net.") && !config.host_network;
        if !is_own || name.contains("..") {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("sysctl {name} is not the pod's own")));
        }
        fs::write(format!("/proc/sys/{}", name.replace('.', "/")), value)
            .map_err(|error| io::Error::new(error.kind(), format!("sysctl {name}: {error}")))?;
    }
    Ok(())
}

/// Makes the kernel choose another process when memory is short. libcontainer changes it at each container's creation.
pub fn protect_from_memory_shortage() {
    drop(fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJUSTMENT));
}

/// Lets go of the pipe through which the agent waits for the sandbox.
pub fn close_output() -> io::Result<()> {
    let null = fs::File::options().write(true).open("/dev/null")?;
    Ok(dup2_stdout(&null)?)
}

/// Starts the first process of a process namespace that the pod's containers share.
fn start_pause(folder: &Path) -> io::Result<i32> {
    let own_namespace = fs::File::open("/proc/self/ns/pid")?;
    let mut arguments: Vec<_> = std::env::args_os().skip(1).collect();
    arguments.pop();
    unshare(CloneFlags::CLONE_NEWPID)?;
    // Without the outputs: the agent waits for the end of this process's.
    let child = Command::new("/proc/self/exe")
        .args(arguments)
        .arg(PAUSE)
        .arg(folder.join("pause"))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    // From here on, children are in this process's own namespace again.
    setns(&own_namespace, CloneFlags::CLONE_NEWPID)?;
    i32::try_from(child?.id()).map_err(io::Error::other)
}

/// The first process of a shared process namespace: it sees nothing of the machine, and reaps what is orphaned.
pub fn hold_process_namespace(empty: &Path) -> io::Result<()> {
    prctl::set_name(c"pause")?;
    prctl::set_dumpable(false)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    fs::create_dir_all(empty)?;
    mount(Some("pause"), empty, Some("tmpfs"), MsFlags::empty(), Some("size=4096"))?;
    chdir(empty)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    signals::restore()?;
    signals::wake_on_child()?;
    loop {
        while !matches!(
            waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)),
            Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD)
        ) {}
        pause();
    }
}
