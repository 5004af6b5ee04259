//! Connections to masters' etcd API, for the commands that use the store: which masters there are, and with which certificate.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use clap::Args;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use trireme_etcd::proto::etcdserverpb::{
    RangeRequest, StatusRequest, kv_client::KvClient, maintenance_client::MaintenanceClient,
};

use crate::{
    cli::DataDirArgs,
    local::{layout::Layout, spec::ClusterSpec},
    pki::{self, TlsPaths},
    tls,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer that is no stream may take so long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The port of the etcd API where an endpoint names none.
const DEFAULT_PORT: u16 = 2379;
/// Streamed pieces, and ranges, may be larger than tonic's default.
const MESSAGE_BYTES: usize = 64 << 20;

/// Which masters a command is about, and how it proves that it may ask them: those of a local cluster, or any.
#[derive(Clone, Debug, Args)]
pub struct MastersArgs {
    #[command(flatten)]
    pub folder: DataDirArgs,
    /// The masters' etcd API, `host:port`, separated by commas; without it the masters of the local cluster are meant.
    #[arg(long, env = "TRIREME_ENDPOINTS", value_name = "ENDPOINTS", value_delimiter = ',', requires_all = ["cacert", "cert", "key"])]
    pub endpoints: Vec<String>,
    /// The authority's certificate.
    #[arg(long, env = "TRIREME_CACERT", value_name = "FILE", requires = "endpoints")]
    pub cacert: Option<PathBuf>,
    /// A certificate that the authority has signed, for a member of `system:masters`.
    #[arg(long, env = "TRIREME_CERT", value_name = "FILE", requires = "endpoints")]
    pub cert: Option<PathBuf>,
    /// The certificate's key.
    #[arg(long, env = "TRIREME_KEY", value_name = "FILE", requires = "endpoints")]
    pub key: Option<PathBuf>,
}

/// The masters that were named, and the keys to ask them with.
pub struct Masters {
    /// `host:port` of each, with the name under which it is told of.
    pub endpoints: Vec<NamedEndpoint>,
    tls: ClientConfig,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedEndpoint {
    pub name: String,
    pub address: String,
}

/// `host:port` of an endpoint in any of the forms that etcdctl takes.
fn address(endpoint: &str) -> Result<String> {
    if endpoint.starts_with("http://") {
        bail!("{endpoint}: masters speak TLS only; write https://, or leave it out");
    }
    let address = endpoint.strip_prefix("https://").unwrap_or(endpoint).trim_end_matches('/');
    let has_port = address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    match (address.is_empty(), has_port) {
        (true, _) => bail!("`{endpoint}` is not an endpoint of the form host:port"),
        (false, true) => Ok(address.to_owned()),
        (false, false) => Ok(format!("{address}:{DEFAULT_PORT}")),
    }
}

impl Masters {
    /// Those that the arguments mean.
    pub fn find(args: &MastersArgs) -> Result<Self> {
        let (endpoints, paths) = match (&args.cacert, &args.cert, &args.key) {
            (Some(ca), Some(certificate), Some(key)) => {
                let named = |endpoint: &String| {
                    let address = address(endpoint)?;
                    Ok(NamedEndpoint { name: address.clone(), address })
                };
                let endpoints = args.endpoints.iter().map(named).collect::<Result<Vec<_>>>()?;
                (endpoints, TlsPaths { ca: ca.clone(), certificate: certificate.clone(), key: key.clone() })
            }
            _ => {
                let layout = Layout::find(args.folder.data_dir.as_deref())?;
                let spec = ClusterSpec::load_existing(&layout)?;
                let named = spec
                    .masters
                    .iter()
                    .map(|master| NamedEndpoint { name: master.name.clone(), address: spec.etcd_address(master).to_string() });
                (named.collect(), pki::admin_paths(&layout.pki()))
            }
        };
        let mut tls = tls::client(&paths)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { endpoints, tls })
    }

    /// Connects to one of them.
    pub async fn connect(&self, endpoint: &NamedEndpoint) -> Result<Master> {
        let address = endpoint.address.clone();
        let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host).trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).with_context(|| format!("`{address}` does not name a server"))?;
        let tls = TlsConnector::from(std::sync::Arc::new(self.tls.clone()));
        let connector = tower::service_fn(move |_: http::Uri| {
            let (address, name, tls) = (address.clone(), name.clone(), tls.clone());
            async move {
                let stream = TcpStream::connect(&address).await?;
                stream.set_nodelay(true)?;
                tls.connect(name, stream).await.map(TokioIo::new)
            }
        });
        // The URI is never resolved: the connector knows where to go.
        let nowhere = Endpoint::from_static("http://master");
        let channel = tokio::time::timeout(CONNECT_TIMEOUT, nowhere.connect_with_connector(connector))
            .await
            .with_context(|| format!("{} does not answer", endpoint.name))?
            .with_context(|| format!("cannot connect to {}", endpoint.name))?;
        Ok(Master { name: endpoint.name.clone(), channel })
    }

    /// Connects to the first that can answer for the whole group: it has a leader, and everything that was acknowledged anywhere.
    pub async fn connect_to_any(&self) -> Result<Master> {
        let mut reasons = Vec::new();
        for endpoint in &self.endpoints {
            let tried = async {
                let master = self.connect(endpoint).await?;
                master.catch_up().await?;
                Ok::<_, anyhow::Error>(master)
            };
            match tried.await {
                Ok(master) => return Ok(master),
                Err(error) => reasons.push(format!("{error:#}")),
            }
        }
        bail!("no master answers: {}", reasons.join("; "))
    }
}

/// One master's etcd API.
#[derive(Clone)]
pub struct Master {
    pub name: String,
    channel: Channel,
}

impl Master {
    pub fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }

    pub fn key_values(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }

    /// Waits until the master has everything that was acknowledged anywhere before. Returns its revision then.
    pub async fn catch_up(&self) -> Result<i64> {
        let nothing = RangeRequest { key: b"\0".to_vec().into(), count_only: true, ..RangeRequest::default() };
        let mut client = self.key_values();
        let answer = self.within(client.range(nothing)).await?;
        Ok(answer.header.map_or(0, |header| header.revision))
    }

    /// The newest revision that the master has.
    pub async fn revision(&self) -> Result<i64> {
        let mut client = self.maintenance();
        let answer = self.within(client.status(StatusRequest::default())).await?;
        Ok(answer.header.map_or(0, |header| header.revision))
    }

    /// Waits for an answer, and says who gave it when it is a refusal.
    pub async fn within<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T> {
        self.within_limit(ANSWER_TIMEOUT, call).await
    }

    /// As [`Master::within`], for what takes longer.
    pub async fn within_limit<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T> {
        let answered =
            tokio::time::timeout(limit, call).await.with_context(|| format!("{} gave no answer within {limit:?}", self.name))?;
        answered.map(tonic::Response::into_inner).map_err(|status| refusal(&self.name, &status))
    }
}

/// What a master's refusal is told as.
pub fn refusal(name: &str, status: &Status) -> anyhow::Error {
    anyhow::anyhow!("{name}: {}", status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_taken_as_etcdctl_takes_them() {
        for (endpoint, expected) in [
            ("10.0.0.1:2379", "10.0.0.1:2379"),
            ("https://10.0.0.1:2379", "10.0.0.1:2379"),
            ("https://m1.example/", "m1.example:2379"),
            ("[::1]:2379", "[::1]:2379"),
        ] {
            assert_eq!(address(endpoint).unwrap(), expected);
        }
        for bad in ["http://10.0.0.1:2379", "", "https://"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
