//! The agent as a whole: wiring, and the watch on this node's pods that feeds the workers.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, utils::Backoff, watcher},
};
use parking_lot::RwLock;
use tokio::{
    sync::{mpsc, watch},
    task::{self, JoinSet},
};
use tokio_util::sync::CancellationToken;
use trireme_api::clock::Clock;

use crate::{
    config::{Capacity, NodeAgentConfig},
    events::{self, Recorder},
    housekeeping,
    node::{machine, reporter},
    pod::{
        service_links::{self, Services},
        status::NodeFacts,
        worker::{self, Desired, Presence},
    },
    runtime::{Fidelity, Runtime, RuntimeError, RuntimeEvent},
    server, volume,
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
    /// The Services, if there are processes to be told of them.
    pub services: Option<Services>,
    /// `name://version`.
    pub runtime_version: String,
    /// The pods that have a worker, by uid. A pod stays here until everything of it is cleaned away.
    pub pods: RwLock<HashMap<String, Arc<Pod>>>,
    /// The ranges that the pods' addresses are from, as the runtime has taken them; `None` as long as the Node has none. Written by
    /// the reporter; pods that need an address wait for it.
    pub pod_cidrs: watch::Sender<Option<Vec<String>>>,
    /// The uid of the Node object that the agent is registered as; written by the reporter.
    pub node_uid: RwLock<Option<String>>,
    /// Whether the API has told all pods of this node at least once: only then may what belongs to no pod be removed.
    pub synced: AtomicBool,
}

/// Runs a node agent until `shutdown` is cancelled; its pods go on running then.
///
/// # Errors
/// When the runtime does not answer at start, or the data folder or the listening socket cannot be had. A missing API is
/// no error: the agent waits for it.
pub async fn run(
    client: Client,
    mut config: NodeAgentConfig,
    runtime: Arc<dyn Runtime>,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) -> Result<(), NodeAgentError> {
    let version = runtime.version().await.map_err(NodeAgentError::Runtime)?;
    if let Some(folder) = &config.data_dir {
        let made = std::fs::create_dir_all(folder).and_then(|()| folder.canonicalize());
        let context = || format!("could not make {}", folder.display());
        config.data_dir = Some(made.map_err(|source| NodeAgentError::Io { context: context(), source })?);
    }
    let shared = config.data_dir.as_deref().filter(|_| runtime.fidelity() == Fidelity::Real).map(volume::pods_directory);
    if let Some(folder) = &shared
        && let Err(error) = volume::shared::share(folder)
    {
        tracing::warn!(folder = %folder.display(), %error, "volumes in memory and subPaths cannot be mounted into pods");
    }
    let listener = match &config.serving_tls {
        None => None,
        Some(tls) => {
            let bound = tokio::net::TcpListener::bind(config.listen).await;
            let context = || format!("could not listen on {}", config.listen);
            let listener = bound.map_err(|source| NodeAgentError::Io { context: context(), source })?;
            Some((listener, Arc::clone(tls)))
        }
    };
    let (recorder, reports) = Recorder::new(Arc::clone(&clock));
    let capacity = config.capacity.unwrap_or_else(|| machine::capacity(config.data_dir.as_deref()));
    let facts = NodeFacts { node_ip: config.node_ip, runtime_name: version.name.clone() };
    let runtime_version = format!("{}://{}", version.name, version.version);
    let (services, following) = match runtime.fidelity() {
        Fidelity::Real => Some(service_links::follow(client.clone(), shutdown.clone())).unzip(),
        Fidelity::Simulated => (None, None),
    };
    let agent = Arc::new(Agent {
        client,
        config,
        runtime,
        clock,
        recorder,
        facts,
        capacity,
        services,
        runtime_version,
        pods: RwLock::default(),
        pod_cidrs: watch::Sender::new(None),
        node_uid: RwLock::default(),
        synced: AtomicBool::new(false),
    });
    let writer = events::write(agent.client.clone(), agent.config.name.clone(), reports);
    let serving = async {
        if let Some((listener, tls)) = listener {
            server::serve(Arc::clone(&agent), listener, tls, shutdown.clone()).await;
        }
    };
    let work = async {
        tokio::join!(
            reporter::run(Arc::clone(&agent), shutdown.clone()),
            pods(Arc::clone(&agent), shutdown.clone()),
            housekeeping::run(Arc::clone(&agent), shutdown.clone()),
            serving,
            async {
                if let Some(following) = following {
                    following.await;
                }
            },
        )
    };
    tokio::select! {
        () = writer => {}
        _ = work => {}
    }
    if let Some(folder) = &shared
        && let Err(error) = volume::shared::release(folder)
    {
        tracing::debug!(folder = %folder.display(), %error, "the folder of the pods stays mounted");
    }
    Ok(())
}

/// How long a pod is left alone after its worker failed.
const RESPAWN_PAUSE: Duration = Duration::from_secs(1);

/// Runtime events on their way to the workers.
const RUNTIME_EVENTS: usize = 256;

/// Keeps one worker for each pod of this node.
async fn pods(agent: Arc<Agent>, shutdown: CancellationToken) {
    let (sender, events) = mpsc::channel(RUNTIME_EVENTS);
    let runtime = Arc::clone(&agent.runtime);
    // Waits for events in a future of its own, which nothing breaks off: a runtime may be polling in there.
    let forward = async {
        while sender.send(runtime.next_event().await).await.is_ok() {}
        std::future::pending().await
    };
    tokio::select! {
        () = feed_workers(agent, events, shutdown) => {}
        () = forward => {}
    }
}

