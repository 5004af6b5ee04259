//! Connections to peers: dialled at need, one for each lane, so that a large message never holds up a heartbeat.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::{CLUSTER_HEADER, FOLDER_HEADER, MESSAGE_BYTES, TARGET_HEADER, TlsError, tls::TlsEnds};
use crate::{
    config::Timing,
    transport::PeerTls,
    types::{Member, NodeId},
    wire::proto::peer_client::PeerClient,
};

/// A stream of bytes to a peer, before TLS.
pub trait PeerStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> PeerStream for T {}

/// Opens connections. Tests and simulations put their own network in its place.
#[async_trait]
pub trait Dialer: Send + Sync + 'static {
    /// Connects to `target`, which listens at `address` (`host:port`).
    async fn dial(&self, target: NodeId, address: &str) -> io::Result<Box<dyn PeerStream>>;
}

/// Dials over TCP.
pub struct TcpDialer;

#[async_trait]
impl Dialer for TcpDialer {
    async fn dial(&self, _target: NodeId, address: &str) -> io::Result<Box<dyn PeerStream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Heartbeats, votes, read indexes, status: small and urgent.
    Control,
    /// Log entries.
    Replication,
    /// Proposals on their way to the leader.
    Forward,
    Snapshot,
}

/// A client of one peer.
pub type Client = PeerClient<InterceptedService<Channel, Stamp>>;

/// Stamps each request with the cluster and the member that it is meant for.
#[derive(Clone)]
pub struct Stamp {
    cluster: MetadataValue<Ascii>,
    target: MetadataValue<Ascii>,
    folder: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Stamp {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(CLUSTER_HEADER, self.cluster.clone());
        request.metadata_mut().insert(TARGET_HEADER, self.target.clone());
        if let Some(folder) = &self.folder {
            request.metadata_mut().insert(FOLDER_HEADER, folder.clone());
        }
        Ok(request)
    }
}

/// A connection is one of these.
type ChannelKey = (NodeId, String, Lane);

struct Shared {
    dialer: Arc<dyn Dialer>,
    tls: TlsEnds,
    cluster: MetadataValue<Ascii>,
    connect_timeout: Duration,
    keep_alive_interval: Duration,
    keep_alive_timeout: Duration,
    open: Mutex<HashMap<ChannelKey, Channel>>,
}

/// The connections of this member, made when first used and again whenever they break.
#[derive(Clone)]
pub struct Channels {
    shared: Arc<Shared>,
}

impl Channels {
    /// # Errors
    /// When the keys do not fit the cluster.
    pub fn new(dialer: Arc<dyn Dialer>, tls: &PeerTls, cluster_id: &str, timing: &Timing) -> Result<Self, TlsError> {
        let tls = TlsEnds::new(tls, cluster_id)?;
        let cluster = cluster_id.parse().map_err(|_| TlsError::ClusterId(cluster_id.to_owned()))?;
        let shared = Shared {
            dialer,
            tls,
            cluster,
            connect_timeout: timing.connect_timeout,
            keep_alive_interval: timing.keep_alive_interval,
            keep_alive_timeout: timing.keep_alive_timeout,
            open: Mutex::new(HashMap::new()),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Shows another certificate in new connections; those that are open stay.
    pub fn replace_keys(&self, tls: &PeerTls) -> Result<(), TlsError> {
        self.shared.tls.replace(tls)
    }

    pub(super) fn tls(&self) -> &TlsEnds {
        &self.shared.tls
    }

    pub(super) fn cluster(&self) -> &MetadataValue<Ascii> {
        &self.shared.cluster
    }

    /// A client of whoever lives at `address`, for [`PeerClient::join`] alone.
    pub fn client_at(&self, address: &str) -> Client {
        self.client(NodeId::default(), address, Lane::Control)
    }

    /// A client of `target`, whatever its data folder. It connects when it is first used.
    pub fn client(&self, target: NodeId, address: &str, lane: Lane) -> Client {
        self.stamped_client(target, address, None, lane)
    }

    /// A client of `target` with the data folder that the group knows it by.
    pub fn client_of(&self, target: NodeId, member: &Member, lane: Lane) -> Client {
        self.stamped_client(target, &member.address, member.folder, lane)
    }

    fn stamped_client(&self, target: NodeId, address: &str, folder: Option<u64>, lane: Lane) -> Client {
        let key = (target, address.to_owned(), lane);
        let channel = self.shared.open.lock().entry(key).or_insert_with(|| self.channel(target, address)).clone();
        let stamp = Stamp {
            cluster: self.shared.cluster.clone(),
            target: MetadataValue::from(target.0),
            folder: folder.map(MetadataValue::from),
        };
        PeerClient::with_interceptor(channel, stamp)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES)
    }

    fn channel(&self, target: NodeId, address: &str) -> Channel {
        let shared = self.shared.clone();
        let address = address.to_owned();
        let connector = tower::service_fn(move |_uri: http::Uri| {
            let shared = shared.clone();
            let address = address.clone();
            async move {
                let connect = connect(&*shared.dialer, target, &address, &shared.tls.client, &shared.tls.name);
                match tokio::time::timeout(shared.connect_timeout, connect).await {
                    Ok(connected) => connected.map(TokioIo::new),
                    Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("connecting to {address} took too long"))),
                }
            }
        });
        // The URI is never resolved: the connector knows where to go.
        Endpoint::from_static("http://peer")
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20)
            .http2_keep_alive_interval(self.shared.keep_alive_interval)
            .keep_alive_timeout(self.shared.keep_alive_timeout)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(connector)
    }

    /// Whether the machine at `address` answers that nobody listens there: the process of `target` is dead then.
    pub async fn is_refused(&self, target: NodeId, address: &str) -> bool {
        let dial = self.shared.dialer.dial(target, address);
        match tokio::time::timeout(self.shared.connect_timeout, dial).await {
            Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionRefused,
            Ok(Ok(_)) | Err(_) => false,
        }
    }

    /// Forgets every connection, so that they close once nothing uses them.
    pub fn close(&self) {
        self.shared.open.lock().clear();
    }
}

async fn connect(
    dialer: &dyn Dialer,
    target: NodeId,
    address: &str,
    tls: &Arc<ClientConfig>,
    name: &ServerName<'static>,
) -> io::Result<tokio_rustls::client::TlsStream<Box<dyn PeerStream>>> {
    let stream = dialer.dial(target, address).await?;
    TlsConnector::from(tls.clone()).connect(name.clone(), stream).await
}
