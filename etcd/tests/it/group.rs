//! The members of the group.

use tonic::Code;
use trireme_etcd::proto::etcdserverpb::{
    MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest, MoveLeaderRequest,
};

use crate::service::{MEMBER_ID, Service, by_administrator};

#[tokio::test]
async fn members_are_added_promoted_moved_and_removed() {
    let service = Service::new();
    let mut client = service.cluster();
    let urls = |url: &str| vec![url.to_owned()];
    let add = |is_learner| MemberAddRequest {
        peer_ur_ls: urls("https://m8:2380"),
        is_learner,
        name: "m8".to_owned(),
        zone: "zone-b".to_owned(),
    };
    let denied = client.member_add(add(true)).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied, "only an administrator changes the group");
    let added = client.member_add(by_administrator(add(true))).await.unwrap().into_inner();
    let id = added.member.unwrap().id;
    assert_eq!((added.members.len(), added.members[1].is_learner, added.members[1].id), (2, true, id));
    assert_eq!((added.members[1].name.as_str(), added.members[1].zone.as_str()), ("m8", "zone-b"));
    let twice = client.member_add(by_administrator(add(true))).await.unwrap_err();
    assert_eq!((twice.code(), twice.message()), (Code::FailedPrecondition, "etcdserver: Peer URLs already exists"));
    let bad = MemberAddRequest { peer_ur_ls: urls("http://m9:2380"), ..MemberAddRequest::default() };
    let bad = client.member_add(by_administrator(bad)).await.unwrap_err();
    assert_eq!((bad.code(), bad.message()), (Code::InvalidArgument, "etcdserver: given member URLs are invalid"));

    let learner = service.maintenance().move_leader(by_administrator(MoveLeaderRequest { target_id: id })).await.unwrap_err();
    assert_eq!((learner.code(), learner.message()), (Code::FailedPrecondition, "etcdserver: bad leader transferee"));
    let promoted = client.member_promote(by_administrator(MemberPromoteRequest { id })).await.unwrap().into_inner();
    assert!(promoted.members.iter().all(|member| !member.is_learner));
    let voter = client.member_promote(by_administrator(MemberPromoteRequest { id })).await.unwrap_err();
    assert_eq!(voter.message(), "etcdserver: can only promote a learner member");
    service.maintenance().move_leader(by_administrator(MoveLeaderRequest { target_id: id })).await.unwrap();

    let update = MemberUpdateRequest { id, peer_ur_ls: urls("https://m8.example:2380") };
    let updated = client.member_update(by_administrator(update)).await.unwrap().into_inner();
    assert_eq!(updated.members[1].peer_ur_ls, urls("https://m8.example:2380"));
    client.member_remove(by_administrator(MemberRemoveRequest { id })).await.unwrap();
    let gone = client.member_remove(by_administrator(MemberRemoveRequest { id })).await.unwrap_err();
    assert_eq!((gone.code(), gone.message()), (Code::NotFound, "etcdserver: member not found"));
    let last = client.member_remove(by_administrator(MemberRemoveRequest { id: MEMBER_ID })).await.unwrap_err();
    let words = "etcdserver: re-configuration failed due to not enough started members";
    assert_eq!((last.code(), last.message()), (Code::FailedPrecondition, words));
    let reason = last.metadata().get(trireme_etcd::REASON).expect("the refusal says why");
    assert_eq!(reason.to_str().unwrap(), "7 is the last voter");
    let listed = client.member_list(MemberListRequest { linearizable: true }).await.unwrap().into_inner();
    assert_eq!(listed.members.iter().map(|member| member.id).collect::<Vec<_>>(), [MEMBER_ID]);
}
