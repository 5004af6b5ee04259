//! `trireme up`: a whole cluster on this machine, started or resumed.

use std::{ffi::OsString, net::SocketAddr, process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, api::ListParams};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    certificates,
    control::{self, Action, Request},
    down,
    layout::Layout,
    network,
    progress::Progress,
    spec::{ClusterSpec, MOST_MASTERS, MOST_NODES, NetworkMode, Wishes},
    supervisor::{self, Lock, Supervisor},
};
use crate::{
    cli::{DataDirArgs, MOST_SECONDS},
    client, https, logging,
    pki::{self, LifetimeArgs},
    settings::RuntimeChoice,
    tls,
};

/// How long a cluster may take to become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(50);
/// The usual thresholds, but for the disk: all nodes share that of this machine, where a tenth may be a lot and yet not be free.
const EVICTION_HARD: &str = "memory.available<100Mi,nodefs.available<512Mi,nodefs.inodesFree<1%,pid.available<5%";

#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub folder: DataDirArgs,
    /// How many masters: 1, 3 or 5 (an even number only adds what can fail) [default: 3].
    #[arg(long, value_name = "COUNT")]
    pub masters: Option<usize>,
    /// How many nodes [default: 3].
    #[arg(long, value_name = "COUNT")]
    pub nodes: Option<usize>,
    /// The availability zones; masters and nodes are dealt round them [default: zone-a,zone-b,zone-c].
    #[arg(long, value_name = "ZONES", value_delimiter = ',')]
    pub zones: Option<Vec<String>>,
    /// What runs containers [default: auto].
    #[arg(long, value_enum)]
    pub runtime: Option<RuntimeChoice>,
    /// The balancer's port; the masters' follow it [default: 6443].
    #[arg(long, value_name = "PORT")]
    pub port_base: Option<u16>,
    /// Which processes get a network namespace of their own; needs root for more than `none` [default: nodes for root, else none].
    #[arg(long, value_enum)]
    pub netns: Option<NetnsChoice>,
    /// How long a node may be silent before it counts as not ready, in seconds [default: 40].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(4..=MOST_SECONDS))]
    pub node_grace_seconds: Option<u64>,
    #[command(flatten)]
    pub certificates: LifetimeArgs,
    /// Return when the cluster is ready, and leave it running.
    #[arg(long)]
    pub detach: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NetnsChoice {
    None,
    Nodes,
    /// Nodes and masters.
    Masters,
}

impl NetnsChoice {
    fn mode(self) -> NetworkMode {
        match self {
            Self::None => NetworkMode::Shared,
            Self::Nodes => NetworkMode::Nodes,
            Self::Masters => NetworkMode::Masters,
        }
    }
}

/// Starts or resumes the cluster of a folder.
pub async fn run(args: UpArgs, now: Timestamp) -> Result<()> {
    let layout = Layout::find(args.folder.data_dir.as_deref())?;
    supervisor::check_socket_path(layout.socket())?;
    let wishes = wishes(&args)?;
    if !layout.spec().exists() {
        layout.check_ours()?;
        layout.check_space()?;
    }
    let started = Instant::now();
    match Lock::take(&layout)? {
        None => join_running(&layout, &args, started).await,
        Some(lock) => {
            let spec = open_cluster(&layout, &args, &wishes, now).await?;
            if args.detach {
                drop(lock);
                detach(&layout, &spec).await?;
                wait_ready(&layout, &spec, started).await
            } else {
                stay(layout, spec, lock, started).await
            }
        }
    }
}

/// The cluster runs already: start what is missing of it.
async fn join_running(layout: &Layout, args: &UpArgs, started: Instant) -> Result<()> {
    let spec = ClusterSpec::load_existing(layout)?;
    check_unchanged(layout, &spec, args)?;
    for zone in spec.process_names() {
        let request = Request::Act { name: zone.to_owned(), action: Action::Start };
        if control::ask(layout, &request).await?.is_none() {
            bail!("the supervisor of {} is starting or stopping; try again in a moment", layout.root().display());
        }
    }
    wait_ready(layout, &spec, started).await
}

/// The cluster that the folder holds, or a new one in it.
async fn open_cluster(layout: &Layout, args: &UpArgs, wishes: &Wishes, now: Timestamp) -> Result<ClusterSpec> {
    let spec = match ClusterSpec::load(layout)? {
        Some(spec) => {
            check_unchanged(layout, &spec, args)?;
            spec
        }
        None => new_cluster(wishes).await?,
    };
    check_ports(layout, &spec)?;
    // Before the certificates, which bear the cluster's id: those that are missing are made at the next start.
    spec.save(layout)?;
    certificates::issue(layout, &spec, now)?;
    Ok(spec)
}

