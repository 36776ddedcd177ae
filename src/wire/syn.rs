//! Options of a SYN or SYN+ACK, and of the segments around it (RFC 9293 3.2, RFC 7323, RFC 2018).
//!
//! Any bytes are safe to read: an option of a wrong length counts as absent.

use arrayvec::ArrayVec;

use super::checksum::{self, Delta, replace};
use super::headers::{Headers, addresses, protocol};
use super::tcp::{self, MIN_LEN, Options, option};

/// Largest shift of a window (RFC 7323 2.3).
pub const MAX_SCALE: u8 = 14;
/// Longest list of options that is written, in bytes.
const LONGEST: usize = 20;

/// Options of a SYN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SynOptions {
    /// Maximum segment size in bytes, if announced.
    pub mss: Option<u16>,
    /// Window scale (0 to [`MAX_SCALE`]), if offered.
    pub scale: Option<u8>,
    /// Whether selective acknowledgments are permitted.
    pub sack: bool,
    /// Timestamps, if offered: value and echo.
    pub timestamps: Option<Timestamps>,
}

/// A timestamp option: value, and the echo of the other end's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timestamps {
    /// The sender's value.
    pub value: u32,
    /// The newest value of the other end; 0 in a SYN.
    pub echo: u32,
}

impl SynOptions {
    /// Reads the options of a segment.
    pub fn of(segment: &[u8]) -> Self {
        let mut found = Self { mss: None, scale: None, sack: false, timestamps: None };
        let mut options = Options::of(segment);
        while let Some(place) = options.next(segment) {
            let value = segment.get(place.at + 2..place.at + place.len).unwrap_or_default();
            match (place.kind, value) {
                (option::MSS, &[high, low]) => found.mss = Some(u16::from_be_bytes([high, low])),
                (option::SCALE, &[scale]) => found.scale = Some(scale.min(MAX_SCALE)),
                (option::SACK_PERMITTED, []) => found.sack = true,
                (option::TIMESTAMPS, _) => found.timestamps = Timestamps::of(value),
                _ => {}
            }
        }
        found
    }

    /// Writes the options, padded to a whole number of 32-bit words: at most 20 bytes.
    pub fn to_bytes(&self) -> ArrayVec<u8, LONGEST> {
        let mut bytes = ArrayVec::new();
        let mut put = |part: &[u8]| {
            // There is room for all of them.
            let _ = bytes.try_extend_from_slice(part);
        };
        if let Some(mss) = self.mss {
            let [high, low] = mss.to_be_bytes();
            put(&[option::MSS, 4, high, low]);
        }
        match (self.sack, &self.timestamps) {
            (true, Some(_)) => put(&[option::SACK_PERMITTED, 2]),
            (true, None) => put(&[option::NOP, option::NOP, option::SACK_PERMITTED, 2]),
            (false, Some(_)) => put(&[option::NOP, option::NOP]),
            (false, None) => {}
        }
        if let Some(timestamps) = &self.timestamps {
            put(&timestamps.to_bytes());
        }
        if let Some(scale) = self.scale {
            put(&[option::NOP, option::SCALE, 3, scale]);
        }
        bytes
    }
}

impl Timestamps {
    /// Length of the option in bytes.
    pub const LEN: usize = 10;

    /// Reads the option's value.
    fn of(value: &[u8]) -> Option<Self> {
        let (value, echo) = value.split_first_chunk::<4>()?;
        let echo = <[u8; 4]>::try_from(echo).ok()?;
        Some(Self { value: u32::from_be_bytes(*value), echo: u32::from_be_bytes(echo) })
    }

    /// Reads the option of a segment.
    #[inline]
    pub fn find(segment: &[u8]) -> Option<Self> {
        let at = Self::place(segment)?;
        Self::of(segment.get(at + 2..at + Self::LEN)?)
    }

    /// Returns the offset of the option in a segment.
    #[inline]
    pub(super) fn place(segment: &[u8]) -> Option<usize> {
        let mut options = Options::of(segment);
        while let Some(place) = options.next(segment) {
            if place.kind == option::TIMESTAMPS && place.len == Self::LEN {
                return Some(place.at);
            }
        }
        None
    }

    /// The option's bytes.
    pub const fn to_bytes(&self) -> [u8; Self::LEN] {
        let ([a, b, c, d], [e, f, g, h]) = (self.value.to_be_bytes(), self.echo.to_be_bytes());
        [option::TIMESTAMPS, 10, a, b, c, d, e, f, g, h]
    }
}

/// Turns a SYN+ACK into the ACK that follows it: SYN is cleared, options that only a SYN has become
/// padding, and the sequence number is the next one. The checksum is patched.
///
/// `None` if the header is truncated.
#[must_use]
pub fn to_ack(segment: &mut [u8]) -> Option<()> {
    const SYN: u8 = 0x02;
    let (sequence, flags) = (tcp::sequence(segment)?, tcp::flags(segment)?);
    tcp::header_len(segment)?;
    let mut delta = tcp::set_sequence(segment, sequence.wrapping_add(1), Delta::default());
    delta = replace(segment, tcp::FLAGS, &[flags & !SYN], delta);
    let mut options = Options::of(segment);
    while let Some(place) = options.next(segment) {
        if matches!(place.kind, option::MSS | option::SCALE | option::SACK_PERMITTED) {
            delta = tcp::pad(segment, place.at, place.len, delta);
        }
    }
    tcp::patch_checksum(segment, delta).then_some(())
}

