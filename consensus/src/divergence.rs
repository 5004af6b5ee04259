//! Whether this member holds what the others hold. Every member compares the rolling hash of its state with the others' at revisions
//! that both know, and adds up, less often, everything that it has on its disk.
//!
//! One whose data are wrong while the others can go on stops serving for good: it notes it on its disk, gives the leadership away, and
//! is never elected again. It goes on to vote and to keep the log, which are right. Where it is not known who is wrong, all of them
//! raise the alarm and go on. **Invariant**: a member that has noted a divergence hands out nothing of its state.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use openraft::{ServerState, type_config::async_runtime::watch::WatchReceiver};
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior};
use trireme_storage::{codec, content::ContentCheck, log::RaftLog, model::Revision, store::StoreError};

use crate::{
    agreement::{Verdict, judge},
    core::Core,
    error::ConsensusError,
    record,
    transport::Lane,
    types::{Member, NodeId},
    wire::proto,
};

const DIVERGED_KEY: &str = "diverged";
/// How long another member may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long this member is waited for to apply what others have applied.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(50);
/// After damage that has no consequence yet, the disk is looked at again so soon.
const DAMAGE_RECHECK: Duration = Duration::from_secs(60);
/// A member is asked for no more hashes than this at once.
const REVISIONS_AT_ONCE: usize = 16;
/// Adding up the data rests so many times as long as it works.
const REST: u32 = 3;

/// What is known of this member's data.
pub struct Integrity {
    log: RaftLog,
    /// Why this member does not serve any more. Also on its disk.
    divergence: OnceLock<String>,
    /// Others hold something else, and it is not known who is right.
    disagreement: Mutex<Option<String>>,
    /// What is on the disk is not what applying the log has made.
    damage: Mutex<Option<String>>,
}

impl Integrity {
    /// Reads what was noted on the disk. Blocks.
    pub fn open(log: RaftLog) -> Result<Self, ConsensusError> {
        let stored = log.meta(DIVERGED_KEY).map_err(std::io::Error::other)?;
        // Whatever can no longer be read of the reason, that there is one counts.
        let stored = stored.map(|stored| codec::decode::<String>(&stored).unwrap_or_else(|error| error.to_string()));
        let divergence = stored.map_or_else(OnceLock::new, OnceLock::from);
        Ok(Self { log, divergence, disagreement: Mutex::default(), damage: Mutex::default() })
    }

    /// Why this member does not serve any more, if that is so.
    pub fn divergence(&self) -> Option<&str> {
        self.divergence.get().map(String::as_str)
    }

    /// Why this member's data are not, or may not be, those of the others.
    pub fn alarm(&self) -> Option<String> {
        let known = self.divergence.get().cloned();
        known.or_else(|| self.damage.lock().clone()).or_else(|| self.disagreement.lock().clone())
    }

    /// Notes a divergence for good. Blocks.
    fn note(&self, reason: &str) {
        let saved = codec::encode(reason).map_err(|error| error.to_string());
        let saved =
            saved.and_then(|record| self.log.save_meta(DIVERGED_KEY, Bytes::from(record)).map_err(|error| error.to_string()));
        if let Err(error) = saved {
            tracing::error!(
                error,
                "the divergence could not be noted on the disk; it will have to be found again after a restart"
            );
        }
        // The first reason stays.
        let _ = self.divergence.set(reason.to_owned());
    }
}

/// What a member says of its state, for others to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The index of the last applied entry.
    pub applied: Option<u64>,
    pub newest: (Revision, u64),
    pub known: Vec<(Revision, u64)>,
    pub diverged: bool,
}

impl From<Report> for proto::HashesResponse {
    fn from(report: Report) -> Self {
        let hash_at = |(revision, hash): (Revision, u64)| proto::HashAt { revision: revision.0, hash };
        Self {
            applied: report.applied,
            newest: Some(hash_at(report.newest)),
            known: report.known.into_iter().map(hash_at).collect(),
            diverged: report.diverged,
        }
    }
}

impl From<proto::HashesResponse> for Report {
    fn from(response: proto::HashesResponse) -> Self {
        let hash_at = |at: proto::HashAt| (Revision(at.revision), at.hash);
        Self {
            applied: response.applied,
            newest: response.newest.map(hash_at).unwrap_or_default(),
            known: response.known.into_iter().map(hash_at).collect(),
            diverged: response.diverged,
        }
    }
}

impl Core {
    /// Whether this member may hand out anything of its state.
    pub fn check_serving(&self) -> Result<(), StoreError> {
        match self.integrity.divergence() {
            None => Ok(()),
            Some(reason) => Err(StoreError::Diverged(reason.to_owned())),
        }
    }

