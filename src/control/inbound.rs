//! Checks that frames for VIPs arrive at a `[[nic]]`. Another interface that has the address, or
//! replies to ARP for it, directs clients to the kernel, which has no such service and refuses
//! them.
//!
//! Linux replies to ARP on any interface for any of its addresses (`arp_ignore` 0, the default;
//! Documentation/networking/ip-sysctl.rst), to neighbour discovery only for addresses of the
//! interface itself (net/ipv6/ndisc.c, `ndisc_recv_ns`). A frame is received by the NIC with its
//! destination MAC: a VLAN device or a bridge usually has the MAC of its NIC, a macvlan (VRRP) its
//! own.

use std::fmt;
use std::net::IpAddr;

use hashbrown::{HashMap, HashSet};
use ipnet::Ipv4Net;

use super::announce::Assignment;
use super::netlink::{InterfaceAddress, Link};
use crate::config::Config;
use crate::config::machine::Level;
use crate::format::counted;

/// ARP policy of an interface: its own setting or that of `all`, whichever is stricter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Arp {
    /// Replies only for addresses of the interface itself, or fewer (`arp_ignore`).
    pub own_only: bool,
    /// Replies only if the kernel would send to the requester by this interface (`arp_filter`).
    pub filtered: bool,
}

impl Arp {
    /// Reads the settings of an interface of this network namespace.
    pub fn read(interface: &str) -> Self {
        let set = |key: &str| ["all", interface].iter().any(|name| is_set(name, key));
        Self { own_only: set("arp_ignore"), filtered: set("arp_filter") }
    }

    /// Reads the settings of every interface that may reply and has an IPv4 address, by index.
    pub fn read_all<'a>(
        links: impl Iterator<Item = &'a Link>,
        addresses: &[InterfaceAddress],
    ) -> HashMap<u32, Self> {
        let v4 = addresses.iter().filter(|found| found.address.is_ipv4());
        let with_v4: HashSet<u32> = v4.map(|found| found.ifindex).collect();
        let answers = |link: &&Link| {
            link.up && !link.is_silent() && link.mac.is_some() && with_v4.contains(&link.index)
        };
        links.filter(answers).map(|link| (link.index, Self::read(&link.name))).collect()
    }
}

fn is_set(interface: &str, key: &str) -> bool {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/{key}");
    std::fs::read_to_string(path).is_ok_and(|value| value.trim() != "0")
}

/// Condition that directs clients to the kernel, or nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Trouble {
    /// An address is, or is to be, on an interface without the MAC of a NIC.
    Elsewhere {
        /// Name of the VIP.
        vip: String,
        /// Address of the VIP.
        address: IpAddr,
        /// Interface name.
        interface: String,
    },
    /// An interface that is no NIC replies to ARP for VIPs, in a network that a NIC has, too.
    Answers {
        /// Interface name.
        interface: String,
        /// Name of the NIC.
        nic: String,
        /// Network of the interface.
        network: Ipv4Net,
        /// Name of the first VIP.
        vip: String,
        /// Number of further VIPs.
        more: usize,
    },
    /// No interface replies to ARP or neighbour discovery for an address.
    Unheard {
        /// Name of the VIP.
        vip: String,
        /// Address of the VIP.
        address: IpAddr,
        /// Name of the interface that has the address.
        interface: String,
    },
}

impl Trouble {
    /// Severity: an address without replies may be routed to this box.
    pub const fn level(&self) -> Level {
        match self {
            Self::Elsewhere { .. } | Self::Answers { .. } => Level::Warning,
            Self::Unheard { .. } => Level::Note,
        }
    }

    /// Name of the VIP, if the trouble concerns a single one.
    pub fn vip(&self) -> Option<&str> {
        match self {
            Self::Elsewhere { vip, .. } | Self::Unheard { vip, .. } => Some(vip),
            Self::Answers { .. } => None,
        }
    }

    /// Returns whether it is the same trouble as `before`; an interface that replies stays one
    /// whichever VIPs there are.
    pub fn is_still(&self, before: &Self) -> bool {
        match (self, before) {
            (
                Self::Answers { interface, nic, network, .. },
                Self::Answers { interface: i, nic: n, network: net, .. },
            ) => (interface, nic, network) == (i, n, net),
            (now, before) => now == before,
        }
    }

