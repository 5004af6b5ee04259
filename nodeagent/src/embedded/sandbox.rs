//! A pod's sandbox as the agent sees it: its folder, its shim, and what happens when the shim goes.

use std::{
    collections::BTreeSet,
    fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::mpsc, task::AbortHandle};
use trireme_api::clock::Clock;

use super::{
    cgroup, client,
    protocol::{Request, Response},
    state::{self, ContainerOutcome, ContainerRecord, SandboxFolder, SandboxRecord},
};
use crate::runtime::{ContainerState, ContainerStatus, RuntimeEvent};

const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(30);
/// Exit code and reason of a container whose end nobody saw, as containerd gives them.
const UNKNOWN_CODE: i32 = 255;
const UNKNOWN_REASON: &str = "Unknown";

/// A sandbox that this agent knows.
pub struct Sandbox {
    pub folder: SandboxFolder,
    pub record: SandboxRecord,
    /// Whether its shim answers; cleared by the task that watches it.
    alive: Arc<AtomicBool>,
    watcher: AbortHandle,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl Sandbox {
    /// Takes charge of a sandbox. If its shim does not answer, it is not alive and its processes are killed.
    pub async fn adopt(
        folder: SandboxFolder,
        record: SandboxRecord,
        events: mpsc::Sender<RuntimeEvent>,
        clock: Arc<dyn Clock>,
    ) -> Sandbox {
        let alive = Arc::new(AtomicBool::new(false));
        let connection = if record.stopped { None } else { client::watch(&folder).await.ok() };
        alive.store(connection.is_some(), Ordering::Release);
        let task = Watcher { folder: folder.clone(), record: record.clone(), alive: alive.clone(), events, clock };
        let watcher = tokio::spawn(task.run(connection)).abort_handle();
        Sandbox { folder, record, alive, watcher }
    }

    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    pub async fn ask(&self, request: &Request, patience: Duration) -> io::Result<Response> {
        client::ask(&self.folder, request, patience).await
    }

    /// The containers of this sandbox, as they lie on disk. Blocking.
    pub fn containers(&self) -> io::Result<Vec<ContainerRecord>> {
        container_records(&self.folder)
    }

    /// The container's state. Blocking.
    pub fn status(&self, record: ContainerRecord) -> io::Result<ContainerStatus> {
        let outcome: Option<ContainerOutcome> = state::load(&self.folder.container(&record.id).outcome())?;
        Ok(container_status(record, outcome, self.is_alive()))
    }
}

/// Ends everything that runs in the sandbox: by its shim if it answers, by its cgroup in any case.
pub async fn end_processes(folder: &SandboxFolder, record: &SandboxRecord) -> io::Result<()> {
    if let Err(error) = client::ask(folder, &Request::Shutdown, SHUTDOWN_PATIENCE).await {
        tracing::debug!(sandbox = record.id, %error, "the sandbox process does not answer; killing by cgroup");
    }
    let cgroup = record.cgroup.clone();
    blocking(move || {
        cgroup::kill_all(&cgroup)?;
        cgroup::remove(&cgroup)?;
        // The pod's own, which another sandbox of the pod may still use.
        cgroup.parent().filter(|pod| pod.components().count() > 2).map_or(Ok(()), cgroup::remove_if_empty)
    })
    .await
}

/// Writes the end of containers whose end nobody saw. Blocking.
pub fn settle_outcomes(folder: &SandboxFolder, clock: &dyn Clock) -> io::Result<()> {
    for record in container_records(folder)? {
        let path = folder.container(&record.id).outcome();
        let Some(outcome) = state::load::<ContainerOutcome>(&path)? else { continue };
        if outcome.finished_at.is_none() {
            let settled = ContainerOutcome {
                finished_at: Some(clock.now()),
                exit_code: UNKNOWN_CODE,
                reason: UNKNOWN_REASON.to_owned(),
                ..outcome
            };
            state::save(&path, &settled)?;
        }
    }
    Ok(())
}

/// Reads the records in a sandbox's folder. A container whose record was never written does not exist. Blocking.
pub fn container_records(folder: &SandboxFolder) -> io::Result<Vec<ContainerRecord>> {
    let mut records = Vec::new();
    let list = match fs::read_dir(folder.containers()) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(records),
        Err(error) => return Err(error),
    };
    for entry in list {
        let id = entry?.file_name();
        if let Some(record) = state::load::<ContainerRecord>(&folder.container(&id.to_string_lossy()).record())? {
            records.push(record);
        }
    }
    records.sort_by(|one, other| one.created_at.cmp(&other.created_at).then_with(|| one.id.cmp(&other.id)));
    Ok(records)
}

