//! A packet that comes out of the balancer: parsed, and turned into its reply in place.

use std::net::IpAddr;

use super::layout::{ETHERNET, Layout};
use super::packet::{Segment, flags, put};
use super::signature::{self, Found, REPLY, REQUEST};
use crate::net::Address;
use crate::wire::checksum::Delta;

/// Identity of a backend: its MAC (dsr) or address (nat), as the destination of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BackendKey {
    /// Destination MAC.
    pub mac: [u8; 6],
    /// Destination address.
    pub address: Address,
}

/// A parsed packet of the generator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Whether it is a reply of a backend.
    pub reply: bool,
    /// Destination MAC and address.
    pub to: BackendKey,
    /// Source address.
    pub source: Address,
    /// Source port.
    pub source_port: u16,
    /// TCP fields; all zeros for UDP.
    pub segment: Segment,
    /// TCP's urgent pointer: the lower half of a sequence number if the signature is short.
    pub urgent: u16,
    /// Signature in the payload.
    pub signature: Found,
}

/// Parses a frame. Returns `None` if it is not the generator's, or of another layout than the
/// run's.
///
/// Cost: two cache lines, all of which a reply needs too.
#[inline]
pub fn read(frame: &[u8], layout: Layout) -> Option<Arrival> {
    let ([d0, d1, d2, d3, d4, d5, _, _, _, _, _, _, t0, t1], network) =
        frame.split_first_chunk::<ETHERNET>()?;
    if [*t0, *t1] != layout.ether_type() {
        return None;
    }
    let (protocol, source, destination) = read_network(network, layout)?;
    if protocol != layout.protocol() {
        return None;
    }
    let transport = frame.get(layout.transport()..)?;
    let [s0, s1, ..] = transport.first_chunk::<8>()?;
    let (segment, urgent) =
        if layout.tcp { read_segment(transport)? } else { (Segment::default(), 0) };
    let (reply, signature) = signature::read(frame.get(layout.payload()..)?)?;
    let mac = [*d0, *d1, *d2, *d3, *d4, *d5];
    let to = BackendKey { mac, address: destination };
    let source_port = u16::from_be_bytes([*s0, *s1]);
    Some(Arrival { reply, to, source, source_port, segment, urgent, signature })
}

