//! One's complement sums (RFC 1071) that are added up before a header is written.

/// A sum that has not been folded yet: room for 2^32 terms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// The sum of `bytes`, which begin at an even offset.
    pub fn of(bytes: &[u8]) -> Self {
        let words = bytes.chunks(2).map(|chunk| match chunk {
            [high, low] => u64::from(u16::from_be_bytes([*high, *low])),
            [high] => u64::from(*high) << 8,
            _ => 0,
        });
        Self(words.sum())
    }

    /// Adds a 16-bit word.
    #[inline]
    #[must_use]
    pub const fn word(self, word: u16) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds two 16-bit words. One's complement sums may be taken over wider words (RFC 1071, 2.C).
    #[inline]
    #[must_use]
    pub const fn double(self, words: u32) -> Self {
        Self(self.0 + words as u64)
    }

    /// Adds four 16-bit words.
    #[inline]
    #[must_use]
    pub const fn quad(self, words: u64) -> Self {
        Self(self.0 + (words >> 32) + (words & 0xffff_ffff))
    }

    /// Adds another sum.
    #[inline]
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The sum in 16 bits.
    #[inline]
    pub const fn folded(self) -> u16 {
        let mut sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        let [.., high, low] = sum.to_be_bytes();
        u16::from_be_bytes([high, low])
    }

    /// The checksum of what was added up.
    #[inline]
    pub const fn checksum(self) -> u16 {
        !self.folded()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_wide_words_fold_to_the_same() {
        let bytes: Vec<u8> = (0..=255).rev().collect();
        let words = Sum::of(&bytes);
        let mut wide = Sum::default();
        for chunk in bytes.chunks(16) {
            let (a, rest) = chunk.split_at(8);
            let (b, c) = rest.split_at(4);
            let number = |part: &[u8]| part.iter().fold(0, |n, &byte| n << 8 | u64::from(byte));
            wide = wide.quad(number(a)).double(u32::try_from(number(b)).unwrap_or_default());
            wide = wide.plus(Sum::of(c));
        }
        assert_eq!(wide.folded(), words.folded());
        assert_eq!(Sum::of(&[0x12]).folded(), 0x1200, "an odd byte is the high one");
        assert_eq!(Sum::default().word(0xffff).word(2).folded(), 2, "end-around carry");
    }
}
