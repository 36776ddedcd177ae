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

use super::context::Context;
use crate::forwarding::tunnel::{GUE_SOURCE_PORTS, PathKey};
use crate::stats::Drop;
use crate::units::Ticks;
use crate::wire::headers::{Headers, protocol};
use crate::wire::icmp::{ICMP_LEN, kind, told_mtu_v4, told_mtu_v6};
use crate::wire::quoted::Quoted;

/// Places: paths that meet in one forget each other. A box has tens of backends, or hundreds.
const PLACES: usize = 4096;
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

/// Takes an ICMP error with a right checksum, sent to the source of the packet that it quotes, if that is a
/// tunnel packet of ours. Returns how its way ends; `None` if it is not about such a packet.
#[cold]
pub fn take(message: &[u8], quoted: &Quoted, context: &Context<'_>) -> Option<Drop> {
    let this_box = context.table.this_box();
    let (from, gue) = (quoted.source.1, quoted.destination.1);
    let is_ours = match quoted.protocol {
        protocol::IPV4 | protocol::IPV6 => true,
        protocol::UDP => from >= GUE_SOURCE_PORTS && gue == this_box.tunnels.gue_port,
        _ => false,
    };
    if !is_ours || !this_box.tunnels.is_source(quoted.source.0) {
        return None;
    }
    // What did pass needs no message, and what is longer than any NIC sends was never sent.
    let longest = this_box.mtus.iter().max().copied().unwrap_or(u16::MAX);
    let len = message.get(ICMP_LEN..).and_then(|packet| Headers::of(packet).ok());
    let len = len.map_or(0, |headers| u16::try_from(headers.end).unwrap_or(u16::MAX));
    let too_long = would_fit(message, quoted.source.0.is_v4(), len);
    let too_long = too_long.filter(|&mtu| mtu < len && len <= longest);
    Some(match context.table.tunnel_path(quoted.destination.0).zip(too_long) {
        Some((path, mtu)) => {
            context.paths.learn(path, mtu, context.now);
            Drop::PathMtuLearnt
        }
        None => Drop::TunnelError,
    })
}

/// What would have fit instead of `len` bytes, if the message is "fragmentation needed" or "packet too
/// big".
fn would_fit(message: &[u8], v4: bool, len: u16) -> Option<u16> {
    let [kind, code, _, _, m0, m1, m2, m3] = *message.first_chunk::<ICMP_LEN>()?;
    match (v4, kind, code) {
        (true, kind::V4_UNREACHABLE, FRAGMENTATION_NEEDED) => {
            Some(told_mtu_v4(u16::from_be_bytes([m2, m3]), len))
        }
        (false, kind::V6_TOO_BIG, _) => Some(told_mtu_v6(u32::from_be_bytes([m0, m1, m2, m3]))),
        _ => None,
    }
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
