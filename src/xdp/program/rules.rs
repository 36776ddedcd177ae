//! The steering rules in the form of the XDP program's maps.
//!
//! ```text
//!  vips, returns      (address, port, protocol)      looked up first
//!  areas              prefix  -> group, flags        everything else about destinations
//!  return_addresses   address -> group, flags        everything else about sources
//!  port_ranges        (group, protocol, ports)       port ranges of both
//! ```
//!
//! The program looks up the longest prefix only, so every area includes the flags and port ranges
//! of the enclosing areas. Areas with the same ranges share a *group*. A group keeps its number as
//! long as its ranges do not change: other ranges form a new group, which is complete before an
//! area refers to it.

use std::collections::{BTreeMap, BTreeSet};

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, MapError};

use super::access::{Words, rates};
use super::error::{ProgramError, map_error};
use crate::net::{
    Address, Listen, ListenKey, MAX_STEERED, Network, PortRange, Protocol, SteerRules,
};
use crate::xdp::object::Object;

// Sizes of the maps; keep in step with steer.bpf.c.
const MAX_SERVICES: usize = MAX_STEERED;
const MAX_AREAS: usize = 65_536;
const MAX_PORT_RANGES: usize = MAX_STEERED;
const MAX_LOCALS: usize = 4096;

/// `struct service` of steer.bpf.c.
type ServiceKey = [u8; 20];
/// `struct address` of steer.bpf.c.
type AddressKey = [u8; 16];
/// `struct prefix` of steer.bpf.c: bits, address.
type PrefixKey = (u32, [u8; 16]);
/// `struct port_prefix` of steer.bpf.c: bits; group, protocol, 0, port.
type PortKey = (u32, [u8; 8]);
/// `struct area` of steer.bpf.c.
type Area = [u8; 16];

/// Flags of `struct area`.
mod flag {
    pub const HAS_TCP: u16 = 0x01;
    pub const HAS_UDP: u16 = 0x02;
    pub const ALL_TCP: u16 = 0x04;
    pub const ALL_UDP: u16 = 0x08;
    pub const ALL_PROTOCOLS: u16 = 0x10;
    pub const ICMP: u16 = 0x20;
    pub const ERRORS: u16 = 0x40;
    pub const TUNNEL: u16 = 0x80;
}

/// Port ranges of a group, as ordered (protocol, range) pairs.
type Ranges = BTreeSet<(u8, PortRange)>;

/// Contents of the rule maps.
#[derive(Debug, Default)]
pub(super) struct Rules {
    vips: BTreeMap<ServiceKey, u32>,
    areas: BTreeMap<PrefixKey, Area>,
    port_ranges: BTreeMap<PortKey, u32>,
    returns: BTreeMap<ServiceKey, u32>,
    return_addresses: BTreeMap<AddressKey, Area>,
    locals: BTreeMap<AddressKey, u32>,
    /// Limits for each source, by slot: packets, SYNs.
    rates: BTreeMap<u32, [u32; 2]>,
    groups: Groups,
}

/// Numbers of the groups, from 1.
#[derive(Debug, Default)]
struct Groups {
    numbers: BTreeMap<Ranges, u32>,
    last: u32,
}

impl Groups {
    /// Returns the group number of `ranges`: the one in `old` if there is one, else a new one; 0
    /// without ranges.
    fn after(&mut self, old: &Self, ranges: Ranges) -> u32 {
        if ranges.is_empty() {
            return 0;
        }
        self.last = self.last.max(old.last);
        let last = &mut self.last;
        let fresh = || {
            *last += 1;
            *last
        };
        let number = old.numbers.get(&ranges).copied();
        *self.numbers.entry(ranges).or_insert_with(|| number.unwrap_or_else(fresh))
    }
}

/// Flags and port ranges of an address or a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Want {
    flags: u16,
    ranges: Ranges,
}

impl Want {
    fn flags(flags: u16) -> Self {
        Self { flags, ranges: Ranges::new() }
    }

