//! `pods/log`: the way to a node's agent over mutual TLS.

mod support;

use std::{net::SocketAddr, sync::Arc};

use rcgen::ExtendedKeyUsagePurpose;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::json;
use support::{Authority, TestServer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

const PODS: &str = "/api/v1/namespaces/default/pods";

/// An agent that answers one request a connection with the path it was asked for, and refuses the container `b`.
async fn agent(authority: &Authority) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let acceptor = tokio_rustls::TlsAcceptor::from(authority.server_config());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = acceptor.accept(stream).await.expect("TLS");
            assert!(stream.get_ref().1.peer_certificates().is_some(), "the API server shows its certificate");
            let mut buffer = vec![0; 4096];
            let length = stream.read(&mut buffer).await.expect("a request");
            let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
            let (status, body) =
                if path.contains("/b?") { ("404 Not Found", "no such log".to_owned()) } else { ("200 OK", path) };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.expect("an answer");
            let _ = stream.shutdown().await;
        }
    });
    address
}

fn client_config(authority: &Authority) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.certificate.as_bytes()).expect("PEM")).expect("a root");
    let (certificate, key) = authority.issue("apiserver", Some("system:masters"), &[], ExtendedKeyUsagePurpose::ClientAuth);
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM"),
        )
        .expect("a certificate")
}

#[tokio::test]
async fn a_log_comes_from_the_agent_of_the_pods_node() {
    let authority = Authority::new();
    let address = agent(&authority).await;
    let server = TestServer::reaching_nodes(client_config(&authority)).await;
    let pod = json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "a", "image": "i" }, { "name": "b", "image": "i" }] } });
    assert_eq!(server.post(PODS, &pod).await.code, 201);
    let log = |query: &'static str| server.get(query);
    let unnamed = log("/api/v1/namespaces/default/pods/p/log").await;
    assert_eq!(unnamed.code, 400);
    assert_eq!(unnamed.message(), "a container name must be specified for pod p, choose one of: [a b]");
    let unscheduled = log("/api/v1/namespaces/default/pods/p/log?container=a").await;
    assert_eq!((unscheduled.code, unscheduled.body.len()), (200, 0));
    let binding = json!({ "metadata": { "name": "p" }, "target": { "kind": "Node", "name": "n1" } });
    assert_eq!(server.post(&format!("{PODS}/p/binding"), &binding).await.code, 201);
    let nowhere = log("/api/v1/namespaces/default/pods/p/log?container=a").await;
    assert_eq!(nowhere.code, 500, "the node is not known");
    server.post("/api/v1/nodes", &json!({ "metadata": { "name": "n1" } })).await;
    let status = json!({ "status": {
        "addresses": [{ "type": "InternalIP", "address": address.ip().to_string() }],
        "daemonEndpoints": { "kubeletEndpoint": { "Port": address.port() } },
    } });
    let patched = server.patch("/api/v1/nodes/n1/status", "merge", &status).await;
    assert_eq!(patched.code, 200, "{}", patched.message());
    let found = log("/api/v1/namespaces/default/pods/p/log?container=a&tailLines=5&follow=true&pretty=1").await;
    assert_eq!(found.code, 200);
    assert_eq!(String::from_utf8_lossy(&found.body), "/containerLogs/default/p/a?tailLines=5&follow=true");
    let refused = log("/api/v1/namespaces/default/pods/p/log?container=b").await;
    assert_eq!((refused.code, refused.message().as_str()), (400, "no such log"));
}
