//! ICMP (RFC 792) and ICMPv6 (RFC 4443) messages, built in place of the packet that caused them.
//!
//! ```text
//! echo    | Ethernet | IP a > b | request |        | Ethernet | IP b > a | reply |
//! error   | Ethernet | IP a > b | ...     |        | Ethernet | IP v > a | ICMP | IP a > b | ... |
//! ```
//!
//! The Ethernet header (with its tags) is unchanged; the caller addresses the frame
//! ([`super::ethernet::readdress`]). All calls take the offset of the IP header in the frame.

use super::checksum::{self, Delta};
use super::headers::{self, HeaderError, Headers, V4_LEN, V6_LEN, protocol};
use crate::net::{Address, Family};
use crate::xdp::umem::Frame;

/// Length of an ICMP header, in bytes.
pub const ICMP_LEN: usize = 8;
/// Maximum length of the packet that an ICMP error quotes, in bytes: with its own headers and
/// Ethernet's, 98 bytes. The headers and 8 bytes after them are always quoted (RFC 1122 3.2.2).
const QUOTE_V4: usize = 56;
/// Maximum length of the packet that an ICMPv6 error quotes, in bytes: it fits into the minimum MTU
/// (RFC 4443 3.1, RFC 8200 5).
const QUOTE_V6: usize = MIN_MTU_V6 - V6_LEN - ICMP_LEN;
/// Minimum MTU of IPv6, in bytes (RFC 8200 5).
pub const MIN_MTU_V6: usize = LEAST_V6 as usize;
const LEAST_V6: u16 = 1280;
/// TTL or hop limit of generated messages (RFC 1340).
const HOPS: u8 = 64;
/// Precedence 6, internetwork control (RFC 1812 4.3.2.5).
const TOS: u8 = 0xc0;
/// Don't fragment: the identification is unused and may be 0 (RFC 6864 4.1).
const DONT_FRAGMENT: u8 = 0x40;

/// Message types of both families.
pub mod kind {
    /// ICMP echo reply.
    pub const V4_ECHO_REPLY: u8 = 0;
    /// ICMP destination unreachable.
    pub const V4_UNREACHABLE: u8 = 3;
    /// ICMP source quench (RFC 6633: deprecated).
    pub const V4_SOURCE_QUENCH: u8 = 4;
    /// ICMP redirect.
    pub const V4_REDIRECT: u8 = 5;
    /// ICMP echo request.
    pub const V4_ECHO_REQUEST: u8 = 8;
    /// ICMP time exceeded.
    pub const V4_TIME_EXCEEDED: u8 = 11;
    /// ICMP parameter problem.
    pub const V4_PARAMETER_PROBLEM: u8 = 12;
    /// ICMPv6 destination unreachable.
    pub const V6_UNREACHABLE: u8 = 1;
    /// ICMPv6 packet too big.
    pub const V6_TOO_BIG: u8 = 2;
    /// ICMPv6 time exceeded.
    pub const V6_TIME_EXCEEDED: u8 = 3;
    /// ICMPv6 parameter problem.
    pub const V6_PARAMETER_PROBLEM: u8 = 4;
    /// ICMPv6 echo request.
    pub const V6_ECHO_REQUEST: u8 = 128;
    /// ICMPv6 echo reply.
    pub const V6_ECHO_REPLY: u8 = 129;
    /// ICMPv6 redirect.
    pub const V6_REDIRECT: u8 = 137;
}

/// Reason why a packet gets no ICMP reply; it is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoReply {
    /// Truncated, malformed or unsupported headers.
    Malformed,
    /// An ICMP error, or a message that may be one (RFC 1122 3.2.2, RFC 4443 2.4 e.1, e.2).
    IcmpError,
    /// The destination is a multicast or broadcast address, of the link or of IP.
    NotUnicast,
    /// The source does not identify one host: unspecified, multicast, broadcast, loopback.
    BadSource,
    /// A fragment: for an error a later one, for an echo request any.
    Fragment,
    /// Not an echo request.
    NotEcho,
    /// The source given for the reply is of the other family, or the frame lacks room.
    NoRoom,
}

impl From<HeaderError> for NoReply {
    fn from(_: HeaderError) -> Self {
        Self::Malformed
    }
}