    fn ports(mut self, protocol: Protocol, ports: PortRange) -> Self {
        let (has, all) = match protocol {
            Protocol::Tcp => (flag::HAS_TCP, flag::ALL_TCP),
            Protocol::Udp => (flag::HAS_UDP, flag::ALL_UDP),
            Protocol::Any => (0, flag::ALL_PROTOCOLS),
        };
        self.flags |= has;
        if protocol == Protocol::Any || ports == PortRange::ALL {
            self.flags |= all;
        } else {
            self.ranges.insert((protocol as u8, ports));
        }
        self
    }

    fn add(&mut self, other: &Self) {
        self.flags |= other.flags;
        self.ranges.extend(&other.ranges);
    }
}

/// Flags and port ranges by network.
#[derive(Debug, Default)]
struct Wants {
    said: BTreeMap<Network, Want>,
    /// Prefix lengths of the networks.
    lens: BTreeSet<u8>,
}

impl Wants {
    fn add(&mut self, network: Network, want: &Want) {
        self.said.entry(network).or_default().add(want);
        self.lens.insert(network.len());
    }

    /// Iterates over the entries of a network and of all networks around it.
    fn within(&self, network: Network) -> impl Iterator<Item = &Want> {
        let wider = self.lens.iter().copied().take_while(move |&len| len <= network.len());
        wider.filter_map(move |len| self.said.get(&Network::of(network.address(), len)))
    }
}

/// Returns the entries of the VIPs.
fn vips(rules: &SteerRules) -> Wants {
    let mut wants = Wants::default();
    for vip in &rules.vips {
        let want = Want::flags(flag::ICMP | has(vip.protocol));
        wants.add(Network::single(vip.address), &want);
    }
    for Listen { network, protocol, ports } in &rules.networks {
        wants.add(*network, &Want::flags(flag::ICMP).ports(*protocol, *ports));
    }
    wants
}

/// Returns the entries for traffic to local addresses: full-NAT sources and tunnel sources.
fn own(rules: &SteerRules) -> Wants {
    let mut wants = Wants::default();
    for (network, ports) in &rules.sources {
        let want = Want::flags(flag::ERRORS);
        wants.add(*network, &want.ports(Protocol::Tcp, *ports).ports(Protocol::Udp, *ports));
    }
    for network in &rules.tunnels {
        let want = Want::flags(flag::TUNNEL);
        let answers = PortRange::single(rules.gue_port);
        wants.add(*network, &if rules.answers { want.ports(Protocol::Udp, answers) } else { want });
    }
    wants
}

/// Returns the flags and port ranges of each network, including those of the networks around it.
///
/// Cost: one look-up per network and distinct prefix length.
fn areas(rules: &SteerRules) -> BTreeMap<Network, Want> {
    let (vips, own) = (vips(rules), own(rules));
    let locals: BTreeSet<Network> = rules.locals.iter().copied().map(Network::single).collect();
    let within_vips = locals.iter().filter(|&&local| vips.within(local).next().is_some());
    let all = vips.said.keys().chain(own.said.keys()).chain(within_vips).copied();
    let want = |network: Network| {
        let mut want = Want::default();
        // A local address stays with the kernel, unless it is a VIP by itself.
        if !locals.contains(&network) || vips.said.contains_key(&network) {
            vips.within(network).for_each(|wider| want.add(wider));
        }
        own.within(network).for_each(|wider| want.add(wider));
        (network, want)
    };
    all.map(want).collect()
}

impl Rules {
    /// Converts `rules` to maps, which will replace `old`.
    pub(super) fn new(rules: &SteerRules, old: &Self) -> Self {
        let words = Words::new(rules);
        let mut new = Self {
            vips: rules.vips.iter().map(|key| (service(key), words.of_key(key))).collect(),
            returns: rules.returns.iter().map(|key| (service(key), 1)).collect(),
            rates: rates(rules),
            locals: rules.locals.iter().map(|address| (address.octets(), 1)).collect(),
            ..Self::default()
        };
        for (network, want) in areas(rules) {
            let area = new.area(want, rules.gue_port, words.of_area(network), &old.groups);
            new.areas.insert((network.len().into(), network.address().octets()), area);
        }
        for (address, want) in return_addresses(rules) {
            let area = new.area(want, 0, [0; 2], &old.groups);
            new.return_addresses.insert(address.octets(), area);
        }
        new.port_ranges = new.groups.numbers.iter().flat_map(port_keys).collect();
        new
    }

