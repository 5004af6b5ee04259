//! Which masters a command is about, and with which certificate it asks them.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    cli::DataDirArgs,
    local::{layout::Layout, spec::ClusterSpec},
    pki::{self, TlsPaths},
};

/// The port of the etcd API where an endpoint names none.
const DEFAULT_PORT: u16 = 2379;

/// The masters of the local cluster, or any others.
#[derive(Clone, Debug, Args)]
pub struct MastersArgs {
    #[command(flatten)]
    pub folder: DataDirArgs,
    /// Where masters on real machines serve the etcd API: `https://host:2379`, separated by commas; without it the masters of the
    /// local cluster are meant.
    #[arg(long, env = "TRIREME_ENDPOINTS", value_name = "URLS", value_delimiter = ',')]
    pub endpoints: Vec<String>,
    /// The certificate of the cluster's authority [default: the local cluster's].
    #[arg(long, env = "TRIREME_CACERT", value_name = "FILE", requires_all = ["cert", "key"])]
    pub cacert: Option<PathBuf>,
    /// An administrator's certificate [default: the local cluster's].
    #[arg(long, env = "TRIREME_CERT", value_name = "FILE", requires_all = ["cacert", "key"])]
    pub cert: Option<PathBuf>,
    /// The key of that certificate [default: the local cluster's].
    #[arg(long, env = "TRIREME_KEY", value_name = "FILE", requires_all = ["cacert", "cert"])]
    pub key: Option<PathBuf>,
}

/// The masters that were named, and the keys to ask them with.
pub struct Named {
    pub endpoints: Vec<NamedEndpoint>,
    pub keys: TlsPaths,
    /// The cluster on this machine, if it is its masters that are meant.
    pub local: Option<(Layout, ClusterSpec)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedEndpoint {
    /// What it is told of as.
    pub name: String,
    /// `host:port`.
    pub address: String,
}

impl MastersArgs {
    /// The masters that these arguments name.
    pub fn find(&self) -> Result<Named> {
        let layout = Layout::find(self.folder.data_dir.as_deref())?;
        let keys = match (&self.cacert, &self.cert, &self.key) {
            (Some(ca), Some(certificate), Some(key)) => {
                TlsPaths { ca: ca.clone(), certificate: certificate.clone(), key: key.clone() }
            }
            _ => pki::admin_paths(&layout.pki()),
        };
        if self.endpoints.is_empty() {
            let spec = ClusterSpec::load(&layout)?.with_context(|| {
                let folder = layout.root().display();
                format!("{folder} holds no cluster; start one with `trireme up`, or name masters elsewhere with --endpoints")
            })?;
            let named = spec
                .masters
                .iter()
                .map(|master| NamedEndpoint { name: master.name.clone(), address: spec.etcd_address(master).to_string() });
            return Ok(Named { endpoints: named.collect(), keys, local: Some((layout, spec)) });
        }
        let named = |endpoint: &String| address(endpoint).map(|address| NamedEndpoint { name: address.clone(), address });
        let endpoints = self.endpoints.iter().map(named).collect::<Result<Vec<_>>>()?;
        if !keys.certificate.exists() {
            bail!("{} is not there; name the certificates with --cacert, --cert and --key", keys.certificate.display());
        }
        Ok(Named { endpoints, keys, local: None })
    }
}

/// The `host:port` of an endpoint, in any of the forms that etcdctl takes.
pub fn address(endpoint: &str) -> Result<String> {
    if endpoint.starts_with("http://") {
        bail!("`{endpoint}` cannot be used: masters speak TLS only; it must be of the form https://host:2379");
    }
    let address = endpoint.strip_prefix("https://").unwrap_or(endpoint).trim_end_matches('/');
    let (host, port) = match address.rsplit_once(':') {
        // The last colon of an IPv6 address alone stands inside its brackets.
        Some((host, port)) if !port.ends_with(']') => (host, port.parse::<u16>().ok().filter(|port| *port > 0)),
        _ => (address, Some(DEFAULT_PORT)),
    };
    let is_bracketed = host.starts_with('[') && host.ends_with(']') && host.len() > 2;
    let is_name = !host.is_empty() && !host.contains(['/', ':', '[', ']']);
    match port {
        Some(port) if is_bracketed || is_name => Ok(format!("{host}:{port}")),
        _ => bail!("`{endpoint}` is not an endpoint; it must be of the form https://host:2379"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_taken_as_etcdctl_takes_them() {
        for (endpoint, expected) in [
            ("10.0.0.1:2379", "10.0.0.1:2379"),
            ("https://10.0.0.1:2379", "10.0.0.1:2379"),
            ("https://m1:6744/", "m1:6744"),
            ("https://m1.example/", "m1.example:2379"),
            ("m1", "m1:2379"),
            ("[::1]:6744", "[::1]:6744"),
            ("https://[::1]", "[::1]:2379"),
        ] {
            assert_eq!(address(endpoint).unwrap(), expected);
        }
        for bad in
            ["http://m1:2379", "https://:2379", "m1:x", "m1:0", "m1:70000", "::1", "[]:1", "https://", "m1/path", "ftp://m1", ""]
        {
            assert!(address(bad).unwrap_err().to_string().contains("https://host:2379"), "{bad}");
        }
    }
}
