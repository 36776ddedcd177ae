//! Checks that the XDP program has room for all ports of VIPs and of NAT backends.

use std::collections::{BTreeMap, BTreeSet};

use super::key_path::KeyPath;
use super::report::Report;
use super::sections::Sections;
use crate::net::{Forward, MAX_STEERED, Network, PortRange, Protocol};

/// Port ranges of one group.
type Ranges = BTreeSet<(Protocol, PortRange)>;

/// Reports the maps that would overflow. Cost: linear in ports, times the number of prefix lengths.
pub(super) fn rules(sections: &Sections<'_>, report: &mut Report<'_>) {
    let ports = "single ports of single addresses, over all VIPs";
    let ranges = "parts (powers of two) of ranges of ports, over all VIPs";
    let returns = "addresses and ports of NAT backends";
    for (count, noun, fix) in [
        (single_ports(sections), ports, "ranges, or ports = \"all\", take less room"),
        (range_parts(sections), ranges, "the same ranges in several VIPs count once"),
        (nat_backends(sections), returns, "backends without a port of their own take less room"),
    ] {
        if count > MAX_STEERED {
            let fix = format!("at most {MAX_STEERED} are possible; {fix}");
            report.error(&KeyPath::root().key("vip"), format!("{count} {noun}"), &fix);
        }
    }
}

fn single_ports(sections: &Sections<'_>) -> usize {
    let vips = sections.config.vips.iter().filter(|vip| vip.address.is_single());
    let ports = vips.flat_map(|vip| vip.ports.ranges());
    ports.filter(|ports| ports.is_single() || **ports == PortRange::ALL).count()
}

/// Counts the parts of port ranges. The program finds the longest prefix only, so each prefix
/// includes the ranges of the prefixes around it.
fn range_parts(sections: &Sections<'_>) -> usize {
    let mut networks: BTreeMap<Network, Ranges> = BTreeMap::new();
    for vip in sections.config.vips.iter().filter(|vip| vip.protocol != Protocol::Any) {
        let single = vip.address.is_single();
        let ranges = vip.ports.ranges().iter();
        let ranges = ranges.filter(|r| **r != PortRange::ALL && !(single && r.is_single()));
        networks.entry(vip.address).or_default().extend(ranges.map(|&r| (vip.protocol, r)));
    }
    let lens: BTreeSet<u8> = networks.keys().map(|network| network.len()).collect();
    let groups: BTreeSet<Ranges> = networks
        .keys()
        .map(|network| {
            let around = lens.iter().take_while(|&&len| len <= network.len());
            let around =
                around.filter_map(|&len| networks.get(&Network::of(network.address(), len)));
            around.flatten().copied().collect()
        })
        .collect();
    groups.iter().flatten().map(|(_, range)| range.prefixes().count()).sum()
}

fn nat_backends(sections: &Sections<'_>) -> usize {
    let nat = sections.config.vips.iter().filter(|vip| vip.forward == Forward::Nat);
    let key_paths = nat.flat_map(|vip| {
        vip.backends.iter().flat_map(move |backend| {
            let own = backend.port.map(PortRange::single);
            let vips = vip.ports.ranges().iter().copied().filter(move |_| own.is_none());
            let ports = own.into_iter().chain(vips);
            ports.map(move |ports| (backend.address, vip.protocol, ports))
        })
    });
    key_paths.filter(|(.., r)| r.is_single() || *r == PortRange::ALL).collect::<BTreeSet<_>>().len()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::fmt::Write;

    use crate::config::parse;

    /// Returns the messages of `check` about `vips` VIPs; `keys` yields the keys of each, by its
    /// number.
    fn reported(vips: u32, keys: impl Fn(u32) -> String) -> Vec<String> {
        let mut text = "[workers]\ncores = [0]\n[[nic]]\ninterface = \"eth0\"\n".to_owned();
        for number in 0..vips {
            let [.., high, low] = number.to_be_bytes();
            writeln!(text, "[[vip]]\nname = \"v{number}\"\naddress = \"172.20.{high}.{low}\"")
                .unwrap();
            writeln!(text, "{}\n[[vip.backend]]\nname = \"b\"", keys(number)).unwrap();
            writeln!(text, "address = \"10.1.{high}.{low}\"").unwrap();
        }
        let errors = parse(&text, "f.toml").err().map(|errors| errors.0).unwrap_or_default();
        errors.iter().map(ToString::to_string).collect()
    }

    fn ports(last: u32) -> String {
        let ports: Vec<String> = (1..=last).map(|port| port.to_string()).collect();
        format!("ports = [{}]", ports.join(","))
    }

    #[test]
    fn more_than_the_program_has_room_for_is_refused() {
        let dsr = |last| move |_| format!("forward = \"dsr\"\n{}", ports(last));
        assert_eq!(reported(64, dsr(1024)), [""; 0], "65,536 fit");
        let errors = reported(65, dsr(1024)).join("\n");
        assert!(errors.contains("66560 single ports of single addresses"), "{errors}");
        assert!(errors.contains("at most 65536 are possible"), "{errors}");

        let range = |number: u32| {
            format!("forward = \"dsr\"\nports = \"{}-{}\"", 1001 + number, 64_001 - number)
        };
        assert_eq!(reported(1000, range), [""; 0]);
        let errors = reported(4000, range).join("\n");
        assert!(errors.contains("of ranges of ports, over all VIPs"), "{errors}");
        let same = |_| "forward = \"dsr\"\nports = \"1001-64001\"".to_owned();
        assert_eq!(reported(4000, same), [""; 0], "counted once");
    }

    #[test]
    fn backends_of_nat_vips_count_by_their_ports() {
        let nat = |last| move |_| format!("forward = \"nat\"\n{}", ports(last));
        let errors = reported(65, nat(1024)).join("\n");
        assert!(errors.contains("66560 addresses and ports of NAT backends"), "{errors}");
    }
}
