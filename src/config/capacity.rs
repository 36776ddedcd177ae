//! Rate of new flows per second that the flow tables sustain.
//!
//! The occupied entries are the new flows per second times the seconds that each holds its entry
//! (Little's law). The shortest hold time follows from the VIP's time-outs: `embryonic_s` for a SYN
//! without follow-up, `closing_s` after its end for a short connection, `udp_first_s` for a
//! datagram. A longer flow holds its entry longer; the table size bounds the number of such flows.

use std::time::Duration;

use super::checked::Vip;
use crate::net::{Family, Protocol};

/// Capacity of the flow tables of all workers together, for one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Address family of the VIPs.
    pub family: Family,
    /// Number of flows that fit.
    pub flows: u64,
    /// Sustained new TCP flows per second, if all flows were TCP and as short as possible, at the
    /// VIP with the longest hold time. `None`: no TCP VIP.
    pub tcp_per_second: Option<u64>,
    /// Sustained flows per second as in `tcp_per_second`, for the UDP and any-protocol VIPs.
    pub udp_per_second: Option<u64>,
}

impl Capacity {
    /// Returns the capacity of each family that has a VIP with pins, with room for `flows` flows.
    pub fn of<'v>(vips: impl Iterator<Item = &'v Vip> + Clone, flows: u64) -> Vec<Self> {
        let longest = |family, tcp| {
            let of_kind = vips.clone().filter(move |vip| {
                vip.policy.pin
                    && vip.address.family() == family
                    && (vip.protocol == Protocol::Tcp) == tcp
            });
            of_kind.map(shortest_flow).max()
        };
        let families =
            Family::BOTH.map(|family| (family, longest(family, true), longest(family, false)));
        let per_second = |hold: Duration| flows / hold.as_secs().max(1);
        let wanted = families.into_iter().filter(|(_, tcp, udp)| tcp.is_some() || udp.is_some());
        wanted
            .map(|(family, tcp, udp)| Self {
                family,
                flows,
                tcp_per_second: tcp.map(per_second),
                udp_per_second: udp.map(per_second),
            })
            .collect()
    }
}

/// Returns the time that the shortest flows of a VIP hold their entries.
pub fn shortest_flow(vip: &Vip) -> Duration {
    let timeouts = &vip.policy.timeouts;
    match vip.protocol {
        Protocol::Tcp => timeouts.embryonic.duration().max(timeouts.closing.duration()),
        Protocol::Udp | Protocol::Any => timeouts.udp_first.duration(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn the_vip_that_keeps_flows_longest_counts_for_its_family_and_kind() {
        let mut text =
            "workers = { cores = [2, 3] }\nnic = [{ interface = \"eth1\" }]\n".to_owned();
        for (name, address, protocol, timeouts) in [
            ("a", "192.0.2.1", "tcp", "closing_s = 20, embryonic_s = 10"),
            ("b", "192.0.2.2", "tcp", "closing_s = 20, embryonic_s = 50"),
            ("c", "192.0.2.3", "udp", "udp_first_s = 10"),
            ("d", "2001:db8::1", "udp", "udp_s = 7"),
            ("without-pins", "192.0.2.4", "udp", "udp_first_s = 100"),
        ] {
            let backend = if address.contains(':') { "2001:db8:1::1" } else { "10.0.0.1" };
            text += &format!(
                "[[vip]]\nname = \"{name}\"\naddress = \"{address}\"\nports = [80]\n\
                 protocol = \"{protocol}\"\nforward = \"dsr\"\ntimeouts = {{ {timeouts} }}\npin = {}\n\
                 backend = [{{ name = \"x\", address = \"{backend}\" }}]\n",
                name != "without-pins"
            );
        }
        let config = parse(&text, "f.toml").unwrap();
        let v4 = Capacity {
            family: Family::V4,
            flows: 7000,
            tcp_per_second: Some(140),
            udp_per_second: Some(700),
        };
        let v6 = Capacity {
            family: Family::V6,
            flows: 7000,
            tcp_per_second: None,
            udp_per_second: Some(1000),
        };
        assert_eq!(Capacity::of(config.vips.iter(), 7000), [v4, v6]);
        let unpinned = config.vips.iter().filter(|vip| !vip.policy.pin);
        assert_eq!(Capacity::of(unpinned, 7000), [], "its datagrams take nothing");
    }
}
