//! One node agent: a client of the API, a container runtime and the agent over both.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tracing::info;
use trireme_api::clock::SystemClock;
use trireme_nodeagent::{
    NodeAgentConfig,
    cri::{CriRuntime, Owner},
    embedded::{EmbeddedConfig, EmbeddedRuntime},
    image::RegistryOptions,
    network::{CniConfig, CniNetwork, NetworkConfig, NodeNetwork, PodNetwork, follow_nodes},
    runtime::{
        Runtime,
        hollow::{HollowConfig, HollowRuntime, Logs},
    },
};

use crate::{
    client,
    node_folder::{self, NodeFolder},
    pki::{TlsPaths, renew},
    settings::{NodeSettings, RuntimeChoice},
    tls::{self, ClientCertificates, LiveIdentity},
};

/// How long a runtime's socket may take to answer when the runtime is chosen automatically.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs until `shutdown`; the pods go on.
pub async fn run(settings: NodeSettings, shutdown: CancellationToken) -> Result<()> {
    let identity = LiveIdentity::load(&TlsPaths::in_folder(&settings.pki_dir, "node"))?;
    let serving_tls = identity.server(ClientCertificates::Required)?;
    let client = client::connect(settings.masters.clone(), identity.client()?)?;
    crate::pki::create_private_folder(&settings.data_dir)?;
    let cluster = owner(&settings)?.cluster;
    let found = node_folder::check(&settings.data_dir, &cluster, &settings.name)?;
    let wanted = node_folder::runtime(&settings.data_dir, found.as_ref(), settings.runtime)?;
    let (chosen, (runtime, network)) = choose_runtime(&settings, wanted).await?;
    if found.is_none() {
        node_folder::claim(&settings.data_dir, &cluster, &settings.name, chosen)?;
    }
    let mut config = NodeAgentConfig::new(settings.name.clone(), settings.address);
    config.zone = settings.zone.clone();
    config.labels = settings.labels.iter().map(|label| (label.key.clone(), label.value.clone())).collect();
    // On the node's own address alone: several agents may share a machine.
    config.listen = SocketAddr::new(settings.address, settings.port);
    config.serving_tls = Some(Arc::new(serving_tls));
    config.data_dir = Some(agent_folder(&settings));
    config.max_pods = settings.max_pods;
    config.eviction_hard = settings.eviction_hard.clone();
    config.lease_renew_interval = Duration::from_secs(settings.heartbeat_seconds);
    config.lease_duration = config.lease_renew_interval * 4;
    let routing = async {
        if let Some(network) = network {
            follow_nodes(client.clone(), settings.name.clone(), network, shutdown.clone()).await;
        }
    };
    let agent = trireme_nodeagent::run(client.clone(), config, runtime, Arc::new(SystemClock), shutdown.clone());
    let certificates = tls::follow(vec![identity.followed()], shutdown.clone());
    let renewing = async {
        if let Some(authority) = settings.authority_dir.clone() {
            renew::keep(authority, settings.pki_dir.clone(), Arc::new(SystemClock), shutdown.clone()).await;
        }
    };
    // The agent ends first, if it fails; the others end with the process.
    let (outcome, (), (), ()) = tokio::join!(async { (agent.await, shutdown.cancel()).0 }, routing, certificates, renewing);
    outcome.context("the node agent cannot run")
}

/// The pods' network and, where its routes are this process's to keep, the same again.
type ChosenNetwork = (Arc<dyn PodNetwork>, Option<Arc<NodeNetwork>>);

/// A runtime and, if the pods' network is the built-in one, that: it must be told of the other nodes.
type ChosenRuntime = (Arc<dyn Runtime>, Option<Arc<NodeNetwork>>);

/// The runtime that is wanted or, if that is left open, the best that this machine has; and which one it is.
async fn choose_runtime(settings: &NodeSettings, wanted: RuntimeChoice) -> Result<(RuntimeChoice, ChosenRuntime)> {
    let chosen = match wanted {
        RuntimeChoice::Cri => {
            let runtime = CriRuntime::connect(&settings.cri_socket, owner(settings)?).await;
            let runtime =
                runtime.with_context(|| format!("no container runtime answers at {}", settings.cri_socket.display()))?;
            (Arc::new(runtime) as Arc<dyn Runtime>, None)
        }
        RuntimeChoice::Embedded => embedded(settings).await?,
        RuntimeChoice::Hollow => hollow(),
        RuntimeChoice::Auto => {
            let why_no_cri = match cri_if_it_answers(settings).await {
                Ok(runtime) => {
                    info!(runtime = "cri", socket = %settings.cri_socket.display(), "a container runtime answers on its socket");
                    return Ok((RuntimeChoice::Cri, (Arc::new(runtime), None)));
                }
                Err(error) => format!("{error:#}"),
            };
            if nix::unistd::geteuid().is_root() {
                info!(runtime = "embedded", why_no_cri, "running as root: containers are run by this process");
                return Ok((RuntimeChoice::Embedded, embedded(settings).await?));
            }
            info!(runtime = "hollow", why_no_cri, "not running as root: pods are simulated");
            return Ok((RuntimeChoice::Hollow, hollow()));
        }
    };
    Ok((wanted, chosen))
}

