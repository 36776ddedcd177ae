//! Full-NAT sources that are addresses in use by this box: the XDP program identifies a source by
//! its address and port alone, and so redirects the replies to the kernel's own connections, which
//! are then dropped because they belong to no flow.
//!
//! The kernel takes the ports of its connections from `ip_local_port_range`, except those in
//! `ip_local_reserved_ports` (Documentation/networking/ip-sysctl.rst). It never chooses addresses
//! that holdfast puts on an interface ([`netlink`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use super::netlink::{self, InterfaceAddress, Link};
use crate::config::FullNat;
use crate::config::machine::{Finding, Level};

/// Inclusive range of ports.
type Range = RangeInclusive<u16>;

/// Ports in use by this box itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnPorts {
    /// Range of the ports of connections (`ip_local_port_range`); `None` if the kernel reports
    /// none.
    pub ephemeral: Option<Range>,
    /// Ports excluded from that range (`ip_local_reserved_ports`).
    pub reserved: Vec<Range>,
    /// Local addresses and ports of listening sockets: TCP, and UDP without a peer.
    pub listeners: Vec<(IpAddr, u16)>,
}

impl OwnPorts {
    /// Reads the ports of this network namespace.
    pub fn read() -> Self {
        let setting = |name: &str| {
            std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default()
        };
        let sockets = |(table, state): (&str, &str)| {
            let text = std::fs::read_to_string(format!("/proc/self/net/{table}"));
            listeners(&text.unwrap_or_default(), state)
        };
        // include/net/tcp_states.h: TCP_LISTEN, and TCP_CLOSE of a UDP socket without a peer.
        let tables = [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")];
        Self {
            ephemeral: ephemeral(&setting("ip_local_port_range")),
            reserved: reserved(&setting("ip_local_reserved_ports")),
            listeners: tables.into_iter().flat_map(sockets).collect(),
        }
    }

    /// Returns the range from the first to the last port of `ports` that a connection may get.
    fn shared(&self, ports: &Range) -> Option<Range> {
        let ephemeral = self.ephemeral.as_ref()?;
        let free = |port: &u16| !self.reserved.iter().any(|range| range.contains(port));
        let (first, last) =
            (*ports.start().max(ephemeral.start()), *ports.end().min(ephemeral.end()));
        let mut free = (first..=last).filter(free);
        let start = free.next()?;
        Some(start..=free.next_back().unwrap_or(start))
    }
}

/// Parses `ip_local_port_range`, such as `32768\t60999`.
fn ephemeral(text: &str) -> Option<Range> {
    let mut ports = text.split_whitespace().map(str::parse);
    Some(ports.next()?.ok()?..=ports.next()?.ok()?)
}

/// Parses `ip_local_reserved_ports`, such as `8080,9000-9100`; it may be empty.
fn reserved(text: &str) -> Vec<Range> {
    let ranges = text.trim().split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    });
    ranges.collect()
}

/// Returns the local addresses and ports of the sockets in the wanted state, from a table of
/// /proc/net (proc(5)).
fn listeners(table: &str, wanted: &str) -> Vec<(IpAddr, u16)> {
    let sockets = table.lines().skip(1).filter_map(|line| {
        let mut columns = line.split_whitespace();
        let (local, state) = (columns.nth(1)?, columns.nth(1)?);
        let (address, port) = local.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        (state == wanted).then_some((kernel_address(address)?, port))
    });
    sockets.collect()
}

/// Parses an address as the kernel prints it: words of 32 bits, each as a number in the byte order
/// of the machine.
fn kernel_address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let digits = hex.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut octets = [0; 16];
            for (at, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(octets).to_canonical())
        }
        _ => None,
    }
}

