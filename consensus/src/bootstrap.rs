//! How a group begins, and how a member that has lost its data is kept from voting again.
//!
//! Raft is only safe among members that remember their votes and their log. A member whose folder was lost looks like a new one, so
//! every data folder has a random id of its own. Before a member of the bootstrap list takes part in anything, it has to hear from
//! all the others, and keeps their folders' ids. **Invariant**: a bootstrap member that counts the vote or the entries of another
//! one has the id of that one's folder on disk. A member that comes with another folder is recognised by each of those, and because
//! it must hear from all of them, it cannot miss the one that knows.
//!
//! A member that joins later takes part when the group has noted its folder ([`crate::standing`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use trireme_storage::{fail_point, log::RaftLog};

use crate::{
    core::Core,
    error::ConsensusError,
    status::MemberStatus,
    types::{Member, NodeId},
};

/// How long one member may take to answer, and the pause before those that did not are asked again.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(50);
/// How often the log says for whom this member waits.
const REMINDER: Duration = Duration::from_secs(10);

const OWN_KEY: &str = "folder-id";
const ADMITTED_KEY: &str = "admitted";
const REMOVED_KEY: &str = "removed";

fn known_key(id: NodeId) -> String {
    format!("folder-of/{:016x}", id.0)
}

/// The ids of data folders, as one member knows them. Part of its status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FolderIds {
    pub own: u64,
    /// Of those other members that this one has heard from when the group was formed.
    pub known: BTreeMap<NodeId, u64>,
}

/// This member's way into the group.
pub struct Bootstrap {
    log: RaftLog,
    ids: Mutex<FolderIds>,
    admitted: AtomicBool,
}

/// What the others have told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nobody has begun yet.
    Nothing,
    RunningGroup,
}

impl Bootstrap {
    /// Reads what the folder holds; names it `new_id` if it has no name yet. Blocks.
    ///
    /// `is_pristine`: the folder has neither a log nor a vote. One that has them takes part already.
    ///
    /// # Errors
    /// [`ConsensusError::Removed`] when the folder says that its member was removed.
    pub fn open(
        log: RaftLog,
        node_id: NodeId,
        new_id: u64,
        is_pristine: bool,
        members: &BTreeSet<NodeId>,
    ) -> Result<Self, ConsensusError> {
        if log.meta(REMOVED_KEY).map_err(io)?.is_some() {
            return Err(ConsensusError::Removed(node_id));
        }
        let own = match read_id(&log, OWN_KEY)? {
            Some(own) => own,
            None => {
                fail_point!("bootstrap/own-id/before");
                save(&log, OWN_KEY, &new_id.to_be_bytes())?;
                fail_point!("bootstrap/own-id/after");
                new_id
            }
        };
        let mut known = BTreeMap::new();
        for id in members {
            if let Some(folder) = read_id(&log, &known_key(*id))? {
                known.insert(*id, folder);
            }
        }
        let admitted = !is_pristine || log.meta(ADMITTED_KEY).map_err(io)?.is_some();
        Ok(Self { log, ids: Mutex::new(FolderIds { own, known }), admitted: AtomicBool::new(admitted) })
    }

    /// Whether this member may vote and take entries.
    pub fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Acquire)
    }

    pub fn folder_ids(&self) -> FolderIds {
        self.ids.lock().clone()
    }

    /// Compares what the member `id` says of itself and of this folder with what was known, and keeps it. Blocks.
    fn learn(&self, own_id: NodeId, id: NodeId, status: &MemberStatus) -> Result<(), ConsensusError> {
        let mut ids = self.ids.lock();
        let in_group = status.members.iter().find(|one| one.node_id == own_id).and_then(|one| one.member.folder);
        if status.folders.known.get(&own_id).copied().or(in_group).is_some_and(|known| known != ids.own) {
            return Err(ConsensusError::LostData(own_id));
        }
        match ids.known.get(&id) {
            Some(known) if *known == status.folders.own => Ok(()),
            Some(_) => Err(ConsensusError::LostData(id)),
            None => {
                fail_point!("bootstrap/known-id/before");
                save(&self.log, &known_key(id), &status.folders.own.to_be_bytes())?;
                fail_point!("bootstrap/known-id/after");
                ids.known.insert(id, status.folders.own);
                Ok(())
            }
        }
    }

    /// Lets this member vote and take entries, for good. Blocks.
    pub fn admit(&self) -> Result<(), ConsensusError> {
        fail_point!("bootstrap/admit/before");
        save(&self.log, ADMITTED_KEY, &[])?;
        fail_point!("bootstrap/admit/after");
        self.admitted.store(true, Ordering::Release);
        Ok(())
    }

    /// Notes that the group has removed this member: its folder is of no use any more. Blocks.
    pub fn note_removal(&self) -> Result<(), ConsensusError> {
        save(&self.log, REMOVED_KEY, &[])
    }
}

