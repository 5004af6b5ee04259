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

use trireme_storage::codec;

use crate::{
    core::Core,
    error::ConsensusError,
    membership::{Group, Refusal},
    status::MemberStatus,
    transport::Lane,
    types::{Member, NodeId, TypeConfig},
    wire::proto::{AdministerRequest, StatusRequest, administer_request::Action},
};

/// A member that does not answer within this time does not count as alive.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a transfer of the leadership, and a change of the membership, may take.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(2);
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

type Done = Result<(), ConsensusError>;

impl Core {
    /// Asks the leader, wherever it is.
    pub async fn administer(&self, action: Action) -> Done {
        let (leader, address) = {
            let server = self.raft.server_metrics();
            let metrics = server.borrow_watched();
            let leader = metrics.current_leader.ok_or_else(|| ConsensusError::NoLeader("none is known".to_owned()))?;
            let address = metrics.membership_config.membership().get_node(&leader).map(|member| member.address.clone());
            (leader, address.unwrap_or_default())
        };
        if leader == self.node_id {
            return match action {
                Action::AddLearner(info) => {
                    let member = Member { name: info.name, zone: info.zone, address: info.address };
                    self.add_learner_here(NodeId(info.node_id), member).await
                }
                Action::Promote(id) => self.promote_here(NodeId(id)).await,
                Action::Remove(id) => self.remove_here(NodeId(id)).await,
                Action::TransferLeadership(to) => self.transfer_here(NodeId(to)).await,
                Action::Update(moved) => self.update_here(NodeId(moved.node_id), moved.address).await,
            };
        }
        let mut client = self.channels.client(leader, &address, Lane::Control);
        let asked = client.administer(AdministerRequest { action: Some(action) }).await;
        let answer = asked.map_err(|status| ConsensusError::NoLeader(status.to_string()))?.into_inner();
        if let Ok(refusal) = codec::decode::<Refusal>(&answer.refusal) {
            return Err(refusal.into());
        }
        match (answer.refused, answer.not_leader) {
            (reason, _) if reason.is_empty() => Ok(()),
            (reason, true) => Err(ConsensusError::NoLeader(reason)),
            (reason, false) => Err(ConsensusError::RefusedByLeader(reason)),
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

    pub async fn add_learner_here(&self, id: NodeId, member: Member) -> Done {
        self.group().await?.check_add_learner(id)?;
        let taken = self.raft.server_metrics().borrow_watched().membership_config.membership().clone();
        if taken.nodes().any(|(_, other)| other.address == member.address) {
            return Err(Refusal::AddressTaken(member.address).into());
        }
        tracing::info!(peer = %id, name = member.name, address = member.address, "adding a learner");
        changed(self.raft.add_learner(id, member, false)).await
    }

    pub async fn promote_here(&self, id: NodeId) -> Done {
        self.group().await?.check_promote(id, self.behind(id))?;
        tracing::info!(peer = %id, "promoting a learner to a voter");
        changed(self.raft.change_membership(ChangeMembers::AddVoterIds(BTreeSet::from([id])), true)).await
    }

    pub async fn update_here(&self, id: NodeId, address: String) -> Done {
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

    pub async fn remove_here(&self, id: NodeId) -> Done {
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
        self.raft.trigger().transfer_leader(to).await.map_err(|error| ConsensusError::Stopped(error.to_string()))?;
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

    /// Gives the leadership, if this member has it, to the living voter whose log is longest.
    pub async fn leave_leadership(&self) {
        let Ok(group) = self.group().await else { return };
        let others = group.voters.intersection(&group.alive).filter(|id| **id != self.node_id);
        let Some(best) = others.min_by_key(|id| self.behind(**id).unwrap_or(u64::MAX)).copied() else { return };
        if let Err(error) = self.transfer(best).await {
            tracing::warn!(%error, peer = %best, "the leadership could not be handed over");
        }
    }

    /// Makes `members` a new group. Every one of them may do so, with the same list.
    pub async fn initialize(&self, members: BTreeMap<NodeId, Member>) -> Done {
        use openraft::errors::InitializeError;
        match self.raft.initialize(members).await {
            // Another member was faster, and this one has heard from it.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(ConsensusError::Configuration(error.to_string())),
        }
    }
}

async fn changed<T>(
    change: impl Future<Output = Result<T, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>>,
) -> Result<(), ConsensusError> {
    let change = tokio::time::timeout(CHANGE_TIMEOUT, change).await;
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
