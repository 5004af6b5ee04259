//! An API client that knows every master and goes to one that answers.
//!
//! All masters show certificates for the same names, so the client asks for `kubernetes` and a connector decides which
//! master that is: the first in its list that takes a TCP connection and finishes a TLS handshake in time. HTTP/2 pings
//! end a connection whose master has stopped answering, and so do failures of its requests one after the other ([`masters`]);
//! the next request goes to another one.

mod masters;

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use kube::client::{Body, middleware::BaseUriLayer};
use rustls::ClientConfig;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::client::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tower::{Layer, Service};

use self::masters::{JudgeLayer, Masters};
use crate::dial::{self, MASTER, dial};

/// How long one master may take to accept a connection and finish the handshake before the next is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const PING_INTERVAL: Duration = Duration::from_secs(3);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// A client over `masters` (`host:port`), in order of preference.
pub fn connect(masters: Vec<String>, tls: ClientConfig) -> anyhow::Result<kube::Client> {
    anyhow::ensure!(!masters.is_empty(), "no master to talk to is given");
    let masters = Masters::new(masters);
    let connector = FailoverConnector { masters: Arc::clone(&masters), tls: dial::speaking("h2", tls) };
    let http = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .http2_keep_alive_while_idle(true)
        .http2_adaptive_window(true)
        .build::<_, Body>(connector);
    let base: Uri = format!("https://{MASTER}/").parse()?;
    Ok(kube::Client::new(BaseUriLayer::new(base).layer(JudgeLayer(masters).layer(http)), "default"))
}

#[derive(Clone)]
struct FailoverConnector {
    masters: Arc<Masters>,
    tls: Arc<ClientConfig>,
}

impl FailoverConnector {
    async fn connect(self) -> io::Result<MasterStream> {
        let (masters, ended) = self.masters.to_try();
        let mut failures = Vec::new();
        for (index, master) in masters {
            match timeout(CONNECT_TIMEOUT, dial(&master, MASTER, &self.tls)).await {
                Ok(Ok(stream)) => {
                    self.masters.connected(index, &ended);
                    return Ok(MasterStream::new(stream, ended));
                }
                Ok(Err(error)) => failures.push(format!("{master}: {error}")),
                Err(_elapsed) => failures.push(format!("{master}: no answer within {CONNECT_TIMEOUT:?}")),
            }
        }
        Err(io::Error::new(io::ErrorKind::NotConnected, format!("no master answers ({})", failures.join("; "))))
    }
}

impl Service<Uri> for FailoverConnector {
    type Response = MasterStream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<MasterStream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

/// A TLS connection to one master, HTTP/2 by agreement. It breaks when the master is given up.
struct MasterStream {
    stream: TokioIo<TlsStream<TcpStream>>,
    ended: CancellationToken,
    /// Wakes the reader when it has ended.
    ending: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl MasterStream {
    fn new(stream: TlsStream<TcpStream>, ended: CancellationToken) -> Self {
        Self { stream: TokioIo::new(stream), ending: Box::pin(ended.clone().cancelled_owned()), ended }
    }
}

impl Connection for MasterStream {
    fn connected(&self) -> Connected {
        Connected::new().negotiated_h2()
    }
}

impl hyper::rt::Read for MasterStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: hyper::rt::ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if self.ended.is_cancelled() || self.ending.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the master answers no requests")));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl hyper::rt::Write for MasterStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use http::{Request, Response, StatusCode};
    use http_body_util::Full;
    use hyper_util::server::conn::auto::Builder;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{Api, api::PostParams};
    use rustls_pki_types::PrivateKeyDer;

    use super::*;

    /// A master that answers everything with this status; it counts its requests.
    async fn master(tls: Arc<rustls::ServerConfig>, status: StatusCode) -> (String, Arc<AtomicUsize>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = tokio_rustls::TlsAcceptor::from(Arc::clone(&tls)).accept(stream).await else { continue };
                let counter = Arc::clone(&counter);
                let service = hyper::service::service_fn(move |_: Request<hyper::body::Incoming>| {
                    counter.fetch_add(1, Ordering::SeqCst);
                    let body = Full::<bytes::Bytes>::from("{\"metadata\":{\"name\":\"made\"}}");
                    async move { Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap()) }
                });
                tokio::spawn(
                    async move { Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await },
                );
            }
        });
        (address, asked)
    }

    #[tokio::test]
    async fn requests_leave_a_master_that_answers_with_errors() {
        crate::tls::install_provider();
        let key = rcgen::generate_simple_self_signed([MASTER.to_owned()]).unwrap();
        let private = PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
        let mut server = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![key.cert.der().clone()], private)
            .unwrap();
        server.alpn_protocols = vec![b"h2".to_vec()];
        let server = Arc::new(server);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(key.cert.der().clone()).unwrap();
        let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();

        let (cut_off, asked) = master(Arc::clone(&server), StatusCode::SERVICE_UNAVAILABLE).await;
        let (good, asked_good) = master(server, StatusCode::CREATED).await;
        let maps: Api<ConfigMap> = Api::namespaced(connect(vec![cut_off, good], tls).unwrap(), "default");
        let mut failures = 0;
        while maps.create(&PostParams::default(), &ConfigMap::default()).await.is_err() {
            failures += 1;
            assert!(failures < 10, "the client stays with the master that is cut off");
        }
        assert_eq!((failures, asked.load(Ordering::SeqCst), asked_good.load(Ordering::SeqCst)), (3, 3, 1));
    }
}
