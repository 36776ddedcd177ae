//! TCP and UDP headers: replacement of ports and checksum patches.

use super::checksum::{Delta, replace};
use super::headers::protocol;
use super::ip::Side;
use super::tcp;
use crate::net::Protocol;

/// Replaces one port of the header at the start of `segment`, and patches its checksum by that and
/// by `addresses`, the change in the pseudo header. Returns false, with nothing changed, if the
/// header is truncated.
///
/// A UDP checksum of 0 means "none" (RFC 768) and stays 0; one that becomes 0 is sent as 0xffff.
#[inline]
pub fn rewrite(
    protocol: Protocol,
    segment: &mut [u8],
    side: Side,
    port: u16,
    addresses: Delta,
) -> bool {
    match protocol {
        Protocol::Tcp => match segment.first_chunk_mut::<20>() {
            Some([s0, s1, d0, d1, _, _, _, _, _, _, _, _, _, _, _, _, c0, c1, _, _]) => {
                let delta = replace_port(side, [s0, s1], [d0, d1], port, addresses);
                [*c0, *c1] = delta.apply(u16::from_be_bytes([*c0, *c1])).to_be_bytes();
                true
            }
            None => false,
        },
        Protocol::Udp => match segment.first_chunk_mut::<8>() {
            Some([s0, s1, d0, d1, _, _, c0, c1]) => {
                let delta = replace_port(side, [s0, s1], [d0, d1], port, addresses);
                let sum = u16::from_be_bytes([*c0, *c1]);
                if sum != 0 {
                    let patched = match delta.apply(sum) {
                        0 => 0xffff,
                        patched => patched,
                    };
                    [*c0, *c1] = patched.to_be_bytes();
                }
                true
            }
            None => false,
        },
        // No ports, and no known checksum.
        Protocol::Any => true,
    }
}

/// Like [`rewrite`], for both ports: source, destination.
#[inline]
pub fn readdress(
    protocol: Protocol,
    segment: &mut [u8],
    (source, destination): (u16, u16),
    addresses: Delta,
) -> bool {
    let Some([s0, s1, ..]) = segment.first_chunk::<4>() else { return false };
    let delta = addresses.replace_u16(u16::from_be_bytes([*s0, *s1]), source);
    if !rewrite(protocol, segment, Side::Destination, destination, delta) {
        return false;
    }
    if let Some(port) = segment.first_chunk_mut::<2>() {
        *port = source.to_be_bytes();
    }
    true
}

#[inline]
fn replace_port(
    side: Side,
    source: [&mut u8; 2],
    destination: [&mut u8; 2],
    port: u16,
    addresses: Delta,
) -> Delta {
    let [high, low] = match side {
        Side::Source => source,
        Side::Destination => destination,
    };
    let old = u16::from_be_bytes([*high, *low]);
    [*high, *low] = port.to_be_bytes();
    addresses.replace_u16(old, port)
}

