//! Stage 2 of 7, parse: Ethernet, up to two VLAN tags (802.1Q; the outer one of two also 802.1ad),
//! IPv4 or IPv6; TCP, UDP, ICMP, or any other protocol, of which nothing is read.
//!
//! Reads: the frame's first bytes. Writes: `layout`. Returns the five-tuple, ICMP message or
//! fragment, or a drop reason for each kind of malformed packet.
//!
//! Cost: nearly every packet has the plain layout (no tag, no options or extensions), which is
//! recognised as a whole with a few comparisons. All others, malformed ones included, go through
//! etherparse's single header slices. The fast path accepts a packet only as the slow path would
//! (test `the_short_way_agrees_with_the_long_way`). Every check is made once, here. A packet longer
//! than a frame takes the slow path: its headers must lie in the first frame, or they count as
//! truncated.

use std::ops::Range;

use etherparse::err::{LenError, ipv4, ipv6, tcp};
use etherparse::{
    Ethernet2HeaderSlice, Ipv4HeaderSlice, Ipv6HeaderSlice, TcpHeaderSlice, UdpHeaderSlice,
};

use super::batch::{FragmentKind, HeaderLayout, Packet, TcpFlags};
use crate::flow::fragments::{FirstFragment, Key, Span};
use crate::net::vlan::{Outer, Tags, tpid};
use crate::net::{Address, Protocol, Tuple};
use crate::stats::Drop;

/// Maximum number of IPv6 extension headers that are skipped; a packet with more is dropped.
///
/// Senders of real traffic use none or one (RFC 9098); each costs a step per packet.
const MAX_EXTENSIONS: usize = 4;

/// Offset of the IP header in bytes.
const UNTAGGED_LEN: u16 = 14;
const TAGGED_LEN: u16 = 18;
const TWICE_TAGGED_LEN: u16 = 22;

mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const IPV6: u16 = 0x86dd;
}

use extension::*;

mod number {
    pub const ICMP: u8 = 1;
    pub const ICMP_V6: u8 = 58;
}

mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const DESTINATION: u8 = 60;
    pub const MOBILITY: u8 = 135;
}

/// Contents of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// Packet of a flow, with this five-tuple as sent.
    Flow(Tuple),
    /// ICMP message, which begins at [`HeaderLayout::transport`].
    Icmp(Message),
    /// Fragment of a datagram.
    Fragment(FragmentInfo),
}

/// Metadata of a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentInfo {
    /// Key of the datagram.
    pub key: Key,
    /// Bytes of the datagram's payload that the fragment has.
    pub span: Span,
    /// Protocol and ports, in a first fragment; it has the whole transport header.
    pub head: Option<FirstFragment>,
}

/// ICMP or ICMPv6 message, of which only the length has been checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Length in bytes, over all frames.
    pub len: u16,
}

/// Parses an IPv4 packet of the plain layout; returns its five-tuple as sent, or `None` for any
/// other packet. Separate from [`parse`], so that the stages after it are compiled for this case by
/// themselves.
#[inline(always)]
pub fn parse_plain(packet: &mut Packet) -> Option<Tuple> {
    let frame = packet.frame.as_ref().filter(|frame| !frame.is_long())?;
    let (layout, tuple) = plain_v4(frame.data())?;
    packet.layout = layout;
    Some(tuple)
}

/// Parses any packet.
///
/// # Errors
/// The first defect found.
#[inline]
pub fn parse(packet: &mut Packet) -> Result<Parsed, Drop> {
    let Some(frame) = &packet.frame else { return Err(Drop::TruncatedEthernet) };
    let (layout, parsed) = match plain_v6(frame.data()).filter(|_| !frame.is_long()) {
        Some((layout, tuple)) => (layout, Parsed::Flow(tuple)),
        None if frame.is_whole() => any_headers(frame.data(), frame.packet_len().into())?,
        None => return Err(Drop::NotWhole),
    };
    packet.layout = layout;
    Ok(parsed)
}

/// Bit set of TCP flag combinations that some stack sends, indexed by the low five bits: each has
/// FIN, SYN, RST or ACK, and not SYN with FIN or RST.
const SENSIBLE_FLAGS: u32 = {
    let (mut sensible, mut flags) = (0, 0);
    while flags < 32 {
        if TcpFlags(flags).is_sensible() {
            sensible |= 1 << flags;
        }
        flags += 1;
    }
    sensible
};

