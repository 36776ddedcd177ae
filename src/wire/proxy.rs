//! PROXY protocol version 2: a header inserted in front of a client's TCP stream.
//!
//! ```text
//! client's stream   ISN SYN | ISN+1 data ...
//! backend's         ISN SYN | ISN+1 header (L bytes) | ISN+1+L data ...
//! ```
//!
//! Until the backend has acknowledged the header, it is inserted in every client segment with SEQ
//! ISN+1, including the bare ACK that ends the handshake: the client's own retransmissions
//! retransmit it, and no copy is kept. All other SEQ after the SYN grow by L. ACK and SACK numbers
//! of the backend shrink by L, and never below ISN+1.
//!
//! From the first ACK that covers the header, [`Shift::acknowledged`] must be set: then every
//! number is shifted, and none is compared with the ISN, which a stream of 4 GiB passes again.
//!
//! The backend trusts the header, so a client must not be able to write in its place: a segment
//! that starts before the stream and reaches into it is refused. Before the backend has answered
//! the SYN ([`Shift::answered`]), its ACKs belong to an older connection, and their numbers are not
//! shifted.
//!
//! Source: haproxy, doc/proxy-protocol.txt 2.2; RFC 9293 3.4; RFC 2018, RFC 2883 (SACK, D-SACK).

use super::checksum::{Delta, replace};
use super::headers::{Headers, protocol};
use super::{ip, tcp};
use crate::net::{Address, Family};
use crate::xdp::umem::Frame;

/// Length of a header for TCP over IPv4, in bytes.
pub const V4_LEN: usize = 28;
/// Length of a header for TCP over IPv6, in bytes.
pub const V6_LEN: usize = 52;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY: the connection is relayed for another client.
const VERSION_COMMAND: u8 = 0x21;
/// TCP over IPv4.
const TCP_V4: u8 = 0x11;
/// TCP over IPv6.
const TCP_V6: u8 = 0x21;
/// RST.
const RST: u8 = 0x04;
/// ACK.
const ACK: u8 = 0x10;

/// A PROXY header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    bytes: [u8; V6_LEN],
    family: Family,
}

impl Header {
    /// Creates the header for a connection from `client` to `vip`: address and port each. Addresses
    /// of different families are both written as IPv6 (RFC 4291 2.5.5.2).
    pub fn new(client: (Address, u16), vip: (Address, u16)) -> Self {
        let v4 = client.0.is_v4() && vip.0.is_v4();
        let family = if v4 { Family::V4 } else { Family::V6 };
        let mut header = Self { bytes: [0; V6_LEN], family };
        let ports = [client.1.to_be_bytes(), vip.1.to_be_bytes()];
        let [kind, len] = if v4 { [TCP_V4, 12] } else { [TCP_V6, 36] };
        let (fixed, addresses) = header.bytes.split_at_mut(SIGNATURE.len() + 4);
        let parts = SIGNATURE.into_iter().chain([VERSION_COMMAND, kind, 0, len]);
        fixed.iter_mut().zip(parts).for_each(|(place, byte)| *place = byte);
        let ports = ports.as_flattened();
        if v4 {
            let both = client.0.v4_octets().into_iter().chain(vip.0.v4_octets());
            fill(addresses, both.chain(ports.iter().copied()));
        } else {
            let both = client.0.octets().into_iter().chain(vip.0.octets());
            fill(addresses, both.chain(ports.iter().copied()));
        }
        header
    }

    /// Length of a header for a VIP of this family, in bytes.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "28 or 52")]
    pub const fn len(family: Family) -> u8 {
        if family.is_v4() { V4_LEN as u8 } else { V6_LEN as u8 }
    }

    /// The bytes of the header: 28 or 52.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        let len = if self.family.is_v4() { V4_LEN } else { V6_LEN };
        self.bytes.get(..len).unwrap_or_default()
    }
}

fn fill(places: &mut [u8], bytes: impl Iterator<Item = u8>) {
    places.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
}

/// Offset between the sequence numbers of the client and of the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shift {
    /// The client's initial sequence number: SEQ of its SYN.
    pub isn: u32,
    /// Length of the header in bytes: 28 or 52.
    pub len: u8,
    /// Whether the backend has answered the client's SYN ([`Shift::is_answer`]).
    pub answered: bool,
    /// Whether the backend has acknowledged the whole header ([`Shift::to_client`] has returned
    /// true).
    pub acknowledged: bool,
}

/// Position of a client's segment relative to the start of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Elsewhere: the numbers are final.
    Within,
    /// At the start: the header must be inserted before its data ([`insert`]); its SEQ is final.
    Header,
    /// Across the start: it must be dropped, as the backend would take its data for the header.
    Overlap,
}

impl Shift {
    /// First sequence number of the client's data.
    const fn first(&self) -> u32 {
        self.isn.wrapping_add(1)
    }