/// Maximum length of a packet that fits, in bytes, by a "fragmentation needed" that reports MTU
/// `reported` about a packet of `len` bytes. A router that does not report the MTU sends 0: then
/// the result is the next smaller of the MTUs common on links (RFC 1191 5, 7.1). No IPv4 link has
/// an MTU below 68 (RFC 791 3.2).
pub fn reported_mtu_v4(reported: u16, len: u16) -> u16 {
    const LEAST: u16 = 68;
    const PLATEAUS: [u16; 10] = [32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296, LEAST];
    match reported {
        0 => PLATEAUS.into_iter().find(|&mtu| mtu < len).unwrap_or(LEAST),
        reported => reported.max(LEAST),
    }
}

/// Maximum length of a packet that fits, in bytes, by a "packet too big" that reports MTU
/// `reported`. No IPv6 link has an MTU below 1280 (RFC 8200 5): lower values are ignored (RFC 8201
/// 4).
pub fn reported_mtu_v6(reported: u32) -> u16 {
    u16::try_from(reported).unwrap_or(u16::MAX).max(LEAST_V6)
}

/// Kind of an ICMP error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The hop count of the packet has expired in transit.
    TimeExceeded,
    /// No service on the port.
    PortUnreachable,
    /// The packet exceeds the MTU of the next link and must not be fragmented.
    TooBig {
        /// Maximum length of an IP packet that passes, in bytes. Messages to IPv6 hosts report at
        /// least 1280.
        mtu: u16,
    },
}

impl ErrorKind {
    /// The ICMP header, without its checksum.
    fn header(self, family: Family) -> [u8; ICMP_LEN] {
        let (kind, code, mtu) = match (self, family) {
            (Self::TimeExceeded, Family::V4) => (kind::V4_TIME_EXCEEDED, 0, 0),
            (Self::TimeExceeded, Family::V6) => (kind::V6_TIME_EXCEEDED, 0, 0),
            (Self::PortUnreachable, Family::V4) => (kind::V4_UNREACHABLE, 3, 0),
            (Self::PortUnreachable, Family::V6) => (kind::V6_UNREACHABLE, 4, 0),
            (Self::TooBig { mtu }, Family::V4) => (kind::V4_UNREACHABLE, 4, mtu),
            // 1280 fits into 16 bits, and a larger number is unchanged.
            (Self::TooBig { mtu }, Family::V6) => (kind::V6_TOO_BIG, 0, mtu.max(1280)),
        };
        let [m0, m1] = mtu.to_be_bytes();
        // IPv4 has the MTU in the last 16 bits (RFC 1191 4), IPv6 in 32 bits that end there.
        [kind, code, 0, 0, 0, 0, m0, m1]
    }
}

/// Checks that an ICMP error may be sent about the packet in `frame`, with its IP header at `ip`.
///
/// # Errors
/// The reason against it (RFC 1122 3.2.2, RFC 1812 4.3.2.7, RFC 4443 2.4 e). The exception of RFC
/// 4443 for packets too big that were sent to a multicast address is not used: no VIP is multicast.
pub fn may_reply(frame: &[u8], ip: usize) -> Result<(), NoReply> {
    let packet = frame.get(ip..).ok_or(NoReply::Malformed)?;
    let headers = Headers::of(packet)?;
    let group = frame.first().is_some_and(|first| first & 1 != 0);
    let both = headers::addresses(packet).ok_or(NoReply::Malformed)?;
    let (source, destination) = both.split_at_checked(both.len() / 2).unwrap_or_default();
    if group || !is_unicast(destination) {
        return Err(NoReply::NotUnicast);
    }
    if !is_unicast(source) {
        return Err(NoReply::BadSource);
    }
    if !headers.is_first() {
        return Err(NoReply::Fragment);
    }
    if is_icmp_error(packet, &headers) { Err(NoReply::IcmpError) } else { Ok(()) }
}

/// Whether an address of 4 or 16 bytes identifies one host: not unspecified, loopback, multicast or
/// broadcast, nor of IPv4's class E.
fn is_unicast(address: &[u8]) -> bool {
    match *address {
        [a, _, _, _] => !matches!(a, 0 | 127 | 224..),
        [0xff, ..] => false,
        [.., last] => address.iter().rev().skip(1).any(|&byte| byte != 0) || last > 1,
        [] => false,
    }
}

