//! Packets from templates: the parts common to all packets of one size are prepared, checksum sums
//! included; the parts that differ are overwritten and added to the sums.

use std::net::IpAddr;

use etherparse::PacketBuilder;

use super::layout::{ETHERNET, FCS, Layout};
use super::signature::{REQUEST, SHORT, Signature, WHOLE};
use super::tuple::Source;
use crate::wire::checksum::Delta;

/// TCP flags used by the generator.
pub mod flags {
    /// The sender has no more data.
    pub const FIN: u8 = 0x01;
    /// The segment opens a connection.
    pub const SYN: u8 = 0x02;
    /// The segment aborts a connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgement number is valid.
    pub const ACK: u8 = 0x10;
}

/// Parameters common to all packets of a run.
#[derive(Debug, Clone, Copy)]
pub struct Common {
    /// Header layout.
    pub layout: Layout,
    /// MAC of the client-side NIC.
    pub source_mac: [u8; 6],
    /// MAC of the balancer, or of the router before it.
    pub destination_mac: [u8; 6],
    /// Any address of the clients; its last four bytes are ignored.
    pub client: IpAddr,
    /// Address of the VIP.
    pub target: IpAddr,
    /// Port of the VIP.
    pub target_port: u16,
}

/// TCP fields of a packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Flag bits.
    pub flags: u8,
}

/// Template of the packets of one size.
#[derive(Debug, Clone)]
pub struct Template {
    layout: Layout,
    bytes: Vec<u8>,
    /// Sum of the IPv4 header, without checksum and source address.
    ip_sum: Delta,
    /// Sum of pseudo header, transport header and payload, without checksum and overwritten parts.
    transport_sum: Delta,
    whole_signature: bool,
}

impl Template {
    /// Creates the template of frames of `size` bytes with FCS. Returns `None` if such a frame
    /// cannot hold the headers and a signature, or if addresses and layout are of different
    /// families.
    pub fn new(common: &Common, size: usize) -> Option<Self> {
        let layout = common.layout;
        let len = size.checked_sub(FCS)?;
        let payload = len.checked_sub(layout.payload()).filter(|&len| len >= SHORT)?;
        let mut bytes = build(common, payload)?;
        clear(&mut bytes, layout.source_tail(), 4);
        clear(&mut bytes, layout.transport_checksum(), 2);
        if !layout.ipv6 {
            clear(&mut bytes, ETHERNET + 10, 2);
        }
        let ip_sum = Delta::default().add_bytes(bytes.get(ETHERNET..ETHERNET + 20)?);
        let transport_sum = transport_sum(&bytes, layout)?;
        let whole_signature = payload >= WHOLE;
        Some(Self { layout, bytes, ip_sum, transport_sum, whole_signature })
    }

