//! The decisions of `steer.bpf.c` as a pure function, for `holdfast replay`, which has no kernel.
//!
//! The model applies the rules themselves, not the maps that `program/rules.rs` derives from them,
//! and uses the names of the C code. `tests/steer_model.rs` runs the real program on thousands of
//! packets and requires the same decisions of both.

use std::collections::BTreeSet;

use hashbrown::{HashMap, HashSet};

use crate::net::{
    AccessCheck, AccessLists, Address, Listen, ListenKey, Network, PortRange, Prefixes, Protocol,
    SteerRules, VipId, exact,
};

mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const IPV6: u16 = 0x86dd;
    pub const VLAN: u16 = 0x8100;
    pub const QINQ: u16 = 0x88a8;
}

/// IP protocol numbers.
mod number {
    pub const ICMP: u8 = 1;
    pub const IPIP: u8 = 4;
    pub const IPV6: u8 = 41;
    pub const FRAGMENT: u8 = 44;
    pub const ICMPV6: u8 = 58;
    pub const HOP_BY_HOP: u8 = 0;
    pub const DESTINATION: u8 = 60;
    /// `is_extension` of the C code.
    pub const EXTENSIONS: [u8; 8] = [0, 43, FRAGMENT, 51, 60, 135, 139, 140];
}

const IPV4_FRAGMENT_OFFSET: u16 = 0x1fff;
const IPV4_MORE_FRAGMENTS: u16 = 0x2000;
const IPV6_FRAGMENT_OFFSET: u16 = 0xfff8;
/// Length of the ICMP header in front of a quoted packet, in bytes.
const ICMP_LEN: usize = 8;
/// Largest number of VLAN tags to skip.
const MAX_TAGS: usize = 2;
/// Largest number of IPv6 extension headers to skip.
const MAX_EXTENSIONS: usize = 4;
/// All values of a protocol in a rule: `HAS_ANY` of the C code.
const ANY: &[Protocol] = &[Protocol::Any, Protocol::Tcp, Protocol::Udp];

/// Destination that the program selects for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steered {
    /// The worker of the packet's queue: it is for a VIP, or a local address that workers use.
    ToVip,
    /// The worker of the packet's queue: it comes from a NAT backend.
    Return,
    /// The kernel.
    Kernel,
    /// Dropped: it is for a VIP, and a deny list has its source.
    Denied,
    /// Dropped: it is for a VIP, and an allow list lacks its source.
    NotAllowed,
}

impl Steered {
    /// Returns the counter of a packet that the lists drop, and the reason.
    pub const fn dropped(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Denied => {
                Some(("denied", "a deny list of its VIP, or of all VIPs, has its source"))
            }
            Self::NotAllowed => {
                Some(("not_allowed", "an allow list of its VIP, or of all VIPs, lacks its source"))
            }
            Self::ToVip | Self::Return | Self::Kernel => None,
        }
    }
}

/// The program's rules, indexed for look-ups.
#[derive(Debug, Default)]
pub struct SteerModel {
    vips: HashSet<ListenKey>,
    /// All VIPs, including those of `vips`.
    networks: Networks,
    /// Full-NAT sources.
    sources: Networks,
    tunnels: Networks,
    /// Tunnel sources with the port of answers.
    answers: Networks,
    gue_port: u16,
    returns: HashSet<ListenKey>,
    /// Protocols and port ranges of the backends by address; `None` for an entry of `returns`.
    return_addresses: HashMap<Address, Vec<(Protocol, Option<PortRange>)>>,
    locals: HashSet<Address>,
    checks: Vec<AccessCheck>,
    lists: ModelLists,
}

/// Deny and allow lists.
#[derive(Debug, Clone, Default)]
pub struct ModelLists {
    /// Lists of all VIPs.
    pub global: AccessLists,
    /// Lists of single VIPs.
    pub own: HashMap<VipId, AccessLists>,
}

/// Protocols and port ranges by network.
#[derive(Debug, Default)]
struct Networks {
    said: HashMap<Network, Vec<(Protocol, PortRange)>>,
    lens: BTreeSet<u8>,
}

impl Networks {
    fn add(&mut self, network: Network, wanted: &[(Protocol, PortRange)]) {
        self.said.entry(network).or_default().extend(wanted);
        self.lens.insert(network.len());
    }

    /// Iterates over the entries of all networks that contain an address.
    fn around(&self, address: Address) -> impl Iterator<Item = &[(Protocol, PortRange)]> {
        let networks = self.lens.iter().map(move |&len| Network::of(address, len));
        networks.filter_map(|network| self.said.get(&network)).map(Vec::as_slice)
    }

