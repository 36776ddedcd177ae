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

mod messages;

use arrayvec::ArrayVec;

use super::checksum::{self, Delta, Full};
use super::headers::{Fragment, HeaderError, Headers, V4_LEN, V6_LEN, addresses, protocol};
use super::icmp::{ICMP_LEN, MIN_MTU_V6};
use super::ip::is_header_sum_right;
use super::quoted::{End, MIN_TRANSPORT};
use super::transport;
use crate::xdp::umem::Frame;

/// Growth of the header from IPv4 to IPv6, in bytes.
const GROWTH: u16 = 20;
/// Length of an IPv6 header with a fragment header, in bytes.
const LONGEST_HEADER: usize = 48;
/// Maximum length of the rewritten front, in bytes: an Ethernet header with tags, two IP headers
/// and an ICMP header between them.
const LONGEST_FRONT: usize = 32 + LONGEST_HEADER + ICMP_LEN + LONGEST_HEADER;
/// Maximum length of an ICMP error in IPv4, in bytes (RFC 1812 4.3.2.3).
const LONGEST_ERROR_V4: usize = 576;
/// Maximum length of an IPv4 packet that is sent without DF, in bytes (RFC 7915 5.1).
const MAY_FRAGMENT: usize = 1260;

/// Fields of the translated packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// New source; the port is unused for an ICMP message.
    pub source: End,
    /// New destination.
    pub destination: End,
    /// ICMP error: fields of the translated quote.
    pub quoted: Option<Quote>,
    /// IPv4 identification for a packet that has none, like most IPv6 packets.
    pub identification: u16,
    /// Maximum length of the translated packet, in bytes.
    pub mtu: u16,
}

/// Fields of the translated quoted packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quote {
    /// New source.
    pub source: End,
    /// New destination.
    pub destination: End,
    /// Value added to its TCP sequence number.
    pub sequence: i32,
    /// MTU, in its own family, of the link by which the quoted packet was sent, in bytes.
    pub mtu: u16,
}

/// Reason why a packet is not translated; it is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SiitError {
    /// Malformed or truncated headers.
    Malformed,
    /// An IPv4 header with a wrong checksum: the new header would hide the corruption.
    BadHeaderChecksum,
    /// The addresses of the target are not both of the other family.
    Family,
    /// TTL or hop limit is 0 or 1.
    HopsExceeded,
    /// Neither TCP, UDP nor ICMP; in a quote, neither TCP nor UDP.
    Protocol,
    /// A fragment of an ICMP message, whose checksum covers all fragments, or a quoted later
    /// fragment.
    Fragment,
    /// The first fragment of an IPv4 UDP datagram without a checksum: its computation needs the
    /// other fragments (RFC 7915 4.5).
    NoChecksum,
    /// An IPv4 source route with addresses left to visit (RFC 7915 4.1).
    SourceRoute,
    /// An ICMP message without a counterpart in the other family, or for which the target has no
    /// quote.
    Message,
    /// An ICMP error with a wrong checksum.
    BadChecksum,
    /// The translated packet would exceed the MTU of the link.
    TooBig {
        /// Maximum length of a packet that passes, in the sender's family, in bytes.
        mtu: u16,
    },
    /// No room in the frame.
    NoRoom,
}

impl From<HeaderError> for SiitError {
    fn from(_: HeaderError) -> Self {
        Self::Malformed
    }
}

/// Header fields common to both families.
#[derive(Debug, Clone, Copy)]
struct Ip {
    /// ToS or traffic class.
    class: u8,
    hops: u8,
    /// Protocol number of IPv4: 1 for ICMPv6.
    protocol: u8,
    fragment: Option<Fragment>,
    /// Length after the headers, in bytes.
    payload: usize,
}

impl Ip {
    fn read(packet: &[u8], headers: &Headers) -> Result<Self, SiitError> {
        let bytes = packet.first_chunk::<V4_LEN>().ok_or(SiitError::Malformed)?;
        let [first, second, _, _, _, _, _, seventh, ttl, ..] = *bytes;
        let v4 = first >> 4 == 4;
        Ok(Self {
            class: if v4 { second } else { first << 4 | second >> 4 },
            hops: if v4 { ttl } else { seventh },
            protocol: match (headers.protocol, v4) {
                (protocol::ICMP_V6, false) => protocol::ICMP,
                // ICMP of the other family is not translated (RFC 7915 4.1, 5.1).
                (protocol::ICMP, false) | (protocol::ICMP_V6, true) => {
                    return Err(SiitError::Protocol);
                }
                (protocol, _) => protocol,
            },
            fragment: headers.fragment,
            payload: headers.end - headers.transport,
        })
    }

    /// Builds the header in the family of the addresses.
    fn header(
        &self,
        source: End,
        destination: End,
        identification: u16,
    ) -> Result<ArrayVec<u8, LONGEST_HEADER>, SiitError> {
        if source.0.is_v4() {
            let both = (source.0.v4_octets(), destination.0.v4_octets());
            self.header_v4(both, identification)
        } else {
            self.header_v6(source.0.octets(), destination.0.octets())
        }
    }