/// Returns the sources that share ports with this box itself.
pub fn findings(
    full_nat: &FullNat,
    addresses: &[InterfaceAddress],
    links: &[Link],
    own: &OwnPorts,
) -> Vec<Finding> {
    let mut found = Vec::new();
    for source in &full_nat.sources {
        let holder = addresses.iter().find(|held| held.address == *source);
        let Some(holder) = holder.filter(|held| is_in_use(held, links)) else { continue };
        let link = links.iter().find(|link| link.index == holder.ifindex);
        let on = link.map_or("an interface", |link| &link.name);
        let ports = &full_nat.ports;
        let mut add = |key, what: String, fix: String| {
            let what = format!("{source} is this box's own address on {on}: {what}");
            found.push(Finding::new(Level::Warning, key, what, fix));
        };
        if let Some(shared) = own.shared(ports) {
            let what = format!(
                "the kernel uses its ports {}-{}, too (net.ipv4.ip_local_port_range), and answers to its \
                 connections, such as health checks, are dropped (return_no_flow)",
                shared.start(),
                shared.end()
            );
            add("full_nat.sources", what, cure(ports, &shared));
        }
        let heard = own.listening(*source, ports);
        if !heard.is_empty() {
            let list: Vec<String> = heard.iter().map(u16::to_string).collect();
            let what = format!(
                "something listens there on {}, and what is sent to it is dropped (return_no_flow)",
                list.join(", ")
            );
            let fix = "leave these out of [full_nat] ports, or use an address of its own";
            add("full_nat.ports", what, fix.to_owned());
        }
    }
    found
}

impl OwnPorts {
    /// Returns the ports of `ports` on which something listens at `source`, except those of the
    /// range for connections, which clients without a peer (UDP) use.
    fn listening(&self, source: IpAddr, ports: &Range) -> Vec<u16> {
        let hears = |address: IpAddr| {
            address == source || address.is_unspecified() && (address.is_ipv6() || source.is_ipv4())
        };
        let of_clients =
            |port: &u16| self.ephemeral.as_ref().is_some_and(|range| range.contains(port));
        let heard = self.listeners.iter().filter(|(address, _)| hears(*address));
        let heard = heard.map(|(_, port)| *port).filter(|p| ports.contains(p) && !of_clients(p));
        let mut heard: Vec<u16> = heard.collect();
        heard.sort_unstable();
        heard.dedup();
        heard
    }
}

/// Returns whether the kernel may choose the address: holdfast has not added it, and it is no
/// single address on a device without neighbours.
fn is_in_use(held: &InterfaceAddress, links: &[Link]) -> bool {
    let silent = links.iter().any(|link| link.index == held.ifindex && link.is_silent());
    let single = held.prefix_len == netlink::full_prefix(held.address);
    !(held.ours || silent && single)
}

