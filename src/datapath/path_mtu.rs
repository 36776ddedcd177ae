//! Slow path, path MTU: ICMP errors from routers about tunnel packets that were too long.
//!
//! ```text
//! router --ICMP "fragmentation needed", quoting one of our outer packets--> path_mtu_learnt
//! next client's packet that is too long now: too_big, with an ICMP error to the client
//! ```
//!
//! A learnt MTU applies to all backends with that address, at all workers, for ten minutes (RFC
//! 1191 6.3, RFC 8201 5.3). It lowers the length of the inner packet, never below the size that
//! every host must accept: 576 bytes of IPv4 (RFC 1122 3.3.2) and 1280 of IPv6 (RFC 8200 5). So a
//! forged message, which must quote a tunnel of this box, costs some percent more packets, and no
//! connection.
//!
//! Cost: for such messages only; the MTUs are kept in [`path_mtus`](crate::flow::path_mtus).

use super::context::Context;
use crate::forwarding::tunnel::GUE_SOURCE_PORTS;
use crate::net::Family;
use crate::stats::Drop;
use crate::wire::headers::{Headers, protocol};
use crate::wire::icmp::{ICMP_LEN, kind, reported_mtu_v4, reported_mtu_v6};
use crate::wire::quoted::Quoted;

/// Code of "destination unreachable" (RFC 792).
const FRAGMENTATION_NEEDED: u8 = 4;
/// Least inner MTU in bytes that is learnt (see above).
const LEAST_V4: u16 = 576;
const LEAST_V6: u16 = 1280;

/// Longest inner packet in bytes of a tunnel that adds `overhead` bytes, with the MTU learnt for
/// its path.
#[inline]
pub(super) fn inner_limit(learnt: Option<u16>, overhead: u16, family: Family) -> u16 {
    let least = if family.is_v4() { LEAST_V4 } else { LEAST_V6 };
    learnt.map_or(u16::MAX, |mtu| mtu.saturating_sub(overhead).max(least))
}

/// Handles an ICMP error with a correct checksum, sent to the source of the packet that it quotes,
/// if that packet went through a tunnel of this box. Returns the drop reason; `None` for other
/// errors.
#[cold]
pub fn take(message: &[u8], quoted: &Quoted, context: &Context<'_>) -> Option<Drop> {
    let local = context.table.local();
    let (from, gue) = (quoted.source.1, quoted.destination.1);
    let is_ours = match quoted.protocol {
        protocol::IPV4 | protocol::IPV6 => true,
        protocol::UDP => from >= GUE_SOURCE_PORTS && gue == local.tunnels.gue_port,
        _ => false,
    };
    if !is_ours || !local.tunnels.is_source(quoted.source.0) {
        return None;
    }
    // A packet that passed causes no message, and one longer than the MTU of every NIC was never
    // sent.
    let longest = local.mtus.iter().max().copied().unwrap_or(u16::MAX);
    let len = message.get(ICMP_LEN..).and_then(|packet| Headers::of(packet).ok());
    let len = len.map_or(0, |headers| u16::try_from(headers.end).unwrap_or(u16::MAX));
    let too_long = would_fit(message, quoted.source.0.family(), len);
    let too_long = too_long.filter(|&mtu| mtu < len && len <= longest);
    Some(match context.table.tunnel_path(quoted.destination.0).zip(too_long) {
        Some((path, mtu)) => {
            context.shared.path_mtus.learn(path, mtu, context.now);
            Drop::PathMtuLearnt
        }
        None => Drop::TunnelError,
    })
}

/// Returns the MTU that the message reports for a packet of `len` bytes, if it is "fragmentation
/// needed" or "packet too big".
fn would_fit(message: &[u8], family: Family, len: u16) -> Option<u16> {
    let [kind, code, _, _, m0, m1, m2, m3] = *message.first_chunk::<ICMP_LEN>()?;
    match (family, kind, code) {
        (Family::V4, kind::V4_UNREACHABLE, FRAGMENTATION_NEEDED) => {
            Some(reported_mtu_v4(u16::from_be_bytes([m2, m3]), len))
        }
        (Family::V6, kind::V6_TOO_BIG, _) => {
            Some(reported_mtu_v6(u32::from_be_bytes([m0, m1, m2, m3])))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_takes_less_than_every_host_has_to_take() {
        for (learnt, overhead, family, limit) in [
            (None, 20, Family::V4, u16::MAX),
            (Some(1400), 20, Family::V4, 1380),
            (Some(1400), 52, Family::V6, 1348),
            (Some(0), 52, Family::V4, 576),
            (Some(595), 20, Family::V4, 576),
            (Some(597), 20, Family::V4, 577),
            (Some(1280), 40, Family::V6, 1280),
            (Some(1321), 40, Family::V6, 1281),
        ] {
            assert_eq!(
                inner_limit(learnt, overhead, family),
                limit,
                "{learnt:?} {overhead} {family:?}"
            );
        }
    }
}