    /// Returns `struct area`, and registers its group.
    fn area(&mut self, want: Want, gue_port: u16, access: [u32; 2], old: &Groups) -> Area {
        let group = self.groups.after(old, want.ranges).to_ne_bytes();
        let gue_port = if want.flags & flag::TUNNEL == 0 { 0 } else { gue_port };
        let ([g0, g1, g2, g3], [f0, f1]) = (group, want.flags.to_ne_bytes());
        let [p0, p1] = gue_port.to_be_bytes();
        let [[a0, a1, a2, a3], [o0, o1, o2, o3]] = access.map(u32::to_ne_bytes);
        [g0, g1, g2, g3, f0, f1, p0, p1, a0, a1, a2, a3, o0, o1, o2, o3]
    }

    pub(super) fn check(&self) -> Result<(), ProgramError> {
        for (map, got, max, what) in [
            ("vips", self.vips.len(), MAX_SERVICES, "VIP ports"),
            ("areas", self.areas.len(), MAX_AREAS, "VIP addresses and prefixes"),
            ("port_ranges", self.port_ranges.len(), MAX_PORT_RANGES, "ranges of ports"),
            ("returns", self.returns.len(), MAX_SERVICES, "NAT backends"),
            ("return_addresses", self.return_addresses.len(), MAX_SERVICES, "NAT backends"),
            ("locals", self.locals.len(), MAX_LOCALS, "addresses on this box"),
        ] {
            if got > max {
                return Err(ProgramError::TooManyRules { map, got, max, what });
            }
        }
        Ok(())
    }

    /// Changes the maps from `self` to `wanted`. Additions come first, with port ranges before the
    /// areas that refer to them; removals follow, with port ranges last.
    pub(super) fn change_to(
        &mut self,
        wanted: Self,
        object: &mut Object,
        interface: &str,
    ) -> Result<(), ProgramError> {
        // Before the access words that refer to them; a limit without such a word has no effect.
        set_rates(&wanted.rates, &mut self.rates, object, interface)?;
        for adding in [true, false] {
            let mut maps = Maps { object, interface, adding };
            maps.hash("locals", MAX_LOCALS, &wanted.locals, &mut self.locals)?;
            if adding {
                maps.ranges(&wanted.port_ranges, &mut self.port_ranges)?;
            }
            // Single ports before the areas, which may lose a range that contained them.
            maps.hash("vips", MAX_SERVICES, &wanted.vips, &mut self.vips)?;
            maps.areas(&wanted.areas, &mut self.areas)?;
            maps.hash("returns", MAX_SERVICES, &wanted.returns, &mut self.returns)?;
            let (new, old) = (&wanted.return_addresses, &mut self.return_addresses);
            maps.hash("return_addresses", MAX_SERVICES, new, old)?;
            if !adding {
                maps.ranges(&wanted.port_ranges, &mut self.port_ranges)?;
            }
        }
        self.groups = wanted.groups;
        Ok(())
    }
}

/// Sets the limits that differ from those in the map.
fn set_rates(
    wanted: &BTreeMap<u32, [u32; 2]>,
    loaded: &mut BTreeMap<u32, [u32; 2]>,
    object: &mut Object,
    interface: &str,
) -> Result<(), ProgramError> {
    let new: Vec<_> =
        wanted.iter().filter(|(slot, rate)| loaded.get(*slot) != Some(*rate)).collect();
    if new.is_empty() {
        return Ok(());
    }
    let rates = object.map_mut("rates").and_then(Array::<_, [u32; 2]>::try_from);
    let mut rates = rates.map_err(map_error(interface, "change entries", "rates"))?;
    for (slot, rate) in new {
        rates.set(*slot, rate, 0).map_err(map_error(interface, "change an entry", "rates"))?;
        loaded.insert(*slot, *rate);
    }
    Ok(())
}

