//! A side door, path MTU: what routers say about tunnel packets that were too long for them.
//!
//! ```text
//! router --ICMP "fragmentation needed", quoting an outer packet of ours--> path_mtu_learnt
//! next client's packet that is too long now: too_big, and the client is told
//! ```
//!
//! What is learnt counts for all backends with that address, at all workers, for ten minutes (RFC 1191 6.3,
//! RFC 8201 5.3), and lowers what may go into the tunnel, never below what every host has to take: 576
//! bytes of IPv4 (RFC 1122 3.3.2) and 1280 of IPv6 (RFC 8200 5). So a forged message, which has to quote a
//! tunnel of ours, costs some percent more packets, and no connection.
//!
//! Memory: 32 KiB, shared by all workers. Cost: a load per tunnel packet.

use std::sync::atomic::{AtomicU64, Ordering};

use etherparse::checksum::Sum16BitWords;

use super::batch::Packet;
use super::context::Context;
use crate::flow::Address;
use crate::forwarding::tunnel::{GUE_SOURCE_PORTS, PathKey};
use crate::stats::Drop;
use crate::units::Ticks;
use crate::wire::tunnel::protocol;

/// Places: paths that meet in one forget each other. A box has tens of backends, or hundreds.
const PLACES: usize = 4096;
/// VLAN tags that a frame may have.
const MAX_TAGS: usize = 2;
/// How long what was learnt counts: ten minutes.
const LIFETIME: Ticks = Ticks(60_000);
/// Least inner MTU that is learnt (see above).
const LEAST_V4: u16 = 576;
const LEAST_V6: u16 = 1280;

/// What was learnt of the paths to tunnels' ends.
#[derive(Debug)]
pub struct PathMtus(Box<[AtomicU64]>);

impl Default for PathMtus {
    fn default() -> Self {
        Self((0..PLACES).map(|_| AtomicU64::new(0)).collect())
    }
}

impl PathMtus {
    /// Longest outer packet that passes the path, if that is known. 
    #[inline]
    pub fn learnt(&self, path: PathKey, now: Ticks) -> Option<u16> {
        let entry = Entry::from_word(self.place(path)?.load(Ordering::Relaxed));
        let counts = entry.tag == tag(path) && now.since(entry.at).0 < LIFETIME.0;
        Some(entry.mtu).filter(|&mtu| counts && mtu != 0)
    }

    /// Takes up what a router says, unless something smaller is known.
    fn learn(&self, path: PathKey, mtu: u16, now: Ticks) {
        if self.learnt(path, now).is_none_or(|known| mtu < known)
            && let Some(place) = self.place(path)
        {
            // Relaxed: it is one word, and of two workers either is right.
            place.store(Entry { tag: tag(path), mtu, at: now }.word(), Ordering::Relaxed);
        }
    }

    #[inline]
    fn place(&self, path: PathKey) -> Option<&AtomicU64> {
        self.0.get(usize::try_from(path.0).ok()? & (PLACES - 1))
    }
}

/// What tells a path from others of its place.
#[inline]
const fn tag(path: PathKey) -> u16 {
    let [high, low, ..] = path.0.to_be_bytes();
    u16::from_be_bytes([high, low])
}

/// One place, as a word.
struct Entry {
    tag: u16,
    mtu: u16,
    at: Ticks,
}

impl Entry {
    #[inline]
    const fn from_word(word: u64) -> Self {
        let [t0, t1, m0, m1, a0, a1, a2, a3] = word.to_be_bytes();
        Self {
            tag: u16::from_be_bytes([t0, t1]),
            mtu: u16::from_be_bytes([m0, m1]),
            at: Ticks(u32::from_be_bytes([a0, a1, a2, a3])),
        }
    }

    const fn word(&self) -> u64 {
        (self.tag as u64) << 48 | (self.mtu as u64) << 32 | self.at.0 as u64
    }
}

/// Longest inner packet that a tunnel takes which adds `overhead` bytes, by what was learnt.
#[inline]
pub(super) fn inner_limit(learnt: Option<u16>, overhead: u16, v4: bool) -> u16 {
    let least = if v4 { LEAST_V4 } else { LEAST_V6 };
    learnt.map_or(u16::MAX, |mtu| mtu.saturating_sub(overhead).max(least))
}

