//! Clients of the etcd API that do what they should not, through a Rust client of its protocol: each gets etcd's own error, or one clear
//! line where etcd has none; nothing is changed, and connection and process stay up.

use std::{
    fmt::Debug,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use tonic::{
    Code, Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Error},
};
use trireme_etcd::proto::{
    etcdserverpb::{
        AuthEnableRequest, CompactionRequest, Compare, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest,
        LeaseKeepAliveRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, MemberAddRequest, MemberPromoteRequest,
        MemberRemoveRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, WatchCreateRequest, WatchRequest,
        auth_client::AuthClient, cluster_client::ClusterClient, kv_client::KvClient, lease_client::LeaseClient,
        maintenance_client::MaintenanceClient, request_op::Request as Op, watch_client::WatchClient, watch_request::RequestUnion,
    },
    mvccpb::KeyValue,
    v3electionpb::{CampaignRequest, LeaderRequest, ProclaimRequest, ResignRequest, election_client::ElectionClient},
    v3lockpb::{LockRequest, UnlockRequest, lock_client::LockClient},
};
use trireme_tests::{
    cluster::{Cluster, Pods, binary},
    etcd::{Access, Files},
    etcdctl::Etcdctl,
};

const LIMIT: Duration = Duration::from_secs(10);
/// The id of no lease.
const NO_LEASE: i64 = 77;

const EMPTY_KEY: &str = "etcdserver: key is not provided";
const TOO_LARGE: &str = "etcdserver: request is too large";
const TOO_MANY: &str = "etcdserver: too many operations in txn request";
const DUPLICATE: &str = "etcdserver: duplicate key given in txn request";
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const FUTURE: &str = "etcdserver: mvcc: required revision is a future revision";
const LEASE_NOT_FOUND: &str = "etcdserver: requested lease not found";

/// One connection, on which bad things are asked for, and what good things it must go on to give.
struct Probe {
    channel: Channel,
    good: Vec<KeyValue>,
}

/// Every key of the clients' own.
async fn everything(channel: &Channel) -> Result<Vec<KeyValue>, Status> {
    let own = RangeRequest { key: "a".into(), range_end: "z".into(), ..RangeRequest::default() };
    KvClient::new(channel.clone()).range(own).await.map(|answer| answer.into_inner().kvs)
}

impl Probe {
    async fn open(access: &Access) -> Self {
        let channel = access.connect(0).await.expect("the administrator is let in");
        let good = everything(&channel).await.expect("the connection is up");
        Self { channel, good }
    }

    fn key_values(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
    }

    /// Checks that something was refused so, and that the connection goes on and nothing has changed.
    async fn refused<T: Debug>(&self, what: &str, answer: Result<T, Status>, code: Code, words: &str) {
        let status = answer.expect_err(what);
        assert_eq!((status.code(), status.message()), (code, words), "{what}");
        self.unharmed(what).await;
    }

    async fn unharmed(&self, what: &str) {
        let found = everything(&self.channel).await.unwrap_or_else(|status| panic!("after {what}: {status}"));
        assert_eq!(found, self.good, "{what} has changed something");
    }
}

fn put(key: &str, bytes: usize) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: vec![0; bytes].into(), ..PutRequest::default() }
}

fn range(key: &str) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() }
}

fn operation(request: Op) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn put_operation(key: &str) -> RequestOp {
    operation(Op::RequestPut(put(key, 1)))
}

fn delete_operation(key: &str, range_end: &str) -> RequestOp {
    let (key, range_end) = (key.to_owned().into(), range_end.to_owned().into());
    operation(Op::RequestDeleteRange(DeleteRangeRequest { key, range_end, ..DeleteRangeRequest::default() }))
}

fn nested(transaction: TxnRequest) -> RequestOp {
    operation(Op::RequestTxn(transaction))
}

fn then(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success, ..TxnRequest::default() }
}

fn otherwise(failure: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { failure, ..TxnRequest::default() }
}

/// A put that is so many transactions deep.
fn deep(levels: usize) -> TxnRequest {
    (1..levels).fold(then(vec![put_operation("deep")]), |inner, _| then(vec![nested(inner)]))
}