    /// What this member says of its state, at `revisions` too as far as they are known.
    pub fn report(&self, revisions: &[u64]) -> Result<Report, ConsensusError> {
        let standing = self.machine.standing();
        let applied = standing.applied.as_deref().map(record::decode_applied).transpose()?.unwrap_or_default();
        let asked = revisions.iter().take(REVISIONS_AT_ONCE).map(|revision| Revision(*revision));
        let asked = asked.filter_map(|revision| Some((revision, self.machine.hash_at(revision)?)));
        Ok(Report {
            applied: applied.last.map(|last| last.index),
            newest: (standing.revision, standing.hash),
            known: standing.samples.iter().copied().chain(asked).collect(),
            diverged: self.integrity.divergence().is_some(),
        })
    }

    /// What another member says of its state.
    pub async fn ask_hashes(&self, id: NodeId, address: &str, revisions: &[Revision]) -> Result<Report, ConsensusError> {
        let mut client = self.channels.client(id, address, Lane::Control);
        let request = proto::HashesRequest { revisions: revisions.iter().map(|revision| revision.0).collect() };
        let asked = client.hashes(request).await;
        Ok(asked.map_err(|status| ConsensusError::Unreachable(status.to_string()))?.into_inner().into())
    }

    /// Checks that another member may lead. One that does not answer is not judged.
    pub async fn check_well(&self, id: NodeId) -> Result<(), ConsensusError> {
        let (_, others) = self.group_members();
        let Some(member) = others.get(&id) else { return Ok(()) };
        let asked = tokio::time::timeout(ANSWER_TIMEOUT, self.ask_hashes(id, &member.address, &[])).await;
        if matches!(asked, Ok(Ok(Report { diverged: true, .. }))) {
            return Err(ConsensusError::RefusedByLeader(format!("the data of {id} have diverged from the group's")));
        }
        Ok(())
    }

    fn group_members(&self) -> (BTreeSet<NodeId>, BTreeMap<NodeId, Member>) {
        let membership = self.raft.server_metrics().borrow_watched().membership_config.membership().clone();
        let others = membership.nodes().filter(|(id, _)| **id != self.node_id);
        (membership.voter_ids().collect(), others.map(|(id, member)| (*id, member.clone())).collect())
    }

    async fn ask_all_hashes(&self, others: &BTreeMap<NodeId, Member>, revisions: &[Revision]) -> BTreeMap<NodeId, Report> {
        let asked = others.iter().map(|(id, member)| async move {
            let asked = tokio::time::timeout(ANSWER_TIMEOUT, self.ask_hashes(*id, &member.address, revisions)).await;
            Some((*id, asked.ok()?.ok()?))
        });
        futures::future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// Compares this member's state with the others'. What is wrong with it, or with whom of them it disagrees, becomes an alarm, or
    /// the end of its service.
    async fn compare_hashes(&self) -> Result<(), ConsensusError> {
        let (voters, others) = self.group_members();
        let reports = self.ask_all_hashes(&others, &[]).await;
        let Some(newest) = reports.values().map(|report| report.newest.0).max() else { return Ok(()) };
        let deadline = Instant::now() + CATCH_UP_LIMIT;
        while self.machine.revision() < newest && Instant::now() < deadline {
            tokio::time::sleep(POLL).await;
        }
        let own = self.report(&[])?;
        let mut equal = 0;
        let mut different = BTreeSet::new();
        for (revision, hash) in reports.values().flat_map(|report| report.known.iter().chain([&report.newest])) {
            match self.machine.hash_at(*revision) {
                Some(held) if held == *hash => equal += 1,
                Some(_) => {
                    different.insert(*revision);
                }
                None => {}
            }
        }
        // Members that have applied the same entries are at the same revision, with the same hash.
        let mut level: BTreeMap<NodeId, (Revision, u64)> = BTreeMap::from([(self.node_id, own.newest)]);
        level.extend(reports.iter().filter(|(_, report)| report.applied == own.applied).map(|(id, report)| (*id, report.newest)));
        let mut verdict = judge(self.node_id, &voters, &level);
        let mut at = own.newest.0;
        if let Some(revision) = different.last().copied() {
            // The newest revision at which somebody differs: what everyone has there.
            at = revision;
            let reports = self.ask_all_hashes(&others, &[revision]).await;
            let mut values: BTreeMap<NodeId, u64> = BTreeMap::new();
            values.extend(self.machine.hash_at(revision).map(|hash| (self.node_id, hash)));
            for (id, report) in &reports {
                let mut known = report.known.iter().chain([&report.newest]);
                values.extend(known.find(|(known, _)| *known == revision).map(|(_, hash)| (*id, *hash)));
            }
            verdict = judge(self.node_id, &voters, &values);
        }
        self.counts.hashes_compared.inc_by(equal);
        self.draw_conclusions(verdict, at).await;
        Ok(())
    }

    async fn draw_conclusions(&self, verdict: Verdict, at: Revision) {
        let disagreement = match verdict {
            Verdict::Agreed => None,
            Verdict::OddOneOut => {
                self.stop_serving(&format!("its state at revision {at} is not the one that a majority of the masters holds"))
                    .await;
                None
            }
            Verdict::OthersDiffer(others) => {
                for peer in others {
                    tracing::error!(%peer, revision = at.0, "the data of a member have diverged from the group's");
                }
                None
            }
            Verdict::NoMajority => {
                Some(format!("the masters hold different data at revision {at}, and no majority holds the same"))
            }
        };
        let mut noted = self.integrity.disagreement.lock();
        if let Some(reason) = disagreement.as_ref().filter(|reason| noted.as_ref() != Some(*reason)) {
            tracing::error!(reason, "the masters' data have diverged; compare their backups, and replace those that are wrong");
        }
        *noted = disagreement;
    }

    /// What is on the disk is not what the log has made of it. Whether this member has stopped serving for it: only where a majority
    /// of the voters can go on without it.
    async fn found_damage(&self, reason: String) -> bool {
        let (voters, others) = self.group_members();
        let reports = self.ask_all_hashes(&others, &[]).await;
        let able = reports.iter().filter(|(id, report)| voters.contains(*id) && !report.diverged).count();
        if able > voters.len() / 2 {
            self.stop_serving(&reason).await;
            return true;
        }
        tracing::error!(reason, "the data of this member are damaged; it goes on, because the others could not without it");
        *self.integrity.damage.lock() = Some(reason);
        false
    }

    /// Ends this member's service, for good.
    async fn stop_serving(&self, reason: &str) {
        if self.integrity.divergence().is_some() {
            return;
        }
        self.integrity.note(reason);
        self.stay_apart();
        self.leave_leadership().await;
        // A leader that nobody could take over from is silent until somebody is elected in its place.
        let mut server = self.raft.server_metrics();
        while server.borrow_and_update().state == ServerState::Leader {
            self.raft.runtime_config().heartbeat(false);
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                changed = server.changed() => if changed.is_err() { return },
            }
        }
        self.raft.runtime_config().heartbeat(true);
    }