/// Reads an untagged IPv4 packet without options or fragments, with a whole TCP or UDP header.
#[inline(always)]
fn plain_v4(packet: &[u8]) -> Option<(HeaderLayout, Tuple)> {
    let (ethernet, rest) = packet.split_first_chunk::<14>()?;
    let (ip, rest) = rest.split_first_chunk::<20>()?;
    let [.., 0x08, 0x00] = ethernet else { return None };
    let [0x45, _, l0, l1, _, _, f0, f1, _, protocol, _, _, addresses @ ..] = ip else {
        return None;
    };
    let fragment = u16::from_be_bytes([*f0, *f1]) & 0x3fff != 0;
    let segment = usize::from(u16::from_be_bytes([*l0, *l1])).checked_sub(20)?;
    if fragment || segment > rest.len() {
        return None;
    }
    let (protocol, ports, flags) = plain_transport(*protocol, rest.first_chunk()?, segment)?;
    let layout = HeaderLayout { transport: 34, tag: None, flags, fragment: FragmentKind::Whole };
    let tuple = Tuple::v4(*addresses, ports, protocol);
    if tuple.has_zero_port() {
        return None;
    }
    Some((layout, tuple))
}

/// Reads an untagged IPv6 packet without extensions, with a whole TCP or UDP header.
#[inline(always)]
fn plain_v6(packet: &[u8]) -> Option<(HeaderLayout, Tuple)> {
    let (ethernet, rest) = packet.split_first_chunk::<14>()?;
    let (ip, rest) = rest.split_first_chunk::<40>()?;
    let [.., 0x86, 0xdd] = ethernet else { return None };
    let [0x60..=0x6f, _, _, _, l0, l1, protocol, _, addresses @ ..] = ip else { return None };
    let segment = usize::from(u16::from_be_bytes([*l0, *l1]));
    if segment > rest.len() {
        return None;
    }
    let (source, destination) = addresses.split_first_chunk::<16>()?;
    let destination = destination.first_chunk::<16>()?;
    if Address::from_v6(*source).is_v4() || Address::from_v6(*destination).is_v4() {
        return None;
    }
    let (protocol, ports, flags) = plain_transport(*protocol, rest.first_chunk()?, segment)?;
    let layout = HeaderLayout { transport: 54, tag: None, flags, fragment: FragmentKind::Whole };
    let tuple = Tuple::v6(*source, *destination, ports, protocol);
    if tuple.has_zero_port() {
        return None;
    }
    Some((layout, tuple))
}

/// Returns protocol, ports and flags of a header that lies inside its segment of `len` bytes.
#[inline(always)]
fn plain_transport(
    protocol: u8,
    header: &[u8; 20],
    len: usize,
) -> Option<(Protocol, [u8; 4], TcpFlags)> {
    let [p0, p1, p2, p3, u0, u1, _, _, _, _, _, _, offset, flags, ..] = *header;
    let ports = [p0, p1, p2, p3];
    // Never-taken branches are cheaper than conditional moves.
    if protocol == Protocol::Tcp as u8 {
        let header_len = usize::from(offset >> 4) * 4;
        let sensible = SENSIBLE_FLAGS >> (flags & 0x1f) & 1 != 0;
        if header_len < 20 || header_len > len || !sensible {
            return None;
        }
        return Some((Protocol::Tcp, ports, TcpFlags(flags)));
    }
    let length = usize::from(u16::from_be_bytes([u0, u1]));
    if protocol != Protocol::Udp as u8 || length < 8 || length > len {
        return None;
    }
    Some((Protocol::Udp, ports, TcpFlags(0)))
}

