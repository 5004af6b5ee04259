//! One HTTP/2 connection to a store: as thin as it can be, since the client shares the machine with the servers that it measures.

use std::task::{Context, Poll};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::body::Body;
use tower::Service;

use crate::dial;

const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
const STREAM_WINDOW_BYTES: u32 = 8 << 20;

/// A connection. Clones share it.
#[derive(Clone)]
pub struct Connection {
    requests: SendRequest<Body>,
}

/// Unlike masters, the servers of other stores are known by their hosts' names.
async fn open(url: &Uri, tls: &ClientConfig, protocol: &str) -> Result<TlsStream<TcpStream>> {
    let host = url.host().with_context(|| format!("{url} names no host"))?.trim_matches(['[', ']']);
    let port = url.port_u16().with_context(|| format!("{url} names no port"))?;
    let tls = dial::speaking(protocol, tls.clone());
    dial::dial((host, port), host, &tls).await.with_context(|| format!("cannot connect to {url}"))
}

impl Connection {
    pub async fn open(url: &Uri, tls: &ClientConfig) -> Result<Self> {
        let stream = open(url, tls, "h2").await?;
        let (requests, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .max_concurrent_streams(u32::MAX)
            .handshake(TokioIo::new(stream))
            .await
            .with_context(|| format!("cannot speak HTTP/2 with {url}"))?;
        // Its end shows in the requests.
        tokio::spawn(connection);
        Ok(Self { requests })
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Response<Incoming>, hyper::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.requests.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.requests.send_request(request))
    }
}

/// The text at `path` of a server, over HTTP/1.1, in which both kinds of server speak of themselves.
pub async fn page(url: &Uri, path: &str, tls: &ClientConfig) -> Result<String> {
    let stream = open(url, tls, "http/1.1").await?;
    let (mut requests, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let authority = url.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(path).header(http::header::HOST, authority).body(Empty::<Bytes>::new())?;
    let response = requests.send_request(request).await.with_context(|| format!("no answer from {url}"))?;
    let status = response.status();
    let text = response.into_body().collect().await?.to_bytes();
    connection.abort();
    anyhow::ensure!(status.is_success(), "{url}{path} answers {status}");
    Ok(String::from_utf8_lossy(&text).into_owned())
}
