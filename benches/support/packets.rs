//! Packets generated from the number of their flow, so that ten million flows need no list of keys.

use std::net::IpAddr;

use etherparse::{PacketBuilder, TcpHeader};
use holdfast::net::{Address, FlowKey, Protocol};

use super::rig::{CLIENT_MAC, Family, backend_mac, nic_mac, tagged};

/// The VIP's port.
pub const VIP_PORT: u16 = 80;
/// The backends' port, with `nat`.
pub const BACKEND_PORT: u16 = 8080;
/// Payload of an IPv4 packet: 60 bytes in memory, 64 with the frame check sequence on a wire. IPv6
/// packets have none, and 74 bytes.
const PAYLOAD_V4: &[u8] = b"fill60";

/// Payload of the fragments in bytes, including the first one's TCP header: a multiple of 8.
const FRAGMENT_LEN: u8 = 24;

/// A packet without one address and port, as a rule the client's: they are zero, and the checksums
/// are those of such a packet.
pub struct Template {
    bytes: Vec<u8>,
    family: Family,
    address_at: usize,
    /// `None` for fragments and echo requests.
    port_at: Option<usize>,
    sums: Vec<Sum>,
}

/// A checksum, and whether it covers the address and the port.
#[derive(Clone, Copy)]
struct Sum {
    at: usize,
    value: u16,
    address: bool,
    port: bool,
}

impl Template {
    /// Creates a packet from a client to the VIP.
    pub fn request(family: Family, syn: bool) -> Self {
        let (client, vip) = ((nobody(family), 0), (family.vip(), VIP_PORT));
        Self::tcp(family, 0, (CLIENT_MAC, nic_mac(0)), client, vip, syn)
    }

    /// Creates a packet from a NAT backend to a client, or to a full-NAT source.
    pub fn reply(family: Family, backend: u16) -> Self {
        let (from, client) = ((family.backend(backend), BACKEND_PORT), (nobody(family), 0));
        let macs = (backend_mac(backend), nic_mac(0));
        Self::tcp(family, 1, macs, from, client, false)
    }

    /// Creates a fragment of an IPv4 packet from a client to the VIP, which does not complete its
    /// datagram.
    pub fn fragment(later: bool) -> Self {
        let mut template = Self::request(Family::V4, false);
        template.bytes.resize(34 + usize::from(FRAGMENT_LEN), 0);
        template.bytes[17] = 20 + FRAGMENT_LEN;
        // "More fragments", and the offset in units of 8 bytes.
        template.bytes[20..22].copy_from_slice(&[0x20, u8::from(later) * FRAGMENT_LEN / 8]);
        template.bytes[24..26].fill(0);
        let sum = patched(u16::MAX, add_words(0, &template.bytes[14..34]));
        template.bytes[24..26].copy_from_slice(&sum);
        template.port_at = template.port_at.filter(|_| !later);
        // No stage checks the transport checksum of a fragment.
        template.with_sums(&[(24, true, false)])
    }

    /// Creates an echo request from a client to the VIP, IPv4.
    pub fn echo() -> Self {
        let builder = PacketBuilder::ethernet2(CLIENT_MAC, nic_mac(0));
        let builder = builder.ipv4([0; 4], v4(Family::V4.vip()), 64).icmpv4_echo_request(1, 1);
        Self::built(Family::V4, 26, None, |bytes| builder.write(bytes, PAYLOAD_V4).unwrap())
            .with_sums(&[(24, true, false)])
    }

    /// Creates an ICMP error to the VIP about a packet that it sent to a client, IPv4.
    pub fn error() -> Self {
        let (vip, client) = ((Family::V4.vip(), VIP_PORT), (nobody(Family::V4), 0));
        let quoted = Self::tcp(Family::V4, 1, (nic_mac(0), CLIENT_MAC), vip, client, false);
        let builder = PacketBuilder::ethernet2(CLIENT_MAC, nic_mac(0));
        let builder = builder.ipv4(v4(Family::V4.router()), v4(vip.0), 64);
        // RFC 792: host unreachable.
        let builder = builder.icmpv4_raw(3, 1, [0; 4]);
        // The quote begins at 42. Its address and its checksum cancel each other in the sum.
        Self::built(Family::V4, 58, Some(64), |bytes| {
            builder.write(bytes, &quoted.bytes[14..42]).unwrap();
        })
        .with_sums(&[(52, true, false), (36, false, true)])
    }

