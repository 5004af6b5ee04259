//! The listener: mutual TLS, HTTP/2, and each call handed to its service.

use std::{convert::Infallible, future::poll_fn, net::SocketAddr, pin::Pin, sync::Arc, task, time::Duration};

use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, body::Body};
use tower::{BoxError, Service};

use crate::{
    answer::TakesReplacement,
    caller::Caller,
    cork::Corked,
    pages::Page,
    proto::{
        etcdserverpb::{
            auth_server::AuthServer, cluster_server::ClusterServer, kv_server::KvServer, lease_server::LeaseServer,
            maintenance_server::MaintenanceServer, watch_server::WatchServer,
        },
        v3electionpb::election_server::ElectionServer,
        v3lockpb::lock_server::LockServer,
    },
    server::EtcdServer,
    transport_error::Answer,
};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long running requests may take to end after the server was told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait after a failed accept: the process is out of file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// Requests of one client share one connection.
const MAXIMUM_STREAMS: u32 = 65_536;
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// A longer message is not read; etcd's limit. Requests that write are refused from [`crate::check::REQUEST_BYTES`] on.
const MESSAGE_BYTES: usize = crate::check::REQUEST_BYTES + (512 << 10);

/// Why the server could not begin to serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the address of the listener is not known: {0}")]
    Listener(#[from] std::io::Error),
}

impl EtcdServer {
    /// Serves the API on a listener until `shutdown` is cancelled; running requests then have a few seconds to end. `tls` must ask
    /// clients for a certificate and verify it.
    ///
    /// # Errors
    /// When the listener is broken from the start.
    pub async fn serve(
        self,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        let address = listener.local_addr()?;
        tracing::info!(%address, "serving the etcd API");
        let acceptor = TlsAcceptor::from(tls);
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let (server, acceptor, shutdown) = (self.clone(), acceptor.clone(), shutdown.clone());
                    connections.spawn(server.connection(stream, peer, acceptor, shutdown));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
        self.inner.shutdown.cancel();
        connections.close();
        if tokio::time::timeout(DRAIN_TIMEOUT, connections.wait()).await.is_err() {
            tracing::info!(open = connections.len(), "closing connections that are still open");
        }
        Ok(())
    }

    async fn connection(self, stream: TcpStream, peer: SocketAddr, acceptor: TlsAcceptor, shutdown: CancellationToken) {
        // Answers are small and should not wait for one another.
        let _ = stream.set_nodelay(true);
        let corked = Corked::new(stream);
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(corked.clone())).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "TLS handshake error");
                return;
            }
            Err(_) => return,
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let Some(caller) = certificate.and_then(Caller::of) else {
            tracing::warn!(%peer, "turned away a client without a certificate, or with a node's");
            return;
        };
        corked.cork();
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAXIMUM_STREAMS)
            .initial_connection_window_size(8 << 20)
            .initial_stream_window_size(2 << 20)
            .keep_alive_interval(Some(KEEP_ALIVE))
            .keep_alive_timeout(KEEP_ALIVE);
        let services = TowerToHyperService::new(Services::new(self, caller));
        let connection = builder.serve_connection(TokioIo::new(stream), services);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = releasing(connection.as_mut(), &corked) => ended,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                match tokio::time::timeout(DRAIN_TIMEOUT, releasing(connection, &corked)).await {
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

/// Drives a connection, and releases what it has written whenever it has nothing more to say for now.
async fn releasing<C: Future<Output = Result<(), BoxError>>>(
    mut connection: Pin<&mut C>,
    corked: &Corked<TcpStream>,
) -> Result<(), BoxError> {
    poll_fn(|context| {
        let ended = connection.as_mut().poll(context);
        match (ended, corked.poll_release(context)) {
            (task::Poll::Pending, task::Poll::Ready(Err(error))) => task::Poll::Ready(Err(error.into())),
            (ended, _) => ended,
        }
    })
    .await
}

/// Every service, for one caller.
#[derive(Clone)]
struct Services {
    server: EtcdServer,
    caller: Caller,
}

impl Services {
    fn new(server: EtcdServer, caller: Caller) -> Self {
        Self { server, caller }
    }
}

impl Service<Request<Incoming>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _context: &mut task::Context<'_>) -> task::Poll<Result<(), Infallible>> {
        task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.caller);
        request.extensions_mut().insert(TakesReplacement);
        let server = self.server.clone();
        let uri = request.uri().clone();
        if let Some(page) = Page::at(uri.path()) {
            return Answer::new(Box::pin(async move { Ok(server.page(page, request.method()).await) }), uri);
        }
        let service = uri.path().trim_start_matches('/').split('/').next().unwrap_or_default();
        let answer: BoxFuture<'static, Result<Self::Response, Infallible>> = match service {
            "etcdserverpb.KV" => KvServer::new(server).max_decoding_message_size(MESSAGE_BYTES).call(request),
            "etcdserverpb.Watch" => WatchServer::new(server).call(request),
            "etcdserverpb.Lease" => LeaseServer::new(server).call(request),
            "etcdserverpb.Cluster" => ClusterServer::new(server).call(request),
            "etcdserverpb.Maintenance" => MaintenanceServer::new(server).call(request),
            "etcdserverpb.Auth" => AuthServer::new(server).call(request),
            "v3lockpb.Lock" => LockServer::new(server).call(request),
            "v3electionpb.Election" => ElectionServer::new(server).call(request),
            unknown => {
                let status = Status::unimplemented(format!("unknown service {unknown}"));
                Box::pin(std::future::ready(Ok(status.into_http())))
            }
        };
        Answer::new(answer, uri)
    }
}
