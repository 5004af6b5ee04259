//! Status, hashes, snapshots and alarms.

use tonic::Code;
use trireme_etcd::{
    group::{Alarm, AlarmKind},
    proto::etcdserverpb::{
        AlarmRequest, AlarmType, DefragmentRequest, DowngradeRequest, HashKvRequest, SnapshotRequest, StatusRequest,
        alarm_request::AlarmAction,
    },
};

use crate::service::{MEMBER_ID, Service, by_administrator};

#[tokio::test]
async fn the_status_tells_how_far_the_member_is_and_what_is_wrong() {
    let service = Service::new();
    let mut client = service.maintenance();
    let status = client.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.leader, status.raft_index, status.raft_applied_index, status.raft_term), (MEMBER_ID, 12, 11, 3));
    assert_eq!((status.db_size, status.version.starts_with("3.5."), status.errors.len()), (4096, true, 0));
    service.group.alarms.lock().push(Alarm { member_id: 9, kind: AlarmKind::NoSpace });
    let status = client.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.errors, ["memberID:9 alarm:NOSPACE "]);
    let ask = |action: AlarmAction, kind: AlarmType| AlarmRequest { action: action.into(), member_id: 0, alarm: kind.into() };
    let listed = client.alarm(ask(AlarmAction::Get, AlarmType::None)).await.unwrap().into_inner();
    assert_eq!((listed.alarms[0].member_id, listed.alarms[0].alarm()), (9, AlarmType::Nospace));
    let corrupt = client.alarm(ask(AlarmAction::Get, AlarmType::Corrupt)).await.unwrap().into_inner();
    assert!(corrupt.alarms.is_empty());
    client.alarm(by_administrator(ask(AlarmAction::Deactivate, AlarmType::Nospace))).await.unwrap();
    let raised = client.alarm(by_administrator(ask(AlarmAction::Activate, AlarmType::Nospace))).await.unwrap_err();
    assert_eq!(raised.code(), Code::Unimplemented);
    client.defragment(DefragmentRequest {}).await.unwrap();
    let downgrade = client.downgrade(DowngradeRequest { action: 1, version: "3.4".into() }).await.unwrap_err();
    assert_eq!(downgrade.message(), "etcdserver: invalid downgrade target version");
}

#[tokio::test]
async fn hashes_agree_between_stores_that_hold_the_same_at_a_revision() {
    let (one, other) = (Service::new(), Service::new());
    // More keys than are read at once.
    for number in 0..5000 {
        let key = format!("key-{number}");
        one.put(&key, "v").await;
        other.put(&key, "v").await;
    }
    one.put("key-7", "later").await;
    let hash =
        async |service: &Service, revision| service.maintenance().hash_kv(HashKvRequest { revision }).await.unwrap().into_inner();
    let (then, now) = (hash(&one, 5000).await, hash(&one, 0).await);
    assert_eq!((then.hash, then.hash_revision), (hash(&other, 0).await.hash, 5000));
    assert_ne!(then.hash, now.hash);
    other.put("key-8", "later").await;
    assert_ne!(now.hash, hash(&other, 0).await.hash, "the same revision, something else in it");
    let future = one.maintenance().hash_kv(HashKvRequest { revision: 9999 }).await.unwrap_err();
    assert_eq!(future.message(), "etcdserver: mvcc: required revision is a future revision");
}

#[tokio::test]
async fn a_snapshot_is_streamed_whole() {
    let service = Service::new();
    service.put("k", &"x".repeat(200_000)).await;
    let mut pieces = service.maintenance().snapshot(SnapshotRequest {}).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.message().await.unwrap() {
        bytes.extend_from_slice(&piece.blob);
        if piece.remaining_bytes == 0 {
            assert_eq!(pieces.message().await.unwrap(), None);
            break;
        }
    }
    let manifest = trireme_storage::portable::read(&mut bytes.as_slice(), &mut |_, _, _| Ok(())).unwrap();
    assert_eq!((manifest.revision, manifest.hash), service.store.state_machine().hash());
}