    /// Adds a VLAN tag.
    pub fn tagged(mut self, vlan: u16) -> Self {
        self.bytes = tagged(self.bytes, Some(vlan));
        self.address_at += 4;
        self.port_at = self.port_at.map(|at| at + 4);
        self.sums.iter_mut().for_each(|sum| sum.at += 4);
        self
    }

    /// Creates a TCP packet without its source (0) or its destination (1).
    fn tcp(
        family: Family,
        missing: usize,
        (source_mac, destination_mac): ([u8; 6], [u8; 6]),
        (source, source_port): (IpAddr, u16),
        (destination, destination_port): (IpAddr, u16),
        syn: bool,
    ) -> Self {
        // Beyond the first byte after the SYN: a flow that goes on is proven.
        let sequence = if syn { 1_000 } else { 1_002 };
        let mut header = TcpHeader::new(source_port, destination_port, sequence, 65_000);
        (header.syn, header.ack) = (syn, !syn);
        let builder = PacketBuilder::ethernet2(source_mac, destination_mac);
        let (builder, payload) = match (source, destination) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                (builder.ipv4(a.octets(), b.octets(), 64), PAYLOAD_V4)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => (builder.ipv6(a.octets(), b.octets(), 64), &b""[..]),
            _ => unreachable!("one family"),
        };
        let builder = builder.tcp_header(header);
        let (address_at, port_at) = match family {
            Family::V4 => (26 + 4 * missing, 34 + 2 * missing),
            Family::V6 => (22 + 16 * missing, 54 + 2 * missing),
        };
        Self::built(family, address_at, Some(port_at), |bytes| {
            builder.write(bytes, payload).unwrap();
        })
        .with_sums(match family {
            Family::V4 => &[(24, true, false), (50, true, true)],
            Family::V6 => &[(70, true, true)],
        })
    }

    fn built(
        family: Family,
        address_at: usize,
        port_at: Option<usize>,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Self {
        let mut bytes = Vec::new();
        write(&mut bytes);
        Self { bytes, family, address_at, port_at, sums: Vec::new() }
    }

    /// Sets the checksums: position of each, and whether it covers the address and the port.
    fn with_sums(mut self, sums: &[(usize, bool, bool)]) -> Self {
        let word = |at: usize| u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]);
        let sum = |&(at, address, port)| Sum { at, value: word(at), address, port };
        self.sums = sums.iter().map(sum).collect();
        self
    }

    /// Returns the length of the packet in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Writes the packet of `flow`, complete and with valid checksums.
    #[inline]
    pub fn write(&self, flow: u64, data: &mut [u8]) {
        self.write_for(client(self.family, flow), data);
    }

    /// Writes the packet of any address and port.
    #[inline]
    pub fn write_for(&self, (address, port): (Address, u16), data: &mut [u8]) {
        data.copy_from_slice(&self.bytes);
        let octets = address.octets();
        let octets = if self.family == Family::V4 { &octets[12..] } else { &octets[..] };
        data[self.address_at..][..octets.len()].copy_from_slice(octets);
        if let Some(at) = self.port_at {
            data[at..][..2].copy_from_slice(&port.to_be_bytes());
        }
        let words = add_words(0, octets);
        for sum in &self.sums {
            let added = u32::from(sum.address) * words + u32::from(sum.port) * u32::from(port);
            data[sum.at..][..2].copy_from_slice(&patched(sum.value, added));
        }
    }
}

fn v4(address: IpAddr) -> [u8; 4] {
    Address::from(address).v4_octets()
}

fn nobody(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([0; 4]),
        Family::V6 => IpAddr::from([0; 16]),
    }
}

/// Returns the client of a flow: 2^24 addresses, and further ports when those are used up. No two
/// flows below 10^12 have the same.
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

/// Returns the key of a flow in a flow table.
#[inline]
pub fn flow_key(family: Family, flow: u64) -> FlowKey {
    let (client, client_port) = client(family, flow);
    let vip = Address::from(family.vip());
    FlowKey { client, vip, client_port, vip_port: VIP_PORT, protocol: Protocol::Tcp }
}

fn add_words(sum: u32, bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).fold(sum, |sum, word| sum + u32::from(word[0]) * 256 + u32::from(word[1]))
}

/// Returns a checksum after words that were zero have been set to a sum of `added` (RFC 1624).
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
    /// Creates the source from a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number below `bound`.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        let wide = u128::from(scramble(self.0)) * u128::from(bound);
        u64::try_from(wide >> 64).unwrap()
    }
}
