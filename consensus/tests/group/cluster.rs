//! A group of members for tests, and what tests ask of it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{net::TcpListener, time::Instant};
use trireme_consensus::{
    Consensus, ConsensusError, Dialer, Limits, MasterConfig, Member, MemberStatus, NodeId, PeerTls, Role, Timing, peer_dns_name,
};
use trireme_storage::{
    engine::{Engine, memory::MemoryEngine},
    model::{KeyRange, Operation, RangeRequest, Revision, Term, Transaction, TransactionResult},
    store::{Store, StoreError},
};

use crate::{certificates::Authority, network::Links};

pub const CLUSTER: &str = "test";
/// How long anything may take that should happen soon; generous, because the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Every start of a member offers a name of its own for its folder.
static NEXT_FOLDER: AtomicU64 = AtomicU64::new(1);

/// What of a member outlives its process.
#[derive(Clone)]
pub struct Disk {
    pub log: Arc<dyn Engine>,
    pub state: Arc<dyn Engine>,
}

impl Disk {
    pub fn in_memory() -> Self {
        Self { log: Arc::new(MemoryEngine::new()), state: Arc::new(MemoryEngine::new()) }
    }
}

pub struct Cluster {
    pub authority: Authority,
    pub links: Links,
    pub timing: Timing,
    pub limits: Limits,
    pub bootstrap: Vec<(NodeId, Member)>,
    /// Where those listen that came later.
    pub joined: BTreeMap<NodeId, String>,
    pub disks: BTreeMap<NodeId, Disk>,
    pub members: BTreeMap<NodeId, Arc<Consensus>>,
}

pub fn id(number: u64) -> NodeId {
    NodeId(0xa0 + number)
}

/// Slower than the defaults, so that tests that run beside each other on few cores do not elect without need.
pub fn test_timing() -> Timing {
    Timing {
        heartbeat: Duration::from_millis(100),
        election_timeout_min: Duration::from_millis(400),
        election_timeout_max: Duration::from_millis(700),
        connect_timeout: Duration::from_secs(2),
        keep_alive_timeout: Duration::from_secs(2),
        ..Timing::default()
    }
}

impl Cluster {
    /// Three members with empty in-memory disks, started.
    pub async fn start() -> Self {
        Self::start_with(3, test_timing(), Limits::default(), |_| Disk::in_memory()).await
    }

    pub async fn start_with(members: u64, timing: Timing, limits: Limits, disk: impl Fn(NodeId) -> Disk) -> Self {
        let mut cluster = Self {
            authority: Authority::new(),
            links: Links::new(),
            timing,
            limits,
            bootstrap: Vec::new(),
            joined: BTreeMap::new(),
            disks: BTreeMap::new(),
            members: BTreeMap::new(),
        };
        let mut listeners = Vec::new();
        for number in 1..=members {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let member = Member::new(format!("master-{number}"), format!("zone-{number}"), address);
            cluster.bootstrap.push((id(number), member));
            listeners.push((id(number), listener));
        }
        let mut starting = Vec::new();
        for (node_id, listener) in listeners {
            cluster.disks.insert(node_id, disk(node_id));
            let config = cluster.config(node_id, listener);
            starting.push(async move { (node_id, Consensus::start(config).await.unwrap()) });
        }
        // A new group begins when all its members run.
        cluster.members = futures::future::join_all(starting).await.into_iter().collect();
        cluster
    }

    pub fn keys(&self) -> PeerTls {
        self.authority.keys(&peer_dns_name(CLUSTER))
    }

    pub fn config(&self, node_id: NodeId, listener: TcpListener) -> MasterConfig {
        let dialer: Arc<dyn Dialer> = self.links.dialer(node_id);
        let disk = self.disks[&node_id].clone();
        let members = if self.bootstrap.iter().any(|(one, _)| *one == node_id) { self.bootstrap.clone() } else { Vec::new() };
        MasterConfig {
            node_id,
            new_folder_id: NEXT_FOLDER.fetch_add(1, Ordering::Relaxed),
            name: format!("master-{node_id}"),
            zone: "zone-x".to_owned(),
            cluster_id: CLUSTER.to_owned(),
            advertise: listener.local_addr().unwrap().to_string(),
            client_urls: vec![format!("https://master-{node_id}:2379")],
            now_ms: Arc::new(|| 1_000),
            listener,
            tls: self.keys(),
            dialer,
            members,
            join: self.bootstrap.iter().map(|(_, member)| &member.address).chain(self.joined.values()).cloned().collect(),
            log_engine: disk.log,
            state_engine: disk.state,
            timing: self.timing.clone(),
            limits: self.limits.clone(),
        }
    }

