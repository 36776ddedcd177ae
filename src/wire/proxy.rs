//! PROXY protocol version 2 in front of a TCP stream that somebody else sends.
//!
//! ```text
//! client's stream   ISN SYN | ISN+1 data ...
//! backend's         ISN SYN | ISN+1 header (L bytes) | ISN+1+L data ...
//! ```
//!
//! Until the backend has acknowledged the header, it is put in front of every client segment whose
//! SEQ is ISN+1, also of the bare ACK that ends the handshake: so the client's own repetitions repeat
//! it, and nobody else has to. All other SEQ after the SYN grow by L. What the backend acknowledges
//! (ACK, SACK) shrinks by L again, and never below ISN+1.
//!
//! From the first ACK that covers the header, [`Shift::acknowledged`] must be set: then every number
//! is shifted, and none is compared with the ISN any more, which a stream of 4 GiB comes past again.
//!
//! The header tells the backend whom to trust, so no client may write in its place: a segment that begins
//! before the stream and reaches into it is refused. And before the backend has answered the SYN
//! ([`Shift::answered`]) its ACKs are of an older connection: their numbers say nothing of this one.
//!
//! Source: haproxy, doc/proxy-protocol.txt 2.2; RFC 9293 3.4; RFC 2018, RFC 2883 (SACK, D-SACK).

use super::checksum::{Delta, replace};
use super::headers::{Headers, protocol};
use super::{ip, tcp};
use crate::net::{Address, Family};
use crate::xdp::umem::Frame;

/// Bytes of a header for TCP over IPv4.
pub const V4_LEN: usize = 28;
/// Bytes of a header for TCP over IPv6.
pub const V6_LEN: usize = 52;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY: the connection is somebody else's.
const VERSION_COMMAND: u8 = 0x21;
/// TCP over IPv4.
const TCP_V4: u8 = 0x11;
/// TCP over IPv6.
const TCP_V6: u8 = 0x21;
/// RST.
const RST: u8 = 0x04;
/// ACK.
const ACK: u8 = 0x10;

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    bytes: [u8; V6_LEN],
    family: Family,
}

impl Header {
    /// Says that `client` has connected to `vip`: address and port each. Both addresses are of one
    /// family; of two, they are written as IPv6 (RFC 4291 2.5.5.2).
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

    /// How many bytes a header has for a VIP of this family.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "28 or 52")]
    pub const fn len(family: Family) -> u8 {
        if family.is_v4() { V4_LEN as u8 } else { V6_LEN as u8 }
    }

    /// Its bytes: 28 or 52.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        let len = if self.family.is_v4() { V4_LEN } else { V6_LEN };
        self.bytes.get(..len).unwrap_or_default()
    }
}

fn fill(places: &mut [u8], bytes: impl Iterator<Item = u8>) {
    places.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
}

/// How the numbers of a flow's two halves belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shift {
    /// The client's initial sequence number: SEQ of its SYN.
    pub isn: u32,
    /// Bytes of the header: 28 or 52.
    pub len: u8,
    /// The backend has answered the client's SYN ([`Shift::is_answer`]).
    pub answered: bool,
    /// The backend has acknowledged the whole header ([`Shift::to_client`] has said so once).
    pub acknowledged: bool,
}

/// What a client's segment needs besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Nothing more: its numbers are right.
    Within,
    /// The header in front of its data ([`insert`]); its SEQ is right as it is.
    Header,
    /// It must not pass: its data would be taken for the header.
    Overlap,
}

impl Shift {
    /// The first number of the client's stream.
    const fn first(&self) -> u32 {
        self.isn.wrapping_add(1)
    }

    /// Whether the header belongs in front of the data of this segment of the client.
    #[inline]
    #[must_use]
    pub fn begins(&self, segment: &[u8]) -> bool {
        let first = tcp::sequence(segment) == Some(self.first());
        first && !self.acknowledged && tcp::flags(segment).is_some_and(|flags| flags & RST == 0)
    }

    /// A number of the client's, as the backend counts. The SYN's, and that of a keep-alive before any
    /// data, which repeats the number before the stream, stay.
    #[inline]
    #[must_use]
    pub const fn forth(&self, number: u32) -> u32 {
        let shifted = self.acknowledged || is_after(number, self.first());
        if shifted { number.wrapping_add(self.len as u32) } else { number }
    }

    /// Whether a segment with this SEQ and so many bytes of data begins before the stream, and reaches into
    /// it. Nobody sends that: a keep-alive has one byte at most, where the SYN was.
    const fn overlaps(&self, sequence: u32, data: usize) -> bool {
        let ahead = self.first().wrapping_sub(sequence);
        !self.acknowledged && is_after(self.first(), sequence) && data > ahead as usize
    }