    /// Whether the header must be inserted in front of the data of this client segment.
    #[inline]
    #[must_use]
    pub fn begins(&self, segment: &[u8]) -> bool {
        let first = tcp::sequence(segment) == Some(self.first());
        first && !self.acknowledged && tcp::flags(segment).is_some_and(|flags| flags & RST == 0)
    }

    /// Converts a number of the client to the backend's count. The SYN's number stays, and so does
    /// that of a keep-alive before any data, which repeats the number before the stream.
    #[inline]
    #[must_use]
    pub const fn forth(&self, number: u32) -> u32 {
        let shifted = self.acknowledged || is_after(number, self.first());
        if shifted { number.wrapping_add(self.len as u32) } else { number }
    }

    /// Whether a segment with this SEQ and `data` bytes starts before the stream and reaches into
    /// it. No regular client sends that: a keep-alive has at most one byte, in place of the SYN.
    const fn overlaps(&self, sequence: u32, data: usize) -> bool {
        let ahead = self.first().wrapping_sub(sequence);
        !self.acknowledged && is_after(self.first(), sequence) && data > ahead as usize
    }

    /// Whether a backend's SYN with these flags, which acknowledges `number`, answers the client's
    /// SYN. Any other SYN belongs to a connection that did not begin with this flow.
    #[inline]
    #[must_use]
    pub const fn is_answer(&self, flags: u8, number: u32) -> bool {
        !self.acknowledged && flags & ACK != 0 && number == self.first()
    }

    /// Shifts the SEQ of a client's segment with `data` bytes, and returns its position in the
    /// stream.
    ///
    /// `None` if the TCP header is truncated. A RST at the start gets no header: a backend that has
    /// the header already replies with an ACK (RFC 5961 3.2), which triggers a RST with the right
    /// number. A RST before the backend has answered is for an older connection that the backend
    /// reported, and passes unshifted.
    #[inline]
    #[must_use]
    pub fn to_backend(&self, segment: &mut [u8], data: usize) -> Option<Start> {
        let (sequence, flags) = (tcp::sequence(segment)?, tcp::flags(segment)?);
        tcp::header_len(segment)?;
        if self.begins(segment) {
            return Some(Start::Header);
        }
        if self.overlaps(sequence, data) {
            return Some(Start::Overlap);
        }
        if !self.answered && flags & RST != 0 {
            return Some(Start::Within);
        }
        let delta = tcp::set_sequence(segment, self.forth(sequence), Delta::default());
        tcp::patch_checksum(segment, delta).then_some(Start::Within)
    }

    /// Shifts ACK and SACK of a backend's segment back, once the backend has answered; true if its
    /// ACK covers the whole header.
    ///
    /// `None` if the TCP header is truncated.
    #[inline]
    #[must_use]
    pub fn to_client(&self, segment: &mut [u8]) -> Option<bool> {
        let (number, flags) = (tcp::acknowledgment(segment)?, tcp::flags(segment)?);
        tcp::header_len(segment)?;
        if flags & ACK == 0 || !self.answered {
            return Some(false);
        }
        let delta = tcp::set_acknowledgment(segment, self.back(number), Delta::default());
        let delta = self.sacks_back(segment, delta);
        let end = self.first().wrapping_add(self.len.into());
        tcp::patch_checksum(segment, delta).then_some(self.acknowledged || !is_after(end, number))
    }

    /// Converts a number acknowledged by the backend to the client's count.
    #[inline]
    #[must_use]
    pub const fn back(&self, number: u32) -> u32 {
        let shifted = number.wrapping_sub(self.len as u32);
        if self.acknowledged || is_after(shifted, self.first()) { shifted } else { self.first() }
    }

    /// Shifts the blocks of SACK options. A block that becomes empty, within the header, is removed
    /// and replaced by padding.
    fn sacks_back(&self, segment: &mut [u8], mut delta: Delta) -> Delta {
        const BLOCK: usize = 8;
        let mut options = tcp::Options::of(segment);
        while let Some(place) = options.next(segment) {
            if place.kind != tcp::option::SACK || place.len % BLOCK != 2 {
                continue;
            }
            let (blocks, end) = (place.at + 2, place.at + place.len);
            let mut kept = blocks;
            for at in (blocks..end).step_by(BLOCK) {
                let edges = (tcp::number(segment, at), tcp::number(segment, at + 4));
                let (Some(left), Some(right)) = edges else { break };
                let (left, right) = (self.back(left), self.back(right));
                if left != right {
                    delta = replace(segment, kept, &left.to_be_bytes(), delta);
                    delta = replace(segment, kept + 4, &right.to_be_bytes(), delta);
                    kept += BLOCK;
                }
            }
            if kept == blocks {
                kept = place.at;
            } else if let Ok(len) = u8::try_from(kept - place.at) {
                delta = replace(segment, place.at + 1, &[len], delta);
            }
            delta = tcp::pad(segment, kept, end - kept, delta);
        }
        delta
    }
}

