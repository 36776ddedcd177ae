//! Address prefixes and port ranges: listeners with more than one address or port.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Address, Family};

/// Bits of an address; an IPv4 address is the last 32 of them ([`Address`]).
pub const ADDRESS_BITS: u8 = 128;
/// Difference between the length of an IPv4-mapped prefix and its length in IPv4.
const MAPPED_BITS: u8 = 96;

/// An address prefix, or a single address. The bits after the prefix are 0.
///
/// In text, a prefix is `192.0.2.0/24`, and a single address has no length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    address: Address,
    len: u8,
}

impl Network {
    /// Creates the network of a single address.
    #[inline]
    pub const fn single(address: Address) -> Self {
        Self { address, len: ADDRESS_BITS }
    }

    /// Creates the network of the first `len` bits of an address (of 128, also for IPv4; more count
    /// as 128).
    #[inline]
    pub const fn of(address: Address, len: u8) -> Self {
        let len = if len > ADDRESS_BITS { ADDRESS_BITS } else { len };
        let bits = bits(address) & mask(len);
        Self { address: Address::from_v6(bits.to_be_bytes()), len }
    }

    /// Returns the lowest address.
    #[inline]
    pub const fn address(self) -> Address {
        self.address
    }

    /// Returns the length of the prefix in bits, of 128 also for IPv4.
    #[inline]
    pub const fn len(self) -> u8 {
        self.len
    }

    /// Returns whether the prefix is empty: the network of all addresses.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Returns whether the network is a single address.
    #[inline]
    pub const fn is_single(self) -> bool {
        self.len == ADDRESS_BITS
    }

    /// Returns whether the addresses are IPv4.
    #[inline]
    pub const fn is_v4(self) -> bool {
        self.len >= MAPPED_BITS && self.address.is_v4()
    }

    /// Returns the family of the network's addresses.
    #[inline]
    pub const fn family(self) -> Family {
        if self.is_v4() { Family::V4 } else { Family::V6 }
    }

    /// Returns whether `address` is in the network.
    #[inline]
    pub fn contains(self, address: Address) -> bool {
        Self::of(address, self.len).address == self.address
    }

    /// Returns whether all addresses of `other` are in the network.
    #[inline]
    pub fn covers(self, other: Self) -> bool {
        self.len <= other.len && self.contains(other.address)
    }

    /// Returns the prefixes that make up this one without `inner`, which it covers: one for each
    /// bit by which `inner` is longer.
    pub(super) fn without(self, inner: Self) -> impl Iterator<Item = Self> {
        (self.len + 1..=inner.len).map(move |len| {
            let sibling = bits(inner.address) ^ 1 << (ADDRESS_BITS - len);
            Self::of(Address::from_v6(sibling.to_be_bytes()), len)
        })
    }

    /// Returns the lowest address in the standard library's type.
    pub fn ip(self) -> IpAddr {
        self.address.into()
    }

    /// Returns the prefix length as counted in the address's family.
    const fn family_len(self) -> u8 {
        if self.is_v4() { self.len - MAPPED_BITS } else { self.len }
    }
}

const fn bits(address: Address) -> u128 {
    let [high, low] = address.words();
    (high as u128) << 64 | low as u128
}

/// Returns the mask of the first `len` (at most 128) of 128 bits.
#[inline]
const fn mask(len: u8) -> u128 {
    match u128::MAX.checked_shr(len as u32) {
        Some(rest) => !rest,
        None => u128::MAX,
    }
}

impl From<IpAddr> for Network {
    fn from(ip: IpAddr) -> Self {
        Self::single(ip.into())
    }
}

impl From<[u8; 4]> for Network {
    fn from(bytes: [u8; 4]) -> Self {
        Self::single(Address::from_v4(bytes))
    }
}

impl From<IpNet> for Network {
    fn from(net: IpNet) -> Self {
        let more = if net.addr().is_ipv4() { MAPPED_BITS } else { 0 };
        Self::of(net.addr().into(), net.prefix_len() + more)
    }
}

impl FromStr for Network {
    type Err = ipnet::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<IpAddr>() {
            Ok(ip) => Ok(ip.into()),
            Err(_) => text.parse::<IpNet>().map(Self::from),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_single() {
            return self.address.fmt(f);
        }
        write!(f, "{}/{}", self.address, self.family_len())
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// An inclusive range of ports; `first` is not above `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    /// The lowest port.
    pub first: u16,
    /// The highest port.
    pub last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };

