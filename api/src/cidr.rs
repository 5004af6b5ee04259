//! Ranges of IPv4 addresses.

use std::{fmt, net::Ipv4Addr, str::FromStr};

/// A range of IPv4 addresses in CIDR notation, for example `10.244.0.0/16`. No bit is set outside the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv4Cidr {
    base: u32,
    prefix_length: u8,
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
    pub const PODS: Ipv4Cidr = Ipv4Cidr { base: 0x0af4_0000, prefix_length: 16 };
    /// The range Services have by default: `10.96.0.0/12`.
    pub const SERVICES: Ipv4Cidr = Ipv4Cidr { base: 0x0a60_0000, prefix_length: 12 };

    /// The range that holds `address` and has `prefix_length` fixed bits; `None` for more than 32 of them.
    pub fn new(address: Ipv4Addr, prefix_length: u8) -> Option<Self> {
        (prefix_length <= 32).then(|| Ipv4Cidr { base: u32::from(address) & mask(prefix_length), prefix_length })
    }

    /// Reads a range whose first address is given, where another one would be a slip.
    pub fn from_first(text: &str) -> Result<Self, CidrError> {
        let (address, cidr) = parse(text)?;
        if cidr.first() == address {
            Ok(cidr)
        } else {
            Err(CidrError { text: text.to_owned(), why: "address bits are set outside the prefix" })
        }
    }

    /// The first address.
    pub fn first(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base)
    }

    /// The last address.
    pub fn last(self) -> Ipv4Addr {
        Ipv4Addr::from(self.end())
    }

    /// How many leading bits are fixed.
    pub fn prefix_length(self) -> u8 {
        self.prefix_length
    }

    /// How many addresses it has, the first and the last included.
    pub fn size(self) -> u64 {
        1 << (32 - u32::from(self.prefix_length))
    }

    /// The address at that distance from the first one; `None` if that is outside.
    pub fn nth(self, index: u64) -> Option<Ipv4Addr> {
        let offset = u32::try_from(index).ok().filter(|_| index < self.size())?;
        Some(Ipv4Addr::from(self.base + offset))
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        (self.base..=self.end()).contains(&u32::from(address))
    }

    /// How many ranges of `prefix_length` bits fit in; none if they are larger than this one.
    pub fn subnets(self, prefix_length: u8) -> u64 {
        if prefix_length > 32 { 0 } else { prefix_length.checked_sub(self.prefix_length).map_or(0, |bits| 1_u64 << bits) }
    }

    /// The range of `prefix_length` bits at this position; `None` if there is none.
    pub fn subnet(self, prefix_length: u8, index: u64) -> Option<Self> {
        let offset = (index < self.subnets(prefix_length)).then(|| index << (32 - u32::from(prefix_length)))?;
        let base = u32::try_from(u64::from(self.base) + offset).ok()?;
        Some(Ipv4Cidr { base, prefix_length })
    }

    /// The first and last position of the subnets of `prefix_length` bits that share an address with `other`; `None` if none does.
    pub fn overlapped(self, prefix_length: u8, other: Ipv4Cidr) -> Option<(u64, u64)> {
        if self.subnets(prefix_length) == 0 {
            return None;
        }
        let (first, last) = (self.base.max(other.base), self.end().min(other.end()));
        let position = |address: u32| u64::from(address - self.base) >> (32 - u32::from(prefix_length));
        (first <= last).then(|| (position(first), position(last)))
    }

    fn end(self) -> u32 {
        self.base | !mask(self.prefix_length)
    }
}

fn mask(prefix_length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix_length)).unwrap_or(0)
}

impl fmt::Display for Ipv4Cidr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.first(), self.prefix_length)
    }
}

/// The address of a text, and the range that it lies in.
fn parse(text: &str) -> Result<(Ipv4Addr, Ipv4Cidr), CidrError> {
    let refuse = |why| CidrError { text: text.to_owned(), why };
    let (address, length) = text.split_once('/').ok_or_else(|| refuse("it has no prefix length"))?;
    let address: Ipv4Addr = address.parse().map_err(|_| refuse("the address is not IPv4"))?;
    let length = length.parse().map_err(|_| refuse("the prefix length is not a number up to 32"))?;
    let cidr = Ipv4Cidr::new(address, length).ok_or_else(|| refuse("the prefix length is more than 32"))?;
    Ok((address, cidr))
}

/// Any address of the range may be named, as Kubernetes has it.
impl FromStr for Ipv4Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        parse(text).map(|(_, cidr)| cidr)
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
        assert_eq!((cidr("10.244.0.0/16"), cidr("10.96.0.0/12")), (Ipv4Cidr::PODS, Ipv4Cidr::SERVICES));
        assert_eq!(cidr("0.0.0.0/0").to_string(), "0.0.0.0/0");
        assert_eq!(cidr("10.244.1.7/24"), cidr("10.244.1.0/24"));
        assert_eq!(Ipv4Cidr::from_first("10.244.1.0/24"), Ok(cidr("10.244.1.0/24")));
        for bad in ["10.244.0.0", "10.244.0.0/33", "::/64", "10.0.0/8", "10.0.0.0/-1", "10.0.0.0/300", ""] {
            assert!(bad.parse::<Ipv4Cidr>().is_err(), "{bad}");
            assert!(Ipv4Cidr::from_first(bad).is_err(), "{bad}");
        }
        assert!(Ipv4Cidr::from_first("10.244.0.1/16").is_err());
    }

    #[test]
    fn ranges_know_their_addresses() {
        let range = cidr("10.244.1.0/24");
        assert_eq!((range.first(), range.last()), (Ipv4Addr::new(10, 244, 1, 0), Ipv4Addr::new(10, 244, 1, 255)));
        assert_eq!((range.nth(255), range.nth(256)), (Some(range.last()), None));
        let inside = |text: &str| range.contains(text.parse().unwrap());
        assert!(inside("10.244.1.0") && inside("10.244.1.255") && !inside("10.244.0.255") && !inside("10.244.2.0"));
        let all = cidr("0.0.0.0/0");
        assert_eq!((all.size(), all.nth(u64::from(u32::MAX))), (1 << 32, Some(Ipv4Addr::BROADCAST)));
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
        fn a_subnet_overlaps_exactly_its_own_position(prefix_length in 0_u8..=32, longer in 0_u8..=32, address: u32, index: u64) {
            let range = Ipv4Cidr::new(Ipv4Addr::from(address), prefix_length).unwrap();
            let count = range.subnets(longer);
            prop_assume!(count > 0);
            let subnet = range.subnet(longer, index % count).unwrap();
            prop_assert_eq!(range.overlapped(longer, subnet), Some((index % count, index % count)));
            prop_assert_eq!(subnet.to_string().parse::<Ipv4Cidr>().unwrap(), subnet);
        }
    }
}
