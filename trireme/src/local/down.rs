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
    // After a reboot the namespaces are gone, but what was made in the nodes' names still has to be cleared away.
    network::ensure(&spec).await?;
    for node in &spec.nodes {
        stop_pods(&layout, &spec, &node.name).await.with_context(|| format!("cannot stop the pods of {}", node.name))?;
    }
    network::remove(&spec).await?;
    println!("Stopped.");
    if args.purge {
        std::fs::remove_dir_all(layout.root()).with_context(|| format!("cannot delete {}", layout.root().display()))?;
        println!("Deleted {}.", layout.root().display());
    }
    Ok(())
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
