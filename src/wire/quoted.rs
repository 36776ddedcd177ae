//! The packet quoted by an ICMP error: its flow, and its translation in place.
//!
//! ```text
//! | type code sum ... 8 bytes | IP header | first bytes of TCP or UDP ...
//!             |                  |  sum          ports  sum
//!             +- covers all of this, both inner checksums too
//! ```
//!
//! A *message* is a slice from the ICMP type to the end of the packet, without padding. A quote may
//! end after the 8th byte of the transport header (RFC 792, RFC 1122 3.2.2); a checksum beyond the
//! end needs no patch. Data after the quote (RFC 4884) and lengths are unchanged.

use super::checksum::{Delta, patch, replace};
use super::headers::{Headers, ends, protocol};
use super::icmp::ICMP_LEN;
use super::transport;
use crate::net::Address;

/// Minimum number of quoted bytes of a transport header: the ports and, for TCP, the sequence
/// number, by which TCP recognizes forged messages.
pub const MIN_TRANSPORT: usize = 8;

/// Offset of the checksum in an IPv4 header.
const V4_CHECKSUM: usize = 10;

/// An address and a port.
pub type End = (Address, u16);

/// Reason why a quote identifies no flow; the message is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuoteError {
    /// Truncated before the 8th byte of the transport header.
    Truncated,
    /// Malformed or unsupported headers.
    Malformed,
    /// A later fragment, which has no ports.
    Fragment,
    /// ICMP; for [`translate`], every protocol except TCP and UDP.
    Protocol,
    /// The new address is of the other family.
    Family,
}

/// Flow of a quoted packet, which was sent from `source` to `destination`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted {
    /// Protocol number of the IP header. If it is neither TCP (6) nor UDP (17), both ports are 0.
    pub protocol: u8,
    /// Sender of the quoted packet.
    pub source: End,
    /// Receiver of the quoted packet.
    pub destination: End,
}

/// Replacement of fields in a quoted packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replacement {
    /// New source.
    pub source: Option<End>,
    /// New destination.
    pub destination: Option<End>,
    /// Value added to the sequence number, if the packet is TCP.
    pub sequence: i32,
}

/// Positions of the quoted fields: offsets in the message.
struct Offsets {
    v4: bool,
    protocol: u8,
    source: usize,
    destination: usize,
    ports: usize,
    /// End of the quote.
    end: usize,
}

impl Offsets {
    fn of(message: &[u8]) -> Result<Self, QuoteError> {
        let packet = message.get(ICMP_LEN..).ok_or(QuoteError::Truncated)?;
        let headers = Headers::of(packet).map_err(|error| match error {
            super::headers::HeaderError::Truncated => QuoteError::Truncated,
            _ => QuoteError::Malformed,
        })?;
        if !matches!(headers.protocol, protocol::TCP | protocol::UDP) {
            return Err(QuoteError::Protocol);
        }
        if !headers.is_first() {
            return Err(QuoteError::Fragment);
        }
        if headers.end < headers.transport + MIN_TRANSPORT {
            return Err(QuoteError::Malformed);
        }
        let end = headers.end.min(packet.len());
        if end < headers.transport + MIN_TRANSPORT {
            return Err(QuoteError::Truncated);
        }
        let v4 = packet.first().is_some_and(|first| first >> 4 == 4);
        let (source, len) = if v4 { (12, 4) } else { (8, 16) };
        Ok(Self {
            v4,
            protocol: headers.protocol,
            source: ICMP_LEN + source,
            destination: ICMP_LEN + source + len,
            ports: ICMP_LEN + headers.transport,
            end: ICMP_LEN + end,
        })
    }
}

/// Reads the flow of the packet that `message` quotes.
///
/// # Errors
/// [`QuoteError`], except `Family`.
pub fn read(message: &[u8]) -> Result<Quoted, QuoteError> {
    let packet = message.get(ICMP_LEN..).ok_or(QuoteError::Truncated)?;
    let (source, destination) = ends(packet).ok_or(QuoteError::Truncated)?;
    let offsets = match Offsets::of(message) {
        Err(QuoteError::Protocol) => return without_ports(packet, source, destination),
        offsets => offsets?,
    };
    let ports = message.get(offsets.ports..).and_then(|rest| rest.first_chunk::<4>());
    let [s0, s1, d0, d1] = *ports.ok_or(QuoteError::Truncated)?;
    Ok(Quoted {
        protocol: offsets.protocol,
        source: (source, u16::from_be_bytes([s0, s1])),
        destination: (destination, u16::from_be_bytes([d0, d1])),
    })
}

