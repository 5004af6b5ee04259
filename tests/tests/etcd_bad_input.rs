//! Clients of the etcd API that do what they should not, through a Rust client of its protocol: each gets one clear error, nothing is
//! changed, and connection and process stay up.

use std::{io::Read, net::TcpStream, path::Path, time::Duration};

use tonic::{
    Code, Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use trireme_etcd::proto::etcdserverpb::{
    LeaseGrantRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, kv_client::KvClient,
    request_op::Request as Op,
};
use trireme_tests::{
    cluster::{Cluster, Pods, binary},
    etcdctl::Etcdctl,
};

fn read(path: &str) -> Vec<u8> {
    std::fs::read(Path::new(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A connection to an endpoint with a certificate and its key, trusting `authority`; all files.
async fn connect(endpoint: &str, authority: &str, identity: Option<(&str, &str)>) -> Result<Channel, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(authority))).domain_name("localhost");
    if let Some((certificate, key)) = identity {
        tls = tls.identity(Identity::from_pem(read(certificate), read(key)));
    }
    Endpoint::from_shared(endpoint.to_owned())?.tls_config(tls)?.connect_timeout(Duration::from_secs(5)).connect().await
}

/// Sends a message of another kind to `path`.
async fn call(channel: &Channel, path: &'static str, message: LeaseGrantRequest) -> Status {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.expect("the connection is up");
    let codec = tonic_prost::ProstCodec::<LeaseGrantRequest, RangeResponse>::default();
    client.unary(Request::new(message), PathAndQuery::from_static(path), codec).await.expect_err("it is refused")
}

fn put(key: &'static str, bytes: usize) -> PutRequest {
    PutRequest { key: key.into(), value: vec![0; bytes].into(), ..PutRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_get_one_clear_error_and_change_nothing() {
    let cluster = Cluster::start(Pods::Hollow, 0);
    let etcdctl = Etcdctl::of(&cluster);
    let (authority, certificate, key) = (etcdctl.variable("CACERT"), etcdctl.variable("CERT"), etcdctl.variable("KEY"));
    let endpoint = etcdctl.endpoints().remove(0);
    let channel = connect(&endpoint, authority, Some((certificate, key))).await.expect("the administrator is let in");
    let mut client = KvClient::new(channel.clone());
    client.put(put("good", 1_500_000)).await.expect("a request of almost 1.5 MiB is taken");

    let large = client.put(put("large", 1_600_000)).await.expect_err("it is too large");
    assert_eq!((large.code(), large.message()), (Code::InvalidArgument, "etcdserver: request is too large"));
    let huge = client.put(put("huge", 20_000_000)).await.expect_err("it is far too large");
    assert!(huge.message().contains("too large"), "{huge:?}");
    let twice = RequestOp { request: Some(Op::RequestPut(put("twice", 1))) };
    let clash = TxnRequest { success: vec![twice.clone(), twice], ..TxnRequest::default() };
    let clash = client.txn(clash).await.expect_err("a key is given twice");
    assert_eq!((clash.code(), clash.message()), (Code::InvalidArgument, "etcdserver: duplicate key given in txn request"));

    let message = LeaseGrantRequest { ttl: 1, id: 1 };
    let malformed = call(&channel, "/etcdserverpb.KV/Range", message).await;
    assert!(malformed.message().contains("failed to decode Protobuf message"), "{malformed:?}");
    let service = call(&channel, "/etcdserverpb.Nothing/Range", message).await;
    assert_eq!((service.code(), service.message()), (Code::Unimplemented, "unknown service etcdserverpb.Nothing"));
    assert_eq!(call(&channel, "/etcdserverpb.KV/Nothing", message).await.code(), Code::Unimplemented);

    // Without a certificate, or with one of another authority, there is no connection; so too without TLS.
    let anonymous = async {
        let mut client = KvClient::new(connect(&endpoint, authority, None).await.map_err(|error| error.to_string())?);
        client.range(RangeRequest { key: "good".into(), ..RangeRequest::default() }).await.map_err(|error| error.to_string())
    };
    anonymous.await.expect_err("a client must show a certificate");
    let address = endpoint.trim_start_matches("https://").to_owned();
    let plain = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).expect("the port is open");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout can be set");
        std::io::Write::write_all(&mut stream, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("it is sent");
        let mut answer = Vec::new();
        // The server may answer with a TLS alert before it closes.
        let _ = stream.read_to_end(&mut answer);
        answer
    });
    assert!(plain.await.expect("it ends").len() < 16, "no more than an alert is answered in the clear");

    let outside_of_kubernetes =
        RangeRequest { key: "a".into(), range_end: "z".into(), keys_only: true, ..RangeRequest::default() };
    let found = client.range(outside_of_kubernetes).await.expect("the connection goes on").into_inner();
    let keys: Vec<_> = found.kvs.into_iter().map(|one| one.key).collect();
    assert_eq!(keys, ["good"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_cluster_is_turned_away() {
    // Its authority has the same name, and other keys.
    let folder = tempfile::tempdir().expect("there is room for a folder");
    let other = folder.path().display().to_string();
    let cluster = Cluster::start(Pods::Hollow, 0);
    let arguments = ["pki", "master", "m1", "--authority-dir", &other, "--cluster-id", "c", "--address", "127.0.0.1"];
    let made = std::process::Command::new(binary()).args(arguments).output().expect("the binary runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let etcdctl = Etcdctl::of(&cluster);
    let (certificate, key) = (format!("{other}/m1/api.crt"), format!("{other}/m1/api.key"));
    let refused = etcdctl.clone().with("CERT", &certificate).with("KEY", &key).with("DIAL_TIMEOUT", "3s").fails(&["get", "k"]);
    assert!(refused.contains("context deadline exceeded") || refused.contains("certificate"), "{refused}");
    assert_eq!(etcdctl.ok(&["put", "k", "v"]), "OK\n");
}