    fn contain(&self, address: Address) -> bool {
        self.around(address).next().is_some()
    }
}

/// An address, with the protocol and, if known, the port.
#[derive(Debug, Clone, Copy)]
struct Service {
    address: Address,
    /// Protocol number of the IP header.
    protocol: u8,
    port: Option<u16>,
}

impl Service {
    /// Whether the map contains the exact port, or the wildcard port 0.
    fn is_in(self, map: &HashSet<ListenKey>) -> bool {
        let Some((protocol, port)) = Protocol::from_number(self.protocol).zip(self.port) else {
            return false;
        };
        let key = |port| ListenKey { address: self.address, port, protocol };
        map.contains(&key(port)) || map.contains(&key(0))
    }
}

/// Parsed headers of a packet.
struct Packet<'p> {
    source: Service,
    destination: Service,
    /// Protocols that cause a redirect by destination address alone, if a rule there has one of
    /// them.
    opaque: &'static [Protocol],
    /// A whole ICMP message.
    icmp: Option<&'p [u8]>,
    fragment: bool,
    multicast: bool,
    v4: bool,
}

impl SteerModel {
    /// Creates the model of a program with these rules.
    pub fn new(rules: &SteerRules) -> Self {
        let mut model = Self {
            vips: rules.vips.iter().copied().collect(),
            gue_port: rules.gue_port,
            returns: rules.returns.iter().copied().collect(),
            locals: rules.locals.iter().copied().collect(),
            checks: rules.checks.clone(),
            ..Self::default()
        };
        for &ListenKey { address, port, protocol } in &rules.vips {
            let ports = if port == 0 { PortRange::ALL } else { PortRange::single(port) };
            model.networks.add(Network::single(address), &[(protocol, ports)]);
        }
        for &Listen { network, protocol, ports } in &rules.networks {
            model.networks.add(network, &[(protocol, ports)]);
        }
        for &(network, ports) in &rules.sources {
            model.sources.add(network, &[(Protocol::Tcp, ports), (Protocol::Udp, ports)]);
        }
        for &network in &rules.tunnels {
            model.tunnels.add(network, &[]);
            if rules.answers {
                let answers = (Protocol::Udp, PortRange::single(rules.gue_port));
                model.answers.add(network, &[answers]);
            }
        }
        let single = rules.returns.iter().map(|key| (key.address, key.protocol, None));
        let ranges = &rules.return_ranges;
        let ranges = ranges.iter().map(|l| (l.network.address(), l.protocol, Some(l.ports)));
        for (address, protocol, ports) in single.chain(ranges) {
            model.return_addresses.entry(address).or_default().push((protocol, ports));
        }
        model
    }

    /// Sets the lists.
    #[must_use]
    pub fn with_lists(self, lists: ModelLists) -> Self {
        Self { lists, ..self }
    }

    /// Returns the program's decision on a packet, for a NIC with this MAC.
    pub fn decide(&self, nic_mac: [u8; 6], packet: &[u8]) -> Steered {
        let Some(packet) = read_packet(nic_mac, packet) else { return Steered::Kernel };
        let decision = match packet.icmp {
            Some(message) => self.judge_icmp(&packet, message),
            None if self.is_for_vip(&packet) => Steered::ToVip,
            None if self.is_return(&packet) => Steered::Return,
            None if self.is_in_area(&packet) => Steered::ToVip,
            None => Steered::Kernel,
        };
        match decision {
            Steered::ToVip => self.judge_source(&packet),
            other => other,
        }
    }

    /// Applies the lists to the source of a packet for a VIP.
    fn judge_source(&self, packet: &Packet<'_>) -> Steered {
        let Some(vip) = self.checked_vip(packet) else { return Steered::ToVip };
        let own = vip.and_then(|vip| self.lists.own.get(&vip));
        let lists = || std::iter::once(&self.lists.global).chain(own);
        let is_in = |list: &Prefixes| {
            // A packet may be IPv6 with a mapped address, which IPv4's prefixes do not contain.
            let prefixes = list.iter().filter(|prefix| prefix.is_v4() == packet.v4);
            prefixes.into_iter().any(|prefix| prefix.contains(packet.source.address))
        };
        if lists().any(|lists| is_in(&lists.deny)) {
            return Steered::Denied;
        }
        // Errors about the packets of allowed clients come from any router.
        let is_error = packet.icmp.and_then(<[u8]>::first);
        let is_error = is_error.and_then(|kind| is_icmp_error(packet.source.protocol, *kind));
        let lacks = |list: &Prefixes| !list.is_empty() && !is_in(list);
        match is_error != Some(true) && lists().any(|lists| lacks(&lists.allow)) {
            true => Steered::NotAllowed,
            false => Steered::ToVip,
        }
    }

