//! The Election service.

use std::{collections::BTreeMap, pin::Pin};

use bytes::Bytes;
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use trireme_storage::{
    model::{Event, EventKind, KeyRange, KeyValue, LeaseId, Operation, PutLease, PutValue, RangeRequest, Revision, Transaction},
    store::StoreError,
};

use crate::{
    caller::Caller,
    convert,
    error::{EtcdError, refuse},
    ownership::{created_at, line},
    proto::v3electionpb::{
        CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ProclaimResponse,
        ResignRequest, ResignResponse, election_server::Election,
    },
    server::EtcdServer,
};

/// So many proclamations wait for an observer that is slow.
const QUEUE: usize = 16;

type Observed = mpsc::Sender<Result<LeaderResponse, Status>>;

/// The candidates of one election, in the order in which they came.
#[derive(Default)]
struct Candidates {
    by_creation: BTreeMap<Revision, KeyValue>,
}

impl Candidates {
    fn take(&mut self, event: &Event) {
        match event.kind {
            EventKind::Put => {
                self.by_creation.insert(event.key_value.create_revision, event.key_value.clone());
            }
            EventKind::Delete => self.by_creation.retain(|_, candidate| candidate.key != event.key_value.key),
        }
    }

    fn leader(&self) -> Option<&KeyValue> {
        self.by_creation.first_key_value().map(|(_, leader)| leader)
    }
}

impl EtcdServer {
    async fn run_for_leader(&self, request: CampaignRequest, caller: Caller) -> Result<CampaignResponse, EtcdError> {
        let place = self.take_place(&request.name, request.lease, request.value.clone(), caller).await?;
        let leader =
            LeaderKey { name: request.name, key: place.key.clone(), rev: convert::signed(place.created.0), lease: place.lease.0 };
        if place.existing.as_ref().is_some_and(|existing| existing.value != request.value) {
            self.publish(&leader, request.value, caller).await?;
        }
        place.wait().await?;
        place.keep();
        Ok(CampaignResponse { header: self.header(), leader: Some(leader) })
    }

    /// Gives the leader another value, if it is the leader still.
    async fn publish(&self, leader: &LeaderKey, value: Bytes, caller: Caller) -> Result<Revision, EtcdError> {
        let put = Operation::Put {
            key: leader.key.clone(),
            value: PutValue::Set(value),
            lease: PutLease::Set(LeaseId(leader.lease)),
            return_previous: false,
        };
        let (succeeded, revision) = self.as_leader(leader, put, caller).await?;
        if succeeded { Ok(revision) } else { Err(EtcdError::ElectionNotLeader) }
    }

    /// Carries out `operation` on the leader's key, if that is the one that the leader was elected with.
    async fn as_leader(&self, leader: &LeaderKey, operation: Operation, caller: Caller) -> Result<(bool, Revision), EtcdError> {
        if leader.key.is_empty() {
            return Err(EtcdError::EmptyKey);
        }
        caller.check_write(&KeyRange::One(leader.key.clone()))?;
        let created = Revision(u64::try_from(leader.rev).unwrap_or(0));
        let compares = vec![created_at(&leader.key, created)];
        let transaction = Transaction { compares, success: vec![operation], ..Transaction::default() };
        let result = self.inner.store.transact(transaction).await?;
        Ok((result.succeeded, result.revision))
    }

