//! One master: the store's member, the API server over it, and, while it leads, the control loops.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use axum::{Json, Router, extract::State, routing::get};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info};
use trireme_api::{
    cidr::Ipv4Cidr,
    clock::{Clock, SystemClock},
    kinds,
};
use trireme_apiserver::{ApiServer, ApiServerConfig, ServiceCidr, VersionInfo};
use trireme_consensus::{Consensus, Limits, MasterConfig, Member, MemberStatus, NodeId, PeerTls, Role, TcpDialer, Timing};
use trireme_etcd::{EtcdServer, EtcdServerConfig};
use trireme_storage::engine::{
    EngineError,
    rocks::{RocksEngine, RocksOptions},
};

use crate::{
    group::EtcdGroup,
    leader::{self, Leader},
    pki::{self, Identity, TlsPaths, renew},
    process_metrics::ProcessCollector,
    settings::MasterSettings,
    tls::{self, ClientCertificates, Followed, LiveIdentity},
    version::KUBERNETES_MINOR,
};

/// The folder of the state's engine, in the data folder.
pub const STATE_FOLDER: &str = "state";
/// The folder of the log's engine, in the data folder.
pub const LOG_FOLDER: &str = "log";
/// How often a store that cannot be opened for want of space is tried again.
const SPACE_PERIOD: Duration = Duration::from_secs(1);
/// How many events each resource remembers for watches that resume.
const WATCH_HISTORY: usize = 10_000;
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);
/// How often idle watches of the etcd API that ask for it are told how far they are (etcd's default).
const PROGRESS_PERIOD: Duration = Duration::from_secs(600);
/// How long the control loops may take to end before leadership is moved away.
const LOOPS_TIMEOUT: Duration = Duration::from_secs(5);

/// What `/trireme/v1/status` says.
#[derive(Serialize)]
struct Status {
    #[serde(flatten)]
    member: MemberStatus,
    api: SocketAddr,
    pid: u32,
}