impl Core {
    /// Waits until every other member of the bootstrap list has answered; tells whether the group runs already.
    ///
    /// # Errors
    /// [`ConsensusError::LostData`] when one of them knows this member by another folder, or answers from another one itself.
    pub async fn gather(&self, members: &BTreeMap<NodeId, Member>) -> Result<Found, ConsensusError> {
        let mut missing: BTreeMap<NodeId, Member> = members.clone();
        missing.remove(&self.node_id);
        let mut found = Found::Nothing;
        let mut reminded = tokio::time::Instant::now();
        while !missing.is_empty() {
            let asked = missing.iter().map(|(id, member)| async move {
                let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.ask_status(*id, &member.address)).await.ok()?.ok()?;
                Some((*id, answer))
            });
            for (id, status) in futures::future::join_all(asked).await.into_iter().flatten() {
                self.bootstrap.learn(self.node_id, id, &status)?;
                if !self.has_met_beginning(&status, &missing).await? {
                    continue;
                }
                if status.applied.is_some() {
                    found = Found::RunningGroup;
                }
                missing.remove(&id);
            }
            if missing.is_empty() {
                break;
            }
            if reminded.elapsed() >= REMINDER {
                reminded = tokio::time::Instant::now();
                let names: Vec<&str> = missing.values().map(|member| member.name.as_str()).collect();
                tracing::info!(missing = names.join(", "), "waiting for all members of the new cluster to start");
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.bootstrap.admit()?;
        Ok(found)
    }
}

impl Core {
    /// Checks that another member of a new group begins with the same data; `false` when it does not answer. One that has begun
    /// already has compared its data with this member's before.
    async fn has_met_beginning(&self, status: &MemberStatus, members: &BTreeMap<NodeId, Member>) -> Result<bool, ConsensusError> {
        let Some(member) = members.get(&status.node_id) else { return Ok(true) };
        let own = self.report(&[])?;
        let asked = tokio::time::timeout(ANSWER_TIMEOUT, self.ask_hashes(status.node_id, &member.address, &[])).await;
        let Ok(Ok(theirs)) = asked else { return Ok(false) };
        let is_beginning = |applied: Option<u64>| applied.unwrap_or(0) == 0;
        if is_beginning(own.applied) && is_beginning(theirs.applied) && own.newest != theirs.newest {
            let (own, theirs) = (own.newest.0.0, theirs.newest.0.0);
            return Err(ConsensusError::OtherBeginning { name: member.name.clone(), own, theirs });
        }
        Ok(true)
    }
}

fn io(error: trireme_storage::log::LogError) -> ConsensusError {
    ConsensusError::Io(std::io::Error::other(error))
}

fn read_id(log: &RaftLog, key: &str) -> Result<Option<u64>, ConsensusError> {
    let Some(stored) = log.meta(key).map_err(io)? else { return Ok(None) };
    let bytes = <[u8; 8]>::try_from(stored.as_ref())
        .map_err(|_| ConsensusError::Configuration(format!("the stored record {key} is damaged")))?;
    Ok(Some(u64::from_be_bytes(bytes)))
}

fn save(log: &RaftLog, key: &str, value: &[u8]) -> Result<(), ConsensusError> {
    log.save_meta(key, Bytes::copy_from_slice(value)).map_err(io)
}
