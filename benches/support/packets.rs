//! Packets made from the number of their flow, so that ten million flows need no list of keys.

use std::net::IpAddr;

use etherparse::{PacketBuilder, TcpHeader};
use holdfast::flow::{Address, FlowKey, Protocol};

use super::rig::{CLIENT_MAC, Family, backend_mac, nic_mac};

/// The VIP's port.
pub const VIP_PORT: u16 = 80;
/// The backends' port, with `nat`.
pub const BACKEND_PORT: u16 = 8080;
/// Payload of an IPv4 packet: 60 bytes in memory, 64 with the frame check sequence on a wire.
/// IPv6 packets have none, and 74 bytes.
const PAYLOAD_V4: &[u8] = b"fill60";

/// Where a client's address and port are in a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    Source,
    Destination,
}

/// A TCP packet that lacks its client: address and port are zero, and the checksums are those of
/// such a packet.
pub struct Template {
    bytes: Vec<u8>,
    family: Family,
    client: Client,
    ip_sum: u16,
    tcp_sum: u16,
}

impl Template {
    /// From a client to the VIP.
    pub fn request(family: Family, syn: bool) -> Self {
        let (client, vip) = ((nobody(family), 0), (family.vip(), VIP_PORT));
        Self::new(family, Client::Source, (CLIENT_MAC, nic_mac(0)), client, vip, syn)
    }

    /// From a NAT backend to a client.
    pub fn reply(family: Family, backend: u16) -> Self {
        let (from, client) = ((family.backend(backend), BACKEND_PORT), (nobody(family), 0));
        let macs = (backend_mac(backend), nic_mac(0));
        Self::new(family, Client::Destination, macs, from, client, false)
    }

    fn new(
        family: Family,
        client: Client,
        (source_mac, destination_mac): ([u8; 6], [u8; 6]),
        (source, source_port): (IpAddr, u16),
        (destination, destination_port): (IpAddr, u16),
        syn: bool,
    ) -> Self {
        let mut header = TcpHeader::new(source_port, destination_port, 1_000, 65_000);
        (header.syn, header.ack) = (syn, !syn);
        let builder = PacketBuilder::ethernet2(source_mac, destination_mac);
        let (builder, payload) = match (source, destination) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                (builder.ipv4(a.octets(), b.octets(), 64), PAYLOAD_V4)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => (builder.ipv6(a.octets(), b.octets(), 64), &b""[..]),
            _ => unreachable!("one family"),
        };
        let mut bytes = Vec::new();
        builder.tcp_header(header).write(&mut bytes, payload).unwrap();
        let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let (ip_sum, tcp_sum) = match family {
            Family::V4 => (word(24), word(50)),
            Family::V6 => (0, word(70)),
        };
        Self { bytes, family, client, ip_sum, tcp_sum }
    }

    /// Bytes of the packet.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Writes the packet of `flow`, whole and with right checksums.
    #[inline]
    pub fn write(&self, flow: u64, data: &mut [u8]) {
        data.copy_from_slice(&self.bytes);
        let (address, port) = client(self.family, flow);
        let source = usize::from(self.client == Client::Destination);
        match self.family {
            Family::V4 => {
                let octets = address.v4_octets();
                data[26 + 4 * source..30 + 4 * source].copy_from_slice(&octets);
                data[34 + 2 * source..36 + 2 * source].copy_from_slice(&port.to_be_bytes());
                let sum = add_words(0, &octets);
                data[24..26].copy_from_slice(&patched(self.ip_sum, sum));
                data[50..52].copy_from_slice(&patched(self.tcp_sum, sum + u32::from(port)));
            }
            Family::V6 => {
                let octets = address.octets();
                data[22 + 16 * source..38 + 16 * source].copy_from_slice(&octets);
                data[54 + 2 * source..56 + 2 * source].copy_from_slice(&port.to_be_bytes());
                let sum = add_words(0, &octets);
                data[70..72].copy_from_slice(&patched(self.tcp_sum, sum + u32::from(port)));
            }
        }
    }
}

fn nobody(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([0; 4]),
        Family::V6 => IpAddr::from([0; 16]),
    }
}

/// The client of a flow: 2^24 addresses, and other ports when those are used up. No two flows
/// below 10^12 have the same.
#[inline]
pub fn client(family: Family, flow: u64) -> (Address, u16) {
    let low = flow & 0xff_ffff;
    let port = 1024 + (scramble(low) % 64_000 + (flow >> 24)) % 64_000;
    let address = match family {
        Family::V4 => Address { high: 0, low: 0xffff_0a00_0000 | low },
        Family::V6 => Address { high: 0x2001_0db8_0001_0000, low: 0x1_0000_0000 | low },
    };
    (address, u16::try_from(port).unwrap())
}

/// The key that a flow table knows the flow by.
#[inline]
pub fn flow_key(family: Family, flow: u64) -> FlowKey {
    let (client, client_port) = client(family, flow);
    let vip = Address::from(family.vip());
    FlowKey { client, vip, client_port, vip_port: VIP_PORT, protocol: Protocol::Tcp }
}

fn add_words(sum: u32, bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).fold(sum, |sum, word| sum + u32::from(word[0]) * 256 + u32::from(word[1]))
}

/// A checksum after words that were zero have got a sum of `added` (RFC 1624).
#[inline]
fn patched(old: u16, added: u32) -> [u8; 2] {
    let mut sum = u32::from(!old) + added;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

/// Mixes all bits of a number (the finaliser of splitmix64, Vigna 2015).
#[inline]
pub const fn scramble(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A cheap source of random flow numbers.
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number below `bound`.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        let wide = u128::from(scramble(self.0)) * u128::from(bound);
        u64::try_from(wide >> 64).unwrap()
    }
}
