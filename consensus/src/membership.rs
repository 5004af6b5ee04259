//! Changes of the group, and why one is refused: no change may leave the group without a quorum that lives.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::types::{Member, NodeId};

/// Why a change of the membership is refused.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    #[error("{0} is not a member")]
    NotMember(NodeId),
    #[error("{0} is a voter already")]
    AlreadyVoter(NodeId),
    #[error("{0} is a member already")]
    AlreadyMember(NodeId),
    #[error("{0} is the last voter")]
    LastVoter(NodeId),
    #[error("the group would lose its quorum: of {voters} voters only {alive} answer, {needed} are needed")]
    QuorumLost { voters: usize, alive: usize, needed: usize },
    #[error("{id} {}", lag(*behind, *allowed))]
    Behind { id: NodeId, behind: u64, allowed: u64 },
    #[error("the address {0} is another member's already")]
    AddressTaken(String),
    #[error("{0} does not answer")]
    NotAlive(NodeId),
    #[error("another change of the membership is under way")]
    InProgress,
    #[error("member {0} is known by another data folder")]
    OtherFolder(NodeId),
}

fn lag(behind: u64, allowed: u64) -> String {
    match behind {
        u64::MAX => "has nothing of the log yet".to_owned(),
        _ => format!("is {behind} entries behind; at most {allowed} are allowed"),
    }
}

/// A promoted learner may be this many entries behind the leader.
pub const PROMOTION_LAG: u64 = 1000;

/// What the leader knows of its group.
#[derive(Clone, Debug, Default)]
pub struct Group {
    pub voters: BTreeSet<NodeId>,
    pub learners: BTreeSet<NodeId>,
    /// Members that answered the leader lately, the leader among them.
    pub alive: BTreeSet<NodeId>,
}

impl Group {
    fn check_quorum(&self, voters: &BTreeSet<NodeId>) -> Result<(), Refusal> {
        let alive = voters.intersection(&self.alive).count();
        let needed = voters.len() / 2 + 1;
        if alive < needed { Err(Refusal::QuorumLost { voters: voters.len(), alive, needed }) } else { Ok(()) }
    }

    /// Whether `id` belongs to the group.
    pub fn check_member(&self, id: NodeId) -> Result<(), Refusal> {
        if self.voters.contains(&id) || self.learners.contains(&id) { Ok(()) } else { Err(Refusal::NotMember(id)) }
    }

    /// Whether `id` may be added as a learner.
    pub fn check_add_learner(&self, id: NodeId) -> Result<(), Refusal> {
        if self.voters.contains(&id) || self.learners.contains(&id) {
            return Err(Refusal::AlreadyMember(id));
        }
        Ok(())
    }

    /// Whether the learner `id`, whose log is `behind` entries short, may become a voter.
    pub fn check_promote(&self, id: NodeId, behind: Option<u64>) -> Result<(), Refusal> {
        if self.voters.contains(&id) {
            return Err(Refusal::AlreadyVoter(id));
        }
        if !self.learners.contains(&id) {
            return Err(Refusal::NotMember(id));
        }
        let behind = behind.unwrap_or(u64::MAX);
        if behind > PROMOTION_LAG {
            return Err(Refusal::Behind { id, behind, allowed: PROMOTION_LAG });
        }
        let mut voters = self.voters.clone();
        voters.insert(id);
        self.check_quorum(&voters)
    }

    /// Whether the voter `id`, whose log is `behind` entries short, may be asked to lead.
    pub fn check_transfer(&self, id: NodeId, behind: Option<u64>) -> Result<(), Refusal> {
        if !self.voters.contains(&id) {
            return Err(Refusal::NotMember(id));
        }
        if !self.alive.contains(&id) {
            return Err(Refusal::NotAlive(id));
        }
        let behind = behind.unwrap_or(u64::MAX);
        if behind > PROMOTION_LAG {
            return Err(Refusal::Behind { id, behind, allowed: PROMOTION_LAG });
        }
        Ok(())
    }

    /// Whether `id` may be removed. Returns whether it is a voter.
    pub fn check_remove(&self, id: NodeId) -> Result<bool, Refusal> {
        if self.learners.contains(&id) {
            return Ok(false);
        }
        if !self.voters.contains(&id) {
            return Err(Refusal::NotMember(id));
        }
        let mut voters = self.voters.clone();
        voters.remove(&id);
        if voters.is_empty() {
            return Err(Refusal::LastVoter(id));
        }
        self.check_quorum(&voters)?;
        Ok(true)
    }
}

