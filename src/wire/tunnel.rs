//! Outer headers: IP in IP (RFC 2003, RFC 2473, RFC 4213) and generic UDP encapsulation (GUE,
//! variant 0, draft-ietf-intarea-gue-09), over IPv4 and IPv6.
//!
//! ```text
//! ipip   IPv4:20 or IPv6:40                            inner packet
//! gue    IPv4:20 or IPv6:40  UDP:8  GUE:4              inner packet
//! GUE    variant:2=0 control:1=0 length:5=0  protocol:8  flags:16=0
//! ```
//!
//! The traffic class is copied to the outer header with its ECN bits (RFC 6040 4.1, normal mode;
//! RFC 2983 4). The UDP checksum is 0, over IPv6 too: the inner packet has its own (RFC 6935, RFC
//! 6936). The inner packet is unchanged, including its TTL, as a tunnel endpoint does not route.

use super::checksum::{self, Full};
use super::headers::{Headers, protocol};
use crate::net::{Address, Family};

/// TTL or hop limit of an outer packet (RFC 1340; most hosts use this value).
const HOPS: u8 = 64;
const UDP_LEN: u16 = 8;
const GUE_LEN: u16 = 4;
/// Don't-fragment bit in the flags byte of an IPv4 header.
const DONT_FRAGMENT: u8 = 0x40;

/// Fields of the inner packet that an outer header needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner {
    /// Address family of its IP header.
    pub family: Family,
    /// Length in bytes from the IP header on, without Ethernet padding.
    pub len: u16,
    /// ToS or traffic class: DSCP and ECN.
    pub traffic_class: u8,
    /// Whether it may not be fragmented; always true for IPv6.
    pub dont_fragment: bool,
    /// UDP destination port, if the packet is UDP and has the header.
    pub udp_port: Option<u16>,
    /// Protocol after the IP headers.
    pub protocol: u8,
}

impl Inner {
    /// Reads a packet with these first bytes, which continues for `behind` bytes in other frames;
    /// `None` if it ends before its length field indicates.
    #[inline]
    pub fn read(bytes: &[u8], behind: usize) -> Option<Self> {
        let headers = Headers::of(bytes).ok().filter(|found| found.end <= bytes.len() + behind)?;
        let [first, second, _, _, _, _, flags, ..] = *bytes.first_chunk::<20>()?;
        let family = if first >> 4 == 4 { Family::V4 } else { Family::V6 };
        let payload = bytes.get(headers.transport..headers.end.min(bytes.len()));
        let udp_port = match payload.unwrap_or_default() {
            &[_, _, p0, p1, ..] if headers.protocol == protocol::UDP && headers.is_first() => {
                Some(u16::from_be_bytes([p0, p1]))
            }
            _ => None,
        };
        Some(Self {
            family,
            len: u16::try_from(headers.end).ok()?,
            traffic_class: if family.is_v4() { second } else { first << 4 | second >> 4 },
            dont_fragment: !family.is_v4() || flags & DONT_FRAGMENT != 0,
            udp_port,
            protocol: headers.protocol,
        })
    }

    /// Whether the packet is itself a tunnel packet. `gue_port` is the destination port of GUE.
    #[inline]
    pub fn is_tunnel(&self, gue_port: u16) -> bool {
        matches!(self.protocol, protocol::IPV4 | protocol::IPV6 | protocol::GRE)
            || self.udp_port == Some(gue_port)
    }

    const fn protocol_number(&self) -> u8 {
        if self.family.is_v4() { protocol::IPV4 } else { protocol::IPV6 }
    }
}

/// Headers to prepend to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outer {
    /// Address of this box.
    pub source: Address,
    /// Backend address, of the family of the source.
    pub destination: Address,
    /// GUE: UDP source and destination port.
    pub gue: Option<(u16, u16)>,
    /// GUE: 4-byte words of private data behind its header, at most 31, which [`write`](Self::write)
    /// leaves alone.
    pub private: u8,
    /// IPv6: the flow label, 20 bits.
    pub flow_label: u32,
    /// IPv4: the don't-fragment bit.
    pub dont_fragment: bool,
    /// IPv4: identification, significant while the packet may be fragmented.
    pub identification: u16,
}

/// Length in bytes of the headers in front of a packet to a backend of this family.
#[inline]
pub const fn overhead(family: Family, gue: bool) -> u16 {
    let ip = if family.is_v4() { 20 } else { 40 };
    if gue { ip + UDP_LEN + GUE_LEN } else { ip }
}

