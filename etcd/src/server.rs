//! The etcd API as a whole: what every service shares.

use std::sync::Arc;

use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use trireme_storage::{
    model::{LeaseId, Revision},
    store::{Leases, Store},
};

use crate::{answer::Sizes, convert::signed, group::Group, proto::etcdserverpb::ResponseHeader};

/// The version of etcd whose API this is. Clients choose by it what they may ask for.
pub const SERVED_VERSION: &str = "3.5.16";

/// A member that finds no leader so many times, so far apart, is cut off: what waits there for news had better go elsewhere.
const LEADER_CHECKS: u32 = 3;
const LEADER_CHECK_PERIOD: Duration = Duration::from_secs(1);

/// Whether the client wants a stream to end where there is no leader (etcd's `WithRequireLeader`).
pub(crate) fn requires_leader<T>(request: &Request<T>) -> bool {
    request.metadata().get("hasleader").is_some_and(|value| value == "true")
}

/// What an [`EtcdServer`] is made of.
pub struct EtcdServerConfig {
    pub store: Arc<dyn Store>,
    pub leases: Arc<dyn Leases>,
    pub group: Arc<dyn Group>,
    /// Where ids of leases come from.
    pub random_seed: [u8; 32],
    /// How often a watch that asked for it, and that has nothing to say, is told how far it is. etcd's default is 10 minutes.
    pub progress_period: Duration,
    /// Writes the text of `/metrics`, in the OpenMetrics format.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

/// The etcd v3 API over a [`Store`]. Clones share it.
#[derive(Clone)]
pub struct EtcdServer {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub store: Arc<dyn Store>,
    pub leases: Arc<dyn Leases>,
    pub group: Arc<dyn Group>,
    /// What large ranges add up to.
    pub sizes: Arc<Sizes>,
    random: Mutex<StdRng>,
    pub progress_period: Duration,
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Ends the streams. Cancelled when the server stops.
    pub shutdown: CancellationToken,
}

impl EtcdServer {
    pub fn new(config: EtcdServerConfig) -> Self {
        let inner = Inner {
            store: config.store,
            leases: config.leases,
            group: config.group,
            sizes: Arc::default(),
            random: Mutex::new(StdRng::from_seed(config.random_seed)),
            progress_period: config.progress_period,
            metrics: config.metrics,
            shutdown: CancellationToken::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The header of an answer that belongs to `revision`.
    pub(crate) fn header_at(&self, revision: Revision) -> Option<ResponseHeader> {
        let group = &self.inner.group;
        Some(ResponseHeader {
            cluster_id: group.cluster_id(),
            member_id: group.member_id(),
            revision: signed(revision.0),
            raft_term: group.term().0,
        })
    }

    /// The header of an answer that belongs to the newest revision of this member.
    pub(crate) fn header(&self) -> Option<ResponseHeader> {
        self.header_at(self.inner.store.revision())
    }

    /// Waits until this member has known of no leader for some time.
    pub(crate) async fn leader_lost(&self) {
        let mut missed = 0;
        while missed < LEADER_CHECKS {
            tokio::time::sleep(LEADER_CHECK_PERIOD).await;
            missed = if self.inner.group.leader().is_some() { 0 } else { missed + 1 };
        }
    }

    /// A lease's id that is most likely free: positive and random, as etcd's are.
    pub(crate) fn new_lease_id(&self) -> LeaseId {
        LeaseId(self.inner.random.lock().random_range(1..=i64::MAX))
    }
}