/// Who this node is on a socket that it shares with others: the cluster is known by its authority's certificate.
fn owner(settings: &NodeSettings) -> Result<Owner> {
    let ca = TlsPaths::in_folder(&settings.pki_dir, "node").ca;
    let certificate = std::fs::read(&ca).with_context(|| format!("cannot read {}", ca.display()))?;
    Ok(Owner { cluster: short_digest(&certificate), node: settings.name.clone() })
}

fn short_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

async fn cri_if_it_answers(settings: &NodeSettings) -> Result<CriRuntime> {
    let socket = &settings.cri_socket;
    anyhow::ensure!(socket.exists(), "{} does not exist", socket.display());
    let connecting = async {
        let runtime = CriRuntime::connect(socket, owner(settings)?).await?;
        runtime.version().await?;
        Ok(runtime)
    };
    tokio::time::timeout(PROBE_TIMEOUT, connecting).await.with_context(|| format!("{} does not answer", socket.display()))?
}

async fn embedded(settings: &NodeSettings) -> Result<ChosenRuntime> {
    let program = std::env::current_exe().context("this program's own path is not known")?;
    let folder = runtime_folder(settings);
    let (network, routed) = pod_network(settings, &folder).context("the pod network cannot be set up")?;
    let runtime = EmbeddedRuntime::open(EmbeddedConfig {
        data_dir: folder,
        image_store: settings.image_dir.clone().unwrap_or_else(|| settings.data_dir.join("images")),
        node_name: settings.name.clone(),
        cgroup_root: cgroup_root(&settings.data_dir, &settings.name),
        shim_command: vec![program.into(), crate::SHIM.into()],
        network,
        registries: RegistryOptions::default(),
        clock: Arc::new(SystemClock),
    })
    .await
    .context("the embedded runtime cannot be used")?;
    Ok((Arc::new(runtime), routed))
}

/// The network that the operator's plugins make, or the built-in one; the latter a second time, to be routed by this process.
fn pod_network(settings: &NodeSettings, folder: &Path) -> Result<ChosenNetwork> {
    if let Some(configurations) = &settings.cni_conf_dir {
        info!(folder = %configurations.display(), "pods are connected by CNI plugins");
        let network = CniNetwork::open(CniConfig::new(configurations.clone(), folder.join("cni")))?;
        return Ok((Arc::new(network), None));
    }
    let network = Arc::new(NodeNetwork::open(NetworkConfig::new(folder.join("network")))?);
    Ok((network.clone(), Some(network)))
}

/// What the embedded runtime keeps.
fn runtime_folder(settings: &NodeSettings) -> PathBuf {
    settings.data_dir.join("runtime")
}

/// Whether the agent of this data folder may have left containers, or volumes, behind.
pub fn may_have_containers(data_dir: &Path) -> bool {
    ["runtime", "pods"].iter().any(|folder| data_dir.join(folder).exists())
}

/// Ends every pod that this node's runtime keeps for it.
pub async fn stop_pods(settings: &NodeSettings) -> Result<()> {
    let found = node_folder::check(&settings.data_dir, &owner(settings)?.cluster, &settings.name)?;
    let keeps_containers = matches!(found, Some(NodeFolder { runtime: RuntimeChoice::Embedded | RuntimeChoice::Cri, .. }));
    if let Some(found) = found.filter(|_| keeps_containers) {
        let (_, (runtime, _network)) = choose_runtime(settings, found.runtime).await?;
        for sandbox in runtime.list_sandboxes().await? {
            runtime.stop_sandbox(&sandbox.id).await?;
            runtime.remove_sandbox(&sandbox.id).await?;
        }
    }
    let pods = trireme_nodeagent::volume::pods_directory(&agent_folder(settings));
    if pods.exists() {
        // What volumes had mounted there keeps the data folder from being deleted.
        let pods = pods.canonicalize()?;
        trireme_nodeagent::volume::tmpfs::unmount_under(&pods).context("the pods' volumes cannot be unmounted")?;
    }
    Ok(())
}

/// What the agent writes of its pods: volumes, logs.
fn agent_folder(settings: &NodeSettings) -> PathBuf {
    settings.data_dir.join("pods")
}

/// The cgroup of a node's pods, `/trireme/<folder>/<node>`: local clusters of one machine must not share one.
pub fn cgroup_root(data_dir: &Path, name: &str) -> PathBuf {
    let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    let folder: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    Path::new("/trireme").join(folder).join(name)
}

fn hollow() -> ChosenRuntime {
    let config = HollowConfig { logs: Logs::Written, ..HollowConfig::default() };
    (Arc::new(HollowRuntime::new(config, Arc::new(SystemClock))), None)
}
