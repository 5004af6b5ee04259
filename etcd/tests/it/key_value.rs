//! Reads, writes and transactions.

use tonic::Code;
use trireme_etcd::proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request as Op,
    response_op::Response as Answer,
};

use crate::service::{CLUSTER_ID, MEMBER_ID, Service, by_administrator, everything, keys};

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() }
}

fn op(request: Op) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn get(key: &str) -> RequestOp {
    op(Op::RequestRange(RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() }))
}

#[tokio::test]
async fn what_is_put_is_read_with_its_revisions() {
    let service = Service::new();
    assert_eq!(service.put("a", "1").await, 1);
    assert_eq!(service.put("b", "2").await, 2);
    assert_eq!(service.put("a", "3").await, 3);
    let found = service.range(everything()).await;
    let header = found.header.unwrap();
    assert_eq!((header.cluster_id, header.member_id, header.revision, header.raft_term), (CLUSTER_ID, MEMBER_ID, 3, 3));
    let a = &found.kvs[0];
    assert_eq!((a.value.as_ref(), a.create_revision, a.mod_revision, a.version), (b"3".as_ref(), 1, 3, 2));

    let past = service.range(RangeRequest { revision: 2, ..everything() }).await;
    assert_eq!((past.kvs[0].value.as_ref(), past.header.unwrap().revision), (b"1".as_ref(), 3));
    let first = service.range(RangeRequest { limit: 1, keys_only: true, ..everything() }).await;
    assert_eq!((keys(&first).as_str(), first.more, first.count, first.kvs[0].value.len()), ("a", true, 2, 0));
    let counted = service.range(RangeRequest { count_only: true, serializable: true, ..everything() }).await;
    assert_eq!((counted.count, counted.kvs.len()), (2, 0));
    let changed_since = service.range(RangeRequest { min_mod_revision: 3, ..everything() }).await;
    assert_eq!((keys(&changed_since).as_str(), changed_since.count), ("a", 2));
}

#[tokio::test]
async fn puts_keep_and_return_what_was_there() {
    let service = Service::new();
    let mut client = service.key_values();
    service.put("k", "old").await;
    let answer = client.put(PutRequest { prev_kv: true, ..put("k", "new") }).await.unwrap().into_inner();
    assert_eq!(answer.prev_kv.unwrap().value, "old");
    client.put(PutRequest { ignore_value: true, ..put("k", "") }).await.unwrap();
    let found = service.range(everything()).await;
    assert_eq!((found.kvs[0].value.as_ref(), found.kvs[0].version), (b"new".as_ref(), 3));

    let refusals = [
        (put("", "v"), "etcdserver: key is not provided"),
        (PutRequest { ignore_value: true, ..put("missing", "") }, "etcdserver: key not found"),
        (PutRequest { ignore_value: true, ..put("k", "v") }, "etcdserver: value is provided"),
        (PutRequest { ignore_lease: true, lease: 5, ..put("k", "v") }, "etcdserver: lease is provided"),
        (put("k", &"x".repeat(1_600_000)), "etcdserver: request is too large"),
    ];
    for (request, words) in refusals {
        let refused = client.put(request).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, words));
    }
    let refused = client.put(PutRequest { lease: 5, ..put("k", "v") }).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::NotFound, "etcdserver: requested lease not found"));
    assert_eq!(service.store.state_machine().revision().0, 3, "what was refused changed nothing");
}

#[tokio::test]
async fn deletes_count_and_return_what_they_delete() {
    let service = Service::new();
    for key in ["a", "b", "c"] {
        service.put(key, key).await;
    }
    let delete = DeleteRangeRequest { key: "a".into(), range_end: "c".into(), prev_kv: true };
    let deleted = service.key_values().delete_range(delete.clone()).await.unwrap().into_inner();
    assert_eq!((deleted.deleted, deleted.prev_kvs.len(), deleted.header.unwrap().revision), (2, 2, 4));
    let again = service.key_values().delete_range(delete).await.unwrap().into_inner();
    assert_eq!((again.deleted, again.header.unwrap().revision), (0, 4), "nothing was deleted, so that there is no new revision");
    assert_eq!(keys(&service.range(everything()).await), "c");
}

fn compare(key: &str, target: CompareTarget, union: TargetUnion, result: CompareResult) -> Compare {
    Compare {
        key: key.to_owned().into(),
        target: target.into(),
        result: result.into(),
        target_union: Some(union),
        ..Compare::default()
    }
}

