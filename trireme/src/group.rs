//! What the etcd API is told of the group of masters, and does to it: [`Group`] over [`Consensus`].

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::join_all;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use trireme_consensus::{Consensus, ConsensusError, GroupMember, Member, MemberStatus, NodeId, Refusal};
use trireme_etcd::group::{Alarm, AlarmKind, Group, GroupError, MemberInfo, NewMember, Progress};
use trireme_storage::{model::Term, snapshot::SnapshotSource, store::StoreError};

/// A member that does not answer within this time is described by what was last heard of it.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// How often a learner that is to be promoted is looked at, and for how long.
const PROMOTION_PERIOD: Duration = Duration::from_secs(1);
const PROMOTION_ATTEMPTS: u32 = 600;

/// What members say of themselves.
#[derive(Clone, Debug, Default)]
struct Description {
    name: String,
    zone: String,
    client_urls: Vec<String>,
}

/// The group as one master sees it.
pub struct EtcdGroup {
    consensus: Arc<Consensus>,
    cluster: String,
    cluster_id: u64,
    /// What was last heard of each member.
    heard: Mutex<BTreeMap<NodeId, Description>>,
    shutdown: CancellationToken,
}

impl EtcdGroup {
    pub fn new(consensus: Arc<Consensus>, cluster_id: &str, shutdown: CancellationToken) -> Self {
        let mut first = [0; 8];
        first.copy_from_slice(&Sha256::digest(cluster_id)[..8]);
        let number = u64::from_be_bytes(first);
        Self { consensus, cluster: cluster_id.to_owned(), cluster_id: number, heard: Mutex::default(), shutdown }
    }

    /// Asks every member for its status; those that do not answer are left out.
    async fn ask_all(&self, members: &[GroupMember]) -> Vec<MemberStatus> {
        let asked = members.iter().map(|member| timeout(ANSWER_TIMEOUT, self.consensus.peer_status(member.node_id)));
        let answers: Vec<MemberStatus> = join_all(asked).await.into_iter().flatten().flatten().collect();
        let mut heard = self.heard.lock();
        for status in &answers {
            let described =
                Description { name: status.name.clone(), zone: status.zone.clone(), client_urls: status.client_urls.clone() };
            heard.insert(status.node_id, described);
        }
        answers
    }
}

fn failure(error: ConsensusError) -> GroupError {
    match error {
        ConsensusError::Refused(refusal) => match &refusal {
            Refusal::NotMember(_) => GroupError::NotFound,
            Refusal::AlreadyMember(_) => GroupError::Exists,
            Refusal::AlreadyVoter(_) => GroupError::NotLearner,
            Refusal::AddressTaken(_) => GroupError::AddressTaken,
            Refusal::Behind { .. } => GroupError::NotReady(refusal.to_string()),
            Refusal::NotAlive(_) => GroupError::Unhealthy(refusal.to_string()),
            Refusal::LastVoter(_) | Refusal::QuorumLost { .. } => GroupError::QuorumLost(refusal.to_string()),
            Refusal::InProgress | Refusal::OtherFolder(_) => GroupError::Failed(refusal.to_string()),
        },
        ConsensusError::NoLeader(reason) => GroupError::NoLeader(reason),
        other => GroupError::Failed(other.to_string()),
    }
}

#[async_trait::async_trait]
impl Group for EtcdGroup {
    fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    fn cluster(&self) -> String {
        self.cluster.clone()
    }

    fn member_id(&self) -> u64 {
        self.consensus.node_id().0
    }

    fn term(&self) -> Term {
        self.consensus.leadership_now().term
    }

    fn leader(&self) -> Option<u64> {
        self.consensus.leadership_now().leader.map(|leader| leader.0)
    }

    async fn progress(&self) -> Result<Progress, GroupError> {
        let status = self.consensus.status();
        let machine = self.consensus.state_machine().clone();
        let size_bytes = tokio::task::spawn_blocking(move || machine.size_bytes()).await;
        let own = status.members.iter().find(|member| member.node_id == status.node_id);
        Ok(Progress {
            leader: status.leader.map(|leader| leader.0),
            term: status.term,
            committed: status.committed.max(status.applied).unwrap_or(0),
            applied: status.applied.unwrap_or(0),
            is_learner: own.is_some_and(|own| !own.voter),
            size_bytes: size_bytes.map_err(|error| GroupError::Failed(error.to_string()))?,
        })
    }

