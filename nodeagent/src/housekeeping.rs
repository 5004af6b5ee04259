//! Work that is done from time to time: rotating logs, and removing what belongs to no pod.

use std::{
    collections::HashSet,
    fs, io,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    agent::Agent,
    log,
    runtime::{ContainerState, RuntimeError},
    volume,
};

const INTERVAL: Duration = Duration::from_secs(10);
/// Pods whose objects are gone have no grace period that anyone knows of.
const ORPHAN_GRACE: Duration = Duration::from_secs(1);

/// Cleans until `shutdown`.
pub async fn run(agent: Arc<Agent>, shutdown: CancellationToken) {
    // An agent without a folder is a hollow one: it writes no logs, and its runtime begins empty.
    let Some(data_dir) = agent.config.data_dir.clone() else { return };
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        agent.runtime.tidy().await;
        if let Ok(containers) = agent.runtime.list_containers().await {
            let (config, now) = (&agent.config, agent.clock.now());
            log::rotation::rotate(&*agent.runtime, &containers, config.log_max_bytes, config.log_max_files, now).await;
        }
        if agent.synced.load(Ordering::Relaxed) {
            if let Err(error) = remove_orphans(&agent).await {
                tracing::warn!(%error, "sandboxes without a pod could not be removed");
            }
            if let Err(error) = remove_folders(&agent, &data_dir) {
                tracing::warn!(%error, "folders without a pod could not be removed");
            }
        }
    }
}

/// Stops and removes the sandboxes of pods that the API does not know.
///
/// # Errors
/// When the runtime fails.
pub async fn remove_orphans(agent: &Agent) -> Result<(), RuntimeError> {
    // Listed first, compared afterwards: a pod that is new meanwhile is not taken for an orphan.
    let sandboxes = agent.runtime.list_sandboxes().await?;
    let containers = agent.runtime.list_containers().await?;
    let orphans: Vec<_> = {
        let pods = agent.pods.read();
        sandboxes.into_iter().filter(|sandbox| !pods.contains_key(&sandbox.pod.uid)).collect()
    };
    for sandbox in orphans {
        tracing::info!(pod = sandbox.pod.name, namespace = sandbox.pod.namespace, "removing what is left of a pod that is gone");
        let running = containers
            .iter()
            .filter(|container| container.sandbox_id == sandbox.id && container.state == ContainerState::Running);
        for container in running {
            agent.runtime.stop_container(&container.id, ORPHAN_GRACE).await?;
        }
        agent.runtime.stop_sandbox(&sandbox.id).await?;
        agent.runtime.remove_sandbox(&sandbox.id).await?;
    }
    Ok(())
}

/// Removes volumes and logs of pods that the API does not know.
fn remove_folders(agent: &Agent, data_dir: &Path) -> io::Result<()> {
    let volumes = names(&data_dir.join("pods"))?;
    let logs = names(&log::root(data_dir))?;
    let known: HashSet<String> = agent.pods.read().keys().cloned().collect();
    for uid in volumes.iter().filter(|uid| !known.contains(*uid)) {
        volume::setup::tear_down(data_dir, uid)?;
    }
    // A log folder is `<namespace>_<name>_<uid>`, and none of the three has an underscore.
    let without_pod = |folder: &&String| folder.rsplit('_').next().is_none_or(|uid| !known.contains(uid));
    for folder in logs.iter().filter(without_pod) {
        fs::remove_dir_all(log::root(data_dir).join(folder))?;
    }
    Ok(())
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
