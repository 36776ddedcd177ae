//! Numbers of a TCP connection of which the client and the backend have each completed a handshake
//! with this box: the client with a cookie as our sequence number, the backend with its own.
//!
//! ```text
//! to the backend  ACK, SACK blocks   + shift        echoed timestamp  - clock
//!                 window             << upscale     (a backend without window scaling)
//! to the client   SEQ                - shift        timestamp         + clock
//!                 window             << its scale, >> the scale that the client was told
//! ```
//!
//! The numbers of the client's own stream are the same on both sides. Source: RFC 9293 3.4,
//! RFC 2018 3, RFC 7323 2 and 3; the idea: netfilter's SYNPROXY (nf_synproxy_core.c).

use super::checksum::{Delta, replace};
use super::syn::Timestamps;
use super::tcp::{self, Options, option};

/// Translation between the two sides of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shift {
    /// The backend's initial sequence number less the one that the client was told.
    pub shift: u32,
    /// Our clock less the backend's, in timestamps.
    pub clock: u32,
    /// Factor of the client's window, as a shift: its scale, for a backend that scales none.
    pub upscale: u8,
    /// Window scale of the backend.
    pub scale: u8,
    /// Window scale that the client was told.
    pub told: u8,
}

const FLAG_SYN: u8 = 0x02;
const FLAG_ACK: u8 = 0x10;

impl Shift {
    /// Converts a number that the client acknowledges to the backend's count.
    pub const fn forth(&self, number: u32) -> u32 {
        number.wrapping_add(self.shift)
    }

    /// Converts a number of the backend to the client's count.
    pub const fn back(&self, number: u32) -> u32 {
        number.wrapping_sub(self.shift)
    }

    /// Translates a segment of the client, and patches its checksum. `None` if its header is
    /// truncated.
    #[must_use]
    pub fn to_backend(&self, segment: &mut [u8]) -> Option<()> {
        let (number, flags) = (tcp::acknowledgment(segment)?, tcp::flags(segment)?);
        tcp::header_len(segment)?;
        let mut delta = Delta::default();
        if flags & FLAG_ACK != 0 {
            delta = tcp::set_acknowledgment(segment, self.forth(number), delta);
        }
        if self.upscale > 0 && flags & FLAG_SYN == 0 {
            let window = u32::from(tcp::window(segment)?) << self.upscale;
            delta = tcp::set_window(segment, narrow(window), delta);
        }
        let mut options = Options::of(segment);
        while let Some(place) = options.next(segment) {
            match place.kind {
                option::SACK => {
                    let edges = (place.at + 2..place.at + place.len).step_by(4);
                    for at in edges {
                        // An option of a wrong length may end within a number.
                        let number =
                            tcp::number(segment, at).filter(|_| at + 4 <= place.at + place.len);
                        let Some(number) = number else { break };
                        delta = replace(segment, at, &self.forth(number).to_be_bytes(), delta);
                    }
                }
                option::TIMESTAMPS if place.len == Timestamps::LEN && flags & FLAG_ACK != 0 => {
                    if let Some(echo) = tcp::number(segment, place.at + 6) {
                        let echo = echo.wrapping_sub(self.clock).to_be_bytes();
                        delta = replace(segment, place.at + 6, &echo, delta);
                    }
                }
                _ => {}
            }
        }
        tcp::patch_checksum(segment, delta).then_some(())
    }

    /// Translates a segment of the backend, and patches its checksum. `None` if its header is
    /// truncated.
    #[must_use]
    pub fn to_client(&self, segment: &mut [u8]) -> Option<()> {
        let (number, flags) = (tcp::sequence(segment)?, tcp::flags(segment)?);
        tcp::header_len(segment)?;
        let mut delta = tcp::set_sequence(segment, self.back(number), Delta::default());
        // The window of a SYN is not scaled (RFC 7323 2.2).
        let scale = if flags & FLAG_SYN == 0 { self.scale } else { 0 };
        if scale != self.told {
            let window = tcp::window(segment)?;
            let wide = u32::from(window) << scale;
            // An open window must not look closed.
            let told = (wide >> self.told).max(u32::from(window != 0));
            delta = tcp::set_window(segment, narrow(told), delta);
        }
        if let Some(at) = Timestamps::place(segment)
            && let Some(value) = tcp::number(segment, at + 2)
        {
            let value = value.wrapping_add(self.clock).to_be_bytes();
            delta = replace(segment, at + 2, &value, delta);
        }
        tcp::patch_checksum(segment, delta).then_some(())
    }
}

