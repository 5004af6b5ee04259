//! Linearizable reads on every member: all readers that wait share one round. The leader confirms that it leads by hearing from
//! a quorum after the readers came (ReadIndex, dissertation section 6.4); a follower asks the leader, then waits until it has
//! applied that far itself.

use std::{sync::Arc, time::Duration};

use openraft::{ReadPolicy, type_config::async_runtime::watch::WatchReceiver};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use trireme_storage::store::StoreError;

use crate::{
    machine::Applied,
    transport::{Channels, Lane},
    types::{NodeId, Raft},
    wire::proto::{ReadIndexRequest, read_index_response},
};

/// So many rounds may be under way at once; readers that come while all are share the next one.
const ROUNDS: usize = 4;
/// The pause before a failed round is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// A reader that waits for the barrier.
pub type Waiting = oneshot::Sender<Result<(), StoreError>>;

/// What a round needs.
#[derive(Clone)]
pub struct Reader {
    pub own: NodeId,
    pub raft: Raft,
    pub channels: Channels,
    pub applied: watch::Receiver<Applied>,
    /// How long a round may take in all.
    pub request_timeout: Duration,
    /// How long one attempt to learn the read index may take.
    pub attempt_timeout: Duration,
}

/// Serves the readers that come in through `queue` until `shutdown`.
pub async fn run(reader: Reader, mut queue: mpsc::Receiver<Waiting>, shutdown: CancellationToken) {
    let slots = Arc::new(Semaphore::new(ROUNDS));
    loop {
        let slot = tokio::select! {
            () = shutdown.cancelled() => break,
            slot = slots.clone().acquire_owned() => slot,
        };
        let Ok(slot) = slot else { break };
        let mut readers = tokio::select! {
            () = shutdown.cancelled() => break,
            next = queue.recv() => match next {
                Some(first) => vec![first],
                None => break,
            },
        };
        while let Ok(next) = queue.try_recv() {
            readers.push(next);
        }
        let reader = reader.clone();
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            let result = tokio::select! {
                result = reader.round() => result,
                () = shutdown.cancelled() => Err(StoreError::Unavailable("this member shuts down".to_owned())),
            };
            for waiting in readers {
                // The caller may have given up.
                let _ = waiting.send(result.clone());
            }
            drop(slot);
        });
    }
}

impl Reader {
    async fn round(&self) -> Result<(), StoreError> {
        let deadline = Instant::now() + self.request_timeout;
        loop {
            let attempt = tokio::time::timeout(self.attempt_timeout, self.read_index()).await;
            let reason = match attempt {
                Ok(Ok(index)) => return self.wait_applied(index, deadline).await,
                Ok(Err(reason)) => reason,
                Err(_) => "the leader did not answer in time".to_owned(),
            };
            if Instant::now() + RETRY_PAUSE >= deadline {
                return Err(StoreError::Unavailable(format!("no linearizable read is possible: {reason}")));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn read_index(&self) -> Result<u64, String> {
        let (leader, address) = {
            let server = self.raft.server_metrics();
            let metrics = server.borrow_watched();
            let leader = metrics.current_leader.ok_or_else(|| "no leader is known".to_owned())?;
            let member = metrics.membership_config.membership().get_node(&leader).cloned();
            (leader, member.map(|member| member.address).unwrap_or_default())
        };
        if leader == self.own {
            return self.own_read_index().await;
        }
        let mut client = self.channels.client(leader, &address, Lane::Control);
        let response = client.read_index(ReadIndexRequest {}).await.map_err(|status| status.to_string())?;
        match response.into_inner().outcome {
            Some(read_index_response::Outcome::Index(index)) => Ok(index),
            Some(read_index_response::Outcome::Refused(reason)) => Err(reason),
            None => Err("the leader's answer is empty".to_owned()),
        }
    }

    /// The read index, if this member leads and a quorum confirms it now.
    pub async fn own_read_index(&self) -> Result<u64, String> {
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Waits until this member has applied the entry at `index`.
    pub async fn wait_applied(&self, index: u64, deadline: Instant) -> Result<(), StoreError> {
        // Most callers come when it is done, and a timer is not free.
        if self.applied.borrow().has(index) {
            return Ok(());
        }
        let mut applied = self.applied.clone();
        let waited = tokio::time::timeout_at(deadline, applied.wait_for(|applied| applied.has(index))).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(StoreError::Unavailable("the consensus core has stopped".to_owned())),
            Err(_) => Err(StoreError::Unavailable(format!("this member is behind: it has not applied entry {index} yet"))),
        }
    }
}