/// Reads the headers of any packet of `len` bytes, all of which must lie in `packet`, its first
/// frame.
#[inline(never)]
fn any_headers(packet: &[u8], len: usize) -> Result<(HeaderLayout, Parsed), Drop> {
    let link = link(packet)?;
    let payload = packet.get(usize::from(link.len)..).ok_or(Drop::TruncatedEthernet)?;
    let behind = len.saturating_sub(packet.len());
    let network = match link.ether_type {
        ethertype::IPV4 => network_v4(payload, behind)?,
        ethertype::IPV6 => network_v6(payload, behind)?,
        _ => return Err(Drop::NotIp),
    };
    let layout = HeaderLayout {
        tag: link.tag,
        transport: link.len + network.header_len,
        flags: TcpFlags(0),
        fragment: FragmentKind::Whole,
    };
    if let Some(fragment) = network.fragment.filter(|_| !is_opaque(network.protocol)) {
        return located(&network, fragment, layout);
    }
    if let Some(message) = network.icmp() {
        return Ok((layout, Parsed::Icmp(message)));
    }
    let protocol = match network.protocol {
        number if is_opaque(number) => Protocol::Any,
        // ICMP of the other family is unsupported.
        number => Protocol::from_number(number).ok_or(Drop::UnsupportedProtocol)?,
    };
    let transport = transport(protocol, network.payload, network.len)?;
    let tuple = match network.addresses {
        Addresses::V4(both) => Tuple::v4(both, transport.ports, protocol),
        Addresses::V6(source, destination) => {
            Tuple::v6(source, destination, transport.ports, protocol)
        }
    };
    if protocol != Protocol::Any && tuple.has_forbidden_port() {
        return Err(Drop::ZeroPort);
    }
    Ok((HeaderLayout { flags: transport.flags, ..layout }, Parsed::Flow(tuple)))
}

/// Checks and describes a fragment. One that is not the last has a multiple of 8 bytes, and none
/// goes beyond the longest datagram (RFC 791 3.2, RFC 8200 4.5).
fn located(
    network: &Network<'_>,
    fragment: Fragment,
    layout: HeaderLayout,
) -> Result<(HeaderLayout, Parsed), Drop> {
    let Fragment { offset, more, identification } = fragment;
    let len = u16::try_from(network.len).map_err(|_| Drop::Fragment)?;
    let ragged = more && !len.is_multiple_of(8);
    // Fragmented ICMP messages are dropped: echo requests and errors fit one packet.
    if len == 0 || ragged || offset.checked_add(len).is_none() || network.icmp().is_some() {
        return Err(Drop::Fragment);
    }
    let (source, destination, protocol) = match network.addresses {
        Addresses::V4([s0, s1, s2, s3, d0, d1, d2, d3]) => {
            let address = Address::from_v4;
            (address([s0, s1, s2, s3]), address([d0, d1, d2, d3]), network.protocol)
        }
        Addresses::V6(source, destination) => {
            (Address::from_v6(source), Address::from_v6(destination), 0)
        }
    };
    let key = Key { source, destination, identification, protocol };
    let span = Span { offset, len, more };
    if offset != 0 {
        let piece = FragmentInfo { key, span, head: None };
        return Ok((
            HeaderLayout { fragment: FragmentKind::Later, ..layout },
            Parsed::Fragment(piece),
        ));
    }
    let protocol = Protocol::from_number(network.protocol).ok_or(Drop::UnsupportedProtocol)?;
    // A UDP length is that of the whole datagram.
    let transport = transport(protocol, network.payload, usize::from(u16::MAX));
    let Transport { ports, flags } = transport.map_err(|reason| match reason {
        Drop::TruncatedTcp | Drop::BadTcpOffset | Drop::TruncatedUdp => Drop::TinyFragment,
        reason => reason,
    })?;
    let head = FirstFragment { protocol, ports };
    if key.tuple(head).has_forbidden_port() {
        return Err(Drop::ZeroPort);
    }
    let layout = HeaderLayout { fragment: FragmentKind::First, flags, ..layout };
    Ok((layout, Parsed::Fragment(FragmentInfo { key, span, head: Some(head) })))
}

struct Link {
    tag: Option<Tags>,
    ether_type: u16,
    len: u16,
}

#[inline]
fn link(packet: &[u8]) -> Result<Link, Drop> {
    let ethernet = Ethernet2HeaderSlice::from_slice(packet).map_err(|_| Drop::TruncatedEthernet)?;
    let first = ethernet.ether_type().0;
    if !matches!(first, tpid::CUSTOMER | tpid::SERVICE) {
        return Ok(Link { tag: None, ether_type: first, len: UNTAGGED_LEN });
    }
    let (value, second) = tag(packet, UNTAGGED_LEN)?;
    match (first, second) {
        (_, tpid::CUSTOMER) => {
            let (inner, ether_type) = tag(packet, TAGGED_LEN)?;
            let service = first == tpid::SERVICE;
            let outer = if service { Outer::Service(value) } else { Outer::Customer(value) };
            let tags = Tags { inner, outer };
            match ether_type {
                tpid::CUSTOMER | tpid::SERVICE => Err(Drop::NestedVlan),
                _ => Ok(Link { tag: Some(tags), ether_type, len: TWICE_TAGGED_LEN }),
            }
        }
        (tpid::SERVICE, _) | (_, tpid::SERVICE) => Err(Drop::NestedVlan),
        _ => Ok(Link { tag: Some(value.into()), ether_type: second, len: TAGGED_LEN }),
    }
}

