//! The key of a fleet.

use std::fmt;

/// Key that the boxes of a fleet and the programs of their backends share.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FleetKey(pub [u8; 16]);

/// Not the key: it must not come into a log.
impl fmt::Debug for FleetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FleetKey")
    }
}

impl std::str::FromStr for FleetKey {
    type Err = &'static str;

    /// Reads 32 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_right = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).ok().filter(|_| is_right);
        let number = number.ok_or("a key is 32 hexadecimal digits: `openssl rand -hex 16`")?;
        Ok(Self(number.to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_32_hexadecimal_digits() {
        let key = "00112233445566778899aabbccddeeFF".parse();
        assert!(key.is_ok_and(|FleetKey(bytes)| bytes[1] == 0x11 && bytes[15] == 0xff));
        for bad in ["", "+0112233445566778899aabbccddeeff", "00112233445566778899aabbccddee", "zz"]
        {
            assert!(bad.parse::<FleetKey>().is_err(), "{bad}");
        }
    }
}
