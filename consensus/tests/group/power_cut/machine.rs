//! A group whose members have a machine each, in one process: engines that lose what was not synced, and threads that end with the power.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{runtime::Runtime, sync::oneshot, task::JoinHandle};
use trireme_consensus::{Consensus, ConsensusError, Limits, Member, NodeId, Timing};
use trireme_storage::{
    engine::memory::MemoryEngine,
    fail_point::{self, Owner},
};

use crate::{
    certificates::Authority,
    cluster::{Cluster, Disk, PATIENCE, eventually, id, test_timing},
    network::Links,
};

/// Every start of a member is an owner of fail points of its own.
static NEXT_OWNER: AtomicU64 = AtomicU64::new(1);

/// A member that is being started.
pub type Starting = JoinHandle<Result<Arc<Consensus>, ConsensusError>>;

/// One member's engines, and the threads that run it while it has power.
struct Machine {
    log: MemoryEngine,
    state: MemoryEngine,
    owner: Owner,
    runtime: Option<Runtime>,
}

/// A group of such members.
pub struct PoweredGroup {
    pub cluster: Cluster,
    machines: BTreeMap<NodeId, Machine>,
}

/// Resolves when a member's power is cut.
pub struct Cut(oneshot::Receiver<()>);

impl Cut {
    /// Does something again and again until it happens; whether it does in good time.
    pub async fn insist(&mut self, again: impl AsyncFn()) -> bool {
        let deadline = tokio::time::Instant::now() + PATIENCE / 2;
        while tokio::time::Instant::now() < deadline {
            again().await;
            if let Ok(reached) = tokio::time::timeout(Duration::from_millis(500), &mut self.0).await {
                reached.unwrap();
                return true;
            }
        }
        false
    }

    /// Waits for it.
    pub async fn happens(self, point: &str) {
        let reached = tokio::time::timeout(PATIENCE, self.0).await;
        assert!(matches!(reached, Ok(Ok(()))), "{point} was not reached within {PATIENCE:?}");
    }
}

