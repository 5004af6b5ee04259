//! What the binary tells the API server.

use std::{fmt, net::Ipv4Addr, str::FromStr, sync::Arc, time::Duration};

use trireme_api::{cidr::Ipv4Cidr, clock::Clock, registry::Registry};
use trireme_storage::store::Store;

/// How an API server is made.
pub struct ApiServerConfig {
    pub store: Arc<dyn Store>,
    pub registry: Registry,
    pub clock: Arc<dyn Clock>,
    /// The addresses of Services.
    pub service_cidr: ServiceCidr,
    /// The client side of TLS towards node agents; without it, logs cannot be read.
    pub node_client_tls: Option<rustls::ClientConfig>,
    pub version: VersionInfo,
    /// Where UIDs, generated names and allocations come from.
    pub random_seed: [u8; 32],
    /// How many events each resource remembers for watches that resume.
    pub watch_history: usize,
    /// How often a watcher that takes bookmarks gets one; a minute in Kubernetes.
    pub bookmark_period: Duration,
    /// Further paths of the binary, served to whoever may see them.
    pub extra: axum::Router,
}

/// What `/version` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionInfo {
    /// The minor version of Kubernetes 1 that is spoken.
    pub minor: u32,
    /// The version of Trireme: `0.1.0`.
    pub trireme: String,
    pub git_commit: String,
    /// RFC 3339.
    pub build_date: String,
}

impl VersionInfo {
    /// `v1.36.0+trireme-0.1.0`
    pub fn git_version(&self) -> String {
        format!("v1.{}.0+trireme-{}", self.minor, self.trireme)
    }
}

/// The range of Services' addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceCidr(Ipv4Cidr);

/// How large the range may be, as lengths of its prefix.
const PREFIX_LENGTHS: std::ops::RangeInclusive<u8> = 8..=30;

/// A configuration that cannot be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("{0:?} is not an IPv4 CIDR of /8 to /30, such as 10.96.0.0/12")]
    ServiceCidr(String),
}

impl Default for ServiceCidr {
    fn default() -> Self {
        Self(Ipv4Cidr::SERVICES)
    }
}

impl ServiceCidr {
    /// How many addresses can be given out: neither the first nor the last of the range is.
    pub fn size(self) -> u32 {
        (u32::MAX >> self.0.prefix_length()) - 1
    }

    /// The address at a position from 0 on.
    pub fn address(self, position: u32) -> Ipv4Addr {
        assert!(position < self.size(), "position {position} is outside of {self}");
        Ipv4Addr::from(u32::from(self.0.first()) + 1 + position)
    }

    /// Whether an address can be given out.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        self.0.contains(address) && address != self.0.first() && address != self.0.last()
    }

    /// The address of the `kubernetes` Service.
    pub fn first(self) -> Ipv4Addr {
        self.address(0)
    }
}

impl fmt::Display for ServiceCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ServiceCidr {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let range = text.parse::<Ipv4Cidr>().ok().filter(|range| PREFIX_LENGTHS.contains(&range.prefix_length()));
        range.map(Self).ok_or_else(|| ConfigError::ServiceCidr(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_addresses() {
        let range: ServiceCidr = "10.0.0.5/30".parse().expect("a CIDR");
        assert_eq!(range.to_string(), "10.0.0.4/30");
        assert_eq!(range.size(), 2);
        assert_eq!(range.first(), Ipv4Addr::new(10, 0, 0, 5));
        assert_eq!(range.address(1), Ipv4Addr::new(10, 0, 0, 6));
        let inside = [4, 5, 6, 7, 8].map(|last| range.contains(Ipv4Addr::new(10, 0, 0, last)));
        assert_eq!(inside, [false, true, true, false, false]);
        let largest: ServiceCidr = "10.0.0.0/8".parse().expect("a CIDR");
        assert_eq!(largest.address(largest.size() - 1), Ipv4Addr::new(10, 255, 255, 254));
        for broken in ["", "10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0.0/31"] {
            assert!(broken.parse::<ServiceCidr>().is_err(), "{broken}");
        }
    }
}
