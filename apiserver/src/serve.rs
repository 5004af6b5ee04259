//! The listener: TLS with optional client certificates, HTTP/1.1 and HTTP/2.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{ApiServer, body::BodyError, context::RequestContext};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long running requests may take to end after the server was told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait after a failed accept: the process is out of file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// Watches of one client share one connection.
const MAXIMUM_STREAMS: u32 = 1000;
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Why the server could not begin to serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the address of the listener is not known: {0}")]
    Listener(#[from] std::io::Error),
}

impl ApiServer {
    /// Serves the API on a listener until `shutdown` is cancelled; running requests then have a few seconds to end.
    ///
    /// # Errors
    /// When the listener is broken from the start.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        let address = listener.local_addr()?;
        tracing::info!(%address, "serving the API");
        let acceptor = TlsAcceptor::from(with_protocols(tls));
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let connection = self.clone().connection(stream, peer, acceptor.clone(), shutdown.clone());
                    connections.spawn(connection);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
        self.metrics.is_stopping.store(true, Ordering::Relaxed);
        self.shutdown.cancel();
        connections.close();
        if tokio::time::timeout(DRAIN_TIMEOUT, connections.wait()).await.is_err() {
            tracing::info!(open = connections.len(), "closing connections that are still open");
        }
        Ok(())
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        acceptor: TlsAcceptor,
        shutdown: CancellationToken,
    ) {
        // Watch events are small and should not wait for one another.
        let _ = stream.set_nodelay(true);
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "TLS handshake error");
                return;
            }
            Err(_) => return,
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let context = identity(certificate);
        let service = tower::ServiceBuilder::new()
            .map_request(|request: http::Request<Incoming>| request.map(|body| body.map_err(BodyError::new).boxed_unsync()))
            .service_fn({
                let server = self.clone();
                move |request| {
                    let (server, context) = (server.clone(), context.clone());
                    async move { Ok::<_, std::convert::Infallible>(server.handle(context, request).await) }
                }
            });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(Some(KEEP_ALIVE));
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAXIMUM_STREAMS)
            .keep_alive_interval(Some(KEEP_ALIVE))
            .keep_alive_timeout(KEEP_ALIVE);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                match tokio::time::timeout(DRAIN_TIMEOUT, connection).await {
                    Ok(ended) => ended,
                    Err(_) => return,
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "a connection broke");
        }
    }
}

/// The same configuration, offering HTTP/2 and HTTP/1.1 where it names no protocols.
fn with_protocols(tls: Arc<rustls::ServerConfig>) -> Arc<rustls::ServerConfig> {
    if !tls.alpn_protocols.is_empty() {
        return tls;
    }
    let mut tls = Arc::unwrap_or_clone(tls);
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(tls)
}

/// Who a verified client certificate stands for: its common name is the user, its organisations are the groups.
fn identity(certificate: Option<&CertificateDer<'_>>) -> RequestContext {
    let Some(certificate) = certificate else { return RequestContext::anonymous() };
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return RequestContext::anonymous() };
    let subject = parsed.subject();
    let user = subject.iter_common_name().next().and_then(|name| name.as_str().ok()).filter(|name| !name.is_empty());
    let groups = subject.iter_organization().filter_map(|name| name.as_str().ok().map(str::to_owned));
    match user {
        Some(user) => RequestContext::authenticated(user, groups),
        None => RequestContext::anonymous(),
    }
}
