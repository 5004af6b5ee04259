//! Locks and elections.

use std::time::Duration;

use tonic::Code;
use trireme_etcd::{
    EtcdServer,
    proto::{
        etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest},
        v3electionpb::{
            CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest,
            election_client::ElectionClient, election_server::ElectionServer,
        },
        v3lockpb::{LockRequest, UnlockRequest, lock_client::LockClient, lock_server::LockServer},
    },
};

use crate::service::{Service, everything, keys};

const PROMPTLY: Duration = Duration::from_millis(200);

fn locks(service: &Service) -> LockClient<LockServer<EtcdServer>> {
    LockClient::new(LockServer::new(service.server.clone()))
}

fn elections(service: &Service) -> ElectionClient<ElectionServer<EtcdServer>> {
    ElectionClient::new(ElectionServer::new(service.server.clone()))
}

async fn grant(service: &Service, id: i64) {
    service.leases().lease_grant(LeaseGrantRequest { ttl: 60, id }).await.unwrap();
}

#[tokio::test]
async fn one_client_at_a_time_has_the_lock() {
    let service = Service::new();
    for id in [0xa, 0xb, 0xc] {
        grant(&service, id).await;
    }
    let lock = |lease| {
        let mut client = locks(&service);
        async move { client.lock(LockRequest { name: "l".into(), lease }).await.map(|answer| answer.into_inner().key) }
    };
    assert_eq!(lock(0xa).await.unwrap(), "l/a");
    assert_eq!(lock(0xa).await.unwrap(), "l/a", "who has it has it");
    // One that gives up waiting leaves the line.
    assert!(tokio::time::timeout(PROMPTLY, lock(0xb)).await.is_err());
    let left = async {
        while keys(&service.range(everything()).await) != "l/a" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), left).await.expect("it leaves the line");
    let waiting = tokio::spawn(lock(0xc));
    tokio::time::sleep(PROMPTLY).await;
    assert!(!waiting.is_finished());
    locks(&service).unlock(UnlockRequest { key: "l/a".into() }).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), "l/c");
    // The end of a lease is the end of its lock; and who waits without a lease gets one.
    let waiting = tokio::spawn(lock(0));
    tokio::time::sleep(PROMPTLY).await;
    service.leases().lease_revoke(LeaseRevokeRequest { id: 0xc }).await.unwrap();
    assert!(waiting.await.unwrap().is_ok());
    assert_eq!(lock(0xdead).await.unwrap_err().message(), "etcdserver: requested lease not found");
    let no_key = locks(&service).unlock(UnlockRequest::default()).await.unwrap_err();
    assert_eq!(no_key.message(), "etcdserver: key is not provided");
}

#[tokio::test]
async fn a_waiter_whose_lease_ends_is_told_so() {
    let service = Service::new();
    for id in [1, 2] {
        grant(&service, id).await;
    }
    locks(&service).lock(LockRequest { name: "l".into(), lease: 1 }).await.unwrap();
    let mut client = locks(&service);
    let waiting = tokio::spawn(async move { client.lock(LockRequest { name: "l".into(), lease: 2 }).await });
    tokio::time::sleep(PROMPTLY).await;
    service.leases().lease_revoke(LeaseRevokeRequest { id: 2 }).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap_err().message(), "mutex: session is expired");
}

#[tokio::test]
async fn candidates_lead_in_turn_and_are_observed() {
    let service = Service::new();
    for id in [1, 2] {
        grant(&service, id).await;
    }
    let name = || LeaderRequest { name: "e".into() };
    let none = elections(&service).leader(name()).await.unwrap_err();
    assert_eq!((none.code(), none.message()), (Code::Unknown, "election: no leader"));
    let mut observed = elections(&service).observe(name()).await.unwrap().into_inner();
    let mut next = async || observed.message().await.unwrap().unwrap().kv.unwrap().value;

    let campaign = |lease, value: &'static str| {
        let mut client = elections(&service);
        async move {
            let CampaignResponse { leader, .. } =
                client.campaign(CampaignRequest { name: "e".into(), lease, value: value.into() }).await?.into_inner();
            Ok::<LeaderKey, tonic::Status>(leader.unwrap())
        }
    };
    let first = campaign(1, "one").await.unwrap();
    assert_eq!((first.key.as_ref(), first.rev, first.lease), (b"e/1".as_ref(), 1, 1));
    assert_eq!(next().await, "one");
    let second = tokio::spawn(campaign(2, "two"));
    let proclaim =
        |leader: &LeaderKey, value: &'static str| ProclaimRequest { leader: Some(leader.clone()), value: value.into() };
    elections(&service).proclaim(proclaim(&first, "one again")).await.unwrap();
    assert_eq!(next().await, "one again");
    let current = elections(&service).leader(name()).await.unwrap().into_inner().kv.unwrap();
    assert_eq!(current.value, "one again");
    elections(&service).resign(ResignRequest { leader: Some(first.clone()) }).await.unwrap();
    let second = second.await.unwrap().unwrap();
    assert_eq!(second.key, "e/2");
    assert_eq!(next().await, "two");
    let deposed = elections(&service).proclaim(proclaim(&first, "x")).await.unwrap_err();
    assert_eq!(deposed.message(), "election: not leader");
    // A second campaign of the leader gives it another value.
    campaign(2, "two again").await.unwrap();
    assert_eq!(next().await, "two again");
    let missing = elections(&service).resign(ResignRequest { leader: None }).await.unwrap_err();
    assert_eq!((missing.code(), missing.message()), (Code::InvalidArgument, "\"leader\" field must be provided"));
}