/// Returns the flags and port ranges by address of a NAT backend.
fn return_addresses(rules: &SteerRules) -> BTreeMap<Address, Want> {
    let mut wants: BTreeMap<Address, Want> = BTreeMap::new();
    for key in &rules.returns {
        wants.entry(key.address).or_default().flags |= has(key.protocol);
    }
    for Listen { network, protocol, ports } in &rules.return_ranges {
        let want = Want::default().ports(*protocol, *ports);
        wants.entry(network.address()).or_default().add(&want);
    }
    wants
}

/// Returns the flag of a protocol: `HAS_TCP`, `HAS_UDP` or `ALL_PROTOCOLS`.
const fn has(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => flag::HAS_TCP,
        Protocol::Udp => flag::HAS_UDP,
        Protocol::Any => flag::ALL_PROTOCOLS,
    }
}

/// Returns the map key of a service: address, port in network byte order, protocol, 0.
fn service(key: &ListenKey) -> ServiceKey {
    let mut bytes = [0; 20];
    let tail = [key.port.to_be_bytes(), [key.protocol as u8, 0]];
    let source = key.address.octets().into_iter().chain(tail.into_iter().flatten());
    bytes.iter_mut().zip(source).for_each(|(to, from)| *to = from);
    bytes
}

/// Returns the entries of a group in `port_ranges`.
fn port_keys((ranges, number): (&Ranges, &u32)) -> Vec<(PortKey, u32)> {
    let [g0, g1, g2, g3] = number.to_ne_bytes();
    let keys = ranges.iter().flat_map(|&(protocol, range)| {
        range.prefixes().map(move |(port, bits)| {
            let [p0, p1] = port.to_be_bytes();
            // All fields but the port are compared in full.
            ((48 + u32::from(bits), [g0, g1, g2, g3, protocol, 0, p0, p1]), 1)
        })
    });
    keys.collect()
}

/// The maps during one pass, which either adds or removes entries.
struct Maps<'m> {
    object: &'m mut Object,
    interface: &'m str,
    adding: bool,
}

impl Maps<'_> {
    fn hash<K: Pod + Ord, V: Pod + PartialEq>(
        &mut self,
        name: &'static str,
        capacity: usize,
        wanted: &BTreeMap<K, V>,
        loaded: &mut BTreeMap<K, V>,
    ) -> Result<(), ProgramError> {
        let entries = self.object.map_mut(name).and_then(HashMap::<_, K, V>::try_from);
        let entries = entries.map_err(map_error(self.interface, "change entries", name))?;
        change(self.interface, name, self.adding, capacity, entries, wanted, loaded)
    }

    fn ranges(
        &mut self,
        wanted: &BTreeMap<PortKey, u32>,
        loaded: &mut BTreeMap<PortKey, u32>,
    ) -> Result<(), ProgramError> {
        self.trie("port_ranges", MAX_PORT_RANGES, wanted, loaded)
    }

    fn areas(
        &mut self,
        wanted: &BTreeMap<PrefixKey, Area>,
        loaded: &mut BTreeMap<PrefixKey, Area>,
    ) -> Result<(), ProgramError> {
        self.trie("areas", MAX_AREAS, wanted, loaded)
    }

    fn trie<K: Pod + Ord, V: Pod + PartialEq>(
        &mut self,
        name: &'static str,
        capacity: usize,
        wanted: &BTreeMap<(u32, K), V>,
        loaded: &mut BTreeMap<(u32, K), V>,
    ) -> Result<(), ProgramError> {
        let entries = self.object.map_mut(name).and_then(LpmTrie::<_, K, V>::try_from);
        let entries = entries.map_err(map_error(self.interface, "change entries", name))?;
        change(self.interface, name, self.adding, capacity, entries, wanted, loaded)
    }
}

/// A map with changeable entries.
trait Entries<K, V> {
    fn put(&mut self, key: &K, value: &V) -> Result<(), MapError>;
    fn take(&mut self, key: &K) -> Result<(), MapError>;
}