impl Outer {
    /// Length of the headers in bytes.
    #[inline]
    pub const fn overhead(&self) -> u16 {
        overhead(self.destination.family(), self.gue.is_some()) + 4 * self.private as u16
    }

    /// The Ethernet type of the packet.
    pub const fn ether_type(&self) -> [u8; 2] {
        if self.destination.is_v4() { [0x08, 0x00] } else { [0x86, 0xdd] }
    }

    /// Writes the headers into the first [`overhead`](Self::overhead) bytes of `header`. Returns
    /// false if `header` is shorter or the packet becomes too long for an IP header.
    #[inline]
    #[must_use]
    pub fn write(&self, header: &mut [u8], inner: &Inner) -> bool {
        self.try_write(header, inner).is_some()
    }

    #[inline]
    fn try_write(&self, header: &mut [u8], inner: &Inner) -> Option<()> {
        let total = inner.len.checked_add(self.overhead())?;
        let next = if self.gue.is_some() { protocol::UDP } else { inner.protocol_number() };
        let rest = if self.destination.is_v4() {
            let (ip, rest) = header.split_first_chunk_mut::<20>()?;
            *ip = self.ipv4(total, next, inner);
            rest
        } else {
            let (ip, rest) = header.split_first_chunk_mut::<40>()?;
            self.ipv6(ip, total - 40, next, inner);
            rest
        };
        if let Some((source, destination)) = self.gue {
            let gue_len = GUE_LEN + 4 * u16::from(self.private);
            let udp_len = (inner.len + UDP_LEN + gue_len).to_be_bytes();
            let ([s0, s1], [d0, d1]) = (source.to_be_bytes(), destination.to_be_bytes());
            let [l0, l1] = udp_len;
            let next = inner.protocol_number();
            *rest.first_chunk_mut()? =
                [s0, s1, d0, d1, l0, l1, 0, 0, self.private & 31, next, 0, 0];
        }
        Some(())
    }

    #[inline]
    fn ipv4(&self, total: u16, next: u8, inner: &Inner) -> [u8; 20] {
        let ([l0, l1], [i0, i1]) = (total.to_be_bytes(), self.identification.to_be_bytes());
        let flags = if self.dont_fragment { DONT_FRAGMENT } else { 0 };
        let ([s0, s1, s2, s3], [d0, d1, d2, d3]) =
            (self.source.v4_octets(), self.destination.v4_octets());
        let tos = inner.traffic_class;
        let mut ip =
            [0x45, tos, l0, l1, i0, i1, flags, 0, HOPS, next, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3];
        [ip[10], ip[11]] = checksum::of(&Full::new().add_slice(&ip)).to_be_bytes();
        ip
    }

    #[inline]
    fn ipv6(&self, ip: &mut [u8; 40], payload: u16, next: u8, inner: &Inner) {
        let class = inner.traffic_class;
        let [_, f0, f1, f2] = self.flow_label.to_be_bytes();
        let [l0, l1] = payload.to_be_bytes();
        let (head, addresses) = ip.split_at_mut(8);
        head.copy_from_slice(&[
            0x60 | class >> 4,
            class << 4 | f0 & 0x0f,
            f1,
            f2,
            l0,
            l1,
            next,
            HOPS,
        ]);
        let (source, destination) = addresses.split_at_mut(16);
        source.copy_from_slice(&self.source.octets());
        destination.copy_from_slice(&self.destination.octets());
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, PacketBuilder, UdpHeaderSlice};
    use proptest::prelude::*;

    use super::*;

