//! What `steer.bpf.c` decides, as a pure function: for `holdfast replay`, which has no kernel.
//!
//! Written beside the C code and in its order; `tests/steer_model.rs` runs the real program on
//! thousands of packets and demands the same answer of both.

use hashbrown::{HashMap, HashSet};

use crate::flow::{Address, Protocol};
use crate::forwarding::ListenKey;
use crate::forwarding::steer::SteerRules;

mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const IPV6: u16 = 0x86dd;
    pub const VLAN: u16 = 0x8100;
    pub const QINQ: u16 = 0x88a8;
}

/// Next header values, `is_extension` of steer.bpf.c.
const EXTENSIONS: [u8; 8] = [0, 43, FRAGMENT, 51, 60, 135, 139, 140];
const FRAGMENT: u8 = 44;

const IPV4_FRAGMENT_OFFSET: u16 = 0x1fff;
const IPV4_MORE_FRAGMENTS: u16 = 0x2000;
const IPV6_FRAGMENT_OFFSET: u16 = 0xfff8;
/// `HAS_ANY`.
const HAS_ANY: u32 = 3;
/// VLAN tags that are stepped over.
const MAX_TAGS: usize = 2;

/// `HAS_TCP` and `HAS_UDP`.
const fn protocol_bit(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Any => 0,
        Protocol::Tcp => 1,
        Protocol::Udp => 2,
    }
}

/// Where the program sends a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steered {
    /// To the worker of its queue: it is for a VIP.
    ToVip,
    /// To the worker of its queue: it comes from a NAT backend.
    Return,
    /// To the kernel.
    Kernel,
}

/// The rules of the program, as it looks them up.
#[derive(Debug, Default)]
pub struct SteerModel {
    vips: HashSet<ListenKey>,
    /// Protocols that have a VIP there, as bits.
    vip_addresses: HashMap<Address, u32>,
    returns: HashSet<ListenKey>,
    locals: HashSet<Address>,
}

/// `struct packet`: what is known of a packet's network and transport headers.
struct Packet<'p> {
    source: Address,
    destination: Address,
    /// `None`: neither TCP nor UDP, or not known.
    protocol: Option<Protocol>,
    /// From the ports on; `None` when there are none to be read.
    ports: Option<&'p [u8]>,
    /// To be redirected by destination address alone, for these protocols.
    opaque: u32,
    multicast: bool,
}

impl SteerModel {
    /// The model of a program with these rules.
    pub fn new(rules: &SteerRules) -> Self {
        let mut vip_addresses = HashMap::new();
        for vip in &rules.vips {
            *vip_addresses.entry(vip.address).or_insert(0) |= protocol_bit(vip.protocol);
        }
        Self {
            vips: rules.vips.iter().copied().collect(),
            vip_addresses,
            returns: rules.returns.iter().copied().collect(),
            locals: rules.locals.iter().copied().collect(),
        }
    }

    /// What the program of a NIC with this MAC decides about a packet.
    pub fn decide(&self, nic_mac: [u8; 6], packet: &[u8]) -> Steered {
        let Some(mut packet) = read_packet(nic_mac, packet) else { return Steered::Kernel };
        let ports = packet.read_ports();
        if self.is_for_vip(&packet, ports) {
            Steered::ToVip
        } else if self.is_return(&packet, ports) {
            Steered::Return
        } else {
            Steered::Kernel
        }
    }

    fn is_for_vip(&self, packet: &Packet<'_>, ports: Option<[u16; 2]>) -> bool {
        let listed = |[_, port]: [u16; 2]| packet.listed(&self.vips, packet.destination, port);
        ports.is_some_and(listed)
            || self
                .vip_addresses
                .get(&packet.destination)
                .is_some_and(|protocols| protocols & packet.opaque != 0)
    }

    fn is_return(&self, packet: &Packet<'_>, ports: Option<[u16; 2]>) -> bool {
        let listed = |[port, _]: [u16; 2]| packet.listed(&self.returns, packet.source, port);
        !packet.multicast && ports.is_some_and(listed) && !self.locals.contains(&packet.destination)
    }
}

