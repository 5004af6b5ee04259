//! Runs `nft`, which puts rules in force in the namespace that this process runs in.

use std::{io, process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt, process::Command};

use super::NetworkError;

const PATIENCE: Duration = Duration::from_secs(30);

/// Whether the rules are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Applied,
    /// There is no `nft` on this machine.
    NoNft,
}

/// Puts the script in force, as one transaction.
///
/// # Errors
/// What `nft` says against it.
pub async fn run(script: &str) -> Result<Outcome, NetworkError> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Outcome::NoNft),
        Err(error) => return Err(NetworkError::io("cannot run nft")(error)),
    };
    let conversation = async {
        if let Some(mut input) = child.stdin.take() {
            input.write_all(script.as_bytes()).await.map_err(NetworkError::io("cannot speak to nft"))?;
        }
        child.wait_with_output().await.map_err(NetworkError::io("cannot run nft"))
    };
    let output = tokio::time::timeout(PATIENCE, conversation)
        .await
        .map_err(|_| NetworkError::Invalid(format!("nft did not end within {PATIENCE:?}")))??;
    if output.status.success() {
        return Ok(Outcome::Applied);
    }
    Err(NetworkError::Invalid(format!("nft refused the rules: {}", String::from_utf8_lossy(&output.stderr).trim())))
}
