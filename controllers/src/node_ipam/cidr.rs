//! Ranges of IPv4 addresses.

use std::fmt::Display;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A range of IPv4 addresses in CIDR notation, for example `10.244.0.0/16`. No bit is set outside the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv4Cidr {
    base: u32,
    prefix: u8,
}

/// Why a text is not a CIDR.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an IPv4 CIDR: {why}")]
pub struct CidrError {
    text: String,
    why: &'static str,
}

impl Ipv4Cidr {
    /// The range pods have by default: `10.244.0.0/16`.
    pub const PODS: Ipv4Cidr = Ipv4Cidr { base: 0x0af4_0000, prefix: 16 };

    /// The range that holds `address` and has `prefix` fixed bits; `None` for more than 32 of them.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        (prefix <= 32).then(|| Ipv4Cidr { base: u32::from(address) & mask(prefix), prefix })
    }

    /// The first address.
    pub fn base(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base)
    }

    /// How many leading bits are fixed.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// How many ranges of `prefix` bits fit in; none if they are larger than this one.
    pub fn subnets(self, prefix: u8) -> u64 {
        if prefix > 32 { 0 } else { prefix.checked_sub(self.prefix).map_or(0, |bits| 1_u64 << bits) }
    }

    /// The range of `prefix` bits at this position; `None` if there is none.
    pub fn subnet(self, prefix: u8, index: u64) -> Option<Self> {
        let offset = (index < self.subnets(prefix)).then(|| index << (32 - u32::from(prefix)))?;
        let base = u32::try_from(u64::from(self.base) + offset).ok()?;
        Some(Ipv4Cidr { base, prefix })
    }

    /// The first and last position of the subnets of `prefix` bits that share an address with `other`; `None` if none does.
    pub fn overlapped(self, prefix: u8, other: Ipv4Cidr) -> Option<(u64, u64)> {
        if self.subnets(prefix) == 0 {
            return None;
        }
        let (first, last) = (self.base.max(other.base), self.last().min(other.last()));
        let position = |address: u32| u64::from(address - self.base) >> (32 - u32::from(prefix));
        (first <= last).then(|| (position(first), position(last)))
    }

    fn last(self) -> u32 {
        self.base | !mask(self.prefix)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl Display for Ipv4Cidr {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.base(), self.prefix)
    }
}

impl FromStr for Ipv4Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let refuse = |why| CidrError { text: text.to_owned(), why };
        let (address, prefix) = text.split_once('/').ok_or_else(|| refuse("it has no prefix length"))?;
        let address: Ipv4Addr = address.parse().map_err(|_| refuse("the address is not IPv4"))?;
        let prefix = prefix.parse().map_err(|_| refuse("the prefix length is not a number up to 32"))?;
        let cidr = Ipv4Cidr::new(address, prefix).ok_or_else(|| refuse("the prefix length is more than 32"))?;
        if cidr.base() == address { Ok(cidr) } else { Err(refuse("address bits are set outside the prefix")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cidr(text: &str) -> Ipv4Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn texts_are_read_and_refused() {
        assert_eq!(cidr("10.244.0.0/16").to_string(), "10.244.0.0/16");
        assert_eq!(cidr("10.244.0.0/16"), Ipv4Cidr::PODS);
        assert_eq!(cidr("0.0.0.0/0").to_string(), "0.0.0.0/0");
        for bad in ["10.244.0.0", "10.244.0.0/33", "10.244.0.1/16", "::/64", "10.0.0.0/-1", "10.0.0.0/300", ""] {
            assert!(bad.parse::<Ipv4Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn subnets_are_counted_and_found() {
        let range = cidr("10.244.0.0/16");
        assert_eq!((range.subnets(24), range.subnets(16), range.subnets(8), range.subnets(40)), (256, 1, 0, 0));
        assert_eq!(range.subnet(24, 255), Some(cidr("10.244.255.0/24")));
        assert_eq!(range.subnet(24, 256), None);
        assert_eq!(cidr("0.0.0.0/0").subnet(32, u64::from(u32::MAX)), Some(cidr("255.255.255.255/32")));
    }

    #[test]
    fn overlap_is_in_positions() {
        let range = cidr("10.244.0.0/16");
        let cases = [
            ("10.244.3.0/24", Some((3, 3))),
            ("10.244.2.0/23", Some((2, 3))),
            ("10.244.3.128/25", Some((3, 3))),
            ("10.0.0.0/8", Some((0, 255))),
            ("10.245.0.0/24", None),
            ("10.243.255.0/24", None),
        ];
        for (other, expected) in cases {
            assert_eq!(range.overlapped(24, cidr(other)), expected, "{other}");
        }
        assert_eq!(range.overlapped(8, range), None);
    }

    proptest! {
        #[test]
        fn a_subnet_overlaps_exactly_its_own_position(prefix in 0_u8..=32, longer in 0_u8..=32, address: u32, index: u64) {
            let range = Ipv4Cidr::new(Ipv4Addr::from(address), prefix).unwrap();
            let count = range.subnets(longer);
            prop_assume!(count > 0);
            let subnet = range.subnet(longer, index % count).unwrap();
            prop_assert_eq!(range.overlapped(longer, subnet), Some((index % count, index % count)));
            prop_assert_eq!(subnet.to_string().parse::<Ipv4Cidr>().unwrap(), subnet);
        }
    }
}