    /// Returns the VIP whose lists apply to a packet, or `Some(None)` if only those of all VIPs do;
    /// `None`: none do.
    fn checked_vip(&self, packet: &Packet<'_>) -> Option<Option<VipId>> {
        let Service { address, port, .. } = packet.destination;
        let protocol = Protocol::from_number(packet.destination.protocol);
        let key = |port| Some(ListenKey { address, port, protocol: protocol? });
        let listens = |port| key(port).filter(|key| self.vips.contains(key));
        if let Some(key) = port.and_then(|port| listens(port).or_else(|| listens(0))) {
            let check = self.checks.iter().find(|check| exact(check.listen) == Some(key))?;
            return Some(Some(check.vip));
        }
        let by_area = packet.icmp.is_none()
            && self.wants(address, |wanted, ports| match (protocol, port) {
                (None, _) => wanted == Protocol::Any,
                (Some(_), None) => false,
                (Some(protocol), Some(port)) => {
                    wanted == Protocol::Any || (wanted == protocol && ports.contains(port))
                }
            });
        let mut around = self.checks.iter().filter(|check| {
            check.listen.network.contains(address) && !(by_area && exact(check.listen).is_some())
        });
        let first = around.next()?;
        let alike = |other: &AccessCheck| {
            other.vip == first.vip || first.lists.is_some() && other.lists == first.lists
        };
        Some((by_area || around.all(alike)).then_some(first.vip))
    }

    /// Iterates over the VIP entries of an address. A local address stays with the kernel, unless
    /// it is a VIP by itself.
    fn vips_of(&self, address: Address) -> impl Iterator<Item = &[(Protocol, PortRange)]> {
        let single = Network::single(address);
        let kernels = self.locals.contains(&address) && !self.networks.said.contains_key(&single);
        self.networks.around(address).filter(move |_| !kernels)
    }

    /// Whether a VIP or full-NAT source entry of an address satisfies `is`.
    fn wants(&self, address: Address, is: impl Fn(Protocol, PortRange) -> bool) -> bool {
        let local = self.sources.around(address).chain(self.answers.around(address));
        let mut all = self.vips_of(address).chain(local).flatten();
        all.any(|&(protocol, ports)| is(protocol, ports))
    }

    fn is_for_vip(&self, packet: &Packet<'_>) -> bool {
        let Packet { destination, opaque, .. } = packet;
        destination.is_in(&self.vips)
            || self.wants(destination.address, |protocol, _| opaque.contains(&protocol))
    }

    fn is_in_area(&self, packet: &Packet<'_>) -> bool {
        // Packets without a port have been judged by their address.
        let Service { address, protocol, port: Some(port) } = packet.destination else {
            return false;
        };
        self.wants(address, |wanted, ports| {
            wanted == Protocol::Any || (wanted as u8 == protocol && ports.contains(port))
        })
    }

    /// Whether a NAT backend has this address and port; for a fragment, any port of the protocol.
    fn is_backend(&self, service: Service, fragment: bool) -> bool {
        let there = self.return_addresses.get(&service.address);
        let mut there = there.into_iter().flatten();
        service.is_in(&self.returns)
            || there.any(|&(protocol, ports)| {
                let in_range = ports.zip(service.port).is_some_and(|(p, port)| p.contains(port));
                protocol as u8 == service.protocol && (fragment || in_range)
            })
    }

    fn is_return(&self, packet: &Packet<'_>) -> bool {
        !packet.multicast
            && self.is_backend(packet.source, packet.fragment)
            && !self.locals.contains(&packet.destination.address)
    }

    fn judge_icmp(&self, packet: &Packet<'_>, message: &[u8]) -> Steered {
        let Service { address, protocol, .. } = packet.destination;
        let Some(([kind, ..], quoted)) = message.split_first_chunk::<ICMP_LEN>() else {
            return Steered::Kernel;
        };
        let Some(is_error) = is_icmp_error(protocol, *kind) else { return Steered::Kernel };
        if self.vips_of(address).next().is_some() || (is_error && self.sources.contain(address)) {
            return Steered::ToVip;
        }
        if !is_error || packet.multicast {
            return Steered::Kernel;
        }
        let quote = match protocol {
            number::ICMP => read_quoted_ipv4(quoted),
            _ => read_quoted_ipv6(quoted),
        };
        match quote {
            Some((to, _)) if self.tunnels.contain(address) && self.is_tunnels(to) => Steered::ToVip,
            Some((to, fragment))
                if self.is_backend(to, fragment) && !self.locals.contains(&address) =>
            {
                Steered::Return
            }
            _ => Steered::Kernel,
        }
    }