#[tokio::test]
async fn every_comparison_holds_when_it_should() {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    use CompareTarget::{Create, Lease, Mod, Value, Version};
    let service = Service::new();
    service.put("k", "m").await;
    service.put("k", "m").await;
    let (version, create, modified) = (TargetUnion::Version, TargetUnion::CreateRevision, TargetUnion::ModRevision);
    let value = |text: &'static str| TargetUnion::Value(text.into());
    let cases = [
        ("k", Version, version(2), Equal, true),
        ("k", Version, version(2), NotEqual, false),
        ("k", Version, version(-1), Greater, true),
        ("k", Version, version(-1), Equal, false),
        ("k", Version, version(-1), Less, false),
        ("k", Version, version(-1), NotEqual, true),
        ("k", Create, create(1), Equal, true),
        ("k", Mod, modified(1), Greater, true),
        ("k", Mod, modified(2), Less, false),
        ("k", Value, value("l"), Greater, true),
        ("k", Value, value("n"), Less, true),
        ("k", Lease, TargetUnion::Lease(0), Equal, true),
        ("none", Version, version(0), Equal, true),
        ("none", Create, create(0), Equal, true),
        ("none", Value, value(""), Equal, false),
        ("none", Value, value("x"), NotEqual, false),
        // A value of another target counts as zero.
        ("none", Version, modified(7), Equal, true),
    ];
    for (key, target, union, result, expected) in cases {
        let case = format!("{key} {target:?} {result:?} {union:?}");
        let request = TxnRequest { compare: vec![compare(key, target, union, result)], ..TxnRequest::default() };
        let answer = service.key_values().txn(request).await.unwrap().into_inner();
        assert_eq!(answer.succeeded, expected, "{case}");
    }
    let all_of_range = Compare { range_end: vec![0].into(), ..compare("a", Version, version(1), Greater) };
    service.put("z", "once").await;
    let request = TxnRequest { compare: vec![all_of_range], ..TxnRequest::default() };
    assert!(!service.key_values().txn(request).await.unwrap().into_inner().succeeded, "one key of the range fails");
}

#[tokio::test]
async fn transactions_nest_and_answer_each_operation() {
    let service = Service::new();
    let inner = TxnRequest {
        compare: vec![compare("none", CompareTarget::Version, TargetUnion::Version(1), CompareResult::Equal)],
        success: vec![op(Op::RequestPut(put("wrong", "")))],
        failure: vec![op(Op::RequestPut(put("b", "2"))), get("b")],
    };
    let delete = DeleteRangeRequest { key: "none".into(), ..DeleteRangeRequest::default() };
    let request = TxnRequest {
        success: vec![op(Op::RequestPut(put("a", "1"))), op(Op::RequestTxn(inner)), op(Op::RequestDeleteRange(delete)), get("a")],
        ..TxnRequest::default()
    };
    let TxnResponse { header, succeeded, responses } = service.key_values().txn(request).await.unwrap().into_inner();
    assert_eq!((header.unwrap().revision, succeeded, responses.len()), (1, true, 4));
    let Some(Answer::ResponseTxn(inner)) = &responses[1].response else { panic!("{responses:?}") };
    assert!(!inner.succeeded);
    let Some(Answer::ResponseRange(found)) = &inner.responses[1].response else { panic!("{inner:?}") };
    assert_eq!((keys(found).as_str(), found.kvs[0].mod_revision), ("b", 1));
    let Some(Answer::ResponseDeleteRange(deleted)) = &responses[2].response else { panic!("{responses:?}") };
    assert_eq!(deleted.deleted, 0);
    let Some(Answer::ResponseRange(found)) = &responses[3].response else { panic!("{responses:?}") };
    assert_eq!(keys(found), "a");

    let twice = TxnRequest { success: vec![op(Op::RequestPut(put("x", "1"))); 2], ..TxnRequest::default() };
    let refused = service.key_values().txn(twice).await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: duplicate key given in txn request");
    let many = TxnRequest { success: (0..129).map(|number| get(&number.to_string())).collect(), ..TxnRequest::default() };
    let refused = service.key_values().txn(many).await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: too many operations in txn request");
    assert_eq!(keys(&service.range(everything()).await), "a,b");
}

#[tokio::test]
async fn compacted_and_future_revisions_are_refused() {
    let service = Service::new();
    for number in 0..5 {
        service.put("k", &number.to_string()).await;
    }
    let compact = |revision| by_administrator(CompactionRequest { revision, physical: true });
    let by_anyone = service.key_values().compact(CompactionRequest { revision: 3, physical: false }).await.unwrap_err();
    assert_eq!(by_anyone.code(), Code::PermissionDenied);
    service.key_values().compact(compact(3)).await.unwrap();
    let compacted = (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");
    let future = (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision");
    for (revision, expected) in [(3, compacted), (1, compacted), (-1, compacted), (6, future)] {
        let refused = service.key_values().compact(compact(revision)).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), expected, "compaction to {revision}");
    }
    for (revision, expected) in [(2, compacted), (6, future)] {
        let refused = service.key_values().range(RangeRequest { revision, ..everything() }).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), expected, "a read at {revision}");
    }
    assert_eq!(service.range(RangeRequest { revision: 3, ..everything() }).await.kvs[0].value, "2");
}

#[tokio::test]
async fn an_ordinary_client_reads_but_does_not_write_what_is_kubernetes() {
    let service = Service::new();
    let mut client = service.key_values();
    let pod = || put("/registry/core/pods/default/web", "{}");
    let denied = |refused: tonic::Status| {
        assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, "etcdserver: permission denied"));
    };
    denied(client.put(pod()).await.unwrap_err());
    client.put(by_administrator(pod())).await.unwrap();
    let all = DeleteRangeRequest { key: vec![0].into(), range_end: vec![0].into(), prev_kv: false };
    denied(client.delete_range(all.clone()).await.unwrap_err());
    let nested = TxnRequest { failure: vec![op(Op::RequestPut(pod()))], ..TxnRequest::default() };
    let around = TxnRequest { success: vec![op(Op::RequestTxn(nested))], ..TxnRequest::default() };
    denied(client.txn(around).await.unwrap_err());
    assert_eq!(keys(&service.range(everything()).await), "/registry/core/pods/default/web");
    service.put("mine", "1").await;
    assert_eq!(client.delete_range(by_administrator(all)).await.unwrap().into_inner().deleted, 2);
}