    /// Tells `observed` of each leader and of each of its values, until the observer is gone.
    async fn observe_leaders(&self, name: Bytes, observed: &Observed) -> Result<(), EtcdError> {
        let store = &self.inner.store;
        let range = KeyRange::prefix(line(&name));
        let mut told = None;
        loop {
            store.read_barrier().await?;
            let found = store.range(RangeRequest::new(range.clone())).await?;
            let mut revision = found.revision;
            let by_creation = found.key_values.into_iter().map(|one| (one.create_revision, one)).collect();
            let mut candidates = Candidates { by_creation };
            let mut watch = match store.watch(revision.next()).await {
                Err(StoreError::Compacted { .. }) => continue,
                watch => watch?,
            };
            loop {
                if let Some(leader) = candidates.leader()
                    && told != Some(leader.mod_revision)
                {
                    told = Some(leader.mod_revision);
                    let kv = Some(convert::key_value(leader.clone()));
                    if observed.send(Ok(LeaderResponse { header: self.header_at(revision), kv })).await.is_err() {
                        return Ok(());
                    }
                }
                let batch = match watch.next().await {
                    // Behind what history holds: begin anew from what is there now.
                    Err(StoreError::Compacted { .. }) => break,
                    batch => batch?,
                };
                revision = batch.revision;
                batch.events.iter().filter(|event| range.contains(&event.key_value.key)).for_each(|event| candidates.take(event));
            }
        }
    }
}

#[tonic::async_trait]
impl Election for EtcdServer {
    type ObserveStream = Pin<Box<dyn Stream<Item = Result<LeaderResponse, Status>> + Send>>;

    async fn campaign(&self, request: Request<CampaignRequest>) -> Result<Response<CampaignResponse>, Status> {
        let caller = Caller::from_request(&request);
        self.run_for_leader(request.into_inner(), caller).await.map(Response::new).map_err(refuse)
    }

    async fn proclaim(&self, request: Request<ProclaimRequest>) -> Result<Response<ProclaimResponse>, Status> {
        let caller = Caller::from_request(&request);
        let ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader.ok_or(EtcdError::MissingLeaderKey)?;
        let revision = self.publish(&leader, value, caller).await.map_err(refuse)?;
        Ok(Response::new(ProclaimResponse { header: self.header_at(revision) }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let found = self.first_in_line(&request.into_inner().name).await.map_err(refuse)?;
        let leader = found.ok_or(EtcdError::ElectionNoLeader)?;
        Ok(Response::new(LeaderResponse { header: self.header(), kv: Some(convert::key_value(leader)) }))
    }

    async fn observe(&self, request: Request<LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        let (observed, answers) = mpsc::channel(QUEUE);
        let server = self.clone();
        let name = request.into_inner().name;
        tokio::spawn(async move {
            let ended = tokio::select! {
                () = server.inner.shutdown.cancelled() => return,
                () = observed.closed() => return,
                ended = server.observe_leaders(name, &observed) => ended,
            };
            if let Err(error) = ended {
                // The observer may have gone.
                let _ = observed.send(Err(error.into())).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        let caller = Caller::from_request(&request);
        let leader = request.into_inner().leader.ok_or(EtcdError::MissingLeaderKey)?;
        let delete = Operation::delete(leader.key.clone());
        let (_, revision) = self.as_leader(&leader, delete, caller).await.map_err(refuse)?;
        Ok(Response::new(ResignResponse { header: self.header_at(revision) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: EventKind, key: &'static str, created: u64, modified: u64) -> Event {
        let key_value = KeyValue {
            key: key.into(),
            value: Bytes::new(),
            create_revision: Revision(created),
            mod_revision: Revision(modified),
            version: 1,
            lease: LeaseId(0),
        };
        Event { kind, key_value, previous: None }
    }

    #[test]
    fn the_candidate_that_came_first_leads() {
        let mut candidates = Candidates::default();
        let leader = |candidates: &Candidates| candidates.leader().map(|one| (one.key.clone(), one.mod_revision.0));
        assert_eq!(leader(&candidates), None);
        candidates.take(&event(EventKind::Put, "b", 2, 2));
        candidates.take(&event(EventKind::Put, "a", 3, 3));
        assert_eq!(leader(&candidates), Some(("b".into(), 2)));
        candidates.take(&event(EventKind::Put, "b", 2, 4));
        assert_eq!(leader(&candidates), Some(("b".into(), 4)));
        candidates.take(&event(EventKind::Delete, "b", 0, 5));
        assert_eq!(leader(&candidates), Some(("a".into(), 3)));
    }
}