    /// Builds an IPv4 header: RFC 7915 5.1, and 5.1.1 for fragments.
    fn header_v4(
        &self,
        (source, destination): ([u8; 4], [u8; 4]),
        identification: u16,
    ) -> Result<ArrayVec<u8, LONGEST_HEADER>, SiitError> {
        let len = V4_LEN + self.payload;
        let [l0, l1] = u16::try_from(len).map_err(|_| SiitError::Malformed)?.to_be_bytes();
        let (identification, flags) = match self.fragment {
            Some(Fragment { identification, offset, more, .. }) => {
                let [.., i0, i1] = identification.to_be_bytes();
                (u16::from_be_bytes([i0, i1]), u16::from(more) << 13 | offset >> 3)
            }
            None => (identification, if len > MAY_FRAGMENT { 0x4000 } else { 0 }),
        };
        let ([i0, i1], [f0, f1]) = (identification.to_be_bytes(), flags.to_be_bytes());
        let mut header = [0; V4_LEN];
        let (fixed, both) = header.split_at_mut(12);
        fixed.copy_from_slice(&[
            0x45,
            self.class,
            l0,
            l1,
            i0,
            i1,
            f0,
            f1,
            self.hops,
            self.protocol,
            0,
            0,
        ]);
        both.copy_from_slice([source, destination].as_flattened());
        let sum = checksum::of(&Full::new().add_slice(&header));
        let _ = checksum::replace(&mut header, 10, &sum.to_be_bytes(), Delta::default());
        Ok(header.into_iter().collect())
    }

    /// Builds an IPv6 header: RFC 7915 4.1. Only fragments get a fragment header; a cleared DF bit
    /// does not.
    fn header_v6(
        &self,
        source: [u8; 16],
        destination: [u8; 16],
    ) -> Result<ArrayVec<u8, LONGEST_HEADER>, SiitError> {
        let protocol =
            if self.protocol == protocol::ICMP { protocol::ICMP_V6 } else { self.protocol };
        let (next, extra) = match self.fragment {
            Some(_) => (protocol::FRAGMENT, 8),
            None => (protocol, 0),
        };
        let len = u16::try_from(self.payload + extra).map_err(|_| SiitError::Malformed)?;
        let [l0, l1] = len.to_be_bytes();
        let mut header = ArrayVec::new();
        header.extend([0x60 | self.class >> 4, self.class << 4, 0, 0, l0, l1, next, self.hops]);
        header.extend(source);
        header.extend(destination);
        if let Some(Fragment { identification, offset, more, .. }) = self.fragment {
            let ([o0, o1], id) =
                ((offset | u16::from(more)).to_be_bytes(), identification.to_be_bytes());
            header.extend([protocol, 0, o0, o1]);
            header.extend(id);
        }
        Ok(header)
    }
}

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

/// Change of a pseudo header by the new addresses; its length and protocol are unchanged.
fn change_of_addresses(old: &[u8], new: &[u8]) -> Result<Delta, SiitError> {
    let old = addresses(old).ok_or(SiitError::Malformed)?;
    let new = addresses(new).ok_or(SiitError::Malformed)?;
    Ok(Delta::default().remove_bytes(old).add_bytes(new))
}

/// Returns an error if the packet would exceed `mtu` with a header of `len` bytes.
fn check_mtu(headers: &Headers, len: usize, mtu: u16) -> Result<(), SiitError> {
    if headers.end - headers.transport + len <= usize::from(mtu) {
        return Ok(());
    }
    // From IPv4, the limit is lower by the growth of the header, including a fragment header.
    let fewer = u16::try_from(len.saturating_sub(V4_LEN)).unwrap_or(GROWTH);
    let to_v6 = len != V4_LEN;
    let mtu = if to_v6 { mtu.saturating_sub(fewer) } else { mtu.saturating_add(GROWTH) };
    Err(SiitError::TooBig { mtu })
}

/// Replaces the `old` bytes from `at` on with `front`, truncates the frame at its former offset
/// `at + end`, and sets the Ethernet type by the family of `front`. The bytes before `at`
/// move along.
fn replace_front(
    frame: &mut Frame,
    at: usize,
    old: usize,
    end: usize,
    front: &[u8],
) -> Result<(), SiitError> {
    let mut all = ArrayVec::<u8, LONGEST_FRONT>::new();
    let link = frame.data().get(..at).ok_or(SiitError::Malformed)?;
    all.try_extend_from_slice(link).map_err(|_| SiitError::NoRoom)?;
    all.try_extend_from_slice(front).map_err(|_| SiitError::NoRoom)?;
    if let Some(ethertype) = at.checked_sub(2).and_then(|from| all.get_mut(from..at)) {
        let v4 = front.first().is_some_and(|first| first >> 4 == 4);
        ethertype.copy_from_slice(if v4 { &[0x08, 0x00] } else { &[0x86, 0xdd] });
    }
    if at + end > frame.len() {
        return Err(SiitError::Malformed);
    }
    let moved = match (at + old).checked_sub(all.len()) {
        Some(fewer) => frame.pull_front(fewer),
        None => frame.push_front(all.len() - at - old),
    };
    if !moved {
        return Err(SiitError::NoRoom);
    }
    // The end keeps its place in the frame, or moves forward.
    let _ = frame.set_len(all.len() + end - old);
    if let Some(place) = frame.data_mut().get_mut(..all.len()) {
        place.copy_from_slice(&all);
    }
    Ok(())
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
