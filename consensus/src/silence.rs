//! Tells of a member that does not answer its leader, and what it waits for. Otherwise nothing would be heard of it: it gets every
//! heartbeat, so that it does not stand for election, and answers none, so that it counts for no write.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::{core::Core, writer::WriterState};

/// So many heartbeats in a row without an answer, some seconds of them, are told of first; then twice as many, and so on.
const FIRST_TOLD: u32 = 1 << 6;
/// How long consensus may take to say where it stands.
const PATIENCE: Duration = Duration::from_secs(2);

/// The heartbeats since anything was answered: a leader gives each of them up soon.
pub struct Silence {
    unanswered: AtomicU32,
    is_told: AtomicBool,
    writer: Arc<WriterState>,
}

impl Silence {
    pub fn new(writer: Arc<WriterState>) -> Self {
        Self { unanswered: AtomicU32::new(0), is_told: AtomicBool::new(false), writer }
    }

    /// Counts a heartbeat that has come. Whether so many before it were not answered that it is time to tell.
    fn count(&self) -> bool {
        let unanswered = self.unanswered.fetch_add(1, Ordering::Relaxed);
        unanswered >= FIRST_TOLD && unanswered.is_power_of_two()
    }

    /// Something was answered: a heartbeat, or entries.
    pub fn end(&self) {
        if self.unanswered.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.unanswered.store(0, Ordering::Relaxed);
        if self.is_told.swap(false, Ordering::Relaxed) {
            tracing::info!("this member answers its leader again");
        }
    }
}

impl Core {
    /// Notes that a heartbeat has come. [`Silence::end`] is due when it is answered.
    pub fn note_heartbeat(self: &Arc<Self>) {
        if self.silence.count() {
            tokio::spawn(self.clone().tell_of_silence());
        }
    }

    async fn tell_of_silence(self: Arc<Self>) {
        let mut standing = pin!(self.raft.with_raft_state(|state| {
            tracing::debug!(?state, "where consensus stands");
            (state.snapshot_meta.last_log_id.map(|id| id.index), state.log_ids.last().map(|id| id.index))
        }));
        let answer = tokio::time::timeout(PATIENCE, &mut standing).await;
        if self.silence.unanswered.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.silence.is_told.store(true, Ordering::Relaxed);
        let writer = &self.silence.writer;
        let (is_writing, is_out_of_space) = (writer.is_writing(), writer.is_out_of_space());
        match answer {
            Ok(Ok((snapshot, last))) => {
                let applied = self.applied.borrow().last_index();
                let is_installing = snapshot > applied;
                tracing::warn!(
                    is_writing,
                    is_out_of_space,
                    is_installing,
                    last,
                    applied,
                    "this member does not answer its leader: it waits for its disk or a snapshot"
                );
            }
            Ok(Err(fatal)) => tracing::warn!(%fatal, "this member does not answer its leader: consensus has stopped"),
            Err(_) => {
                tracing::warn!(is_writing, is_out_of_space, "this member does not answer its leader: consensus is blocked");
                // openraft complains when nobody waits for what it was asked.
                self.shutdown.run_until_cancelled(standing).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_silence_is_told_of_less_and_less_often() {
        let silence = Silence::new(Arc::default());
        let told = |heartbeats: u32| (1..=heartbeats).filter(|_| silence.count()).count();
        assert_eq!(told(64), 0);
        assert_eq!(told(1), 1);
        assert_eq!(told(1000), 4);
        silence.end();
        assert_eq!(told(64), 0);
    }
}