    /// Text of the problem.
    pub fn what(&self) -> String {
        match self {
            Self::Elsewhere { vip, address, interface } => format!(
                "VIP {vip}: {address} belongs to {interface}, and no [[nic]] receives its frames: the \
                 kernel gets the packets of clients, and refuses them"
            ),
            Self::Answers { interface, nic, network, vip, more } => {
                let others = match more {
                    0 => String::new(),
                    more => format!(" and {}", counted(*more, "other VIP")),
                };
                format!(
                    "{interface}, which is no [[nic]], is in {network} as {nic} is, and answers ARP \
                     for VIP {vip}{others}: the kernel gets the packets of clients that hear it, and \
                     refuses them"
                )
            }
            Self::Unheard { vip, address, interface } => {
                let question = if address.is_ipv4() { "ARP" } else { "neighbour discovery" };
                format!("VIP {vip}: no NIC answers {question} for {address} on {interface}")
            }
        }
    }

    /// Text of the remedy.
    pub fn cure(&self) -> String {
        match self {
            Self::Elsewhere { .. } => {
                "announce it on a [[nic]], or on a VLAN device of one with its \
                                       MAC; a virtual MAC (VRRP, macvlan) is not received"
                    .to_owned()
            }
            Self::Answers { interface, .. } => format!(
                "`sysctl -w net.ipv4.conf.{interface}.arp_ignore=1 \
                 net.ipv4.conf.{interface}.arp_announce=2`, or make it a [[nic]]"
            ),
            Self::Unheard { .. } => {
                "announce it on a [[nic]], unless it is routed to this box".to_owned()
            }
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what(), self.cure())
    }
}

/// State of the network that the checks read.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Links, by interface index.
    pub links: &'a HashMap<u32, Link>,
    /// Addresses of this box.
    pub addresses: &'a [InterfaceAddress],
    /// ARP policies of links, by interface index.
    pub arp: &'a HashMap<u32, Arp>,
}

impl View<'_> {
    fn arp(&self, link: &Link) -> Arp {
        self.arp.get(&link.index).copied().unwrap_or_default()
    }

    /// Returns the IPv4 networks of a link.
    fn networks(&self, link: &Link) -> impl Iterator<Item = Ipv4Net> {
        let of_link = self.addresses.iter().filter(|found| found.ifindex == link.index);
        of_link.filter_map(|found| match found.address {
            IpAddr::V4(ip) if found.prefix_len < 32 => {
                Some(Ipv4Net::new(ip, found.prefix_len).ok()?.trunc())
            }
            _ => None,
        })
    }
}

/// Returns all troubles of this configuration, in a fixed order.
///
/// Cost: a look-up per VIP and address.
pub fn troubles(config: &Config, view: View<'_>) -> Vec<Trouble> {
    let nics: Vec<&Link> = {
        let of = |name: &str| view.links.values().find(|link| link.name == name);
        config.nics.iter().filter_map(|nic| of(&nic.interface)).collect()
    };
    let macs: HashSet<[u8; 6]> = nics.iter().filter_map(|nic| nic.mac).collect();
    let received = |link: &Link| link.mac.is_some_and(|mac| macs.contains(&mac));
    let (mut found, mut on_box) = (HashSet::new(), Vec::new());
    for (vip, address, link) in places(config, view) {
        let (vip, interface) = (vip.to_owned(), link.name.clone());
        if address.is_ipv4() {
            on_box.push(vip.clone());
        }
        if link.is_silent() {
            let heard = address.is_ipv4() && nics.iter().any(|nic| !view.arp(nic).own_only);
            if !heard {
                found.insert(Trouble::Unheard { vip, address, interface });
            }
        } else if !received(link) {
            found.insert(Trouble::Elsewhere { vip, address, interface });
        }
    }
    on_box.sort();
    on_box.dedup();
    if let Some((vip, others)) = on_box.split_first() {
        let answers = |link: &&Link| {
            let arp = view.arp(link);
            view.arp.contains_key(&link.index) && !received(link) && !arp.own_only && !arp.filtered
        };
        for link in view.links.values().filter(answers) {
            let Some((nic, network)) = shared(link, &nics, view) else { continue };
            found.insert(Trouble::Answers {
                interface: link.name.clone(),
                nic: nic.name.clone(),
                network,
                vip: vip.clone(),
                more: others.len(),
            });
        }
    }
    let mut found: Vec<Trouble> = found.into_iter().collect();
    found.sort();
    found
}

