//! The store through `etcd-client`, the Rust client crate that others use, over mutual TLS, balanced over all masters.

use std::time::Duration;

use etcd_client::{
    AlarmAction, AlarmType, Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Error, EventType, GetOptions,
    Identity, LeaseTimeToLiveOptions, LockOptions, MemberAddOptions, PutOptions, ResignOptions, SortOrder, SortTarget,
    TlsOptions, Txn, TxnOp, TxnOpResponse, WatchFilterType, WatchOptions, WatchStream,
};
use tonic::Code;
use trireme_tests::{
    cluster::{Cluster, Pods},
    etcdctl::Etcdctl,
    wait::until,
};

const LIMIT: Duration = Duration::from_secs(30);

async fn connect(etcdctl: &Etcdctl, endpoints: &[String]) -> Client {
    let read = |name: &str| std::fs::read(etcdctl.variable(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(read("CACERT")))
        .identity(Identity::from_pem(read("CERT"), read("KEY")))
        .domain_name("localhost");
    let options = ConnectOptions::new().with_tls(tls).with_connect_timeout(LIMIT).with_timeout(LIMIT).with_require_leader(true);
    Client::connect(endpoints, Some(options)).await.expect("the administrator is let in")
}

/// The code and words with which something was refused.
fn refusal<T: std::fmt::Debug>(answer: Result<T, Error>) -> (Code, String) {
    match answer {
        Err(Error::GRpcStatus(status)) => (status.code(), status.message().to_owned()),
        other => panic!("it is not refused: {other:?}"),
    }
}

async fn key_values(client: &mut Client) {
    client.put("k1", "one", None).await.expect("a put");
    let replaced = client.put("k1", "two", Some(PutOptions::new().with_prev_key())).await.expect("a put");
    assert_eq!(replaced.prev_key().map(|held| held.value()), Some(b"one".as_slice()));
    let then = replaced.header().expect("a header").revision() - 1;
    client.put("k2", "a", None).await.expect("a put");
    client.put("k2", "", Some(PutOptions::new().with_ignore_value())).await.expect("the value is kept");
    let sorted = GetOptions::new().with_prefix().with_sort(SortTarget::Value, SortOrder::Descend).with_limit(1);
    let found = client.get("k", Some(sorted)).await.expect("a range");
    assert_eq!((found.kvs()[0].value(), found.count(), found.more()), (b"two".as_slice(), 2, true));
    let before = client.get("k1", Some(GetOptions::new().with_revision(then).with_serializable())).await.expect("the past");
    assert_eq!(before.kvs()[0].value(), b"one");
    let keys = client.get("k", Some(GetOptions::new().with_prefix().with_keys_only())).await.expect("keys");
    assert!(keys.kvs().iter().all(|found| found.value().is_empty()) && keys.kvs().len() == 2);

    let nested = Txn::new().when([Compare::version("k3", CompareOp::Equal, 0)]).and_then([TxnOp::put("k3", "three", None)]);
    let transaction = Txn::new()
        .when([
            Compare::value("k1", CompareOp::Equal, "two"),
            Compare::create_revision("k2", CompareOp::Greater, 0),
            Compare::mod_revision("k2", CompareOp::NotEqual, 1),
            Compare::lease("k1", CompareOp::Less, 1),
        ])
        .and_then([TxnOp::get("k1", None), TxnOp::txn(nested), TxnOp::delete("k2", None)])
        .or_else([TxnOp::put("k1", "never", None)]);
    let done = client.txn(transaction).await.expect("a transaction");
    let kinds: Vec<&str> = done.op_responses().iter().map(kind).collect();
    assert!(done.succeeded());
    assert_eq!(kinds, ["get two", "txn", "delete 1"]);
    let deleted = client.delete("k", Some(DeleteOptions::new().with_prefix().with_prev_key())).await.expect("a delete");
    let gone: Vec<_> = deleted.prev_kvs().iter().map(|held| held.value_str().expect("text").to_owned()).collect();
    assert_eq!(gone, ["two", "three"]);

    let twice = Txn::new().and_then([TxnOp::put("k", "1", None), TxnOp::put("k", "2", None)]);
    let words = "etcdserver: duplicate key given in txn request".to_owned();
    assert_eq!(refusal(client.txn(twice).await), (Code::InvalidArgument, words));
}

fn kind(response: &TxnOpResponse) -> &'static str {
    match response {
        TxnOpResponse::Get(found) if found.kvs().iter().map(|one| one.value()).eq([b"two"]) => "get two",
        TxnOpResponse::Delete(deleted) if deleted.deleted() == 1 => "delete 1",
        TxnOpResponse::Txn(nested) if nested.succeeded() => "txn",
        _ => "something else",
    }
}

