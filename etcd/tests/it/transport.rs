//! The listener, over mutual TLS: what is refused before a handler sees it.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use trireme_etcd::proto::etcdserverpb::{LeaseGrantRequest, PutRequest, RangeRequest, RangeResponse, kv_client::KvClient};
use trireme_storage::{
    model::{Operation, Revision, Transaction},
    store::Store,
};

use crate::service::{Service, everything};

/// A server on a port of its own, and a connection to it.
struct Served {
    channel: Channel,
    shutdown: CancellationToken,
}

impl Served {
    async fn start(service: &Service) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();

        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let server_key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut tls =
            builder.with_client_cert_verifier(verifier).with_single_cert(vec![certificate.der().clone()], server_key).unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        tokio::spawn(service.server.clone().serve(listener, Arc::new(tls), shutdown.clone()));

        let identity = Identity::from_pem(certificate.pem(), key.serialize_pem());
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.pem())).identity(identity);
        let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
        let channel = endpoint.tls_config(tls.domain_name("localhost")).unwrap().connect().await.unwrap();
        Self { channel, shutdown }
    }

    /// Sends a message of a lease's grant to `path`.
    async fn call(&self, path: &'static str) -> Status {
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<LeaseGrantRequest, RangeResponse>::default();
        let message = Request::new(LeaseGrantRequest { ttl: 1, id: 1 });
        client.unary(message, PathAndQuery::from_static(path), codec).await.unwrap_err()
    }
}

#[tokio::test]
async fn what_no_handler_sees_is_refused_in_words_of_etcd_and_the_connection_goes_on() {
    let service = Service::new();
    let served = Served::start(&service).await;
    let mut client = KvClient::new(served.channel.clone());
    let large = |bytes: usize| PutRequest { key: "large".into(), value: vec![0; bytes].into(), ..PutRequest::default() };
    let refusals = [
        (
            client.put(large(20_000_000)).await.unwrap_err(),
            Code::ResourceExhausted,
            "grpc: received message larger than max (20000012 vs. 2097152)",
        ),
        (client.put(large(2_000_000)).await.unwrap_err(), Code::InvalidArgument, "etcdserver: request is too large"),
        (
            served.call("/etcdserverpb.KV/Nothing").await,
            Code::Unimplemented,
            "unknown method Nothing for service etcdserverpb.KV",
        ),
        (served.call("/etcdserverpb.Nothing/Range").await, Code::Unimplemented, "unknown service etcdserverpb.Nothing"),
        (served.call("/nothing").await, Code::Unimplemented, "unknown service nothing"),
    ];
    for (status, code, words) in refusals {
        assert_eq!((status.code(), status.message()), (code, words));
    }
    let malformed = served.call("/etcdserverpb.KV/Range").await;
    assert!(malformed.code() == Code::Internal && malformed.message().contains("failed to decode Protobuf message"));
    client.put(large(1_500_000)).await.unwrap();
    assert_eq!(client.range(everything()).await.unwrap().into_inner().count, 1);
    served.shutdown.cancel();
}

/// What is larger than a page is an ordinary answer to an ordinary client, many at a time on one connection, and with writes between.
#[tokio::test]
async fn large_ranges_are_answered_whole() {
    const KEYS: usize = 3000;
    let service = Service::new();
    for numbers in (0..KEYS).collect::<Vec<_>>().chunks(100) {
        let put = |number: &usize| Operation::put(format!("large/{number:05}"), vec![u8::try_from(number % 251).unwrap(); 2000]);
        let transaction = Transaction { success: numbers.iter().map(put).collect(), ..Transaction::default() };
        service.store.transact(transaction).await.unwrap();
    }
    let filled = service.store.revision().0;
    let served = Served::start(&service).await;
    let client = KvClient::new(served.channel.clone()).max_decoding_message_size(64 << 20);
    let range = |revision: u64| {
        let mut client = client.clone();
        let revision = i64::try_from(revision).unwrap();
        async move { client.range(RangeRequest { revision, ..everything() }).await }
    };
    for round in 0..3 {
        let answers = futures::future::join_all((0..4).map(|_| range(0))).await;
        for answer in answers {
            let answer = answer.unwrap().into_inner();
            assert_eq!((answer.kvs.len(), answer.count, answer.more), (KEYS, KEYS as i64, false));
            assert_eq!(answer.header.unwrap().revision, i64::try_from(filled).unwrap() + round);
            for (number, found) in answer.kvs.iter().enumerate() {
                assert_eq!(found.key, format!("large/{number:05}"));
                assert!(number == 7 || found.value == vec![u8::try_from(number % 251).unwrap(); 2000], "{number}");
            }
        }
        service.put("large/00007", &format!("round {round}")).await;
    }
    let past = range(filled).await.unwrap().into_inner();
    assert_eq!((past.kvs.len(), past.kvs[7].value.as_ref()), (KEYS, [7; 2000].as_slice()));
    service.store.compact(Revision(filled + 1)).await.unwrap();
    let refused = range(filled).await.unwrap_err();
    let words = "etcdserver: mvcc: required revision has been compacted";
    assert_eq!((refused.code(), refused.message()), (Code::OutOfRange, words));
    served.shutdown.cancel();
}
