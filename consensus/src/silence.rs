//! Tells of a member that does not answer its leader, and what it waits for. Otherwise nothing is heard of it: it gets every heartbeat, so that it
//! does not stand for election, and whoever could count it as dead is told nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::{core::Core, writer::WriterState};

/// So many heartbeats in a row without an answer, some seconds of them, are told of first; then twice as many, and so on.
const FIRST_TOLD: u32 = 64;
/// How long consensus may take to say where it stands.
const PATIENCE: Duration = Duration::from_secs(2);

/// Heartbeats since the last one that was answered: a leader gives each up soon.
pub struct Silence {
    unanswered: AtomicU32,
    is_told: AtomicBool,
    writer: Arc<WriterState>,
}

impl Silence {
    pub fn new(writer: Arc<WriterState>) -> Self {
        Self { unanswered: AtomicU32::new(0), is_told: AtomicBool::new(false), writer }
    }

    /// Counts one more request. Whether it is time to tell of it.
    fn is_long(&self) -> bool {
        let unanswered = self.unanswered.fetch_add(1, Ordering::Relaxed);
        unanswered >= FIRST_TOLD && unanswered.is_power_of_two()
    }

    /// Something was answered.
    pub fn end(&self) {
        self.unanswered.store(0, Ordering::Relaxed);
        if self.is_told.swap(false, Ordering::Relaxed) {
            tracing::info!("this member answers its leader again");
        }
    }
}

impl Core {
    /// Notes a request of the leader, and tells of those before when many were not answered. [`Silence::end`] is due with the answer.
    pub fn expect_answer(self: &Arc<Self>) {
        if self.silence.is_long() {
            self.silence.is_told.store(true, Ordering::Relaxed);
            tokio::spawn(self.clone().tell_of_silence());
        }
    }

    async fn tell_of_silence(self: Arc<Self>) {
        let is_writing = self.silence.writer.is_writing();
        let standing = self.raft.with_raft_state(|state| format!("{state:?}"));
        match tokio::time::timeout(PATIENCE, standing).await {
            Ok(Ok(state)) => tracing::error!(is_writing, state, "this member does not answer its leader"),
            Ok(Err(fatal)) => tracing::error!(%fatal, "this member does not answer its leader: consensus has stopped"),
            Err(_) => tracing::error!(is_writing, "this member does not answer its leader: consensus is blocked"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_silence_is_told_of_less_and_less_often() {
        let silence = Silence::new(Arc::default());
        let told = |requests: u32| (1..=requests).filter(|_| silence.is_long()).count();
        assert_eq!(told(64), 0);
        assert_eq!(told(1), 1);
        assert_eq!(told(1000), 4);
        silence.end();
        assert_eq!(told(64), 0);
    }
}
