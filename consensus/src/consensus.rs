//! A running master's share in the group: start, stop, and the [`Store`] that the API server sees.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use openraft::{Config, SnapshotPolicy};
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use trireme_storage::{
    command::{Command, CommandReply, Lease},
    content::Content,
    log::RaftLog,
    metrics::StorageMetrics,
    model::{KeyRange, LeaseId, RangeRequest, RangeResult, Revision, Transaction, TransactionResult},
    rows::RowVisitor,
    state_machine::StateMachine,
    store::{Leases, Store, StoreError, Watch},
};

use crate::{
    bootstrap::{Bootstrap, Found},
    compaction,
    config::{Limits, MasterConfig, Timing},
    core::Core,
    divergence::{self, Integrity},
    error::ConsensusError,
    forward::Forwarder,
    identity,
    leadership::{self, Leadership},
    lease, log_keeper,
    log_store::LogStore,
    machine::Machine,
    metrics::{Counts, GroupCollector},
    proposer,
    read::{self, Reader},
    restore,
    silence::Silence,
    snapshot::Receiver,
    space::{self, Disks},
    standing,
    status::MemberStatus,
    transport::{self, Channels, NetworkFactory, PeerTls, TlsError},
    types::{Member, NodeId, Raft},
    wire::{self, proto},
    writer::Writer,
};

/// How many callers may wait in front of each of a member's queues.
const QUEUE: usize = 16_384;
/// How long the parts of a member may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
const JOIN_POLL: Duration = Duration::from_millis(50);

/// One member of the group, running.
pub struct Consensus {
    core: Arc<Core>,
    leadership: watch::Receiver<Leadership>,
    tasks: TaskTracker,
    writer: Writer,
    storage_metrics: StorageMetrics,
}