impl Packet<'_> {
    /// Source and destination port. A packet whose ports are cut off goes by its address.
    fn read_ports(&mut self) -> Option<[u16; 2]> {
        let bytes = self.ports?;
        let Some([s0, s1, d0, d1]) = bytes.first_chunk() else {
            self.opaque |= self.protocol.map_or(0, protocol_bit);
            return None;
        };
        Some([u16::from_be_bytes([*s0, *s1]), u16::from_be_bytes([*d0, *d1])])
    }

    /// The exact port, then any.
    fn listed(&self, map: &HashSet<ListenKey>, address: Address, port: u16) -> bool {
        self.protocol.is_some_and(|protocol| {
            [port, 0].iter().any(|&port| map.contains(&ListenKey { address, port, protocol }))
        })
    }
}

/// `None` for what stays in the kernel whatever its addresses.
fn read_packet(nic_mac: [u8; 6], packet: &[u8]) -> Option<Packet<'_>> {
    match skip_link(nic_mac, packet)? {
        (ethertype::IPV4, network) => read_ipv4(network),
        (ethertype::IPV6, network) => read_ipv6(network),
        _ => None,
    }
}

/// The network header and its ethertype; `None` if it was cut off, or the frame is for somebody
/// else.
fn skip_link(nic_mac: [u8; 6], packet: &[u8]) -> Option<(u16, &[u8])> {
    let (ethernet, mut rest) = packet.split_first_chunk::<14>()?;
    let (destination, [.., t0, t1]) = ethernet.split_first_chunk::<6>()? else { return None };
    if *destination != nic_mac {
        return None;
    }
    let mut protocol = u16::from_be_bytes([*t0, *t1]);
    for _ in 0..MAX_TAGS {
        if !matches!(protocol, ethertype::VLAN | ethertype::QINQ) {
            break;
        }
        let ([_, _, t0, t1], behind) = rest.split_first_chunk()?;
        (protocol, rest) = (u16::from_be_bytes([*t0, *t1]), behind);
    }
    Some((protocol, rest))
}

fn read_ipv4(network: &[u8]) -> Option<Packet<'_>> {
    let [v, _, _, _, _, _, f0, f1, _, next, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        *network.first_chunk::<20>()?;
    let protocol = Protocol::from_number(next)?;
    let len = usize::from(v & 0xf) * 4;
    let fragment = u16::from_be_bytes([f0, f1]);
    let is_fragment = fragment & (IPV4_FRAGMENT_OFFSET | IPV4_MORE_FRAGMENTS) != 0;
    let has_ports = fragment & IPV4_FRAGMENT_OFFSET == 0 && len >= 20;
    Some(Packet {
        source: Address::from_v4([s0, s1, s2, s3]),
        destination: Address::from_v4([d0, d1, d2, d3]),
        protocol: Some(protocol),
        ports: has_ports.then(|| network.get(len..).unwrap_or_default()),
        opaque: if is_fragment || len < 20 { protocol_bit(protocol) } else { 0 },
        multicast: d0 >= 0xe0,
    })
}

fn read_ipv6(network: &[u8]) -> Option<Packet<'_>> {
    let (header, rest) = network.split_first_chunk::<40>()?;
    let ([_, _, _, _, _, _, next, _], addresses) = header.split_first_chunk::<8>()?;
    let (source, destination) = addresses.split_first_chunk::<16>()?;
    let destination = destination.first_chunk::<16>()?;
    let [first, ..] = *destination;
    let packet = Packet {
        source: Address::from_v6(*source),
        destination: Address::from_v6(*destination),
        protocol: Protocol::from_number(*next),
        ports: None,
        opaque: HAS_ANY,
        multicast: first == 0xff,
    };
    match *next {
        _ if packet.protocol.is_some() => Some(Packet { ports: Some(rest), opaque: 0, ..packet }),
        FRAGMENT => read_fragment(packet, rest),
        next => EXTENSIONS.contains(&next).then_some(packet),
    }
}

/// Behind an IPv6 fragment header: whose fragment is it, and has it the ports?
fn read_fragment<'p>(packet: Packet<'p>, rest: &'p [u8]) -> Option<Packet<'p>> {
    let Some(([next, _, o0, o1, ..], behind)) = rest.split_first_chunk::<8>() else {
        return Some(packet);
    };
    if EXTENSIONS.contains(next) {
        return Some(packet);
    }
    let protocol = Protocol::from_number(*next)?;
    let is_first = u16::from_be_bytes([*o0, *o1]) & IPV6_FRAGMENT_OFFSET == 0;
    Some(Packet {
        protocol: Some(protocol),
        ports: is_first.then_some(behind),
        opaque: protocol_bit(protocol),
        ..packet
    })
}
