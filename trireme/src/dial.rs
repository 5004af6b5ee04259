//! TLS connections to servers, and gRPC channels over them: every one that this process opens as a client begins here.

use std::{io, sync::Arc};

use anyhow::Result;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

/// The name that every master's certificate carries, whatever its addresses are.
pub const MASTER: &str = "kubernetes";

/// Opens a connection to `address`, where a server must have a certificate for `name`. What is spoken over it is what `tls` offers.
///
/// # Errors
/// When nobody listens there, or it is not that server.
pub async fn dial(address: impl ToSocketAddrs, name: &str, tls: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
    TlsConnector::from(Arc::clone(tls)).connect(name, stream).await
}

/// The same keys, to speak one protocol: `h2`, `http/1.1`.
pub fn speaking(protocol: &str, mut tls: ClientConfig) -> Arc<ClientConfig> {
    tls.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    Arc::new(tls)
}

/// A gRPC channel to the master at `address` (`host:port`). `tls` must speak `h2`.
///
/// # Errors
/// Why there is none, without the layers in between.
pub async fn channel(address: &str, tls: &Arc<ClientConfig>) -> Result<Channel> {
    let (tls, address) = (Arc::clone(tls), address.to_owned());
    let connector = tower::service_fn(move |_: http::Uri| {
        let (tls, address) = (Arc::clone(&tls), address.clone());
        async move { dial(&address, MASTER, &tls).await.map(TokioIo::new) }
    });
    // The URI is never resolved: the connector knows where to go.
    Endpoint::from_static("http://master").connect_with_connector(connector).await.map_err(|error| {
        let mut cause: &dyn std::error::Error = &error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        anyhow::anyhow!("{cause}")
    })
}