impl Consensus {
    /// Opens the data, joins the group (or makes it, with the other members of the bootstrap list, all of which it waits for then)
    /// and serves the peers. Does not wait for a leader.
    pub async fn start(config: MasterConfig) -> Result<Arc<Self>, ConsensusError> {
        let MasterConfig { node_id, name, zone, cluster_id, listener, advertise, tls, dialer, members, .. } = config;
        let (client_urls, now_ms, join) = (config.client_urls, config.now_ms, config.join);
        let (timing, limits) = (config.timing, config.limits);
        let channels = Channels::new(dialer, &tls, &cluster_id, &timing)?;
        let members: BTreeMap<NodeId, Member> = members.into_iter().collect();
        if !members.is_empty() && !members.contains_key(&node_id) {
            return Err(ConsensusError::Configuration(format!(
                "{node_id} is not among the members that the cluster begins with"
            )));
        }
        let raft_config = raft_config(&cluster_id, &timing, &limits)?;

        let (log_engine, state_engine, new_folder_id) = (config.log_engine, config.state_engine, config.new_folder_id);
        let bootstrap_ids: BTreeSet<NodeId> = members.keys().copied().collect();
        let identity = cluster_id.clone();
        let engines = [log_engine.clone(), state_engine.clone()];
        let storage_metrics = StorageMetrics::default();
        let opening_metrics = storage_metrics.clone();
        let configured = members.clone();
        let opening = move || -> Result<(LogStore, StateMachine, Bootstrap, Integrity), ConsensusError> {
            let log = RaftLog::open(log_engine).map_err(std::io::Error::other)?.with_metrics(opening_metrics.clone());
            let machine = StateMachine::open_with_metrics(state_engine.clone(), opening_metrics).map_err(StoreError::from)?;
            identity::check(&log, &identity, node_id)?;
            trireme_storage::format::claim(state_engine.as_ref(), &identity).map_err(StoreError::from)?;
            identity::claim(&log, &identity, node_id)?;
            let store = LogStore::open(log.clone())?;
            identity::check_complete(&store, &machine)?;
            let integrity = Integrity::open(log.clone())?;
            // A restored member has a log of its own, and has not met the others yet.
            let is_new = store.is_pristine() || restore::check_restored(&log, &machine, &configured)?;
            let bootstrap = Bootstrap::open(log, node_id, new_folder_id, is_new, &bootstrap_ids)?;
            Ok((store, machine, bootstrap, integrity))
        };
        let (log, machine, bootstrap, integrity) =
            tokio::task::spawn_blocking(opening).await.map_err(std::io::Error::other)??;
        let (writer, is_pristine, is_admitted) = (log.writer().clone(), log.is_pristine(), bootstrap.is_admitted());
        let raft_log = log.log().clone();
        let shutdown = CancellationToken::new();
        let raft_machine = Machine::new(machine.clone(), shutdown.clone())?;
        let applied = raft_machine.applied();
        let factory = NetworkFactory::new(node_id, channels.clone(), log.clone());
        let raft = Raft::build(node_id, Arc::new(raft_config), factory, log, raft_machine)
            .await
            .map_err(|error| ConsensusError::Stopped(error.to_string()))?;

        let counts = Counts::default();
        let announced = Arc::new(watch::Sender::new(Leadership::default()));
        let (proposals, proposal_queue) = mpsc::channel(QUEUE);
        let (forwards, forward_queue) = mpsc::channel(QUEUE);
        let (reads, read_queue) = mpsc::channel(QUEUE);
        let reader = Reader {
            own: node_id,
            raft: raft.clone(),
            channels: channels.clone(),
            applied: applied.clone(),
            request_timeout: timing.request_timeout,
            attempt_timeout: timing.election_timeout_max * 2,
        };
        let core = Arc::new(Core {
            node_id,
            member: Member::new(name, zone, advertise),
            client_urls,
            now_ms,
            disks: Disks::new(engines, writer.state()),
            raft: raft.clone(),
            incoming: Receiver::new(machine.clone()),
            bootstrap,
            integrity,
            counts: counts.clone(),
            silence: Silence::new(writer.state()),
            changes: tokio::sync::Mutex::default(),
            expelled: watch::Sender::default(),
            machine,
            applied: applied.clone(),
            leadership: announced.subscribe(),
            channels: channels.clone(),
            proposals,
            forwards,
            reads,
            reader: reader.clone(),
            timing: timing.clone(),
            limits: limits.clone(),
            shutdown: shutdown.clone(),
        });

        core.stay_apart();
        let tasks = TaskTracker::new();
        let leadership = announced.subscribe();
        let forwarder = Forwarder {
            own: node_id,
            raft: raft.clone(),
            channels,
            queue: forward_queue,
            applied: applied.clone(),
            shutdown: shutdown.clone(),
        };
        let quorum_timeout = timing.election_timeout_max * 2;
        tasks.spawn(leadership::watch(
            node_id,
            raft.clone(),
            applied,
            announced,
            quorum_timeout,
            counts.leader_changes,
            shutdown.clone(),
        ));
        tasks.spawn(proposer::run(raft.clone(), writer.clone(), proposal_queue, limits, timing.commit_timeout, shutdown.clone()));
        tasks.spawn(forwarder.run());
        tasks.spawn(read::run(reader, read_queue, shutdown));
        tasks.spawn(compaction::run(core.clone()));
        tasks.spawn(lease::expire(core.clone()));
        tasks.spawn(divergence::compare(core.clone()));
        tasks.spawn(divergence::check_content(core.clone()));
        tasks.spawn(space::watch(core.clone()));
        tasks.spawn(log_keeper::run(core.clone(), raft_log));
        tasks.spawn(transport::serve(listener, core.clone()));
        let consensus = Arc::new(Self { core: core.clone(), leadership, tasks, writer, storage_metrics });
        let standing = standing::keep(core, join);

        if !is_admitted && members.is_empty() {
            // It takes part when the group has taken it in.
            consensus.tasks.spawn(standing);
            consensus.tasks.close();
            return Ok(consensus);
        }
        let mut found = Found::Nothing;
        if !is_admitted {
            found = match consensus.core.gather(&members).await {
                Ok(found) => found,
                Err(error) => {
                    consensus.stop().await;
                    return Err(error);
                }
            };
        }
        raft.run();
        if is_pristine && !members.is_empty() && found == Found::Nothing {
            consensus.core.initialize(members).await?;
        }
        consensus.tasks.spawn(standing);
        consensus.tasks.close();
        Ok(consensus)
    }

    /// Waits until this member takes part in the group. At once, unless it is new and joins a running one.
    ///
    /// # Errors
    /// When the group does not want it, or it is stopped.
    pub async fn joined(&self) -> Result<(), ConsensusError> {
        while !self.core.bootstrap.is_admitted() {
            tokio::select! {
                () = self.core.shutdown.cancelled() => {
                    return Err(self.expulsion().unwrap_or_else(|| ConsensusError::Stopped("it was told to".to_owned())));
                }
                () = tokio::time::sleep(JOIN_POLL) => {}
            }
        }
        Ok(())
    }

    /// Why the group does not count on this member any more, if that is so: the member has ended then.
    pub fn expulsion(&self) -> Option<ConsensusError> {
        self.core.expelled.borrow().map(ConsensusError::from)
    }

