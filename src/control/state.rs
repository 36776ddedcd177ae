//! The registry: every VIP and backend with its index, and what is known of each.
//!
//! Indices are handed out here and nowhere else. A VIP keeps its index while its name exists; a
//! backend keeps its index while it is the same server (name, address, port) in the same VIP with
//! the same forwarding mode, with PROXY headers or without; with `pin = false` from now on it begins
//! another generation. A removed backend's index gets the next generation at once, so that
//! its pins are stale, and is used again only after all others, so that they are gone by then.

use std::collections::VecDeque;
use std::net::IpAddr;

use hashbrown::{HashMap, HashSet};

use super::WorkerView;
use super::answering::Answering;
use super::drain::Drain;
use super::forecast::Forecast;
use super::health::{CheckSpec, Hysteresis};
use super::neighbour::Problem;
use super::netlink::InterfaceAddress;
use super::slow_start::SlowStart;
use super::status::{self, Baseline};
use crate::config;
use crate::flow::bindings::Sources;
use crate::flow::{Address, Protocol};
use crate::forwarding::listeners::exact;
use crate::forwarding::sticky::{Reentry, Remember, Sticky};
use crate::forwarding::table::return_listen;
use crate::forwarding::this_box::UNLIMITED;
use crate::forwarding::{
    Affinity, BackendId, BackendIndex, BackendSpec, Forward, Listen, ListenKey, MAX_BACKENDS,
    MAX_VIPS, Network, NextHop, PortRange, Service, Splits, SteerRules, Timeouts, VipId, VipSpec,
};
use crate::units::Ticks;

/// More than the forwarding table has room for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{count} {what}: holdfast has room for {room}; spread them over several boxes")]
pub struct Full {
    /// VIPs or backends.
    pub what: &'static str,
    /// How many there are.
    pub count: usize,
    /// How many there may be.
    pub room: usize,
}

/// Indices from a fixed range, each with a generation.
#[derive(Debug)]
struct Indices {
    generations: Vec<u16>,
    free: VecDeque<u16>,
}

impl Indices {
    fn new(count: usize) -> Self {
        Self { generations: vec![0; count], free: (0..=u16::MAX).take(count).collect() }
    }

    /// The index that has been free for the longest time.
    fn take(&mut self) -> Option<u16> {
        self.free.pop_front()
    }

    fn generation(&self, index: u16) -> u16 {
        self.generations.get(usize::from(index)).copied().unwrap_or_default()
    }

    /// Ends the generation of an index; its pins are stale from the next table on.
    fn bump(&mut self, index: u16) -> u16 {
        let Some(generation) = self.generations.get_mut(usize::from(index)) else { return 0 };
        *generation = generation.wrapping_add(1);
        *generation
    }

    fn give_back(&mut self, index: u16) {
        self.bump(index);
        self.free.push_back(index);
    }
}

/// A VIP in the registry.
#[derive(Debug)]
pub struct VipEntry {
    /// Its index.
    pub id: VipId,
    /// As configured; its backends are in `backends`, too.
    pub config: config::Vip,
    /// Its backends, in the configuration's order.
    pub backends: Vec<BackendEntry>,
    /// Sources that are spread over several backends.
    pub splits: Splits,
    /// Counters of whoever had the index before.
    pub base: Baseline,
}

/// A backend in the registry.
#[derive(Debug)]
pub struct BackendEntry {
    /// Its index and generation.
    pub id: BackendId,
    /// As configured.
    pub config: config::Backend,
    /// What to check, if anything.
    pub check: Option<CheckSpec>,
    /// What its checks say.
    pub health: Hysteresis,
    /// The last failure, until a success.
    pub health_detail: String,
    /// Active, draining or out.
    pub drain: Drain,
    /// What is known of how its drain goes; `None`: nothing yet, or no drain.
    pub forecast: Option<Forecast>,
    /// How much of its new flows it is given.
    pub slow_start: SlowStart,
    /// Where frames for it go.
    pub next_hop: Option<NextHop>,
    /// Longest IP packet that may leave towards it, in bytes.
    pub mtu: u16,
    /// Why there is none, in words; empty when there is one.
    pub next_hop_detail: String,
    /// The problem that was logged last, until it is resolved.
    pub problem: Option<String>,
    /// Whether it answers clients.
    pub answering: Answering,
    /// Counters of whoever had the index before.
    pub base: Baseline,
}

