//! ICMP messages and their counterparts in ICMPv6 (RFC 7915 4.2, 4.3, 5.2, 5.3).

use arrayvec::ArrayVec;

use super::super::checksum::{self, Delta, Full};
use super::super::headers::{Headers, V4_LEN, V6_LEN, addresses, protocol};
use super::super::icmp::{ICMP_LEN, MIN_MTU_V6};
use super::super::quoted::MIN_TRANSPORT;
use super::super::transport;
use super::header::{
    GROWTH, Ip, LONGEST_ERROR_V4, LONGEST_FRONT, SiitError, Target, change_of_addresses, check_mtu,
    replace_front,
};
use crate::net::Family;
use crate::wire::icmp::{kind, reported_mtu_v4, reported_mtu_v6};
use crate::xdp::umem::Frame;

/// An ICMP header without its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: u8,
    pub(super) code: u8,
    /// MTU or pointer; for an echo, identifier and sequence number.
    pub(super) word: u32,
}

impl Message {
    fn bytes(self) -> [u8; ICMP_LEN] {
        let [w0, w1, w2, w3] = self.word.to_be_bytes();
        [self.kind, self.code, 0, 0, w0, w1, w2, w3]
    }

    /// Limits an MTU in the message to those of the links (RFC 7915 4.2, 5.2): `to`, of the link by
    /// which the message leaves, and `beyond`, of the link by which the quoted packet left.
    pub(super) fn capped(self, family: Family, to: u16, beyond: u16) -> Self {
        let (most, least) = match (family, self.kind, self.code) {
            (Family::V4, kind::V4_UNREACHABLE, 4) => (to.min(beyond.saturating_sub(GROWTH)), 0),
            (Family::V6, kind::V6_TOO_BIG, _) => (to.min(beyond.saturating_add(GROWTH)), 1280),
            _ => return self,
        };
        Self { word: self.word.min(most.into()).max(least), ..self }
    }

    /// Whether the message is an echo, which quotes no packet.
    fn is_echo(self, family: Family) -> bool {
        if family.is_v4() {
            matches!(self.kind, kind::V4_ECHO_REQUEST | kind::V4_ECHO_REPLY)
        } else {
            matches!(self.kind, kind::V6_ECHO_REQUEST | kind::V6_ECHO_REPLY)
        }
    }
}

/// Translates an ICMP message. `ip` has the fields of its new IP header, except the length.
pub(super) fn translate(
    frame: &mut Frame,
    at: usize,
    headers: &Headers,
    ip: Ip,
    target: &Target,
) -> Result<(), SiitError> {
    if !headers.is_whole() {
        return Err(SiitError::Fragment);
    }
    let packet = frame.data().get(at..at + headers.end).ok_or(SiitError::Malformed)?;
    let body = packet.get(headers.transport..).ok_or(SiitError::Malformed)?;
    let [kind, code, _, _, w0, w1, w2, w3] =
        *body.first_chunk::<ICMP_LEN>().ok_or(SiitError::Malformed)?;
    let old = Message { kind, code, word: u32::from_be_bytes([w0, w1, w2, w3]) };
    let from = if target.source.0.is_v4() { Family::V6 } else { Family::V4 };
    // A whole message needs no fragment header.
    let ip = Ip { fragment: None, ..ip };
    if old.is_echo(from) {
        return echo(frame, at, headers, ip, old, target);
    }
    error(frame, at, headers, ip, old, target)
}

/// Translates an echo: its data are kept; the type changes, and a pseudo header is added or
/// removed.
fn echo(
    frame: &mut Frame,
    at: usize,
    headers: &Headers,
    ip: Ip,
    old: Message,
    target: &Target,
) -> Result<(), SiitError> {
    let to_v4 = target.source.0.is_v4();
    let packet = frame.data().get(at..).ok_or(SiitError::Malformed)?;
    let new = match (old.kind, to_v4) {
        (kind::V4_ECHO_REQUEST, false) => kind::V6_ECHO_REQUEST,
        (_, false) => kind::V6_ECHO_REPLY,
        (kind::V6_ECHO_REQUEST, true) => kind::V4_ECHO_REQUEST,
        (_, true) => kind::V4_ECHO_REPLY,
    };
    let header = ip.header(target.source, target.destination, target.identification)?;
    let v6_addresses = addresses(if to_v4 { packet } else { &header });
    let v6_addresses = v6_addresses.ok_or(SiitError::Malformed)?;
    let len = u16::try_from(ip.payload).map_err(|_| SiitError::Malformed)?;
    let pseudo = [len.to_be_bytes(), [0, protocol::ICMP_V6]];
    let change = if to_v4 {
        Delta::default().remove_bytes(v6_addresses).remove_bytes(pseudo.as_flattened())
    } else {
        Delta::default().add_bytes(v6_addresses).add_bytes(pseudo.as_flattened())
    };
    check_mtu(headers, header.len(), target.mtu)?;
    replace_front(frame, at, headers.transport, headers.end, &header)?;
    let message = frame.data_mut().get_mut(at + header.len()..).unwrap_or_default();
    let change = checksum::replace(message, 0, &[new], change);
    let _ = checksum::patch(message, 2, change, Delta::default());
    Ok(())
}

