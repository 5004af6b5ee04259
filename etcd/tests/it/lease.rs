//! Leases.

use futures::stream;
use tonic::Code;
use trireme_etcd::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest,
};

use crate::service::{Service, by_administrator, everything, keys};

#[tokio::test]
async fn a_lease_lives_as_long_as_it_is_kept_alive_and_takes_its_keys_along() {
    let service = Service::new();
    let mut client = service.leases();
    let granted = client.lease_grant(LeaseGrantRequest { ttl: 10, id: 0 }).await.unwrap().into_inner();
    assert!(granted.id > 0);
    assert_eq!((granted.ttl, granted.error.as_str()), (10, ""));
    let put = PutRequest { key: "k".into(), value: "v".into(), lease: granted.id, ..PutRequest::default() };
    service.key_values().put(put).await.unwrap();

    service.store.set_now_ms(4_000);
    let asked = LeaseTimeToLiveRequest { id: granted.id, keys: true };
    let left = client.lease_time_to_live(asked).await.unwrap().into_inner();
    assert_eq!((left.ttl, left.granted_ttl, left.keys), (6, 10, vec!["k".into()]));
    let requests = [granted.id, 12345].map(|id| LeaseKeepAliveRequest { id });
    let mut answers = client.lease_keep_alive(stream::iter(requests)).await.unwrap().into_inner();
    let first = answers.message().await.unwrap().unwrap();
    assert_eq!((first.id, first.ttl), (granted.id, 10));
    let unknown = answers.message().await.unwrap().unwrap();
    assert_eq!((unknown.id, unknown.ttl), (12345, 0), "a lease that is gone has no time left; that is no error");

    service.store.set_now_ms(13_000);
    service.store.expire_leases().unwrap();
    assert_eq!(keys(&service.range(everything()).await), "k", "it was kept alive");
    service.store.set_now_ms(14_000);
    service.store.expire_leases().unwrap();
    assert_eq!(keys(&service.range(everything()).await), "");
    assert_eq!(client.lease_time_to_live(asked).await.unwrap().into_inner().ttl, -1);
}

#[tokio::test]
async fn leases_are_listed_and_revoked_and_refused_in_etcds_words() {
    let service = Service::new();
    let mut client = service.leases();
    for id in [3, 5] {
        let granted = client.lease_grant(LeaseGrantRequest { ttl: 1, id }).await.unwrap().into_inner();
        assert_eq!((granted.id, granted.ttl), (id, 2), "a short time is raised to the shortest");
    }
    let again = client.lease_grant(LeaseGrantRequest { ttl: 60, id: 3 }).await.unwrap_err();
    assert_eq!((again.code(), again.message()), (Code::FailedPrecondition, "etcdserver: lease already exists"));
    let long = client.lease_grant(LeaseGrantRequest { ttl: 9_000_000_001, id: 0 }).await.unwrap_err();
    assert_eq!((long.code(), long.message()), (Code::OutOfRange, "etcdserver: too large lease TTL"));
    let listed = client.lease_leases(LeaseLeasesRequest {}).await.unwrap().into_inner();
    assert_eq!(listed.leases.iter().map(|lease| lease.id).collect::<Vec<_>>(), [3, 5]);

    let attached = |key: &'static str, lease| PutRequest { key: key.into(), lease, ..PutRequest::default() };
    service.key_values().put(attached("k", 3)).await.unwrap();
    let revoked = client.lease_revoke(LeaseRevokeRequest { id: 3 }).await.unwrap().into_inner();
    assert_eq!(revoked.header.unwrap().revision, 2);
    assert_eq!(keys(&service.range(everything()).await), "");
    let gone = client.lease_revoke(LeaseRevokeRequest { id: 3 }).await.unwrap_err();
    assert_eq!((gone.code(), gone.message()), (Code::NotFound, "etcdserver: requested lease not found"));

    // A lease is no way round the protection of Kubernetes' keys.
    service.key_values().put(by_administrator(attached("/registry/x/y/z", 5))).await.unwrap();
    let denied = client.lease_revoke(LeaseRevokeRequest { id: 5 }).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
}