/// The next events of a stream, one line each.
async fn lines(stream: &mut WatchStream, count: usize) -> Vec<String> {
    let mut lines = Vec::new();
    while lines.len() < count {
        let answer = tokio::time::timeout(LIMIT, stream.message()).await.expect("events come in time");
        let answer = answer.expect("the stream goes on").expect("the stream goes on");
        lines.extend(answer.events().iter().map(|event| {
            let text = |found: Option<&etcd_client::KeyValue>| found.map(|found| found.value_str().expect("text").to_owned());
            let key = event.kv().expect("a key").key_str().expect("text");
            let kind = if event.event_type() == EventType::Put { "put" } else { "delete" };
            let (now, before) = (text(event.kv()).unwrap_or_default(), text(event.prev_kv()).unwrap_or_default());
            format!("{}: {kind} {key} {now:?} after {before:?}", answer.watch_id())
        }));
    }
    lines
}

async fn watches(client: &mut Client) {
    let first = client.put("w/1", "a", None).await.expect("a put").header().expect("a header").revision();
    client.put("w/1", "b", None).await.expect("a put");
    let all = WatchOptions::new().with_prefix().with_prev_key().with_start_revision(first).with_watch_id(1);
    let mut stream = client.watch("w/", Some(all)).await.expect("a watch");
    assert!(stream.message().await.expect("an answer").expect("an answer").created());
    assert_eq!(lines(&mut stream, 2).await, [r#"1: put w/1 "a" after """#, r#"1: put w/1 "b" after "a""#]);
    let deletes = WatchOptions::new().with_filters([WatchFilterType::NoPut]).with_watch_id(2);
    stream.watch("w/1", Some(deletes)).await.expect("a second watcher on the stream");
    assert!(stream.message().await.expect("an answer").expect("an answer").created());
    client.put("w/1", "c", None).await.expect("a put");
    client.delete("w/1", None).await.expect("a delete");
    let mut told = lines(&mut stream, 3).await;
    told.sort();
    assert_eq!(told, [r#"1: delete w/1 "" after "c""#, r#"1: put w/1 "c" after "b""#, r#"2: delete w/1 "" after """#]);
    stream.request_progress().await.expect("it is sent");
    let progress = stream.message().await.expect("an answer").expect("an answer");
    assert!(progress.events().is_empty() && progress.header().expect("a header").revision() >= first + 3);
    stream.cancel(1).await.expect("it is sent");
    let canceled = stream.message().await.expect("an answer").expect("an answer");
    assert!(canceled.canceled() && canceled.watch_id() == 1);
}

async fn leases(client: &mut Client) {
    let lease = client.lease_grant(100, None).await.expect("a lease");
    assert_eq!(lease.ttl(), 100);
    client.put("leased", "v", Some(PutOptions::new().with_lease(lease.id()))).await.expect("a put");
    let left = client.lease_time_to_live(lease.id(), Some(LeaseTimeToLiveOptions::new().with_keys())).await.expect("its time");
    assert!(left.ttl() > 50 && left.keys() == [b"leased"], "{left:?}");
    let (mut keeper, mut answers) = client.lease_keep_alive(lease.id()).await.expect("a stream");
    keeper.keep_alive().await.expect("it is sent");
    assert_eq!(answers.message().await.expect("an answer").expect("an answer").ttl(), 100);
    assert!(client.leases().await.expect("the leases").leases().iter().any(|one| one.id() == lease.id()));
    client.lease_revoke(lease.id()).await.expect("it ends");
    assert!(client.get("leased", None).await.expect("a range").kvs().is_empty());
    let unknown = refusal(client.lease_revoke(lease.id()).await);
    assert_eq!(unknown, (Code::NotFound, "etcdserver: requested lease not found".into()));
}

async fn locks_and_elections(client: &mut Client) {
    let lease = client.lease_grant(60, None).await.expect("a lease").id();
    let held = client.lock("the-lock", Some(LockOptions::new().with_lease(lease))).await.expect("the lock");
    let mut other = client.clone();
    let waiting = tokio::spawn(async move {
        let key = other.lock("the-lock", None).await.expect("the lock, in its turn").key().to_vec();
        other.unlock(key).await
    });
    until("another in the line", LIMIT, || async {
        let mut client = client.clone();
        let line =
            client.get("the-lock/", Some(GetOptions::new().with_prefix().with_count_only())).await.expect("a range").count();
        if line == 2 { Ok(()) } else { Err(line) }
    })
    .await;
    assert!(!waiting.is_finished(), "the lock is held");
    client.unlock(held.key()).await.expect("it is given back");
    waiting.await.expect("the other does not panic").expect("it gives the lock back, too");

    let elected = client.campaign("the-election", "me", lease).await.expect("it is elected");
    let key = elected.leader().expect("a leader").clone();
    let mut observed = client.observe("the-election").await.expect("a stream");
    let leader = observed.message().await.expect("an answer").expect("an answer");
    assert_eq!(leader.kv().expect("a key").value(), b"me");
    let proclaim = etcd_client::ProclaimOptions::new().with_leader(key.clone());
    client.proclaim("still me", Some(proclaim)).await.expect("it leads");
    let leader = observed.message().await.expect("an answer").expect("an answer");
    assert_eq!(leader.kv().expect("a key").value(), b"still me");
    assert_eq!(client.leader("the-election").await.expect("one leads").kv().expect("a key").value(), b"still me");
    client.resign(Some(ResignOptions::new().with_leader(key))).await.expect("it led");
    let nobody = refusal(client.leader("the-election").await);
    assert_eq!(nobody, (Code::Unknown, "election: no leader".into()));
    client.lease_revoke(lease).await.expect("it ends");
}

async fn the_cluster(client: &mut Client) {
    let members = client.member_list().await.expect("the members");
    let mut names: Vec<&str> = members.members().iter().map(|member| member.name()).collect();
    names.sort_unstable();
    assert_eq!(names, ["master-1", "master-2", "master-3"]);
    let learner = MemberAddOptions::new().with_is_learner();
    let added = client.member_add(["https://127.0.0.1:9"], Some(learner)).await.expect("a member");
    let id = added.member().expect("a member").id();
    let early = refusal(client.member_promote(id).await);
    assert!(early.1.contains("can only promote a learner member which is in sync with leader"), "{early:?}");
    client.member_update(id, ["https://127.0.0.1:10".to_owned()]).await.expect("another address");
    client.member_remove(id).await.expect("it goes");
    assert_eq!(client.member_list().await.expect("the members").members().len(), 3);
}

async fn maintenance(client: &mut Client, each: &mut [Client]) {
    for member in each.iter_mut() {
        let status = member.status().await.expect("a status");
        assert!(status.version().starts_with("3.5.") && status.db_size() > 0 && status.leader() > 0, "{status:?}");
        member.defragment().await.expect("there is nothing to do");
    }
    // Every member holds the same.
    let revision = client.put("last", "1", None).await.expect("a put").header().expect("a header").revision();
    let mut hashes = Vec::new();
    for member in each.iter_mut() {
        member.get("last", None).await.expect("it has caught up");
        hashes.push(member.hash_kv(revision).await.expect("a hash").hash());
    }
    assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "{hashes:?}");
    assert!(client.alarm(AlarmAction::Get, AlarmType::None, None).await.expect("the alarms").alarms().is_empty());
    let mut snapshot = each[0].snapshot().await.expect("a snapshot");
    let mut bytes = 0;
    while let Some(piece) = snapshot.message().await.expect("another piece") {
        bytes += piece.blob().len();
    }
    assert!(bytes > 1000 && bytes % 512 == 32, "{bytes}");

    let mut leader = None;
    for (number, member) in each.iter_mut().enumerate() {
        let status = member.status().await.expect("a status");
        if status.header().expect("a header").member_id() == status.leader() {
            leader = Some(number);
        }
    }
    let leader = leader.expect("one leads");
    let target = each[(leader + 1) % 3].status().await.expect("a status").header().expect("a header").member_id();
    each[leader].move_leader(target).await.expect("leadership moves");
    until("the new leader", LIMIT, || async {
        for member in each.iter() {
            let now = member.clone().status().await.expect("a status").leader();
            if now != target {
                return Err(now);
            }
        }
        Ok(())
    })
    .await;
}

async fn history(client: &mut Client) {
    let revision = client.put("h", "1", None).await.expect("a put").header().expect("a header").revision();
    client.put("h", "2", None).await.expect("a put");
    client.compact(revision + 1, None).await.expect("a compaction");
    let old = refusal(client.get("h", Some(GetOptions::new().with_revision(revision))).await);
    assert_eq!(old, (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted".into()));
    let options = WatchOptions::new().with_start_revision(revision);
    let mut stream = client.watch("h", Some(options)).await.expect("a watch");
    assert!(stream.message().await.expect("an answer").expect("an answer").created());
    let canceled = stream.message().await.expect("an answer").expect("an answer");
    assert!(canceled.canceled() && canceled.compact_revision() == revision + 1, "{canceled:?}");
    let auth = refusal(client.user_list().await);
    assert_eq!(auth, (Code::FailedPrecondition, "etcdserver: authentication is not enabled".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_crate_works_for_every_service() {
    let cluster = Cluster::start(Pods::Hollow, 0);
    let etcdctl = Etcdctl::of(&cluster);
    let endpoints = etcdctl.endpoints();
    let mut client = connect(&etcdctl, &endpoints).await;
    let mut each = Vec::new();
    for endpoint in &endpoints {
        each.push(connect(&etcdctl, std::slice::from_ref(endpoint)).await);
    }
    key_values(&mut client).await;
    watches(&mut client).await;
    leases(&mut client).await;
    locks_and_elections(&mut client).await;
    the_cluster(&mut client).await;
    maintenance(&mut client, &mut each).await;
    history(&mut client).await;
}
