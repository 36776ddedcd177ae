//! Internet checksums (RFC 1071): incremental (RFC 1624 equation 3: `HC' = ~(~HC + ~m + m')`) and
//! over whole contents.

pub use etherparse::checksum::Sum16BitWords as Full;

/// Change of a one's complement sum by a set of replaced words.
///
/// Words may be added in any order, and one delta may serve several checksums that cover the same
/// words (the IPv4 header's and, through the pseudo header, TCP's). A delta without removals is
/// itself a sum: [`checksum`](Self::checksum).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Delta(u64);

impl Delta {
    /// Adds the replacement of one 16-bit word.
    #[inline]
    #[must_use]
    pub const fn replace_u16(self, old: u16, new: u16) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// Adds the replacement of a 4-byte address.
    #[inline]
    #[must_use]
    pub const fn replace_v4(self, old: [u8; 4], new: [u8; 4]) -> Self {
        // One's complement sums may be taken over 32-bit words and folded later (RFC 1071, 2.C).
        Self(self.0 + (!u32::from_be_bytes(old)) as u64 + u32::from_be_bytes(new) as u64)
    }

    /// Adds the replacement of a 16-byte address.
    #[inline]
    #[must_use]
    pub fn replace_v6(self, old: [u8; 16], new: [u8; 16]) -> Self {
        let words = |bytes: [u8; 16]| {
            let bits = u128::from_be_bytes(bytes);
            [96, 64, 32, 0].map(|shift| (bits >> shift & 0xffff_ffff) as u64)
        };
        let zip = words(old).into_iter().zip(words(new));
        Self(zip.fold(self.0, |sum, (old, new)| sum + (!old & 0xffff_ffff) + new))
    }

    /// Adds a new 16-bit word.
    #[inline]
    #[must_use]
    pub const fn add_u16(self, word: u16) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds two new words.
    #[inline]
    #[must_use]
    pub const fn add_u32(self, words: u32) -> Self {
        Self(self.0 + words as u64)
    }

    /// Adds four new words.
    #[inline]
    #[must_use]
    pub const fn add_u64(self, words: u64) -> Self {
        Self(self.0 + (words >> 32) + (words & 0xffff_ffff))
    }

    /// Combines both changes.
    #[inline]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Adds new bytes at an even offset, at most 64 KiB.
    #[inline]
    #[must_use]
    pub fn add_bytes(self, bytes: &[u8]) -> Self {
        words(bytes).fold(self, |delta, word| delta.replace_u16(0, word))
    }

    /// Removes bytes at an even offset, at most 64 KiB.
    #[inline]
    #[must_use]
    pub fn remove_bytes(self, bytes: &[u8]) -> Self {
        words(bytes).fold(self, |delta, word| delta.replace_u16(word, 0))
    }

    /// Sum of the added words, in 16 bits.
    #[inline]
    pub const fn folded(self) -> u16 {
        !self.checksum()
    }

    /// Checksum over the added words alone.
    #[inline]
    pub const fn checksum(self) -> u16 {
        self.apply(u16::MAX)
    }

    /// Updates `checksum` by this change.
    #[inline]
    pub const fn apply(self, checksum: u16) -> u16 {
        let mut sum = (!checksum) as u64 + self.0;
        // Up to 16 terms of 32 bits, or 64 Ki of 16 bits: 36 bits fold to 16 in three steps.
        sum = (sum & 0xffff_ffff) + (sum >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        let [.., high, low] = sum.to_be_bytes();
        !u16::from_be_bytes([high, low])
    }
}

/// Replaces the bytes at `at` and adds the change to `delta`. The checksum covers `bytes` from an
/// even offset on; `at` may be even or odd. Replaces nothing if the range is not entirely present.
#[inline]
pub fn replace(bytes: &mut [u8], at: usize, new: &[u8], mut delta: Delta) -> Delta {
    let place = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..new.len()));
    for (index, (byte, &new)) in place.unwrap_or_default().iter_mut().zip(new).enumerate() {
        let word = |byte: u8| if (at + index).is_multiple_of(2) { [byte, 0] } else { [0, byte] };
        delta = delta.replace_u16(u16::from_be_bytes(word(*byte)), u16::from_be_bytes(word(new)));
        *byte = new;
    }
    delta
}

/// Patches the checksum at `at`, if present, by `delta`; returns `all` with that change.
#[inline]
pub fn patch(bytes: &mut [u8], at: usize, delta: Delta, all: Delta) -> Delta {
    match bytes.get(at..).and_then(|rest| rest.first_chunk::<2>()) {
        Some(&old) => {
            let new = delta.apply(u16::from_be_bytes(old));
            replace(bytes, at, &new.to_be_bytes(), all)
        }
        None => all,
    }
}

/// The words of `bytes`; an odd last byte is padded with 0.
fn words(bytes: &[u8]) -> impl Iterator<Item = u16> {
    let (whole, rest) = bytes.as_chunks::<2>();
    let last = rest.iter().map(|&byte| u16::from(byte) << 8);
    whole.iter().map(|word| u16::from_be_bytes(*word)).chain(last)
}

