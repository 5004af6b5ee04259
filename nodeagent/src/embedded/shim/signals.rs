//! Signal dispositions across `execve`: the one thing here that the safe interfaces do not offer.
#![allow(unsafe_code)]

use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};

/// Blocks the signals that the shim reads from a descriptor or does not want, and returns those it reads.
pub fn block() -> nix::Result<SigSet> {
    let mut blocked = SigSet::empty();
    for unwanted in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        blocked.add(unwanted);
    }
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&blocked), None)?;
    let mut read = SigSet::empty();
    read.add(Signal::SIGCHLD);
    Ok(read)
}

/// Gives a process that is about to become a container's the signals as a fresh process has them: none blocked, none
/// ignored (Rust's runtime ignores SIGPIPE, which `execve` would hand on).
pub fn restore() -> nix::Result<()> {
    // SAFETY: the default disposition runs no code of ours, and this process has one thread.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

extern "C" fn wake(_: nix::libc::c_int) {}

/// Makes `pause` return when a child ends.
pub fn wake_on_child() -> nix::Result<()> {
    // SAFETY: the handler does nothing.
    unsafe { signal(Signal::SIGCHLD, SigHandler::Handler(wake)) }?;
    Ok(())
}
