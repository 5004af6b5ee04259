//! Whether the group counts on this member, asked of the leader from time to time.
//!
//! By asking, a member tells the group which data folder it has, and the group notes that with the membership, for every member to
//! know for ever. So a member that joins later takes part only when its folder is noted, and one that comes with another folder
//! under its old id is recognised by whoever leads. One that was removed, perhaps while it did not run, learns of it and ends.
//! **Invariant**: a member that was not in the bootstrap list votes and takes entries only when the group knows it by its folder.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use openraft::type_config::async_runtime::watch::WatchReceiver;
use tokio::time::{Instant, timeout};

use crate::{
    admin,
    core::Core,
    error::ConsensusError,
    membership::Refusal,
    types::NodeId,
    wire::proto::{JoinRequest, administer_request::Action},
};

/// How often a member asks when all is well, and when nobody has answered.
const PERIOD: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(200);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the log says what this member waits for.
const REMINDER: Duration = Duration::from_secs(10);

/// Why the group does not count on this member any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expulsion {
    Removed(NodeId),
    OtherFolder(NodeId),
}

impl From<Expulsion> for ConsensusError {
    fn from(expulsion: Expulsion) -> Self {
        match expulsion {
            Expulsion::Removed(id) => Self::Removed(id),
            Expulsion::OtherFolder(id) => Self::LostData(id),
        }
    }
}

/// Asks until this member ends, or is told to. A member that is not admitted yet is, when the group knows its folder. `addresses`
/// are those of members, for one that has no membership yet.
pub async fn keep(core: Arc<Core>, addresses: Vec<String>) {
    let mut reminded = Instant::now();
    loop {
        let asked = tokio::select! {
            asked = core.ask_for_standing(&addresses) => asked,
            () = core.shutdown.cancelled() => return,
        };
        let is_admitted = core.bootstrap.is_admitted();
        let pause = match asked {
            Ok(()) if is_admitted => PERIOD,
            Ok(()) => match admit(&core).await {
                Ok(()) => PERIOD,
                Err(error) => {
                    tracing::error!(%error, "cannot note that the group has taken this member in");
                    RETRY
                }
            },
            Err(ConsensusError::Refused(Refusal::NotMember(id))) if is_admitted => {
                return expel(&core, Expulsion::Removed(id)).await;
            }
            Err(ConsensusError::Refused(Refusal::OtherFolder(id))) => return expel(&core, Expulsion::OtherFolder(id)).await,
            Err(error) => {
                if !is_admitted && reminded.elapsed() >= REMINDER {
                    reminded = Instant::now();
                    tracing::warn!(
                        member = %core.node_id, %error,
                        "the cluster has not taken this master in; if it was removed, add it as a new member (`trireme member add`)"
                    );
                }
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = core.shutdown.cancelled() => return,
        }
    }
}

async fn admit(core: &Arc<Core>) -> Result<(), ConsensusError> {
    let admitting = core.clone();
    tokio::task::spawn_blocking(move || admitting.bootstrap.admit()).await.map_err(std::io::Error::other)??;
    core.raft.run();
    tracing::info!(member = %core.node_id, "the cluster has taken this master in");
    Ok(())
}

/// Ends this member; says why, now and at every start.
async fn expel(core: &Arc<Core>, why: Expulsion) {
    if matches!(why, Expulsion::Removed(_)) {
        let noting = core.clone();
        let noted = tokio::task::spawn_blocking(move || noting.bootstrap.note_removal()).await;
        if let Ok(Err(error)) = noted {
            tracing::warn!(%error, "the data folder could not be marked as a removed member's");
        }
    }
    tracing::error!("{}", ConsensusError::from(why));
    core.expelled.send_replace(Some(why));
    core.shutdown.cancel();
}

impl Core {
    /// Asks the leader, or others for it, whether the group counts on this member with this folder.
    async fn ask_for_standing(&self, addresses: &[String]) -> Result<(), ConsensusError> {
        let (stored, leader) = {
            let server = self.raft.server_metrics();
            let metrics = server.borrow_watched();
            (metrics.membership_config.clone(), metrics.current_leader)
        };
        let request = JoinRequest {
            node_id: self.node_id.0,
            folder_id: self.bootstrap.folder_ids().own,
            name: self.member.name.clone(),
            zone: self.member.zone.clone(),
            membership_index: stored.log_id().as_ref().map_or(0, |log_id| log_id.index),
        };
        let mut outcome = ConsensusError::NoLeader("no member of the cluster answers".to_owned());
        if leader.is_some() {
            match timeout(ANSWER_TIMEOUT, self.administer_once(Action::Join(request.clone()))).await {
                Ok(Err(error)) if !is_final(&error) => outcome = error,
                Ok(answer) => return answer,
                Err(_) => {}
            }
        }
        let members = stored.membership().nodes().filter(|(id, _)| **id != self.node_id);
        let known: BTreeSet<String> =
            members.map(|(_, member)| member.address.clone()).chain(addresses.iter().cloned()).collect();
        for address in known.iter().filter(|address| **address != self.member.address) {
            let mut client = self.channels.client_at(address);
            let Ok(Ok(answer)) = timeout(ANSWER_TIMEOUT, client.join(request.clone())).await else { continue };
            match admin::parse_answer(answer.into_inner()) {
                Err(error) if !is_final(&error) => outcome = error,
                answer => return answer,
            }
        }
        Err(outcome)
    }
}

/// Whether no other member would answer otherwise.
fn is_final(error: &ConsensusError) -> bool {
    matches!(error, ConsensusError::Refused(Refusal::NotMember(_) | Refusal::OtherFolder(_)))
}