    /// Keeps a member whose data have diverged from being elected and from being watched; says what mends it.
    pub fn stay_apart(&self) {
        let Some(reason) = self.integrity.divergence() else { return };
        tracing::error!(
            reason,
            "the data of this member have diverged from the group's: it does not serve. Replace it: remove member {} \
             (`trireme member remove`, or `etcdctl member remove`), and add a new one with an empty data folder",
            self.node_id
        );
        self.raft.runtime_config().elect(false);
        self.machine.end_watches();
    }
}

/// Compares hashes with the other members from time to time, until shutdown.
pub async fn compare(core: Arc<Core>) {
    let mut ticks = tokio::time::interval(core.timing.hash_check_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = core.shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if core.integrity.divergence().is_some() || !core.bootstrap.is_admitted() {
            continue;
        }
        tokio::select! {
            () = core.shutdown.cancelled() => return,
            compared = core.compare_hashes() => if let Err(error) = compared {
                tracing::warn!(%error, "the hashes of the members could not be compared");
            }
        }
    }
}

/// Adds up everything on the disk from time to time, until shutdown.
pub async fn check_content(core: Arc<Core>) {
    let mut pause = core.timing.first_content_check;
    loop {
        tokio::select! {
            () = core.shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = core.timing.content_check_interval;
        if core.integrity.divergence().is_some() {
            return;
        }
        let (machine, shutdown) = (core.machine.clone(), core.shutdown.clone());
        let checking = tokio::task::spawn_blocking(move || {
            let resumed = Cell::new(Instant::now());
            machine.check_content(&|| {
                // Nobody should notice that this runs.
                std::thread::sleep(resumed.get().elapsed() * REST);
                resumed.set(Instant::now());
                !shutdown.is_cancelled()
            })
        });
        let damage = match checking.await {
            Ok(Ok(ContentCheck::Sound(content))) => {
                tracing::debug!(keys = content.keys, "everything on the disk is as the log has made it");
                *core.integrity.damage.lock() = None;
                continue;
            }
            Ok(Ok(ContentCheck::Stopped)) => {
                pause = core.timing.first_content_check;
                continue;
            }
            Err(_) => continue,
            Ok(Ok(ContentCheck::Differs { found, expected })) => format!(
                "its {} keys are not the {} that the log has made: something else has changed its data",
                found.keys, expected.keys
            ),
            Ok(Err(StoreError::Failed(reason))) => format!("its data cannot be read: {reason}"),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the data on the disk could not be checked");
                continue;
            }
        };
        if !core.found_damage(damage).await {
            pause = DAMAGE_RECHECK;
        }
    }
}