    /// Creates the range of one port.
    #[inline]
    pub const fn single(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// Returns whether the range is one port.
    #[inline]
    pub const fn is_single(self) -> bool {
        self.first == self.last
    }

    /// Returns whether `port` is in the range.
    #[inline]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// Returns whether the ranges overlap.
    pub const fn meets(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Returns the number of ports, 1 to 65,536.
    pub fn count(self) -> usize {
        usize::from(self.last.saturating_sub(self.first)) + 1
    }

    /// Splits the range into prefixes of port numbers: (port, bits). 30 at most.
    pub fn prefixes(self) -> impl Iterator<Item = (u16, u8)> {
        let mut next = Some(u32::from(self.first));
        let end = u32::from(self.last) + 1;
        std::iter::from_fn(move || {
            let first = next.filter(|&first| first < end)?;
            // The largest block that begins here and ends within the range.
            let aligned = first.trailing_zeros().min(16);
            let bits = (0..=aligned).rev().find(|bits| first + (1 << bits) <= end)?;
            next = Some(first + (1 << bits));
            Some((u16::try_from(first).ok()?, u8::try_from(16 - bits).ok()?))
        })
    }
}

impl From<u16> for PortRange {
    fn from(port: u16) -> Self {
        Self::single(port)
    }
}

/// Parses the configuration's form: a number, or two with a hyphen.
impl FromStr for PortRange {
    type Err = BadPorts;

    fn from_str(text: &str) -> Result<Self, BadPorts> {
        let port = |text: &str| text.trim().parse::<u16>().map_err(|_| BadPorts);
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(text)?, port(text)?),
        };
        if first == 0 || first > last { Err(BadPorts) } else { Ok(Self { first, last }) }
    }
}

/// Error: the text is not a range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no port, and no range of ports such as 8000-8999")]
pub struct BadPorts;

/// One port is serialized as a number, a range as a string.
impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.is_single() {
            return serializer.serialize_u16(self.first);
        }
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Port(u16),
            Range(String),
        }
        match Raw::deserialize(deserializer)? {
            Raw::Port(port) => Ok(port.into()),
            Raw::Range(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_single() {
            return self.first.fmt(f);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn texts_there_and_back() {
        for (text, shown, bits) in [
            ("192.0.2.10", "192.0.2.10", 128),
            ("192.0.2.10/32", "192.0.2.10", 128),
            ("192.0.2.10/24", "192.0.2.0/24", 120),
            ("0.0.0.0/0", "0.0.0.0/0", 96),
            ("2001:db8::1", "2001:db8::1", 128),
            ("2001:db8:1::/96", "2001:db8:1::/96", 96),
            ("2001:db8:1::9/96", "2001:db8:1::/96", 96),
            ("::/0", "::/0", 0),
        ] {
            let network: Network = text.parse().unwrap();
            assert_eq!((network.to_string().as_str(), network.len()), (shown, bits), "{text}");
            assert_eq!(network.is_v4(), text.contains('.'), "{text}");
        }
        for text in ["", "192.0.2.0/33", "2001:db8::/129", "192.0.2/24", "a"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_is_in_a_network_or_not() {
        let contains = |network: &str, address: &str| {
            let address = address.parse::<IpAddr>().unwrap().into();
            network.parse::<Network>().unwrap().contains(address)
        };
        assert!(contains("192.0.2.0/24", "192.0.2.0") && contains("192.0.2.0/24", "192.0.2.255"));
        assert!(!contains("192.0.2.0/24", "192.0.3.0"));
        assert!(!contains("192.0.2.0/24", "::c000:201"), "an IPv6 address that ends alike");
        assert!(contains("2001:db8::/96", "2001:db8::ffff:ffff"));
        assert!(!contains("2001:db8::/96", "2001:db8:0:0:0:1::"));
        assert!(contains("0.0.0.0/0", "1.2.3.4") && !contains("0.0.0.0/0", "::1"));
    }

    #[test]
    fn a_range_is_the_prefixes_that_make_it_up() {
        for (first, last, most) in
            [(1, 65_535, 16), (0, 65_535, 1), (80, 80, 1), (8000, 8999, 30), (1, 65_534, 30)]
        {
            let range = PortRange { first, last };
            let prefixes: Vec<_> = range.prefixes().collect();
            assert!(prefixes.len() <= most, "{range}: {prefixes:?}");
            for port in 0..=u16::MAX {
                let within = |&&(start, bits): &&(u16, u8)| {
                    u32::from(port ^ start) >> (16 - u32::from(bits)) == 0
                };
                let found = prefixes.iter().filter(within).count();
                assert_eq!(found, usize::from(range.contains(port)), "{range}: {port}");
            }
        }
    }
}