/// Returns the value of the VLAN tag at offset `at`, and the EtherType after it.
fn tag(packet: &[u8], at: u16) -> Result<(u16, u16), Drop> {
    let rest = packet.get(usize::from(at)..).ok_or(Drop::TruncatedEthernet)?;
    let [t0, t1, e0, e1, ..] = *rest else { return Err(Drop::TruncatedEthernet) };
    Ok((u16::from_be_bytes([t0, t1]), u16::from_be_bytes([e0, e1])))
}

/// Addresses in network byte order, source first.
enum Addresses {
    V4([u8; 8]),
    V6([u8; 16], [u8; 16]),
}

struct Network<'p> {
    addresses: Addresses,
    protocol: u8,
    header_len: u16,
    /// Payload by the IP header, without Ethernet padding, as far as it lies in the first frame.
    payload: &'p [u8],
    /// Length of the payload in bytes, over all frames.
    len: usize,
    /// Position of the payload in its datagram; `None` if it is the whole datagram.
    fragment: Option<Fragment>,
}

/// Fragment fields of the IP header.
#[derive(Debug, Clone, Copy)]
struct Fragment {
    /// Offset in bytes.
    offset: u16,
    more: bool,
    identification: u32,
}

/// Returns the bytes of `packet` in `range`, cut to the first frame. `None` if the range ends
/// beyond the `behind` bytes in later frames.
#[inline]
fn here(packet: &[u8], range: Range<usize>, behind: usize) -> Option<&[u8]> {
    let end = range.end.min(packet.len());
    if range.end > packet.len() + behind { None } else { packet.get(range.start..end) }
}

impl Network<'_> {
    /// Returns the ICMP message, if the packet has one of its own family.
    fn icmp(&self) -> Option<Message> {
        let (number, source, destination) = match self.addresses {
            Addresses::V4([s0, s1, s2, s3, d0, d1, d2, d3]) => {
                let address = Address::from_v4;
                (number::ICMP, address([s0, s1, s2, s3]), address([d0, d1, d2, d3]))
            }
            Addresses::V6(source, destination) => {
                (number::ICMP_V6, Address::from_v6(source), Address::from_v6(destination))
            }
        };
        let len = u16::try_from(self.len).ok()?;
        (self.protocol == number).then_some(Message { source, destination, len })
    }
}

#[inline]
fn network_v4(packet: &[u8], behind: usize) -> Result<Network<'_>, Drop> {
    let header = Ipv4HeaderSlice::from_slice(packet).map_err(|error| match error {
        ipv4::HeaderSliceError::Len(_) => Drop::TruncatedIpv4,
        ipv4::HeaderSliceError::Content(_) => Drop::BadIpv4Header,
    })?;
    let header_len = header.slice().len();
    let range = header_len..usize::from(header.total_len());
    let payload = here(packet, range.clone(), behind).ok_or(Drop::BadIpv4Length)?;
    let fragment = header.is_fragmenting_payload().then(|| Fragment {
        // 13 bits, in units of 8 bytes.
        offset: header.fragments_offset().value() << 3,
        more: header.more_fragments(),
        identification: header.identification().into(),
    });
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (header.source(), header.destination());
    Ok(Network {
        addresses: Addresses::V4([s0, s1, s2, s3, d0, d1, d2, d3]),
        protocol: header.protocol().0,
        // At most 60.
        header_len: u16::try_from(header_len).map_err(|_| Drop::BadIpv4Header)?,
        payload,
        len: range.len(),
        fragment,
    })
}

#[inline]
fn network_v6(packet: &[u8], behind: usize) -> Result<Network<'_>, Drop> {
    let header = Ipv6HeaderSlice::from_slice(packet).map_err(|error| match error {
        ipv6::HeaderSliceError::Len(_) | ipv6::HeaderSliceError::Content(_) => Drop::TruncatedIpv6,
    })?;
    let range = 40..40 + usize::from(header.payload_length());
    let payload = here(packet, range.clone(), behind).ok_or(Drop::BadIpv6Length)?;
    let (protocol, skipped, fragment) = skip_extensions(header.next_header().0, payload)?;
    let (source, destination) = (header.source(), header.destination());
    // An IPv4-mapped address is valid only inside a host; here it would be taken for IPv4.
    if Address::from_v6(source).is_v4() || Address::from_v6(destination).is_v4() {
        return Err(Drop::BadSource);
    }
    Ok(Network {
        addresses: Addresses::V6(source, destination),
        protocol,
        header_len: 40 + skipped,
        payload: payload.get(usize::from(skipped)..).ok_or(Drop::Ipv6Extension)?,
        len: range.len() - usize::from(skipped),
        fragment,
    })
}

