//! The translated IP header: what RFC 7915 4.1 and 5.1 put into it, and how it replaces the old one.

use arrayvec::ArrayVec;

use super::super::checksum::{self, Delta, Full};
use super::super::headers::{Fragment, HeaderError, Headers, V4_LEN, addresses, protocol};
use super::super::icmp::ICMP_LEN;
use super::super::quoted::End;
use crate::xdp::umem::Frame;

/// Growth of the header from IPv4 to IPv6, in bytes.
pub(super) const GROWTH: u16 = 20;

/// Length of an IPv6 header with a fragment header, in bytes.
pub(super) const LONGEST_HEADER: usize = 48;

/// Maximum length of the rewritten front, in bytes: an Ethernet header with tags, two IP headers
/// and an ICMP header between them.
pub(super) const LONGEST_FRONT: usize = 32 + LONGEST_HEADER + ICMP_LEN + LONGEST_HEADER;

/// Maximum length of an ICMP error in IPv4, in bytes (RFC 1812 4.3.2.3).
pub(super) const LONGEST_ERROR_V4: usize = 576;

/// Maximum length of an IPv4 packet that is sent without DF, in bytes (RFC 7915 5.1).
pub(super) const MAY_FRAGMENT: usize = 1260;

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
pub(super) struct Ip {
    /// ToS or traffic class.
    pub(super) class: u8,
    pub(super) hops: u8,
    /// Protocol number of IPv4: 1 for ICMPv6.
    pub(super) protocol: u8,
    pub(super) fragment: Option<Fragment>,
    /// Length after the headers, in bytes.
    pub(super) payload: usize,
}

impl Ip {
    pub(super) fn read(packet: &[u8], headers: &Headers) -> Result<Self, SiitError> {
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
    pub(super) fn header(
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
    pub(super) fn header_v4(
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
    pub(super) fn header_v6(
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

/// Change of a pseudo header by the new addresses; its length and protocol are unchanged.
pub(super) fn change_of_addresses(old: &[u8], new: &[u8]) -> Result<Delta, SiitError> {
    let old = addresses(old).ok_or(SiitError::Malformed)?;
    let new = addresses(new).ok_or(SiitError::Malformed)?;
    Ok(Delta::default().remove_bytes(old).add_bytes(new))
}

/// Returns an error if the packet would exceed `mtu` with a header of `len` bytes.
pub(super) fn check_mtu(headers: &Headers, len: usize, mtu: u16) -> Result<(), SiitError> {
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
pub(super) fn replace_front(
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
