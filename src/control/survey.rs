//! Problems of a configuration on the network of this machine, found without a start.
//!
//! [`survey`] queries rtnetlink once for links, addresses and the routes to all backends;
//! [`findings`] evaluates them and is pure, so that tests can construct networks. A running
//! holdfast logs the same problems of next hops as they come and go ([`super::neighbour`]).

use std::net::IpAddr;
use std::path::Path;

use futures_util::stream::{StreamExt, TryStreamExt, iter};
use hashbrown::{HashMap, HashSet};
use ipnet::Ipv4Net;

use super::control_socket::{self, Obstacle};
use super::error::ControlError;
use super::inbound::{self, Arp};
use super::neighbour::{self, Problem};
use super::netlink::{self, InterfaceAddress, Link, Netlink, Route};
use super::own_ports::{self, OwnPorts};
use crate::config::driver::{LARGE_FRAME, NicFacts, largest_mtu};
use crate::config::machine::{Finding, Level};
use crate::config::{Announce, Config, Vip};
use crate::net::NicIndex;

/// First kernel version with packets of several frames (multi-buffer).
const MULTI_BUFFER: (u32, u32) = (6, 6);

/// State of the network as the kernel reports it.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// All links.
    pub links: Vec<Link>,
    /// Addresses of this box.
    pub addresses: Vec<InterfaceAddress>,
    /// Routes to backends, by address.
    pub routes: HashMap<IpAddr, Route>,
    /// ARP policies of links, by interface index.
    pub arp: HashMap<u32, Arp>,
    /// Ports in use by this box itself.
    pub own_ports: OwnPorts,
    /// First two numbers of the kernel's version, if known.
    pub kernel: Option<(u32, u32)>,
}

/// Returns the findings about the network of this machine. Needs no privileges and changes nothing.
/// Blocks: about 20 us per backend.
///
/// # Errors
/// When netlink cannot be queried.
pub fn survey(config: &Config, nics: &[NicFacts]) -> Result<Vec<Finding>, ControlError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let network = runtime.map_err(ControlError::Runtime)?.block_on(async {
        let mut netlink = Netlink::open()?;
        look(config, &mut netlink).await.map_err(|error| ControlError::Netlink(error.to_string()))
    })?;
    let mut found = findings(config, nics, &network);
    found.extend(control_socket(&config.control.socket));
    Ok(found)
}

/// Returns a finding if a file at the control socket's path would make a start fail.
fn control_socket(path: &Path) -> Option<Finding> {
    let Obstacle { what, fix } = control_socket::obstacle(path)?;
    let what = format!("{} is {what}", path.display());
    Some(Finding::new(Level::Error, "control.socket", what, fix))
}