/// Whether nothing is read of a protocol: each packet, and each fragment, then belongs to the flow
/// of its two addresses.
#[inline]
fn is_opaque(number: u8) -> bool {
    let read = matches!(
        number,
        number::ICMP | number::ICMP_V6 | HOP_BY_HOP | DESTINATION | ROUTING | FRAGMENT | MOBILITY
    );
    !read && Protocol::from_number(number).is_none()
}

/// Skips hop-by-hop and destination options, and a fragment header (RFC 8200 4.3, 4.6, 4.5);
/// returns the next header's number, the number of bytes skipped, and the fragment fields. A later
/// fragment has no extensions after the fragment header.
///
/// Routing headers are refused: they would name another destination than the VIP.
#[inline]
fn skip_extensions(first: u8, payload: &[u8]) -> Result<(u8, u16, Option<Fragment>), Drop> {
    let (mut next, mut skipped, mut fragment) = (first, 0, None);
    for _ in 0..=MAX_EXTENSIONS {
        match next {
            HOP_BY_HOP | DESTINATION => {}
            FRAGMENT if fragment.is_none() => {
                let rest = payload.get(usize::from(skipped)..).ok_or(Drop::Ipv6Extension)?;
                let header = rest.first_chunk::<8>().ok_or(Drop::Ipv6Extension)?;
                let [after, _, o0, o1, i0, i1, i2, i3] = *header;
                let word = u16::from_be_bytes([o0, o1]);
                let (offset, more) = (word & 0xfff8, word & 1 != 0);
                (next, skipped) = (after, skipped + 8);
                let identification = u32::from_be_bytes([i0, i1, i2, i3]);
                fragment = Some(Fragment { offset, more, identification });
                if offset != 0 {
                    return Ok((next, skipped, fragment));
                }
                continue;
            }
            FRAGMENT | ROUTING | MOBILITY => return Err(Drop::Ipv6Extension),
            // An atomic fragment is a whole datagram (RFC 6946).
            _ => return Ok((next, skipped, fragment.filter(|fragment| fragment.more))),
        }
        let rest = payload.get(usize::from(skipped)..).ok_or(Drop::Ipv6Extension)?;
        let [after, len, ..] = *rest else { return Err(Drop::Ipv6Extension) };
        // At most 5 headers of at most 2048 bytes.
        skipped += 8 + 8 * u16::from(len);
        next = after;
    }
    Err(Drop::Ipv6Extension)
}

struct Transport {
    /// Ports in network byte order, source first.
    ports: [u8; 4],
    flags: TcpFlags,
}

#[inline]
fn transport(protocol: Protocol, payload: &[u8], len: usize) -> Result<Transport, Drop> {
    match protocol {
        Protocol::Tcp => transport_tcp(payload),
        Protocol::Udp => transport_udp(payload, len),
        Protocol::Any => Ok(Transport { ports: [0; 4], flags: TcpFlags(0) }),
    }
}

#[inline]
fn transport_tcp(segment: &[u8]) -> Result<Transport, Drop> {
    let header = TcpHeaderSlice::from_slice(segment).map_err(|error| match error {
        // Long enough for the fixed part: the options are missing.
        tcp::HeaderSliceError::Len(LenError { len: 20.., .. })
        | tcp::HeaderSliceError::Content(_) => Drop::BadTcpOffset,
        tcp::HeaderSliceError::Len(_) => Drop::TruncatedTcp,
    })?;
    let flags = TcpFlags(header.slice().get(13).copied().unwrap_or_default());
    if !flags.is_sensible() {
        return Err(Drop::BadTcpFlags);
    }
    let ports = segment.first_chunk().copied().ok_or(Drop::TruncatedTcp)?;
    Ok(Transport { ports, flags })
}

