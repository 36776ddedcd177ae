//! IPv4 and IPv6 addresses in one type.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// An IPv4 or IPv6 address as two words; IPv4 is stored IPv4-mapped (`::ffff:a.b.c.d`, RFC 4291).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// The first 64 bits, as a number.
    pub high: u64,
    /// The last 64 bits, as a number.
    pub low: u64,
}

impl Address {
    const MAPPED: u64 = 0xffff_0000_0000;

    /// Creates an address from the 4 bytes of an IPv4 header.
    #[inline]
    pub const fn from_v4(bytes: [u8; 4]) -> Self {
        Self { high: 0, low: Self::MAPPED | u32::from_be_bytes(bytes) as u64 }
    }

    /// Creates an address from the 16 bytes of an IPv6 header.
    #[inline]
    pub const fn from_v6(bytes: [u8; 16]) -> Self {
        let bits = u128::from_be_bytes(bytes);
        #[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
        Self { high: (bits >> 64) as u64, low: bits as u64 }
    }

    /// Returns whether this is an IPv4 address.
    #[inline]
    pub const fn is_v4(self) -> bool {
        self.high == 0 && self.low >> 32 == Self::MAPPED >> 32
    }

    /// Returns the address as two words, the high one first.
    #[inline]
    pub const fn words(self) -> [u64; 2] {
        [self.high, self.low]
    }

    /// Returns the IPv4 bytes (the last 32 bits, whatever the family).
    #[inline]
    pub const fn v4_octets(self) -> [u8; 4] {
        let [.., a, b, c, d] = self.low.to_be_bytes();
        [a, b, c, d]
    }

    /// Returns the 16 bytes, IPv4 as IPv4-mapped.
    #[inline]
    pub const fn octets(self) -> [u8; 16] {
        ((self.high as u128) << 64 | self.low as u128).to_be_bytes()
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::from_v4(ip.octets()),
            IpAddr::V6(ip) => Self::from_v6(ip.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        if address.is_v4() {
            Self::from(address.v4_octets())
        } else {
            Self::from(Ipv6Addr::from(address.octets()))
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn addresses_there_and_back() {
        for text in ["192.0.2.1", "0.0.0.0", "255.255.255.255", "2001:db8::1", "::1", "::"] {
            let ip: IpAddr = text.parse().unwrap();
            let address = Address::from(ip);
            assert_eq!(IpAddr::from(address), ip);
            assert_eq!(address.is_v4(), ip.is_ipv4(), "{text}");
        }
    }
}
