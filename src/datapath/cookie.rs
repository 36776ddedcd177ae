//! SYN cookies: the sequence number with which a VIP with `syn_proxy` answers a SYN, and by which it
//! knows the client's ACK.
//!
//! ```text
//! cookie   tag:22 period:1 mss:3 scale:4 sack:1 timestamps:1
//! ```
//!
//! The tag is SipHash-1-3 of the flow, the client's sequence number, the period of 82 s and the other
//! bits, keyed by the secret of the flow tables: who did not receive the answer has to guess
//! one of 2^22, for one or two periods. All options that matter are in the cookie, so that clients
//! without timestamps lose none. Source: RFC 4987 3.6 and appendix A; D. J. Bernstein, cr.yp.to/syncookies.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher13;

use super::batch::{Packet, TcpFlags};
use super::context::Context;
use crate::net::{FlowKey, TableSecret};
use crate::units::Ticks;
use crate::wire::syn::SynOptions;
use crate::wire::tcp;

/// Bits below the tag.
const TAG_SHIFT: u32 = 10;
/// Ticks of 10 ms in a period: a power of two, so that periods follow each other across the wrap of
/// the clock.
const PERIOD: u32 = 1 << 13;
/// Number of periods until the clock wraps.
const PERIODS: u32 = u32::MAX / PERIOD + 1;
/// A scale that stands for none.
const UNSCALED: u32 = 15;
/// Second half of the hash's key: the first one keys the flow tables, too.
const DOMAIN: u64 = u64::from_be_bytes(*b"syncooki");

/// Segment sizes that a cookie can name: the largest one that is not larger than the client's. The
/// first is the least that every host takes (RFC 9293 3.7.1); the others are those of Ethernet with
/// IPv4 and IPv6, PPPoE, tunnels, and jumbo frames.
const SIZES: [u16; 8] = [536, 1220, 1340, 1400, 1420, 1440, 1460, 8940];

/// What a valid cookie tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proof {
    /// Sequence number of the client's SYN.
    pub isn: u32,
    /// The cookie.
    pub cookie: u32,
    /// Maximum segment size of the client, in bytes.
    pub mss: u16,
    /// Window scale of the client.
    pub scale: Option<u8>,
    /// Whether the client takes selective acknowledgments.
    pub sack: bool,
    /// Whether the client uses timestamps.
    pub timestamps: bool,
}

/// Returns the cookie for the SYN of a flow.
pub(super) fn make(
    secret: &TableSecret,
    flow: &FlowKey,
    isn: u32,
    offer: &SynOptions,
    now: Ticks,
) -> u32 {
    let period = now.0 / PERIOD;
    let mss = offer.mss.unwrap_or_default();
    let size = (1_u32..).zip(&SIZES[1..]).filter(|(_, size)| **size <= mss).last();
    let options = (period & 1) << 9
        | size.map_or(0, |(index, _)| index) << 6
        | offer.scale.map_or(UNSCALED, u32::from) << 2
        | u32::from(offer.sack) << 1
        | u32::from(offer.timestamps.is_some());
    tag(secret, flow, isn, period, options) << TAG_SHIFT | options
}

/// Returns what the cookie tells that a client's segment acknowledges; `None` if it is not valid.
///
/// `sequence` is that of the ACK after the SYN, or one less: after the loss of its ACK, a client that
/// waits for our window to open repeats the number before (RFC 9293 3.8.6.1).
pub(super) fn check(
    secret: &TableSecret,
    flow: &FlowKey,
    (sequence, acknowledgment): (u32, u32),
    now: Ticks,
) -> Option<Proof> {
    let cookie = acknowledgment.wrapping_sub(1);
    let options = cookie & ((1 << TAG_SHIFT) - 1);
    let current = now.0 / PERIOD;
    let age = (current ^ options >> 9) & 1;
    let period = current.wrapping_sub(age) % PERIODS;
    let fits = |isn: &u32| tag(secret, flow, *isn, period, options) == cookie >> TAG_SHIFT;
    let isn = [sequence.wrapping_sub(1), sequence].into_iter().find(fits)?;
    let scale = u8::try_from(options >> 2 & 15).ok()?;
    Some(Proof {
        isn,
        cookie,
        mss: *SIZES.get(usize::try_from(options >> 6 & 7).ok()?)?,
        scale: (u32::from(scale) != UNSCALED).then_some(scale),
        sack: options >> 1 & 1 == 1,
        timestamps: options & 1 == 1,
    })
}

/// Returns what the packet proves, if it is an ACK of one of our cookies.
pub(super) fn proof(packet: &Packet, context: &Context<'_>) -> Option<Proof> {
    let flags = packet.layout.flags;
    if !flags.any(TcpFlags::ACK) || flags.any(TcpFlags::SYN | TcpFlags::RST) {
        return None;
    }
    let numbers = tcp::numbers(packet.segment())?;
    let secret = context.shared.flows.first()?.secret();
    check(secret, &packet.flow.key(), numbers, context.now)
}

