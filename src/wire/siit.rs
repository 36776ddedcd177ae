//! Stateless translation between IPv4 and IPv6 in place (RFC 7915), for NAT64 and NAT46.
//!
//! ```text
//! | Ethernet | IPv4, options          | TCP, UDP, ICMP ... |
//! | Ethernet | IPv6, fragment header  | TCP, UDP, ICMPv6 ... |     both ways
//! ```
//!
//! Data after the headers stay in place in the frame; the bytes before them are rewritten. The
//! caller, which tracks the flow, supplies both addresses and both ports: this module translates
//! headers only. IPv4 options are dropped (4.1), IPv6 extension headers are skipped (5.1).
//!
//! Checksums of TCP and UDP are patched, so that corruption on the path stays detectable. An IPv4
//! UDP datagram without a checksum gets one, which IPv6 requires.

mod header;
mod messages;

use super::checksum::{self, Delta};
use super::headers::{Headers, V4_LEN, addresses, protocol};
use super::ip::is_header_sum_right;
use super::transport;
use crate::xdp::umem::Frame;

use header::{Ip, change_of_addresses, check_mtu, replace_front};

pub use header::{Quote, SiitError, Target};

/// Translates the packet in `frame`, with its IP header at `at` (at most 32), into the other
/// family. Sets the Ethernet type, removes padding and decrements the hop count.
///
/// Cost: the headers; for a UDP datagram without a checksum and for ICMP errors, the whole packet.
///
/// # Errors
/// [`SiitError`].
pub fn translate(frame: &mut Frame, at: usize, target: &Target) -> Result<(), SiitError> {
    let packet = frame.data().get(at..).ok_or(SiitError::Malformed)?;
    let headers = Headers::of(packet)?;
    let packet = packet.get(..headers.end).ok_or(SiitError::Malformed)?;
    let from_v4 = packet.first().is_some_and(|first| first >> 4 == 4);
    if target.source.0.is_v4() == from_v4 || target.destination.0.is_v4() == from_v4 {
        return Err(SiitError::Family);
    }
    if !is_header_sum_right(packet) {
        return Err(SiitError::BadHeaderChecksum);
    }
    if from_v4 && has_source_route(packet.get(V4_LEN..headers.transport).unwrap_or_default()) {
        return Err(SiitError::SourceRoute);
    }
    let mut ip = Ip::read(packet, &headers)?;
    ip.hops = ip.hops.checked_sub(1).filter(|&hops| hops > 0).ok_or(SiitError::HopsExceeded)?;
    match ip.protocol {
        protocol::ICMP => messages::translate(frame, at, &headers, ip, target),
        protocol::TCP | protocol::UDP => ports(frame, at, &headers, ip, target),
        _ => Err(SiitError::Protocol),
    }
}

/// Translates a TCP or UDP packet, or a fragment of one.
fn ports(
    frame: &mut Frame,
    at: usize,
    headers: &Headers,
    ip: Ip,
    target: &Target,
) -> Result<(), SiitError> {
    let packet = frame.data().get(at..at + headers.end).ok_or(SiitError::Malformed)?;
    let segment = packet.get(headers.transport..).ok_or(SiitError::Malformed)?;
    let shortest = if ip.protocol == protocol::TCP { 20 } else { 8 };
    if headers.is_first() && segment.len() < shortest {
        return Err(SiitError::Malformed);
    }
    let sum_wanted = headers.is_first() && lacks_checksum(ip.protocol, segment);
    if sum_wanted && (!headers.is_whole() || udp_part(segment).is_none()) {
        let whole = headers.is_whole();
        return Err(if whole { SiitError::Malformed } else { SiitError::NoChecksum });
    }
    let header = ip.header(target.source, target.destination, target.identification)?;
    let change = change_of_addresses(packet, &header)?;
    check_mtu(headers, header.len(), target.mtu)?;
    replace_front(frame, at, headers.transport, headers.end, &header)?;
    if !headers.is_first() {
        return Ok(());
    }
    let packet = frame.data_mut().get_mut(at..).unwrap_or_default();
    let Some((head, segment)) = packet.split_at_mut_checked(header.len()) else { return Ok(()) };
    let new_ports = [Some(target.source.1), Some(target.destination.1)];
    let _ = transport::rewrite_short(segment, ip.protocol, new_ports, 0, change);
    if sum_wanted {
        write_udp_checksum(head, segment);
    }
    Ok(())
}

/// Whether the segment is a UDP datagram without a checksum.
fn lacks_checksum(protocol: u8, segment: &[u8]) -> bool {
    protocol == protocol::UDP && segment.get(6..8) == Some(&[0, 0])
}

/// The datagram within `segment`, by its own length field.
fn udp_part(segment: &[u8]) -> Option<&[u8]> {
    let len = segment.get(4..)?.first_chunk::<2>().map(|len| u16::from_be_bytes(*len))?;
    if len < 8 { None } else { segment.get(..len.into()) }
}

/// Computes the checksum of a UDP datagram over IPv6, with the field set to 0.
fn write_udp_checksum(head: &[u8], segment: &mut [u8]) {
    let Some(datagram) = udp_part(segment) else { return };
    let Ok(len) = u32::try_from(datagram.len()) else { return };
    let both = addresses(head).unwrap_or_default();
    let sum = checksum::pseudo_header(both, len, protocol::UDP).add_slice(datagram);
    let sum = match checksum::of(&sum) {
        0 => 0xffff,
        sum => sum,
    };
    let _ = checksum::replace(segment, 6, &sum.to_be_bytes(), Delta::default());
}

/// Whether options of an IPv4 header contain a source route with addresses left to visit.
fn has_source_route(mut options: &[u8]) -> bool {
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    while let [kind, rest @ ..] = options {
        options = match *kind {
            0 => return false,
            1 => rest,
            kind => match *rest {
                [len, pointer, ..] if matches!(kind, LOOSE | STRICT) && pointer <= len => {
                    return true;
                }
                [len, ..] if len >= 2 => options.get(usize::from(len)..).unwrap_or_default(),
                _ => return false,
            },
        };
    }
    false
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests may stop")]
mod tests;
