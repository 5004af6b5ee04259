//! The control loops of the cluster, except the scheduler: one file for each, clients of the Kubernetes API and nothing more.
//! They never know how objects are stored or routed. Start reading at [`run`], then at [`shared`] for what every loop is built
//! from, then at any loop.

#![forbid(unsafe_code)]

pub mod deployment;
pub mod endpoint_slice;
pub mod endpoints;
pub mod event_ttl;
pub mod garbage_collector;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod pod_gc;
pub mod replica_set;
pub mod replication_controller;
pub mod service_account;
pub mod shared;

#[cfg(test)]
mod loop_tests;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;
use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info};
use trireme_api::{cidr::Ipv4Cidr, clock::Clock};

use replica_set::ReplicaOwner;
use shared::{Informers, Recorder, RecorderSink};

/// How the loops run.
#[derive(Clone, Debug)]
pub struct ControllersConfig {
    /// Workers of each loop (Kubernetes' `--concurrent-…-syncs`, 5 by default).
    pub workers: usize,
    /// Seed of all jitter.
    pub seed: u64,
    /// How often the set of resources is read again, for the garbage collector.
    pub discovery_interval: Duration,
    /// The range pods have their addresses from (`--cluster-cidr`).
    pub pod_cidr: Ipv4Cidr,
    /// The prefix length of a node's part of it (`--node-cidr-mask-size`).
    pub node_cidr_prefix: u8,
    /// How long a node may be silent before it counts as unreachable (`--node-monitor-grace-period`).
    pub node_grace: Duration,
    /// The same for a node that has never posted its status (`--node-startup-grace-period`).
    pub node_startup_grace: Duration,
    /// Nodes a second whose pods may be evicted in a zone (`--node-eviction-rate`).
    pub node_eviction_rate: f64,
    /// The same in a large zone most of whose nodes are not ready (`--secondary-node-eviction-rate`).
    pub secondary_node_eviction_rate: f64,
    /// Finished pods that may be kept (`--terminated-pod-gc-threshold`).
    pub terminated_pod_threshold: usize,
    /// The certificate of the CA that signs the API server's, PEM, for `kube-root-ca.crt` (`--root-ca-file`).
    pub root_ca: Option<String>,
}

impl Default for ControllersConfig {
    fn default() -> Self {
        ControllersConfig {
            workers: 5,
            seed: 0,
            discovery_interval: Duration::from_secs(30),
            pod_cidr: Ipv4Cidr::PODS,
            node_cidr_prefix: 24,
            node_grace: Duration::from_secs(40),
            node_startup_grace: Duration::from_secs(60),
            node_eviction_rate: 0.1,
            secondary_node_eviction_rate: 0.01,
            terminated_pod_threshold: 12_500,
            root_ca: None,
        }
    }
}

/// What a loop is started with. Cheap to clone.
#[derive(Clone)]
pub struct LoopContext {
    pub client: Client,
    /// The shared caches; a loop registers its handlers while it is started.
    pub informers: Informers,
    /// Records events in the loop's own name.
    pub recorder: Recorder,
    pub config: ControllersConfig,
    pub clock: Arc<dyn Clock>,
    /// Cancelled when everything has to stop.
    pub shutdown: CancellationToken,
    /// A seed of the loop's own.
    pub seed: u64,
}

/// One row of the table of loops.
struct Loop {
    /// The name in logs, events and the user agent: Kubernetes' own.
    name: &'static str,
    /// Registers handlers at once and returns the loop, which ends when `shutdown` is cancelled.
    start: fn(LoopContext) -> BoxFuture<'static, ()>,
}

/// Every loop there is.
const LOOPS: &[Loop] = &[
    Loop { name: deployment::LOOP, start: deployment::start },
    Loop { name: endpoint_slice::LOOP, start: endpoint_slice::start },
    Loop { name: endpoints::LOOP, start: endpoints::start },
    Loop { name: event_ttl::LOOP, start: event_ttl::start },
    Loop { name: garbage_collector::LOOP, start: garbage_collector::start },
    Loop { name: namespace::LOOP, start: namespace::start },
    Loop { name: node_ipam::LOOP, start: node_ipam::start },
    Loop { name: node_lifecycle::LOOP, start: node_lifecycle::start },
    Loop { name: node_lifecycle::eviction::LOOP, start: node_lifecycle::eviction::start },
    Loop { name: pod_gc::LOOP, start: pod_gc::start },
    Loop { name: service_account::LOOP, start: service_account::start },
    Loop { name: ReplicaSet::LOOP, start: replica_set::start::<ReplicaSet> },
    Loop { name: ReplicationController::LOOP, start: replica_set::start::<ReplicationController> },
];

/// Runs every control loop until `shutdown` is cancelled, or until one of them fails; leaves no task behind.
pub async fn run(client: Client, config: ControllersConfig, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
    // A token of our own, so that everything ends too when this future is dropped.
    let shutdown = shutdown.child_token();
    let _cancel_on_drop = shutdown.clone().drop_guard();
    let tasks = TaskTracker::new();
    let informers = Informers::new(client.clone(), tasks.clone(), shutdown.clone(), config.seed);
    let sink = RecorderSink::new(clock.clone());
    let mut loops = JoinSet::new();
    for (position, row) in LOOPS.iter().enumerate() {
        let context = LoopContext {
            client: client.clone(),
            informers: informers.clone(),
            recorder: sink.recorder(row.name),
            config: config.clone(),
            clock: clock.clone(),
            shutdown: shutdown.clone(),
            seed: config.seed.wrapping_mul(31).wrapping_add(position as u64),
        };
        info!(controller = row.name, "starting");
        loops.spawn((row.start)(context));
    }
    tasks.spawn(sink.run(client, shutdown.clone()));
    tasks.close();
    while let Some(ended) = loops.join_next().await {
        if let Err(failure) = ended {
            error!(error = %failure, "a control loop ended with a panic");
            // The others work with what it was to keep up to date: all of them end, to be started again together.
            shutdown.cancel();
        }
    }
    shutdown.cancelled().await;
    tasks.wait().await;
    info!("control loops stopped");
}
