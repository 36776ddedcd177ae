//! TCP headers (RFC 9293 3.1): iteration over the options of any bytes, and changes of fields and
//! options in place with the checksum patched.
//!
//! A *segment* is a slice that starts with a TCP header. Ethernet padding may follow its last byte:
//! only changed bytes are read.

use super::checksum::{Delta, replace};

/// Length of a header without options, in bytes.
pub const MIN_LEN: usize = 20;
/// Offset of the flags byte.
pub(super) const FLAGS: usize = field::FLAGS;
/// Offsets in the header.
mod field {
    pub const SEQUENCE: usize = 4;
    pub const ACKNOWLEDGMENT: usize = 8;
    pub const DATA_OFFSET: usize = 12;
    pub const FLAGS: usize = 13;
    pub const WINDOW: usize = 14;
    pub const CHECKSUM: usize = 16;
    pub const URGENT: usize = 18;
}

/// Kinds of options (IANA).
pub mod option {
    /// End of options.
    pub const END: u8 = 0;
    /// No operation: padding of one byte.
    pub const NOP: u8 = 1;
    /// Maximum segment size.
    pub const MSS: u8 = 2;
    /// Window scale (RFC 7323 2.2).
    pub const SCALE: u8 = 3;
    /// Selective acknowledgments are permitted (RFC 2018 2).
    pub const SACK_PERMITTED: u8 = 4;
    /// Selective acknowledgment (RFC 2018).
    pub const SACK: u8 = 5;
    /// Timestamps (RFC 7323 3.2).
    pub const TIMESTAMPS: u8 = 8;
    /// Fast open cookie (RFC 7413).
    pub const FAST_OPEN: u8 = 34;
    /// Experimental, identified by the two bytes that follow (RFC 6994).
    pub const EXPERIMENTAL: u8 = 254;
}

/// FIN.
const FIN: u8 = 0x01;
/// SYN.
const SYN: u8 = 0x02;

/// Position of an option in a header, including its kind and length bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Kind of the option.
    pub kind: u8,
    /// Offset of the kind byte in the segment.
    pub at: usize,
    /// Length of the option in bytes, inside the header.
    pub len: usize,
}

/// Iterator over the options of a segment. The segment may change between steps if lengths are
/// unchanged.
///
/// Ends at the end of the options, or at the first malformed option (a length below 2 or beyond the
/// header). Cost: one step per option, at most 40.
#[derive(Debug)]
pub struct Options {
    at: usize,
    end: usize,
}

impl Options {
    /// Starts at the first option.
    #[inline]
    pub fn of(segment: &[u8]) -> Self {
        let end = header_len(segment).unwrap_or(MIN_LEN);
        Self { at: MIN_LEN, end }
    }

    /// Returns the next option that is not padding.
    #[inline]
    pub fn next(&mut self, segment: &[u8]) -> Option<Place> {
        let options = segment.get(..self.end)?;
        loop {
            let at = self.at;
            match *options.get(at)? {
                option::END => return None,
                option::NOP => self.at += 1,
                kind => {
                    let len = usize::from(*options.get(at + 1)?);
                    if len < 2 || at + len > self.end {
                        return None;
                    }
                    self.at += len;
                    return Some(Place { kind, at, len });
                }
            }
        }
    }
}

/// Length of the header in bytes, if the segment contains all of it.
#[inline]
pub fn header_len(segment: &[u8]) -> Option<usize> {
    let len = data_offset(segment)?;
    (len >= MIN_LEN && len <= segment.len()).then_some(len)
}

/// Length of the header in bytes by its data offset, even if the segment is shorter.
#[inline]
pub fn data_offset(segment: &[u8]) -> Option<usize> {
    Some(usize::from(segment.get(field::DATA_OFFSET)? >> 4) * 4)
}

/// The flags byte.
#[inline]
pub fn flags(segment: &[u8]) -> Option<u8> {
    segment.get(field::FLAGS).copied()
}

