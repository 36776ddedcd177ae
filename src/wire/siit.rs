//! Stateless translation between IPv4 and IPv6 in place (RFC 7915), for NAT64 and NAT46.
//!
//! ```text
//! | Ethernet | IPv4, options          | TCP, UDP, ICMP ... |
//! | Ethernet | IPv6, fragment header  | TCP, UDP, ICMPv6 ... |     both ways
//! ```
//!
//! What stands behind the headers stays where it is in the frame; what is in front is written anew. Both
//! addresses and both ports are given by the caller, who keeps the flow: this is the translation of
//! headers only. IPv4 options are dropped (4.1), IPv6 extension headers are stepped over (5.1).
//!
//! Checksums of TCP and UDP are patched, so that damage on the way stays visible. An IPv4 UDP
//! datagram without one gets one, which IPv6 demands.

mod messages;

use arrayvec::ArrayVec;

use super::checksum::{self, Delta, Full};
use super::headers::{Fragment, HeaderError, Headers, V4_LEN, V6_LEN, addresses, protocol};
use super::icmp::{ICMP_LEN, MIN_MTU_V6};
use super::ip::is_header_sum_right;
use super::quoted::{End, MIN_TRANSPORT};
use super::transport;
use crate::xdp::umem::Frame;

/// Bytes that the header grows by from IPv4 to IPv6.
const GROWTH: u16 = 20;
/// IPv6 and a fragment header.
const LONGEST_HEADER: usize = 48;
/// An Ethernet header with tags, two IP headers and ICMP's between them.
const LONGEST_FRONT: usize = 32 + LONGEST_HEADER + ICMP_LEN + LONGEST_HEADER;
/// Longest ICMP error in IPv4, in bytes (RFC 1812 4.3.2.3).
const LONGEST_ERROR_V4: usize = 576;
/// Longest IPv4 packet that is sent without DF (RFC 7915 5.1).
const MAY_FRAGMENT: usize = 1260;

/// What the translated packet is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Its source; of an ICMP message the port has no meaning.
    pub source: End,
    /// Its destination.
    pub destination: End,
    /// Of an ICMP error: what the packet that it quotes is to say.
    pub quoted: Option<Quote>,
    /// IPv4 identification of a packet that has none, as IPv6 packets do.
    pub identification: u16,
    /// Longest packet that may be sent, in bytes.
    pub mtu: u16,
}

/// What the packet that is quoted is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quote {
    /// Its source.
    pub source: End,
    /// Its destination.
    pub destination: End,
    /// Added to its TCP sequence number.
    pub sequence: i32,
    /// Longest packet, in its own family, that may be sent where it went, in bytes.
    pub mtu: u16,
}

/// Why a packet is not translated; it is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SiitError {
    /// Headers that cannot be, or are cut short.
    Malformed,
    /// An IPv4 header with a wrong checksum: the header that replaces it would say that all is well.
    BadHeaderChecksum,
    /// The addresses that are wanted are not both of the other family.
    Family,
    /// TTL or hop limit is 0 or 1.
    HopsExceeded,
    /// Neither TCP, UDP nor ICMP; in a quote, neither TCP nor UDP.
    Protocol,
    /// A fragment of an ICMP message, whose checksum is not in every one; or a later fragment that
    /// is quoted.
    Fragment,
    /// The first fragment of an IPv4 UDP datagram without a checksum: the other fragments would be needed
    /// to make one (RFC 7915 4.5).
    NoChecksum,
    /// An IPv4 source route that has not come to its end (RFC 7915 4.1).
    SourceRoute,
    /// An ICMP message that has no counterpart in the other family, or nobody asks for.
    Message,
    /// An ICMP error whose checksum is wrong.
    BadChecksum,
    /// The translated packet would be longer than the link carries. The packet as it came may have
    /// at most `mtu` bytes.
    TooBig {
        /// Bytes of the longest packet that passes, in the sender's family.
        mtu: u16,
    },
    /// There is no room in the frame.
    NoRoom,
}

impl From<HeaderError> for SiitError {
    fn from(_: HeaderError) -> Self {
        Self::Malformed
    }
}

/// What both families' headers say.
#[derive(Debug, Clone, Copy)]
struct Ip {
    /// ToS, or traffic class.
    class: u8,
    hops: u8,
    /// By its number in IPv4.
    protocol: u8,
    fragment: Option<Fragment>,
    /// Bytes behind the headers.
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
                // ICMP of the other family is nobody's (RFC 7915 4.1, 5.1).
                (protocol::ICMP, false) | (protocol::ICMP_V6, true) => {
                    return Err(SiitError::Protocol);
                }
                (protocol, _) => protocol,
            },
            fragment: headers.fragment,
            payload: headers.end - headers.transport,
        })
    }

    /// The header in the family of the target's addresses.
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

    /// RFC 7915 5.1, and 5.1.1 for fragments.
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

    /// RFC 7915 4.1: a fragment header is there for fragments only, not for the sake of DF.
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

/// Translates the packet in `frame`, whose IP header is at `at` (at most 32), into the other family.
/// The Ethernet type is set; padding is cut off; the hops are one fewer.
///
/// Cost: the headers; for a UDP datagram without a checksum and for ICMP errors, the whole.
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

/// A TCP or UDP packet, or a fragment of one.
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

/// Whether it is a UDP datagram without a checksum.
fn lacks_checksum(protocol: u8, segment: &[u8]) -> bool {
    protocol == protocol::UDP && segment.get(6..8) == Some(&[0, 0])
}

/// The part of `segment` that is the datagram by its own length.
fn udp_part(segment: &[u8]) -> Option<&[u8]> {
    let len = segment.get(4..)?.first_chunk::<2>().map(|len| u16::from_be_bytes(*len))?;
    if len < 8 { None } else { segment.get(..len.into()) }
}

/// Computes the checksum of a datagram over IPv6, whose field is 0.
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

/// What the new addresses change in a pseudo header; its length and protocol stay what they are.
fn change_of_addresses(old: &[u8], new: &[u8]) -> Result<Delta, SiitError> {
    let old = addresses(old).ok_or(SiitError::Malformed)?;
    let new = addresses(new).ok_or(SiitError::Malformed)?;
    Ok(Delta::default().remove_bytes(old).add_bytes(new))
}

/// An error if the packet would be longer than `mtu` with a header of `len` bytes.
fn check_mtu(headers: &Headers, len: usize, mtu: u16) -> Result<(), SiitError> {
    if headers.end - headers.transport + len <= usize::from(mtu) {
        return Ok(());
    }
    // From IPv4: what passes is as much shorter as the header grows, even with a fragment header.
    let fewer = u16::try_from(len.saturating_sub(V4_LEN)).unwrap_or(GROWTH);
    let to_v6 = len != V4_LEN;
    let mtu = if to_v6 { mtu.saturating_sub(fewer) } else { mtu.saturating_add(GROWTH) };
    Err(SiitError::TooBig { mtu })
}

/// Writes `front` in place of the `old` bytes from `at` on, cuts the frame at `at + end` as it was,
/// and sets the Ethernet type by the family of `front`. What is in front of `at` moves along.
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
    // The end stays where it is in the frame, or comes nearer.
    let _ = frame.set_len(all.len() + end - old);
    if let Some(place) = frame.data_mut().get_mut(..all.len()) {
        place.copy_from_slice(&all);
    }
    Ok(())
}

/// Whether options of an IPv4 header have a source route with addresses that are still to come.
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
