//! Runs one plugin: variables of the environment in, JSON in and out (the CNI specification 1.0, section 2, "Execution
//! protocol").

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

use super::configuration::{NetworkList, Plugin};
use crate::network::NetworkError;

/// What a plugin is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Add,
    Delete,
    Check,
}

impl Operation {
    fn command(self) -> &'static str {
        match self {
            Operation::Add => "ADD",
            Operation::Delete => "DEL",
            Operation::Check => "CHECK",
        }
    }

    /// As errors name it.
    fn word(self) -> &'static str {
        match self {
            Operation::Add => "add",
            Operation::Delete => "delete",
            Operation::Check => "check",
        }
    }
}

/// Where and how plugins are run.
#[derive(Clone, Debug)]
pub struct Plugins {
    /// The folders that executables are looked for in, in order.
    pub search_path: Vec<PathBuf>,
    /// How long one run of one plugin may take.
    pub patience: Duration,
}

/// The variables that tell a plugin what it works on.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    pub container_id: &'a str,
    /// Empty when the namespace is gone.
    pub namespace: &'a Path,
    pub interface: &'a str,
    /// `CNI_ARGS`.
    pub arguments: &'a str,
}

impl Plugins {
    /// The plugin's executable.
    ///
    /// # Errors
    /// When no folder of the search path has it.
    pub fn find(&self, kind: &str) -> Result<PathBuf, NetworkError> {
        let found = self.search_path.iter().map(|folder| folder.join(kind)).find(|path| path.is_file());
        found.ok_or_else(|| {
            let folders: Vec<String> = self.search_path.iter().map(|folder| folder.display().to_string()).collect();
            NetworkError::Plugin(format!("failed to find plugin {kind:?} in path [{}]", folders.join(" ")))
        })
    }

    /// Whether every plugin of the network is installed.
    pub fn all_there(&self, list: &NetworkList) -> Result<(), NetworkError> {
        list.plugins().iter().try_for_each(|plugin| self.find(&plugin.kind).map(drop))
    }

    /// Runs the plugin and returns what it answered: for ADD the result, else nothing of meaning.
    ///
    /// # Errors
    /// The plugin's own message, or that it could not be run or took too long.
    pub async fn run(
        &self,
        plugin: &Plugin,
        operation: Operation,
        subject: &Subject<'_>,
        configuration: &Value,
    ) -> Result<Value, NetworkError> {
        let failed = |message: String| {
            NetworkError::Plugin(format!("plugin type={:?} failed ({}): {message}", plugin.kind, operation.word()))
        };
        let program = self.find(&plugin.kind)?;
        let mut command = Command::new(&program);
        command
            .env("CNI_COMMAND", operation.command())
            .env("CNI_CONTAINERID", subject.container_id)
            .env("CNI_NETNS", subject.namespace)
            .env("CNI_IFNAME", subject.interface)
            .env("CNI_ARGS", subject.arguments)
            .env("CNI_PATH", joined(&self.search_path))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that plugins that it has delegated work to end with it.
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(NetworkError::io(format!("cannot run {}", program.display())))?;
        let group = child.id();
        let input = configuration.to_string();
        let conversation = async {
            if let Some(mut stdin) = child.stdin.take() {
                match stdin.write_all(input.as_bytes()).await {
                    // A plugin need not read what it is told; its answer counts.
                    Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
                    _ => {}
                }
            }
            child.wait_with_output().await
        };
        match tokio::time::timeout(self.patience, conversation).await {
            Ok(Ok(output)) => answer(&output).map_err(failed),
            Ok(Err(error)) => Err(NetworkError::io(format!("cannot speak to {}", program.display()))(error)),
            Err(_) => {
                if let Some(group) = group.and_then(|id| i32::try_from(id).ok()) {
                    // It may have ended at this very moment; then there is nothing to kill.
                    let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
                }
                Err(failed(format!("it did not end within {:?}", self.patience)))
            }
        }
    }
}

/// The plugin's answer, or its error: an object with `msg` and perhaps `details` on standard output.
fn answer(output: &Output) -> Result<Value, String> {
    let parsed = serde_json::from_slice::<Value>(&output.stdout).ok();
    if output.status.success() {
        let is_blank = output.stdout.iter().all(u8::is_ascii_whitespace);
        return match parsed {
            Some(answer) => Ok(answer),
            None if is_blank => Ok(Value::Null),
            None => Err(format!("its answer is no JSON: {}", shortened(&output.stdout))),
        };
    }
    let told =
        |key: &str| parsed.as_ref().and_then(|error| error.get(key)).and_then(Value::as_str).filter(|text| !text.is_empty());
    match (told("msg"), told("details")) {
        (Some(message), Some(details)) => Err(format!("{message}; {details}")),
        (Some(message), None) => Err(message.to_owned()),
        (None, _) => {
            let mut said = shortened(&output.stdout);
            if said.is_empty() {
                said = shortened(&output.stderr);
            }
            Err(if said.is_empty() { output.status.to_string() } else { format!("{}: {said}", output.status) })
        }
    }
}

fn shortened(bytes: &[u8]) -> String {
    const MOST_CHARACTERS: usize = 1000;
    String::from_utf8_lossy(bytes).trim().chars().take(MOST_CHARACTERS).collect()
}

fn joined(folders: &[PathBuf]) -> OsString {
    folders.iter().map(|folder| folder.as_os_str()).collect::<Vec<_>>().join(":".as_ref())
}