/// Whether the checksum of the whole TCP packet `packet` (from its IP header on, perhaps with bytes
/// behind it) is right. False also for a fragment, or another protocol.
///
/// Cost: reads all of the packet.
pub fn is_sum_right(packet: &[u8]) -> bool {
    let Ok(headers) = Headers::of(packet) else { return false };
    let segment = packet.get(headers.transport..headers.end);
    let (Some(segment), Some(addresses)) = (segment, addresses(packet)) else { return false };
    if headers.protocol != protocol::TCP || !headers.is_whole() || segment.len() < MIN_LEN {
        return false;
    }
    let Ok(len) = u32::try_from(segment.len()) else { return false };
    let sum = checksum::pseudo_header(addresses, len, protocol::TCP).add_slice(segment);
    checksum::of(&sum) == 0
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use etherparse::{TcpHeaderSlice, TcpOptionElement};
    use proptest::prelude::*;

    use super::super::testing::*;
    use super::*;

    fn segment(options: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let builder = from_client(true).tcp(31_337, 80, u32::MAX, 1000).syn().ack(7);
        builder.options_raw(options).unwrap().write(&mut bytes, &[]).unwrap();
        bytes.split_off(20)
    }

    fn options() -> impl Strategy<Value = SynOptions> {
        let timestamps =
            (any::<u32>(), any::<u32>()).prop_map(|(value, echo)| Timestamps { value, echo });
        let parts = (
            prop::option::of(any::<u16>()),
            prop::option::of(0..=MAX_SCALE),
            any::<bool>(),
            prop::option::of(timestamps),
        );
        parts.prop_map(|(mss, scale, sack, timestamps)| SynOptions { mss, scale, sack, timestamps })
    }

    proptest! {
        #[test]
        fn options_are_read_as_they_are_written_and_as_etherparse_reads_them(it in options()) {
            let segment = segment(&it.to_bytes());
            prop_assert_eq!(SynOptions::of(&segment), it);
            let slice = TcpHeaderSlice::from_slice(&segment).unwrap();
            let theirs: Vec<_> = slice.options_iterator().map(Result::unwrap).collect();
            let has = |element: &TcpOptionElement| theirs.contains(element);
            prop_assert_eq!(has(&TcpOptionElement::SelectiveAcknowledgementPermitted), it.sack);
            for (there, element) in [
                (it.mss.is_some(), it.mss.map(TcpOptionElement::MaximumSegmentSize)),
                (it.scale.is_some(), it.scale.map(TcpOptionElement::WindowScale)),
                (
                    it.timestamps.is_some(),
                    it.timestamps.map(|it| TcpOptionElement::Timestamp(it.value, it.echo)),
                ),
            ] {
                prop_assert_eq!(element.is_some_and(|element| has(&element)), there);
            }
            prop_assert_eq!(Timestamps::find(&segment), it.timestamps);
        }

        #[test]
        fn any_bytes_are_read_and_changed_within_their_length(bytes: Vec<u8>) {
            let _ = SynOptions::of(&bytes);
            let _ = is_sum_right(&bytes);
            let mut changed = bytes.clone();
            let _ = to_ack(&mut changed);
            prop_assert_eq!(changed.len(), bytes.len());
        }

        #[test]
        fn an_acknowledged_syn_becomes_an_ack(it in options()) {
            let mut bytes = Vec::new();
            let builder = from_client(true).tcp(31_337, 80, u32::MAX, 1000).syn().ack(7);
            builder.options_raw(&it.to_bytes()).unwrap().write(&mut bytes, &[]).unwrap();
            prop_assert!(is_sum_right(&bytes));
            to_ack(&mut bytes[20..]).unwrap();
            assert_right(&bytes);
            prop_assert!(is_sum_right(&bytes));
            let left = SynOptions::of(&bytes[20..]);
            let kept = SynOptions { mss: None, scale: None, sack: false, ..it };
            prop_assert_eq!(left, kept);
            prop_assert_eq!(tcp::numbers(&bytes[20..]), Some((0, 7)));
            prop_assert_eq!(tcp::flags(&bytes[20..]), Some(0x10));
            bytes[25] ^= 1;
            prop_assert!(!is_sum_right(&bytes));
        }
    }

    #[test]
    fn options_of_a_wrong_length_are_absent() {
        let none = SynOptions { mss: None, scale: None, sack: false, timestamps: None };
        for options in
            [&[2, 3, 5, 1][..], &[3, 2, 1, 1], &[4, 3, 0, 1], &[8, 9, 1, 2, 3, 4, 5, 6, 7]]
        {
            assert_eq!(SynOptions::of(&segment(options)), none, "{options:?}");
        }
        assert_eq!(SynOptions::of(&segment(&[3, 3, 200, 1])).scale, Some(MAX_SCALE));
    }
}