/// Starts a sum with a pseudo header. `addresses` are both addresses of the IP header: 8 bytes (RFC
/// 9293 3.1) or 32 (RFC 8200 8.1); the same word sum serves both.
#[inline]
pub fn pseudo_header(addresses: &[u8], len: u32, protocol: u8) -> Full {
    let mut sum = Full::new().add_slice(addresses).add_2bytes([0, protocol]);
    sum.add_4bytes(len.to_be_bytes())
}

/// Checksum over all data added to `sum`, where the checksum field counts as 0.
#[inline]
pub fn of(sum: &Full) -> u16 {
    u16::from_be(sum.ones_complement())
}

/// Checksum over `sum` and contents in several parts of any lengths.
pub fn of_parts<'p>(sum: &Full, parts: impl Iterator<Item = &'p [u8]>) -> u16 {
    let (mut total, mut odd) = (u64::from(!of(sum)), false);
    for part in parts {
        let words = !of(&Full::new().add_slice(part));
        // At an odd offset the bytes of all words are swapped (RFC 1071 2 (B)).
        total += u64::from(if odd { words.swap_bytes() } else { words });
        odd ^= part.len() % 2 == 1;
    }
    Delta(total).checksum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_in_parts_have_the_sum_of_the_whole() {
        let bytes: Vec<u8> = (0..=255).cycle().skip(7).take(101).collect();
        let pseudo = Full::new().add_2bytes([0xab, 0xcd]);
        let whole = of(&pseudo.clone().add_slice(&bytes));
        for first in 0..=bytes.len() {
            for second in [0, 1, 2, 7] {
                let (a, rest) = bytes.split_at(first);
                let (b, c) = rest.split_at(second.min(rest.len()));
                assert_eq!(of_parts(&pseudo, [a, b, c].into_iter()), whole, "{first} {second}");
            }
        }
        assert_eq!(of_parts(&Full::new(), std::iter::empty()), 0xffff);
    }

    fn full(words: &[u16]) -> u16 {
        let mut sum: u32 = words.iter().map(|&word| u32::from(word)).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(!sum & 0xffff).unwrap_or_default()
    }

    /// Every 16-bit word of a set with the edge cases, replaced by every other.
    #[test]
    fn incremental_equals_full() {
        let edges = [0, 1, 0x00ff, 0x7fff, 0x8000, 0xfffe, 0xffff];
        for old in 0..=u16::MAX {
            for new in edges {
                let before = full(&[0x1234, old, 0x4500]);
                let after = full(&[0x1234, new, 0x4500]);
                assert_eq!(Delta::default().replace_u16(old, new).apply(before), after);
            }
        }
    }

    #[test]
    fn sums_over_wide_words_fold_to_the_same() {
        let bytes: Vec<u8> = (0..=255).rev().collect();
        let words = Delta::default().add_bytes(&bytes);
        let mut wide = Delta::default();
        for chunk in bytes.chunks(16) {
            let (a, rest) = chunk.split_at(8);
            let (b, c) = rest.split_at(4);
            let number = |part: &[u8]| part.iter().fold(0, |n, &byte| n << 8 | u64::from(byte));
            wide = wide.add_u64(number(a)).add_u32(u32::try_from(number(b)).unwrap_or_default());
            wide = wide.and(Delta::default().add_bytes(c));
        }
        assert_eq!(wide.folded(), words.folded());
        assert_eq!(wide.checksum(), of(&Full::new().add_slice(&bytes)));
        assert_eq!(
            Delta::default().add_bytes(&[0x12]).folded(),
            0x1200,
            "an odd byte is the high one"
        );
        assert_eq!(Delta::default().add_u16(0xffff).add_u16(2).folded(), 2, "end-around carry");
    }

    #[test]
    fn addresses_of_both_families() {
        let v4 = |bytes: [u8; 4]| {
            let [a, b, c, d] = bytes;
            full(&[0xbeef, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])])
        };
        let v6 = |bytes: [u8; 16]| {
            let words: Vec<u16> =
                bytes.chunks(2).map(|c| c.iter().fold(0, |w, &b| w << 8 | u16::from(b))).collect();
            full(&[&[0xbeef], words.as_slice()].concat())
        };
        for (old, new) in [([192, 0, 2, 1], [10, 0, 0, 1]), ([255; 4], [0; 4]), ([0; 4], [255; 4])]
        {
            assert_eq!(Delta::default().replace_v4(old, new).apply(v4(old)), v4(new));
        }
        let counting: [u8; 16] = std::array::from_fn(|i| u8::try_from(i).unwrap_or(0) * 17);
        for (old, new) in [(counting, [0xff; 16]), ([0xff; 16], counting), ([1; 16], [0xfe; 16])] {
            assert_eq!(Delta::default().replace_v6(old, new).apply(v6(old)), v6(new));
        }
    }
}