/// Takes an ICMP error about a tunnel packet of ours. Returns how its way ends; `None` if it is none.
#[cold]
pub fn take(packet: &Packet, context: &Context<'_>) -> Option<Drop> {
    let error = read(network(packet.data())?)?;
    let tunnels = &context.table.this_box().tunnels;
    let Quoted { source, destination, protocol: carried, ports, len } = error.quoted;
    let is_ours = match carried {
        protocol::IPV4 | protocol::IPV6 => true,
        protocol::UDP => {
            ports.is_some_and(|(from, to)| from >= GUE_SOURCE_PORTS && to == tunnels.gue_port)
        }
        _ => false,
    };
    if !is_ours || error.to != source || !tunnels.is_source(source) {
        return None;
    }
    let Some(path) = context.table.tunnel_path(destination) else {
        return Some(Drop::TunnelError);
    };
    match error.mtu {
        // What did pass needs no message.
        Some(mtu) if mtu < u32::from(len) => {
            context.paths.learn(path, u16::try_from(mtu).unwrap_or(u16::MAX), context.now);
            Some(Drop::PathMtuLearnt)
        }
        _ => Some(Drop::TunnelError),
    }
}

/// An ICMP error.
struct IcmpError {
    /// Whom it is for.
    to: Address,
    /// "Fragmentation needed" or "packet too big": what would fit.
    mtu: Option<u32>,
    quoted: Quoted,
}

/// The beginning of the packet that an error is about.
struct Quoted {
    source: Address,
    destination: Address,
    protocol: u8,
    /// UDP source and destination port.
    ports: Option<(u16, u16)>,
    /// Its bytes, by its own account.
    len: u16,
}

/// From the IP header on.
fn network(frame: &[u8]) -> Option<&[u8]> {
    let (_, mut rest) = frame.split_at_checked(12)?;
    for _ in 0..=MAX_TAGS {
        match rest {
            [0x08, 0x00, packet @ ..] | [0x86, 0xdd, packet @ ..] => return Some(packet),
            [0x81, 0x00, _, _, behind @ ..] | [0x88, 0xa8, _, _, behind @ ..] => rest = behind,
            _ => return None,
        }
    }
    None
}

fn read(packet: &[u8]) -> Option<IcmpError> {
    if packet.first()? >> 4 == 4 { read_v4(packet) } else { read_v6(packet) }
}

/// RFC 792; the MTU: RFC 1191 4. A router that does not tell it says 0, and is taken to mean the least that
/// there is (RFC 1191 5).
fn read_v4(packet: &[u8]) -> Option<IcmpError> {
    const ICMP: u8 = 1;
    const UNREACHABLE: u8 = 3;
    const FRAGMENTATION_NEEDED: u8 = 4;
    const TIME_EXCEEDED: u8 = 11;
    let header = header_v4(packet)?;
    let icmp = packet.get(header.len..usize::from(header.total))?;
    let [kind, code, _, _, _, _, m0, m1] = *icmp.first_chunk::<8>()?;
    let is_error = matches!(kind, UNREACHABLE | TIME_EXCEEDED);
    let intact = Sum16BitWords::new().add_slice(icmp).ones_complement() == 0;
    if header.protocol != ICMP || header.is_later_fragment || !is_error || !intact {
        return None;
    }
    let mtu = u32::from(u16::from_be_bytes([m0, m1]));
    let too_big = (kind, code) == (UNREACHABLE, FRAGMENTATION_NEEDED);
    let rest = icmp.get(8..)?;
    let inner = header_v4(rest)?;
    let quoted = Quoted {
        source: inner.source,
        destination: inner.destination,
        protocol: inner.protocol,
        ports: ports(rest.get(inner.len..).unwrap_or_default()),
        len: inner.total,
    };
    Some(IcmpError { to: header.destination, mtu: too_big.then_some(mtu), quoted })
}