/// Reads the flow of a quoted packet of a protocol without known ports. ICMP messages are refused:
/// no error about them is useful.
fn without_ports(
    packet: &[u8],
    source: Address,
    destination: Address,
) -> Result<Quoted, QuoteError> {
    let protocol = Headers::of(packet).map_err(|_| QuoteError::Malformed)?.protocol;
    if matches!(protocol, protocol::ICMP | protocol::ICMP_V6) {
        return Err(QuoteError::Protocol);
    }
    Ok(Quoted { protocol, source: (source, 0), destination: (destination, 0) })
}

/// Translates the packet that `message` quotes, and patches the checksums: of its IPv4 header, of
/// its TCP or UDP header if present (a UDP checksum of 0 stays), and of the message itself.
///
/// `outer` is the change of the message's pseudo header: for ICMPv6 that of the outer addresses,
/// for ICMP none.
///
/// # Errors
/// [`QuoteError`].
pub fn translate(
    message: &mut [u8],
    replacement: &Replacement,
    outer: Delta,
) -> Result<(), QuoteError> {
    let offsets = Offsets::of(message)?;
    let ends = [replacement.source, replacement.destination];
    if ends.iter().flatten().any(|end| end.0.is_v4() != offsets.v4) {
        return Err(QuoteError::Family);
    }
    // The quoted packet starts at an even offset, so words of its checksums are also words of the
    // message's.
    let mut network = Delta::default();
    for (end, at) in ends.into_iter().zip([offsets.source, offsets.destination]) {
        let Some((address, _)) = end else { continue };
        network = if offsets.v4 {
            replace(message, at, &address.v4_octets(), network)
        } else {
            replace(message, at, &address.octets(), network)
        };
    }
    let ports = ends.map(|end| end.map(|(_, port)| port));
    let segment = message.get_mut(offsets.ports..offsets.end).unwrap_or_default();
    let sequence = replacement.sequence;
    let transport = transport::rewrite_short(segment, offsets.protocol, ports, sequence, network);
    let mut all = outer.and(network).and(transport);
    if offsets.v4 {
        all = patch(message, ICMP_LEN + V4_CHECKSUM, network, all);
    }
    let _ = patch(message, 2, all, Delta::default());
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use proptest::prelude::*;

    use super::super::headers::{V4_LEN, V6_LEN};
    use super::super::testing::*;
    use super::*;

    fn end(v4: bool, last: u8, port: u16) -> End {
        let mut v6 = VIP_V6;
        v6[15] = last;
        let address = if v4 { Address::from_v4([10, 0, 0, last]) } else { Address::from_v6(v6) };
        (address, port)
    }

    /// An ICMP message about `packet`, with a correct checksum, without a pseudo header.
    fn quoting(packet: &[u8]) -> Vec<u8> {
        let mut message = [&[3, 4, 0, 0, 0, 0, 5, 0], packet].concat();
        let sum = !sum(&[&message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        message
    }

    fn assert_sum(message: &[u8]) {
        assert_eq!(sum(&[message]), 0xffff, "checksum of the message");
    }

    #[test]
    fn whole_quotes_come_out_right_on_every_side() {
        for (v4, protocol) in [(true, 6), (true, 17), (false, 6), (false, 17)] {
            for (source, destination) in [(false, true), (true, false), (true, true)] {
                let original = packet(v4, protocol, b"odd");
                let mut message = quoting(&original);
                let before = read(&message).unwrap();
                let replacement = Replacement {
                    source: source.then_some(end(v4, 7, 7777)),
                    destination: destination.then_some(end(v4, 9, 9999)),
                    sequence: -28,
                };
                translate(&mut message, &replacement, Delta::default()).unwrap();
                assert_sum(&message);
                assert_right(&message[8..]);
                let after = read(&message).unwrap();
                assert_eq!(after.source, replacement.source.unwrap_or(before.source));
                assert_eq!(
                    after.destination,
                    replacement.destination.unwrap_or(before.destination)
                );
                let ip = if v4 { V4_LEN } else { V6_LEN };
                if protocol == 6 {
                    let number = super::super::tcp::sequence(&message[8 + ip..]);
                    assert_eq!(number, Some(0x0102_0304 - 28));
                }
            }
        }
    }

    #[test]
    fn quotes_cut_short_at_every_byte() {
        for (v4, protocol) in [(true, 6), (true, 17), (false, 6), (false, 17)] {
            let original = packet(v4, protocol, b"data");
            let ip = if v4 { V4_LEN } else { V6_LEN };
            let replacement = Replacement {
                source: Some(end(v4, 7, 7)),
                destination: Some(end(v4, 9, 9)),
                sequence: 52,
            };
            let mut whole = quoting(&original);
            translate(&mut whole, &replacement, Delta::default()).unwrap();
            for len in 0..original.len() {
                let mut message = quoting(&original[..len]);
                let before = message.clone();
                let result = translate(&mut message, &replacement, Delta::default());
                assert_sum(&message);
                if len < ip + 8 {
                    assert_eq!((result, &message), (Err(QuoteError::Truncated), &before));
                    continue;
                }
                assert_eq!(result, Ok(()));
                let sums = len >= ip + if protocol == 6 { 18 } else { 8 };
                // A missing or truncated checksum is unchanged; the rest is as in the whole quote.
                let until = if sums { 8 + len } else { 8 + len.min(ip + 16) };
                assert_eq!(message[8..until], whole[8..until], "{len} bytes");
                assert_eq!(message[until..], before[until..], "{len} bytes");
            }
        }
    }

    #[test]
    fn an_absent_checksum_stays_and_a_zero_goes_out_as_all_ones() {
        let mut original = packet(true, 17, b"data");
        original[26..28].fill(0);
        let mut message = quoting(&original);
        let to = |port| Replacement { source: Some(end(true, 1, port)), ..Default::default() };
        translate(&mut message, &to(99), Delta::default()).unwrap();
        assert_sum(&message);
        assert_eq!(message[8 + 26..8 + 28], [0, 0]);
        let mut all_ones = 0;
        for port in 0..=u16::MAX {
            let mut message = quoting(&packet(true, 17, b"data"));
            translate(&mut message, &to(port), Delta::default()).unwrap();
            assert_ne!(message[8 + 26..8 + 28], [0, 0]);
            all_ones += u32::from(message[8 + 26..8 + 28] == [0xff, 0xff]);
        }
        assert_eq!(all_ones, 1);
    }

    #[test]
    fn the_outer_addresses_are_in_icmp_v6_checksums() {
        let addresses = |vip: [u8; 16]| [CLIENT_V6, vip].concat();
        let original = packet(false, 6, b"data");
        let mut message = [&[2, 0, 0, 0, 0, 0, 5, 0], original.as_slice()].concat();
        let sum_with = |message: &[u8], vip| sum(&[&addresses(vip), &[0, 58], message]);
        let right = !sum_with(&message, VIP_V6);
        message[2..4].copy_from_slice(&right.to_be_bytes());
        let outer = Delta::default().replace_v6(VIP_V6, [9; 16]);
        let replacement = Replacement { source: Some(end(false, 3, 4)), ..Default::default() };
        translate(&mut message, &replacement, outer).unwrap();
        assert_eq!(sum_with(&message, [9; 16]), 0xffff);
        assert_right(&message[8..]);
    }

    #[test]
    fn quotes_without_a_flow_are_refused() {
        let edit = |at: usize, byte| {
            let mut original = packet(true, 17, b"data");
            original[at] = byte;
            quoting(&original)
        };
        for (name, mut message, expected) in [
            ("another protocol", edit(9, 1), QuoteError::Protocol),
            ("a later fragment", edit(7, 1), QuoteError::Fragment),
            ("another version", edit(0, 0x75), QuoteError::Malformed),
            ("no room for a header", edit(3, 27), QuoteError::Malformed),
            ("a short IHL", edit(0, 0x44), QuoteError::Malformed),
            ("nothing", vec![3; 7], QuoteError::Truncated),
        ] {
            let before = message.clone();
            let result = translate(&mut message, &Replacement::default(), Delta::default());
            assert_eq!((result, message), (Err(expected), before), "{name}");
        }
        let quoted = read(&edit(9, 50)).unwrap();
        assert_eq!((quoted.protocol, quoted.source.1, quoted.destination.1), (50, 0, 0));
        let mut message = quoting(&packet(true, 17, b"data"));
        let replacement = Replacement { source: Some(end(false, 1, 1)), ..Default::default() };
        let result = translate(&mut message, &replacement, Delta::default());
        assert_eq!(result, Err(QuoteError::Family));
    }

    proptest! {
        #[test]
        fn any_bytes_keep_their_length_and_their_sum(
            mut quote: Vec<u8>,
            start in prop::sample::select(vec![0x45_u8, 0x48, 0x60]),
            protocol in prop::sample::select(vec![6_u8, 17]),
            sequence: i32,
        ) {
            quote.get_mut(..1).unwrap_or_default().fill(start);
            let v4 = start != 0x60;
            let at = if v4 { 9 } else { 6 };
            quote.get_mut(at..=at).unwrap_or_default().fill(protocol);
            let mut message = quoting(&quote);
            let destination = Some(end(v4, 5, 5));
            let replacement = Replacement { source: None, destination, sequence };
            let before = message.clone();
            match translate(&mut message, &replacement, Delta::default()) {
                Ok(()) => {
                    assert_sum(&message);
                    prop_assert_eq!(read(&message).unwrap().destination, end(v4, 5, 5));
                }
                Err(_) => prop_assert_eq!(message, before),
            }
        }
    }
}