#[inline]
fn read_network(network: &[u8], layout: Layout) -> Option<(u8, Address, Address)> {
    if layout.ipv6 {
        let header = network.first_chunk::<40>()?;
        let &[_, _, _, _, _, _, next, _, ..] = header;
        let source = header.get(8..24)?.first_chunk()?;
        let destination = header.get(24..40)?.first_chunk()?;
        return Some((next, Address::from_v6(*source), Address::from_v6(*destination)));
    }
    let &[version, _, _, _, _, _, _, _, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        network.first_chunk::<20>()?;
    let source = Address::from_v4([s0, s1, s2, s3]);
    let destination = Address::from_v4([d0, d1, d2, d3]);
    (version == 0x45).then_some((protocol, source, destination))
}

#[inline]
fn read_segment(transport: &[u8]) -> Option<(Segment, u16)> {
    let &[_, _, _, _, s0, s1, s2, s3, a0, a1, a2, a3, _, flags, _, _, _, _, u0, u1] =
        transport.first_chunk::<20>()?;
    let segment = Segment {
        sequence: u32::from_be_bytes([s0, s1, s2, s3]),
        acknowledgement: u32::from_be_bytes([a0, a1, a2, a3]),
        flags,
    };
    Some((segment, u16::from_be_bytes([u0, u1])))
}

/// Returns the server's reply to `request`, the client's segment with `payload` bytes. The server
/// is an echo server, which sends back as many bytes as it got, so its sequence numbers are the
/// client's plus a constant, `offset`.
#[inline]
pub fn server_segment(request: Segment, payload: u32, offset: u32) -> Segment {
    let syn_or_fin = request.flags & (flags::SYN | flags::FIN);
    let phantom = u32::from(syn_or_fin != 0);
    Segment {
        sequence: request.sequence.wrapping_add(offset),
        acknowledgement: request.sequence.wrapping_add(payload).wrapping_add(phantom),
        flags: syn_or_fin | flags::ACK,
    }
}

/// Turns a request into its reply, in place: swaps both ends, marks it as a reply, writes `segment`
/// for TCP, and patches the checksums. Returns false, with the frame unusable, if it is truncated.
#[inline]
#[must_use]
pub fn answer(frame: &mut [u8], layout: Layout, old: Segment, segment: Segment) -> bool {
    let swapped = swap(frame, 0, 6, 6)
        && if layout.ipv6 { swap(frame, 22, 38, 16) } else { swap(frame, 26, 30, 4) }
        && swap(frame, layout.transport(), layout.transport() + 2, 2);
    if !swapped {
        return false;
    }
    restore_hops(frame, layout);
    put(frame, layout.payload(), REPLY);
    let mut delta =
        Delta::default().replace_u16(u16::from_be_bytes(REQUEST), u16::from_be_bytes(REPLY));
    if layout.tcp {
        delta = write_segment(frame, layout, old, segment, delta);
    }
    patch_checksum(frame, layout, delta)
}

fn write_segment(
    frame: &mut [u8],
    layout: Layout,
    old: Segment,
    new: Segment,
    delta: Delta,
) -> Delta {
    let start = layout.transport();
    put(frame, start + 4, new.sequence.to_be_bytes());
    put(frame, start + 8, new.acknowledgement.to_be_bytes());
    put(frame, start + 13, [new.flags]);
    delta
        .replace_v4(old.sequence.to_be_bytes(), new.sequence.to_be_bytes())
        .replace_v4(old.acknowledgement.to_be_bytes(), new.acknowledgement.to_be_bytes())
        .replace_u16(u16::from(old.flags), u16::from(new.flags))
}

fn patch_checksum(frame: &mut [u8], layout: Layout, delta: Delta) -> bool {
    let at = layout.transport_checksum();
    let Some(place) = frame.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<2>()) else {
        return false;
    };
    *place = match delta.apply(u16::from_be_bytes(*place)) {
        0 if !layout.tcp => [0xff, 0xff],
        checksum => checksum.to_be_bytes(),
    };
    true
}

/// Resets the time-to-live or hop limit to 64, as in a new packet.
fn restore_hops(frame: &mut [u8], layout: Layout) {
    const HOPS: u8 = 64;
    if layout.ipv6 {
        return put(frame, ETHERNET + 7, [HOPS]);
    }
    let Some([ttl, protocol, c0, c1]) =
        frame.get_mut(ETHERNET + 8..).and_then(|rest| rest.first_chunk_mut::<4>())
    else {
        return;
    };
    let (old, new) = (u16::from_be_bytes([*ttl, *protocol]), u16::from_be_bytes([HOPS, *protocol]));
    let checksum = Delta::default().replace_u16(old, new).apply(u16::from_be_bytes([*c0, *c1]));
    *ttl = HOPS;
    [*c0, *c1] = checksum.to_be_bytes();
}

/// Swaps `len` bytes at `first` with those at `second`, which lie behind them.
#[inline]
fn swap(frame: &mut [u8], first: usize, second: usize, len: usize) -> bool {
    let Some((head, tail)) = frame.split_at_mut_checked(second) else { return false };
    match (head.get_mut(first..first + len), tail.get_mut(..len)) {
        (Some(a), Some(b)) => {
            a.swap_with_slice(b);
            true
        }
        _ => false,
    }
}

