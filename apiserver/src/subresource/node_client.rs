//! HTTPS to node agents, with a client certificate.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Reaches node agents over mutual TLS.
pub struct NodeClient {
    connector: TlsConnector,
}

/// Why an agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("dial tcp {0}: {1}")]
    Connect(SocketAddr, std::io::Error),
    #[error("dial tcp {0}: i/o timeout")]
    Timeout(SocketAddr),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Request(#[from] http::Error),
}

impl NodeClient {
    /// `tls` trusts the agents' authority and holds the API server's client certificate.
    pub fn new(mut tls: rustls::ClientConfig) -> Self {
        // The connection is spoken HTTP/1.1 to.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self { connector: TlsConnector::from(Arc::new(tls)) }
    }

    /// Asks an agent. The answer's body comes as the agent sends it; the connection closes when the body is dropped.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub async fn get(&self, address: SocketAddr, path_and_query: &str) -> Result<Response<Incoming>, NodeError> {
        let connect = async {
            let stream = TcpStream::connect(address).await?;
            self.connector.connect(server_name(address.ip()), stream).await
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .map_err(|_| NodeError::Timeout(address))?
            .map_err(|error| NodeError::Connect(address, error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // It ends when the body has been read or dropped; an error shows in the body too.
            let _ = connection.await;
        });
        let request =
            Request::get(path_and_query).header(http::header::HOST, address.to_string()).body(Empty::<Bytes>::new().boxed())?;
        Ok(sender.send_request(request).await?)
    }
}

fn server_name(address: IpAddr) -> ServerName<'static> {
    ServerName::IpAddress(address.into())
}