/// Everything that can change about VIPs and backends.
#[derive(Debug)]
pub struct Registry {
    vips: Vec<VipEntry>,
    /// Where in `vips` each backend is.
    places: HashMap<BackendIndex, (usize, usize)>,
    vip_indices: Indices,
    backend_indices: Indices,
    sources: Sources,
}

impl Default for Registry {
    fn default() -> Self {
        Self::with_room(MAX_VIPS, MAX_BACKENDS)
    }
}

impl Registry {
    fn with_room(vips: usize, backends: usize) -> Self {
        let (vip_indices, backend_indices) = (Indices::new(vips), Indices::new(backends));
        let (vips, places, sources) = (Vec::new(), HashMap::new(), Sources::default());
        Self { vips, places, vip_indices, backend_indices, sources }
    }

    /// Empty, for full-NAT VIPs with these sources.
    pub fn new(sources: Sources) -> Self {
        Self { sources, ..Self::default() }
    }

    /// The sources of full-NAT flows.
    pub const fn sources(&self) -> &Sources {
        &self.sources
    }

    /// The VIPs, in the configuration's order.
    pub fn vips(&self) -> &[VipEntry] {
        &self.vips
    }

    /// Every backend.
    pub fn backends(&self) -> impl Iterator<Item = (&VipEntry, &BackendEntry)> {
        self.vips.iter().flat_map(|vip| vip.backends.iter().map(move |backend| (vip, backend)))
    }

    /// Every backend, to be changed, with its VIP's configuration.
    pub fn backends_mut(&mut self) -> impl Iterator<Item = (&config::Vip, &mut BackendEntry)> {
        self.vips.iter_mut().flat_map(|vip| {
            let config = &vip.config;
            vip.backends.iter_mut().map(move |backend| (config, backend))
        })
    }

    /// A backend by its names.
    pub fn find_mut(&mut self, vip: &str, backend: &str) -> Option<&mut BackendEntry> {
        let vip = self.vips.iter_mut().find(|entry| entry.config.name == vip)?;
        vip.backends.iter_mut().find(|entry| entry.config.name == backend)
    }

    /// A VIP by its name.
    pub fn vip(&self, name: &str) -> Option<&VipEntry> {
        self.vips.iter().find(|entry| entry.config.name == name)
    }

    /// A backend by its names, with its VIP.
    pub fn find(&self, vip: &str, backend: &str) -> Option<(&VipEntry, &BackendEntry)> {
        let vip = self.vip(vip)?;
        let backend = vip.backends.iter().find(|entry| entry.config.name == backend)?;
        Some((vip, backend))
    }

    /// A backend by its index, with its VIP's configuration.
    pub fn at_mut(&mut self, index: BackendIndex) -> Option<(&config::Vip, &mut BackendEntry)> {
        let &(vip, backend) = self.places.get(&index)?;
        let vip = self.vips.get_mut(vip)?;
        Some((&vip.config, vip.backends.get_mut(backend)?))
    }

    /// Ends the generation of a backend: every pin on it is stale from the next table on.
    pub fn end_generation(&mut self, index: BackendIndex) {
        let generation = self.backend_indices.bump(index.0);
        if let Some((_, backend)) = self.at_mut(index) {
            backend.id.generation = generation;
        }
    }

