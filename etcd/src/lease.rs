//! The Lease service.

use std::pin::Pin;

use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use trireme_storage::{
    command::Lease,
    model::{KeyRange, LeaseId},
    store::StoreError,
};

use crate::{
    caller::Caller,
    convert::signed,
    error::{EtcdError, refuse},
    proto::etcdserverpb::{
        LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
        LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest,
        LeaseTimeToLiveResponse, lease_server,
    },
    server::EtcdServer,
};

/// A shorter time to live is raised to this, in seconds: what etcd makes of its default election timeout.
pub const LEAST_TTL_SECONDS: i64 = 2;
/// A longer one is refused (etcd's `lease.MaxLeaseTTL`).
const GREATEST_TTL_SECONDS: i64 = 9_000_000_000;
/// So many leases of one stream are kept alive at once.
const KEEP_ALIVES_AT_ONCE: usize = 256;

impl EtcdServer {
    /// Grants a lease; id 0 asks for any.
    pub(crate) async fn grant(&self, id: i64, ttl_seconds: i64) -> Result<Lease, EtcdError> {
        if ttl_seconds > GREATEST_TTL_SECONDS {
            return Err(EtcdError::LeaseTtlTooLarge);
        }
        let ttl_seconds = ttl_seconds.max(LEAST_TTL_SECONDS).unsigned_abs();
        if id != 0 {
            return Ok(self.inner.leases.grant_lease(LeaseId(id), ttl_seconds).await?);
        }
        loop {
            match self.inner.leases.grant_lease(self.new_lease_id(), ttl_seconds).await {
                Err(StoreError::LeaseExists(_)) => {}
                done => return Ok(done?),
            }
        }
    }

    async fn revoke(&self, id: LeaseId, caller: Caller) -> Result<LeaseRevokeResponse, EtcdError> {
        if let Some((_, keys)) = self.inner.leases.lease(id) {
            keys.into_iter().try_for_each(|key| caller.check_write(&KeyRange::One(key)))?;
        }
        let revision = self.inner.leases.revoke_lease(id).await?;
        Ok(LeaseRevokeResponse { header: self.header_at(revision) })
    }

    /// A lease that is gone is answered with a time of 0, not with an error.
    async fn keep_alive(&self, request: LeaseKeepAliveRequest) -> Result<LeaseKeepAliveResponse, EtcdError> {
        let ttl_seconds = match self.inner.leases.keep_lease_alive(LeaseId(request.id)).await {
            Ok(lease) => lease.ttl_seconds,
            Err(StoreError::LeaseNotFound(_)) => 0,
            Err(error) => return Err(error.into()),
        };
        Ok(LeaseKeepAliveResponse { header: self.header(), id: request.id, ttl: signed(ttl_seconds) })
    }

    async fn time_to_live(&self, request: LeaseTimeToLiveRequest) -> Result<LeaseTimeToLiveResponse, EtcdError> {
        self.inner.store.read_barrier().await?;
        let unknown =
            LeaseTimeToLiveResponse { header: self.header(), id: request.id, ttl: -1, granted_ttl: 0, keys: Vec::new() };
        let Some((lease, keys)) = self.inner.leases.lease(LeaseId(request.id)) else { return Ok(unknown) };
        Ok(LeaseTimeToLiveResponse {
            ttl: signed(remaining_seconds(&lease, self.inner.leases.now_ms())),
            granted_ttl: signed(lease.ttl_seconds),
            keys: if request.keys { keys } else { Vec::new() },
            ..unknown
        })
    }
}

/// What is left of a lease. A new leader may let it live longer; clocks may differ, so that no more than all of it is left.
fn remaining_seconds(lease: &Lease, now_ms: u64) -> u64 {
    (lease.deadline_ms.saturating_sub(now_ms) / 1000).min(lease.ttl_seconds)
}

#[tonic::async_trait]
impl lease_server::Lease for EtcdServer {
    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        let LeaseGrantRequest { ttl, id } = request.into_inner();
        let lease = self.grant(id, ttl).await.map_err(refuse)?;
        let header = self.header();
        let (id, ttl) = (lease.id.0, signed(lease.ttl_seconds));
        Ok(Response::new(LeaseGrantResponse { header, id, ttl, error: String::new() }))
    }

    async fn lease_revoke(&self, request: Request<LeaseRevokeRequest>) -> Result<Response<LeaseRevokeResponse>, Status> {
        let caller = Caller::from_request(&request);
        self.revoke(LeaseId(request.into_inner().id), caller).await.map(Response::new).map_err(refuse)
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let server = self.clone();
        let answers = request.into_inner().map(move |request| {
            let server = server.clone();
            async move { server.keep_alive(request?).await.map_err(refuse) }
        });
        let answers = answers.buffered(KEEP_ALIVES_AT_ONCE).take_until(self.inner.shutdown.clone().cancelled_owned());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        self.time_to_live(request.into_inner()).await.map(Response::new).map_err(refuse)
    }

    async fn lease_leases(&self, _request: Request<LeaseLeasesRequest>) -> Result<Response<LeaseLeasesResponse>, Status> {
        self.inner.store.read_barrier().await.map_err(refuse)?;
        let leases = self.inner.leases.leases().into_iter().map(|lease| LeaseStatus { id: lease.id.0 }).collect();
        Ok(Response::new(LeaseLeasesResponse { header: self.header(), leases }))
    }
}
