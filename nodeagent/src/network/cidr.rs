//! Ranges of IPv4 addresses.

use std::{fmt, net::Ipv4Addr, str::FromStr};

/// An address range in CIDR notation; the bits behind the prefix are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv4Cidr {
    network: Ipv4Addr,
    prefix_length: u8,
}

impl Ipv4Cidr {
    pub fn new(address: Ipv4Addr, prefix_length: u8) -> Option<Ipv4Cidr> {
        let mask = mask(prefix_length)?;
        Some(Ipv4Cidr { network: Ipv4Addr::from(u32::from(address) & mask), prefix_length })
    }

    pub fn network(&self) -> Ipv4Addr {
        self.network
    }

    pub fn prefix_length(&self) -> u8 {
        self.prefix_length
    }

    /// How many addresses it has, the network's own and the broadcast address included.
    pub fn size(&self) -> u64 {
        1 << (32 - u32::from(self.prefix_length))
    }

    /// The address at that distance from the network's own.
    pub fn nth(&self, index: u64) -> Option<Ipv4Addr> {
        let offset = u32::try_from(index).ok().filter(|_| index < self.size())?;
        u32::from(self.network).checked_add(offset).map(Ipv4Addr::from)
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        Ipv4Cidr::new(address, self.prefix_length) == Some(*self)
    }
}

fn mask(prefix_length: u8) -> Option<u32> {
    match prefix_length {
        0 => Some(0),
        1..=32 => Some(u32::MAX << (32 - u32::from(prefix_length))),
        _ => None,
    }
}

impl FromStr for Ipv4Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Ipv4Cidr, String> {
        let parse = || {
            let (address, prefix_length) = text.split_once('/')?;
            Ipv4Cidr::new(address.parse().ok()?, prefix_length.parse().ok()?)
        };
        parse().ok_or_else(|| format!("{text:?} is no IPv4 CIDR"))
    }
}

impl fmt::Display for Ipv4Cidr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.network, self.prefix_length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_know_their_addresses() {
        let cidr: Ipv4Cidr = "10.244.1.7/24".parse().unwrap();
        assert_eq!(cidr.to_string(), "10.244.1.0/24");
        assert_eq!(cidr.nth(255), Some("10.244.1.255".parse().unwrap()));
        assert_eq!(cidr.nth(256), None);
        assert!(cidr.contains("10.244.1.9".parse().unwrap()) && !cidr.contains("10.244.2.9".parse().unwrap()));
        assert_eq!("0.0.0.0/0".parse::<Ipv4Cidr>().unwrap().size(), 1 << 32);
        for bad in ["10.0.0.0", "10.0.0.0/33", "fd00::/64", "10.0.0/8", ""] {
            assert!(bad.parse::<Ipv4Cidr>().is_err(), "{bad}");
        }
    }
}