impl<K: Pod, V: Pod> Entries<K, V> for HashMap<&mut MapData, K, V> {
    fn put(&mut self, key: &K, value: &V) -> Result<(), MapError> {
        self.insert(key, value, 0)
    }

    fn take(&mut self, key: &K) -> Result<(), MapError> {
        self.remove(key)
    }
}

impl<K: Pod, V: Pod> Entries<(u32, K), V> for LpmTrie<&mut MapData, K, V> {
    fn put(&mut self, (bits, key): &(u32, K), value: &V) -> Result<(), MapError> {
        self.insert(&Key::new(*bits, *key), value, 0)
    }

    fn take(&mut self, (bits, key): &(u32, K)) -> Result<(), MapError> {
        self.remove(&Key::new(*bits, *key))
    }
}

/// Adds the entries of `wanted` that `loaded` lacks or has with another value, or removes the
/// entries that `wanted` lacks.
fn change<K: Copy + Ord, V: Copy + PartialEq>(
    interface: &str,
    name: &'static str,
    adding: bool,
    capacity: usize,
    mut entries: impl Entries<K, V>,
    wanted: &BTreeMap<K, V>,
    loaded: &mut BTreeMap<K, V>,
) -> Result<(), ProgramError> {
    let new: Vec<_> = wanted
        .iter()
        .filter(|(key, value)| loaded.get(*key) != Some(*value))
        .map(|(key, value)| (*key, *value))
        .collect();
    // Old and new entries exceed the capacity together, so the old ones are removed first.
    let crowded = adding && loaded.len() + new.len() > capacity;
    if !adding || crowded {
        let gone: Vec<_> =
            loaded.keys().filter(|key| !wanted.contains_key(*key)).copied().collect();
        for key in gone {
            entries.take(&key).map_err(map_error(interface, "remove an entry", name))?;
            loaded.remove(&key);
        }
    }
    for (key, value) in new {
        entries.put(&key, &value).map_err(map_error(interface, "add an entry", name))?;
        loaded.insert(key, value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap_or(Network::single(Address::from_v4([0; 4])))
    }

    fn listen(text: &str, protocol: Protocol, first: u16, last: u16) -> Listen {
        Listen { network: network(text), protocol, ports: PortRange { first, last } }
    }

    fn new(rules: &SteerRules) -> Rules {
        Rules::new(rules, &Rules::default())
    }

    /// Returns the flags and group of an area.
    fn area(rules: &Rules, text: &str) -> Option<(u16, u32)> {
        let network = network(text);
        let key = (network.len().into(), network.address().octets());
        let [g0, g1, g2, g3, f0, f1, ..] = *rules.areas.get(&key)?;
        Some((u16::from_ne_bytes([f0, f1]), u32::from_ne_bytes([g0, g1, g2, g3])))
    }

    #[test]
    fn keys_are_laid_out_like_the_programs() {
        let key = ListenKey {
            address: Address::from_v4([192, 0, 2, 10]),
            port: 443,
            protocol: Protocol::Tcp,
        };
        assert_eq!(
            service(&key),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 10, 1, 187, 6, 0]
        );
        let ranges = Ranges::from([(6, PortRange { first: 0x1f40, last: 0x1f43 })]);
        let [a, b, c, d] = 7u32.to_ne_bytes();
        assert_eq!(port_keys((&ranges, &7)), [((62, [a, b, c, d, 6, 0, 0x1f, 0x40]), 1)]);
    }

    #[test]
    fn an_address_has_one_entry_for_all_its_protocols() {
        let address = Address::from_v6([7; 16]);
        let key = |port, protocol| ListenKey { address, port, protocol };
        let rules = SteerRules {
            vips: vec![key(53, Protocol::Udp), key(53, Protocol::Tcp), key(80, Protocol::Tcp)],
            ..SteerRules::default()
        };
        let rules = new(&rules);
        assert_eq!((rules.vips.len(), rules.areas.len()), (3, 1));
        let single = Network::single(address).to_string();
        assert_eq!(area(&rules, &single), Some((flag::HAS_TCP | flag::HAS_UDP | flag::ICMP, 0)));
    }

    #[test]
    fn an_area_has_what_the_areas_around_it_have() {
        let rules = SteerRules {
            vips: vec![ListenKey {
                address: Address::from_v4([192, 0, 2, 10]),
                port: 443,
                protocol: Protocol::Tcp,
            }],
            networks: vec![
                listen("192.0.2.0/24", Protocol::Udp, 1000, 1999),
                listen("192.0.2.0/28", Protocol::Any, 0, u16::MAX),
                listen("192.0.0.0/16", Protocol::Tcp, 0, u16::MAX),
            ],
            locals: [[192, 0, 2, 1], [192, 0, 2, 10], [10, 0, 0, 1]].map(Address::from_v4).into(),
            ..SteerRules::default()
        };
        let rules = new(&rules);
        let wide = flag::HAS_TCP | flag::ALL_TCP | flag::ICMP;
        let middle = wide | flag::HAS_UDP;
        let narrow = middle | flag::ALL_PROTOCOLS;
        assert_eq!(area(&rules, "192.0.0.0/16"), Some((wide, 0)));
        assert_eq!(area(&rules, "192.0.2.0/24"), Some((middle, 1)));
        assert_eq!(area(&rules, "192.0.2.0/28"), Some((narrow, 1)));
        assert_eq!(area(&rules, "192.0.2.10"), Some((narrow, 1)), "a VIP by itself");
        assert_eq!(area(&rules, "192.0.2.1"), Some((0, 0)), "this box");
        assert_eq!(area(&rules, "10.0.0.1"), None, "no prefix has it");
    }

    #[test]
    fn sources_and_tunnels_of_this_box_are_found_though_they_are_local() {
        let rules = SteerRules {
            sources: vec![(network("10.0.0.48/28"), PortRange { first: 1024, last: u16::MAX })],
            tunnels: vec![network("10.0.0.1")],
            gue_port: 6080,
            locals: vec![Address::from_v4([10, 0, 0, 1]), Address::from_v4([10, 0, 0, 49])],
            ..SteerRules::default()
        };
        let rules = new(&rules);
        let both = flag::HAS_TCP | flag::HAS_UDP;
        assert_eq!(area(&rules, "10.0.0.48/28"), Some((both | flag::ERRORS, 1)));
        assert_eq!(area(&rules, "10.0.0.1"), Some((flag::TUNNEL, 0)));
        assert_eq!(area(&rules, "10.0.0.49"), None);
        let tunnel = rules
            .areas
            .values()
            .any(|[.., p0, p1, _, _, _, _, _, _, _, _]| [*p0, *p1] == 6080u16.to_be_bytes());
        assert!(tunnel);
    }

    #[test]
    fn a_group_keeps_its_number_as_long_as_its_ranges_are_the_same() {
        let rules = |last| SteerRules {
            networks: vec![listen("192.0.2.0/24", Protocol::Tcp, 1, last)],
            return_ranges: vec![listen("10.0.0.1", Protocol::Tcp, 1, 99)],
            ..SteerRules::default()
        };
        let first = new(&rules(99));
        assert_eq!(first.groups.numbers.len(), 1, "shared");
        let second = Rules::new(&rules(100), &first);
        let group = |rules: &Rules| area(rules, "192.0.2.0/24").map(|(_, group)| group);
        assert_eq!((group(&first), group(&second)), (Some(1), Some(2)));
        let numbers: Vec<u32> = second.groups.numbers.values().copied().collect();
        assert_eq!(numbers, [1, 2], "the backend's has not changed");
        assert_eq!(group(&Rules::new(&rules(99), &second)), Some(1));
    }

    #[test]
    fn too_many_rules_are_refused_with_the_number_that_fits() {
        let locals = (0..4097u32).map(|n| Address::from_v4(n.to_be_bytes())).collect();
        let rules = SteerRules { locals, ..SteerRules::default() };
        let error = new(&rules).check().err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("4097 entries") && error.contains("holds 4096"), "{error}");
    }
}
