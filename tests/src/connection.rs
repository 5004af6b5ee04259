//! One TCP connection to a master, over which requests of any form can be sent, one after another.

use std::{fs, path::Path, sync::Arc};

use http::{Method, Request, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Bytes,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// HTTP/1.1 over TLS with the administrator's certificate. It does not reconnect.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub code: StatusCode,
    /// The body as JSON; null when it is none.
    pub body: Value,
}

impl Connection {
    /// # Panics
    /// When the connection cannot be made.
    pub async fn open(port: u16, cluster_folder: &Path) -> Self {
        let pki = cluster_folder.join("pki");
        let read = |name: &str| fs::read(pki.join(name)).unwrap_or_else(|error| panic!("cannot read {name}: {error}"));
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&read("ca.crt")).expect("a certificate")).expect("a usable authority");
        let chain = vec![CertificateDer::from_pem_slice(&read("admin.crt")).expect("a certificate")];
        let key = PrivateKeyDer::from_pem_slice(&read("admin.key")).expect("a key");
        let tls = ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key).expect("a usable key");
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the master listens");
        let name = ServerName::try_from("127.0.0.1").expect("an address");
        let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await.expect("TLS is agreed on");
        let (sender, connection) = handshake(TokioIo::new(stream)).await.expect("HTTP is spoken");
        tokio::spawn(connection);
        Self { sender }
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Panics
    /// When the master has closed the connection.
    pub async fn send(&mut self, method: Method, path: &str, content_type: &str, body: impl Into<Bytes>) -> Answer {
        self.sender.ready().await.expect("the connection is still usable");
        let request = Request::builder().method(method).uri(path).header("host", "127.0.0.1").header(CONTENT_TYPE, content_type);
        let request = request.body(Full::new(body.into())).expect("the test's request is well formed");
        let answer = self.sender.send_request(request).await.expect("the connection is still usable");
        let code = answer.status();
        let body = answer.into_body().collect().await.expect("the whole answer arrives").to_bytes();
        Answer { code, body: serde_json::from_slice(&body).unwrap_or_default() }
    }
}