    /// Starts a member again, where it was.
    pub async fn restart(&mut self, node_id: NodeId) -> Result<(), ConsensusError> {
        let of_bootstrap = self.bootstrap.iter().find(|(one, _)| *one == node_id).map(|(_, member)| member.address.clone());
        let address = of_bootstrap.unwrap_or_else(|| self.joined[&node_id].clone());
        let listener = eventually("the address is free again", || async { TcpListener::bind(&address).await.ok() }).await;
        let member = Consensus::start(self.config(node_id, listener)).await?;
        self.members.insert(node_id, member);
        Ok(())
    }

    /// Starts members of the bootstrap list at once.
    pub async fn restart_together(&mut self, ids: &[NodeId]) {
        let mut starting = Vec::new();
        for node_id in ids {
            let address = self.bootstrap.iter().find(|(one, _)| one == node_id).unwrap().1.address.clone();
            let listener = eventually("the address is free again", || async { TcpListener::bind(&address).await.ok() }).await;
            let config = self.config(*node_id, listener);
            starting.push(async move { (*node_id, Consensus::start(config).await.unwrap()) });
        }
        self.members.extend(futures::future::join_all(starting).await);
    }

    /// Starts a member that is not in the bootstrap list, with an empty disk. Returns its description.
    pub async fn start_new(&mut self, node_id: NodeId) -> Member {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        self.disks.insert(node_id, Disk::in_memory());
        self.joined.insert(node_id, address.clone());
        let member = Consensus::start(self.config(node_id, listener)).await.unwrap();
        self.members.insert(node_id, member);
        Member::new(format!("master-{node_id}"), "zone-x", address)
    }

    /// Starts a new member and makes it a voter.
    pub async fn grow(&mut self, node_id: NodeId) {
        let member = self.start_new(node_id).await;
        let (leader, _) = self.leader_among(&self.followers(node_id)).await;
        self.members[&leader].add_learner(node_id, member).await.unwrap();
        eventually("the learner votes", || async { self.members[&leader].promote(node_id).await.ok() }).await;
        self.leader().await;
    }

    /// Ends a member as a crash would.
    pub async fn kill(&mut self, node_id: NodeId) {
        let member = self.members.remove(&node_id).expect("it runs");
        member.stop().await;
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.members.keys().copied().collect()
    }

    pub fn statuses(&self) -> Vec<MemberStatus> {
        self.members.values().map(|member| member.status()).collect()
    }

    /// Waits until a member leads that every running one knows, and returns it with its term.
    pub async fn leader(&self) -> (NodeId, Term) {
        let ids = self.ids();
        self.leader_among(&ids).await
    }

    /// The same among some of the members.
    pub async fn leader_among(&self, ids: &[NodeId]) -> (NodeId, Term) {
        eventually("the members agree on a leader", || async {
            let views: Vec<_> = ids.iter().map(|id| *self.members[id].leadership().borrow()).collect();
            let leader = ids.iter().zip(&views).find(|(_, view)| view.role == Role::Leader)?;
            let agreed = views.iter().all(|view| view.leader == Some(*leader.0) && view.term == leader.1.term);
            agreed.then_some((*leader.0, leader.1.term))
        })
        .await
    }

    pub fn followers(&self, leader: NodeId) -> Vec<NodeId> {
        self.ids().into_iter().filter(|id| *id != leader).collect()
    }

    pub async fn shutdown(self) {
        for member in self.members.values() {
            member.stop().await;
        }
    }
}

/// Asks again and again until there is an answer.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn put(key: impl Into<String>, value: impl Into<String>) -> Transaction {
    Transaction { success: vec![Operation::put(key.into(), value.into())], ..Transaction::default() }
}

/// Writes a key. A put may be repeated, so one whose outcome is not known is tried again, too.
pub async fn write(
    member: &Consensus,
    key: impl Into<String>,
    value: impl Into<String>,
) -> Result<TransactionResult, StoreError> {
    let transaction = put(key, value);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match member.transact(transaction.clone()).await {
            Err(StoreError::Unavailable(_) | StoreError::Unknown(_)) if Instant::now() < deadline => {}
            done => return done,
        }
    }
}

/// Reads a key linearizably.
pub async fn read(member: &Consensus, key: &str) -> Result<Option<String>, StoreError> {
    member.read_barrier().await?;
    read_stale(member, key).await
}

/// Reads a key as the member has it.
pub async fn read_stale(member: &Consensus, key: &str) -> Result<Option<String>, StoreError> {
    let found = member.range(RangeRequest::new(KeyRange::One(key.to_owned().into()))).await?;
    Ok(found.key_values.first().map(|one| String::from_utf8(one.value.to_vec()).unwrap()))
}

/// Waits until every given member has applied the same, and holds the same.
pub async fn converge(cluster: &Cluster) -> (Revision, u64) {
    eventually("all members hold the same state", || async {
        let mut hashes: Vec<_> = cluster.members.values().map(|member| member.state_machine().hash()).collect();
        hashes.dedup();
        (hashes.len() == 1).then(|| hashes[0])
    })
    .await
}
