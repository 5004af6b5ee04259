//! An API server over a store in memory, and clients for it.
#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use trireme_api::{clock::SystemClock, kinds};
use trireme_apiserver::{ApiServer, ApiServerConfig, RequestContext, ServiceCidr, VersionInfo};
use trireme_storage::{local::LocalStore, store::Store};

/// A running server; everything stops when it is dropped.
pub struct TestServer {
    pub api: Arc<ApiServer>,
    pub store: Arc<LocalStore>,
    shutdown: CancellationToken,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// What a server answered.
pub struct Reply {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_owned()
    }
}

impl TestServer {
    /// A server with every built-in kind and the objects that a cluster begins with.
    pub async fn start() -> Self {
        Self::over(Arc::new(LocalStore::in_memory().expect("a store in memory"))).await
    }

    pub async fn over(store: Arc<LocalStore>) -> Self {
        Self::with(store, 1000, Duration::from_secs(60)).await
    }

    pub async fn with(store: Arc<LocalStore>, watch_history: usize, bookmark_period: Duration) -> Self {
        Self::configured(store.clone(), store, watch_history, bookmark_period, None).await
    }

    /// A server that reaches node agents.
    pub async fn reaching_nodes(tls: rustls::ClientConfig) -> Self {
        let store = Arc::new(LocalStore::in_memory().expect("a store in memory"));
        Self::configured(store.clone(), store, 1000, Duration::from_secs(60), Some(tls)).await
    }

    /// A server that sees the store through another one.
    pub async fn seeing(store: Arc<LocalStore>, seen: Arc<dyn Store>) -> Self {
        Self::configured(store, seen, 1000, Duration::from_secs(60), None).await
    }

    async fn configured(
        store: Arc<LocalStore>,
        seen: Arc<dyn Store>,
        watch_history: usize,
        bookmark_period: Duration,
        node_client_tls: Option<rustls::ClientConfig>,
    ) -> Self {
        let api = ApiServer::new(ApiServerConfig {
            store: seen,
            registry: kinds::registry(),
            clock: Arc::new(SystemClock),
            service_cidr: ServiceCidr::default(),
            node_client_tls,
            version: VersionInfo {
                minor: 36,
                trireme: "0.1.0".into(),
                git_commit: "test".into(),
                build_date: "2026-01-01T00:00:00Z".into(),
            },
            random_seed: [7; 32],
            watch_history,
            bookmark_period,
            extra: axum::Router::new(),
        });
        let shutdown = CancellationToken::new();
        api.start_caches(shutdown.clone());
        let server = Self { api, store, shutdown };
        let masters = [SocketAddr::from(([192, 0, 2, 1], 6443))];
        server.api.bootstrap(&RequestContext::master("bootstrap"), &masters).await.expect("the first objects");
        server
    }

    pub fn client(&self) -> kube::Client {
        kube::Client::new(self.api.service(RequestContext::master("test")), "default")
    }

    /// One request as `system:masters`.
    pub async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
        self.send_as(RequestContext::master("test"), method, path, headers, body).await
    }

    pub async fn send_as(
        &self,
        who: RequestContext,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).expect("a request");
        let Ok(response) = self.api.service(who).oneshot(request).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        Reply { code: parts.status.as_u16(), headers: parts.headers, body }
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, &[], "").await
    }

    pub async fn post(&self, path: &str, object: &Value) -> Reply {
        self.send(Method::POST, path, &[("content-type", "application/json")], object.to_string()).await
    }

    pub async fn put(&self, path: &str, object: &Value) -> Reply {
        self.send(Method::PUT, path, &[("content-type", "application/json")], object.to_string()).await
    }

    pub async fn patch(&self, path: &str, kind: &str, patch: &Value) -> Reply {
        let content_type = format!("application/{kind}-patch+json");
        self.send(Method::PATCH, path, &[("content-type", &content_type)], patch.to_string()).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path, &[], "").await
    }

    /// Begins a watch.
    pub async fn watch(&self, path: &str) -> WatchStream {
        self.watch_accepting(path, "application/json").await
    }

    pub async fn watch_accepting(&self, path: &str, accept: &str) -> WatchStream {
        let request = Request::get(path).header("accept", accept).body(Full::new(Bytes::new())).expect("a request");
        let Ok(response) = self.api.service(RequestContext::master("test")).oneshot(request).await;
        assert_eq!(response.status(), 200, "the watch begins");
        WatchStream { body: response.into_body(), rest: Vec::new() }
    }
}

/// The events of a running watch.
pub struct WatchStream {
    body: trireme_apiserver::ResponseBody,
    rest: Vec<u8>,
}

impl WatchStream {
    /// The next event; `None` when the stream has ended.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("an event"));
            }
            let frame = tokio::time::timeout(Duration::from_secs(10), self.body.frame()).await.expect("an event in time")?;
            self.rest.extend_from_slice(frame.expect("a frame").data_ref().expect("data"));
        }
    }

    /// The type and the name of the next event.
    pub async fn summary(&mut self) -> (String, String) {
        let event = self.next().await.expect("an event");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

/// The certificates of a test cluster, in PEM.
pub struct Authority {
    pub certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test-ca");
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// A certificate and its key.
    pub fn issue(&self, user: &str, group: Option<&str>, names: &[&str], usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("parameters");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        (certificate, key.serialize_pem())
    }

    /// The server side of TLS, with optional client certificates.
    pub fn server_config(&self) -> Arc<rustls::ServerConfig> {
        use rustls::pki_types::{CertificateDer, pem::PemObject};
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (certificate, key) = self.issue("server", None, &["127.0.0.1", "localhost"], ExtendedKeyUsagePurpose::ServerAuth);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.certificate.as_bytes()).expect("PEM")).expect("a root");
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .expect("a verifier");
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("protocol versions")
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .expect("a certificate");
        Arc::new(config)
    }
}

impl TestServer {
    /// Serves over TLS on a free port; returns its address.
    pub async fn listen(&self, authority: &Authority) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (api, tls, shutdown) = (self.api.clone(), authority.server_config(), self.shutdown.clone());
        tokio::spawn(async move { api.serve(listener, tls, shutdown).await.expect("it serves") });
        address
    }
}