/// What the flags ask of a new cluster.
fn wishes(args: &UpArgs) -> Result<Wishes> {
    let root = nix::unistd::geteuid().is_root();
    let wishes = Wishes {
        masters: args.masters.unwrap_or(3),
        nodes: args.nodes.unwrap_or(3),
        zones: args.zones.clone().unwrap_or_else(|| ["zone-a", "zone-b", "zone-c"].map(str::to_owned).to_vec()),
        runtime: args.runtime.unwrap_or(RuntimeChoice::Auto),
        port_base: args.port_base.unwrap_or(6443),
        network: args.netns.map_or(if root { NetworkMode::Nodes } else { NetworkMode::Shared }, NetnsChoice::mode),
        node_grace_seconds: args.node_grace_seconds,
        certificate_lifetime: args.certificates.lifetime(),
    };
    ensure!((1..=MOST_MASTERS).contains(&wishes.masters), "--masters must be between 1 and {MOST_MASTERS}");
    ensure!(wishes.nodes <= MOST_NODES, "--nodes must be at most {MOST_NODES}");
    ensure!((1024..=65000).contains(&wishes.port_base), "--port-base must be between 1024 and 65000");
    for zone in &wishes.zones {
        let fits = !zone.is_empty() && trireme_api::names::is_label_value(zone).is_empty();
        ensure!(fits, "`{zone}` is not a zone's name: it must be a label value of letters, digits, `-`, `_` and `.`");
        let is_process = ["master-", "node-"]
            .iter()
            .any(|kind| zone.strip_prefix(kind).is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit())));
        ensure!(!is_process, "`{zone}` is not a zone's name: masters and nodes are called so");
    }
    ensure!(root || wishes.network == NetworkMode::Shared, "network namespaces need root; run as root or with --netns none");
    ensure!(
        root || wishes.runtime != RuntimeChoice::Embedded,
        "the embedded runtime needs root; run as root or with --runtime hollow"
    );
    Ok(wishes)
}

/// What a new cluster with these flags consists of. Nothing is made yet.
pub async fn plan(args: &UpArgs) -> Result<ClusterSpec> {
    let layout = Layout::find(args.folder.data_dir.as_deref())?;
    supervisor::check_socket_path(layout.socket())?;
    let wishes = wishes(args)?;
    layout.check_space()?;
    new_cluster(&wishes).await
}

async fn new_cluster(wishes: &Wishes) -> Result<ClusterSpec> {
    let id = uuid::Uuid::new_v4();
    let subnet = if wishes.network == NetworkMode::Shared { 0 } else { network::free_subnet(id.as_bytes()[0]).await? };
    Ok(ClusterSpec::new(wishes, id.simple().to_string(), subnet))
}

/// What a cluster consists of is decided once; flags that say otherwise are refused rather than ignored.
fn check_unchanged(layout: &Layout, spec: &ClusterSpec, args: &UpArgs) -> Result<()> {
    let differs = [
        ("--masters", args.masters.is_some_and(|masters| masters != spec.masters.len())),
        ("--nodes", args.nodes.is_some_and(|nodes| nodes != spec.nodes.len())),
        ("--runtime", args.runtime.is_some_and(|runtime| runtime != spec.runtime)),
        ("--port-base", args.port_base.is_some_and(|port| port != spec.port_base)),
        ("--node-grace-seconds", args.node_grace_seconds.is_some_and(|grace| Some(grace) != spec.node_grace_seconds)),
        ("--certificate-days", args.certificates.lifetime().is_some_and(|lifetime| Some(lifetime) != spec.certificate_lifetime)),
        ("--netns", args.netns.is_some_and(|netns| netns.mode() != spec.network)),
        ("--zones", args.zones.as_ref().is_some_and(|zones| zones_differ(spec, zones))),
    ];
    for (flag, differs) in differs {
        if differs {
            bail!(
                "{} holds a cluster that was made with another {flag}; leave the flag out to resume it, or delete it with `trireme down --purge`",
                layout.root().display()
            );
        }
    }
    Ok(())
}

fn zones_differ(spec: &ClusterSpec, zones: &[String]) -> bool {
    // Masters that came later were not dealt round the zones.
    let masters = spec.masters.iter().take_while(|master| master.member_id.is_none());
    let all = masters.map(|master| &master.zone).enumerate().chain(spec.nodes.iter().map(|node| &node.zone).enumerate());
    zones.is_empty() || all.into_iter().any(|(index, zone)| *zone != zones[index % zones.len()])
}