/// Runs until `shutdown`, or until the member has failed.
pub async fn run(settings: MasterSettings, shutdown: CancellationToken) -> Result<()> {
    let api_identity = LiveIdentity::load(&TlsPaths::in_folder(&settings.pki_dir, "api"))?;
    let serving_tls = Arc::new(api_identity.server(ClientCertificates::Optional)?);
    let node_client = LiveIdentity::load(&TlsPaths::in_folder(&settings.pki_dir, "node-client"))?;
    let node_client_tls = node_client.client()?;
    let root_ca = read(&settings.pki_dir.join("ca.crt"))?;
    let service_cidr: ServiceCidr = settings.service_cidr.parse().context("--service-cidr")?;
    let pod_cidr = Ipv4Cidr::from_first(&settings.pod_cidr).context("--pod-cidr")?;
    let mut listeners = Vec::new();
    for address in &settings.listen_api {
        listeners.push(listen(*address).await?);
    }
    let client_tls = Arc::new(api_identity.server(ClientCertificates::Required)?);
    let client_listener = listen(settings.listen_client).await?;
    let client_port = client_listener.local_addr()?.port();
    let peer = Keys::of(&settings.pki_dir)?;
    let consensus = tokio::select! {
        started = start_consensus(&settings, client_port, peer.tls()?) => started?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let joined = tokio::select! {
        joined = consensus.joined() => joined,
        () = shutdown.cancelled() => {
            consensus.stop().await;
            return Ok(());
        }
    };
    if let Err(error) = joined {
        consensus.stop().await;
        return Err(error.into());
    }

    let api_server = ApiServer::new(ApiServerConfig {
        store: consensus.clone(),
        registry: kinds::registry(),
        clock: Arc::new(SystemClock),
        service_cidr,
        node_client_tls: Some(node_client_tls),
        version: VersionInfo {
            minor: KUBERNETES_MINOR,
            trireme: env!("CARGO_PKG_VERSION").to_owned(),
            git_commit: String::new(),
            build_date: "1970-01-01T00:00:00Z".to_owned(),
        },
        random_seed: random_seed(),
        watch_history: WATCH_HISTORY,
        bookmark_period: BOOKMARK_PERIOD,
        extra: status_routes(consensus.clone(), settings.advertise_api),
    });
    api_server.register_metrics(|metrics| {
        consensus.register_metrics(metrics);
        metrics.register_collector(Box::new(ProcessCollector));
    });

    let serving = CancellationToken::new();
    let tasks = TaskTracker::new();
    tasks.spawn(api_server.start_caches(serving.clone()));
    for listener in listeners {
        let api = api_server.clone().serve(listener, serving_tls.clone(), serving.clone());
        tasks.spawn(async move {
            if let Err(error) = api.await {
                error!(%error, "the API is not served any more");
            }
        });
    }
    let group = EtcdGroup::new(consensus.clone(), &settings.cluster_id, serving.clone());
    let etcd = EtcdServer::new(EtcdServerConfig {
        store: consensus.clone(),
        leases: consensus.clone(),
        group: Arc::new(group),
        random_seed: random_seed(),
        progress_period: PROGRESS_PERIOD,
        metrics: {
            let api_server = api_server.clone();
            Arc::new(move || api_server.metrics_text())
        },
    });
    let etcd = etcd.serve(client_listener, client_tls, serving.clone());
    tasks.spawn(async move {
        if let Err(error) = etcd.await {
            error!(%error, "the etcd API is not served any more");
        }
    });
    let certificates = vec![api_identity.followed(), node_client.followed(), peer.followed(consensus.clone())];
    tasks.spawn(tls::follow(certificates, serving.clone()));
    if let Some(authority) = settings.authority_dir.clone() {
        tasks.spawn(renew::keep(authority, settings.pki_dir.clone(), Arc::new(SystemClock), serving.clone()));
    }
    tasks.close();
    info!(name = settings.name, zone = settings.zone, "master runs");

    let loops = CancellationToken::new();
    let leader = Leader {
        api_server,
        advertise: settings.advertise_api,
        root_ca,
        pod_cidr,
        node_grace: Duration::from_secs(settings.node_grace_seconds),
        clock: Arc::new(SystemClock),
    };
    let leading = tokio::spawn(leader::follow(leader, consensus.leadership(), loops.clone()));
    let mut leadership = consensus.leadership();
    let failed = tokio::select! {
        () = shutdown.cancelled() => false,
        _ = leadership.wait_for(|leadership| leadership.role == Role::Stopped) => true,
    };

    info!(failed, "stopping");
    loops.cancel();
    if tokio::time::timeout(LOOPS_TIMEOUT, leading).await.is_err() {
        error!("the control loops do not end");
    }
    consensus.shutdown().await;
    serving.cancel();
    tasks.wait().await;
    if let Some(why) = consensus.expulsion() {
        return Err(why.into());
    }
    if failed {
        bail!("the store of this master has failed; see the log");
    }
    Ok(())
}

async fn start_consensus(settings: &MasterSettings, client_port: u16, tls: PeerTls) -> Result<Arc<Consensus>> {
    pki::create_private_folder(&settings.data_dir)?;
    let members: Vec<(NodeId, Member)> = settings
        .initial_members
        .iter()
        .map(|member| {
            let described = Member::new(&member.name, "", &member.peer_address);
            (node_id(&settings.cluster_id, &member.name), described)
        })
        .collect();
    let own = settings.initial_members.iter().find(|member| member.name == settings.name);
    let own = own.with_context(|| format!("--initial-members does not name this master, {}", settings.name))?;
    let client = settings.advertised_client(client_port);
    let config = MasterConfig {
        node_id: settings.member_id.map_or_else(|| node_id(&settings.cluster_id, &settings.name), |id| NodeId(id.0)),
        new_folder_id: uuid::Uuid::new_v4().as_u64_pair().0,
        name: settings.name.clone(),
        zone: settings.zone.clone(),
        cluster_id: settings.cluster_id.clone(),
        listener: listen(settings.listen_peer).await?,
        advertise: own.peer_address.clone(),
        client_urls: vec![format!("https://{client}")],
        now_ms: Arc::new(|| u64::try_from(SystemClock.now().as_millisecond()).unwrap_or(0)),
        tls,
        dialer: Arc::new(TcpDialer),
        // Who joins a running cluster waits for it, and never makes another one.
        members: if settings.member_id.is_some() { Vec::new() } else { members },
        join: settings.initial_members.iter().map(|member| member.peer_address.clone()).collect(),
        log_engine: Arc::new(open_engine(settings.data_dir.join(LOG_FOLDER), RocksOptions::for_log()).await?),
        state_engine: Arc::new(open_engine(settings.data_dir.join(STATE_FOLDER), RocksOptions::for_state()).await?),
        timing: Timing { history_retention: Duration::from_secs(settings.history_seconds), ..Timing::default() },
        limits: limits(settings),
    };
    Ok(Consensus::start(config).await?)
}

fn limits(settings: &MasterSettings) -> Limits {
    let usual = Limits::default();
    Limits {
        snapshot_entries: settings.snapshot_entries.unwrap_or(usual.snapshot_entries),
        kept_entries: settings.kept_entries.unwrap_or(usual.kept_entries),
        ..usual
    }
}

/// Opens an engine; on a full disk, as soon as that has space.
async fn open_engine(path: PathBuf, options: RocksOptions) -> Result<RocksEngine> {
    loop {
        let (folder, options) = (path.clone(), options.clone());
        match tokio::task::spawn_blocking(move || RocksEngine::open(folder, options)).await? {
            Err(EngineError::NoSpace) => {
                error!(path = %path.display(), "no space left on the disk; waiting for it to open the store")
            }
            opened => return opened.with_context(|| format!("cannot open the store in {}", path.display())),
        }
        tokio::time::sleep(SPACE_PERIOD).await;
    }
}

/// The certificate by which the other masters know this one.
struct Keys {
    ca_pem: String,
    paths: TlsPaths,
}

impl Keys {
    fn of(folder: &Path) -> Result<Self> {
        let paths = TlsPaths::in_folder(folder, "peer");
        Ok(Self { ca_pem: read(&paths.ca)?, paths })
    }

    fn tls(&self) -> Result<PeerTls> {
        Ok(peer_tls(&self.ca_pem, &pki::read_identity(&self.paths.certificate, &self.paths.key)?))
    }

    fn followed(self, consensus: Arc<Consensus>) -> Followed {
        let Self { ca_pem, paths } = self;
        Followed::new(&paths, move |identity| Ok(consensus.replace_keys(&peer_tls(&ca_pem, identity))?))
    }
}

fn peer_tls(ca_pem: &str, identity: &Identity) -> PeerTls {
    PeerTls { ca_pem: ca_pem.to_owned(), cert_pem: identity.certificate.clone(), key_pem: identity.key.clone() }
}

/// A member of a new cluster is known by its name, so that all of them agree on the ids without having met.
pub fn node_id(cluster_id: &str, name: &str) -> NodeId {
    let digest = Sha256::digest(format!("{cluster_id}/{name}"));
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    NodeId(u64::from_be_bytes(first))
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn random_seed() -> [u8; 32] {
    let (first, second) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
    let mut seed = [0; 32];
    seed[..16].copy_from_slice(first.as_bytes());
    seed[16..].copy_from_slice(second.as_bytes());
    seed
}

/// `/trireme/v1/status`: this member's view of itself and its group.
fn status_routes(consensus: Arc<Consensus>, api: SocketAddr) -> Router {
    let status = move |State(consensus): State<Arc<Consensus>>| async move {
        Json(Status { member: consensus.status(), api, pid: std::process::id() })
    };
    Router::new().route("/trireme/v1/status", get(status)).with_state(consensus)
}