    async fn members(&self) -> Vec<MemberInfo> {
        let members = self.consensus.status().members;
        self.ask_all(&members).await;
        let heard = self.heard.lock();
        let described = members.into_iter().map(|GroupMember { node_id, member, voter, .. }| {
            let Description { name, zone, client_urls } = heard.get(&node_id).cloned().unwrap_or_default();
            MemberInfo {
                id: node_id.0,
                name: if name.is_empty() { member.name } else { name },
                zone: if zone.is_empty() { member.zone } else { zone },
                peer_urls: vec![format!("https://{}", member.address)],
                client_urls,
                is_learner: !voter,
            }
        });
        described.collect()
    }

    async fn add_learner(&self, NewMember { address, name, zone }: NewMember) -> Result<u64, GroupError> {
        // Random, so that it is never given twice.
        let id = NodeId(uuid::Uuid::new_v4().as_u64_pair().0);
        let member = Member::new(name, zone, address);
        self.consensus.add_learner(id, member).await.map_err(failure)?;
        Ok(id.0)
    }

    async fn promote_later(&self, id: u64) {
        let (consensus, shutdown) = (self.consensus.clone(), self.shutdown.clone());
        tokio::spawn(async move {
            for _ in 0..PROMOTION_ATTEMPTS {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(PROMOTION_PERIOD) => {}
                }
                match consensus.promote(NodeId(id)).await.map_err(failure) {
                    Ok(()) | Err(GroupError::NotLearner | GroupError::NotFound) => return,
                    Err(reason) => info!(member = %NodeId(id), %reason, "the new member cannot vote yet"),
                }
            }
            warn!(member = %NodeId(id), "the new member stays a learner: it did not catch up in time");
        });
    }

    async fn promote(&self, id: u64) -> Result<(), GroupError> {
        self.consensus.promote(NodeId(id)).await.map_err(failure)
    }

    async fn remove(&self, id: u64) -> Result<(), GroupError> {
        self.consensus.remove(NodeId(id)).await.map_err(failure)
    }

    async fn update(&self, id: u64, address: String) -> Result<(), GroupError> {
        self.consensus.update(NodeId(id), address).await.map_err(failure)
    }

    async fn move_leader(&self, id: u64) -> Result<(), GroupError> {
        self.consensus.transfer_leadership(NodeId(id)).await.map_err(failure)
    }

    async fn alarms(&self) -> Vec<Alarm> {
        let members = self.consensus.status().members;
        let statuses = self.ask_all(&members).await;
        let raised = statuses.iter().flat_map(|status| {
            let kinds = [(status.no_space, AlarmKind::NoSpace), (status.corrupt.is_some(), AlarmKind::Corrupt)];
            kinds.into_iter().filter(|(is_so, _)| *is_so).map(|(_, kind)| Alarm { member_id: status.node_id.0, kind })
        });
        raised.collect()
    }

    async fn snapshot(&self) -> Result<SnapshotSource, StoreError> {
        let machine = self.consensus.state_machine().clone();
        let begun = tokio::task::spawn_blocking(move || machine.begin_snapshot()).await;
        begun.map_err(|error| StoreError::Failed(error.to_string()))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart() {
        let id = NodeId(1);
        let cases = [
            (Refusal::NotMember(id), GroupError::NotFound),
            (Refusal::AlreadyMember(id), GroupError::Exists),
            (Refusal::AlreadyVoter(id), GroupError::NotLearner),
            (Refusal::AddressTaken("a:1".into()), GroupError::AddressTaken),
            (
                Refusal::Behind { id, behind: 2, allowed: 1 },
                GroupError::NotReady("1 is 2 entries behind; at most 1 are allowed".into()),
            ),
            (Refusal::LastVoter(id), GroupError::QuorumLost("1 is the last voter".into())),
            (
                Refusal::QuorumLost { voters: 3, alive: 1, needed: 2 },
                GroupError::QuorumLost("the group would lose its quorum: of 3 voters only 1 answer, 2 are needed".into()),
            ),
        ];
        for (refusal, expected) in cases {
            assert_eq!(failure(refusal.into()), expected);
        }
        assert_eq!(failure(ConsensusError::NoLeader("x".into())), GroupError::NoLeader("x".into()));
    }
}