/// Finds a port in use before anything is started.
fn check_ports(layout: &Layout, spec: &ClusterSpec) -> Result<()> {
    let left_running = Supervisor::new(layout.clone(), spec.clone())?;
    let mut sockets = vec![spec.balancer()];
    if spec.network != NetworkMode::Masters {
        let stopped = spec.masters.iter().filter(|master| !left_running.is_running(&master.name));
        sockets.extend(stopped.flat_map(|master| [master.api, master.peer, spec.etcd_address(master)]));
    }
    if spec.network == NetworkMode::Shared {
        let stopped = spec.nodes.iter().filter(|node| !left_running.is_running(&node.name));
        sockets.extend(stopped.map(|node| SocketAddr::new(node.address, node.port)));
    }
    for socket in sockets {
        std::net::TcpListener::bind(socket)
            .with_context(|| format!("cannot use {socket}; stop what listens there, or choose other ports with --port-base"))?;
    }
    Ok(())
}

/// The arguments that a master or node of this cluster is started with.
pub fn process_arguments(layout: &Layout, spec: &ClusterSpec, name: &str) -> Result<Vec<OsString>> {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut flag = |name: &str, value: OsString| arguments.extend([OsString::from(format!("--{name}")), value]);
    flag("name", name.into());
    flag("data-dir", layout.process(name).into());
    flag("pki-dir", layout.process_pki(name).into());
    if let Some(master) = spec.masters.iter().find(|master| master.name == name) {
        // A master that belongs to the group under an id joins it, and never begins another one.
        if let Some(id) = master.member_id {
            flag("member-id", id.to_string().into());
        }
        let members: Vec<String> = spec.masters.iter().map(|member| format!("{}={}", member.name, member.peer)).collect();
        let mut listen = vec![master.api.to_string()];
        if spec.network == NetworkMode::Nodes {
            listen.push(spec.master_api_for_nodes(master).to_string());
        }
        flag("zone", master.zone.clone().into());
        flag("cluster-id", spec.cluster_id.clone().into());
        flag("initial-members", members.join(",").into());
        flag("listen-api", listen.join(",").into());
        flag("advertise-api", spec.master_api_for_nodes(master).to_string().into());
        flag("listen-peer", master.peer.to_string().into());
        flag("listen-client", spec.etcd_address(master).to_string().into());
        if let Some(grace) = spec.node_grace_seconds {
            flag("node-grace-seconds", grace.to_string().into());
        }
        return Ok([vec!["master".into()], arguments].concat());
    }
    let node =
        spec.nodes.iter().find(|node| node.name == name).with_context(|| format!("this cluster has no process `{name}`"))?;
    let masters: Vec<String> = spec.masters_seen_by(&node.zone).iter().map(ToString::to_string).collect();
    let runtime = spec.runtime.to_possible_value().context("the runtime has no name")?;
    flag("zone", node.zone.clone().into());
    flag("masters", masters.join(",").into());
    flag("address", node.address.to_string().into());
    flag("port", node.port.to_string().into());
    flag("runtime", runtime.get_name().into());
    flag("image-dir", layout.images().into());
    flag("eviction-hard", EVICTION_HARD.into());
    if let Some(grace) = spec.node_grace_seconds {
        // Four heartbeats to a grace period, as the defaults have it: one that is lost must not make a node unready.
        flag("heartbeat-seconds", (grace / 4).max(1).to_string().into());
    }
    Ok([vec!["node".into()], arguments].concat())
}

/// Leaves a supervisor behind that is no child of this terminal.
async fn detach(layout: &Layout, spec: &ClusterSpec) -> Result<()> {
    let log_path = layout.supervisor_log();
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .with_context(|| format!("cannot open {}", log_path.display()))?;
    let mut child = tokio::process::Command::new(supervisor::own_path()?)
        .args(["supervise", "--data-dir"])
        .arg(layout.root())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .kill_on_drop(false)
        .spawn()
        .context("cannot start the supervisor")?;
    let deadline = Instant::now() + READY_TIMEOUT;
    while control::ask(layout, &Request::List).await?.is_none() {
        if let Some(status) = child.try_wait()? {
            bail!("the supervisor ended ({status}): {}", last_line(&layout.supervisor_log()));
        }
        ensure!(Instant::now() < deadline, "the supervisor of {} does not answer; see {}", spec.cluster_id, log_path.display());
        sleep(POLL).await;
    }
    Ok(())
}