impl PoweredGroup {
    /// Three members with empty engines, none started. The log is snapshotted and purged after few entries.
    pub fn new() -> Self {
        let timing = Timing { commit_timeout: Duration::from_secs(2), request_timeout: Duration::from_secs(3), ..test_timing() };
        // Bound all at once, so that they differ.
        let listeners: Vec<_> = (1..=3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let described = listeners.iter().zip(1..).map(|(listener, number)| {
            let address = listener.local_addr().unwrap().to_string();
            (id(number), Member::new(format!("master-{number}"), format!("zone-{number}"), address))
        });
        let bootstrap: Vec<(NodeId, Member)> = described.collect();
        let machine = || Machine { log: MemoryEngine::new(), state: MemoryEngine::new(), owner: Owner(0), runtime: None };
        let machines = bootstrap.iter().map(|(node_id, _)| (*node_id, machine())).collect();
        let cluster = Cluster {
            authority: Authority::new(),
            links: Links::new(),
            timing,
            limits: Limits { snapshot_entries: 20, kept_entries: 5, ..Limits::default() },
            bootstrap,
            joined: BTreeMap::new(),
            disks: BTreeMap::new(),
            members: BTreeMap::new(),
        };
        Self { cluster, machines }
    }

    /// Three members that run.
    pub async fn start() -> Self {
        let mut group = Self::new();
        group.start_all().await;
        group
    }

    /// Starts every member, none of which has power, and waits until they run.
    pub async fn start_all(&mut self) {
        let mut starting = Vec::new();
        for node_id in self.all() {
            starting.push((node_id, self.switch_on(node_id, None).await.0));
        }
        for (node_id, started) in starting {
            self.runs(node_id, started).await;
        }
    }

    pub fn all(&self) -> Vec<NodeId> {
        self.machines.keys().copied().collect()
    }

    pub fn others(&self, one: NodeId) -> Vec<NodeId> {
        self.all().into_iter().filter(|other| *other != one).collect()
    }

    /// Gives a machine power and begins to start its member, which loses it again at `point`.
    pub async fn switch_on(&mut self, node_id: NodeId, point: Option<&str>) -> (Starting, Option<Cut>) {
        let address = self.cluster.bootstrap.iter().find(|(one, _)| *one == node_id).unwrap().1.address.clone();
        let listener = eventually("the address is free again", || async { std::net::TcpListener::bind(&address).ok() }).await;
        listener.set_nonblocking(true).unwrap();
        let owner = Owner(NEXT_OWNER.fetch_add(1, Ordering::Relaxed));
        let mut threads = tokio::runtime::Builder::new_multi_thread();
        threads.worker_threads(2).enable_all().on_thread_start(move || fail_point::set_owner(Some(owner)));
        let runtime = threads.build().unwrap();
        let handle = runtime.handle().clone();
        let listener = {
            let _inside = handle.enter();
            tokio::net::TcpListener::from_std(listener).unwrap()
        };
        let machine = self.machines.get_mut(&node_id).unwrap();
        assert!(machine.runtime.is_none(), "{node_id} has power already");
        let (log, state) = (machine.log.power_on(), machine.state.power_on());
        *machine = Machine { log: log.clone(), state: state.clone(), owner, runtime: Some(runtime) };
        self.cluster.disks.insert(node_id, Disk { log: Arc::new(log), state: Arc::new(state) });
        let cut = point.map(|point| self.arm(node_id, point));
        (handle.spawn(Consensus::start(self.cluster.config(node_id, listener))), cut)
    }

    /// Takes note of a member that has started.
    pub async fn runs(&mut self, node_id: NodeId, started: Starting) {
        let member = tokio::time::timeout(PATIENCE, started).await.unwrap().unwrap();
        self.cluster.members.insert(node_id, member.unwrap());
    }

    /// Starts a member whose power was cut, and waits until it runs.
    pub async fn restart(&mut self, node_id: NodeId) {
        let (started, _) = self.switch_on(node_id, None).await;
        self.runs(node_id, started).await;
    }

    /// Cuts the member's power when one of its threads reaches `point`, on that thread, before it goes on.
    pub fn arm(&self, node_id: NodeId, point: &str) -> Cut {
        self.arm_cut_of(&[node_id], node_id, point)
    }

    /// Cuts the power of all `losers` when a thread of `node_id` reaches `point`.
    pub fn arm_cut_of(&self, losers: &[NodeId], node_id: NodeId, point: &str) -> Cut {
        let engines = |loser: &NodeId| [self.machines[loser].log.clone(), self.machines[loser].state.clone()];
        let engines: Vec<MemoryEngine> = losers.iter().flat_map(engines).collect();
        let (reached, cut) = oneshot::channel();
        let action = move || {
            engines.iter().for_each(MemoryEngine::cut_power);
            // The test may have given up.
            let _ = reached.send(());
        };
        fail_point::arm(point, Some(self.machines[&node_id].owner), 1, action).unwrap();
        Cut(cut)
    }

    /// Cuts a member's power now.
    pub fn cut_power(&self, node_id: NodeId) {
        let machine = &self.machines[&node_id];
        machine.log.cut_power();
        machine.state.cut_power();
    }

    /// Ends the threads of a member without power. Nothing that they still do reaches its engines.
    pub async fn bury(&mut self, node_id: NodeId) {
        let machine = self.machines.get_mut(&node_id).unwrap();
        fail_point::disarm(Some(machine.owner));
        let runtime = machine.runtime.take().unwrap();
        if let Some(member) = self.cluster.members.remove(&node_id) {
            // Its parts may have failed in any order; that they end is all that counts.
            let _ = tokio::time::timeout(PATIENCE, runtime.spawn(async move { member.stop().await })).await;
        }
        runtime.shutdown_background();
    }

    /// Runs something on a member's own threads, so that the fail points on its way are the member's.
    pub fn on<F: Future<Output: Send> + Send + 'static>(
        &self,
        node_id: NodeId,
        run: impl FnOnce(Arc<Consensus>) -> F,
    ) -> JoinHandle<F::Output> {
        let runtime = self.machines[&node_id].runtime.as_ref().expect("the member has power");
        runtime.spawn(run(self.cluster.members[&node_id].clone()))
    }

    /// Ends everything.
    pub async fn end(mut self) {
        for node_id in self.all() {
            self.bury(node_id).await;
        }
    }
}