#[inline]
fn transport_udp(datagram: &[u8], len: usize) -> Result<Transport, Drop> {
    let header = UdpHeaderSlice::from_slice(datagram).map_err(|_| Drop::TruncatedUdp)?;
    if !(8..=len).contains(&usize::from(header.length())) {
        return Err(Drop::BadUdpLength);
    }
    let ports = datagram.first_chunk().copied().ok_or(Drop::TruncatedUdp)?;
    Ok(Transport { ports, flags: TcpFlags(0) })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    fn tcp(v6: bool, vlan: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let builder = match (vlan, v6) {
            (true, true) => builder.single_vlan(100.try_into().unwrap()).ipv6([1; 16], [2; 16], 9),
            (true, false) => builder.single_vlan(100.try_into().unwrap()).ipv4([1; 4], [2; 4], 9),
            (false, true) => builder.ipv6([1; 16], [2; 16], 9),
            (false, false) => builder.ipv4([1; 4], [2; 4], 9),
        };
        builder.tcp(1000, 80, 7, 100).syn().write(&mut bytes, b"payload").unwrap();
        bytes
    }

    fn udp() -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([1; 4], [2; 4], 9)
            .udp(1000, 53)
            .write(&mut bytes, b"payload")
            .unwrap();
        bytes
    }

    fn headers(packet: &[u8]) -> Result<(HeaderLayout, Parsed), Drop> {
        let short = plain_v4(packet).or_else(|| plain_v6(packet));
        short.map_or_else(
            || any_headers(packet, packet.len()),
            |(layout, tuple)| Ok((layout, Parsed::Flow(tuple))),
        )
    }

    /// Makes the source of an IPv6 packet ::ffff:1.1.1.1.
    const MAPPED: [(usize, u8); 12] = [
        (22, 0),
        (23, 0),
        (24, 0),
        (25, 0),
        (26, 0),
        (27, 0),
        (28, 0),
        (29, 0),
        (30, 0),
        (31, 0),
        (32, 0xff),
        (33, 0xff),
    ];

    #[test]
    fn finds_every_header() {
        for (v6, vlan, ip, transport) in [
            (false, false, 14, 34),
            (false, true, 18, 38),
            (true, false, 14, 54),
            (true, true, 18, 58),
        ] {
            let Ok((layout, Parsed::Flow(tuple))) = headers(&tcp(v6, vlan)) else {
                unreachable!("TCP")
            };
            let tuple = tuple.five_tuple();
            assert_eq!((layout.ip(), layout.transport), (ip, transport));
            assert_eq!(layout.tag, vlan.then_some(100.into()));
            assert_eq!((tuple.src_port, tuple.dst_port), (1000, 80));
            assert!(layout.flags.opens());
            let (src, dst) = if v6 {
                (Address::from_v6([1; 16]), Address::from_v6([2; 16]))
            } else {
                (Address::from_v4([1; 4]), Address::from_v4([2; 4]))
            };
            assert_eq!((tuple.src, tuple.dst, tuple.protocol), (src, dst, Protocol::Tcp));
        }
    }

    #[test]
    fn every_truncation_has_a_name_and_none_panics() {
        for packet in [tcp(false, false), tcp(true, true), udp()] {
            for len in 0..packet.len() {
                let reason = headers(&packet[..len]).unwrap_err();
                assert_ne!(reason, Drop::UnsupportedProtocol, "at {len}");
            }
            assert!(headers(&packet).is_ok());
        }
    }

    #[test]
    fn ethernet_padding_is_not_payload() {
        let mut padded = udp();
        padded.resize(100, 0xee);
        assert!(headers(&padded).is_ok());
    }

    /// Byte to change, new value, expected reason; each starts from a valid packet.
    #[test]
    fn every_malformation_has_its_name() {
        let patch = |mut packet: Vec<u8>, changes: &[(usize, u8)]| {
            for &(offset, value) in changes {
                packet[offset] = value;
            }
            headers(&packet).map(|_| ())
        };
        let (v4, v6) = (tcp(false, false), tcp(true, false));
        for (name, packet, changes, reason) in [
            ("ARP", &v4, &[(12, 8), (13, 6)][..], Drop::NotIp),
            ("802.1ad", &v4, &[(12, 0x88), (13, 0xa8)], Drop::NestedVlan),
            ("version 6 in 0800", &v4, &[(14, 0x65)], Drop::BadIpv4Header),
            ("IHL 4", &v4, &[(14, 0x44)], Drop::BadIpv4Header),
            ("IHL beyond the packet", &v4, &[(14, 0x4f)], Drop::TruncatedIpv4),
            ("total length below the header", &v4, &[(17, 19)], Drop::BadIpv4Length),
            ("total length beyond the packet", &v4, &[(16, 9)], Drop::BadIpv4Length),
            ("total length ends in TCP", &v4, &[(17, 39)], Drop::TruncatedTcp),
            ("more fragments", &v4, &[(20, 0x20)], Drop::Fragment),
            ("a fragment beyond 64 KiB", &v4, &[(20, 0x1f), (21, 0xff)], Drop::Fragment),
            ("ICMPv6 in IPv4", &v4, &[(23, 58)], Drop::UnsupportedProtocol),
            ("data offset 4", &v4, &[(46, 0x40)], Drop::BadTcpOffset),
            ("data offset beyond the segment", &v4, &[(46, 0xf0)], Drop::BadTcpOffset),
            ("no flags", &v4, &[(47, 0)], Drop::BadTcpFlags),
            ("SYN and FIN", &v4, &[(47, 3)], Drop::BadTcpFlags),
            ("SYN and RST", &v4, &[(47, 6)], Drop::BadTcpFlags),
            ("source port 0", &v4, &[(34, 0), (35, 0)], Drop::ZeroPort),
            ("destination port 0", &v4, &[(36, 0), (37, 0)], Drop::ZeroPort),
            ("version 4 in 86dd", &v6, &[(14, 0x45)], Drop::TruncatedIpv6),
            ("payload beyond the packet", &v6, &[(18, 9)], Drop::BadIpv6Length),
            ("payload ends in TCP", &v6, &[(19, 19)], Drop::TruncatedTcp),
            ("ICMP in IPv6", &v6, &[(20, 1)], Drop::UnsupportedProtocol),
            ("ragged fragment", &v6, &[(20, 44), (54, 6), (57, 0x51)], Drop::Fragment),
            ("routing header", &v6, &[(20, 43)], Drop::Ipv6Extension),
            ("IPv4-mapped source", &v6, &MAPPED, Drop::BadSource),
            (
                "hop-by-hop beyond the packet",
                &v6,
                &[(20, 0), (54, 0), (55, 9)],
                Drop::Ipv6Extension,
            ),
            (
                "hop-by-hop without end",
                &v6,
                &[(20, 0), (54, 0), (55, 0), (62, 0), (63, 0), (70, 0), (71, 0), (78, 0), (79, 0)],
                Drop::Ipv6Extension,
            ),
        ] {
            assert_eq!(patch(packet.clone(), changes), Err(reason), "{name}");
        }
        for (name, changes, reason) in [
            ("length 7", &[(38, 0), (39, 7)], Drop::BadUdpLength),
            ("length beyond", &[(38, 0), (39, 16)], Drop::BadUdpLength),
            ("destination port 0", &[(36, 0), (37, 0)], Drop::ZeroPort),
        ] {
            assert_eq!(patch(udp(), changes), Err(reason), "{name}");
        }
        assert_eq!(patch(udp(), &[(34, 0), (35, 0)]), Ok(()), "UDP from port 0 (RFC 768)");
    }

    /// Packets without known ports belong to one flow per address pair, fragments included.
    #[test]
    fn of_other_protocols_the_addresses_are_read() {
        let patch = |mut packet: Vec<u8>, changes: &[(usize, u8)]| {
            for &(offset, value) in changes {
                packet[offset] = value;
            }
            packet
        };
        let (v4, v6) = (tcp(false, false), tcp(true, false));
        for (name, packet, changes) in [
            ("ESP", &v4, &[(23, 50)][..]),
            ("SCTP", &v4, &[(23, 132)]),
            ("an unassigned protocol", &v4, &[(23, 255)]),
            ("a fragment of ESP", &v4, &[(23, 50), (20, 0x20), (21, 9)]),
            ("ESP, IPv6", &v6, &[(20, 50)]),
            ("AH", &v6, &[(20, 51)]),
            ("no next header", &v6, &[(20, 59)]),
            ("a fragment of ESP, IPv6", &v6, &[(20, 44), (54, 50), (57, 9)]),
            ("ESP behind options", &v6, &[(20, 60), (54, 50), (55, 0)]),
        ] {
            let (layout, parsed) = headers(&patch(packet.clone(), changes)).unwrap();
            let Parsed::Flow(tuple) = parsed else { unreachable!("{name}: {parsed:?}") };
            let key = tuple.key();
            assert_eq!(key.protocol, Protocol::Any, "{name}");
            assert_eq!((key.client_port, key.vip_port), (0, 0), "{name}");
            assert_eq!(tuple.without_ports(), tuple, "{name}");
            assert!(layout.transport >= 34, "{name}");
        }
        for (name, packet, changes, reason) in [
            ("ICMPv6 in IPv4", &v4, &[(23, 58)][..], Drop::UnsupportedProtocol),
            ("ICMP in IPv6", &v6, &[(20, 1)], Drop::UnsupportedProtocol),
            ("a fragment of ICMPv6", &v6, &[(20, 44), (54, 58)], Drop::Fragment),
            ("mobility", &v6, &[(20, 135)], Drop::Ipv6Extension),
        ] {
            assert_eq!(headers(&patch(packet.clone(), changes)).err(), Some(reason), "{name}");
        }
    }

    #[test]
    fn ip_options_and_ipv6_options_are_stepped_over() {
        let mut v4 = tcp(false, false);
        v4.splice(34..34, [1, 1, 1, 0]);
        v4[14] = 0x46;
        v4[17] += 4;
        assert_eq!(headers(&v4).unwrap().0.transport, 38);
        let mut v6 = tcp(true, false);
        v6.splice(54..54, [6, 0, 1, 4, 0, 0, 0, 0]);
        v6[20] = 60;
        v6[19] += 8;
        assert_eq!(headers(&v6).unwrap().0.transport, 62);
    }

    #[test]
    fn of_a_long_packet_the_headers_must_be_in_the_first_frame() {
        for packet in [tcp(false, false), tcp(false, true), tcp(true, false), tcp(true, true)] {
            let transport = usize::from(headers(&packet).unwrap().0.transport);
            for len in 0..packet.len() {
                let found = any_headers(&packet[..len], packet.len());
                assert_eq!(found.is_ok(), len >= transport + 20, "{len} of {}", packet.len());
                if found.is_ok() {
                    assert_eq!(found, headers(&packet));
                    any_headers(&packet[..len], packet.len() - 1).unwrap_err();
                }
            }
        }
        let packet = udp();
        assert_eq!(any_headers(&packet[..42], packet.len()), headers(&packet));
        assert_eq!(any_headers(&packet[..41], packet.len()), Err(Drop::TruncatedUdp));
        assert_eq!(any_headers(&packet[..42], packet.len() - 1), Err(Drop::BadIpv4Length));
        let mut long = packet.clone();
        long[39] += 1;
        assert_eq!(any_headers(&long[..42], packet.len() + 99), Err(Drop::BadUdpLength));
    }

    /// Valid packets with a few bytes changed and cut or padded, mostly near the limits of a check.
    fn nearly_valid() -> impl Strategy<Value = Vec<u8>> {
        let valid = prop_oneof![
            Just(tcp(false, false)),
            Just(tcp(true, false)),
            Just(tcp(false, true)),
            Just(udp()),
            Just(udp_v6()),
        ];
        let value = prop_oneof![any::<u8>(), Just(0), Just(1), Just(0x45), Just(0x50), Just(20)];
        let changes = proptest::collection::vec((0..80_usize, value), 0..4);
        (valid, changes, 0..90_usize, any::<bool>()).prop_map(|(mut packet, changes, len, cut)| {
            for (at, value) in changes {
                if let Some(byte) = packet.get_mut(at) {
                    *byte = value;
                }
            }
            if cut {
                packet.resize(len, 0);
            }
            packet
        })
    }

    fn udp_v6() -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6([1; 16], [2; 16], 9)
            .udp(1000, 53)
            .write(&mut bytes, b"payload and more")
            .unwrap();
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 20_000, failure_persistence: None, ..Default::default()
        })]
        #[test]
        fn the_short_way_agrees_with_the_long_way(packet in nearly_valid()) {
            for short in [plain_v4(&packet), plain_v6(&packet)].into_iter().flatten() {
                let (layout, tuple) = short;
                prop_assert_eq!(
                    any_headers(&packet, packet.len()),
                    Ok((layout, Parsed::Flow(tuple)))
                );
            }
        }
    }

    #[test]
    fn plain_packets_go_the_short_way() {
        let mut padded = udp();
        padded.resize(60, 0);
        assert!(plain_v4(&tcp(false, false)).is_some() && plain_v4(&padded).is_some());
        assert!(plain_v6(&tcp(true, false)).is_some() && plain_v6(&udp_v6()).is_some());
        assert!(plain_v4(&tcp(false, true)).is_none() && plain_v6(&tcp(true, true)).is_none());
    }
}