/// Rewrites a header that may be truncated, as in a quote: replaces the given ports (source,
/// destination), adds `sequence` to a TCP sequence number, and patches the checksum, if present.
/// `segment` ends with the packet. Returns the change for a sum over `segment`.
pub fn rewrite_short(
    segment: &mut [u8],
    protocol: u8,
    ports: [Option<u16>; 2],
    sequence: i32,
    addresses: Delta,
) -> Delta {
    let mut delta = Delta::default();
    for (at, port) in [0, 2].into_iter().zip(ports) {
        if let Some(port) = port {
            delta = replace(segment, at, &port.to_be_bytes(), delta);
        }
    }
    let tcp = protocol == protocol::TCP;
    if tcp && let Some(number) = tcp::sequence(segment) {
        let shifted = number.wrapping_add_signed(sequence);
        delta = tcp::set_sequence(segment, shifted, delta);
    }
    let at = if tcp { 16 } else { 6 };
    let old = segment.get(at..).and_then(|rest| rest.first_chunk::<2>()).copied();
    let new = match old.map(u16::from_be_bytes) {
        None => return delta,
        Some(0) if !tcp => return delta,
        Some(old) => match addresses.and(delta).apply(old) {
            0 if !tcp => 0xffff,
            new => new,
        },
    };
    replace(segment, at, &new.to_be_bytes(), delta)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use etherparse::{PacketBuilder, TcpSlice, UdpSlice};

    use super::super::ip::rewrite_v4;
    use super::*;
    use crate::net::Address;

    fn packet(udp: bool, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ipv4([198, 18, 0, 1], [192, 0, 2, 10], 64);
        let mut bytes = Vec::new();
        if udp {
            builder.udp(1000, 53).write(&mut bytes, payload).unwrap();
        } else {
            builder.tcp(1000, 80, 1, 1000).write(&mut bytes, payload).unwrap();
        }
        bytes
    }

    fn rewritten(protocol: Protocol, mut bytes: Vec<u8>, port: u16) -> Vec<u8> {
        let target = Address::from_v4([10, 0, 0, 7]);
        let delta = rewrite_v4(&mut bytes, Side::Destination, target).unwrap();
        assert!(rewrite(protocol, &mut bytes[20..], Side::Destination, port, delta));
        bytes
    }

    #[test]
    fn tcp_checksums_equal_full_ones_for_every_port() {
        for port in 1..=u16::MAX {
            let bytes = rewritten(Protocol::Tcp, packet(false, b"odd"), port);
            let slice = TcpSlice::from_slice(&bytes[20..]).unwrap();
            let expected = slice.calc_checksum_ipv4([198, 18, 0, 1], [10, 0, 0, 7]).unwrap();
            assert_eq!((slice.destination_port(), slice.checksum()), (port, expected));
        }
    }

    #[test]
    fn both_ports_at_once_leave_checksums_right() {
        for (udp, protocol) in [(false, Protocol::Tcp), (true, Protocol::Udp)] {
            for port in 1..=u16::MAX {
                let mut bytes = packet(udp, b"odd");
                let target = Address::from_v4([10, 0, 0, 7]);
                let delta = rewrite_v4(&mut bytes, Side::Destination, target).unwrap();
                assert!(readdress(protocol, &mut bytes[20..], (port, !port), delta));
                let (a, b) = ([198, 18, 0, 1], [10, 0, 0, 7]);
                let (ports, sum, expected) = if udp {
                    let header = UdpSlice::from_slice(&bytes[20..]).unwrap().to_header();
                    let expected = header.calc_checksum_ipv4_raw(a, b, b"odd").unwrap();
                    ((header.source_port, header.destination_port), header.checksum, expected)
                } else {
                    let slice = TcpSlice::from_slice(&bytes[20..]).unwrap();
                    let expected = slice.calc_checksum_ipv4(a, b).unwrap();
                    ((slice.source_port(), slice.destination_port()), slice.checksum(), expected)
                };
                assert_eq!((ports, sum), ((port, !port), expected), "{protocol:?}");
            }
        }
    }

    #[test]
    fn udp_checksums_equal_full_ones_and_zero_goes_out_as_all_ones() {
        let mut all_ones = 0;
        for port in 1..=u16::MAX {
            let bytes = rewritten(Protocol::Udp, packet(true, b"dns"), port);
            let slice = UdpSlice::from_slice(&bytes[20..]).unwrap();
            let header = slice.to_header();
            let expected = header.calc_checksum_ipv4_raw([198, 18, 0, 1], [10, 0, 0, 7], b"dns");
            assert_eq!(slice.checksum(), expected.unwrap(), "port {port}");
            all_ones += u32::from(slice.checksum() == 0xffff);
        }
        assert_eq!(all_ones, 1, "one port of all makes the sum zero");
    }

    #[test]
    fn an_absent_udp_checksum_stays_absent() {
        let mut bytes = packet(true, b"dns");
        bytes[26..28].fill(0);
        let bytes = rewritten(Protocol::Udp, bytes, 5353);
        assert_eq!(UdpSlice::from_slice(&bytes[20..]).unwrap().checksum(), 0);
    }

    #[test]
    fn every_truncation_is_refused() {
        for (protocol, len) in [(Protocol::Tcp, 20), (Protocol::Udp, 8)] {
            for len in 0..len {
                let mut bytes = vec![1; len];
                assert!(!rewrite(protocol, &mut bytes, Side::Source, 9, Delta::default()));
                assert_eq!(bytes, vec![1; len]);
            }
        }
    }
}