async fn key_values(access: &Access, old: i64) {
    let probe = Probe::open(access).await;
    let mut client = probe.key_values();
    let puts = [
        ("a put without a key", PutRequest { key: "".into(), ..put("", 1) }, Code::InvalidArgument, EMPTY_KEY),
        ("a put that is too large", put("large", 1_600_000), Code::InvalidArgument, TOO_LARGE),
        (
            "a value that is to be ignored",
            PutRequest { ignore_value: true, ..put("good", 1) },
            Code::InvalidArgument,
            "etcdserver: value is provided",
        ),
        (
            "a lease that is to be ignored",
            PutRequest { ignore_lease: true, lease: NO_LEASE, ..put("good", 1) },
            Code::InvalidArgument,
            "etcdserver: lease is provided",
        ),
        (
            "the value of a key that is not there",
            PutRequest { ignore_value: true, ..put("nothing", 0) },
            Code::InvalidArgument,
            "etcdserver: key not found",
        ),
        (
            "the lease of a key that is not there",
            PutRequest { ignore_lease: true, ..put("nothing", 1) },
            Code::InvalidArgument,
            "etcdserver: key not found",
        ),
        ("a put with an unknown lease", PutRequest { lease: NO_LEASE, ..put("k", 1) }, Code::NotFound, LEASE_NOT_FOUND),
    ];
    for (what, request, code, words) in puts {
        probe.refused(what, client.put(request).await, code, words).await;
    }
    let sort = "etcdserver: invalid sort option";
    let ranges = [
        ("a range without a key", range(""), Code::InvalidArgument, EMPTY_KEY),
        ("a sort order of no kind", RangeRequest { sort_order: 9, ..range("good") }, Code::InvalidArgument, sort),
        ("a sort target of no kind", RangeRequest { sort_target: -1, ..range("good") }, Code::InvalidArgument, sort),
        ("a compacted revision", RangeRequest { revision: old, ..range("good") }, Code::OutOfRange, COMPACTED),
        ("a future revision", RangeRequest { revision: 1 << 40, ..range("good") }, Code::OutOfRange, FUTURE),
    ];
    for (what, request, code, words) in ranges {
        probe.refused(what, client.range(request).await, code, words).await;
    }
    let keyless = client.delete_range(DeleteRangeRequest::default()).await;
    probe.refused("a delete without a key", keyless, Code::InvalidArgument, EMPTY_KEY).await;
    for (what, revision, words) in
        [("a compaction again", old, COMPACTED), ("a compaction below 0", -1, COMPACTED), ("a compaction ahead", 1 << 40, FUTURE)]
    {
        let answer = client.compact(CompactionRequest { revision, physical: false }).await;
        probe.refused(what, answer, Code::OutOfRange, words).await;
    }
}

async fn transactions(access: &Access, old: i64) {
    let probe = Probe::open(access).await;
    let mut client = probe.key_values();
    let compare = Compare { key: "good".into(), ..Compare::default() };
    let many = |count: usize| (0..count).map(|number| put_operation(&format!("k{number}"))).collect::<Vec<_>>();
    let large = (0..17).map(|number| operation(Op::RequestPut(put(&format!("k{number}"), 100_000)))).collect();
    let one = || put_operation("twice");
    let clashes = [
        ("two puts", then(vec![one(), one()])),
        ("a put and a delete", then(vec![one(), delete_operation("twice", "")])),
        ("a delete of a range and a put", then(vec![delete_operation("a", "z"), one()])),
        ("a put and a nested put", then(vec![one(), nested(then(vec![one()]))])),
        ("a nested put and a put", then(vec![nested(otherwise(vec![one()])), one()])),
        ("two nested puts", then(vec![nested(then(vec![one()])), nested(otherwise(vec![one()]))])),
        ("a put and a nested delete", otherwise(vec![one(), nested(then(vec![delete_operation("t", "u")]))])),
        ("a clash within a nested transaction", otherwise(vec![nested(then(vec![one(), one()]))])),
        ("a clash in the branch that is not taken", TxnRequest { compare: vec![compare.clone()], ..then(vec![one(), one()]) }),
    ];
    for (what, request) in clashes {
        probe.refused(what, client.txn(request).await, Code::InvalidArgument, DUPLICATE).await;
    }
    let around = |inner: TxnRequest| then(vec![nested(inner)]);
    let at = |revision: i64| then(vec![put_operation("k"), operation(Op::RequestRange(RangeRequest { revision, ..range("k") }))]);
    let leased = operation(Op::RequestPut(PutRequest { lease: NO_LEASE, ..put("k2", 1) }));
    let others = [
        ("too many operations", then(many(129)), Code::InvalidArgument, TOO_MANY),
        ("too many operations of the other branch", otherwise(many(129)), Code::InvalidArgument, TOO_MANY),
        ("too many nested operations", around(then(many(128))), Code::InvalidArgument, TOO_MANY),
        (
            "too many compares",
            TxnRequest { compare: vec![compare.clone(); 129], ..TxnRequest::default() },
            Code::InvalidArgument,
            TOO_MANY,
        ),
        ("many puts that are too large together", then(large), Code::InvalidArgument, TOO_LARGE),
        ("a put without a key", around(then(vec![put_operation("")])), Code::InvalidArgument, EMPTY_KEY),
        (
            "a compare without a key",
            TxnRequest { compare: vec![Compare::default()], ..then(many(1)) },
            Code::InvalidArgument,
            EMPTY_KEY,
        ),
        (
            "a compare of no kind",
            TxnRequest { compare: vec![Compare { result: 9, ..compare }], ..then(many(1)) },
            Code::InvalidArgument,
            "etcdserver: unknown comparison in txn request",
        ),
        ("an empty operation", then(vec![RequestOp::default()]), Code::InvalidArgument, "etcdserver: key not found"),
        ("a put before one with an unknown lease", then(vec![put_operation("k1"), leased]), Code::NotFound, LEASE_NOT_FOUND),
        ("a put before a range of a compacted revision", at(old), Code::OutOfRange, COMPACTED),
        ("a put before a range of a future revision", at(1 << 40), Code::OutOfRange, FUTURE),
        ("transactions nested too deep", deep(40), Code::InvalidArgument, "etcdserver: transactions are nested too deep"),
    ];
    for (what, request, code, words) in others {
        probe.refused(what, client.txn(request).await, code, words).await;
    }
}