/// Returns the 22 bits that prove the cookie.
fn tag(secret: &TableSecret, flow: &FlowKey, isn: u32, period: u32, options: u32) -> u32 {
    let mut hasher = SipHasher13::new_with_keys(secret.seed(), DOMAIN);
    for word in flow.words() {
        hasher.write_u64(word);
    }
    hasher.write_u64(u64::from(isn) << 32 | u64::from(period));
    hasher.write_u32(options);
    u32::try_from(hasher.finish() >> 42).unwrap_or_default()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop early")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::{Address, Protocol};
    use crate::wire::syn::Timestamps;

    fn flow(port: u16) -> FlowKey {
        FlowKey {
            client: Address::from_v4([198, 18, 0, 1]),
            vip: Address::from_v4([192, 0, 2, 10]),
            client_port: port,
            vip_port: 80,
            protocol: Protocol::Tcp,
        }
    }

    prop_compose! {
        fn offer()(
            mss: Option<u16>, scale in prop::option::of(0..=14_u8), sack: bool, timestamps: bool,
        ) -> SynOptions {
            let timestamps = timestamps.then_some(Timestamps { value: 1, echo: 0 });
            SynOptions { mss, scale, sack, timestamps }
        }
    }

    proptest! {
        #[test]
        fn a_cookie_tells_what_the_syn_offered(offer in offer(), isn: u32, now: u32, age in 0..PERIOD) {
            let secret = TableSecret::new(3);
            let cookie = make(&secret, &flow(1), isn, &offer, Ticks(now));
            let then = Ticks(now.wrapping_add(age));
            let acknowledgment = cookie.wrapping_add(1);
            let proof = check(&secret, &flow(1), (isn.wrapping_add(1), acknowledgment), then).unwrap();
            prop_assert_eq!((proof.isn, proof.cookie), (isn, cookie));
            prop_assert_eq!((proof.scale, proof.sack), (offer.scale, offer.sack));
            prop_assert_eq!(proof.timestamps, offer.timestamps.is_some());
            prop_assert!(proof.mss <= offer.mss.unwrap_or_default().max(536));
            // A probe of a closed window.
            let probe = check(&secret, &flow(1), (isn, acknowledgment), then);
            prop_assert_eq!(probe, Some(proof));
        }
    }

    #[test]
    fn the_largest_size_that_fits_is_kept() {
        let secret = TableSecret::new(3);
        for (mss, kept) in
            [(0, 536), (1219, 536), (1220, 1220), (1459, 1440), (1460, 1460), (65_495, 8940)]
        {
            let offer = SynOptions { mss: Some(mss), scale: None, sack: false, timestamps: None };
            let cookie = make(&secret, &flow(1), 5, &offer, Ticks(0));
            let proof = check(&secret, &flow(1), (6, cookie.wrapping_add(1)), Ticks(0)).unwrap();
            assert_eq!(proof.mss, kept, "{mss}");
        }
    }

    #[test]
    fn another_flow_number_time_or_secret_is_refused() {
        let secret = TableSecret::new(3);
        let offer = SynOptions { mss: Some(1460), scale: Some(7), sack: true, timestamps: None };
        let mut passed = [0_u32; 5];
        for port in 1..=1000 {
            let (flow, number) = (flow(port), u32::from(port) << 20);
            let cookie = make(&secret, &flow, number, &offer, Ticks(0)).wrapping_add(1);
            let next = number.wrapping_add(1);
            let old = Ticks(2 * PERIOD);
            let other = FlowKey { vip_port: 81, ..flow };
            for (count, found) in passed.iter_mut().zip([
                check(&secret, &other, (next, cookie), Ticks(0)),
                check(&secret, &flow, (next.wrapping_add(5), cookie), Ticks(0)),
                check(&secret, &flow, (next, cookie ^ 1 << 6), Ticks(0)),
                check(&secret, &flow, (next, cookie), old),
                check(&TableSecret::new(4), &flow, (next, cookie), Ticks(0)),
            ]) {
                *count += u32::from(found.is_some());
            }
        }
        // A tag of 22 bits is met once in four million times.
        assert_eq!(passed, [0; 5]);
    }

    #[test]
    fn a_cookie_lives_for_one_to_two_periods() {
        let secret = TableSecret::new(3);
        let offer = SynOptions { mss: None, scale: None, sack: false, timestamps: None };
        let cookie = make(&secret, &flow(1), 5, &offer, Ticks(PERIOD - 1));
        let valid =
            |now| check(&secret, &flow(1), (6, cookie.wrapping_add(1)), Ticks(now)).is_some();
        let ages = [PERIOD - 1, 2 * PERIOD - 1, 2 * PERIOD, 3 * PERIOD];
        assert_eq!(ages.map(valid), [true, true, false, false]);
        // Before the clock began: it wraps.
        let cookie = make(&secret, &flow(1), 5, &offer, Ticks(u32::MAX)).wrapping_add(1);
        assert!(check(&secret, &flow(1), (6, cookie), Ticks(PERIOD - 1)).is_some());
    }
}