/// Returns the address of a backend for reports.
pub fn address_of(key: &BackendKey) -> IpAddr {
    key.address.into()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use super::super::packet::Template;
    use super::super::packet::tests::{assert_checksums, common};
    use super::super::signature::Signature;
    use super::super::tuple::Source;
    use super::*;

    const SIGNATURE: Signature = Signature { flow: 9, sequence: 70_000, run: 2, time: 123_456 };
    const SEGMENT: Segment = Segment { sequence: u32::MAX - 3, acknowledgement: 5, flags: 0x18 };

    fn request(ipv6: bool, tcp: bool, size: usize) -> (Vec<u8>, Layout, u32) {
        let common = common(ipv6, tcp);
        let template = Template::new(&common, size).unwrap();
        let mut bytes = template.bytes().to_vec();
        let source = Source { tail: 0xc612_8005, port: 2000 };
        template.write(&mut bytes, source, SEGMENT, &SIGNATURE);
        (bytes, common.layout, template.payload_len())
    }

    #[test]
    fn a_request_is_read_as_it_was_written() {
        for (ipv6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
            let (bytes, layout, _) = request(ipv6, tcp, 100);
            let arrival = read(&bytes, layout).unwrap();
            assert!(!arrival.reply);
            assert_eq!(arrival.signature, Found::Whole(SIGNATURE));
            assert_eq!(arrival.to.mac, [2, 0, 0, 0, 0, 2]);
            assert_eq!(address_of(&arrival.to), common(ipv6, tcp).target);
            assert_eq!(arrival.source_port, 2000);
            assert_eq!(arrival.segment, if tcp { SEGMENT } else { Segment::default() });
            for other in [Layout { ipv6: !ipv6, tcp }, Layout { ipv6, tcp: !tcp }] {
                assert_eq!(read(&bytes, other), None, "of another layout");
            }
            for len in 0..layout.payload() + 6 {
                assert_eq!(read(&bytes[..len], layout), None, "cut to {len} bytes");
            }
        }
    }

    #[test]
    fn a_short_frame_has_half_a_sequence_number_in_the_urgent_pointer() {
        let (bytes, layout, _) = request(false, true, 64);
        let arrival = read(&bytes, layout).unwrap();
        assert_eq!(arrival.signature, Found::Short { flow: 9 });
        assert_eq!(u32::from(arrival.urgent), SIGNATURE.sequence & 0xffff);
    }

    #[test]
    fn an_answer_has_both_ends_swapped_and_good_checksums() {
        for (ipv6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
            for size in [84, 85, 200] {
                let (mut bytes, layout, payload) = request(ipv6, tcp, size);
                let request = read(&bytes, layout).unwrap();
                // As after two routers.
                if ipv6 {
                    bytes[21] = 62;
                } else {
                    bytes[22] -= 2;
                    let sum = u16::from_be_bytes([bytes[24], bytes[25]]);
                    bytes[24..26].copy_from_slice(&(sum + 0x200).to_be_bytes());
                }
                let segment = server_segment(request.segment, payload, 1000);
                assert!(answer(&mut bytes, layout, request.segment, segment));
                assert_checksums(&bytes);
                let reply = read(&bytes, layout).unwrap();
                assert!(reply.reply);
                assert_eq!(
                    (reply.to.mac, &bytes[6..12]),
                    ([2, 0, 0, 0, 0, 1], &[2, 0, 0, 0, 0, 2][..])
                );
                assert_eq!((reply.source, reply.to.address), (request.to.address, request.source));
                assert_eq!((reply.source_port, reply.signature), (4433, request.signature));
                assert_eq!(bytes[if ipv6 { 21 } else { 22 }], 64, "hops");
                if tcp {
                    assert_eq!(reply.segment, segment);
                }
            }
        }
    }

    #[test]
    fn the_server_is_an_echo_with_its_own_initial_number() {
        for (flags_in, flags_out, phantom) in [
            (flags::SYN, flags::SYN | flags::ACK, 1),
            (flags::ACK, flags::ACK, 0),
            (flags::FIN | flags::ACK, flags::FIN | flags::ACK, 1),
        ] {
            let client = Segment { sequence: u32::MAX, acknowledgement: 0, flags: flags_in };
            let server = server_segment(client, 10, 500);
            assert_eq!((server.sequence, server.flags), (499, flags_out));
            assert_eq!(server.acknowledgement, 9 + phantom);
        }
    }
}