    /// Makes the registry hold exactly `vips`. What stays keeps its index, health and drain.
    ///
    /// # Errors
    /// When there are more than indices; nothing has changed then.
    pub fn apply(&mut self, vips: &[config::Vip], workers: &[WorkerView]) -> Result<(), Full> {
        self.has_room_for(vips)?;
        let wanted: HashMap<&str, &config::Vip> =
            vips.iter().map(|vip| (vip.name.as_str(), vip)).collect();
        let mut kept = HashMap::with_capacity(vips.len());
        // What goes is released first, so that there is always room for what comes.
        for mut entry in std::mem::take(&mut self.vips) {
            let wanted = wanted.get(entry.config.name.as_str()).copied();
            self.release_backends(&mut entry, wanted);
            match wanted {
                Some(_) => _ = kept.insert(entry.config.name.clone(), entry),
                None => self.vip_indices.give_back(entry.id.0),
            }
        }
        for vip in vips {
            let entry = kept.remove(&vip.name).or_else(|| self.new_vip(vip, workers));
            if let Some(mut entry) = entry {
                self.update(&mut entry, vip, workers);
                self.vips.push(entry);
            }
        }
        self.remember_places();
        Ok(())
    }

    fn remember_places(&mut self) {
        let places = self.vips.iter().enumerate().flat_map(|(v, vip)| {
            vip.backends.iter().enumerate().map(move |(b, entry)| (entry.id.index, (v, b)))
        });
        self.places = places.collect();
    }

    fn has_room_for(&self, vips: &[config::Vip]) -> Result<(), Full> {
        let backends = vips.iter().map(|vip| vip.backends.len()).sum();
        for (what, count, indices) in
            [("VIPs", vips.len(), &self.vip_indices), ("backends", backends, &self.backend_indices)]
        {
            let room = indices.generations.len();
            if count > room {
                return Err(Full { what, count, room });
            }
        }
        Ok(())
    }

    /// Gives back the indices of the backends that `wanted` does not have.
    fn release_backends(&mut self, entry: &mut VipEntry, wanted: Option<&config::Vip>) {
        let stays = |backend: &BackendEntry| {
            wanted.is_some_and(|new| {
                new.forward == entry.config.forward
                    && new.proxy == entry.config.proxy
                    && new.backends.iter().any(|other| same_server(&backend.config, other))
            })
        };
        let indices = &mut self.backend_indices;
        entry.backends.retain(|backend| {
            let stays = stays(backend);
            if !stays {
                indices.give_back(backend.id.index.0);
            }
            stays
        });
    }

    fn new_vip(&mut self, config: &config::Vip, workers: &[WorkerView]) -> Option<VipEntry> {
        let id = VipId(self.vip_indices.take()?);
        let base = status::vip_baseline(workers, id);
        let (config, backends) = (config.clone(), Vec::new());
        Some(VipEntry { id, config, backends, splits: Splits::default(), base })
    }

    fn new_backend(
        &mut self,
        backend: &config::Backend,
        workers: &[WorkerView],
    ) -> Option<BackendEntry> {
        let index = self.backend_indices.take()?;
        let generation = self.backend_indices.generation(index);
        let index = BackendIndex(index);
        Some(BackendEntry {
            id: BackendId { index, generation },
            config: backend.clone(),
            check: None,
            health: Hysteresis::default(),
            health_detail: String::new(),
            drain: Drain::default(),
            forecast: None,
            slow_start: SlowStart::default(),
            next_hop: None,
            mtu: UNLIMITED,
            next_hop_detail: Problem::Resolving.to_string(),
            problem: None,
            answering: Answering::default(),
            base: status::backend_baseline(workers, index),
        })
    }

