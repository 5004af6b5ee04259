//! An API client that knows every master and goes to one that answers.
//!
//! All masters show certificates for the same names, so the client asks for `kubernetes` and a connector decides which
//! master that is: the first in its list that takes a TCP connection and finishes a TLS handshake in time. HTTP/2 pings
//! end a connection whose master has stopped answering, and the next request goes to another one.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
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
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower::{Layer, Service};

/// The name that every master's certificate carries.
const SERVER_NAME: &str = "kubernetes";
/// How long one master may take to accept a connection and finish the handshake before the next is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const PING_INTERVAL: Duration = Duration::from_secs(3);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// A client over `masters` (`host:port`), in order of preference.
pub fn connect(masters: Vec<String>, tls: ClientConfig) -> anyhow::Result<kube::Client> {
    anyhow::ensure!(!masters.is_empty(), "no master to talk to is given");
    let mut tls = tls;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let connector = FailoverConnector { masters: masters.into(), preferred: Arc::new(AtomicUsize::new(0)), tls: Arc::new(tls) };
    let http = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .http2_keep_alive_while_idle(true)
        .http2_adaptive_window(true)
        .build::<_, Body>(connector);
    let base: Uri = format!("https://{SERVER_NAME}/").parse()?;
    Ok(kube::Client::new(BaseUriLayer::new(base).layer(http), "default"))
}

#[derive(Clone)]
struct FailoverConnector {
    masters: Arc<[String]>,
    /// The index of the master that answered last.
    preferred: Arc<AtomicUsize>,
    tls: Arc<ClientConfig>,
}

impl FailoverConnector {
    async fn connect(self) -> io::Result<MasterStream> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for step in 0..self.masters.len() {
            let index = (first + step) % self.masters.len();
            let master = &self.masters[index];
            match timeout(CONNECT_TIMEOUT, self.connect_to(master)).await {
                Ok(Ok(stream)) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(stream);
                }
                Ok(Err(error)) => failures.push(format!("{master}: {error}")),
                Err(_elapsed) => failures.push(format!("{master}: no answer within {CONNECT_TIMEOUT:?}")),
            }
        }
        Err(io::Error::new(io::ErrorKind::NotConnected, format!("no master answers ({})", failures.join("; "))))
    }

    async fn connect_to(&self, master: &str) -> io::Result<MasterStream> {
        let stream = TcpStream::connect(master).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
        let stream = TlsConnector::from(self.tls.clone()).connect(name, stream).await?;
        Ok(MasterStream(TokioIo::new(stream)))
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

/// A TLS connection to one master, HTTP/2 by agreement.
struct MasterStream(TokioIo<TlsStream<TcpStream>>);

impl Connection for MasterStream {
    fn connected(&self) -> Connected {
        Connected::new().negotiated_h2()
    }
}

impl hyper::rt::Read for MasterStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: hyper::rt::ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl hyper::rt::Write for MasterStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
