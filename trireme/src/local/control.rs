//! How commands reach the supervisor: one JSON line each way over a Unix socket in the cluster's folder.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::timeout,
};

use super::{
    layout::Layout,
    process::ProcessState,
    spec::{ClusterSpec, MasterSpec},
};
use crate::{cli::ProcessArgs, settings::MemberId};

/// How long a command may take: a stop waits for the process to end.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// What every process is doing.
    List,
    /// Do something to the processes that `name` means.
    Act { name: String, action: Action },
    /// Make a master that the group has taken in a part of the cluster, and start it. `ids` are those of the whole group.
    AddMaster { master: MasterSpec, ids: BTreeMap<String, MemberId> },
    /// Stop a master that the group has removed, and delete what it leaves.
    RemoveMaster { name: String, ids: BTreeMap<String, MemberId> },
    /// Stop everything, then the supervisor itself.
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    Stop,
    Start,
    Kill,
    Pause,
    Resume,
}

impl Action {
    /// What was done to a process, for the line that is printed.
    pub fn done(self) -> &'static str {
        match self {
            Self::Stop => "stopped",
            Self::Start => "started",
            Self::Kill => "killed",
            Self::Pause => "paused",
            Self::Resume => "resumed",
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The processes that the request was about.
    Processes(Vec<Process>),
    Refused(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Process {
    pub name: String,
    pub state: ProcessState,
    pub pid: Option<i32>,
}

/// Asks the supervisor; `None` when none runs.
pub async fn ask(layout: &Layout, request: &Request) -> Result<Option<Vec<Process>>> {
    let Ok(stream) = UnixStream::connect(layout.socket()).await else { return Ok(None) };
    let exchange = async {
        let mut stream = BufReader::new(stream);
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        stream.write_all(line.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_line(&mut answer).await?;
        if answer.is_empty() {
            bail!("the cluster's supervisor ended before it answered");
        }
        Ok(serde_json::from_str::<Answer>(&answer)?)
    };
    match timeout(ANSWER_TIMEOUT, exchange).await.context("the cluster's supervisor does not answer")?? {
        Answer::Processes(processes) => Ok(Some(processes)),
        Answer::Refused(why) => bail!(why),
    }
}

/// Carries out `trireme stop|start|kill|pause|resume NAME` and prints what was done.
pub async fn run(args: ProcessArgs, action: Action) -> Result<()> {
    let layout = Layout::find(args.folder.data_dir.as_deref())?;
    ClusterSpec::load_existing(&layout)?;
    let request = Request::Act { name: args.name, action };
    let Some(processes) = ask(&layout, &request).await? else {
        bail!("the cluster in {} is not running; start it with `trireme up`", layout.root().display());
    };
    for process in processes {
        say!("{} {}", process.name, action.done());
    }
    Ok(())
}