/// Whether the packet is an ICMP message of any type except the known non-error types. A message
/// too short to have a type counts as an error.
fn is_icmp_error(packet: &[u8], headers: &Headers) -> bool {
    let kind = packet.get(headers.transport).copied();
    match (headers.protocol, kind) {
        // Echo, router discovery, timestamp, information, address mask (RFC 792, 1256, 950).
        (protocol::ICMP, kind) => !matches!(kind, Some(0 | 8..=10 | 13..=18)),
        (protocol::ICMP_V6, kind) => {
            kind.is_none_or(|kind| kind < kind::V6_ECHO_REQUEST || kind == kind::V6_REDIRECT)
        }
        _ => false,
    }
}

/// Turns the echo request in `frame`, with its IP header at `ip`, into its reply. `len` is the
/// length of the whole packet in bytes, from the Ethernet header on; it may exceed `frame`, and
/// bytes after the IP packet are unchanged.
///
/// Swaps the addresses and rewrites type, TTL (or hop limit) and checksums; all other fields,
/// including the ToS, identification, options and extension headers, are unchanged. Checksums are
/// patched: the caller must drop requests with a wrong one. Cost: a few bytes, whatever the length.
///
/// # Errors
/// The reason why there is no reply; the packet is unchanged.
pub fn echo_reply(frame: &mut [u8], ip: usize, len: usize) -> Result<(), NoReply> {
    may_reply(frame, ip)?;
    let packet = frame.get_mut(ip..).ok_or(NoReply::Malformed)?;
    let headers = Headers::of(packet)?;
    if !headers.is_whole() {
        return Err(NoReply::Fragment);
    }
    if ip + headers.end > len || headers.end < headers.transport + ICMP_LEN {
        return Err(NoReply::Malformed);
    }
    let v4 = packet.first().is_some_and(|first| first >> 4 == 4);
    let (number, request, reply) = if v4 {
        (protocol::ICMP, kind::V4_ECHO_REQUEST, kind::V4_ECHO_REPLY)
    } else {
        (protocol::ICMP_V6, kind::V6_ECHO_REQUEST, kind::V6_ECHO_REPLY)
    };
    let (head, message) =
        packet.split_at_mut_checked(headers.transport).ok_or(NoReply::Malformed)?;
    match message.first_chunk_mut::<ICMP_LEN>() {
        Some([kind, 0, c0, c1, ..]) if headers.protocol == number && *kind == request => {
            let change = Delta::default()
                .replace_u16(u16::from_be_bytes([request, 0]), u16::from_be_bytes([reply, 0]));
            // The pseudo header's words only swap places.
            [*c0, *c1] = change.apply(u16::from_be_bytes([*c0, *c1])).to_be_bytes();
            *kind = reply;
        }
        _ => return Err(NoReply::NotEcho),
    }
    if v4 {
        turn_v4(head)
    } else {
        turn_v6(head)
    }
    Ok(())
}

/// Swaps the addresses of an IPv4 header, and resets its TTL.
fn turn_v4(header: &mut [u8]) {
    let Some([_, _, _, _, _, _, _, _, ttl, protocol, c0, c1, both @ ..]) =
        header.first_chunk_mut::<V4_LEN>()
    else {
        return;
    };
    let change = Delta::default()
        .replace_u16(u16::from_be_bytes([*ttl, *protocol]), u16::from_be_bytes([HOPS, *protocol]));
    *ttl = HOPS;
    [*c0, *c1] = change.apply(u16::from_be_bytes([*c0, *c1])).to_be_bytes();
    both.rotate_left(4);
}

/// Swaps the addresses of an IPv6 header, and resets its hop limit.
fn turn_v6(header: &mut [u8]) {
    if let Some([_, _, _, _, _, _, _, hops, both @ ..]) = header.first_chunk_mut::<V6_LEN>() {
        *hops = HOPS;
        both.rotate_left(16);
    }
}

