//! The masters' etcd API, as `trireme member` and `trireme leader` use it.

use std::{fmt, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use rustls::ClientConfig;
use tokio::time::timeout;
use tonic::{Code, Response, Status, transport::Channel};
use trireme_etcd::{
    REASON,
    group::NewMember,
    proto::etcdserverpb::{
        MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest, MemberRemoveRequest,
        MoveLeaderRequest, StatusRequest, StatusResponse, cluster_client::ClusterClient, maintenance_client::MaintenanceClient,
    },
};

use super::view::View;
use crate::{dial, pki::TlsPaths, tls};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A change waits for a quorum, and perhaps for another leader.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(6);

/// A master has refused a change.
#[derive(Debug)]
pub struct Refused {
    words: String,
    reason: String,
}

impl Refused {
    fn of(status: &Status) -> Self {
        let words = status.message().to_owned();
        let reason = status.metadata().get(REASON).and_then(|reason| reason.to_str().ok());
        let reason = reason.unwrap_or_else(|| words.strip_prefix("etcdserver: ").unwrap_or(&words)).to_owned();
        Self { words, reason }
    }

    /// Whether the member that was to be promoted has a vote already.
    pub fn is_voter(&self) -> bool {
        self.words.ends_with("can only promote a learner member")
    }

    /// Whether the same request may succeed a little later.
    pub fn may_pass(&self) -> bool {
        ["in sync with leader", "unhealthy cluster", "not enough started members", "change of the membership is under way"]
            .iter()
            .any(|words| self.words.contains(words))
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Refused {}

/// Masters of one cluster, and who asks.
#[derive(Clone)]
pub struct Masters {
    addresses: Vec<String>,
    tls: Arc<ClientConfig>,
}

impl Masters {
    pub fn new(addresses: Vec<String>, paths: &TlsPaths) -> Result<Self> {
        Ok(Self { addresses, tls: dial::speaking("h2", tls::client(paths)?) })
    }

    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// The same, but that the master at `address` is asked after all the others.
    pub fn asking_last(&self, address: &str) -> Self {
        let mut addresses = self.addresses.clone();
        addresses.sort_by_key(|one| one == address);
        Self { addresses, tls: self.tls.clone() }
    }

    /// The same, with one more to ask.
    pub fn with(mut self, address: String) -> Self {
        if !self.addresses.contains(&address) {
            self.addresses.push(address);
        }
        self
    }

    /// Who belongs to the group, and how far each one is.
    pub async fn view(&self) -> Result<View> {
        View::take(self).await
    }

    pub async fn list(&self, linearizable: bool) -> Result<MemberListResponse> {
        let request = MemberListRequest { linearizable };
        self.ask(ANSWER_TIMEOUT, |channel| async move { ClusterClient::new(channel).member_list(request).await }).await
    }

    /// Adds a member, which gets its vote by itself when it has caught up, or stays without one.
    pub async fn add(&self, new: &NewMember, is_learner: bool) -> Result<MemberAddResponse> {
        let request = MemberAddRequest {
            peer_ur_ls: vec![format!("https://{}", new.address)],
            is_learner,
            name: new.name.clone(),
            zone: new.zone.clone(),
        };
        let add = |channel| {
            let request = request.clone();
            async move { ClusterClient::new(channel).member_add(request).await }
        };
        self.ask(CHANGE_TIMEOUT, add).await
    }

    pub async fn promote(&self, id: u64) -> Result<()> {
        let request = MemberPromoteRequest { id };
        let promote = |channel| async move { ClusterClient::new(channel).member_promote(request).await };
        self.ask(CHANGE_TIMEOUT, promote).await.map(drop)
    }

    pub async fn remove(&self, id: u64) -> Result<()> {
        let request = MemberRemoveRequest { id };
        let remove = |channel| async move { ClusterClient::new(channel).member_remove(request).await };
        self.ask(CHANGE_TIMEOUT, remove).await.map(drop)
    }

    /// Has the leader, which is at `leader`, hand over.
    pub async fn move_leader(&self, leader: &str, target_id: u64) -> Result<()> {
        let only = Self { addresses: vec![leader.to_owned()], tls: self.tls.clone() };
        let request = MoveLeaderRequest { target_id };
        let moving = |channel| async move { MaintenanceClient::new(channel).move_leader(request).await };
        only.ask(CHANGE_TIMEOUT, moving).await.map(drop)
    }

    /// What the master at `address` says of itself.
    pub async fn status(&self, address: &str) -> Result<StatusResponse> {
        let asked = async {
            let channel = dial::channel(address, &self.tls).await?;
            Ok(MaintenanceClient::new(channel).status(StatusRequest {}).await?.into_inner())
        };
        timeout(CONNECT_TIMEOUT, asked).await.with_context(|| format!("{address} does not answer"))?
    }

    /// Asks one master after the other until one can say something.
    async fn ask<T, F>(&self, limit: Duration, call: impl Fn(Channel) -> F) -> Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut failures = Vec::new();
        for address in &self.addresses {
            let channel = match timeout(CONNECT_TIMEOUT, dial::channel(address, &self.tls)).await {
                Ok(Ok(channel)) => channel,
                Ok(Err(error)) => {
                    failures.push(format!("{address}: {error:#}"));
                    continue;
                }
                Err(_) => {
                    failures.push(format!("{address}: no answer within {CONNECT_TIMEOUT:?}"));
                    continue;
                }
            };
            match timeout(limit, call(channel)).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) if goes_elsewhere(&status) => failures.push(format!("{address}: {}", Refused::of(&status))),
                Ok(Err(status)) => return Err(Refused::of(&status).into()),
                Err(_) => failures.push(format!("{address}: no answer within {limit:?}")),
            }
        }
        bail!("no master can do it now ({})", failures.join("; "))
    }
}

/// Whether another master may answer otherwise: this one has no leader, or could not be spoken with.
fn goes_elsewhere(status: &Status) -> bool {
    let is_lost = matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Unknown);
    is_lost && (status.metadata().get(REASON).is_none() || status.message().ends_with("no leader"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_gives_its_reason_and_an_absent_leader_is_looked_for_elsewhere() {
        let mut status = Status::unavailable("etcdserver: unhealthy cluster");
        assert!(goes_elsewhere(&status));
        status.metadata_mut().insert(REASON, "a2 does not answer".parse().unwrap());
        assert!(!goes_elsewhere(&status));
        assert_eq!(Refused::of(&status).to_string(), "a2 does not answer");
        let mut status = Status::unavailable("etcdserver: no leader");
        status.metadata_mut().insert(REASON, "no leader could be reached: none is known".parse().unwrap());
        assert!(goes_elsewhere(&status));
        let refused = Refused::of(&Status::failed_precondition("etcdserver: can only promote a learner member"));
        assert_eq!((refused.to_string().as_str(), refused.is_voter()), ("can only promote a learner member", true));
        let behind = Status::failed_precondition("etcdserver: can only promote a learner member which is in sync with leader");
        assert!(Refused::of(&behind).may_pass() && !Refused::of(&behind).is_voter());
    }
}
