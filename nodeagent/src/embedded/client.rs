//! The agent's side of a shim: starting it and asking it.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    os::fd::AsRawFd,
    process::{Command, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use super::{
    protocol::{MAX_MESSAGE_BYTES, Request, Response, frame},
    shim::READY,
    state::SandboxFolder,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts the shim of a sandbox whose record is written, and waits until the sandbox is there. Blocking.
pub fn spawn(command: &[OsString], folder: &SandboxFolder) -> io::Result<()> {
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
    let mut said = String::new();
    if let Some(mut output) = child.stdout.take() {
        output.read_to_string(&mut said)?;
    }
    // The shim leaves its parent as soon as it runs; what ends here is only the starter.
    let status = child.wait()?;
    if said == READY {
        return Ok(());
    }
    let why = std::fs::read_to_string(&log_path).unwrap_or_default();
    Err(io::Error::other(format!("the sandbox process did not start ({status}): {}", why.trim())))
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