async fn leases(access: &Access) {
    let probe = Probe::open(access).await;
    let mut client = LeaseClient::new(probe.channel.clone());
    let held = client.lease_grant(LeaseGrantRequest { ttl: 100, id: 5 }).await.expect("a lease").into_inner();
    let again = client.lease_grant(LeaseGrantRequest { ttl: 100, id: 5 }).await;
    probe.refused("a lease that exists", again, Code::FailedPrecondition, "etcdserver: lease already exists").await;
    let long = client.lease_grant(LeaseGrantRequest { ttl: i64::MAX, id: 6 }).await;
    probe.refused("a lease for ever", long, Code::OutOfRange, "etcdserver: too large lease TTL").await;
    let unknown = client.lease_revoke(LeaseRevokeRequest { id: NO_LEASE }).await;
    probe.refused("the end of an unknown lease", unknown, Code::NotFound, LEASE_NOT_FOUND).await;
    // etcd answers these two with a time.
    let left =
        client.lease_time_to_live(LeaseTimeToLiveRequest { id: NO_LEASE, keys: true }).await.expect("an answer").into_inner();
    assert_eq!((left.ttl, left.granted_ttl, left.keys.len()), (-1, 0, 0));
    let kept = futures::stream::iter([LeaseKeepAliveRequest { id: NO_LEASE }, LeaseKeepAliveRequest { id: held.id }]);
    let mut answers = client.lease_keep_alive(kept).await.expect("a stream").into_inner();
    for (id, ttl) in [(NO_LEASE, 0), (held.id, 100)] {
        let answer = answers.message().await.expect("an answer").expect("an answer");
        assert_eq!((answer.id, answer.ttl), (id, ttl));
    }
    client.lease_revoke(LeaseRevokeRequest { id: held.id }).await.expect("it ends");
    probe.unharmed("leases").await;
}

async fn watches(access: &Access, old: i64) {
    let probe = Probe::open(access).await;
    let create = |request: WatchCreateRequest| WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) };
    let good = WatchCreateRequest { key: "good".into(), ..WatchCreateRequest::default() };
    let requests = [
        WatchCreateRequest { range_end: "a".into(), ..good.clone() },
        WatchCreateRequest { watch_id: 5, ..good.clone() },
        WatchCreateRequest { watch_id: 5, ..good.clone() },
        WatchCreateRequest { watch_id: 6, start_revision: old, ..good },
    ];
    let outgoing = futures::StreamExt::chain(
        futures::stream::iter(requests.map(create).into_iter().chain([WatchRequest::default()])),
        futures::stream::pending(),
    );
    let mut answers = WatchClient::new(probe.channel.clone()).watch(outgoing).await.expect("a stream").into_inner();
    let mut told = Vec::new();
    for _ in 0..5 {
        let answer =
            tokio::time::timeout(LIMIT, answers.message()).await.expect("in time").expect("an answer").expect("an answer");
        told.push((answer.watch_id, answer.created, answer.canceled, answer.compact_revision > 0, answer.cancel_reason));
    }
    let expected = [
        (-1, true, true, false, "mvcc: watcher range is empty"),
        (5, true, false, false, ""),
        (-1, true, true, false, "mvcc: duplicate watch ID provided on the WatchStream"),
        (6, true, false, false, ""),
        (6, false, true, true, COMPACTED),
    ];
    assert_eq!(told, expected.map(|(id, created, canceled, compacted, why)| (id, created, canceled, compacted, why.to_owned())));
    probe.unharmed("watches").await;
}