    /// Follows who leads. A leader is announced only after it has applied an entry of its own term, and everything before.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Who leads, as far as this member knows now.
    pub fn leadership_now(&self) -> Leadership {
        *self.leadership.borrow()
    }

    /// This member's id.
    pub fn node_id(&self) -> NodeId {
        self.core.node_id
    }

    /// This member's view of itself and the group.
    pub fn status(&self) -> MemberStatus {
        self.core.status()
    }

    /// Another member's view of itself, asked over the network.
    pub async fn peer_status(&self, id: NodeId) -> Result<MemberStatus, ConsensusError> {
        if id == self.core.node_id {
            return Ok(self.status());
        }
        let members = self.status().members;
        let peer = members.iter().find(|one| one.node_id == id).ok_or(crate::membership::Refusal::NotMember(id))?;
        self.core.ask_status(id, &peer.member.address).await
    }

    /// Makes the metrics of this member, and of its storage, known to `registry`, under etcd's names.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.storage_metrics.register(registry);
        registry.register_collector(Box::new(GroupCollector::new(Arc::downgrade(&self.core))));
    }

    /// The state machine of this member, for reads that need no barrier and for leases.
    pub fn state_machine(&self) -> &StateMachine {
        &self.core.machine
    }

    /// Makes `members` a new group, unless this member belongs to one already.
    pub async fn initialize(&self, members: Vec<(NodeId, Member)>) -> Result<(), ConsensusError> {
        self.core.initialize(members.into_iter().collect()).await
    }

    /// Adds a member that gets the log without a vote. May be called on any member.
    pub async fn add_learner(&self, id: NodeId, member: Member) -> Result<(), ConsensusError> {
        self.core.administer(proto::administer_request::Action::AddLearner(wire::member_info(id, &member, false, None))).await
    }

    /// Makes a learner that has caught up a voter. May be called on any member.
    pub async fn promote(&self, id: NodeId) -> Result<(), ConsensusError> {
        self.core.administer(proto::administer_request::Action::Promote(id.0)).await
    }

    /// Tells the group another address of a member. May be called on any member.
    pub async fn update(&self, id: NodeId, address: String) -> Result<(), ConsensusError> {
        let moved = proto::MemberAddress { node_id: id.0, address };
        self.core.administer(proto::administer_request::Action::Update(moved)).await
    }

    /// Removes a learner or a voter; refused when the voters that are left would be no living quorum. May be called on any member.
    pub async fn remove(&self, id: NodeId) -> Result<(), ConsensusError> {
        self.core.administer(proto::administer_request::Action::Remove(id.0)).await
    }

    /// Has the voter `to` take over the leadership. May be called on any member.
    pub async fn transfer_leadership(&self, to: NodeId) -> Result<(), ConsensusError> {
        self.core.administer(proto::administer_request::Action::TransferLeadership(to.0)).await
    }

    /// Shows another certificate to the other members, in new connections from now on.
    ///
    /// # Errors
    /// When the keys do not fit the cluster; those of before stay in use.
    pub fn replace_keys(&self, tls: &PeerTls) -> Result<(), TlsError> {
        self.core.channels.replace_keys(tls)
    }

    /// Carries out any command of the state machine.
    pub async fn propose(&self, command: Command) -> Result<CommandReply, StoreError> {
        self.core.propose(&command).await
    }

    /// Hands the leadership over, if this member has it, and ends.
    pub async fn shutdown(&self) {
        self.core.leave_leadership().await;
        self.stop().await;
    }

    /// Ends at once, as a crash would: the leadership is not handed over.
    pub async fn stop(&self) {
        self.core.shutdown.cancel();
        self.tasks.close();
        self.writer.close();
        if let Err(error) = self.core.raft.shutdown().await {
            tracing::warn!(%error, "the consensus core did not end cleanly");
        }
        // Parts of the core may still be at work: nothing of theirs may reach the disk from here on.
        self.writer.stop();
        self.core.machine.close();
        if tokio::time::timeout(STOP_TIMEOUT, self.tasks.wait()).await.is_err() {
            tracing::warn!("some parts of the member have not ended yet");
        }
        self.core.channels.close();
    }

    /// Reads the state on a thread for blocking work.
    async fn read_state<T: Send + 'static>(
        &self,
        read: impl FnOnce(&StateMachine) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let machine = self.core.machine.clone();
        let read = tokio::task::spawn_blocking(move || read(&machine)).await;
        read.map_err(|error| StoreError::Failed(error.to_string()))?
    }
}

