//! Connections to the etcd API of a cluster with a Rust client of its protocol.

use std::{path::Path, time::Duration};

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Error, Identity};

use crate::{cluster::Cluster, etcdctl::Etcdctl};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Where a cluster's etcd API is, and what lets one in.
#[derive(Clone, Debug)]
pub struct Access {
    pub endpoints: Vec<String>,
    tls: ClientTlsConfig,
}

/// A certificate, its key and the authority that the server's certificate is checked against: PEM files.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    pub authority: &'a str,
    /// None: the client shows no certificate.
    pub identity: Option<(&'a str, &'a str)>,
}

fn read(path: &str) -> Vec<u8> {
    std::fs::read(Path::new(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

impl Access {
    /// Every master of a cluster, as its administrator.
    ///
    /// # Panics
    /// When the cluster does not say how to reach it.
    pub fn of(cluster: &Cluster) -> Self {
        let etcdctl = Etcdctl::of(cluster);
        let identity = Some((etcdctl.variable("CERT"), etcdctl.variable("KEY")));
        Self::with(etcdctl.endpoints(), Files { authority: etcdctl.variable("CACERT"), identity })
    }

    /// Other endpoints, or another client.
    ///
    /// # Panics
    /// When a file cannot be read.
    pub fn with(endpoints: Vec<String>, files: Files<'_>) -> Self {
        let mut tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(files.authority))).domain_name("localhost");
        if let Some((certificate, key)) = files.identity {
            tls = tls.identity(Identity::from_pem(read(certificate), read(key)));
        }
        Self { endpoints, tls }
    }

    /// A connection to one endpoint, counted round and round.
    ///
    /// # Errors
    /// When it is not there, or does not let the client in.
    pub async fn connect(&self, number: usize) -> Result<Channel, Error> {
        let endpoint = Endpoint::from_shared(self.endpoints[number % self.endpoints.len()].clone())?;
        endpoint.tls_config(self.tls.clone())?.connect_timeout(CONNECT_LIMIT).connect().await
    }
}