async fn look(config: &Config, netlink: &mut Netlink) -> Result<Network, netlink::Error> {
    let links = netlink.links().await?;
    let addresses = netlink.addresses().await?;
    let backends = config.vips.iter().flat_map(|vip| &vip.backends);
    let targets: HashSet<IpAddr> = backends.map(|backend| backend.address).collect();
    let netlink = &*netlink;
    let routes = iter(targets)
        .map(
            |target| async move { Ok::<_, netlink::Error>((target, netlink.route(target).await?)) },
        )
        .buffer_unordered(neighbour::LOOKUPS)
        .try_collect()
        .await?;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let (arp, own_ports) = (Arp::read_all(links.iter(), &addresses), OwnPorts::read());
    Ok(Network { links, addresses, routes, arp, own_ports, kernel: version(&release) })
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Returns all findings.
pub fn findings(config: &Config, nics: &[NicFacts], network: &Network) -> Vec<Finding> {
    let mut found = Vec::new();
    packet_sizes(config, config.frame_size(nics), network, &mut found);
    members(config, network, &mut found);
    for vip in &config.vips {
        vip_address(vip, network, &mut found);
    }
    frames_of_vips(config, network, &mut found);
    let Network { addresses, links, own_ports, .. } = network;
    found.extend(own_ports::findings(&config.full_nat, addresses, links, own_ports));
    next_hops(config, network, &mut found);
    found
}

/// Checks that a packet of the NIC's MTU fits into a frame, or that the kernel has packets of
/// several frames.
fn packet_sizes(config: &Config, frame_size: u32, network: &Network, found: &mut Vec<Finding>) {
    let (most, larger) = (largest_mtu(frame_size), largest_mtu(LARGE_FRAME));
    for nic in &config.nics {
        let name = &nic.interface;
        let Some(link) = network.links.iter().find(|link| link.name == *name) else { continue };
        if link.mtu <= most {
            continue;
        }
        let what = format!(
            "{name} has an MTU of {}, and frames of {} bytes hold packets of {most} at most",
            link.mtu, frame_size
        );
        let grow = format!("use [workers] frame_size = {LARGE_FRAME}");
        let shrink = format!("`ip link set {name} mtu {most}`");
        let several = network.kernel.is_none_or(|version| version >= MULTI_BUFFER);
        let (level, fix) = match (several, most < larger) {
            (true, false) => continue,
            (true, true) => (Level::Note, format!("longer ones take several frames; {grow}")),
            (false, _) if link.mtu <= larger => (Level::Error, format!("{grow}, or {shrink}")),
            (false, true) => (Level::Error, format!("{shrink}, or {larger} and {grow}")),
            (false, false) => (Level::Error, format!("{shrink}, or boot a kernel of 6.6 or newer")),
        };
        found.push(Finding::new(level, "nic.interface", what, fix));
    }
}

/// Finds NICs that are members of a device: their packets can be received, but routes leave by that
/// device.
fn members(config: &Config, network: &Network, found: &mut Vec<Finding>) {
    for nic in &config.nics {
        let named = |link: &&Link| link.name == nic.interface;
        let Some(link) = network.links.iter().find(named) else { continue };
        let above = network.links.iter().find(|above| Some(above.index) == link.master);
        let Some(above) = above.filter(|above| above.takes_over) else { continue };
        let (name, above) = (&nic.interface, &above.name);
        let what = format!(
            "{name} is a member of {above}: routes leave by {above}, and the kernel answers ARP there, \
             not on {name}"
        );
        let fix =
            format!("use interface = {above:?} with xdp = \"generic\", or take {name} out of it");
        found.push(Finding::new(Level::Warning, "nic.interface", what, fix));
    }
}

fn vip_address(vip: &Vip, network: &Network, found: &mut Vec<Finding>) {
    let Vip { name, address, .. } = vip;
    if !address.is_single() {
        return;
    }
    let address = &address.ip();
    let mut add = |level, what, fix: &str| {
        found.push(Finding::new(
            level,
            "vip.address",
            format!("VIP {name}: {address} {what}"),
            fix,
        ));
    };
    for own in &network.addresses {
        let link = network.links.iter().find(|link| link.index == own.ifindex);
        let on = link.map_or("an interface", |link| &link.name);
        let single = own.prefix_len == netlink::full_prefix(own.address);
        if own.address == *address && !own.ours {
            match (single, &vip.announce) {
                (true, Announce::None) => {}
                (true, Announce::Interface(_)) => {
                    let what = format!("is on {on} already, and stays there when holdfast stops");
                    add(Level::Note, what, "set announce = \"none\" if that is meant");
                }
                (false, _) => {
                    let what = format!(
                        "is this box's own address on {on}: holdfast takes the VIP's ports from it"
                    );
                    add(Level::Warning, what, "give the VIP an address of its own");
                }
            }
        }
        if let Some(role) = special_in(own, *address) {
            let what = format!("is the {role} address of the network on {on}");
            add(Level::Warning, what, "use an address that a host may have");
        }
    }
}

/// Returns the role of `address` in the IPv4 network of one of our addresses, if no host may have
/// it.
fn special_in(own: &InterfaceAddress, address: IpAddr) -> Option<&'static str> {
    let (IpAddr::V4(own_address), IpAddr::V4(address)) = (own.address, address) else {
        return None;
    };
    // Networks of two addresses have neither (RFC 3021).
    let network = Ipv4Net::new(own_address, own.prefix_len).ok().filter(|n| n.prefix_len() < 31)?;
    match address {
        _ if address == network.broadcast() => Some("broadcast"),
        _ if address == network.network() => Some("network"),
        _ => None,
    }
}

/// Finds VIPs that direct clients to the kernel.
fn frames_of_vips(config: &Config, network: &Network, found: &mut Vec<Finding>) {
    let links = network.links.iter().map(|link| (link.index, link.clone())).collect();
    let view = inbound::View { links: &links, addresses: &network.addresses, arp: &network.arp };
    let reported = inbound::troubles(config, view).into_iter().map(|trouble| {
        Finding::new(trouble.level(), "vip.announce", trouble.what(), trouble.cure())
    });
    found.extend(reported);
}

