//! The path to a tunnel backend.

use siphasher::sip::SipHasher13;

use super::Address;

/// Identifies the path to a tunnel backend in the table of path MTUs: a hash of the backend's
/// address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathKey(pub u32);

impl PathKey {
    /// Returns the key of the path to the backend at `address`.
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
    fn a_path_has_a_name_that_is_its_own() {
        let keys = ["10.0.0.1", "10.0.0.2", "fd00::1"].map(|text| {
            let address: IpAddr = text.parse().unwrap();
            PathKey::new(address.into()).0
        });
        let [a, b, c] = keys;
        assert!(a != b && b != c && a != c);
    }
}