/// Whether `number` comes after `other`, in the half of the circle ahead of it (RFC 9293 3.4). The
/// compared numbers are less than 2 GiB apart: the header is not acknowledged yet.
const fn is_after(number: u32, other: u32) -> bool {
    number.wrapping_sub(other).wrapping_sub(1) < 1 << 31
}

/// Reason why a frame is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyError {
    /// Not a whole TCP segment over IP.
    Malformed,
    /// No headroom, or more than 65,535 bytes.
    NoRoom,
}

/// Parts of a TCP packet in a frame: offsets in the frame of its TCP header, data and end.
struct Parts {
    transport: usize,
    data: usize,
    end: usize,
}

impl Parts {
    /// Locates the parts. The data may continue after the frame's first chunk.
    fn of(frame: &Frame, at: usize) -> Option<Self> {
        let packet = frame.data().get(at..)?;
        let headers = Headers::of(packet).ok()?;
        let is_tcp = headers.protocol == protocol::TCP && headers.is_whole();
        if !is_tcp || at + headers.end > usize::from(frame.packet_len()) {
            return None;
        }
        let segment = packet.get(headers.transport..headers.end.min(packet.len()))?;
        let transport = at + headers.transport;
        let data = transport + tcp::header_len(segment)?;
        Some(Self { transport, data, end: at + headers.end })
    }
}

/// Inserts `header` in front of the data of the TCP packet in `frame`, with its IP header at `at`.
/// The headers move to the front; Ethernet padding is cut off. Lengths, checksums and the urgent
/// pointer are patched.
///
/// # Errors
/// [`ProxyError`]; the frame is then unchanged.
pub fn insert(frame: &mut Frame, at: usize, header: &Header) -> Result<(), ProxyError> {
    let parts = Parts::of(frame, at).ok_or(ProxyError::Malformed)?;
    let added = header.bytes().len();
    // Both fit 16 bits: the length of an IP packet and that of the PROXY header.
    let by = u16::try_from(added).map_err(|_| ProxyError::NoRoom)?;
    let old = u16::try_from(parts.end - parts.transport).map_err(|_| ProxyError::NoRoom)?;
    let new = old.checked_add(by).ok_or(ProxyError::NoRoom)?;
    if u16::try_from(parts.end - at + added).is_err() || !frame.push_front(added) {
        return Err(ProxyError::NoRoom);
    }
    // The end moved by as much as the start: the new length is shorter or equal. A packet longer
    // than a frame has no padding.
    let _ = frame.set_len(parts.end + added);
    let bytes = frame.data_mut();
    bytes.copy_within(added..added + parts.data, 0);
    if let Some(place) = bytes.get_mut(parts.data..parts.data + added) {
        place.copy_from_slice(header.bytes());
    }
    ip::set_len(bytes.get_mut(at..).unwrap_or_default(), parts.end - at + added);
    let segment = bytes.get_mut(parts.transport..).unwrap_or_default();
    // Header and data start at even offsets, so their words stay aligned. The pseudo header
    // contains the length.
    let delta = Delta::default().add_bytes(header.bytes()).replace_u16(old, new);
    let delta = tcp::move_urgent(segment, by, delta);
    tcp::patch_checksum(segment, delta);
    Ok(())
}

/// Cuts the data off the SYN in `frame`, with its IP header at `at`, and removes its fast open
/// option: the client retransmits the data after the handshake (RFC 7413 4.1.3.1), when the header
/// can precede it.
///
/// # Errors
/// [`ProxyError::Malformed`], also if the data continues after the frame; the frame is then
/// unchanged.
pub fn strip_syn(frame: &mut Frame, at: usize) -> Result<(), ProxyError> {
    if frame.is_long() {
        return Err(ProxyError::Malformed);
    }
    let parts = Parts::of(frame, at).ok_or(ProxyError::Malformed)?;
    let lengths =
        (u16::try_from(parts.end - parts.transport), u16::try_from(parts.data - parts.transport));
    let (Ok(old), Ok(new)) = lengths else { return Err(ProxyError::Malformed) };
    let bytes = frame.data_mut();
    let data = bytes.get(parts.data..parts.end).unwrap_or_default();
    let delta = Delta::default().remove_bytes(data).replace_u16(old, new);
    ip::set_len(bytes.get_mut(at..).unwrap_or_default(), parts.data - at);
    let segment = bytes.get_mut(parts.transport..).unwrap_or_default();
    let delta = tcp::remove_fast_open(segment, delta);
    tcp::patch_checksum(segment, delta);
    // Shorter than before, or equal.
    let _ = frame.set_len(parts.data);
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may stop early")]
mod tests;