/// The sequence number.
#[inline]
pub fn sequence(segment: &[u8]) -> Option<u32> {
    number(segment, field::SEQUENCE)
}

/// The acknowledgment number, whether or not the ACK flag is set.
#[inline]
pub fn acknowledgment(segment: &[u8]) -> Option<u32> {
    number(segment, field::ACKNOWLEDGMENT)
}

/// The window, as it is written: not scaled.
#[inline]
pub fn window(segment: &[u8]) -> Option<u16> {
    segment.get(field::WINDOW..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

/// Replaces the window. Adds the change to `delta` and leaves the checksum unpatched.
#[inline]
pub(super) fn set_window(segment: &mut [u8], window: u16, delta: Delta) -> Delta {
    replace(segment, field::WINDOW, &window.to_be_bytes(), delta)
}

/// Sequence and acknowledgment number, the latter whether or not the ACK flag is set.
#[inline]
pub fn numbers(segment: &[u8]) -> Option<(u32, u32)> {
    Some((sequence(segment)?, acknowledgment(segment)?))
}

/// The sequence number after a segment with `payload` bytes of data: SYN and FIN count as a byte
/// each (RFC 9293 3.4).
pub fn next_sequence(segment: &[u8], payload: u32) -> Option<u32> {
    let flags = flags(segment)?;
    let [syn, fin] = [SYN, FIN].map(|flag| u32::from(flags & flag != 0));
    Some(sequence(segment)?.wrapping_add(payload).wrapping_add(syn + fin))
}

/// The 32-bit number at `at`.
#[inline]
pub(super) fn number(segment: &[u8], at: usize) -> Option<u32> {
    segment.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// Replaces the sequence number. Adds the change to `delta` and leaves the checksum unpatched.
#[inline]
pub fn set_sequence(segment: &mut [u8], sequence: u32, delta: Delta) -> Delta {
    replace(segment, field::SEQUENCE, &sequence.to_be_bytes(), delta)
}

/// Replaces the acknowledgment number. Adds the change to `delta` and leaves the checksum
/// unpatched.
#[inline]
pub fn set_acknowledgment(segment: &mut [u8], acknowledgment: u32, delta: Delta) -> Delta {
    replace(segment, field::ACKNOWLEDGMENT, &acknowledgment.to_be_bytes(), delta)
}

/// Advances the urgent pointer by `by` bytes, if the segment has one (`URG`).
#[inline]
pub(super) fn move_urgent(segment: &mut [u8], by: u16, delta: Delta) -> Delta {
    const URG: u8 = 0x20;
    let urgent = segment.get(field::URGENT..).and_then(|rest| rest.first_chunk::<2>()).copied();
    match (flags(segment), urgent) {
        (Some(flags), Some(urgent)) if flags & URG != 0 => {
            let moved = u16::from_be_bytes(urgent).saturating_add(by);
            replace(segment, field::URGENT, &moved.to_be_bytes(), delta)
        }
        _ => delta,
    }
}

/// Patches the checksum; false if the header is truncated.
#[inline]
pub fn patch_checksum(segment: &mut [u8], delta: Delta) -> bool {
    let place = segment.get_mut(field::CHECKSUM..).and_then(|rest| rest.first_chunk_mut::<2>());
    match place {
        Some(sum) => {
            *sum = delta.apply(u16::from_be_bytes(*sum)).to_be_bytes();
            true
        }
        None => false,
    }
}

/// Lowers the maximum segment size that a SYN or SYN+ACK announces to `most` bytes; returns whether
/// it changed. A segment without the option is unchanged: its sender accepts at most 536 bytes
/// (IPv4) or 1220 (IPv6) (RFC 9293 3.7.1).
#[inline]
pub fn lower_mss(segment: &mut [u8], most: u16) -> bool {
    change_mss(segment, |mss| mss.min(most))
}

/// Lowers the announced maximum segment size by `bytes`, to make room for data inserted before the
/// payload.
#[inline]
pub fn lower_mss_by(segment: &mut [u8], bytes: u16) -> bool {
    change_mss(segment, |mss| mss.saturating_sub(bytes).max(1))
}

fn change_mss(segment: &mut [u8], change: impl Fn(u16) -> u16) -> bool {
    if flags(segment).is_none_or(|flags| flags & SYN == 0) {
        return false;
    }
    let (mut options, mut delta) = (Options::of(segment), Delta::default());
    while let Some(place) = options.next(segment) {
        if let (option::MSS, 4, Some(value)) = (place.kind, place.len, segment.get(place.at + 2..))
            && let Some(value) = value.first_chunk::<2>()
        {
            let mss = u16::from_be_bytes(*value);
            let changed = change(mss);
            if changed < mss {
                delta = replace(segment, place.at + 2, &changed.to_be_bytes(), delta);
            }
        }
    }
    delta != Delta::default() && patch_checksum(segment, delta)
}

/// Overwrites the fast open options with padding, so that a receiver does not accept data of the
/// SYN as part of the stream (RFC 7413 4.1.1, and the experimental form of its appendix A).
pub fn remove_fast_open(segment: &mut [u8], mut delta: Delta) -> Delta {
    let mut options = Options::of(segment);
    while let Some(place) = options.next(segment) {
        let magic = segment.get(place.at + 2..place.at + place.len).unwrap_or_default();
        let experimental = place.kind == option::EXPERIMENTAL && magic.starts_with(&[0xf9, 0x89]);
        if place.kind == option::FAST_OPEN || experimental {
            delta = pad(segment, place.at, place.len, delta);
        }
    }
    delta
}

/// Overwrites `len` bytes of options with padding, at most 40.
pub(super) fn pad(segment: &mut [u8], at: usize, len: usize, delta: Delta) -> Delta {
    const PADDING: [u8; 40] = [option::NOP; 40];
    replace(segment, at, PADDING.get(..len).unwrap_or(&PADDING), delta)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use etherparse::{TcpHeaderSlice, TcpOptionElement};
    use proptest::prelude::*;

    use super::super::testing::*;
    use super::*;

    fn syn(v4: bool, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let builder = from_client(v4).tcp(31_337, 80, 99, 1000).syn().options_raw(options);
        builder.unwrap().write(&mut bytes, payload).unwrap();
        assert_right(&bytes);
        bytes
    }

    fn mss(segment: &[u8]) -> Option<u16> {
        let slice = TcpHeaderSlice::from_slice(segment).unwrap();
        slice.options_iterator().find_map(|element| match element {
            Ok(TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
            _ => None,
        })
    }

    #[test]
    fn numbers_are_read_and_syn_fin_and_data_take_sequence_space() {
        let mut segment = [0; MIN_LEN];
        segment[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        segment[8..12].copy_from_slice(&7_u32.to_be_bytes());
        segment[12] = 6 << 4;
        assert_eq!(numbers(&segment), Some((u32::MAX, 7)));
        assert_eq!(numbers(&segment[..11]), None);
        assert_eq!((data_offset(&segment), header_len(&segment)), (Some(24), None));
        for (flags, payload, next) in [(0x10, 0, u32::MAX), (SYN, 0, 0), (FIN | 0x10, 3, 3)] {
            segment[13] = flags;
            assert_eq!(next_sequence(&segment, payload), Some(next), "{flags:#x} {payload}");
        }
    }

    #[test]
    fn mss_is_lowered_at_every_place_and_never_raised() {
        for (lead, announced) in
            (0..=8).flat_map(|lead| [1, 536, 1380, 1460, u16::MAX].map(|m| (lead, m)))
        {
            let [m0, m1] = announced.to_be_bytes();
            let options =
                [&vec![1; lead][..], &[2, 4, m0, m1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]].concat();
            let mut packet = syn(true, &options, b"");
            let lowered = lower_mss(&mut packet[20..], 1380);
            assert_eq!(lowered, announced > 1380);
            assert_eq!(mss(&packet[20..]), Some(announced.min(1380)));
            assert_right(&packet);
            lower_mss_by(&mut packet[20..], 28);
            assert_eq!(mss(&packet[20..]), Some(announced.min(1380).saturating_sub(28).max(1)));
            assert_right(&packet);
        }
    }

    #[test]
    fn without_the_option_or_syn_nothing_changes() {
        for options in [&[] as &[u8], &[1, 1, 1, 0, 2, 4, 5, 5], &[2, 3, 5, 1], &[3, 0, 2, 4], &[2]]
        {
            let mut packet = syn(false, options, b"data");
            let before = packet.clone();
            assert!(!lower_mss(&mut packet[40..], 500), "{options:?}");
            assert_eq!(packet, before);
        }
        let mut packet = syn(false, &[2, 4, 9, 9], b"");
        packet[40 + 13] = 0x10;
        assert!(!lower_mss(&mut packet[40..], 500), "no SYN");
    }

    #[test]
    fn fast_open_becomes_padding() {
        for options in [&[34, 6, 1, 2, 3, 4][..], &[1, 34, 2], &[254, 8, 0xf9, 0x89, 1, 2, 3, 4]] {
            let mut packet = syn(true, &[options, &[2, 4, 5, 0xb4]].concat(), b"GET");
            let delta = remove_fast_open(&mut packet[20..], Delta::default());
            assert!(patch_checksum(&mut packet[20..], delta));
            assert_right(&packet);
            assert_eq!(packet[40..40 + options.len()], vec![1; options.len()]);
            assert_eq!(mss(&packet[20..]), Some(1460));
        }
        let mut packet = syn(true, &[254, 8, 1, 2, 1, 2, 3, 4], b"GET");
        assert_eq!(remove_fast_open(&mut packet[20..], Delta::default()), Delta::default());
    }

    #[test]
    fn the_urgent_pointer_moves_if_there_is_one() {
        for (flag, expected) in [(0x20, 33), (0, 5)] {
            let mut packet = syn(true, &[], b"data");
            let before = Delta::default();
            let delta = replace(&mut packet[20..], 18, &[0, 5], before);
            let delta = replace(&mut packet[20..], 13, &[0x10 | flag], delta);
            let delta = move_urgent(&mut packet[20..], 28, delta);
            assert!(patch_checksum(&mut packet[20..], delta));
            assert_right(&packet);
            assert_eq!(packet[20 + 19], expected);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_to_an_end_inside(bytes: Vec<u8>) {
            let mut options = Options::of(&bytes);
            let mut end = MIN_LEN;
            while let Some(place) = options.next(&bytes) {
                prop_assert!(place.at >= end && place.len >= 2);
                end = place.at + place.len;
                prop_assert!(end <= header_len(&bytes).unwrap());
            }
            let mut changed = bytes.clone();
            lower_mss(&mut changed, 1);
            prop_assert_eq!(changed.len(), bytes.len());
        }

        #[test]
        fn agrees_with_etherparse_on_options(options in prop::collection::vec(any::<u8>(), 0..40)) {
            let packet = syn(true, &options, b"");
            let slice = TcpHeaderSlice::from_slice(&packet[20..]).unwrap();
            // Etherparse is stricter: it also stops at options of a wrong length or an unknown
            // kind.
            let theirs = slice.options_iterator().take_while(Result::is_ok);
            let theirs = theirs.filter(|e| *e != Ok(TcpOptionElement::Noop)).count();
            let mut walk = Options::of(&packet[20..]);
            let ours = std::iter::from_fn(|| walk.next(&packet[20..])).count();
            prop_assert!(ours >= theirs);
        }

        #[test]
        fn replaced_bytes_keep_the_checksum_right(
            payload in prop::collection::vec(any::<u8>(), 0..9),
            new in prop::collection::vec(any::<u8>(), 1..8),
            at in 20_usize..40,
        ) {
            let mut packet = syn(false, &[1; 40], &payload);
            let delta = replace(&mut packet[40..], at, &new, Delta::default());
            prop_assert!(patch_checksum(&mut packet[40..], delta));
            assert_right(&packet);
        }
    }
}