    /// Returns the bytes of the frame, without FCS.
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Always false.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns the bytes of payload, by which a TCP segment advances its sequence number.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "a frame has at most 9000 bytes")]
    pub fn payload_len(&self) -> u32 {
        (self.bytes.len() - self.layout.payload()) as u32
    }

    /// Returns whether sequence number and time fit into the payload.
    pub fn has_whole_signature(&self) -> bool {
        self.whole_signature
    }

    /// Returns the sums of the parts that are not overwritten: IPv4 header, transport.
    pub fn sums(&self) -> (Delta, Delta) {
        (self.ip_sum, self.transport_sum)
    }

    /// Returns the frame before anything is overwritten.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Overwrites the parts that differ between packets, in a copy of [`bytes`](Self::bytes) or of
    /// its first frame: all of them are in headers and signature.
    ///
    /// Cost: a sum over ten words.
    #[inline]
    pub fn write(&self, frame: &mut [u8], source: Source, segment: Segment, signature: &Signature) {
        let layout = self.layout;
        put(frame, layout.source_tail(), source.tail.to_be_bytes());
        put(frame, layout.transport(), source.port.to_be_bytes());
        if !layout.ipv6 {
            let checksum = self.ip_sum.add_u32(source.tail).checksum();
            put(frame, ETHERNET + 10, checksum.to_be_bytes());
        }
        let mut sum = self.transport_sum.add_u32(source.tail).add_u16(source.port);
        if layout.tcp {
            sum = self.write_segment(frame, segment, signature, sum);
        }
        sum = self.write_signature(frame, signature, sum);
        let checksum = match sum.checksum() {
            0 if !layout.tcp => 0xffff,
            checksum => checksum,
        };
        put(frame, layout.transport_checksum(), checksum.to_be_bytes());
    }

    #[inline]
    fn write_segment(
        &self,
        frame: &mut [u8],
        segment: Segment,
        signature: &Signature,
        sum: Delta,
    ) -> Delta {
        let start = self.layout.transport();
        put(frame, start + 4, segment.sequence.to_be_bytes());
        put(frame, start + 8, segment.acknowledgement.to_be_bytes());
        put(frame, start + 13, [segment.flags]);
        let mut sum = sum.add_u32(segment.sequence).add_u32(segment.acknowledgement);
        sum = sum.add_u16(u16::from(segment.flags));
        if !self.whole_signature {
            let low = low_half(signature.sequence);
            put(frame, start + 18, low.to_be_bytes());
            sum = sum.add_u16(low);
        }
        sum
    }

    #[inline]
    fn write_signature(&self, frame: &mut [u8], signature: &Signature, sum: Delta) -> Delta {
        let start = self.layout.payload() + 2;
        if !self.whole_signature {
            put(frame, start, signature.flow.to_be_bytes());
            return sum.add_u32(signature.flow);
        }
        put(frame, start, signature.bytes());
        sum.add_u32(signature.flow).add_u32(signature.sequence).add_u64(signature.run_and_time())
    }
}

/// Returns the lower 16 bits.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
const fn low_half(number: u32) -> u16 {
    number as u16
}

/// Builds a packet with etherparse; its `payload` bytes begin with the magic.
fn build(common: &Common, payload: usize) -> Option<Vec<u8>> {
    let mut content = vec![0; payload];
    content.first_chunk_mut().map(|magic| *magic = REQUEST)?;
    let builder = PacketBuilder::ethernet2(common.source_mac, common.destination_mac);
    let builder = match (common.client, common.target) {
        (IpAddr::V4(from), IpAddr::V4(to)) if !common.layout.ipv6 => {
            builder.ipv4(from.octets(), to.octets(), 64)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) if common.layout.ipv6 => {
            builder.ipv6(from.octets(), to.octets(), 64)
        }
        _ => return None,
    };
    let mut bytes = Vec::new();
    let written = if common.layout.tcp {
        builder.tcp(0, common.target_port, 0, u16::MAX).write(&mut bytes, &content)
    } else {
        builder.udp(0, common.target_port).write(&mut bytes, &content)
    };
    written.ok().map(|()| bytes)
}

/// Returns the sum over which the transport checksum is taken.
fn transport_sum(bytes: &[u8], layout: Layout) -> Option<Delta> {
    let addresses = if layout.ipv6 { 22..54 } else { 26..34 };
    let segment = bytes.get(layout.transport()..)?;
    let len = u16::try_from(segment.len()).ok()?;
    let pseudo = Delta::default()
        .add_bytes(bytes.get(addresses)?)
        .add_u16(u16::from(layout.protocol()))
        .add_u16(len);
    Some(pseudo.and(Delta::default().add_bytes(segment)))
}

/// Writes `value` at `at`, if it fits there.
#[inline(always)]
pub(super) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<N>()) {
        *place = value;
    }
}