/// Returns the links where addresses of VIPs are, or are to be: name of the VIP, address, link.
fn places<'a>(config: &'a Config, view: View<'a>) -> Vec<(&'a str, IpAddr, &'a Link)> {
    let by_name: HashMap<&str, &Link> =
        view.links.values().map(|link| (link.name.as_str(), link)).collect();
    let mut holders: HashMap<IpAddr, Vec<&Link>> = HashMap::new();
    for found in view.addresses {
        holders.entry(found.address).or_default().extend(view.links.get(&found.ifindex));
    }
    let single = config.vips.iter().filter(|vip| vip.address.is_single());
    let of_vip = single.flat_map(|vip| {
        let address = vip.address.ip();
        let wanted =
            Assignment::of(vip).and_then(|place| by_name.get(place.interface.as_str()).copied());
        let there = holders.get(&address).into_iter().flatten().copied();
        wanted.into_iter().chain(there).map(move |link| (vip.name.as_str(), address, link))
    });
    of_vip.collect()
}

/// Returns a NIC that shares a network with an interface, and the interface's network.
fn shared<'a>(link: &Link, nics: &[&'a Link], view: View<'_>) -> Option<(&'a Link, Ipv4Net)> {
    let meets = |a: &Ipv4Net, b: &Ipv4Net| a.contains(b) || b.contains(a);
    nics.iter().find_map(|nic| {
        let networks: Vec<Ipv4Net> = view.networks(nic).collect();
        let of_link =
            view.networks(link).find(|own| networks.iter().any(|other| meets(own, other)));
        Some((*nic, of_link?))
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::super::reload::tests::config;
    use super::super::state::tests::vip;
    use super::*;
    use crate::config::Announce;

    /// Links of a box; `eth1` is the configuration's NIC.
    fn links() -> HashMap<u32, Link> {
        let link = |index: u32, name: &str, mac: u8| Link {
            index,
            name: name.to_owned(),
            mac: Some([2, 0, 0, 0, 0, mac]),
            up: true,
            ..Link::default()
        };
        let all = [
            Link { loopback: true, mac: Some([0; 6]), ..link(1, "lo", 0) },
            link(2, "eth1", 1),
            link(3, "eth1.7", 1),
            link(4, "vrrp.51", 9),
            link(5, "eth9", 3),
            Link { no_arp: true, ..link(6, "dummy0", 4) },
            Link { no_arp: true, mac: None, ..link(7, "wg0", 0) },
        ];
        all.map(|link| (link.index, link)).into()
    }

    fn address(ifindex: u32, text: &str) -> InterfaceAddress {
        let (address, prefix_len) = text.split_once('/').unwrap();
        let (address, prefix_len) = (address.parse().unwrap(), prefix_len.parse().unwrap());
        InterfaceAddress { ifindex, address, prefix_len, ours: false }
    }

    fn reported(
        vips: &[(&str, &str)],
        addresses: &[(u32, &str)],
        arp: &[(u32, Arp)],
    ) -> Vec<String> {
        let of = |&(address, on): &(&str, &str)| {
            let mut vip = vip(&format!("to-{address}"), &[]);
            vip.address = address.parse::<IpAddr>().unwrap().into();
            if !on.is_empty() {
                vip.announce = Announce::Interface(on.to_owned());
            }
            vip
        };
        let addresses: Vec<_> = addresses.iter().map(|&(on, text)| address(on, text)).collect();
        let mut settings: HashMap<u32, Arp> =
            [2, 3, 4, 5].map(|index| (index, Arp::default())).into();
        settings.extend(arp.iter().copied());
        let links = links();
        let view = View { links: &links, addresses: &addresses, arp: &settings };
        let found = troubles(&config(vips.iter().map(of).collect()), view);
        found.iter().map(|trouble| format!("{} {trouble}", trouble.level().as_str())).collect()
    }

    #[test]
    fn an_address_is_where_a_nic_receives_its_frames() {
        let elsewhere = |interface: &str| {
            format!(
                "warning VIP to-192.0.2.10: 192.0.2.10 belongs to {interface}, and no [[nic]] \
                 receives its frames: the kernel gets the packets of clients, and refuses them; announce it on a \
                 [[nic]], or on a VLAN device of one with its MAC; a virtual MAC (VRRP, macvlan) is not \
                 received"
            )
        };
        for (name, on, there, expected) in [
            ("the NIC", "eth1", &[][..], None),
            ("a VLAN device on it", "eth1.7", &[], None),
            ("the loopback", "lo", &[], None),
            ("a dummy device", "dummy0", &[], None),
            ("a tunnel", "wg0", &[], None),
            ("a macvlan", "vrrp.51", &[], Some(elsewhere("vrrp.51"))),
            ("another segment", "eth9", &[], Some(elsewhere("eth9"))),
            ("one that is missing", "eth7", &[], None),
            ("put there by others", "", &[(4, "192.0.2.10/32")], Some(elsewhere("vrrp.51"))),
            ("there and wanted there", "eth9", &[(5, "192.0.2.10/32")], Some(elsewhere("eth9"))),
            ("on the NIC by others", "", &[(2, "192.0.2.10/24")], None),
            ("nowhere", "", &[], None),
        ] {
            assert_eq!(
                reported(&[("192.0.2.10", on)], there, &[]),
                Vec::from_iter(expected),
                "{name}"
            );
        }
    }

    #[test]
    fn another_interface_in_the_network_must_not_answer_arp() {
        let answers = |network: &str, others: &str| {
            format!(
                "warning eth9, which is no [[nic]], is in {network} as eth1 is, and answers ARP for VIP \
                 to-192.0.2.10{others}: the kernel gets the packets of clients that hear it, and \
                 refuses them; `sysctl -w net.ipv4.conf.eth9.arp_ignore=1 \
                 net.ipv4.conf.eth9.arp_announce=2`, or make it a [[nic]]"
            )
        };
        let one = &[("192.0.2.10", "eth1")][..];
        let three = &[("192.0.2.10", "eth1"), ("192.0.2.11", "lo"), ("192.0.2.12", "eth1")][..];
        let both = &[(2, "198.18.1.2/24"), (5, "198.18.1.3/24")][..];
        let own_only = Arp { own_only: true, filtered: false };
        let filtered = Arp { own_only: false, filtered: true };
        for (name, vips, there, arp, expected) in [
            ("it answers", one, both, None, Some(answers("198.18.1.0/24", ""))),
            ("for three", three, both, None, Some(answers("198.18.1.0/24", " and 2 other VIPs"))),
            ("for its own alone", one, both, Some(own_only), None),
            ("by its routes", one, both, Some(filtered), None),
            (
                "a part of the network",
                one,
                &[(2, "198.18.1.2/24"), (5, "198.18.1.130/25")],
                None,
                Some(answers("198.18.1.128/25", "")),
            ),
            ("another network", one, &[(2, "198.18.1.2/24"), (5, "10.0.0.1/24")], None, None),
            ("single addresses", one, &[(2, "198.18.1.2/32"), (5, "198.18.1.2/32")], None, None),
            ("a VIP that is not here", &[("192.0.2.10", "")], both, None, None),
            ("neighbour discovery", &[("2001:db8::10", "eth1")], both, None, None),
        ] {
            let arp: Vec<_> = arp.into_iter().map(|arp| (5, arp)).collect();
            assert_eq!(reported(vips, there, &arp), Vec::from_iter(expected), "{name}");
        }
    }

    #[test]
    fn an_interface_answers_whichever_vips_there_are() {
        let answers = |interface: &str, vip: &str, more| Trouble::Answers {
            interface: interface.to_owned(),
            nic: "eth1".to_owned(),
            network: "198.18.1.0/24".parse().unwrap(),
            vip: vip.to_owned(),
            more,
        };
        let elsewhere = |vip: &str| Trouble::Elsewhere {
            vip: vip.to_owned(),
            address: [192, 0, 2, 10].into(),
            interface: "eth9".to_owned(),
        };
        assert!(answers("eth9", "web", 3).is_still(&answers("eth9", "mail", 0)));
        assert!(!answers("eth9", "web", 3).is_still(&answers("eth8", "web", 3)));
        assert!(elsewhere("web").is_still(&elsewhere("web")));
        assert!(!elsewhere("web").is_still(&elsewhere("mail")));
    }

    #[test]
    fn an_address_on_the_loopback_needs_an_interface_that_answers_for_it() {
        let unheard = |address: &str, question: &str| {
            format!(
                "note VIP to-{address}: no NIC answers {question} for {address} on lo; announce it on a \
                 [[nic]], unless it is routed to this box"
            )
        };
        let own_only = Arp { own_only: true, filtered: false };
        for (address, arp, expected) in [
            ("192.0.2.10", Arp::default(), None),
            ("192.0.2.10", own_only, Some(unheard("192.0.2.10", "ARP"))),
            ("2001:db8::10", Arp::default(), Some(unheard("2001:db8::10", "neighbour discovery"))),
        ] {
            assert_eq!(reported(&[(address, "lo")], &[], &[(2, arp)]), Vec::from_iter(expected));
        }
    }
}