/// Returns the remedy, which proposes the larger rest of `ports` without `shared`, if there is one.
fn cure(ports: &Range, shared: &Range) -> String {
    let below = shared.start().checked_sub(1).map(|last| *ports.start()..=last);
    let above = shared.end().checked_add(1).map(|first| first..=*ports.end());
    let parts = [below, above].into_iter().flatten().filter(|part| !part.is_empty());
    let kept = parts.max_by_key(|part| part.len());
    let narrow = kept.map_or_else(
        || "move net.ipv4.ip_local_port_range".to_owned(),
        |kept| format!("set [full_nat] ports = \"{}-{}\"", kept.start(), kept.end()),
    );
    format!(
        "{narrow}, reserve what is shared (net.ipv4.ip_local_reserved_ports), or use an address of its own"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> OwnPorts {
        OwnPorts { ephemeral: Some(32_768..=60_999), ..OwnPorts::default() }
    }

    fn reported(ports: Range, prefix_len: u8, ours: bool, on: u32, own: &OwnPorts) -> Vec<String> {
        let full_nat = FullNat { sources: vec![[10, 0, 0, 2].into()], ports, ..FullNat::default() };
        let address =
            InterfaceAddress { ifindex: on, address: [10, 0, 0, 2].into(), prefix_len, ours };
        let links = [
            Link { index: 1, name: "lo".to_owned(), loopback: true, ..Link::default() },
            Link { index: 2, name: "eth1".to_owned(), ..Link::default() },
        ];
        findings(&full_nat, &[address], &links, own).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_source_that_the_kernel_uses_must_have_other_ports() {
        let shares = |first: u16, last: u16, fix: &str| {
            format!(
                "full_nat.sources: 10.0.0.2 is this box's own address on eth1: the kernel uses its ports \
                 {first}-{last}, too (net.ipv4.ip_local_port_range), and answers to its connections, \
                 such as health checks, are dropped (return_no_flow); {fix}, reserve what is shared \
                 (net.ipv4.ip_local_reserved_ports), or use an address of its own"
            )
        };
        let below = |first, last| shares(first, last, "set [full_nat] ports = \"1024-32767\"");
        let reserved = OwnPorts { reserved: vec![40_000..=60_999, 8080..=8080], ..own() };
        let above = "set [full_nat] ports = \"61000-65535\"";
        for (name, ports, len, ours, on, own, expected) in [
            ("the defaults", 1024..=65_535, 24, false, 2, own(), Some(below(32_768, 60_999))),
            ("a single address", 1024..=65_535, 32, false, 2, own(), Some(below(32_768, 60_999))),
            ("a part", 50_000..=65_535, 24, false, 2, own(), Some(shares(50_000, 60_999, above))),
            (
                "all of them",
                40_000..=50_000,
                24,
                false,
                2,
                own(),
                Some(shares(40_000, 50_000, "move net.ipv4.ip_local_port_range")),
            ),
            (
                "some reserved",
                1024..=65_535,
                24,
                false,
                2,
                reserved.clone(),
                Some(below(32_768, 39_999)),
            ),
            ("all reserved", 40_000..=65_535, 24, false, 2, reserved, None),
            ("others", 1024..=32_767, 24, false, 2, own(), None),
            ("the kernel does not say", 1024..=65_535, 24, false, 2, OwnPorts::default(), None),
            ("holdfast's own", 1024..=65_535, 32, true, 2, own(), None),
            ("of the loopback alone", 1024..=65_535, 32, false, 1, own(), None),
        ] {
            assert_eq!(reported(ports, len, ours, on, &own), Vec::from_iter(expected), "{name}");
        }
    }

    #[test]
    fn where_something_listens_no_flow_can_be() {
        let any: IpAddr = Ipv4Addr::UNSPECIFIED.into();
        let listeners = vec![
            (any, 22),
            (Ipv6Addr::UNSPECIFIED.into(), 9100),
            (any, 5000),
            (any, 5000),
            ([10, 0, 0, 3].into(), 6000),
            ([127, 0, 0, 1].into(), 7000),
            ([10, 0, 0, 2].into(), 8000),
            (any, 40_000),
        ];
        let own = OwnPorts { listeners, ..own() };
        let expected = "full_nat.ports: 10.0.0.2 is this box's own address on eth1: something listens \
                        there on 5000, 8000, 9100, and what is sent to it is dropped (return_no_flow); \
                        leave these out of [full_nat] ports, or use an address of its own";
        assert_eq!(reported(1024..=32_767, 24, false, 2, &own), [expected]);
        assert_eq!(reported(10_000..=32_767, 24, false, 2, &own), [""; 0]);
    }

    #[test]
    fn the_kernels_files_are_parsed() {
        assert_eq!(ephemeral("32768\t60999\n"), Some(32_768..=60_999));
        assert_eq!(ephemeral(""), None);
        assert_eq!(reserved("8080,9000-9100\n"), [8080..=8080, 9000..=9100]);
        assert_eq!(reserved("\n"), []);
        let table = "  sl  local_address rem_address   st tx_queue\n   \
                     0: 0100007F:0016 00000000:0000 0A 00000000:00000000\n   \
                     1: 0200000A:8000 0300000A:0050 01 00000000:00000000\n";
        let expected = u32::from_ne_bytes([127, 0, 0, 1]);
        let table = table.replace("0100007F", &format!("{expected:08X}"));
        assert_eq!(listeners(&table, "0A"), [([127, 0, 0, 1].into(), 22)]);
        let table = "  sl  local_address\n   0: 00000000000000000000000000000000:1F90 0:0 0A";
        assert_eq!(listeners(table, "0A"), [(Ipv6Addr::UNSPECIFIED.into(), 8080)]);
        assert!(OwnPorts::read().ephemeral.is_some());
    }
}
