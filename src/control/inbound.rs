//! Whether frames for a VIP come in by a `[[nic]]`: what else has the address, or answers ARP for it, leads
//! clients to the kernel, which knows no such service and refuses them.
//!
//! Linux answers ARP on any interface for any of its addresses (`arp_ignore` 0, the default;
//! Documentation/networking/ip-sysctl.rst), neighbour discovery only for those of the interface itself
//! (net/ipv6/ndisc.c, `ndisc_recv_ns`). A frame is received by the NIC that has its destination MAC: a VLAN device
//! or a bridge as a rule has its NIC's, a macvlan (VRRP) its own.

use std::fmt;
use std::net::IpAddr;

use hashbrown::{HashMap, HashSet};
use ipnet::Ipv4Net;

use super::announce::Assignment;
use super::netlink::{InterfaceAddress, Link};
use crate::config::Config;
use crate::config::machine::Level;
use crate::format::counted;

/// How an interface answers ARP: its own setting or that of `all`, whichever is stricter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Arp {
    /// Only for addresses of the interface itself, or fewer (`arp_ignore`).
    pub own_only: bool,
    /// Only if the kernel would send to the asker by it (`arp_filter`).
    pub filtered: bool,
}

impl Arp {
    /// Reads the settings of an interface of this network namespace.
    pub fn read(interface: &str) -> Self {
        let set = |key: &str| ["all", interface].iter().any(|name| is_set(name, key));
        Self { own_only: set("arp_ignore"), filtered: set("arp_filter") }
    }

    /// Those of every interface that may answer and has an IPv4 address, by index.
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

/// Something by which clients are led elsewhere, or nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Trouble {
    /// An address is, or is to be put, on an interface without a MAC of a NIC.
    Elsewhere {
        /// The VIP.
        vip: String,
        /// Its address.
        address: IpAddr,
        /// The interface.
        interface: String,
    },
    /// An interface that is no NIC answers ARP for VIPs, in a network that a NIC has, too.
    Answers {
        /// The interface.
        interface: String,
        /// The NIC.
        nic: String,
        /// The network.
        network: Ipv4Net,
        /// The first VIP.
        vip: String,
        /// How many more there are.
        more: usize,
    },
    /// No interface answers ARP or neighbour discovery for it.
    Unheard {
        /// The VIP.
        vip: String,
        /// Its address.
        address: IpAddr,
        /// The interface that has it.
        interface: String,
    },
}

impl Trouble {
    /// How bad it is: an address without an answer may be routed to this box.
    pub const fn level(&self) -> Level {
        match self {
            Self::Elsewhere { .. } | Self::Answers { .. } => Level::Warning,
            Self::Unheard { .. } => Level::Note,
        }
    }

    /// The VIP, if it is about one.
    pub fn vip(&self) -> Option<&str> {
        match self {
            Self::Elsewhere { vip, .. } | Self::Unheard { vip, .. } => Some(vip),
            Self::Answers { .. } => None,
        }
    }

    /// Whether it is what `before` was: an answering interface stays one whichever VIPs there are.
    pub fn is_still(&self, before: &Self) -> bool {
        match (self, before) {
            (
                Self::Answers { interface, nic, network, .. },
                Self::Answers { interface: i, nic: n, network: net, .. },
            ) => (interface, nic, network) == (i, n, net),
            (now, before) => now == before,
        }
    }

    /// What is wrong.
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

    /// How to mend it.
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

/// The network, as far as this is about it.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Every link, by index.
    pub links: &'a HashMap<u32, Link>,
    /// Every address of this box.
    pub addresses: &'a [InterfaceAddress],
    /// How links answer ARP, by index.
    pub arp: &'a HashMap<u32, Arp>,
}

impl View<'_> {
    fn arp(&self, link: &Link) -> Arp {
        self.arp.get(&link.index).copied().unwrap_or_default()
    }

    /// The IPv4 networks that a link is in.
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

/// Everything by which clients of this configuration are led elsewhere, in a fixed order.
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

/// Where the addresses of VIPs are, or are to be: the VIP's name, the address, the link.
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

/// A NIC that shares a network with an interface.
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

    /// `eth1` is the configuration's NIC.
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

    fn told(vips: &[(&str, &str)], addresses: &[(u32, &str)], arp: &[(u32, Arp)]) -> Vec<String> {
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
            assert_eq!(told(&[("192.0.2.10", on)], there, &[]), Vec::from_iter(expected), "{name}");
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
            assert_eq!(told(vips, there, &arp), Vec::from_iter(expected), "{name}");
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
    fn an_address_on_the_loopback_may_be_answered_for_by_nobody() {
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
            assert_eq!(told(&[(address, "lo")], &[], &[(2, arp)]), Vec::from_iter(expected));
        }
    }
}