/// Turns `frame`, with its IP header at `ip`, into an ICMP error about its packet, from `source` to
/// the packet's source. The packet should be as received, but
/// [cut](crate::xdp::umem::FramePool::cut) to the frame's first chunk.
///
/// Ethernet padding and the excess of the quote are cut off. IPv4: 98 bytes with an untagged
/// Ethernet header, and more only for a quoted header with many options; IPv6: a packet of at most
/// 1280 bytes.
///
/// # Errors
/// The reason why there is no error message; the packet is unchanged.
pub fn error(
    frame: &mut Frame,
    ip: usize,
    source: Address,
    kind: ErrorKind,
) -> Result<(), NoReply> {
    may_reply(frame.data(), ip)?;
    if frame.is_long() {
        return Err(NoReply::NoRoom);
    }
    let packet = frame.data().get(ip..).ok_or(NoReply::Malformed)?;
    let headers = Headers::of(packet)?;
    let v4 = packet.first().is_some_and(|first| first >> 4 == 4);
    let (family, most, ip_len) = if v4 {
        (Family::V4, QUOTE_V4.max(headers.transport + 8), V4_LEN)
    } else {
        (Family::V6, QUOTE_V6, V6_LEN)
    };
    let quoted = packet.len().min(headers.end).min(most);
    let added = ip_len + ICMP_LEN;
    if family != source.family() || !frame.push_front(added) {
        return Err(NoReply::NoRoom);
    }
    let data = frame.data_mut();
    // `ip` bytes were at `added`, and there are as many more: both ranges are inside.
    data.copy_within(added..added + ip, 0);
    if let Some(message) = data.get_mut(ip..ip + added + quoted) {
        write_error(message, family, source, kind);
    }
    // Shorter than before, or equal.
    let _ = frame.set_len(ip + added + quoted);
    Ok(())
}

/// Writes the headers in front of the packet that `message` quotes.
fn write_error(message: &mut [u8], family: Family, source: Address, kind: ErrorKind) {
    if family.is_v4() {
        write_error_v4(message, source.v4_octets(), kind.header(family));
    } else {
        write_error_v6(message, source.octets(), kind.header(family));
    }
}

fn write_error_v4(message: &mut [u8], source: [u8; 4], icmp: [u8; ICMP_LEN]) {
    let len = u16::try_from(message.len()).unwrap_or(u16::MAX).to_be_bytes();
    let Some((header, body)) = message.split_first_chunk_mut::<V4_LEN>() else { return };
    let Some(&[d0, d1, d2, d3]) = body.get(ICMP_LEN + 12..ICMP_LEN + 16) else { return };
    let ([l0, l1], [s0, s1, s2, s3]) = (len, source);
    let df = DONT_FRAGMENT;
    *header = [
        0x45,
        TOS,
        l0,
        l1,
        0,
        0,
        df,
        0,
        HOPS,
        protocol::ICMP,
        0,
        0,
        s0,
        s1,
        s2,
        s3,
        d0,
        d1,
        d2,
        d3,
    ];
    let sum = checksum::of(&checksum::Full::new().add_slice(header));
    put(header, 10, sum);
    put_icmp(body, icmp, checksum::Full::new());
}

fn write_error_v6(message: &mut [u8], source: [u8; 16], icmp: [u8; ICMP_LEN]) {
    let Some((header, body)) = message.split_first_chunk_mut::<V6_LEN>() else { return };
    let Some(destination) = body.get(ICMP_LEN + 8..ICMP_LEN + 24) else { return };
    let len = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let ([l0, l1], (fixed, both)) = (len.to_be_bytes(), header.split_at_mut(8));
    fixed.copy_from_slice(&[0x60, 0, 0, 0, l0, l1, protocol::ICMP_V6, HOPS]);
    if let Some((first, second)) = both.split_first_chunk_mut::<16>() {
        *first = source;
        second.copy_from_slice(destination);
    }
    let pseudo = checksum::pseudo_header(both, len.into(), protocol::ICMP_V6);
    put_icmp(body, icmp, pseudo);
}

/// Writes the ICMP header in front of the quote, with the checksum over `pseudo` and the message.
fn put_icmp(body: &mut [u8], icmp: [u8; ICMP_LEN], pseudo: checksum::Full) {
    if let Some(header) = body.first_chunk_mut::<ICMP_LEN>() {
        *header = icmp;
    }
    let sum = checksum::of(&pseudo.add_slice(body));
    put(body, 2, sum);
}

/// Writes a word at `offset`, if it is inside.
fn put(bytes: &mut [u8], offset: usize, word: u16) {
    if let Some(place) = bytes.get_mut(offset..offset + 2) {
        place.copy_from_slice(&word.to_be_bytes());
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests may stop")]
mod tests;
