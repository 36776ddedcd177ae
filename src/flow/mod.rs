//! Flows: the key that names a connection, and the table that pins it to its backend.
//!
//! A flow is always named from the client's side: client address and port, VIP address and port,
//! protocol. Replies of a NAT backend are turned into that key before any look-up, so that one
//! entry serves both directions.

pub mod bindings;
mod bucket;
pub mod clients;
pub mod entry;
mod family;
pub mod fragments;
mod layout;
pub mod return_hops;
pub mod sources;
mod stacked;
pub mod table;
pub mod tuple;
pub mod writer;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// An IPv4 or IPv6 address as two words; IPv4 is held IPv4-mapped (`::ffff:a.b.c.d`, RFC 4291).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// The first 64 bits, as a number.
    pub high: u64,
    /// The last 64 bits, as a number.
    pub low: u64,
}

impl Address {
    const MAPPED: u64 = 0xffff_0000_0000;

    /// From the 4 bytes of an IPv4 header.
    #[inline]
    pub const fn from_v4(bytes: [u8; 4]) -> Self {
        Self { high: 0, low: Self::MAPPED | u32::from_be_bytes(bytes) as u64 }
    }

    /// From the 16 bytes of an IPv6 header.
    #[inline]
    pub const fn from_v6(bytes: [u8; 16]) -> Self {
        let bits = u128::from_be_bytes(bytes);
        #[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
        Self { high: (bits >> 64) as u64, low: bits as u64 }
    }

    /// Whether this is an IPv4 address.
    #[inline]
    pub const fn is_v4(self) -> bool {
        self.high == 0 && self.low >> 32 == Self::MAPPED >> 32
    }

    /// The address as two words, the high one first.
    #[inline]
    pub const fn words(self) -> [u64; 2] {
        [self.high, self.low]
    }

    /// The IPv4 bytes (the last 32 bits, whatever the family).
    #[inline]
    pub const fn v4_octets(self) -> [u8; 4] {
        let [.., a, b, c, d] = self.low.to_be_bytes();
        [a, b, c, d]
    }

    /// The 16 bytes, IPv4 as IPv4-mapped.
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

/// Transport protocol; the value is the IP protocol number (IANA), but for [`Protocol::Any`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Protocol {
    /// All of an address, whatever their number: a flow is then all packets from a client to it,
    /// without ports. (255 is reserved by IANA; 0 marks free entries of flow tables.)
    Any = 255,
    /// TCP (RFC 9293).
    Tcp = 6,
    /// UDP (RFC 768).
    Udp = 17,
}

impl Protocol {
    /// `"tcp"`, `"udp"` or `"any"`, as in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// From an IP protocol number, if it is one that has ports for us.
    #[inline]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }
}

/// The five-tuple of a flow, from the client's side. Ports in host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Who opened the flow.
    pub client: Address,
    /// Where it was opened to.
    pub vip: Address,
    /// The client's port.
    pub client_port: u16,
    /// The VIP's port.
    pub vip_port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl FlowKey {
    /// The key as five words, equal if and only if the keys are: what chooses a backend is hashed
    /// from these, on every box alike.
    #[inline]
    pub const fn words(&self) -> [u64; 5] {
        let tail =
            (self.client_port as u64) << 48 | (self.vip_port as u64) << 32 | self.protocol as u64;
        [self.client.high, self.client.low, self.vip.high, self.vip.low, tail]
    }

    /// The client's address and port.
    pub fn client_socket(&self) -> SocketAddr {
        SocketAddr::new(self.client.into(), self.client_port)
    }

    /// The VIP's address and port.
    pub fn vip_socket(&self) -> SocketAddr {
        SocketAddr::new(self.vip.into(), self.vip_port)
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