    fn update(&mut self, entry: &mut VipEntry, new: &config::Vip, workers: &[WorkerView]) {
        let mut kept: HashMap<String, BackendEntry> =
            entry.backends.drain(..).map(|old| (old.config.name.clone(), old)).collect();
        for backend in &new.backends {
            let known = kept.remove(&backend.name).or_else(|| self.new_backend(backend, workers));
            if let Some(mut known) = known {
                known.reconfigure(new, backend);
                if entry.config.pin && !new.pin {
                    known.id.generation = self.backend_indices.bump(known.id.index.0);
                }
                entry.backends.push(known);
            }
        }
        let affinity = std::mem::replace(&mut entry.config, new.clone()).affinity;
        // Sources of another affinity are others; with other limits the next window judges.
        if affinity != new.affinity || entry.split().is_none() {
            entry.splits = Splits::default();
        }
    }

    /// The VIPs, to be changed, in the configuration's order.
    pub fn vips_mut(&mut self) -> &mut [VipEntry] {
        &mut self.vips
    }

    /// What the forwarding table is built from.
    pub fn specs(&self) -> Vec<VipSpec> {
        self.vips.iter().map(VipEntry::spec).collect()
    }

    /// For a process that runs: a VIP refuses no flow while the next hop of a backend that may
    /// serve is being looked up, for the client's next SYN finds it.
    pub fn patient_specs(&self) -> Vec<VipSpec> {
        let mut specs = self.specs();
        for (vip, spec) in self.vips.iter().zip(&mut specs) {
            spec.rejects &= !vip.backends.iter().any(|b| b.serves() && b.awaits_next_hop());
        }
        specs
    }

    /// What the XDP program is to do.
    pub fn steer_rules(&self, addresses: &[InterfaceAddress]) -> SteerRules {
        let (vips, networks) = by_kind(self.vips.iter().flat_map(VipEntry::listens));
        let nat = self.vips.iter().filter(|vip| vip.config.forward == Forward::Nat);
        let (returns, return_ranges) = by_kind(nat.flat_map(VipEntry::returns));
        let locals = distinct(addresses.iter().map(|found| Address::from(found.address)));
        let (first, last) = self.sources.ports();
        let single = |&address: &Address| (Network::single(address), PortRange { first, last });
        let sources = self.sources.addresses().iter().map(single).collect();
        SteerRules {
            vips,
            networks,
            returns,
            return_ranges,
            locals,
            sources,
            ..SteerRules::default()
        }
    }

    /// The addresses whose next hops are needed.
    pub fn targets(&self) -> HashSet<IpAddr> {
        self.backends().map(|(_, backend)| backend.config.address).collect()
    }

    /// The checks that are to run.
    pub fn checks(&self) -> impl Iterator<Item = (BackendId, CheckSpec)> {
        self.backends().filter_map(|(_, backend)| Some((backend.id, backend.check.clone()?)))
    }
}

impl VipEntry {
    fn listens(&self) -> impl Iterator<Item = Listen> {
        let config::Vip { address, protocol, ports, .. } = &self.config;
        let listen = |&ports| Listen { network: *address, protocol: *protocol, ports };
        ports.ranges().iter().map(listen)
    }

    fn returns(&self) -> impl Iterator<Item = Listen> {
        let ports = self.config.ports.ranges();
        self.backends.iter().flat_map(move |backend| {
            let spec = backend.spec();
            ports.iter().map(move |&ports| return_listen(&spec, ports, self.config.protocol))
        })
    }

    /// How its large sources are split: only where all flows of one are to go to one backend.
    pub fn split(&self) -> Option<&config::Split> {
        let together = match self.config.affinity {
            Affinity::Client | Affinity::ClientPrefix { .. } => true,
            Affinity::Flow | Affinity::QuicCid => self.config.sticky.is_some(),
            // They are split from the start.
            Affinity::ClientPorts { .. } => false,
        };
        self.config.split.as_ref().filter(|_| together)
    }