/// Translates an error together with the packet that it quotes.
fn error(
    frame: &mut Frame,
    at: usize,
    headers: &Headers,
    ip: Ip,
    old: Message,
    target: &Target,
) -> Result<(), SiitError> {
    let to_v4 = target.source.0.is_v4();
    let packet = frame.data().get(at..at + headers.end).ok_or(SiitError::Malformed)?;
    let body = packet.get(headers.transport..).ok_or(SiitError::Malformed)?;
    let quote = body.get(ICMP_LEN..).ok_or(SiitError::Malformed)?;
    let new = if to_v4 { to_icmp(old) } else { to_icmp_v6(old, quote) };
    let (new, to) = new.zip(target.quoted).ok_or(SiitError::Message)?;
    let new = new.capped(target.source.0.family(), target.mtu, to.mtu);
    if !is_right(packet, body, to_v4) {
        return Err(SiitError::BadChecksum);
    }
    let quote = quote.get(..quote_len(old, to_v4, quote.len())).ok_or(SiitError::Malformed)?;
    let inner = Headers::of(quote)?;
    if !inner.is_first() {
        return Err(SiitError::Fragment);
    }
    let inner_ip = Ip::read(quote, &inner)?;
    if !matches!(inner_ip.protocol, protocol::TCP | protocol::UDP) {
        return Err(SiitError::Protocol);
    }
    let v6 = quote.first().is_some_and(|first| first >> 4 == 6);
    if v6 != to_v4 || to.source.0.is_v4() != to_v4 || to.destination.0.is_v4() != to_v4 {
        return Err(SiitError::Family);
    }
    let quoted = quote.len().min(inner.end).saturating_sub(inner.transport);
    if quoted < MIN_TRANSPORT {
        return Err(SiitError::Malformed);
    }
    let inner_header = inner_ip.header(to.source, to.destination, 0)?;
    let outer = if to_v4 { V4_LEN } else { V6_LEN };
    let most = if to_v4 { LONGEST_ERROR_V4 } else { MIN_MTU_V6 };
    let quoted = quoted.min(most - outer - ICMP_LEN - inner_header.len());
    let ip = Ip { payload: ICMP_LEN + inner_header.len() + quoted, ..ip };
    let header = ip.header(target.source, target.destination, target.identification)?;
    let change = change_of_addresses(quote, &inner_header)?;
    let mut front = ArrayVec::<u8, LONGEST_FRONT>::new();
    front.extend(header.iter().copied().chain(new.bytes()).chain(inner_header));
    let (from, end) = (headers.transport + ICMP_LEN + inner.transport, quoted);
    replace_front(frame, at, from, from + end, &front)?;
    let packet = frame.data_mut().get_mut(at..).unwrap_or_default();
    let segment = packet.get_mut(front.len()..).unwrap_or_default();
    let new_ports = [Some(to.source.1), Some(to.destination.1)];
    let _ = transport::rewrite_short(segment, inner_ip.protocol, new_ports, to.sequence, change);
    write_checksum(packet, header.len());
    Ok(())
}

/// Checksum of the message, with the pseudo header of ICMPv6.
fn sum(packet: &[u8], body: &[u8], v6: bool) -> u16 {
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let pseudo = match addresses(packet) {
        Some(both) if v6 => checksum::pseudo_header(both, len, protocol::ICMP_V6),
        _ => Full::new(),
    };
    checksum::of(&pseudo.add_slice(body))
}

/// Whether a message that contains its checksum is intact.
fn is_right(packet: &[u8], body: &[u8], v6: bool) -> bool {
    sum(packet, body, v6) == 0
}