    fn outer(v4: bool, gue: bool) -> Outer {
        let address = |last| match v4 {
            true => Address::from_v4([10, 0, 0, last]),
            false => Address::from_v6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]),
        };
        Outer {
            source: address(1),
            destination: address(2),
            gue: gue.then_some((0xc123, 6080)),
            private: 0,
            flow_label: 0xabcde,
            dont_fragment: false,
            identification: 0x1234,
        }
    }

    fn v4(payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ipv4([198, 18, 0, 1], [192, 0, 2, 10], 64);
        builder.udp(1000, 53).write(&mut bytes, payload).unwrap();
        bytes
    }

    fn v6(payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv6([1; 16], [2; 16], 64).udp(1000, 53).write(&mut bytes, payload).unwrap();
        bytes
    }

    /// Every byte, for all kinds of outer packets.
    #[test]
    fn headers_byte_for_byte() {
        let inner = |family| Inner {
            family,
            len: 100,
            traffic_class: 0x8c,
            dont_fragment: true,
            udp_port: None,
            protocol: 6,
        };
        let v6_addresses = [[&[0xfd_u8], &[0; 14][..], &[1]].concat(), {
            [&[0xfd_u8], &[0; 14][..], &[2]].concat()
        }]
        .concat();
        let v4_over = |protocol, total: u8, sum: [u8; 2]| {
            let head = [0x45, 0x8c, 0, total, 0x12, 0x34, 0, 0, 64, protocol, sum[0], sum[1]];
            [&head[..], &[10, 0, 0, 1, 10, 0, 0, 2]].concat()
        };
        let v6_over = |next, payload| {
            let head = [0x68, 0xca, 0xbc, 0xde, 0, payload, next, 64];
            [&head[..], &v6_addresses].concat()
        };
        let gue = |proto| [0xc1, 0x23, 0x17, 0xc0, 0, 112, 0, 0, 0, proto, 0, 0];
        for (name, over_v4, is_gue, carried, expected) in [
            ("4in4", true, false, Family::V4, v4_over(4, 120, [0x53, 0xc0])),
            ("6in4", true, false, Family::V6, v4_over(41, 120, [0x53, 0x9b])),
            ("4in6", false, false, Family::V4, v6_over(4, 100)),
            ("6in6", false, false, Family::V6, v6_over(41, 100)),
            (
                "gue4 4",
                true,
                true,
                Family::V4,
                [&v4_over(17, 132, [0x53, 0xa7])[..], &gue(4)].concat(),
            ),
            (
                "gue4 6",
                true,
                true,
                Family::V6,
                [&v4_over(17, 132, [0x53, 0xa7])[..], &gue(41)].concat(),
            ),
            ("gue6 4", false, true, Family::V4, [&v6_over(17, 112)[..], &gue(4)].concat()),
            ("gue6 6", false, true, Family::V6, [&v6_over(17, 112)[..], &gue(41)].concat()),
        ] {
            let outer = outer(over_v4, is_gue);
            let mut header = vec![0xee; usize::from(outer.overhead())];
            assert!(outer.write(&mut header, &inner(carried)), "{name}");
            assert_eq!(header, expected, "{name}");
        }
    }

    #[test]
    fn no_room_and_too_long_are_refused() {
        for (over_v4, gue) in [(true, false), (true, true), (false, false), (false, true)] {
            let outer = outer(over_v4, gue);
            let mut inner = Inner::read(&v4(b"x"), 0).unwrap();
            for len in 0..usize::from(outer.overhead()) {
                assert!(!outer.write(&mut vec![0; len], &inner), "{len}");
            }
            inner.len = u16::MAX;
            assert!(!outer.write(&mut [0; 60], &inner));
        }
    }

    #[test]
    fn an_inner_packet_is_read() {
        let mut packet = v4(b"padding follows");
        packet[1] = 0x8f;
        packet[6] = 0x40;
        let len = u16::try_from(packet.len()).unwrap();
        packet.extend([0; 9]);
        let expected = Inner {
            family: Family::V4,
            len,
            traffic_class: 0x8f,
            dont_fragment: true,
            udp_port: Some(53),
            protocol: 17,
        };
        assert_eq!(Inner::read(&packet, 0), Some(expected));
        packet[7] = 1;
        let later = Inner { udp_port: None, ..expected };
        assert_eq!(Inner::read(&packet, 0), Some(later), "a later fragment");
        let mut packet = v6(b"padding follows");
        (packet[0], packet[1]) = (0x68, 0xf0);
        let len = u16::try_from(packet.len()).unwrap();
        packet.extend([0; 9]);
        assert_eq!(Inner::read(&packet, 0), Some(Inner { family: Family::V6, len, ..expected }));
        for cut in 0..usize::from(len) {
            assert_eq!(Inner::read(&packet[..cut], 0), None, "{cut}");
        }
        // The rest is in other frames.
        let (head, behind) = (&packet[..48], usize::from(len) - 48);
        assert_eq!(Inner::read(head, behind), Some(Inner { family: Family::V6, len, ..expected }));
        assert_eq!(Inner::read(head, behind - 1), None);
    }

    #[test]
    fn tunnels_in_tunnels_are_seen() {
        let protocol = |mut packet: Vec<u8>, number: u8| {
            let at = if packet[0] >> 4 == 4 { 9 } else { 6 };
            packet[at] = number;
            Inner::read(&packet, 0).unwrap().is_tunnel(6080)
        };
        for packet in [v4(b"data"), v6(b"data")] {
            for (number, nested) in [(4, true), (41, true), (47, true), (6, false), (50, false)] {
                assert_eq!(protocol(packet.clone(), number), nested, "{number}");
            }
            let inner = Inner::read(&packet, 0).unwrap();
            assert!(inner.is_tunnel(53) && !inner.is_tunnel(6080));
        }
        // After options, and in the fragments of a datagram.
        for (header, nested) in
            [([4, 0, 1, 4, 0, 0, 0, 0], true), ([17, 0, 1, 4, 0, 0, 0, 0], false)]
        {
            for kind in [0, 60] {
                let mut packet = v6(&[0; 8]);
                packet[6] = kind;
                packet[40..48].copy_from_slice(&header);
                assert_eq!(Inner::read(&packet, 0).unwrap().is_tunnel(6080), nested, "{kind}");
            }
        }
        for (offset, port) in [(0, 53), (8, 0)] {
            let mut packet = v6(&[0, 9, 0, 53, 0, 8, 0, 0]);
            packet[6] = 44;
            packet[40..48].copy_from_slice(&[17, 0, 0, offset, 0, 0, 0, 1]);
            let inner = Inner::read(&packet, 0).unwrap();
            assert_eq!(inner.udp_port, (port != 0).then_some(port));
            packet[40] = 4;
            assert!(Inner::read(&packet, 0).unwrap().is_tunnel(6080));
        }
    }

    proptest! {
        /// etherparse reads the same fields and computes the same checksum.
        #[test]
        fn headers_are_well_formed(
            over_v4: bool,
            gue: Option<(u16, u16)>,
            inner_v4: bool,
            len in 0_u16..65_000,
            traffic_class: u8,
            dont_fragment: bool,
            identification: u16,
            flow_label in 0_u32..1 << 20,
        ) {
            let outer = Outer { gue, flow_label, dont_fragment, identification, ..outer(over_v4, false) };
            let family = if inner_v4 { Family::V4 } else { Family::V6 };
            let inner =
                Inner { family, len, traffic_class, dont_fragment, udp_port: None, protocol: 6 };
            let mut header = vec![0xee; usize::from(outer.overhead())];
            prop_assert!(outer.write(&mut header, &inner));
            let (next, rest) = if over_v4 {
                let ip = Ipv4HeaderSlice::from_slice(&header).unwrap().to_header();
                prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                prop_assert_eq!(ip.total_len, len + outer.overhead());
                prop_assert_eq!((ip.dscp.value() << 2) | ip.ecn.value(), traffic_class);
                prop_assert_eq!((ip.dont_fragment, ip.identification), (dont_fragment, identification));
                prop_assert_eq!((ip.time_to_live, ip.source), (64, outer.source.v4_octets()));
                prop_assert_eq!(ip.destination, outer.destination.v4_octets());
                (ip.protocol.0, &header[20..])
            } else {
                let ip = Ipv6HeaderSlice::from_slice(&header).unwrap().to_header();
                prop_assert_eq!(ip.payload_length, len + outer.overhead() - 40);
                prop_assert_eq!((ip.traffic_class, ip.flow_label.value()), (traffic_class, flow_label));
                prop_assert_eq!((ip.hop_limit, ip.source), (64, outer.source.octets()));
                prop_assert_eq!(ip.destination, outer.destination.octets());
                (ip.next_header.0, &header[40..])
            };
            let carried = if inner_v4 { 4 } else { 41 };
            if let Some((source, destination)) = gue {
                let udp = UdpHeaderSlice::from_slice(rest).unwrap();
                prop_assert_eq!((next, udp.checksum(), udp.length()), (17, 0, len + 12));
                prop_assert_eq!((udp.source_port(), udp.destination_port()), (source, destination));
                prop_assert_eq!(&rest[8..], &[0, carried, 0, 0]);
            } else {
                prop_assert_eq!((next, rest.len()), (carried, 0));
            }
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            if let Some(inner) = Inner::read(&bytes, 0) {
                prop_assert!(usize::from(inner.len) <= bytes.len());
            }
        }
    }
}