    fn spec(&self) -> VipSpec {
        let timeouts = &self.config.timeouts;
        VipSpec {
            id: self.id,
            address: self.config.address,
            ports: self.config.ports.clone(),
            protocol: self.config.protocol,
            forward: self.config.forward,
            pin: self.config.pin,
            timeouts: Timeouts {
                embryonic: Ticks::span(timeouts.embryonic),
                established: Ticks::span(timeouts.established),
                closing: Ticks::span(timeouts.closing),
                udp_first: Ticks::span(timeouts.udp_first),
                udp: Ticks::span(timeouts.udp),
            },
            remember: remember(&self.config),
            on_down: self.config.on_down,
            reset_idle: self.config.reset_idle,
            rejects: self.config.rejects,
            proxy: self.config.proxy,
            scheduler: self.config.scheduler,
            affinity: self.config.affinity,
            splits: self.splits.clone(),
            sampled: self.split().is_some(),
            quic: self.config.quic.clone(),
            mss: self.config.mss,
            backends: self.backends.iter().map(BackendEntry::spec).collect(),
        }
    }
}

/// What a VIP wants remembered of its clients. Without `sticky`, they come back after the idle
/// time-out of their flows.
pub fn remember(vip: &config::Vip) -> Option<Remember> {
    let idle = match vip.protocol {
        Protocol::Tcp => vip.timeouts.established,
        Protocol::Udp | Protocol::Any => vip.timeouts.udp,
    };
    let wanted = vip.sticky.is_some() || vip.on_reentry == Reentry::Freest;
    wanted.then(|| Remember {
        timeout: Ticks::span(vip.sticky.map_or(idle, |sticky| sticky.timeout)),
        sticky: vip
            .sticky
            .map(|sticky| Sticky { on_drain: sticky.on_drain, on_down: sticky.on_down }),
        on_reentry: vip.on_reentry,
    })
}

impl BackendEntry {
    /// Whether it may be given new flows: no drain, no weight of 0, and it answers.
    pub fn serves(&self) -> bool {
        self.drain.service() == Service::Active && self.config.weight > 0 && self.is_up()
    }

    /// Whether its health check, if there is one, says that it answers.
    pub fn is_up(&self) -> bool {
        self.check.is_none() || self.health.usable()
    }

    /// Whether its next hop is being looked up, and there was no reason yet to think that there is none.
    pub const fn awaits_next_hop(&self) -> bool {
        self.next_hop.is_none() && self.problem.is_none()
    }

    fn spec(&self) -> BackendSpec {
        BackendSpec {
            id: self.id,
            name: self.config.name.clone(),
            address: self.config.address,
            port: self.config.port,
            weight: self.config.weight,
            share: self.slow_start.share(),
            up: self.is_up(),
            service: self.drain.service(),
            left: self.drain.flows_left(),
            next_hop: self.next_hop,
            mtu: self.mtu,
            server_ids: self.config.server_ids.clone(),
        }
    }

    /// Takes over what may change about a backend that stays.
    fn reconfigure(&mut self, vip: &config::Vip, backend: &config::Backend) {
        self.config = backend.clone();
        let check = CheckSpec::of(vip, backend);
        let target = |check: &Option<CheckSpec>| check.as_ref().map(|check| check.target);
        // A verdict about another port, or from before checks were turned off, says nothing.
        if target(&check) != target(&self.check) {
            self.health = Hysteresis::default();
            self.health_detail.clear();
        }
        self.check = check;
    }
}

/// Whether a backend is the same server as before, whatever its weight is now.
pub fn same_server(old: &config::Backend, new: &config::Backend) -> bool {
    (&old.name, old.address, old.port) == (&new.name, new.address, new.port)
}

/// Those that are single addresses and ports, and the others; each once.
fn by_kind(listens: impl Iterator<Item = Listen>) -> (Vec<ListenKey>, Vec<Listen>) {
    let all: Vec<Listen> = listens.collect();
    let others = all.iter().copied().filter(|&listen| exact(listen).is_none());
    (distinct(all.iter().copied().filter_map(exact)), distinct(others))
}