    /// Whether a backend's SYN is its answer to the client's, which has these flags and acknowledges `number`.
    /// Another one is of a connection that has not begun with this flow.
    #[inline]
    #[must_use]
    pub const fn is_answer(&self, flags: u8, number: u32) -> bool {
        !self.acknowledged && flags & ACK != 0 && number == self.first()
    }

    /// Shifts the SEQ of a client's segment with `data` bytes, and tells whether the header belongs in front
    /// of it.
    ///
    /// `None` if the TCP header is cut short. A RST at the start gets no header: a backend that has
    /// it already answers with an ACK (RFC 5961 3.2), which brings about a better RST. One before the
    /// backend has answered is for the older connection that the backend has told of.
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

    /// Shifts ACK and SACK of a backend's segment back, once it has answered; true if its ACK covers the whole
    /// header.
    ///
    /// `None` if the TCP header is cut short.
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

    /// A number that the backend acknowledges, as the client counts.
    #[inline]
    #[must_use]
    pub const fn back(&self, number: u32) -> u32 {
        let shifted = number.wrapping_sub(self.len as u32);
        if self.acknowledged || is_after(shifted, self.first()) { shifted } else { self.first() }
    }

    /// Shifts the blocks of SACK options. A block of which nothing is left, the header's own, goes;
    /// padding takes its place.
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

/// Whether `number` comes after `other`, in the half of the circle that is ahead of it (RFC 9293
/// 3.4). What is compared is less than 2 GiB apart: the header is not acknowledged yet.
const fn is_after(number: u32, other: u32) -> bool {
    number.wrapping_sub(other).wrapping_sub(1) < 1 << 31
}

/// Why a frame is not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyError {
    /// Not a whole TCP segment over IP.
    Malformed,
    /// No headroom, or more than 65,535 bytes.
    NoRoom,
}

/// The parts of a TCP packet in a frame: offsets in the frame of its TCP header, data and end.
struct Parts {
    transport: usize,
    data: usize,
    end: usize,
}

impl Parts {
    /// The data may go on behind the frame's first chunk.
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

/// Puts `header` in front of the data of the TCP packet in `frame`, whose IP header is at `at`. The
/// headers move to the front; Ethernet padding is cut off. Lengths, checksums and the urgent pointer
/// are patched.
///
/// # Errors
/// [`ProxyError`]; then nothing has changed.
pub fn insert(frame: &mut Frame, at: usize, header: &Header) -> Result<(), ProxyError> {
    let parts = Parts::of(frame, at).ok_or(ProxyError::Malformed)?;
    let added = header.bytes().len();
    // Both in 16 bits: the lengths of an IP packet and of our header.
    let by = u16::try_from(added).map_err(|_| ProxyError::NoRoom)?;
    let old = u16::try_from(parts.end - parts.transport).map_err(|_| ProxyError::NoRoom)?;
    let new = old.checked_add(by).ok_or(ProxyError::NoRoom)?;
    if u16::try_from(parts.end - at + added).is_err() || !frame.push_front(added) {
        return Err(ProxyError::NoRoom);
    }
    // The end moved by as much as the start: shorter than it is now, or as long. What is longer than
    // a frame has no padding.
    let _ = frame.set_len(parts.end + added);
    let bytes = frame.data_mut();
    bytes.copy_within(added..added + parts.data, 0);
    if let Some(place) = bytes.get_mut(parts.data..parts.data + added) {
        place.copy_from_slice(header.bytes());
    }
    ip::set_len(bytes.get_mut(at..).unwrap_or_default(), parts.end - at + added);
    let segment = bytes.get_mut(parts.transport..).unwrap_or_default();
    // Header and data begin at even offsets: their words stay words. The pseudo header has the
    // length.
    let delta = Delta::default().add_bytes(header.bytes()).replace_u16(old, new);
    let delta = tcp::move_urgent(segment, by, delta);
    tcp::patch_checksum(segment, delta);
    Ok(())
}

/// Cuts the data off the SYN in `frame`, whose IP header is at `at`, and takes fast open out of it: its
/// sender repeats the data after the handshake (RFC 7413 4.1.3.1), where the header can go first.
///
/// # Errors
/// [`ProxyError::Malformed`], also if the data goes on behind the frame; then nothing has changed.
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
    // Shorter than it was, or as long.
    let _ = frame.set_len(parts.data);
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may stop early")]
mod tests;