    /// Whether a packet to `to` is one of our tunnel packets.
    fn is_tunnels(&self, to: Service) -> bool {
        let gue = self.gue_port != 0 && to.port == Some(self.gue_port);
        match to.protocol {
            number::IPIP | number::IPV6 => true,
            protocol => protocol == Protocol::Udp as u8 && gue,
        }
    }
}

/// Whether an ICMP message is an error (or an echo request); `None` for all other messages.
fn is_icmp_error(protocol: u8, kind: u8) -> Option<bool> {
    match (protocol, kind) {
        (number::ICMP, 8) | (number::ICMPV6, 128) => Some(false),
        (number::ICMP, 3 | 11 | 12) | (number::ICMPV6, 1..=4) => Some(true),
        _ => None,
    }
}

/// Parses a packet; `None` if it stays in the kernel whatever its addresses.
fn read_packet(nic_mac: [u8; 6], packet: &[u8]) -> Option<Packet<'_>> {
    match skip_link(nic_mac, packet)? {
        (ethertype::IPV4, network) => read_ipv4(network),
        (ethertype::IPV6, network) => read_ipv6(network),
        _ => None,
    }
}

/// Returns the ethertype and the network header; `None` if the packet is truncated, or the frame is
/// not for this NIC.
fn skip_link(nic_mac: [u8; 6], packet: &[u8]) -> Option<(u16, &[u8])> {
    let (ethernet, mut rest) = packet.split_first_chunk::<14>()?;
    let (destination, [.., t0, t1]) = ethernet.split_first_chunk::<6>()? else { return None };
    if *destination != nic_mac {
        return None;
    }
    let mut protocol = u16::from_be_bytes([*t0, *t1]);
    for _ in 0..MAX_TAGS {
        if !matches!(protocol, ethertype::VLAN | ethertype::QINQ) {
            break;
        }
        let ([_, _, t0, t1], behind) = rest.split_first_chunk()?;
        (protocol, rest) = (u16::from_be_bytes([*t0, *t1]), behind);
    }
    Some((protocol, rest))
}

/// Returns the protocols of rules that match a packet without ports.
const fn opaque(protocol: u8) -> &'static [Protocol] {
    match Protocol::from_number(protocol) {
        Some(Protocol::Tcp) => &[Protocol::Any, Protocol::Tcp],
        Some(Protocol::Udp) => &[Protocol::Any, Protocol::Udp],
        _ => &[Protocol::Any],
    }
}

impl<'p> Packet<'p> {
    fn new(source: Address, destination: Address, protocol: u8, multicast: bool) -> Self {
        let service = |address| Service { address, protocol, port: None };
        Self {
            source: service(source),
            destination: service(destination),
            opaque: &[],
            icmp: None,
            fragment: false,
            multicast,
            v4: true,
        }
    }

    /// Sets the ports; a packet with truncated ports is judged by its address.
    fn with_ports(mut self, transport: &'p [u8]) -> Self {
        match ports(transport) {
            Some((source, destination)) => {
                self.source.port = Some(source);
                self.destination.port = Some(destination);
            }
            None => self.opaque = opaque(self.destination.protocol),
        }
        self
    }
}

/// Returns source and destination port.
fn ports(transport: &[u8]) -> Option<(u16, u16)> {
    let [s0, s1, d0, d1] = *transport.first_chunk()?;
    Some((u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])))
}

fn has_ports(protocol: u8) -> bool {
    Protocol::from_number(protocol).is_some()
}

fn read_ipv4(network: &[u8]) -> Option<Packet<'_>> {
    let [v, _, _, _, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        *network.first_chunk::<20>()?;
    let (source, destination) = ([s0, s1, s2, s3], [d0, d1, d2, d3]);
    let (source, destination) = (Address::from_v4(source), Address::from_v4(destination));
    let mut packet = Packet::new(source, destination, protocol, d0 >= 0xe0);
    let len = usize::from(v & 0xf) * 4;
    let transport = network.get(len..).unwrap_or_default();
    let fragment = u16::from_be_bytes([f0, f1]);
    packet.fragment = fragment & (IPV4_FRAGMENT_OFFSET | IPV4_MORE_FRAGMENTS) != 0;
    if protocol == number::ICMP {
        packet.icmp = Some(transport);
        return (!packet.fragment && len >= 20).then_some(packet);
    }
    if !has_ports(protocol) || packet.fragment || len < 20 {
        packet.opaque = opaque(protocol);
    }
    let readable = has_ports(protocol) && fragment & IPV4_FRAGMENT_OFFSET == 0 && len >= 20;
    Some(if readable { packet.with_ports(transport) } else { packet })
}