fn distinct<T: Copy + Eq + std::hash::Hash>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = HashSet::new();
    items.filter(|item| seen.insert(*item)).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Announce, Health, TcpHealth};
    use crate::flow::Protocol;
    use crate::forwarding::{Affinity, FlowsLeft, Ports, SchedulerKind};

    /// A backend `name` at 127.0.1.`host`.
    pub fn backend(name: &str, host: u8) -> config::Backend {
        let address = IpAddr::from([127, 0, 1, host]);
        config::Backend {
            name: name.to_owned(),
            address,
            port: Some(8080),
            weight: 1,
            server_ids: Vec::new(),
        }
    }

    /// A NAT VIP at 192.0.2.10:80 that checks nothing and announces nothing.
    pub fn vip(name: &str, backends: &[config::Backend]) -> config::Vip {
        let second = Duration::from_secs(1);
        config::Vip {
            name: name.to_owned(),
            address: [192, 0, 2, 10].into(),
            ports: Ports::of(&[80]),
            protocol: Protocol::Tcp,
            forward: Forward::Nat,
            scheduler: SchedulerKind::Maglev { size: 251 },
            affinity: Affinity::Flow,
            split: None,
            health: Health::None,
            timeouts: config::Timeouts {
                embryonic: second,
                established: second * 1800,
                closing: second,
                udp_first: second,
                udp: second,
            },
            sticky: None,
            on_reentry: Reentry::Hash,
            drain: config::Drain {
                deadline: None,
                then: FlowsLeft::Rehash,
                slow_start: Duration::ZERO,
            },
            pin: true,
            on_down: FlowsLeft::Keep,
            reset_idle: false,
            mss: None,
            rejects: false,
            proxy: false,
            announce: Announce::None,
            quic: Vec::new(),
            backends: backends.to_vec(),
        }
    }

    pub fn tcp_health() -> Health {
        Health::Tcp(TcpHealth {
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(500),
            rise: 2,
            fall: 3,
            port: None,
        })
    }

    fn id(registry: &Registry, vip: &str, backend: &str) -> (u16, u16) {
        let (_, backend) = registry.find(vip, backend).unwrap();
        (backend.id.index.0, backend.id.generation)
    }

    #[test]
    fn indices_are_stable_while_the_server_exists() {
        let mut registry = Registry::default();
        let web = vip("web", &[backend("a", 1), backend("b", 2)]);
        registry.apply(&[web.clone(), vip("mail", &[backend("a", 1)])], &[]).unwrap();
        assert_eq!(id(&registry, "web", "b"), (1, 0));
        assert_eq!(id(&registry, "mail", "a"), (2, 0));
        let mut changed = vip("web", &[backend("c", 3), backend("b", 2)]);
        changed.backends.last_mut().unwrap().weight = 7;
        registry.apply(&[vip("new", &[]), changed], &[]).unwrap();
        assert_eq!(id(&registry, "web", "b"), (1, 0), "another weight and place, the same server");
        assert_eq!(id(&registry, "web", "c"), (3, 0), "the index that was never used");
        let ids: Vec<_> = registry.vips().iter().map(|vip| vip.id.0).collect();
        assert_eq!(ids, [2, 0], "web keeps 0, new does not get what mail had");
        assert_eq!(registry.find("web", "b").unwrap().1.config.weight, 7);
        let order: Vec<_> = registry.backends().map(|(_, b)| b.config.name.as_str()).collect();
        assert_eq!(order, ["c", "b"], "the configuration's order");
    }

    #[test]
    fn another_address_port_forwarding_mode_or_proxy_is_another_server() {
        let mut registry = Registry::default();
        let old = vip("web", &[backend("a", 1)]);
        registry.apply(std::slice::from_ref(&old), &[]).unwrap();
        let mut port = backend("a", 2);
        port.port = None;
        let proxied = config::Vip { proxy: true, ..vip("web", std::slice::from_ref(&port)) };
        let dsr = config::Vip { forward: Forward::Dsr, ..vip("web", std::slice::from_ref(&port)) };
        for (row, (name, new)) in [
            ("address", vip("web", &[backend("a", 2)])),
            ("port", vip("web", &[port])),
            ("forward", dsr),
            ("proxy", proxied),
        ]
        .into_iter()
        .enumerate()
        {
            registry.apply(&[new], &[]).unwrap();
            assert_eq!(usize::from(id(&registry, "web", "a").0), row + 1, "{name}");
            assert_eq!(registry.vips().first().unwrap().id, VipId(0), "{name}: the VIP stays");
        }
    }

    /// What becomes of the pins when a VIP gives them up: they are stale, and all else stays.
    #[test]
    fn a_vip_that_gives_up_its_pins_begins_another_generation() {
        let mut registry = Registry::default();
        let pinned = vip("web", &[backend("a", 1)]);
        let unpinned = config::Vip { pin: false, ..pinned.clone() };
        for (pins, expected) in
            [(&pinned, 0), (&pinned, 0), (&unpinned, 1), (&unpinned, 1), (&pinned, 1)]
        {
            registry.apply(std::slice::from_ref(pins), &[]).unwrap();
            assert_eq!(id(&registry, "web", "a"), (0, expected), "pin: {}", pins.pin);
            assert_eq!(registry.specs().first().unwrap().pin, pins.pin);
        }
    }

    #[test]
    fn an_index_is_used_again_last_and_with_another_generation() {
        let mut registry = Registry::with_room(2, 3);
        let with = |name: &str, host| [vip("web", &[backend(name, host)])];
        let mut seen = Vec::new();
        for host in 1..=5 {
            registry.apply(&with(&format!("b{host}"), host), &[]).unwrap();
            seen.push(id(&registry, "web", &format!("b{host}")));
        }
        assert_eq!(seen, [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)]);
        registry.end_generation(BackendIndex(1));
        assert_eq!(id(&registry, "web", "b5"), (1, 2));
        let all: Vec<_> = (6..=8).map(|host| backend("x", host)).collect();
        registry.apply(&[vip("web", &all)], &[]).unwrap();
        assert_eq!(registry.backends().count(), 3, "all at once still finds room");
    }

    #[test]
    fn too_many_change_nothing() {
        let mut registry = Registry::with_room(1, 1);
        registry.apply(&[vip("web", &[backend("a", 1)])], &[]).unwrap();
        let error = registry.apply(&[vip("web", &[backend("b", 1), backend("c", 2)])], &[]);
        assert_eq!(error, Err(Full { what: "backends", count: 2, room: 1 }));
        assert!(registry.apply(&[vip("web", &[]), vip("mail", &[])], &[]).is_err());
        assert_eq!(id(&registry, "web", "a"), (0, 0));
    }

    #[test]
    fn health_and_drain_survive_a_reload() {
        let mut registry = Registry::default();
        let checked = config::Vip { health: tcp_health(), ..vip("web", &[backend("a", 1)]) };
        registry.apply(std::slice::from_ref(&checked), &[]).unwrap();
        let entry = registry.find_mut("web", "a").unwrap();
        entry.health.observe(false, 1, 1);
        entry.drain.begin(None, 0, tokio::time::Instant::now());
        registry.apply(std::slice::from_ref(&checked), &[]).unwrap();
        let spec = registry.find("web", "a").unwrap().1.spec();
        assert_eq!((spec.up, spec.service), (false, Service::Draining));
        registry.apply(&[vip("web", &[backend("a", 1)])], &[]).unwrap();
        assert!(registry.find("web", "a").unwrap().1.spec().up, "no check any more");
        registry.apply(&[checked], &[]).unwrap();
        assert!(registry.find("web", "a").unwrap().1.spec().up, "not yet checked again");
    }

    #[test]
    fn no_flow_is_refused_while_a_next_hop_is_looked_up() {
        let mut registry = Registry::default();
        let both = [backend("a", 1), backend("b", 2)];
        let web = config::Vip { rejects: true, ..vip("web", &both) };
        registry.apply(&[web], &[]).unwrap();
        let refuses = |registry: &Registry| registry.patient_specs().first().unwrap().rejects;
        assert!(registry.specs().first().unwrap().rejects);
        assert!(!refuses(&registry), "both are looked up");
        registry.find_mut("web", "a").unwrap().problem = Some("no answer".to_owned());
        assert!(!refuses(&registry), "b may serve yet");
        registry.find_mut("web", "b").unwrap().drain.begin(None, 0, tokio::time::Instant::now());
        assert!(refuses(&registry), "b will not");
    }

    #[test]
    fn splits_survive_a_reload_that_leaves_them_their_meaning() {
        let some = Splits::new(vec![(Address::from_v4([198, 51, 100, 7]), 3)]);
        let split = config::Split { max_load: 1.25, min_rate: 50.0 };
        let client = config::Vip {
            affinity: Affinity::Client,
            split: Some(split),
            ..vip("web", &[backend("a", 1)])
        };
        type Change = fn(&mut config::Vip);
        let rows: [(&str, Change, bool); 4] = [
            ("a backend", |vip| vip.backends.push(backend("b", 2)), true),
            ("limits", |vip| vip.split.as_mut().unwrap().max_load = 2.0, true),
            ("off", |vip| vip.split = None, false),
            ("others", |vip| vip.affinity = Affinity::ClientPrefix { v4: 24, v6: 56 }, false),
        ];
        for (name, change, stay) in rows {
            let mut registry = Registry::default();
            registry.apply(std::slice::from_ref(&client), &[]).unwrap();
            registry.vips_mut().first_mut().unwrap().splits = some.clone();
            let mut new = client.clone();
            change(&mut new);
            registry.apply(&[new], &[]).unwrap();
            assert_eq!(registry.vips().first().unwrap().splits == some, stay, "{name}");
        }
    }

    #[test]
    fn steering_follows_vips_nat_backends_and_addresses() {
        let mut registry = Registry::default();
        let mut keeps_port = backend("b", 2);
        keeps_port.port = None;
        let mut nat = vip("nat", &[backend("a", 1), keeps_port]);
        nat.ports = Ports::of(&[80, 443]);
        let mut all = vip("all", &[config::Backend { port: None, ..backend("c", 3) }]);
        (all.ports, all.address) = (Ports::All, [192, 0, 2, 11].into());
        let mut dsr = config::Vip { forward: Forward::Dsr, ..vip("dsr", &[backend("d", 4)]) };
        dsr.address = [192, 0, 2, 12].into();
        registry.apply(&[nat, all, dsr], &[]).unwrap();
        let address = InterfaceAddress {
            ifindex: 1,
            address: IpAddr::from([10, 0, 0, 1]),
            prefix_len: 24,
            ours: false,
        };
        let rules = registry.steer_rules(&[address, address]);
        let text = |keys: &[ListenKey]| {
            keys.iter().map(|key| format!("{}:{}", key.address, key.port)).collect::<Vec<_>>()
        };
        assert_eq!(
            text(&rules.vips),
            ["192.0.2.10:80", "192.0.2.10:443", "192.0.2.11:0", "192.0.2.12:80"]
        );
        assert_eq!(
            text(&rules.returns),
            ["127.0.1.1:8080", "127.0.1.2:80", "127.0.1.2:443", "127.0.1.3:0"]
        );
        assert_eq!(rules.locals, [Address::from_v4([10, 0, 0, 1])]);
    }

    /// What docs/PERFORMANCE.md says of the control thread's memory, without names.
    #[test]
    fn what_an_entry_takes() {
        let (vip, backend) = (size_of::<VipEntry>(), size_of::<BackendEntry>());
        assert!(vip <= 512 && backend <= 576, "{vip} bytes per VIP, {backend} per backend");
    }
}