/// What is to be noted of a member that comes with `folder`; `None` when all of it is known.
pub fn joined(id: NodeId, known: &Member, folder: u64, name: &str, zone: &str) -> Result<Option<Member>, Refusal> {
    if known.folder.is_some_and(|known| known != folder) {
        return Err(Refusal::OtherFolder(id));
    }
    let noted = Member { name: name.to_owned(), zone: zone.to_owned(), address: known.address.clone(), folder: Some(folder) };
    Ok((noted != *known).then_some(noted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn group(voters: &[u64], learners: &[u64], alive: &[u64]) -> Group {
        Group { voters: ids(voters), learners: ids(learners), alive: ids(alive) }
    }

    #[test]
    fn a_member_may_go_only_if_the_others_are_a_living_quorum() {
        let lost = |voters, alive, needed| Err(Refusal::QuorumLost { voters, alive, needed });
        let cases = [
            (group(&[1, 2, 3], &[], &[1, 2, 3]), 3, Ok(true)),
            (group(&[1, 2, 3], &[], &[1, 2]), 3, Ok(true)),
            (group(&[1, 2, 3], &[], &[1, 2]), 2, lost(2, 1, 2)),
            (group(&[1, 2], &[], &[1, 2]), 2, Ok(true)),
            (group(&[1], &[], &[1]), 1, Err(Refusal::LastVoter(NodeId(1)))),
            (group(&[1, 2], &[3], &[1, 2]), 3, Ok(false)),
            (group(&[1, 2], &[3], &[1, 2]), 4, Err(Refusal::NotMember(NodeId(4)))),
        ];
        for (group, id, expected) in cases {
            assert_eq!(group.check_remove(NodeId(id)), expected, "{group:?} without {id}");
        }
    }

    #[test]
    fn a_member_joins_with_one_folder_for_ever() {
        let id = NodeId(4);
        let added = Member::new("", "", "m4:2380");
        let noted = joined(id, &added, 7, "m4", "zone-a").unwrap().unwrap();
        assert_eq!(noted, Member { folder: Some(7), ..Member::new("m4", "zone-a", "m4:2380") });
        assert_eq!(joined(id, &noted, 7, "m4", "zone-a"), Ok(None));
        assert_eq!(joined(id, &noted, 7, "m4", "zone-b").unwrap().unwrap().zone, "zone-b");
        assert_eq!(joined(id, &noted, 8, "m4", "zone-a"), Err(Refusal::OtherFolder(id)));
    }

    #[test]
    fn only_a_living_voter_that_keeps_up_is_asked_to_lead() {
        let group = group(&[1, 2, 3], &[4], &[1, 2, 4]);
        assert_eq!(group.check_transfer(NodeId(2), Some(0)), Ok(()));
        assert_eq!(group.check_transfer(NodeId(3), Some(0)), Err(Refusal::NotAlive(NodeId(3))));
        assert_eq!(group.check_transfer(NodeId(4), Some(0)), Err(Refusal::NotMember(NodeId(4))));
        assert!(matches!(group.check_transfer(NodeId(2), Some(PROMOTION_LAG + 1)), Err(Refusal::Behind { .. })));
        assert!(matches!(group.check_transfer(NodeId(2), None), Err(Refusal::Behind { .. })));
    }

    #[test]
    fn a_learner_may_vote_when_it_has_caught_up_and_costs_no_quorum() {
        let full = group(&[1, 2, 3], &[4], &[1, 2, 3, 4]);
        let short = group(&[1, 2, 3], &[4], &[1, 2]);
        assert_eq!(full.check_promote(NodeId(4), Some(10)), Ok(()));
        assert_eq!(full.check_promote(NodeId(1), Some(0)), Err(Refusal::AlreadyVoter(NodeId(1))));
        assert_eq!(full.check_promote(NodeId(9), Some(0)), Err(Refusal::NotMember(NodeId(9))));
        assert!(matches!(full.check_promote(NodeId(4), None), Err(Refusal::Behind { .. })));
        assert!(matches!(full.check_promote(NodeId(4), Some(PROMOTION_LAG + 1)), Err(Refusal::Behind { .. })));
        assert_eq!(short.check_promote(NodeId(4), Some(0)), Err(Refusal::QuorumLost { voters: 4, alive: 2, needed: 3 }));
        assert_eq!(full.check_add_learner(NodeId(4)), Err(Refusal::AlreadyMember(NodeId(4))));
        assert_eq!(full.check_add_learner(NodeId(5)), Ok(()));
    }
}