pub fn last_line(path: &std::path::Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().last().map_or_else(|| format!("see {}", path.display()), str::to_owned)
}

/// `trireme supervise`: what `up --detach` leaves behind.
pub async fn supervise(folder: DataDirArgs, shutdown: CancellationToken) -> Result<()> {
    let layout = Layout::find(folder.data_dir.as_deref())?;
    let spec = ClusterSpec::load_existing(&layout)?;
    let lock =
        Lock::take(&layout)?.with_context(|| format!("another supervisor keeps the cluster in {}", layout.root().display()))?;
    Arc::new(Supervisor::new(layout, spec)?).run(lock, shutdown).await
}

/// Keeps the cluster in the foreground until it is interrupted.
async fn stay(layout: Layout, spec: ClusterSpec, lock: Lock, started: Instant) -> Result<()> {
    logging::start(&logging::LogArgs::to_file(layout.supervisor_log()))?;
    let shutdown = crate::shutdown_on_signals()?;
    let supervisor = Arc::new(Supervisor::new(layout.clone(), spec.clone())?);
    let mut supervising = tokio::spawn(supervisor.run(lock, shutdown.clone()));
    let ready = tokio::select! {
        ready = wait_ready(&layout, &spec, started) => ready,
        ended = &mut supervising => return ended?,
        () = shutdown.cancelled() => Ok(()),
    };
    match ready {
        Ok(()) if !shutdown.is_cancelled() => say!("\nCtrl-C stops the cluster."),
        Ok(()) => {}
        Err(error) => {
            shutdown.cancel();
            supervising.await??;
            return Err(error);
        }
    }
    supervising.await??;
    down::clear(&layout, &spec).await
}

/// Waits until every master answers `/readyz` and every node is Ready, and says how to use the cluster.
async fn wait_ready(layout: &Layout, spec: &ClusterSpec, started: Instant) -> Result<()> {
    let progress = Progress::start(spec.masters.len() + spec.nodes.len());
    let deadline = started + READY_TIMEOUT;
    let paths = pki::admin_paths(&layout.pki());
    for master in &spec.masters {
        loop {
            match https::ready(master.api, &Arc::new(tls::client(&paths)?), Duration::from_secs(2)).await {
                Ok(()) => break,
                Err(error) => give_up_if_dead(layout, &master.name, deadline, error).await?,
            }
        }
        progress.done(&format!("{} in {} is ready", master.name, master.zone));
    }
    let masters: Vec<String> = spec.masters.iter().map(|master| master.api.to_string()).collect();
    let mut waiting: Vec<&str> = spec.nodes.iter().map(|node| node.name.as_str()).collect();
    while let Some(first) = waiting.first().copied() {
        // With the certificate of the moment: it may be renewed meanwhile.
        let nodes: Api<Node> = Api::all(client::connect(masters.clone(), tls::client(&paths)?)?);
        let listed = nodes.list(&ListParams::default()).await;
        let ready: Vec<String> =
            listed.iter().flatten().filter(|node| is_ready(node)).filter_map(|node| node.metadata.name.clone()).collect();
        for name in waiting.extract_if(.., |name| ready.iter().any(|ready| ready == name)) {
            progress.done(&format!("{name} is ready"));
        }
        if !waiting.is_empty() {
            let why = listed.err().map_or_else(|| anyhow::anyhow!("the node is not Ready"), anyhow::Error::from);
            give_up_if_dead(layout, first, deadline, why).await?;
        }
    }
    progress.finish();
    say!("Ready in {:.1} s: {} masters and {} nodes.", started.elapsed().as_secs_f64(), spec.masters.len(), spec.nodes.len());
    say!("\n  export KUBECONFIG={}\n  kubectl get nodes -L topology.kubernetes.io/zone\n", layout.kubeconfig().display());
    Ok(())
}

/// A pause before the next look, or the reason why there is no use in waiting.
async fn give_up_if_dead(layout: &Layout, name: &str, deadline: Instant, why: anyhow::Error) -> Result<()> {
    let log = layout.process_log(name);
    if let Some(processes) = control::ask(layout, &Request::List).await? {
        let stopped = processes.iter().find(|process| process.state == super::process::ProcessState::Stopped);
        if let Some(process) = stopped {
            let log = layout.process_log(&process.name);
            bail!("{} ended: {} (see {})", process.name, last_line(&log), log.display());
        }
    }
    if Instant::now() > deadline {
        return Err(why).with_context(|| format!("{name} is not ready after {READY_TIMEOUT:?}; see {}", log.display()));
    }
    sleep(POLL).await;
    Ok(())
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
