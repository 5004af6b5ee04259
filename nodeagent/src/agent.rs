//! The agent as a whole: wiring, and the watch on this node's pods that feeds the workers.

use std::{collections::HashMap, sync::Arc};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use trireme_api::clock::Clock;

use crate::{
    config::{Capacity, NodeAgentConfig},
    events::{self, Recorder},
    node::{machine, reporter},
    pod::{

        status::NodeFacts,
        worker::{self, Desired, Presence},
    },
    runtime::{Runtime, RuntimeError},
};

/// Why an agent could not run.
#[derive(Debug, thiserror::Error)]
pub enum NodeAgentError {
    #[error("the container runtime does not answer: {0}")]
    Runtime(#[source] RuntimeError),
    #[error("{context}: {source}")]
    Io { context: String, source: std::io::Error },
}

/// What every part of one agent shares.
pub struct Agent {
    pub client: Client,
    pub config: NodeAgentConfig,
    pub runtime: Arc<dyn Runtime>,
    pub clock: Arc<dyn Clock>,
    pub recorder: Recorder,
    pub facts: NodeFacts,
    pub capacity: Capacity,
    /// `name://version`.
    pub runtime_version: String,
}

/// Runs a node agent until `shutdown` is cancelled; its pods go on running then.
///
/// # Errors
/// When the runtime does not answer at start, or the data folder or the listening socket cannot be had. A missing API is
/// no error: the agent waits for it.
pub async fn run(
    client: Client,
    config: NodeAgentConfig,
    runtime: Arc<dyn Runtime>,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) -> Result<(), NodeAgentError> {
    let version = runtime.version().await.map_err(NodeAgentError::Runtime)?;
    if let Some(folder) = &config.data_dir {
        let context = || format!("could not make {}", folder.display());
        std::fs::create_dir_all(folder).map_err(|source| NodeAgentError::Io { context: context(), source })?;
    }
    let (recorder, reports) = Recorder::new(Arc::clone(&clock));
    let capacity = config.capacity.unwrap_or_else(|| machine::capacity(config.data_dir.as_deref()));
    let facts = NodeFacts { node_ip: config.node_ip, runtime_name: version.name.clone() };
    let runtime_version = format!("{}://{}", version.name, version.version);
    let agent = Arc::new(Agent { client, config, runtime, clock, recorder, facts, capacity, runtime_version });
    let writer = events::write(agent.client.clone(), agent.config.name.clone(), reports);
    tokio::select! {
        () = writer => {}
        ((), ()) = async { tokio::join!(reporter::run(Arc::clone(&agent), shutdown.clone()), pods(Arc::clone(&agent), shutdown.clone())) } => {}
    }
    Ok(())
}

/// Keeps one worker for each pod of this node.
async fn pods(agent: Arc<Agent>, shutdown: CancellationToken) {
    let selector = format!("spec.nodeName={}", agent.config.name);
    let pods: Api<Pod> = Api::all(agent.client.clone());
    let mut changes = watcher(pods, watcher::Config::default().fields(&selector)).default_backoff().boxed();
    let mut workers = Workers { agent, workers: HashMap::new(), tasks: JoinSet::new(), listed: None, shutdown: shutdown.clone() };
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            change = changes.next() => match change {
                Some(Ok(event)) => workers.take(event),
                Some(Err(error)) => tracing::warn!(node = workers.agent.config.name, %error, "the watch on pods failed; trying again"),
                None => break,
            },
            event = workers.agent.runtime.next_event() => {
                if let Some(worker) = workers.workers.get(&event.pod.uid) {
                    worker.poke.notify_one();
                }
            }
            Some(_) = workers.tasks.join_next() => {}
        }
    }
    while workers.tasks.join_next().await.is_some() {}
}

struct Workers {
    agent: Arc<Agent>,
    /// By pod uid.
    workers: HashMap<String, worker::Handle>,
    tasks: JoinSet<()>,
    /// The uids seen since a list began.
    listed: Option<Vec<String>>,
    shutdown: CancellationToken,
}

impl Workers {
    fn take(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Init => self.listed = Some(Vec::new()),
            watcher::Event::InitApply(pod) => {
                if let (Some(listed), Some(uid)) = (&mut self.listed, &pod.metadata.uid) {
                    listed.push(uid.clone());
                }
                self.apply(pod);
            }
            watcher::Event::InitDone => self.settle(),
            watcher::Event::Apply(pod) => self.apply(pod),
            watcher::Event::Delete(pod) => {
                if let Some(uid) = &pod.metadata.uid
                    && let Some(worker) = self.workers.remove(uid)
                {
                    worker.desired.send_replace(Desired { pod: Arc::new(pod), presence: Presence::Gone });
                }
            }
        }
    }

    fn apply(&mut self, pod: Pod) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let desired = Desired { pod: Arc::new(pod), presence: Presence::Present };
        match self.workers.get(&uid) {
            Some(worker) => {
                worker.desired.send_replace(desired);
            }
            None => {
                let (handle, life) = worker::new(Arc::clone(&self.agent), desired, self.shutdown.clone());
                self.tasks.spawn(life);
                self.workers.insert(uid, handle);
            }
        }
    }

    /// A list is complete: pods that were not in it are gone, and so is what an earlier agent left of others.
    fn settle(&mut self) {
        let Some(listed) = self.listed.take() else { return };
        let gone: Vec<String> = self.workers.keys().filter(|uid| !listed.contains(uid)).cloned().collect();
        for uid in gone {
            if let Some(worker) = self.workers.remove(&uid) {
                worker.desired.send_modify(|desired| desired.presence = Presence::Gone);
            }
        }
    }
}
