//! Who leads. A leadership is announced only once its leader has applied an entry of its own term, and with it everything
//! committed before; its loss, or the loss of the quorum behind it, is announced at once.

use std::{sync::Arc, time::Duration};

use openraft::{Instant, ServerState, type_config::async_runtime::watch::WatchReceiver};
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use trireme_storage::model::Term;

use crate::{
    machine::Applied,
    types::{NodeId, Raft},
};

/// What a member is to its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Leader,
    #[default]
    Follower,
    /// Stands for election, or was elected and has not applied an entry of its term yet.
    Candidate,
    /// Receives the log without a vote.
    Learner,
    /// The consensus core has ended, on purpose or by a failure.
    Stopped,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
            Self::Stopped => "stopped",
        }
    }

    /// The role of that name; one that this version does not know counts as a follower's.
    pub fn parse(name: &str) -> Self {
        [Self::Leader, Self::Candidate, Self::Learner, Self::Stopped]
            .into_iter()
            .find(|role| role.as_str() == name)
            .unwrap_or_default()
    }
}

/// A member's view of the group's leadership.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// This member's role.
    pub role: Role,
    pub term: Term,
    /// The leader, if one is known; on the leader itself only while `role` is [`Role::Leader`].
    pub leader: Option<NodeId>,
}

impl Leadership {
    /// The term that this member leads.
    pub fn leading(&self) -> Option<Term> {
        (self.role == Role::Leader).then_some(self.term)
    }
}

/// What a leadership is judged by.
#[derive(Clone, Copy, Debug)]
struct Facts {
    own: NodeId,
    state: ServerState,
    term: u64,
    leader: Option<NodeId>,
    applied_term: u64,
    /// Whether a quorum has answered this leader lately.
    has_quorum: bool,
}

fn judge(facts: Facts) -> Leadership {
    let term = Term(facts.term);
    let role = match facts.state {
        ServerState::Leader if facts.applied_term == facts.term && facts.has_quorum => Role::Leader,
        ServerState::Leader | ServerState::Candidate => Role::Candidate,
        ServerState::Follower => Role::Follower,
        ServerState::Learner => Role::Learner,
        ServerState::Shutdown => Role::Stopped,
    };
    let leader = match role {
        Role::Leader => Some(facts.own),
        Role::Candidate | Role::Stopped => None,
        Role::Follower | Role::Learner => facts.leader.filter(|leader| *leader != facts.own),
    };
    Leadership { role, term, leader }
}

/// Keeps `announced` true until `shutdown`.
pub async fn watch(
    own: NodeId,
    raft: Raft,
    mut applied: watch::Receiver<Applied>,
    announced: Arc<watch::Sender<Leadership>>,
    quorum_timeout: Duration,
    leader_changes: Counter,
    shutdown: CancellationToken,
) {
    let mut server = raft.server_metrics();
    let mut quorum_check = tokio::time::interval(quorum_timeout / 4);
    quorum_check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let leadership = {
            let metrics = server.borrow_watched();
            let has_quorum = has_quorum(&raft, &metrics, quorum_timeout);
            judge(Facts {
                own,
                state: metrics.state,
                term: metrics.vote.leader_id.term,
                leader: metrics.current_leader,
                applied_term: applied.borrow().term,
                has_quorum,
            })
        };
        announced.send_if_modified(|current| {
            let changed = *current != leadership;
            if changed {
                tracing::info!(
                    member = %own, role = leadership.role.as_str(), term = leadership.term.0,
                    leader = leadership.leader.map(|leader| leader.to_string()), "raft leadership changed"
                );
                if leadership.leader.is_some() && leadership.leader != current.leader {
                    leader_changes.inc();
                }
                *current = leadership;
            }
            changed
        });
        tokio::select! {
            () = shutdown.cancelled() => break,
            changed = server.changed() => if changed.is_err() { break },
            changed = applied.changed() => if changed.is_err() { break },
            _ = quorum_check.tick() => {}
        }
    }
    announced.send_modify(|current| *current = Leadership { role: Role::Stopped, term: current.term, leader: None });
}

fn has_quorum(raft: &Raft, metrics: &openraft::metrics::RaftServerMetrics<crate::types::TypeConfig>, timeout: Duration) -> bool {
    if metrics.state != ServerState::Leader {
        return false;
    }
    if metrics.membership_config.voter_ids().count() <= 1 {
        return true;
    }
    let acknowledged = raft.as_leader().ok().and_then(|leader| leader.last_quorum_acked());
    acknowledged.is_some_and(|at| at.elapsed() < timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);

    fn facts(state: ServerState, leader: Option<NodeId>) -> Facts {
        Facts { own: OWN, state, term: 5, leader, applied_term: 5, has_quorum: true }
    }

    #[test]
    fn a_leader_is_announced_when_it_has_applied_its_term_and_has_a_quorum() {
        let lead = facts(ServerState::Leader, Some(OWN));
        assert_eq!(judge(lead), Leadership { role: Role::Leader, term: Term(5), leader: Some(OWN) });
        assert_eq!(judge(lead).leading(), Some(Term(5)));
        for not_yet in [Facts { applied_term: 4, ..lead }, Facts { has_quorum: false, ..lead }] {
            assert_eq!(judge(not_yet), Leadership { role: Role::Candidate, term: Term(5), leader: None });
            assert_eq!(judge(not_yet).leading(), None);
        }
    }

    #[test]
    fn others_name_the_leader_that_they_follow_but_never_themselves() {
        let cases = [
            (ServerState::Follower, Some(OTHER), Role::Follower, Some(OTHER)),
            (ServerState::Follower, Some(OWN), Role::Follower, None),
            (ServerState::Learner, Some(OTHER), Role::Learner, Some(OTHER)),
            (ServerState::Candidate, Some(OTHER), Role::Candidate, None),
            (ServerState::Shutdown, Some(OTHER), Role::Stopped, None),
        ];
        for (state, known, role, leader) in cases {
            assert_eq!(judge(facts(state, known)), Leadership { role, term: Term(5), leader }, "{state:?}");
        }
    }
}