impl Drop for Consensus {
    fn drop(&mut self) {
        self.core.shutdown.cancel();
        self.writer.close();
    }
}

#[async_trait]
impl Store for Consensus {
    async fn transact(&self, transaction: Transaction) -> Result<TransactionResult, StoreError> {
        if transaction.is_read_only() {
            self.core.read_barrier().await?;
            return self.read_state(move |machine| machine.read_transaction(&transaction)).await;
        }
        match self.core.propose(&Command::Transact(transaction)).await? {
            CommandReply::Transaction(result) => Ok(result),
            other => Err(unexpected(&other)),
        }
    }

    async fn read_barrier(&self) -> Result<Revision, StoreError> {
        self.core.read_barrier().await
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResult, StoreError> {
        self.core.check_serving()?;
        // One key is read sooner than it is handed to another thread.
        if matches!(request.range, KeyRange::One(_)) && request.revision.is_none() {
            return self.core.machine.range(&request);
        }
        self.read_state(move |machine| machine.range(&request)).await
    }

    fn visit(&self, range: &KeyRange, revision: Option<Revision>, visitor: &mut RowVisitor<'_>) -> Result<Revision, StoreError> {
        self.core.check_serving()?;
        self.core.machine.visit(range, revision, visitor)
    }

    async fn watch(&self, from: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.core.check_serving()?;
        Ok(Box::new(self.core.machine.watch(from)?))
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.core.propose(&Command::Compact(revision)).await.map(|_| ())
    }

    async fn content_at(&self, revision: Revision) -> Result<Content, StoreError> {
        self.read_state(move |machine| machine.content_at(revision)).await
    }

    fn check_serving(&self) -> Result<(), StoreError> {
        self.core.check_serving()
    }

    fn revision(&self) -> Revision {
        self.core.machine.revision()
    }

    fn compacted_revision(&self) -> Revision {
        self.core.machine.compacted_revision()
    }
}

/// A command was given an answer of another kind.
fn unexpected(reply: &CommandReply) -> StoreError {
    StoreError::Failed(format!("a command was answered by {reply:?}"))
}

#[async_trait]
impl Leases for Consensus {
    async fn grant_lease(&self, id: LeaseId, ttl_seconds: u64) -> Result<Lease, StoreError> {
        match self.core.propose(&Command::LeaseGrant { id, ttl_seconds, now_ms: self.now_ms() }).await? {
            CommandReply::LeaseGranted(lease) => Ok(lease),
            other => Err(unexpected(&other)),
        }
    }

    async fn revoke_lease(&self, id: LeaseId) -> Result<Revision, StoreError> {
        match self.core.propose(&Command::LeaseRevoke { id }).await? {
            CommandReply::LeaseRevoked { revision } => Ok(revision),
            other => Err(unexpected(&other)),
        }
    }

    async fn keep_lease_alive(&self, id: LeaseId) -> Result<Lease, StoreError> {
        match self.core.propose(&Command::LeaseKeepAlive { id, now_ms: self.now_ms() }).await? {
            CommandReply::LeaseKeptAlive(lease) => Ok(lease),
            other => Err(unexpected(&other)),
        }
    }

    fn lease(&self, id: LeaseId) -> Option<(Lease, Vec<Bytes>)> {
        self.core.machine.lease(id)
    }

    fn leases(&self) -> Vec<Lease> {
        self.core.machine.leases()
    }

    fn now_ms(&self) -> u64 {
        (self.core.now_ms)()
    }
}

fn raft_config(cluster_id: &str, timing: &Timing, limits: &Limits) -> Result<Config, ConsensusError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: cluster_id.to_owned(),
        heartbeat_interval: millis(timing.heartbeat),
        election_timeout_min: millis(timing.election_timeout_min),
        election_timeout_max: millis(timing.election_timeout_max),
        max_payload_entries: 1024,
        replication_lag_threshold: limits.kept_entries.max(limits.snapshot_entries),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(limits.snapshot_entries),
        max_in_snapshot_log_to_keep: limits.kept_entries,
        // Purging in larger pieces than the log grows between snapshots would keep more than was asked for.
        purge_batch_size: limits.snapshot_entries.clamp(1, 256),
        // A healed partition must not depose a good leader.
        enable_pre_vote: Some(true),
        // A restarted leader stands for election as everyone else.
        enable_leader_restore: Some(false),
        // A member whose log went back has lost data that it had acknowledged.
        allow_log_reversion: Some(false),
        ..Config::default()
    };
    config.validate().map_err(|error| ConsensusError::Configuration(error.to_string()))
}