/// Writes the checksum of the message at `transport`, with the field set to 0.
fn write_checksum(packet: &mut [u8], transport: usize) {
    let Some((head, body)) = packet.split_at_mut_checked(transport) else { return };
    let v6 = head.first().is_some_and(|first| first >> 4 == 6);
    let sum = sum(head, body, v6);
    let _ = checksum::replace(body, 2, &sum.to_be_bytes(), Delta::default());
}

/// Length of the quote in bytes, of `all` bytes after the ICMP header: that of the length attribute
/// (RFC 4884 4), if present, else `all`. Data after the quote are dropped.
fn quote_len(message: Message, v6: bool, all: usize) -> usize {
    let [b0, b1, ..] = message.word.to_be_bytes();
    let (kinds, words): (&[u8], _) = if v6 {
        (&[kind::V6_UNREACHABLE, kind::V6_TIME_EXCEEDED], usize::from(b0) * 8)
    } else {
        let kinds = &[kind::V4_UNREACHABLE, kind::V4_TIME_EXCEEDED, kind::V4_PARAMETER_PROBLEM];
        (kinds, usize::from(b1) * 4)
    };
    if kinds.contains(&message.kind) && words != 0 { words.min(all) } else { all }
}

/// ICMP to ICMPv6 (RFC 7915 4.2). `quote` serves to estimate an MTU that the router did not report.
pub(super) fn to_icmp_v6(old: Message, quote: &[u8]) -> Option<Message> {
    let unreachable = |code| Some(Message { kind: kind::V6_UNREACHABLE, code, word: 0 });
    let problem = |code, word| Some(Message { kind: kind::V6_PARAMETER_PROBLEM, code, word });
    match (old.kind, old.code) {
        // No route: network, host, source route failed, unknown, isolated, for this ToS.
        (kind::V4_UNREACHABLE, 0 | 1 | 5..=8 | 11 | 12) => unreachable(0),
        // The protocol: the pointer names the next header field.
        (kind::V4_UNREACHABLE, 2) => problem(1, 6),
        (kind::V4_UNREACHABLE, 3) => unreachable(4),
        (kind::V4_UNREACHABLE, 4) => {
            let [.., m0, m1] = old.word.to_be_bytes();
            let len = quote.get(2..).and_then(|rest| rest.first_chunk::<2>());
            let len = len.map_or(0, |len| u16::from_be_bytes(*len));
            let mtu = reported_mtu_v4(u16::from_be_bytes([m0, m1]), len);
            let word = (u32::from(mtu) + u32::from(GROWTH)).max(1280);
            Some(Message { kind: kind::V6_TOO_BIG, code: 0, word })
        }
        // Administratively prohibited, precedence cut-off.
        (kind::V4_UNREACHABLE, 9 | 10 | 13 | 15) => unreachable(1),
        (kind::V4_TIME_EXCEEDED, code) => {
            Some(Message { kind: kind::V6_TIME_EXCEEDED, code, word: 0 })
        }
        (kind::V4_PARAMETER_PROBLEM, 0 | 2) => {
            let pointer = match old.word >> 24 {
                0 => 0,
                1 => 1,
                2 | 3 => 4,
                8 => 7,
                9 => 6,
                12..=15 => 8,
                16..=19 => 24,
                _ => return None,
            };
            problem(0, pointer)
        }
        _ => None,
    }
}

/// ICMPv6 to ICMP (RFC 7915 5.2).
pub(super) fn to_icmp(old: Message) -> Option<Message> {
    let unreachable = |code, word| Some(Message { kind: kind::V4_UNREACHABLE, code, word });
    match (old.kind, old.code) {
        (kind::V6_UNREACHABLE, 0 | 2 | 3) => unreachable(1, 0),
        (kind::V6_UNREACHABLE, 1) => unreachable(10, 0),
        (kind::V6_UNREACHABLE, 4) => unreachable(3, 0),
        (kind::V6_TOO_BIG, _) => unreachable(4, (reported_mtu_v6(old.word) - GROWTH).into()),
        (kind::V6_TIME_EXCEEDED, code) => {
            Some(Message { kind: kind::V4_TIME_EXCEEDED, code, word: 0 })
        }
        (kind::V6_PARAMETER_PROBLEM, 0) => {
            let pointer: u32 = match old.word {
                0 => 0,
                1 => 1,
                4 | 5 => 2,
                6 => 9,
                7 => 8,
                8..=23 => 12,
                24..=39 => 16,
                _ => return None,
            };
            Some(Message { kind: kind::V4_PARAMETER_PROBLEM, code: 0, word: pointer << 24 })
        }
        (kind::V6_PARAMETER_PROBLEM, 1) => unreachable(2, 0),
        _ => None,
    }
}