/// The names of all containers on disk, whether or not their records are whole. Blocking.
pub fn container_names(folder: &SandboxFolder) -> io::Result<BTreeSet<String>> {
    match fs::read_dir(folder.containers()) {
        Ok(list) => list.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

/// Runs blocking work on a thread of its own.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Removes a folder and everything in it; one that is not there is removed.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn container_status(record: ContainerRecord, outcome: Option<ContainerOutcome>, shim_is_alive: bool) -> ContainerStatus {
    let outcome_known = outcome.is_some();
    let outcome = outcome.unwrap_or_default();
    let state = match (outcome.finished_at, outcome_known, shim_is_alive) {
        (Some(_), _, _) => ContainerState::Exited,
        (None, true, true) => ContainerState::Running,
        (None, true, false) => ContainerState::Unknown,
        (None, false, _) => ContainerState::Created,
    };
    ContainerStatus {
        id: record.id,
        sandbox_id: record.sandbox_id,
        pod: record.pod,
        name: record.config.name,
        attempt: record.config.attempt,
        state,
        created_at: record.created_at,
        started_at: outcome.started_at,
        finished_at: outcome.finished_at,
        exit_code: outcome.exit_code,
        signal: outcome.signal,
        reason: outcome.reason,
        message: outcome.message,
        image: record.image_reference,
        image_id: record.image_id,
        log_path: record.log_path,
    }
}

struct Watcher {
    folder: SandboxFolder,
    record: SandboxRecord,
    alive: Arc<AtomicBool>,
    events: mpsc::Sender<RuntimeEvent>,
    clock: Arc<dyn Clock>,
}

impl Watcher {
    async fn run(self, connection: Option<tokio::net::UnixStream>) {
        if let Some(mut connection) = connection {
            while client::changed(&mut connection).await.is_ok() {
                self.announce();
            }
            self.alive.store(false, Ordering::Release);
        }
        let (folder, cgroup, clock) = (self.folder.clone(), self.record.cgroup.clone(), self.clock.clone());
        let settled = blocking(move || {
            cgroup::kill_all(&cgroup)?;
            settle_outcomes(&folder, &*clock)
        });
        if let Err(error) = settled.await {
            tracing::warn!(sandbox = self.record.id, %error, "cannot settle the containers of a sandbox that is gone");
        }
        self.announce();
    }

    /// A full queue loses the event: the agent looks at everything from time to time.
    fn announce(&self) {
        drop(self.events.try_send(RuntimeEvent { pod: self.record.config.pod.clone() }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        image::ProcessDefaults,
        runtime::{ContainerConfig, ContainerResources, ContainerSecurity, PodIdentity},
    };

    #[test]
    fn the_state_follows_from_what_is_on_disk_and_whether_the_shim_lives() {
        let record = ContainerRecord {
            id: "c".to_owned(),
            sandbox_id: "s".to_owned(),
            pod: PodIdentity { namespace: "n".to_owned(), name: "p".to_owned(), uid: "u".to_owned() },
            config: ContainerConfig {
                name: "main".to_owned(),
                attempt: 3,
                image: "i".to_owned(),
                command: Vec::new(),
                args: Vec::new(),
                working_directory: None,
                environment: Vec::new(),
                mounts: Vec::new(),
                resources: ContainerResources::default(),
                security: ContainerSecurity::default(),
                stdin: false,
                stdin_once: false,
                tty: false,
                log_path: "l".into(),
                labels: Default::default(),
                annotations: Default::default(),
            },
            image_id: "sha256:1".to_owned(),
            image_reference: "i".to_owned(),
            defaults: ProcessDefaults::default(),
            layers_folder: "/l".into(),
            layers: Vec::new(),
            cgroup: "/c".into(),
            log_path: "/l".into(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
        };
        let running = ContainerOutcome { started_at: Some(jiff::Timestamp::UNIX_EPOCH), ..ContainerOutcome::default() };
        let ended = ContainerOutcome { finished_at: Some(jiff::Timestamp::UNIX_EPOCH), exit_code: 7, ..running.clone() };
        for (outcome, alive, expected) in [
            (None, true, ContainerState::Created),
            (Some(running.clone()), true, ContainerState::Running),
            (Some(running), false, ContainerState::Unknown),
            (Some(ended), false, ContainerState::Exited),
        ] {
            assert_eq!(container_status(record.clone(), outcome, alive).state, expected);
        }
    }
}