/// Finds backends that no frame can be sent to, according to routes.
fn next_hops(config: &Config, network: &Network, found: &mut Vec<Finding>) {
    let links: HashMap<u32, Link> =
        network.links.iter().map(|link| (link.index, link.clone())).collect();
    let index = |name: &str| network.links.iter().find(|link| link.name == name);
    let nics = config.nics.iter().zip((0..).map(NicIndex));
    let nics: HashMap<u32, NicIndex> =
        nics.filter_map(|(nic, port)| Some((index(&nic.interface)?.index, port))).collect();
    for vip in &config.vips {
        for backend in &vip.backends {
            let problem = match network.routes.get(&backend.address) {
                Some(Route::Local) => Some(Problem::Local),
                Some(Route::None) => Some(Problem::NoRoute),
                Some(Route::Via { ifindex, .. }) => {
                    neighbour::out_of(*ifindex, &links, &nics).err()
                }
                None => None,
            };
            let Some(problem) = problem else { continue };
            let what =
                format!("{}/{} ({}): {}", vip.name, backend.name, backend.address, problem.what());
            let fix = problem.cure();
            found.push(Finding::new(Level::Warning, "vip.backend.address", what, fix));
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::super::reload::tests::config;
    use super::super::state::tests::{backend, vip};
    use super::*;

    #[test]
    fn an_obstacle_at_the_control_sockets_path_is_reported() {
        let scratch = super::super::admin::tests::Scratch::new();
        let socket = scratch.socket();
        assert!(control_socket(&socket).is_none(), "nothing is there");
        std::fs::create_dir_all(&scratch.0).unwrap();
        std::fs::write(&socket, "").unwrap();
        let reported = control_socket(&socket).unwrap();
        assert!(reported.to_string().contains("is a regular file"), "{reported}");
    }

    fn link(index: u32, name: &str, mtu: u32) -> Link {
        let mac = Some([2, 0, 0, 0, 0, u8::try_from(index).unwrap_or_default()]);
        Link { index, name: name.to_owned(), mac, mtu, up: true, ..Link::default() }
    }

    fn address(text: &str, prefix_len: u8, ours: bool) -> InterfaceAddress {
        let address = IpAddr::from(text.parse::<std::net::Ipv4Addr>().unwrap_or([0; 4].into()));
        InterfaceAddress { ifindex: 1, address, prefix_len, ours }
    }

    /// Returns a network with `eth1`, the configuration's NIC, and `eth9`, which is none.
    fn network(mtu: u32) -> Network {
        let links = vec![link(1, "eth1", mtu), link(9, "eth9", 1500)];
        Network { links, ..Network::default() }
    }

    fn reported(config: &Config, network: &Network) -> Vec<String> {
        let word = |finding: &Finding| format!("{} {finding}", finding.level.as_str());
        findings(config, &[], network).iter().map(word).collect()
    }

    #[test]
    fn packets_must_fit_into_frames_or_the_kernel_have_several() {
        let too_large = |mtu, frame, most| {
            format!(
                "nic.interface: eth1 has an MTU of {mtu}, and frames of {frame} bytes hold \
                 packets of {most} at most; "
            )
        };
        let (old, new) = (Some((6, 1)), Some((6, 6)));
        let several = "longer ones take several frames; use [workers] frame_size = 4096";
        for (mtu, frame_size, kernel, expected) in [
            (1500, 2048, old, None),
            (1770, 2048, old, None),
            (
                1771,
                2048,
                old,
                Some(("error", "use [workers] frame_size = 4096, or `ip link set eth1 mtu 1770`")),
            ),
            (1771, 2048, new, Some(("note", several))),
            (9000, 2048, None, Some(("note", several))),
            (3818, 4096, old, None),
            (
                9000,
                2048,
                old,
                Some((
                    "error",
                    "`ip link set eth1 mtu 1770`, or 3818 and use [workers] frame_size = 4096",
                )),
            ),
            (
                9000,
                4096,
                old,
                Some(("error", "`ip link set eth1 mtu 3818`, or boot a kernel of 6.6 or newer")),
            ),
            (9000, 4096, new, None),
        ] {
            let mut config = config(Vec::new());
            config.workers.frame_size = Some(frame_size);
            let network = Network { kernel, ..network(mtu) };
            let what = too_large(mtu, frame_size, frame_size - 278);
            let expected = expected.map(|(level, fix)| format!("{level} {what}{fix}"));
            assert_eq!(reported(&config, &network), Vec::from_iter(expected), "{mtu} {kernel:?}");
        }
    }

    #[test]
    fn members_of_other_devices_are_named() {
        let config = config(Vec::new());
        let mut network = network(1500);
        let above = |takes_over| Link { takes_over, ..link(5, "bond0", 1500) };
        for (master, takes_over, expected) in
            [(None, true, false), (Some(5), true, true), (Some(5), false, false)]
        {
            let nic = Link { master, ..link(1, "eth1", 1500) };
            network.links = vec![nic, above(takes_over)];
            let reported = reported(&config, &network).join("; ");
            assert_eq!(reported.contains("eth1 is a member of bond0"), expected, "{reported}");
            assert_eq!(reported.contains("use interface = \"bond0\""), expected, "{reported}");
        }
    }

    #[test]
    fn a_kernel_says_its_version() {
        for (release, expected) in [
            ("6.18.2-amd64", Some((6, 18))),
            ("6.6\n", Some((6, 6))),
            ("6", None),
            ("next-20260101", None),
            ("", None),
        ] {
            assert_eq!(version(release), expected, "{release:?}");
        }
    }

    #[test]
    fn addresses_that_a_vip_should_not_have() {
        let shared = "warning vip.address: VIP web: 192.0.2.10 is this box's own address on eth1: \
                      holdfast takes the VIP's ports from it; give the VIP an address of its own";
        let stays = "note vip.address: VIP web: 192.0.2.10 is on eth1 already, and stays there \
                     when holdfast stops; set announce = \"none\" if that is meant";
        let special = |role| {
            format!(
                "warning vip.address: VIP web: 192.0.2.10 is the {role} address of the network on \
                 eth1; use an address that a host may have"
            )
        };
        let on = || Announce::Interface("eth1".to_owned());
        for (name, own, announce, expected) in [
            ("another", address("192.0.2.9", 24, false), on(), None),
            ("the box's", address("192.0.2.10", 24, false), on(), Some(shared.to_owned())),
            ("of a holdfast that runs", address("192.0.2.10", 32, true), on(), None),
            ("an operator's", address("192.0.2.10", 32, false), on(), Some(stays.to_owned())),
            ("as meant", address("192.0.2.10", 32, false), Announce::None, None),
            ("last", address("192.0.2.9", 29, false), on(), None),
            ("broadcast", address("192.0.2.9", 31, false), on(), None),
            ("broadcast of four", address("192.0.2.8", 30, false), on(), None),
            ("network of two", address("192.0.2.11", 31, false), on(), None),
        ] {
            let mut web = vip("web", &[]);
            web.announce = announce;
            let network = Network { addresses: vec![own], ..network(1500) };
            assert_eq!(reported(&config(vec![web]), &network), Vec::from_iter(expected), "{name}");
        }
        for (vip_address, role) in [("192.0.2.15", "broadcast"), ("192.0.2.8", "network")] {
            let mut web = vip("web", &[]);
            web.address = address(vip_address, 32, false).address.into();
            let network =
                Network { addresses: vec![address("192.0.2.9", 29, false)], ..network(1500) };
            let expected = special(role).replace("192.0.2.10", vip_address);
            assert_eq!(reported(&config(vec![web]), &network), [expected]);
        }
    }

    #[test]
    fn backends_that_no_frame_can_be_sent_to() {
        let via = |ifindex| Route::Via { ifindex, hop: [10, 0, 0, 1].into(), mtu: None };
        for (route, expected) in [
            (via(1), None),
            (
                via(9),
                Some("its route goes out by eth9, which is no [[nic]]; add it or fix the route"),
            ),
            (Route::None, Some("no route to its address; add one (ip route)")),
            (Route::Local, Some("its address is one of this box; a backend must be another host")),
        ] {
            let config = config(vec![vip("web", &[backend("a", 1)])]);
            let mut network = network(1500);
            network.routes.insert([127, 0, 1, 1].into(), route);
            let start = "warning vip.backend.address: web/a (127.0.1.1): ";
            let expected = expected.map(|text| format!("{start}{text}"));
            assert_eq!(reported(&config, &network), Vec::from_iter(expected), "{route:?}");
        }
    }
}