fn clear(bytes: &mut [u8], at: usize, len: usize) {
    bytes.iter_mut().skip(at).take(len).for_each(|byte| *byte = 0);
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
pub(super) mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::super::signature::{Found, read};
    use super::*;

    pub fn common(ipv6: bool, tcp: bool) -> Common {
        let address = |v4: &str, v6: &str| if ipv6 { v6 } else { v4 }.parse().unwrap();
        Common {
            layout: Layout { ipv6, tcp },
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: [2, 0, 0, 0, 0, 2],
            client: address("198.18.128.1", "2001:db8:1::1"),
            target: address("192.0.2.10", "2001:db8:100::10"),
            target_port: 4433,
        }
    }

    /// Checks that every checksum equals the one that etherparse computes from scratch.
    pub fn assert_checksums(bytes: &[u8]) {
        let packet = SlicedPacket::from_ethernet(bytes).unwrap();
        match (packet.net.unwrap(), packet.transport.unwrap()) {
            (NetSlice::Ipv4(ip), transport) => {
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                let (from, to) = (header.source, header.destination);
                match transport {
                    TransportSlice::Udp(udp) => {
                        let full = udp.to_header().calc_checksum_ipv4_raw(from, to, udp.payload());
                        assert_eq!(udp.checksum(), full.unwrap());
                    }
                    TransportSlice::Tcp(tcp) => {
                        assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4(from, to).unwrap());
                    }
                    other => unreachable!("{other:?}"),
                }
            }
            (NetSlice::Ipv6(ip), transport) => {
                let (from, to) = (ip.header().source(), ip.header().destination());
                match transport {
                    TransportSlice::Udp(udp) => {
                        let full = udp.to_header().calc_checksum_ipv6_raw(from, to, udp.payload());
                        assert_eq!(udp.checksum(), full.unwrap());
                    }
                    TransportSlice::Tcp(tcp) => {
                        assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv6(from, to).unwrap());
                    }
                    other => unreachable!("{other:?}"),
                }
            }
            other => unreachable!("{other:?}"),
        }
    }

    fn packet(template: &Template, number: u32) -> (Vec<u8>, Signature) {
        let signature = Signature {
            flow: number.wrapping_mul(0x9e37_79b9),
            sequence: number.wrapping_mul(77_777),
            run: 0xfedc,
            time: u64::from(number) * 1_234_567_891,
        };
        let source = Source { tail: 0xc612_8000 + number, port: low_half(number * 7 + 1024) };
        let segment = Segment {
            sequence: number.wrapping_mul(0x1234_5677),
            acknowledgement: number.wrapping_mul(0x7654_3211),
            flags: flags::ACK,
        };
        let mut bytes = template.bytes().to_vec();
        template.write(&mut bytes, source, segment, &signature);
        (bytes, signature)
    }

    #[test]
    fn every_packet_has_the_checksums_that_etherparse_computes() {
        for (ipv6, tcp, smallest) in
            [(false, false, 64), (false, true, 64), (true, false, 84), (true, true, 84)]
        {
            for size in [smallest, 85, 96, 128, 594, 1518, 3000, 9000] {
                let template = Template::new(&common(ipv6, tcp), size).unwrap();
                for number in 0..500 {
                    let (bytes, signature) = packet(&template, number);
                    assert_eq!(bytes.len() + FCS, size);
                    assert_checksums(&bytes);
                    let payload = &bytes[template.layout.payload()..];
                    let expected = match template.has_whole_signature() {
                        true => Found::Whole(signature),
                        false => Found::Short { flow: signature.flow },
                    };
                    assert_eq!(read(payload), Some((false, expected)), "{size}");
                }
            }
        }
    }

    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_all_ones() {
        let template = Template::new(&common(false, false), 64).unwrap();
        let mut seen = 0;
        for port in 0..=u16::MAX {
            let signature = Signature { flow: 1, sequence: 2, run: 3, time: 4 };
            let mut bytes = template.bytes().to_vec();
            let source = Source { tail: 0xc612_8001, port };
            template.write(&mut bytes, source, Segment::default(), &signature);
            assert_ne!(&bytes[40..42], [0, 0]);
            seen += u32::from(bytes[40..42] == [0xff, 0xff]);
        }
        assert_eq!(seen, 1, "one port of all makes the sum zero");
    }

    #[test]
    fn a_short_frame_has_a_short_signature() {
        let whole = |ipv6, tcp, size| {
            Template::new(&common(ipv6, tcp), size).map(|template| template.has_whole_signature())
        };
        assert_eq!(whole(false, false, 64), Some(true));
        assert_eq!((whole(false, true, 64), whole(false, true, 76)), (Some(false), Some(true)));
        assert_eq!((whole(true, false, 83), whole(true, false, 84)), (Some(false), Some(true)));
        assert_eq!((whole(true, true, 84), whole(true, true, 96)), (Some(false), Some(true)));
        assert_eq!(whole(true, true, 83), None);
        let mut mixed = common(true, false);
        mixed.client = "198.18.0.1".parse().unwrap();
        assert!(Template::new(&mixed, 100).is_none(), "two families");
    }
}
