//! Address ranges at which traffic may be aimed without `--i-own-this-network`.

use std::net::IpAddr;

use ipnet::IpNet;

/// Documentation (RFC 5737, RFC 3849), benchmarking (RFC 2544) and private ranges (RFC 1918,
/// RFC 4193 with L = 1).
const LAB: [&str; 9] = [
    "192.0.2.0/24",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "198.18.0.0/15",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "2001:db8::/32",
    "fd00::/8",
];

/// Returns whether every address of `net` is in a lab range.
pub fn is_lab(net: IpNet) -> bool {
    LAB.iter().filter_map(|range| range.parse::<IpNet>().ok()).any(|range| range.contains(&net))
}

/// Returns whether `address` is in a lab range.
pub fn is_lab_address(address: IpAddr) -> bool {
    is_lab(address.into())
}

/// Lists the ranges for messages.
pub fn lab_ranges() -> String {
    LAB.join(", ")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn lab_ranges_end_where_they_say() {
        for (address, lab) in [
            ("192.0.2.255", true),
            ("192.0.3.0", false),
            ("198.17.255.255", false),
            ("198.18.0.0", true),
            ("198.19.255.255", true),
            ("198.20.0.0", false),
            ("172.31.255.255", true),
            ("172.32.0.0", false),
            ("8.8.8.8", false),
            ("2001:db8:ffff::1", true),
            ("2001:db9::1", false),
            ("fd12::1", true),
            ("fc00::1", false),
            ("::ffff:8.8.8.8", false),
        ] {
            assert_eq!(is_lab_address(address.parse().unwrap()), lab, "{address}");
        }
    }

    #[test]
    fn a_prefix_must_be_inside_as_a_whole() {
        assert!(is_lab("198.18.0.0/16".parse().unwrap()));
        assert!(!is_lab("198.18.0.0/14".parse().unwrap()));
        assert!(LAB.iter().all(|range| range.parse::<IpNet>().is_ok()));
    }
}