async fn locks_and_elections(access: &Access) {
    let probe = Probe::open(access).await;
    let (mut locks, mut elections) = (LockClient::new(probe.channel.clone()), ElectionClient::new(probe.channel.clone()));
    let lock = locks.lock(LockRequest { name: "lock".into(), lease: NO_LEASE }).await;
    probe.refused("a lock of an unknown lease", lock, Code::NotFound, LEASE_NOT_FOUND).await;
    let unlock = locks.unlock(UnlockRequest::default()).await;
    probe.refused("an unlock of no key", unlock, Code::InvalidArgument, EMPTY_KEY).await;
    let campaign = CampaignRequest { name: "election".into(), lease: NO_LEASE, value: "me".into() };
    probe.refused("a campaign of an unknown lease", elections.campaign(campaign).await, Code::NotFound, LEASE_NOT_FOUND).await;
    let leader = elections.leader(LeaderRequest { name: "election".into() }).await;
    probe.refused("an election without a leader", leader, Code::Unknown, "election: no leader").await;
    let words = "\"leader\" field must be provided";
    let proclaim = elections.proclaim(ProclaimRequest::default()).await;
    probe.refused("a proclamation of nobody", proclaim, Code::InvalidArgument, words).await;
    probe
        .refused("a resignation of nobody", elections.resign(ResignRequest::default()).await, Code::InvalidArgument, words)
        .await;
}

async fn the_cluster(access: &Access) {
    let probe = Probe::open(access).await;
    let mut client = ClusterClient::new(probe.channel.clone());
    let not_found = "etcdserver: member not found";
    let remove = client.member_remove(MemberRemoveRequest { id: 1 }).await;
    probe.refused("the removal of an unknown member", remove, Code::NotFound, not_found).await;
    let promote = client.member_promote(MemberPromoteRequest { id: 1 }).await;
    probe.refused("the promotion of an unknown member", promote, Code::NotFound, not_found).await;
    for url in ["", "nonsense", "http://127.0.0.1:1", "https://127.0.0.1", "https://127.0.0.1:x"] {
        let add = client
            .member_add(MemberAddRequest { peer_ur_ls: vec![url.to_owned()], is_learner: true, ..MemberAddRequest::default() })
            .await;
        probe.refused(url, add, Code::InvalidArgument, "etcdserver: given member URLs are invalid").await;
    }
    let hash = MaintenanceClient::new(probe.channel.clone()).hash_kv(HashKvRequest { revision: 1 << 40 }).await;
    probe.refused("a hash of a future revision", hash, Code::OutOfRange, FUTURE).await;
    let auth = AuthClient::new(probe.channel.clone()).auth_enable(AuthEnableRequest {}).await;
    assert_eq!(auth.expect_err("certificates decide").message(), "etcdserver: authentication is not enabled");
    probe.unharmed("auth").await;
}

/// Sends a message of another kind to `path`.
async fn call(channel: &Channel, path: &'static str) -> Result<(), Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.expect("the connection is up");
    let codec = tonic_prost::ProstCodec::<LeaseGrantRequest, RangeResponse>::default();
    let message = Request::new(LeaseGrantRequest { ttl: 1, id: 1 });
    client.unary(message, PathAndQuery::from_static(path), codec).await.map(|_| ())
}