fn read_ipv6(network: &[u8]) -> Option<Packet<'_>> {
    let (header, rest) = network.split_first_chunk::<40>()?;
    let ([_, _, _, _, _, _, next, _], addresses) = header.split_first_chunk::<8>()?;
    let (source, destination) = addresses.split_first_chunk::<16>()?;
    let destination = destination.first_chunk::<16>()?;
    let [first, ..] = *destination;
    let (source, destination) = (Address::from_v6(*source), Address::from_v6(*destination));
    let Skipped { next, behind, fragment } = skip_extensions(*next, rest);
    let mut packet = Packet::new(source, destination, next, first == 0xff);
    (packet.v4, packet.fragment) = (false, fragment.is_some());
    if number::EXTENSIONS.contains(&next) {
        packet.opaque = ANY;
    } else if !has_ports(next) || packet.fragment {
        packet.opaque = opaque(next);
    }
    let has_transport = fragment.is_none_or(|offset| offset == 0);
    match next {
        number::ICMPV6 if packet.fragment => None,
        number::ICMPV6 => Some(Packet { icmp: Some(behind), ..packet }),
        next if has_ports(next) && has_transport => Some(packet.with_ports(behind)),
        _ => Some(packet),
    }
}

/// What is behind IPv6 extension headers.
struct Skipped<'p> {
    /// Number of the header there.
    next: u8,
    /// The bytes there.
    behind: &'p [u8],
    /// Offset of the fragment, if there was a fragment header.
    fragment: Option<u16>,
}

fn skip_extensions(next: u8, behind: &[u8]) -> Skipped<'_> {
    let mut skipped = Skipped { next, behind, fragment: None };
    for _ in 0..MAX_EXTENSIONS {
        let Some((&[next, len, o0, o1, ..], rest)) = skipped.behind.split_first_chunk::<8>() else {
            break;
        };
        match (skipped.next, skipped.fragment) {
            (number::HOP_BY_HOP | number::DESTINATION, None | Some(0)) => {
                skipped.behind = rest.get(usize::from(len) * 8..).unwrap_or_default();
            }
            (number::FRAGMENT, None) => {
                skipped.fragment = Some(u16::from_be_bytes([o0, o1]) & IPV6_FRAGMENT_OFFSET);
                skipped.behind = rest;
            }
            _ => break,
        }
        skipped.next = next;
    }
    skipped
}

/// Returns the destination of a quoted packet, and whether it was a fragment.
fn read_quoted_ipv4(quoted: &[u8]) -> Option<(Service, bool)> {
    let [v, _, _, _, _, _, f0, f1, _, protocol, _, _, _, _, _, _, d0, d1, d2, d3] =
        *quoted.first_chunk::<20>()?;
    let len = usize::from(v & 0xf) * 4;
    let fragment = u16::from_be_bytes([f0, f1]);
    let address = Address::from_v4([d0, d1, d2, d3]);
    let transport = quoted.get(len..).filter(|_| fragment & IPV4_FRAGMENT_OFFSET == 0);
    let to = Service { address, protocol, port: quoted_port(protocol, transport) };
    let is_fragment = fragment & (IPV4_FRAGMENT_OFFSET | IPV4_MORE_FRAGMENTS) != 0;
    (len >= 20).then_some((to, is_fragment))
}

fn read_quoted_ipv6(quoted: &[u8]) -> Option<(Service, bool)> {
    let (header, rest) = quoted.split_first_chunk::<40>()?;
    let ([_, _, _, _, _, _, next, ..], address) = header.split_first_chunk::<24>()?;
    let address = Address::from_v6(*address.first_chunk()?);
    if *next != number::FRAGMENT {
        let port = quoted_port(*next, Some(rest));
        return Some((Service { address, protocol: *next, port }, false));
    }
    let ([next, _, o0, o1, ..], behind) = rest.split_first_chunk::<8>()?;
    let is_first = u16::from_be_bytes([*o0, *o1]) & IPV6_FRAGMENT_OFFSET == 0;
    let port = quoted_port(*next, is_first.then_some(behind));
    Some((Service { address, protocol: *next, port }, true))
}

/// Returns the destination port of a quoted packet, if it is quoted.
fn quoted_port(protocol: u8, transport: Option<&[u8]>) -> Option<u16> {
    let transport = transport.filter(|_| has_ports(protocol))?;
    ports(transport).map(|(_, destination)| destination)
}
