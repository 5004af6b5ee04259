//! What a member says about itself and its group.

use openraft::{ServerState, type_config::async_runtime::watch::WatchReceiver};
use serde::Serialize;
use trireme_storage::{
    engine::Space,
    model::{Revision, Term},
};

use crate::{
    bootstrap::FolderIds,
    core::Core,
    leadership::Role,
    types::{Member, NodeId},
    wire::{self, proto},
};

/// One member's view of itself.
#[derive(Clone, Debug, Serialize)]
pub struct MemberStatus {
    pub node_id: NodeId,
    pub name: String,
    pub zone: String,
    pub role: Role,
    pub term: Term,
    pub leader: Option<NodeId>,
    /// Indexes of the last entry that is in the log, known to be committed, applied, and held by a snapshot.
    pub last_log: Option<u64>,
    pub committed: Option<u64>,
    pub applied: Option<u64>,
    pub snapshot: Option<u64>,
    pub revision: Revision,
    /// The rolling hash of the state at a revision: equal on every member that has applied that revision.
    pub hash: (Revision, u64),
    pub members: Vec<GroupMember>,
    /// Where clients reach the member.
    pub client_urls: Vec<String>,
    /// Whether the member's disk is full.
    pub no_space: bool,
    /// Why the member's data are not, or may not be, those of the others.
    pub corrupt: Option<String>,
    /// Whether the member does not serve for that reason.
    pub diverged: bool,
    /// How much room there is on it.
    #[serde(skip)]
    pub space: Space,
    /// By which the members of a new group know each other.
    #[serde(skip)]
    pub folders: FolderIds,
}

/// One member, as the group's membership says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupMember {
    pub node_id: NodeId,
    #[serde(flatten)]
    pub member: Member,
    /// Whether it votes; otherwise it is a learner.
    pub voter: bool,
    /// How far its log is known to match the leader's; only the leader knows.
    pub matched: Option<u64>,
}

impl Core {
    /// This member's status, from memory.
    pub fn status(&self) -> MemberStatus {
        let space = self.disks.space();
        let leadership = *self.leadership.borrow();
        let metrics = self.raft.metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let voters: Vec<NodeId> = membership.voter_ids().collect();
        let matched = |id: &NodeId| {
            if metrics.state != ServerState::Leader {
                return None;
            }
            if *id == self.node_id {
                return metrics.last_log_index;
            }
            metrics.replication.as_ref()?.get(id)?.map(|log_id| log_id.index)
        };
        let members = membership
            .nodes()
            .map(|(id, member)| GroupMember {
                node_id: *id,
                member: member.clone(),
                voter: voters.contains(id),
                matched: matched(id),
            })
            .collect();
        MemberStatus {
            node_id: self.node_id,
            name: self.member.name.clone(),
            zone: self.member.zone.clone(),
            role: leadership.role,
            term: leadership.term,
            leader: leadership.leader,
            last_log: metrics.last_log_index,
            committed: metrics.local_committed.map(|id| id.index),
            applied: self.applied.borrow().last_index(),
            snapshot: metrics.snapshot.map(|id| id.index),
            revision: self.machine.revision(),
            hash: self.machine.hash(),
            members,
            client_urls: self.client_urls.clone(),
            corrupt: self.integrity.alarm(),
            diverged: self.integrity.divergence().is_some(),
            no_space: space != Space::Enough,
            space,
            folders: self.bootstrap.folder_ids(),
        }
    }
}

impl From<&MemberStatus> for proto::StatusResponse {
    fn from(status: &MemberStatus) -> Self {
        let members = status.members.iter();
        let known = status.folders.known.iter();
        Self {
            node_id: status.node_id.0,
            name: status.name.clone(),
            zone: status.zone.clone(),
            role: status.role.as_str().to_owned(),
            term: status.term.0,
            leader: status.leader.map(|leader| leader.0),
            last_log: status.last_log,
            committed: status.committed,
            applied: status.applied,
            snapshot: status.snapshot,
            members: members.map(|one| wire::member_info(one.node_id, &one.member, one.voter, one.matched)).collect(),
            revision: status.revision.0,
            hash_revision: status.hash.0.0,
            hash: status.hash.1,
            client_urls: status.client_urls.clone(),
            no_space: status.no_space,
            corrupt: status.corrupt.clone().unwrap_or_default(),
            diverged: status.diverged,
            space: u32::from(status.space as u8),
            folder_id: status.folders.own,
            known_folders: known.map(|(id, folder)| proto::KnownFolder { node_id: id.0, folder_id: *folder }).collect(),
        }
    }
}

impl From<proto::StatusResponse> for MemberStatus {
    fn from(response: proto::StatusResponse) -> Self {
        let members = response.members.into_iter().map(|info| {
            let (voter, matched) = (info.voter, info.matched);
            let (node_id, member) = wire::parse_member(info);
            GroupMember { node_id, member, voter, matched }
        });
        Self {
            node_id: NodeId(response.node_id),
            name: response.name,
            zone: response.zone,
            role: Role::parse(&response.role),
            term: Term(response.term),
            leader: response.leader.map(NodeId),
            last_log: response.last_log,
            committed: response.committed,
            applied: response.applied,
            snapshot: response.snapshot,
            revision: Revision(response.revision),
            hash: (Revision(response.hash_revision), response.hash),
            members: members.collect(),
            client_urls: response.client_urls,
            no_space: response.no_space,
            corrupt: Some(response.corrupt).filter(|reason| !reason.is_empty()),
            diverged: response.diverged,
            space: Space::from_level(u8::try_from(response.space).unwrap_or(u8::MAX)),
            folders: FolderIds {
                own: response.folder_id,
                known: response.known_folders.into_iter().map(|known| (NodeId(known.node_id), known.folder_id)).collect(),
            },
        }
    }
}
