//! `trireme down`: stops the local cluster, and deletes it if asked.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::{Instant, sleep};

use super::{
    control::{self, Request},
    layout::Layout,
    network,
    spec::ClusterSpec,
    supervisor::{self, Lock, Supervisor},
    up,
};
use crate::cli::DownArgs;

/// How long the supervisor may take to stop everything.
const DOWN_TIMEOUT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);

pub async fn run(args: DownArgs) -> Result<()> {
    let layout = Layout::find(args.folder.data_dir.as_deref())?;
    let spec = ClusterSpec::load_existing(&layout)?;
    let _lock = stop_everything(&layout, &spec).await?;
    clear(&layout, &spec).await?;
    say!("Stopped.");
    if args.purge {
        purge(&layout).with_context(|| format!("cannot delete {}", layout.root().display()))?;
        say!("Deleted {}.", layout.root().display());
    }
    Ok(())
}

/// Ends the containers of every node, and removes the network. The agents must have stopped.
pub async fn clear(layout: &Layout, spec: &ClusterSpec) -> Result<()> {
    let with_containers: Vec<&str> = spec
        .nodes
        .iter()
        .map(|node| node.name.as_str())
        .filter(|name| crate::node::may_have_containers(&layout.process(name)))
        .collect();
    if !with_containers.is_empty() {
        // After a reboot the namespaces are gone, but what was made in the nodes' names still has to be cleared away.
        network::ensure(spec).await?;
    }
    for name in with_containers {
        stop_pods(layout, spec, name).await.with_context(|| format!("cannot stop the pods of {name}"))?;
    }
    network::remove(spec).await
}

/// Deletes the folder; what says that it is a cluster's goes last, so that an interrupted purge can be repeated.
fn purge(layout: &Layout) -> std::io::Result<()> {
    for entry in std::fs::read_dir(layout.root())? {
        let path = entry?.path();
        if path == layout.spec() {
            continue;
        }
        if path.is_dir() && !path.is_symlink() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }?;
    }
    std::fs::remove_dir_all(layout.root())
}

/// Stops every process, by the supervisor if one runs. The lock says that nothing is started meanwhile.
async fn stop_everything(layout: &Layout, spec: &ClusterSpec) -> Result<Lock> {
    let deadline = Instant::now() + DOWN_TIMEOUT;
    let asked = control::ask(layout, &Request::Down).await?.is_some();
    loop {
        if let Some(lock) = Lock::take(layout)? {
            // The supervisor may have been killed: its processes live on.
            Supervisor::new(layout.clone(), spec.clone())?.stop_all().await?;
            return Ok(lock);
        }
        if Instant::now() > deadline {
            let why = if asked { "does not end" } else { "does not answer" };
            bail!("the supervisor of {} {why}; see {}", layout.root().display(), layout.supervisor_log().display());
        }
        sleep(POLL).await;
    }
}

/// Ends the containers of one node, which outlive its agent.
async fn stop_pods(layout: &Layout, spec: &ClusterSpec, name: &str) -> Result<()> {
    let mut arguments = up::process_arguments(layout, spec, name)?;
    arguments[0] = "stop-pods".into();
    let output = supervisor::own_program(spec, &supervisor::own_path()?, name).args(arguments).output().await?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