async fn feed_workers(agent: Arc<Agent>, mut events: mpsc::Receiver<RuntimeEvent>, shutdown: CancellationToken) {
    let selector = format!("spec.nodeName={}", agent.config.name);
    let pods: Api<Pod> = Api::all(agent.client.clone());
    let retry = Retry::new(&agent.config);
    let mut changes = watcher(pods, watcher::Config::default().fields(&selector)).backoff(retry).boxed();
    let mut workers = Workers {
        agent,
        workers: HashMap::new(),
        tasks: JoinSet::new(),
        lives: HashMap::new(),
        listed: None,
        shutdown: shutdown.clone(),
    };
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            change = changes.next() => match change {
                Some(Ok(event)) => workers.take(event),
                Some(Err(error)) => tracing::warn!(node = workers.agent.config.name, %error, "the watch on pods failed; trying again"),
                None => break,
            },
            Some(event) = events.recv() => {
                if let Some(worker) = workers.workers.get(&event.pod.uid) {
                    worker.poke.notify_one();
                }
            }
            Some(ended) = workers.tasks.join_next_with_id() => workers.ended(ended),
        }
    }
    while workers.tasks.join_next().await.is_some() {}
}

/// The waits between tries to watch: 0.2 s doubled up to 5 s, with jitter, so that thousands of agents do not come back at
/// one moment and yet none is long without its pods after the masters return.
struct Retry {
    next: Duration,
    random: u64,
}

impl Retry {
    const FIRST: Duration = Duration::from_millis(200);
    const LAST: Duration = Duration::from_secs(5);

    fn new(config: &NodeAgentConfig) -> Self {
        // FNV-1a of the name, so that each node has jitter of its own under one seed.
        let hash = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Self { next: Self::FIRST, random: config.name.bytes().fold(config.seed ^ 0xcbf2_9ce4_8422_2325, hash) }
    }
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let jitter = f64::from((self.random >> 33) as u32) / f64::from(1_u32 << 31);
        let wait = self.next.mul_f64(0.5 + jitter / 2.0);
        self.next = (self.next * 2).min(Self::LAST);
        Some(wait)
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.next = Self::FIRST;
    }
}

struct Workers {
    agent: Arc<Agent>,
    /// By pod uid.
    workers: HashMap<String, worker::Handle>,
    tasks: JoinSet<()>,
    /// The uid of each task's pod.
    lives: HashMap<task::Id, String>,
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
        let pod = Arc::new(pod);
        self.agent.pods.write().insert(uid.clone(), Arc::clone(&pod));
        let desired = Desired { pod, presence: Presence::Present };
        match self.workers.get(&uid) {
            Some(worker) => {
                worker.desired.send_replace(desired);
            }
            None => {
                let handle = self.spawn(&uid, desired, Duration::ZERO);
                self.workers.insert(uid, handle);
            }
        }
    }

    fn spawn(&mut self, uid: &str, desired: Desired, wait: Duration) -> worker::Handle {
        let (handle, life) = worker::new(Arc::clone(&self.agent), desired, self.shutdown.clone());
        let (agent, ended) = (Arc::clone(&self.agent), uid.to_owned());
        let life = self.tasks.spawn(async move {
            tokio::time::sleep(wait).await;
            life.await;
            agent.pods.write().remove(&ended);
        });
        self.lives.insert(life.id(), uid.to_owned());
        handle
    }

    /// A worker has ended. One that ended by a fault of ours has left its pod without anybody: another takes over.
    fn ended(&mut self, ended: Result<(task::Id, ()), task::JoinError>) {
        let error = match ended {
            Ok((id, ())) => return drop(self.lives.remove(&id)),
            Err(error) => error,
        };
        let Some(uid) = self.lives.remove(&error.id()) else { return };
        tracing::error!(pod = uid, %error, "the worker of a pod failed; starting another");
        match self.workers.remove(&uid) {
            Some(worker) => {
                let desired = worker.desired.borrow().clone();
                let handle = self.spawn(&uid, desired, RESPAWN_PAUSE);
                self.workers.insert(uid, handle);
            }
            // Gone from the API: what is left of it is removed as any pod's that nobody knows.
            None => drop(self.agent.pods.write().remove(&uid)),
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
        self.agent.synced.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_get_rarer_and_never_rare() {
        let mut retry = Retry::new(&NodeAgentConfig::new("n1", "192.0.2.1".parse().unwrap()));
        let waits: Vec<Duration> = retry.by_ref().take(20).collect();
        assert!(waits[0] >= Retry::FIRST / 2 && waits[0] <= Retry::FIRST);
        assert!(waits[10..].iter().all(|wait| *wait >= Retry::LAST / 2 && *wait <= Retry::LAST));
        retry.reset();
        assert!(retry.next().is_some_and(|wait| wait <= Retry::FIRST));
        let other = Retry::new(&NodeAgentConfig::new("n2", "192.0.2.1".parse().unwrap())).take(20).collect::<Vec<_>>();
        assert_ne!(waits, other);
    }
}