/// Largest window that a header holds, at most `window`.
fn narrow(window: u32) -> u16 {
    u16::try_from(window).unwrap_or(u16::MAX)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::*;
    use super::*;

    fn shifts() -> impl Strategy<Value = Shift> {
        let scales = (0..=14_u8, 0..=14_u8, prop_oneof![Just(0), Just(7_u8)]);
        (any::<u32>(), any::<u32>(), scales).prop_map(|(shift, clock, (upscale, scale, told))| {
            Shift { shift, clock, upscale, scale, told }
        })
    }

    fn packet(v4: bool, numbers: (u32, u32), options: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let builder = from_client(v4).tcp(31_337, 80, numbers.0, 1000).ack(numbers.1);
        builder.options_raw(options).unwrap().write(&mut bytes, payload).unwrap();
        assert_right(&bytes);
        bytes
    }

    proptest! {
        #[test]
        fn numbers_move_and_checksums_stay_right(
            it in shifts(), numbers: (u32, u32), edges: [u32; 4], times: (u32, u32), v4: bool,
            payload in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let at = if v4 { 20 } else { 40 };
            let sack: Vec<u8> = edges.iter().flat_map(|edge| edge.to_be_bytes()).collect();
            let times = Timestamps { value: times.0, echo: times.1 };
            let options = [&[1, 1][..], &times.to_bytes(), &[1, 1, 5, 18], &sack].concat();
            let mut forth = packet(v4, numbers, &options, &payload);
            it.to_backend(&mut forth[at..]).unwrap();
            assert_right(&forth);
            let (sequence, acknowledgment) = numbers;
            prop_assert_eq!(
                tcp::numbers(&forth[at..]),
                Some((sequence, acknowledgment.wrapping_add(it.shift)))
            );
            let expected = Timestamps { echo: times.echo.wrapping_sub(it.clock), ..times };
            prop_assert_eq!(Timestamps::find(&forth[at..]), Some(expected));
            for (index, edge) in edges.iter().enumerate() {
                let moved = tcp::number(&forth[at..], 36 + 4 * index);
                prop_assert_eq!(moved, Some(edge.wrapping_add(it.shift)));
            }
            let window = (1000_u32 << it.upscale).min(65_535);
            prop_assert_eq!(tcp::window(&forth[at..]).map(u32::from), Some(window));

            let mut back = packet(v4, numbers, &options, &payload);
            it.to_client(&mut back[at..]).unwrap();
            assert_right(&back);
            prop_assert_eq!(
                tcp::numbers(&back[at..]),
                Some((sequence.wrapping_sub(it.shift), acknowledgment))
            );
            let expected = Timestamps { value: times.value.wrapping_add(it.clock), ..times };
            prop_assert_eq!(Timestamps::find(&back[at..]), Some(expected));
            let window = (1000_u32 << it.scale >> it.told).clamp(1, 65_535);
            prop_assert_eq!(tcp::window(&back[at..]).map(u32::from), Some(window));
        }

        #[test]
        fn any_bytes_are_translated_within_their_length(it in shifts(), bytes: Vec<u8>) {
            for translate in [Shift::to_backend, Shift::to_client] {
                let mut changed = bytes.clone();
                let _ = translate(&it, &mut changed);
                prop_assert_eq!(changed.len(), bytes.len());
            }
        }
    }

    #[test]
    fn a_closed_window_stays_closed() {
        let it = Shift { shift: 0, clock: 0, upscale: 3, scale: 2, told: 7 };
        for (window, to_client, to_backend) in [(0_u16, 0, 0), (1, 1, 8), (64, 2, 512)] {
            let mut segment = packet(true, (1, 2), &[], &[]).split_off(20);
            let delta = tcp::set_window(&mut segment, window, Delta::default());
            assert!(tcp::patch_checksum(&mut segment, delta));
            let mut other = segment.clone();
            it.to_client(&mut segment).unwrap();
            it.to_backend(&mut other).unwrap();
            assert_eq!(tcp::window(&segment), Some(to_client));
            assert_eq!(tcp::window(&other), Some(to_backend));
        }
    }
}