async fn messages(access: &Access) {
    let probe = Probe::open(access).await;
    let malformed = call(&probe.channel, "/etcdserverpb.KV/Range").await.expect_err("it is no range request");
    assert_eq!(malformed.code(), Code::Internal);
    assert!(malformed.message().contains("failed to decode Protobuf message"), "{malformed:?}");
    probe.unharmed("a malformed message").await;
    // Deeper than messages may nest at all.
    let deepest = probe.key_values().txn(deep(120)).await.expect_err("it is too deep");
    assert!(deepest.code() == Code::Internal && deepest.message().contains("recursion limit reached"), "{deepest:?}");
    probe.unharmed("a message that is nested too deep").await;
    let unknown = [
        ("/etcdserverpb.Nothing/Range", "unknown service etcdserverpb.Nothing"),
        ("/etcdserverpb.KV/Nothing", "unknown method Nothing for service etcdserverpb.KV"),
        ("/nothing", "unknown service nothing"),
    ];
    for (path, words) in unknown {
        probe.refused(path, call(&probe.channel, path).await, Code::Unimplemented, words).await;
    }
    let huge = probe.key_values().put(put("huge", 20_000_000)).await;
    let words = "grpc: received message larger than max (20000011 vs. 2097152)";
    probe.refused("a message that is far too large", huge, Code::ResourceExhausted, words).await;
}

/// What comes of a connection and a first request with other files.
async fn try_to_read(endpoint: &str, files: Files<'_>) -> Result<Vec<KeyValue>, String> {
    let access = Access::with(vec![endpoint.to_owned()], files);
    let channel = access.connect(0).await.map_err(|error: Error| error.to_string())?;
    everything(&channel).await.map_err(|status| status.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_get_one_clear_error_and_change_nothing() {
    let cluster = Cluster::start(Pods::Hollow, 0);
    let masters = cluster.masters().map(|name| cluster.pid(&name));
    let access = Access::of(&cluster);
    let mut client = KvClient::new(access.connect(0).await.expect("the administrator is let in"));
    client.put(put("good", 1_500_000)).await.expect("a request of almost 1.5 MiB is taken");
    let old = client.put(put("good", 1)).await.expect("a put").into_inner().header.expect("a header").revision;
    client.put(put("good", 2)).await.expect("a put");
    let compaction = CompactionRequest { revision: old + 1, physical: true };
    client.compact(compaction).await.expect("a compaction");

    key_values(&access, old).await;
    transactions(&access, old).await;
    leases(&access).await;
    watches(&access, old).await;
    locks_and_elections(&access).await;
    the_cluster(&access).await;
    messages(&access).await;
    client.put(put("good", 3)).await.expect("the first connection goes on");
    assert_eq!(cluster.masters().map(|name| cluster.pid(&name)), masters, "every master is still the same process");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shows_no_good_certificate_is_turned_away() {
    // Its authority has the same name, and other keys.
    let folder = tempfile::tempdir().expect("there is room for a folder");
    let other = folder.path().display().to_string();
    let cluster = Cluster::start(Pods::Hollow, 0);
    let arguments = ["pki", "master", "m1", "--authority-dir", &other, "--cluster-id", "c", "--address", "127.0.0.1"];
    let made = std::process::Command::new(binary()).args(arguments).output().expect("the binary runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let masters = cluster.masters().map(|name| cluster.pid(&name));
    let etcdctl = Etcdctl::of(&cluster);
    let (certificate, key) = (format!("{other}/m1/api.crt"), format!("{other}/m1/api.key"));
    let probe = Probe::open(&Access::of(&cluster)).await;

    let endpoint = etcdctl.endpoints().remove(0);
    let authority = etcdctl.variable("CACERT");
    for identity in [None, Some((certificate.as_str(), key.as_str()))] {
        let refused = try_to_read(&endpoint, Files { authority, identity }).await;
        refused.expect_err("without a certificate of this cluster nobody is let in");
        probe.unharmed("a client without a good certificate").await;
    }
    let refused = etcdctl.clone().with("CERT", &certificate).with("KEY", &key).with("DIAL_TIMEOUT", "3s").fails(&["get", "k"]);
    assert!(refused.contains("context deadline exceeded") || refused.contains("certificate"), "{refused}");

    let address = endpoint.trim_start_matches("https://").to_owned();
    for greeting in [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), b"GET / HTTP/1.1\r\n\r\n", &[0; 300]] {
        let (address, greeting) = (address.clone(), greeting.to_vec());
        let plain = tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(address).expect("the port is open");
            stream.set_read_timeout(Some(LIMIT)).expect("a timeout can be set");
            // The server may close while the rest is sent; it may answer with a TLS alert before that.
            let _ = stream.write_all(&greeting);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            answer
        });
        assert!(plain.await.expect("it ends").len() < 16, "no more than an alert is answered in the clear");
        probe.unharmed("a client without TLS").await;
    }
    assert_eq!(etcdctl.ok(&["put", "k", "v"]), "OK\n");
    assert_eq!(cluster.masters().map(|name| cluster.pid(&name)), masters, "every master is still the same process");
}