/// RFC 4443 3.
fn read_v6(packet: &[u8]) -> Option<IcmpError> {
    const ICMPV6: u8 = 58;
    const TOO_BIG: u8 = 2;
    const LAST_ERROR: u8 = 127;
    let (header, rest) = packet.split_first_chunk::<40>()?;
    let (to, _, next, len) = header_v6(header)?;
    let icmp = rest.get(..usize::from(len))?;
    let [kind, _, _, _, m0, m1, m2, m3] = *icmp.first_chunk::<8>()?;
    let sum = Sum16BitWords::new().add_slice(header.get(8..)?).add_slice(icmp);
    let intact = sum.add_2bytes(len.to_be_bytes()).add_2bytes([0, next]).ones_complement() == 0;
    if next != ICMPV6 || kind > LAST_ERROR || !intact {
        return None;
    }
    let mtu = u32::from_be_bytes([m0, m1, m2, m3]);
    let (inner, rest) = icmp.get(8..)?.split_first_chunk::<40>()?;
    let (destination, source, protocol, len) = header_v6(inner)?;
    let len = len.saturating_add(40);
    let quoted = Quoted { source, destination, protocol, ports: ports(rest), len };
    Some(IcmpError { to, mtu: (kind == TOO_BIG).then_some(mtu), quoted })
}

struct HeaderV4 {
    source: Address,
    destination: Address,
    protocol: u8,
    /// Bytes of the header.
    len: usize,
    /// Bytes of the packet.
    total: u16,
    is_later_fragment: bool,
}

fn header_v4(packet: &[u8]) -> Option<HeaderV4> {
    let [first, _, l0, l1, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        *packet.first_chunk::<20>()?;
    Some(HeaderV4 {
        source: Address::from_v4([s0, s1, s2, s3]),
        destination: Address::from_v4([d0, d1, d2, d3]),
        protocol,
        len: usize::from(first & 0xf) * 4,
        total: u16::from_be_bytes([l0, l1]),
        is_later_fragment: u16::from_be_bytes([f0, f1]) & 0x1fff != 0,
    })
    .filter(|header| first >> 4 == 4 && header.len >= 20)
}

/// Destination, source, next header, payload length.
fn header_v6(header: &[u8; 40]) -> Option<(Address, Address, u8, u16)> {
    let [first, _, _, _, l0, l1, next, ..] = *header;
    let (source, destination) = (header.get(8..24)?, header.get(24..)?);
    let source = Address::from_v6(*source.first_chunk()?);
    let destination = Address::from_v6(*destination.first_chunk()?);
    let len = u16::from_be_bytes([l0, l1]);
    (first >> 4 == 6).then_some((destination, source, next, len))
}

fn ports(segment: &[u8]) -> Option<(u16, u16)> {
    let [s0, s1, d0, d1] = *segment.first_chunk()?;
    Some((u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_learnt_counts_for_ten_minutes_and_only_gets_smaller() {
        let paths = PathMtus::default();
        let (path, now) = (PathKey(0x1234_5678), Ticks(u32::MAX - 5));
        assert_eq!(paths.learnt(path, now), None);
        paths.learn(path, 1400, now);
        assert_eq!(paths.learnt(path, now), Some(1400));
        let later = now.after(Ticks(59_999));
        paths.learn(path, 1450, later);
        assert_eq!(paths.learnt(path, later), Some(1400));
        paths.learn(path, 1300, later);
        assert_eq!(paths.learnt(path, later), Some(1300));
        assert_eq!(paths.learnt(path, later.after(Ticks(59_999))), Some(1300));
        assert_eq!(paths.learnt(path, later.after(LIFETIME)), None);
        paths.learn(path, 1450, later.after(LIFETIME));
        assert_eq!(paths.learnt(path, later.after(LIFETIME)), Some(1450));
    }

    #[test]
    fn paths_of_one_place_are_not_taken_for_each_other() {
        let paths = PathMtus::default();
        let (one, other, now) = (PathKey(0x1111_0007), PathKey(0x2222_0007), Ticks(0));
        paths.learn(one, 1400, now);
        assert_eq!(paths.learnt(other, now), None);
        paths.learn(other, 1300, now);
        assert_eq!((paths.learnt(one, now), paths.learnt(other, now)), (None, Some(1300)));
    }

    #[test]
    fn no_message_takes_less_than_every_host_has_to_take() {
        for (learnt, overhead, v4, limit) in [
            (None, 20, true, u16::MAX),
            (Some(1400), 20, true, 1380),
            (Some(1400), 52, false, 1348),
            (Some(0), 52, true, 576),
            (Some(595), 20, true, 576),
            (Some(597), 20, true, 577),
            (Some(1280), 40, false, 1280),
            (Some(1321), 40, false, 1281),
        ] {
            assert_eq!(inner_limit(learnt, overhead, v4), limit, "{learnt:?} {overhead} {v4}");
        }
    }
}
