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

use super::batch::Packet;
use super::context::Context;
use crate::flow::Address;
use crate::forwarding::tunnel::{GUE_SOURCE_PORTS, PathKey};
use crate::stats::Drop;
use crate::units::Ticks;
use crate::wire::checksum::{self, Full, pseudo_header};
use crate::wire::headers::{Headers, addresses, protocol};
use crate::wire::icmp::{ICMP_LEN, kind};

/// Places: paths that meet in one forget each other. A box has tens of backends, or hundreds.
const PLACES: usize = 4096;
/// VLAN tags that a frame may have.
const MAX_TAGS: usize = 2;
/// Code of "destination unreachable" (RFC 792).
const FRAGMENTATION_NEEDED: u8 = 4;
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
    let Complaint { to, mtu, quoted } = read(network(packet.data())?)?;
    let tunnels = &context.table.this_box().tunnels;
    let is_ours = match quoted.protocol {
        protocol::IPV4 | protocol::IPV6 => true,
        protocol::UDP => {
            let [from, gue] = quoted.ports?;
            from >= GUE_SOURCE_PORTS && gue == tunnels.gue_port
        }
        _ => false,
    };
    if !is_ours || to != quoted.source || !tunnels.is_source(to) {
        return None;
    }
    let path = context.table.tunnel_path(quoted.destination);
    // What did pass needs no message, and what is longer than any NIC sends was never sent.
    let longest = context.table.this_box().mtus.iter().max().copied().unwrap_or(u16::MAX);
    let too_long = mtu.and_then(|mtu| u16::try_from(mtu).ok());
    let too_long = too_long.filter(|&mtu| mtu < quoted.len && quoted.len <= longest);
    if let (Some(path), Some(mtu)) = (path, too_long) {
        // 0 is the value of an empty place.
        context.paths.learn(path, mtu.max(1), context.now);
        return Some(Drop::PathMtuLearnt);
    }
    Some(Drop::TunnelError)
}

/// An ICMP error.
struct Complaint {
    /// Whom it is for.
    to: Address,
    /// "Fragmentation needed" or "packet too big": what would fit. A router that does not tell says 0, and
    /// is taken to mean the least that there is (RFC 1191 5).
    mtu: Option<u32>,
    quoted: Quoted,
}

/// The beginning of the packet that an error is about.
struct Quoted {
    source: Address,
    destination: Address,
    protocol: u8,
    /// UDP source and destination port.
    ports: Option<[u16; 2]>,
    /// Bytes of the packet, by its own account.
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

/// An ICMP error (RFC 792, RFC 4443 3) whose checksum is right.
fn read(packet: &[u8]) -> Option<Complaint> {
    let headers = Headers::of(packet).ok().filter(Headers::is_whole)?;
    let message = packet.get(headers.transport..headers.end)?;
    let [kind, code, _, _, m0, m1, m2, m3] = *message.first_chunk::<ICMP_LEN>()?;
    let mtu = u32::from_be_bytes([m0, m1, m2, m3]);
    let (is_error, too_big, pseudo) = match headers.protocol {
        protocol::ICMP => {
            let is_error = matches!(kind, kind::V4_UNREACHABLE | kind::V4_TIME_EXCEEDED);
            let too_big = (kind, code) == (kind::V4_UNREACHABLE, FRAGMENTATION_NEEDED);
            (is_error, too_big.then_some(mtu & 0xffff), Full::new())
        }
        protocol::ICMP_V6 => {
            let len = u32::try_from(message.len()).ok()?;
            let pseudo = pseudo_header(addresses(packet)?, len, protocol::ICMP_V6);
            let too_big = kind == kind::V6_TOO_BIG;
            (kind < kind::V6_ECHO_REQUEST, too_big.then_some(mtu), pseudo)
        }
        _ => return None,
    };
    if !is_error || checksum::of(&pseudo.add_slice(message)) != 0 {
        return None;
    }
    let (_, to) = ends(packet)?;
    let quoted = quoted(message.get(ICMP_LEN..)?)?;
    Some(Complaint { to, mtu: too_big, quoted })
}

fn quoted(packet: &[u8]) -> Option<Quoted> {
    let headers = Headers::of(packet).ok()?;
    let (source, destination) = ends(packet)?;
    let ports = packet.get(headers.transport..).and_then(|udp| udp.first_chunk());
    let ports = ports.map(|&[s0, s1, d0, d1]| [[s0, s1], [d0, d1]].map(u16::from_be_bytes));
    let len = u16::try_from(headers.end).unwrap_or(u16::MAX);
    Some(Quoted { source, destination, protocol: headers.protocol, ports, len })
}

/// Source and destination.
fn ends(packet: &[u8]) -> Option<(Address, Address)> {
    let both = addresses(packet)?;
    Some(match *both {
        [s0, s1, s2, s3, d0, d1, d2, d3] => {
            (Address::from_v4([s0, s1, s2, s3]), Address::from_v4([d0, d1, d2, d3]))
        }
        _ => {
            let (source, destination) = both.split_first_chunk()?;
            (Address::from_v6(*source), Address::from_v6(*destination.first_chunk()?))
        }
    })
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
