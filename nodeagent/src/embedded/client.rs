//! The agent's side of a shim: starting it and asking it.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, AsRawFd},
    process::{ChildStdout, Command, Stdio},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::{Instant, timeout},
};

use super::{
    protocol::{MAX_MESSAGE_BYTES, Request, Response, frame},
    shim::READY,
    state::SandboxFolder,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than any [`READY`] or reason.
const SAID_BYTES: usize = 4096;

/// Starts the shim of a sandbox whose record is written, and waits until the sandbox is there, or as long as `patience` lasts.
/// Blocking. The caller ends by its cgroup what was left half started.
pub fn spawn(command: &[OsString], folder: &SandboxFolder, patience: Duration) -> io::Result<()> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the shim's command is empty"));
    };
    let log_path = folder.0.join("shim.log");
    let mut child = Command::new(program)
        .args(arguments)
        .arg(&folder.0)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&log_path)?)
        .spawn()?;
    let said = match child.stdout.take() {
        Some(output) => read_to_end(output, patience),
        None => Ok(Vec::new()),
    };
    if said.is_err() {
        // It may have ended by itself.
        drop(child.kill());
    }
    // The shim leaves its parent as soon as it runs; what ends here is only the starter.
    let status = child.wait()?;
    if said? == READY.as_bytes() {
        return Ok(());
    }
    let why = std::fs::read_to_string(&log_path).unwrap_or_default();
    Err(io::Error::other(format!("the sandbox process did not start ({status}): {}", why.trim())))
}

/// Reads what a starting shim says, until it lets go of the pipe.
fn read_to_end(mut output: ChildStdout, patience: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + patience;
    let mut said = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(output.as_fd(), PollFlags::POLLIN)], wait) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the sandbox process did not start in time")),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut chunk = [0; 256];
        match output.read(&mut chunk)? {
            0 => return Ok(said),
            count if said.len() + count > SAID_BYTES => return Err(io::Error::other("the sandbox process says too much")),
            count => said.extend_from_slice(&chunk[..count]),
        }
    }
}

/// Asks the shim and waits for its answer.
pub async fn ask(folder: &SandboxFolder, request: &Request, patience: Duration) -> io::Result<Response> {
    let exchange = async {
        let mut stream = connect(folder).await?;
        stream.write_all(&frame(request)?).await?;
        receive(&mut stream).await
    };
    match timeout(patience, exchange).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the sandbox process does not answer")),
    }
}

/// Opens a connection on which the shim tells of changes; see [`changed`].
pub async fn watch(folder: &SandboxFolder) -> io::Result<UnixStream> {
    let mut stream = connect(folder).await?;
    stream.write_all(&frame(&Request::Watch)?).await?;
    Ok(stream)
}

/// Waits for the next change; an error means that the shim is gone.
pub async fn changed(stream: &mut UnixStream) -> io::Result<()> {
    receive(stream).await.map(drop)
}

async fn connect(folder: &SandboxFolder) -> io::Result<UnixStream> {
    // The address of a socket is short; the folder's own descriptor makes any path fit.
    let descriptor = File::open(&folder.0)?;
    let path = format!("/proc/self/fd/{}/shim.sock", descriptor.as_raw_fd());
    match timeout(CONNECT_TIMEOUT, UnixStream::connect(path)).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the sandbox process does not answer")),
    }
}

async fn receive(stream: &mut UnixStream) -> io::Result<Response> {
    let length = stream.read_u32().await? as usize;
    if length > MAX_MESSAGE_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too large"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_that_does_not_come_up_is_not_waited_for_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let folder = SandboxFolder(folder.path().to_owned());
        let spawn = |script: &str| {
            let command = ["sh", "-c", script].map(OsString::from);
            super::spawn(&command, &folder, Duration::from_millis(300)).map_err(|error| error.kind())
        };
        assert_eq!(spawn("exec sleep 1000"), Err(io::ErrorKind::TimedOut));
        assert_eq!(spawn("echo no >&2; exit 1"), Err(io::ErrorKind::Other));
        assert_eq!(spawn("printf 'ready\\n'"), Ok(()));
    }
}
