//! Changes of the group, carried out where the leader is: learners, voters, and who leads.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use openraft::{
    ChangeMembers,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
    type_config::async_runtime::watch::WatchReceiver,
};
use tokio::time::Instant;
use trireme_storage::{codec, fail_point};

use crate::{
    core::Core,
    error::ConsensusError,
    membership::{self, Group, Refusal},
    status::MemberStatus,
    transport::Lane,
    types::{Member, NodeId, StoredMembership, TypeConfig},
    wire::{
        self,
        proto::{AdministerRequest, AdministerResponse, JoinRequest, StatusRequest, administer_request::Action},
    },
};

/// A member that does not answer within this time does not count as alive.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a transfer of the leadership, and a change of the membership, may take.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(2);
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// So many members are asked to take over, one after the other, before a member that leaves gives up.
const HAND_OVER_ATTEMPTS: usize = 2;
/// How long a change waits for the one before it, and the pause before a leader is looked for again.
const TURN_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY_PAUSE: Duration = Duration::from_millis(50);

type Done = Result<(), ConsensusError>;

impl Core {
    /// Asks the leader, wherever it is, until there is one and it answers.
    pub async fn administer(&self, action: Action) -> Done {
        let deadline = Instant::now() + self.timing.request_timeout;
        let mut is_open = false;
        loop {
            let error = match self.administer_once(action.clone()).await {
                // A change whose answer was lost has been made before.
                Err(ConsensusError::Refused(refusal)) if is_open && is_done(&action, &refusal) => return Ok(()),
                Err(error @ (ConsensusError::NoLeader(_) | ConsensusError::Unreachable(_))) => error,
                done => return done,
            };
            is_open |= matches!(error, ConsensusError::Unreachable(_));
            if self.shutdown.is_cancelled() || Instant::now() + RETRY_PAUSE >= deadline {
                return Err(ConsensusError::NoLeader(error.to_string()));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Asks the leader that is known now, once.
    pub async fn administer_once(&self, action: Action) -> Done {
        let (leader, address) = {
            let server = self.raft.server_metrics();
            let metrics = server.borrow_watched();
            let leader = metrics.current_leader.ok_or_else(|| ConsensusError::NoLeader("none is known".to_owned()))?;
            let address = metrics.membership_config.membership().get_node(&leader).map(|member| member.address.clone());
            (leader, address.unwrap_or_default())
        };
        if leader == self.node_id {
            return self.administer_here(action).await;
        }
        let mut client = self.channels.client(leader, &address, Lane::Control);
        let asked = client.administer(AdministerRequest { action: Some(action) }).await;
        parse_answer(asked.map_err(|status| ConsensusError::Unreachable(status.to_string()))?.into_inner())
    }

    /// Makes a change on this member, which must lead.
    pub async fn administer_here(&self, action: Action) -> Done {
        match action {
            Action::Join(request) => return self.join_here(request).await,
            Action::TransferLeadership(to) => return self.transfer_here(NodeId(to)).await,
            _ => {}
        }
        let waiting = tokio::time::timeout(TURN_TIMEOUT, self.changes.lock());
        let Ok(turn) = waiting.await else { return Err(Refusal::InProgress.into()) };
        match action {
            Action::AddLearner(info) => {
                let (id, member) = wire::parse_member(info);
                self.add_learner_here(id, member).await
            }
            Action::Promote(id) => self.promote_here(NodeId(id)).await,
            Action::Remove(id) if id == self.node_id.0 => {
                self.make_way().await?;
                drop(turn);
                Box::pin(self.administer(Action::Remove(id))).await
            }
            Action::Remove(id) => self.remove_here(NodeId(id)).await,
            Action::Update(moved) => self.update_here(NodeId(moved.node_id), moved.address).await,
            Action::Join(_) | Action::TransferLeadership(_) => Ok(()),
        }
    }

    /// What this member, which must lead, knows of the group; who is alive it asks.
    async fn group(&self) -> Result<Group, ConsensusError> {
        if self.leadership.borrow().leading().is_none() {
            return Err(ConsensusError::NoLeader("this member does not lead".to_owned()));
        }
        let membership = self.raft.server_metrics().borrow_watched().membership_config.membership().clone();
        if membership.get_joint_config().len() > 1 {
            return Err(Refusal::InProgress.into());
        }
        let others = membership.nodes().filter(|(id, _)| **id != self.node_id);
        let probes = others.map(|(id, member)| async move {
            let answered = tokio::time::timeout(PROBE_TIMEOUT, self.ask_status(*id, &member.address)).await;
            matches!(answered, Ok(Ok(_))).then_some(*id)
        });
        let mut alive: BTreeSet<NodeId> = futures::future::join_all(probes).await.into_iter().flatten().collect();
        alive.insert(self.node_id);
        Ok(Group { voters: membership.voter_ids().collect(), learners: membership.learner_ids().collect(), alive })
    }

    /// Another member's view of itself.
    pub async fn ask_status(&self, id: NodeId, address: &str) -> Result<MemberStatus, ConsensusError> {
        let mut client = self.channels.client(id, address, Lane::Control);
        let asked = client.status(StatusRequest {}).await;
        Ok(asked.map_err(|status| ConsensusError::Unreachable(status.to_string()))?.into_inner().into())
    }

    /// How many entries the log of `id` lacks, if this leader knows.
    fn behind(&self, id: NodeId) -> Option<u64> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let matched = metrics.replication.as_ref()?.get(&id)?.as_ref()?.index;
        Some(metrics.last_log_index.unwrap_or(0).saturating_sub(matched))
    }

    async fn add_learner_here(&self, id: NodeId, member: Member) -> Done {
        self.group().await?.check_add_learner(id)?;
        let taken = self.raft.server_metrics().borrow_watched().membership_config.membership().clone();
        if taken.nodes().any(|(_, other)| other.address == member.address) {
            return Err(Refusal::AddressTaken(member.address).into());
        }
        tracing::info!(peer = %id, name = member.name, address = member.address, "adding a learner");
        changed(self.raft.add_learner(id, member, false)).await
    }

    async fn promote_here(&self, id: NodeId) -> Done {
        self.group().await?.check_promote(id, self.behind(id))?;
        tracing::info!(peer = %id, "promoting a learner to a voter");
        changed(self.raft.change_membership(ChangeMembers::AddVoterIds(BTreeSet::from([id])), true)).await
    }

    async fn update_here(&self, id: NodeId, address: String) -> Done {
        self.group().await?.check_member(id)?;
        let membership = self.raft.server_metrics().borrow_watched().membership_config.membership().clone();
        if membership.nodes().any(|(other, member)| *other != id && member.address == address) {
            return Err(Refusal::AddressTaken(address).into());
        }
        let mut member = membership.get_node(&id).cloned().ok_or(Refusal::NotMember(id))?;
        tracing::info!(peer = %id, from = member.address, to = address, "changing the address of a member");
        member.address = address;
        changed(self.raft.change_membership(ChangeMembers::SetNodes(BTreeMap::from([(id, member)])), false)).await
    }

    async fn remove_here(&self, id: NodeId) -> Done {
        let is_voter = self.group().await?.check_remove(id)?;
        tracing::info!(peer = %id, is_voter, "removing a member");
        let ids = BTreeSet::from([id]);
        if is_voter {
            changed(self.raft.change_membership(ChangeMembers::RemoveVoters(ids), false)).await
        } else {
            changed(self.raft.change_membership(ChangeMembers::RemoveNodes(ids), false)).await
        }
    }

    pub async fn transfer_here(&self, to: NodeId) -> Done {
        let group = self.group().await?;
        if to == self.node_id {
            return Ok(());
        }
        // One that cannot take over would leave the group without a leader until somebody else is elected.
        group.check_transfer(to, self.behind(to))?;
        self.check_well(to).await?;
        self.transfer(to).await
    }

    async fn transfer(&self, to: NodeId) -> Done {
        tracing::info!(peer = %to, "transferring leadership");
        let mut server = self.raft.server_metrics();
        fail_point!("leadership/transfer/before");
        self.raft.trigger().transfer_leader(to).await.map_err(|error| ConsensusError::Stopped(error.to_string()))?;
        fail_point!("leadership/transfer/after");
        let moved = async {
            while server.borrow_and_update().current_leader.is_none_or(|leader| leader == self.node_id) {
                if server.changed().await.is_err() {
                    break;
                }
            }
        };
        tokio::time::timeout(TRANSFER_TIMEOUT, moved)
            .await
            .map_err(|_| ConsensusError::RefusedByLeader(format!("{to} did not take over within {TRANSFER_TIMEOUT:?}")))
    }

    /// Gives the leadership, if this member has it, to the living voter whose log is longest, or to the next one that takes it.
    pub async fn leave_leadership(&self) {
        let Ok(group) = self.group().await else { return };
        if let Err(error) = self.hand_over(&group).await {
            tracing::warn!(%error, "the leadership could not be handed over");
        }
    }

    /// Gives the leadership away so that this member can be removed.
    async fn make_way(&self) -> Done {
        let group = self.group().await?;
        group.check_remove(self.node_id)?;
        self.hand_over(&group).await
    }

    async fn hand_over(&self, group: &Group) -> Done {
        let mut others: Vec<NodeId> = group.voters.intersection(&group.alive).copied().filter(|id| *id != self.node_id).collect();
        others.sort_by_key(|id| self.behind(*id).unwrap_or(u64::MAX));
        let mut outcome = Ok(());
        for to in others.into_iter().take(HAND_OVER_ATTEMPTS) {
            outcome = match self.check_well(to).await {
                Ok(()) => self.transfer(to).await,
                refused => refused,
            };
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// Notes the data folder, the name and the zone of a member that says that it is here.
    ///
    /// # Errors
    /// [`Refusal::NotMember`] when the group, as a quorum confirms, has no such member; [`Refusal::OtherFolder`] when it came with
    /// another folder before.
    async fn join_here(&self, request: JoinRequest) -> Done {
        if self.leadership.borrow().leading().is_none() {
            return Err(ConsensusError::NoLeader("this member does not lead".to_owned()));
        }
        if self.check_join(&request).await?.is_none() {
            return Ok(());
        }
        let _turn = self.changes.lock().await;
        // Another one may have come with this id in the meantime.
        let Some((id, member)) = self.check_join(&request).await? else { return Ok(()) };
        tracing::info!(peer = %id, name = member.name, zone = member.zone, "a member has joined");
        changed(self.raft.change_membership(ChangeMembers::SetNodes(BTreeMap::from([(id, member)])), false)).await
    }

    /// What is to be noted of a member that says that it is here; `None` when all of it is known.
    async fn check_join(&self, request: &JoinRequest) -> Result<Option<(NodeId, Member)>, ConsensusError> {
        let id = NodeId(request.node_id);
        let known = |stored: &StoredMembership| stored.membership().get_node(&id).cloned();
        let stored = self.raft.server_metrics().borrow_watched().membership_config.clone();
        let Some(member) = known(&stored) else {
            // The answer ends a member for ever, so it must be the group's, not that of one who led it once.
            let committed = self.reader.own_read_index().await.map_err(ConsensusError::NoLeader)?;
            let stored = self.raft.server_metrics().borrow_watched().membership_config.clone();
            let newest = stored.log_id().as_ref().map_or(0, |log_id| log_id.index);
            if known(&stored).is_some() || newest > committed || newest < request.membership_index {
                return Err(ConsensusError::NoLeader("the members are changing".to_owned()));
            }
            return Err(Refusal::NotMember(id).into());
        };
        Ok(membership::joined(id, &member, request.folder_id, &request.name, &request.zone)?.map(|member| (id, member)))
    }

    /// Makes `members` a new group. Every one of them may do so, with the same list.
    pub async fn initialize(&self, members: BTreeMap<NodeId, Member>) -> Done {
        use openraft::errors::InitializeError;
        fail_point!("bootstrap/initialize/before");
        let initialized = self.raft.initialize(members).await;
        fail_point!("bootstrap/initialize/after");
        match initialized {
            // Another member was faster, and this one has heard from it.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(ConsensusError::Configuration(error.to_string())),
        }
    }
}

/// What the leader answered.
pub fn parse_answer(answer: AdministerResponse) -> Done {
    if let Ok(refusal) = codec::decode::<Refusal>(&answer.refusal) {
        return Err(refusal.into());
    }
    match (answer.refused, answer.not_leader) {
        (reason, _) if reason.is_empty() => Ok(()),
        (reason, true) => Err(ConsensusError::NoLeader(reason)),
        (reason, false) => Err(ConsensusError::RefusedByLeader(reason)),
    }
}

/// Whether the refusal says that what was asked is so already.
fn is_done(action: &Action, refusal: &Refusal) -> bool {
    match (action, refusal) {
        (Action::AddLearner(info), Refusal::AlreadyMember(id)) => info.node_id == id.0,
        (Action::Promote(asked), Refusal::AlreadyVoter(id)) | (Action::Remove(asked), Refusal::NotMember(id)) => *asked == id.0,
        _ => false,
    }
}

async fn changed<T>(
    change: impl Future<Output = Result<T, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>>,
) -> Result<(), ConsensusError> {
    fail_point!("membership/change/before");
    let change = tokio::time::timeout(CHANGE_TIMEOUT, change).await;
    fail_point!("membership/change/after");
    match change.map_err(|_| ConsensusError::RefusedByLeader(format!("no quorum agreed within {CHANGE_TIMEOUT:?}")))? {
        Ok(_) => Ok(()),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_) | ClientWriteError::LogEntryDiscarded(_))) => {
            Err(ConsensusError::NoLeader("this member lost the leadership".to_owned()))
        }
        Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)))) => {
            Err(Refusal::InProgress.into())
        }
        Err(RaftError::APIError(error)) => Err(ConsensusError::RefusedByLeader(error.to_string())),
        Err(RaftError::Fatal(fatal)) => Err(ConsensusError::Stopped(fatal.to_string())),
    }
}
