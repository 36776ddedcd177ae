//! Key of the path to a tunnel endpoint.

use siphasher::sip::SipHasher13;

use super::Address;

/// Key of the path to a tunnel endpoint, under which its learnt MTU is stored: a hash of the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathKey(pub u32);

impl PathKey {
    /// The key of the path to `address`.
    #[expect(clippy::cast_possible_truncation, reason = "half of the hash is enough")]
    pub fn new(address: Address) -> Self {
        Self(SipHasher13::new().hash(&address.octets()) as u32)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn paths_have_keys_of_their_own() {
        let key = |text: &str| PathKey::new(Address::from(text.parse::<IpAddr>().unwrap())).0;
        let (a, b, c) = (key("10.0.0.1"), key("10.0.0.2"), key("fd00::1"));
        assert!(a != b && b != c && a != c);
    }
}
