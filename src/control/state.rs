//! The registry: every VIP and backend, with its index and state.
//!
//! Only the registry assigns indices. A VIP and a backend keep theirs while their identity stays
//! ([`identity`](super::identity)), whatever their names. A removed VIP or backend keeps its index
//! until its flows have ended ([`removed`](super::removed)); with `on_remove = "rehash"` the index
//! is freed at once. A freed index gets the next generation, which makes its pins stale, and is
//! reused after a number of others, when these pins are gone. A change to `pin = false` also begins
//! the next generation of each backend.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use tokio::time::Instant;

use super::answering::Answering;
use super::counters::{self, Baseline};
use super::damping::Damping;
use super::denied::Denied;
use super::drain::{Drain, Forecast};
use super::error::Full;
use super::health::{CheckSpec, Hysteresis};
use super::hello::{HelloSpec, Program};
use super::identity::{self, InForce};
use super::limit::Limit;
use super::neighbour::Problem;
use super::netlink::InterfaceAddress;
use super::passive::Passive;
use super::removed::{Gone, Removal, Removals, Removed};
use super::routers::KnownRouter;
use super::saved::{Moment, SavedBackend, SavedHealth, SavedIndices, SavedRegistry, SavedVip};
use super::slow_start::SlowStart;
use super::view::WorkerView;
use super::withdrawal::Withdrawal;
use crate::config;
use crate::flow::snat::SnatPool;
use crate::flow::table::Families;
use crate::forwarding::local::UNLIMITED;
use crate::forwarding::table::return_listen;
use crate::forwarding::{
    Affinity, Ask, BackendSpec, FlowAction, MAX_BACKENDS, MAX_VIPS, Ports, Service, Splits,
    Tunnels, VipSpec,
};
use crate::net::{
    Address, BackendId, BackendIndex, Family, Forward, Listen, ListenKey, Network, NextHop,
    PortRange, SteerRules, VipId, exact,
};

/// Number of freed indices ahead of one that is reused: its pins are gone by then, and tables stay
/// as short as possible, however many backends come and go.
const RESTING: usize = 256;

/// Indices of a fixed range, each with a generation.
#[derive(Debug)]
struct Indices {
    generations: Vec<u16>,
    /// First index that was never used.
    fresh: u16,
    /// Freed indices, the one that has been free for the longest time first.
    used: VecDeque<u16>,
}

impl Indices {
    fn new(count: usize) -> Self {
        Self { generations: vec![0; count], fresh: 0, used: VecDeque::new() }
    }

    fn free(&self) -> usize {
        self.generations.len() - usize::from(self.fresh) + self.used.len()
    }

    fn take(&mut self) -> Option<u16> {
        if self.used.len() <= RESTING && usize::from(self.fresh) < self.generations.len() {
            self.fresh += 1;
            return Some(self.fresh - 1);
        }
        self.used.pop_front()
    }

    fn generation(&self, index: u16) -> u16 {
        self.generations.get(usize::from(index)).copied().unwrap_or_default()
    }

    /// Begins the next generation of an index; its pins are stale from the next table on.
    fn bump(&mut self, index: u16) -> u16 {
        let Some(generation) = self.generations.get_mut(usize::from(index)) else { return 0 };
        *generation = generation.wrapping_add(1);
        *generation
    }

    fn give_back(&mut self, index: u16) {
        self.bump(index);
        self.used.push_back(index);
    }

    fn save(&self) -> SavedIndices {
        let used = self.generations.iter().take(self.fresh.into()).copied();
        SavedIndices { generations: used.collect(), free: self.used.iter().copied().collect() }
    }

    /// Restores saved indices, of which `taken` are in use. `None` unless every index is either
    /// free or taken, once.
    fn restore(
        saved: SavedIndices,
        count: usize,
        taken: impl IntoIterator<Item = u16>,
    ) -> Option<Self> {
        let SavedIndices { mut generations, free } = saved;
        let fresh = u16::try_from(generations.len()).ok().filter(|&n| usize::from(n) <= count)?;
        let mut all: Vec<u16> = taken.into_iter().chain(free.iter().copied()).collect();
        all.sort_unstable();
        generations.resize(count, 0);
        all.into_iter().eq(0..fresh).then(|| Self { generations, fresh, used: free.into() })
    }
}

/// A VIP in the registry.
#[derive(Debug)]
pub struct VipEntry {
    /// Index.
    pub id: VipId,
    /// Configuration; the backends are in `backends`, too.
    pub config: config::Vip,
    /// Backends, in the configuration's order.
    pub backends: Vec<BackendEntry>,
    /// Splits of large sources over several backends.
    pub splits: Splits,
    /// Counters of the previous owner of the index.
    pub base: Baseline,
    /// Removed backends that may have flows.
    pub removed: Vec<Removed<BackendEntry>>,
    /// Previous listeners that may have flows.
    pub old: Vec<Removed<Listen>>,
    /// Whether a reload has removed the VIP.
    pub is_removed: bool,
    /// Whether packets are forwarded as if all backends were up, since none is (`fail_open`).
    pub fails_open: bool,
    /// Whether its address is withdrawn, since no backend serves it.
    pub withdrawal: Withdrawal,
    /// Whether it has `syn_proxy`, or had it, so that flows may have splices.
    pub spliced: bool,
}

/// A backend in the registry.
#[derive(Debug)]
pub struct BackendEntry {
    /// Index and generation.
    pub id: BackendId,
    /// Configuration.
    pub config: config::Backend,
    /// Health check, if there is one.
    pub check: Option<CheckSpec>,
    /// Verdict of the health check.
    pub health: Hysteresis,
    /// Text of the last failed check; cleared by a success that leaves the backend up.
    pub health_detail: String,
    /// Hold-down after repeated failures.
    pub damping: Damping,
    /// State of the drain: active, draining or out.
    pub drain: Drain,
    /// Forecast of the drain; `None` without a drain, or before the first forecast.
    pub forecast: Option<Forecast>,
    /// Share of new flows.
    pub slow_start: SlowStart,
    /// Next hop of the frames to the backend.
    pub next_hop: Option<NextHop>,
    /// Path MTU: longest IP packet that may leave towards the backend, in bytes.
    pub mtu: u16,
    /// Reason for the absence of a next hop; empty when there is one.
    pub next_hop_detail: String,
    /// Problem that was logged last, until it is resolved.
    pub problem: Option<String>,
    /// Detection of unanswered SYNs.
    pub answering: Answering,
    /// Passive check.
    pub passive: Passive,
    /// Its limit of flows.
    pub limit: Limit,
    /// Its program, which can be asked for flows.
    pub program: Program,
    /// Counters of the previous owner of the index.
    pub base: Baseline,
}

/// State of all VIPs and backends.
#[derive(Debug)]
pub struct Registry {
    vips: Vec<VipEntry>,
    /// Removed VIPs that may have flows.
    removed: Vec<VipEntry>,
    /// Position of each backend: index in `vips`, and index in the VIP's `backends`.
    places: HashMap<BackendIndex, (usize, usize)>,
    vip_indices: Indices,
    backend_indices: Indices,
    sources: SnatPool,
    /// Routers in use, as the resolver knows them.
    pub routers: Vec<KnownRouter>,
    /// Prefixes that were denied at run time.
    denied: Denied,
}

impl Default for Registry {
    fn default() -> Self {
        Self::with_room(MAX_VIPS, MAX_BACKENDS)
    }
}

impl Registry {
    fn with_room(vips: usize, backends: usize) -> Self {
        let (vip_indices, backend_indices) = (Indices::new(vips), Indices::new(backends));
        let (vips, removed) = (Vec::new(), Vec::new());
        let (places, sources, routers) = (HashMap::new(), SnatPool::default(), Vec::new());
        let denied = Denied::default();
        Self { vips, removed, places, vip_indices, backend_indices, sources, routers, denied }
    }

    /// Creates an empty registry; full-NAT VIPs use these SNAT sources.
    pub fn new(sources: SnatPool) -> Self {
        Self { sources, ..Self::default() }
    }

    /// Returns the registry as it is saved.
    pub fn save(&self, moment: &Moment) -> SavedRegistry {
        let save = |vips: &[VipEntry]| vips.iter().map(|vip| vip.save(moment)).collect();
        SavedRegistry {
            vips: save(&self.vips),
            removed: save(&self.removed),
            vip_indices: self.vip_indices.save(),
            backend_indices: self.backend_indices.save(),
            routers: self.routers.clone(),
            denied: self.denied.save(moment),
        }
    }

    /// Returns the registry as [`Registry::save`] does, with the results of health checks.
    pub fn save_with_health(&self, moment: &Moment) -> SavedRegistry {
        let mut saved = self.save(moment);
        for (vip, saved) in self.vips.iter().zip(&mut saved.vips) {
            for (backend, saved) in vip.backends.iter().zip(&mut saved.backends) {
                let detail = backend.health_detail.clone();
                saved.health = backend.health.verdict().map(|up| SavedHealth { up, detail });
            }
        }
        saved
    }

    /// Restores a saved registry; `None` if it contradicts itself.
    pub fn restore(saved: SavedRegistry, sources: SnatPool, moment: &Moment) -> Option<Self> {
        let SavedRegistry { vips, removed, vip_indices, backend_indices, routers, denied } = saved;
        let restore = |vips: Vec<SavedVip>| -> Vec<VipEntry> {
            vips.into_iter().map(|vip| VipEntry::restore(vip, moment)).collect()
        };
        let (vips, removed) = (restore(vips), restore(removed));
        let all = || vips.iter().chain(&removed);
        let ids = all().map(|vip| vip.id.0);
        let vip_indices = Indices::restore(vip_indices, MAX_VIPS, ids)?;
        let backends = || all().flat_map(VipEntry::all_backends).map(|backend| backend.id);
        let indices = backends().map(|id| id.index.0);
        let backend_indices = Indices::restore(backend_indices, MAX_BACKENDS, indices)?;
        if !backends().all(|id| backend_indices.generation(id.index.0) == id.generation) {
            return None;
        }
        let places = HashMap::new();
        let denied = Denied::restore(denied, moment);
        let mut registry =
            Self { vips, removed, places, vip_indices, backend_indices, sources, routers, denied };
        registry.remember_places();
        Some(registry)
    }

    /// Prefixes that were denied at run time.
    pub const fn denied(&self) -> &Denied {
        &self.denied
    }

    /// Prefixes that were denied at run time, mutable.
    pub const fn denied_mut(&mut self) -> &mut Denied {
        &mut self.denied
    }

    /// SNAT sources of full-NAT flows.
    pub const fn sources(&self) -> &SnatPool {
        &self.sources
    }

    /// VIPs in force, in the configuration's order.
    pub fn vips(&self) -> &[VipEntry] {
        &self.vips
    }

    /// Returns every backend in force, with its VIP.
    pub fn backends(&self) -> impl Iterator<Item = (&VipEntry, &BackendEntry)> {
        self.vips.iter().flat_map(|vip| vip.backends.iter().map(move |backend| (vip, backend)))
    }

    /// Returns every backend in force, mutable, with its VIP's configuration.
    pub fn backends_mut(&mut self) -> impl Iterator<Item = (&config::Vip, &mut BackendEntry)> {
        self.vips.iter_mut().flat_map(|vip| {
            let config = &vip.config;
            vip.backends.iter_mut().map(move |backend| (config, backend))
        })
    }

    /// Removed VIPs that may have flows.
    pub fn removed(&self) -> &[VipEntry] {
        &self.removed
    }

    /// Returns the VIPs in force, and the removed ones.
    pub fn all_vips(&self) -> impl Iterator<Item = &VipEntry> {
        self.vips.iter().chain(&self.removed)
    }

    /// Returns every backend, mutable, with its VIP's configuration; includes removed ones.
    pub fn all_backends_mut(&mut self) -> impl Iterator<Item = (&config::Vip, &mut BackendEntry)> {
        self.vips.iter_mut().chain(&mut self.removed).flat_map(|vip| {
            let config = &vip.config;
            let removed = vip.removed.iter_mut().map(|removed| &mut removed.what);
            vip.backends.iter_mut().chain(removed).map(move |backend| (config, backend))
        })
    }

    /// Finds a backend by the names of its VIP and its own.
    pub fn find_mut(&mut self, vip: &str, backend: &str) -> Option<&mut BackendEntry> {
        let vip = self.vips.iter_mut().find(|entry| entry.config.name == vip)?;
        vip.backends.iter_mut().find(|entry| entry.config.name == backend)
    }

    /// Finds a VIP by its name.
    pub fn vip(&self, name: &str) -> Option<&VipEntry> {
        self.vips.iter().find(|entry| entry.config.name == name)
    }

    /// Finds a backend by the names of its VIP and its own; returns the VIP, too.
    pub fn find(&self, vip: &str, backend: &str) -> Option<(&VipEntry, &BackendEntry)> {
        let vip = self.vip(vip)?;
        let backend = vip.backends.iter().find(|entry| entry.config.name == backend)?;
        Some((vip, backend))
    }

    /// Finds a backend by its index; returns the configuration of its VIP, too.
    pub fn at_mut(&mut self, index: BackendIndex) -> Option<(&config::Vip, &mut BackendEntry)> {
        let &(vip, backend) = self.places.get(&index)?;
        let vip = self.vips.get_mut(vip)?;
        Some((&vip.config, vip.backends.get_mut(backend)?))
    }

    /// Begins the next generation of a backend: every pin on it is stale from the next table on.
    pub fn end_generation(&mut self, index: BackendIndex) {
        let generation = self.backend_indices.bump(index.0);
        if let Some((_, backend)) = self.at_mut(index) {
            backend.id.generation = generation;
        }
    }

    /// Makes the registry hold exactly `vips`. VIPs and backends that stay keep index, health and
    /// drain; the flows of removed ones are treated according to the VIP's `on_remove`.
    ///
    /// # Errors
    /// When there are more VIPs or backends than indices; nothing has changed then.
    pub fn apply(
        &mut self,
        vips: &[config::Vip],
        workers: &[WorkerView],
        now: Instant,
    ) -> Result<(), Full> {
        self.has_room_for(vips)?;
        let mut old: Vec<Option<VipEntry>> = std::mem::take(&mut self.vips)
            .into_iter()
            .chain(std::mem::take(&mut self.removed))
            .map(Some)
            .collect();
        let configs: Vec<&config::Vip> = old.iter().flatten().map(|entry| &entry.config).collect();
        let continued = identity::continued(&configs, vips);
        let mut kept: Vec<Option<VipEntry>> =
            continued.into_iter().map(|index| old.get_mut(index?).and_then(Option::take)).collect();
        let in_force = InForce::of(vips);
        // Removals come first, so that there is always room for additions.
        for (entry, vip) in kept.iter_mut().zip(vips) {
            if let Some(entry) = entry {
                entry.part_from(Some(vip), &in_force, &mut self.backend_indices, workers, now);
            }
        }
        for mut entry in old.into_iter().flatten() {
            entry.part_from(None, &in_force, &mut self.backend_indices, workers, now);
            self.removed.push(entry);
        }
        self.drop_empty();
        self.make_room(&mut kept, vips);
        for (vip, entry) in vips.iter().zip(kept) {
            if let Some(mut entry) = entry.or_else(|| self.new_vip(vip, workers)) {
                self.update(&mut entry, vip, workers);
                self.vips.push(entry);
            }
        }
        self.remember_places();
        let vips: HashSet<VipId> = self.all_vips().map(|vip| vip.id).collect();
        self.denied.retain(|vip| vips.contains(&vip));
        Ok(())
    }

    /// Frees the indices of removed VIPs that have no removed backends left.
    fn drop_empty(&mut self) {
        let indices = &mut self.vip_indices;
        self.removed.retain(|vip| {
            if vip.removed.is_empty() {
                indices.give_back(vip.id.0);
            }
            !vip.removed.is_empty()
        });
    }

    /// Gives up the oldest removals until all of `vips` find indices.
    fn make_room(&mut self, kept: &mut [Option<VipEntry>], vips: &[config::Vip]) {
        let staying = |entry: &VipEntry| entry.backends.len();
        let wanted: usize = vips.iter().map(|vip| vip.backends.len()).sum();
        let wanted = wanted - kept.iter().flatten().map(staying).sum::<usize>();
        let wanted_vips = kept.iter().filter(|entry| entry.is_none()).count();
        while self.backend_indices.free() < wanted || self.vip_indices.free() < wanted_vips {
            let all = || kept.iter().flatten().chain(&self.removed);
            let removed = all().flat_map(|vip| &vip.removed);
            let Some(oldest) = removed.map(|removed| removed.since).min() else { return };
            let indices = &mut self.backend_indices;
            for vip in kept.iter_mut().flatten().chain(&mut self.removed) {
                vip.removed.retain(|removed| {
                    let stays = removed.since > oldest;
                    if !stays {
                        indices.give_back(removed.what.id.index.0);
                    }
                    stays
                });
            }
            self.drop_empty();
        }
    }

    /// Returns the removals of a change to `vips`: backends with their flows, and listeners.
    pub fn removals(&self, vips: &[config::Vip], workers: &[WorkerView]) -> Removals {
        let configs: Vec<_> = self.vips.iter().map(|entry| &entry.config).collect();
        let continued = identity::continued(&configs, vips);
        let goes_on =
            continued.into_iter().zip(vips).filter_map(|(index, vip)| Some((index?, vip)));
        let goes_on: HashMap<usize, &config::Vip> = goes_on.collect();
        let in_force = InForce::of(vips);
        let mut removals = Removals::default();
        for (index, entry) in self.vips.iter().enumerate() {
            let new = goes_on.get(&index).copied();
            let flow_action = new.unwrap_or(&entry.config).on_remove;
            let stays = |b: &BackendEntry| {
                let mut pool = new.into_iter().flat_map(|vip| &vip.backends);
                pool.any(|backend| identity::same_server(&b.config, backend))
            };
            for backend in entry.backends.iter().filter(|backend| !stays(backend)) {
                removals.gone.insert(backend.id);
                removals.all.push(Removal {
                    vip: entry.config.name.clone(),
                    backend: Some(backend.config.name.clone()),
                    flows: counters::flows_active(workers, backend.id.index),
                    flow_action,
                });
            }
            let Some(new) = new else { continue };
            let lost = identity::lost(identity::listens(&entry.config), new);
            let lost = in_force.divide(&lost).into_iter().filter(|(_, taken)| !taken);
            let name = || entry.config.name.clone();
            removals.lost.extend(lost.map(|(listen, _)| (entry.id, listen, name(), flow_action)));
        }
        removals
    }

    /// Returns the number of removed backends and listeners that have not been given up.
    pub fn lingering(&self) -> usize {
        self.all_vips().map(|vip| vip.removed.len() + vip.old.len()).sum()
    }

    /// Returns the previous listeners of VIPs in force with flows that are kept.
    pub fn kept_places(&self) -> Vec<(VipId, Listen)> {
        let kept = self.vips.iter().flat_map(|vip| {
            let kept = vip.old.iter().filter(|old| old.flow_action == FlowAction::Keep);
            kept.map(|old| (vip.id, old.what))
        });
        kept.collect()
    }

    /// Gives up a previous listener without flows.
    pub fn forget_place(&mut self, place: (VipId, Listen)) {
        self.end_removed(|vip, old| (vip.id, old.what) == place, |_, _| false);
    }

    /// Gives up all removed backends and listeners.
    pub fn forget_removed(&mut self) {
        self.end_removed(|_, _| true, |_, _| true);
    }

    /// Gives up removed backends and listeners that have no flows left, or had the time for resets.
    /// Returns the backends, with the flows that they still had.
    pub fn release(&mut self, workers: &[WorkerView], now: Instant) -> Vec<Gone> {
        let flows = |entry: &BackendEntry| counters::flows_active(workers, entry.id.index);
        let idle = |vip: &VipEntry| {
            let removed = vip.removed.iter().map(|removed| &removed.what);
            vip.backends.iter().chain(removed).all(|entry| flows(entry) == 0)
        };
        self.end_removed(
            |vip, listen| !vip.is_removed && listen.has_ended(Duration::ZERO, || idle(vip), now),
            |vip, backend| backend.has_ended(vip.recall(), || flows(&backend.what) == 0, now),
        )
        .into_iter()
        .map(|(vip, backend)| Gone {
            flows_left: flows(&backend.what),
            flows: backend.flows,
            vip,
            backend: backend.what.config.name,
        })
        .collect()
    }

    /// Gives up the listeners and backends that the predicates select. Returns the backends, with
    /// the names of their VIPs.
    fn end_removed(
        &mut self,
        listen_ends: impl Fn(&VipEntry, &Removed<Listen>) -> bool,
        backend_ends: impl Fn(&VipEntry, &Removed<BackendEntry>) -> bool,
    ) -> Vec<(String, Removed<BackendEntry>)> {
        let mut ended = Vec::new();
        for vip in self.vips.iter_mut().chain(&mut self.removed) {
            if vip.removed.is_empty() && vip.old.is_empty() {
                continue;
            }
            let old = std::mem::take(&mut vip.old);
            let left = old.into_iter().filter(|listen| !listen_ends(vip, listen)).collect();
            vip.old = left;
            let removed = std::mem::take(&mut vip.removed);
            let (gone, left): (Vec<_>, Vec<_>) =
                removed.into_iter().partition(|removed| backend_ends(vip, removed));
            vip.removed = left;
            for backend in gone {
                self.backend_indices.give_back(backend.what.id.index.0);
                ended.push((vip.config.name.clone(), backend));
            }
        }
        self.drop_empty();
        ended
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

    fn new_vip(&mut self, config: &config::Vip, workers: &[WorkerView]) -> Option<VipEntry> {
        let id = VipId(self.vip_indices.take()?);
        let base = counters::vip_baseline(workers, id);
        let config = config::Vip { backends: Vec::new(), ..config.clone() };
        let (backends, removed, old) = (Vec::new(), Vec::new(), Vec::new());
        let splits = Splits::default();
        Some(VipEntry {
            id,
            spliced: config.policy.syn_proxy,
            config,
            backends,
            splits,
            base,
            removed,
            old,
            is_removed: false,
            fails_open: false,
            withdrawal: Withdrawal::default(),
        })
    }

    fn new_backend(
        &mut self,
        backend: &config::Backend,
        workers: &[WorkerView],
    ) -> Option<BackendEntry> {
        let index = self.backend_indices.take()?;
        let generation = self.backend_indices.generation(index);
        let index = BackendIndex(index);
        let base = counters::backend_baseline(workers, index);
        Some(BackendEntry::new(BackendId { index, generation }, backend.clone(), base))
    }

    fn update(&mut self, entry: &mut VipEntry, new: &config::Vip, workers: &[WorkerView]) {
        let server = |backend: &config::Backend| (backend.address, backend.port);
        let mut kept: HashMap<_, BackendEntry> =
            entry.backends.drain(..).map(|old| (server(&old.config), old)).collect();
        for backend in &new.backends {
            let known = kept.remove(&server(backend));
            let known = known.or_else(|| self.new_backend(backend, workers));
            if let Some(mut known) = known {
                known.reconfigure(new, backend);
                if entry.config.policy.pin && !new.policy.pin {
                    known.id.generation = self.backend_indices.bump(known.id.index.0);
                }
                entry.backends.push(known);
            }
        }
        entry.spliced |= new.policy.syn_proxy;
        let affinity = std::mem::replace(&mut entry.config, new.clone()).policy.affinity;
        // Another affinity has other sources; other limits apply from the next window on.
        if affinity != new.policy.affinity || entry.split().is_none() {
            entry.splits = Splits::default();
        }
    }

    /// VIPs in force, mutable, in the configuration's order.
    pub fn vips_mut(&mut self) -> &mut [VipEntry] {
        &mut self.vips
    }

    /// Returns the input of the forwarding table.
    pub fn specs(&self) -> Vec<VipSpec> {
        self.all_vips().map(VipEntry::spec).collect()
    }

    /// Returns the input of the forwarding table of a running process: a VIP rejects no flow while
    /// the next hop of a backend that may serve is being looked up, because the client's next SYN
    /// finds it.
    pub fn patient_specs(&self) -> Vec<VipSpec> {
        let mut specs = self.specs();
        for (vip, spec) in self.vips.iter().zip(&mut specs) {
            spec.policy.reject_no_backend &=
                !vip.backends.iter().any(|b| vip.is_served_by(b) && b.awaits_next_hop());
        }
        specs
    }

    /// Returns the rules of the XDP program.
    pub fn steer_rules(&self, addresses: &[InterfaceAddress]) -> SteerRules {
        let (vips, networks) = by_kind(self.all_vips().flat_map(VipEntry::listens));
        let nat = self.all_vips().filter(|vip| vip.config.forward == Forward::Nat);
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

    /// Returns the address families of the VIPs of which flows may have splices.
    pub fn spliced(&self) -> Families {
        let spliced = || self.all_vips().filter(|vip| vip.spliced);
        let any = |family| spliced().any(|vip| vip.config.address.family() == family);
        Families { v4: any(Family::V4), v6: any(Family::V6) }
    }

    /// Returns the addresses that need next hops.
    pub fn targets(&self) -> HashSet<IpAddr> {
        let backends = self.all_vips().flat_map(VipEntry::all_backends);
        backends.map(|backend| backend.config.address).collect()
    }

    /// Returns the health checks to run.
    pub fn checks(&self) -> impl Iterator<Item = (BackendId, CheckSpec)> {
        self.backends().filter_map(|(_, backend)| Some((backend.id, backend.check.clone()?)))
    }

    /// Returns the hellos to backends of VIPs that ask; none without a key.
    pub fn hellos(&self, tunnels: &Tunnels) -> impl Iterator<Item = (BackendId, HelloSpec)> {
        let (keys, port) = (tunnels.fleet, tunnels.gue_port);
        let asking = self.vips.iter().filter(|vip| vip.config.policy.ask != Ask::Never);
        asking.flat_map(move |vip| {
            let address = vip.config.address.address();
            vip.backends.iter().filter_map(move |backend| {
                let target = SocketAddr::new(backend.config.address, port);
                Some((backend.id, HelloSpec { target, vip: address, keys: keys? }))
            })
        })
    }
}

impl VipEntry {
    /// Time for which removed backends are asked for flows.
    fn recall(&self) -> Duration {
        let policy = &self.config.policy;
        if policy.ask == Ask::Never { Duration::ZERO } else { policy.recall.duration() }
    }

    fn save(&self, moment: &Moment) -> SavedVip {
        let removal = |removed: &Removed<BackendEntry>| removed.save(moment, |it| it.save(moment));
        SavedVip {
            id: self.id.0,
            config: config::Vip { backends: Vec::new(), ..self.config.clone() },
            backends: self.backends.iter().map(|backend| backend.save(moment)).collect(),
            removed: self.removed.iter().map(removal).collect(),
            old: self.old.iter().map(|old| old.save(moment, |listen| *listen)).collect(),
            is_removed: self.is_removed,
            spliced: self.spliced,
        }
    }

    fn restore(saved: SavedVip, moment: &Moment) -> Self {
        let SavedVip { id, config, backends, removed, old, is_removed, spliced } = saved;
        let backend = |saved| BackendEntry::restore(saved, &config, moment);
        let removal = |saved| Removed::restore(saved, moment, backend);
        Self {
            id: VipId(id),
            backends: backends.into_iter().map(backend).collect(),
            splits: Splits::default(),
            base: Baseline::default(),
            removed: removed.into_iter().map(removal).collect(),
            old: old.into_iter().map(|old| Removed::restore(old, moment, |it| it)).collect(),
            is_removed,
            fails_open: false,
            withdrawal: Withdrawal::default(),
            spliced: spliced || config.policy.syn_proxy,
            config,
        }
    }

    /// Returns the backends in force, and the removed ones.
    pub fn all_backends(&self) -> impl Iterator<Item = &BackendEntry> {
        self.backends.iter().chain(self.removed.iter().map(|removed| &removed.what))
    }

    /// Returns the current and the previous listeners.
    pub fn listens(&self) -> impl Iterator<Item = Listen> {
        let now = identity::listens(&self.config).filter(|_| !self.is_removed);
        now.chain(self.old.iter().map(|old| old.what))
    }

    fn returns(&self) -> impl Iterator<Item = Listen> {
        self.all_backends().flat_map(move |backend| {
            let spec = backend.spec();
            self.listens().map(move |listen| return_listen(&spec, listen.ports, listen.protocol))
        })
    }

    /// Removes everything that `new`, the continuation of this VIP, lacks (without one,
    /// everything), and restores everything that it has again. Flows at a listener that another VIP
    /// takes over stay on their backends, as other flows of this VIP do. A VIP without pins leaves
    /// nothing behind.
    fn part_from(
        &mut self,
        new: Option<&config::Vip>,
        in_force: &InForce,
        indices: &mut Indices,
        workers: &[WorkerView],
        now: Instant,
    ) {
        let flow_action = match self.config.policy.pin {
            true => new.unwrap_or(&self.config).on_remove,
            false => FlowAction::Rehash,
        };
        let wanted: HashSet<_> =
            new.iter().flat_map(|vip| &vip.backends).map(|b| (b.address, b.port)).collect();
        let stays =
            |entry: &BackendEntry| wanted.contains(&(entry.config.address, entry.config.port));
        let (stay, gone): (Vec<_>, Vec<_>) = self.backends.drain(..).partition(stays);
        let (back, removed): (Vec<_>, Vec<_>) =
            self.removed.drain(..).partition(|removed| stays(&removed.what));
        let back = back.into_iter().map(|removed| removed.what.back());
        (self.backends, self.removed) = (stay.into_iter().chain(back).collect(), removed);
        for entry in gone {
            match flow_action {
                FlowAction::Rehash => indices.give_back(entry.id.index.0),
                flow_action => {
                    let flows = counters::flows_active(workers, entry.id.index);
                    self.removed.push(Removed { flows, ..Removed::new(entry, flow_action, now) });
                }
            }
        }
        let before: Vec<_> = identity::listens(&self.config).filter(|_| !self.is_removed).collect();
        let Some(new) = new else {
            self.is_removed = true;
            if flow_action != FlowAction::Rehash {
                self.old
                    .extend(before.into_iter().map(|place| Removed::new(place, flow_action, now)));
            }
            return;
        };
        let old = std::mem::take(&mut self.old).into_iter();
        self.old =
            old.flat_map(|old| old.without(new)).flat_map(|old| old.divide(in_force)).collect();
        let lost = identity::lost(before, new);
        let parts = match flow_action {
            // All parts are kept, so one entry covers them.
            FlowAction::Keep => lost.into_iter().map(|place| (place, true)).collect(),
            FlowAction::Reset | FlowAction::Rehash => in_force.divide(&lost),
        };
        for (place, is_taken) in parts {
            let flow_action = if is_taken { FlowAction::Keep } else { flow_action };
            if self.config.policy.pin && flow_action != FlowAction::Rehash {
                self.old.push(Removed::new(place, flow_action, now));
            }
        }
        self.is_removed = false;
    }

    /// Returns whether a backend of the VIP gets new flows, also because all are down (`fail_open`).
    pub fn is_served_by(&self, backend: &BackendEntry) -> bool {
        backend.serves() || self.fails_open && backend.takes_flows()
    }

    /// Returns whether a backend gets new flows, and its next hop is known or being looked up.
    pub fn is_served(&self) -> bool {
        let is_reached = |backend: &&BackendEntry| backend.problem.is_none();
        self.backends.iter().filter(is_reached).any(|backend| self.is_served_by(backend))
    }

    /// Returns whether every backend that takes new flows is down, and `fail_open` applies.
    pub fn must_fail_open(&self) -> bool {
        let mut candidates = self.backends.iter().filter(|backend| backend.takes_flows());
        let is_down = |backend: &BackendEntry| !backend.is_up();
        self.config.fail_open && candidates.next().is_some_and(is_down) && candidates.all(is_down)
    }

    /// Returns how large sources are split, if all flows of a source go to one backend.
    pub fn split(&self) -> Option<&config::Split> {
        let together = match self.config.policy.affinity {
            Affinity::Client | Affinity::ClientPrefix { .. } => true,
            Affinity::Flow | Affinity::QuicCid => {
                self.config.policy.remember.is_some_and(|remember| remember.sticky.is_some())
            }
            // Sources are split from the start.
            Affinity::ClientPorts { .. } => false,
        };
        self.config.split.as_ref().filter(|_| together)
    }

    /// Returns the input of the forwarding table for a backend in force.
    fn in_force(&self, backend: &BackendEntry) -> BackendSpec {
        let spec = backend.spec();
        BackendSpec { up: spec.up || self.fails_open, ..spec }
    }

    fn spec(&self) -> VipSpec {
        let on_down = self.config.policy.on_down;
        let removed = self.removed.iter().map(|removed| removed.spec(on_down));
        VipSpec {
            id: self.id,
            address: self.config.address,
            ports: match self.is_removed {
                true => Ports::List(Vec::new()),
                false => self.config.ports.clone(),
            },
            protocol: self.config.protocol,
            forward: self.config.forward,
            policy: self.config.policy.clone(),
            splits: self.splits.clone(),
            sampled: self.split().is_some(),
            fails_open: self.fails_open,
            spliced: self.spliced,
            backends: self
                .backends
                .iter()
                .map(|backend| self.in_force(backend))
                .chain(removed)
                .collect(),
            old: self.old.iter().map(|old| old.spec()).collect(),
        }
    }
}

impl BackendEntry {
    /// Creates a backend of which nothing is known yet.
    fn new(id: BackendId, config: config::Backend, base: Baseline) -> Self {
        Self {
            id,
            config,
            check: None,
            health: Hysteresis::default(),
            health_detail: String::new(),
            damping: Damping::default(),
            drain: Drain::default(),
            forecast: None,
            slow_start: SlowStart::default(),
            next_hop: None,
            mtu: UNLIMITED,
            next_hop_detail: Problem::Resolving.to_string(),
            problem: None,
            answering: Answering::default(),
            passive: Passive::default(),
            limit: Limit::default(),
            program: Program::default(),
            base,
        }
    }

    fn save(&self, moment: &Moment) -> SavedBackend {
        SavedBackend {
            index: self.id.index.0,
            generation: self.id.generation,
            config: self.config.clone(),
            drain: self.drain.save(moment),
            health: None,
        }
    }

    fn restore(saved: SavedBackend, vip: &config::Vip, moment: &Moment) -> Self {
        let SavedBackend { index, generation, config, drain, health } = saved;
        let id = BackendId { index: BackendIndex(index), generation };
        let check = CheckSpec::of(vip, &config);
        let drain = Drain::restore(drain, moment);
        let (health, health_detail) =
            health.map(|saved| (Hysteresis::after(saved.up), saved.detail)).unwrap_or_default();
        // The counters of this process begin at zero.
        let new = Self::new(id, config, Baseline::default());
        Self { check, drain, health, health_detail, ..new }
    }

    /// Returns whether the backend may get new flows: no drain, no weight of 0, and up.
    pub fn serves(&self) -> bool {
        self.takes_flows() && self.is_up()
    }

    /// Returns whether the backend gets new flows while it is up: no drain, no weight of 0.
    pub fn takes_flows(&self) -> bool {
        self.drain.service() == Service::Active && self.config.weight > 0
    }

    /// Returns whether the backend counts as up: no health check has found it down, and it is not
    /// held down.
    pub fn is_up(&self) -> bool {
        self.check.is_none() || self.health.usable() && !self.damping.is_held()
    }

    /// Returns whether the next hop is being looked up, and no problem of it is known yet.
    pub const fn awaits_next_hop(&self) -> bool {
        self.next_hop.is_none() && self.problem.is_none()
    }

    /// Returns the backend as if it had never been removed, without its drain.
    fn back(self) -> Self {
        Self { drain: Drain::default(), forecast: None, ..self }
    }

    /// Returns the input of the forwarding table.
    pub fn spec(&self) -> BackendSpec {
        BackendSpec {
            id: self.id,
            name: self.config.name.clone(),
            address: self.config.address,
            port: self.config.port,
            weight: self.config.weight,
            share: if self.passive.is_out() { 0 } else { self.slow_start.share() },
            up: self.is_up(),
            service: self.drain.service(),
            flow_action: self.drain.flows_left(),
            next_hop: self.next_hop,
            mtu: self.mtu,
            server_ids: self.config.server_ids.clone(),
            max_flows: self.config.max_connections,
            can_be_asked: self.program.is_ready(),
            removed: false,
        }
    }

    /// Applies the changes to a backend that stays.
    fn reconfigure(&mut self, vip: &config::Vip, backend: &config::Backend) {
        self.config = backend.clone();
        let check = CheckSpec::of(vip, backend);
        let target = |check: &Option<CheckSpec>| check.as_ref().map(|check| check.target);
        // A verdict about another port, or from before checks were turned off, is void.
        if target(&check) != target(&self.check) {
            self.health = Hysteresis::default();
            self.health_detail.clear();
            self.damping = Damping::default();
        }
        self.check = check;
    }
}

impl Removed<BackendEntry> {
    /// Returns the input of the forwarding table. A removed backend is no longer checked: if it was
    /// down, the action `on_down` stays in force for kept flows.
    pub fn spec(&self, on_down: FlowAction) -> BackendSpec {
        let spec = self.what.spec();
        let flow_action = match (self.flow_action, spec.up) {
            (FlowAction::Keep, false) => on_down,
            (flow_action, _) => flow_action,
        };
        BackendSpec { flow_action, service: Service::Out, removed: true, ..spec }
    }
}

/// Returns the single addresses and ports, and all other listeners, without duplicates.
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
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Announce, Health, TcpHealth};
    use crate::forwarding::{Affinity, FlowAction, Ports, SchedulerKind, Timeouts, VipPolicy};
    use crate::net::{AccessLists, Protocol};
    use crate::units::Ticks;

    /// Returns a backend `name` at 127.0.1.`host`.
    pub fn backend(name: &str, host: u8) -> config::Backend {
        let address = IpAddr::from([127, 0, 1, host]);
        config::Backend {
            name: name.to_owned(),
            address,
            port: Some(8080),
            weight: 1,
            server_ids: Vec::new(),
            max_connections: None,
        }
    }

    /// Returns a NAT VIP at 192.0.2.10:80 without health checks and announcements.
    pub fn vip(name: &str, backends: &[config::Backend]) -> config::Vip {
        config::Vip {
            name: name.to_owned(),
            address: [192, 0, 2, 10].into(),
            ports: Ports::of(&[80]),
            protocol: Protocol::Tcp,
            forward: Forward::Nat,
            policy: VipPolicy {
                scheduler: SchedulerKind::Maglev { size: 251 },
                timeouts: Timeouts {
                    embryonic: Ticks::seconds(1),
                    established: Ticks::seconds(1800),
                    closing: Ticks::seconds(1),
                    udp_first: Ticks::seconds(1),
                    udp: Ticks::seconds(1),
                },
                reject_no_backend: false,
                ..VipPolicy::default()
            },
            split: None,
            health: Health::None,
            fail_open: false,
            withdraws: false,
            damping: None,
            passive: None,
            drain: config::Drain {
                deadline: None,
                then: FlowAction::Rehash,
                slow_start: Duration::ZERO,
            },
            on_remove: FlowAction::Rehash,
            announce: Announce::None,
            access: AccessLists::default(),
            rate: None,
            backends: backends.to_vec(),
        }
    }

    /// Returns `vip` with a changed policy.
    pub fn with(mut vip: config::Vip, change: impl FnOnce(&mut VipPolicy)) -> config::Vip {
        change(&mut vip.policy);
        vip
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
        let at = |host: u8, vip| config::Vip { address: [192, 0, 2, host].into(), ..vip };
        let mail = at(25, vip("mail", &[backend("a", 1)]));
        registry.apply(&[web.clone(), mail], &[], Instant::now()).unwrap();
        assert_eq!(id(&registry, "web", "b"), (1, 0));
        assert_eq!(id(&registry, "mail", "a"), (2, 0));
        let mut changed = vip("web", &[backend("c", 3), backend("b", 2)]);
        changed.backends.last_mut().unwrap().weight = 7;
        registry.apply(&[at(7, vip("new", &[])), changed], &[], Instant::now()).unwrap();
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
        registry.apply(std::slice::from_ref(&old), &[], Instant::now()).unwrap();
        let mut port = backend("a", 2);
        port.port = None;
        let proxied = with(vip("web", std::slice::from_ref(&port)), |policy| policy.proxy = true);
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
            registry.apply(&[new], &[], Instant::now()).unwrap();
            assert_eq!(usize::from(id(&registry, "web", "a").0), row + 1, "{name}");
            let same = registry.vips().first().unwrap().id == VipId(0);
            assert_eq!(same, row < 2, "{name}: the VIP stays, if its flows are of one kind");
        }
    }

    /// Pins become stale when a VIP no longer pins; everything else stays.
    #[test]
    fn a_vip_that_gives_up_its_pins_begins_another_generation() {
        let mut registry = Registry::default();
        let pinned = vip("web", &[backend("a", 1)]);
        let unpinned = with(pinned.clone(), |policy| policy.pin = false);
        for (pins, expected) in
            [(&pinned, 0), (&pinned, 0), (&unpinned, 1), (&unpinned, 1), (&pinned, 1)]
        {
            registry.apply(std::slice::from_ref(pins), &[], Instant::now()).unwrap();
            assert_eq!(id(&registry, "web", "a"), (0, expected), "pin: {}", pins.policy.pin);
            assert_eq!(registry.specs().first().unwrap().policy, pins.policy);
        }
    }

    #[test]
    fn names_do_not_move_flows() {
        let mut registry = Registry::default();
        let now = Instant::now();
        registry.apply(&[vip("web", &[backend("a", 1), backend("b", 2)])], &[], now).unwrap();
        registry.find_mut("web", "a").unwrap().drain.begin(None, 0, now);
        let rows = [
            ("renamed", vip("web", &[backend("x", 1), backend("b", 2)]), ["x", "b"]),
            ("swapped", vip("web", &[backend("b", 1), backend("x", 2)]), ["b", "x"]),
            ("the VIP too", vip("www", &[backend("x", 2), backend("y", 1)]), ["y", "x"]),
        ];
        for (row, new, [first, second]) in rows {
            let name = new.name.clone();
            registry.apply(&[new], &[], now).unwrap();
            assert_eq!(id(&registry, &name, first), (0, 0), "{row}");
            assert_eq!(id(&registry, &name, second), (1, 0), "{row}");
            let drained = registry.find(&name, first).unwrap().1.drain.service();
            assert_eq!(drained, Service::Draining, "{row}: its drain goes on");
            assert_eq!((registry.lingering(), registry.removed().len()), (0, 0), "{row}");
        }
    }

    fn left_of(registry: &Registry, index: u16) -> Option<(FlowAction, bool)> {
        let specs = registry.specs();
        let mut backends = specs.iter().flat_map(|vip| &vip.backends);
        let found = backends.find(|backend| backend.id.index.0 == index)?;
        Some((found.flow_action, found.removed))
    }

    /// Returns a worker without flows, with counters of this many backends.
    fn worker(backends: usize) -> super::super::WorkerView {
        let secret = crate::net::TableSecret::new(1);
        let families = crate::flow::table::Families::default();
        let flows = crate::flow::table::FlowTable::new(8, secret, families).unwrap();
        super::super::WorkerView {
            core: 0,
            stats: std::sync::Arc::new(crate::stats::WorkerStats::new(8, backends, 1)),
            flows: std::sync::Arc::new(flows),
        }
    }

    /// A removed backend waits for its flows, and has its pins again if it comes back meanwhile.
    #[test]
    fn a_removed_backend_keeps_its_index_until_its_flows_have_ended() {
        let second = Duration::from_secs(1);
        for (flow_action, long) in
            [(FlowAction::Reset, second * 18), (FlowAction::Keep, second * 100_000)]
        {
            let workers = [worker(8)];
            let flows = &workers[0].stats.backends[1].flows_active;
            flows.add(7);
            let mut registry = Registry::default();
            let now = Instant::now();
            let with = |names: &[(&str, u8)]| {
                let pool: Vec<_> = names.iter().map(|&(name, host)| backend(name, host)).collect();
                [config::Vip { on_remove: flow_action, ..vip("web", &pool) }]
            };
            registry.apply(&with(&[("a", 1), ("b", 2)]), &workers, now).unwrap();
            registry.apply(&with(&[("a", 1)]), &workers, now).unwrap();
            assert_eq!(left_of(&registry, 1), Some((flow_action, true)));
            assert!(registry.find("web", "b").is_none());
            registry.apply(&with(&[("a", 1), ("c", 2)]), &workers, now).unwrap();
            assert_eq!(id(&registry, "web", "c"), (1, 0), "back, with its pins");
            assert_eq!(left_of(&registry, 1), Some((FlowAction::Keep, false)));
            registry.apply(&with(&[("a", 1)]), &workers, now).unwrap();
            assert_eq!(registry.release(&workers, now + long - second), []);
            if flow_action == FlowAction::Keep {
                flows.sub(7);
            }
            let gone = registry.release(&workers, now + long + second);
            assert_eq!(gone.len(), 1, "{flow_action:?}");
            assert_eq!((gone[0].flows, gone[0].backend.as_str()), (7, "c"));
            assert_eq!((left_of(&registry, 1), registry.lingering()), (None, 0));
        }
    }

    /// A VIP that is removed or changes its kind waits with its listeners, as does one that loses a
    /// port.
    #[test]
    fn lost_addresses_and_ports_wait_for_their_flows() {
        type Change = fn(&mut config::Vip);
        let web = config::Vip {
            on_remove: FlowAction::Reset,
            ports: Ports::of(&[80, 443]),
            ..vip("web", &[backend("a", 1)])
        };
        let rows: [(&str, Change, &[u16], bool); 5] = [
            ("port", |vip| vip.ports = Ports::of(&[80]), &[443], false),
            ("ports", |vip| vip.ports = Ports::of(&[8080]), &[80, 443], false),
            ("address", |vip| vip.address = [192, 0, 2, 99].into(), &[80, 443], false),
            ("forward", |vip| vip.forward = Forward::FullNat, &[80, 443], true),
            ("one more", |vip| vip.ports = Ports::of(&[80, 443, 22]), &[], false),
        ];
        for (name, change, lost, another) in rows {
            let mut registry = Registry::default();
            let now = Instant::now();
            registry.apply(std::slice::from_ref(&web), &[], now).unwrap();
            let mut new = web.clone();
            change(&mut new);
            registry.apply(std::slice::from_ref(&new), &[], now).unwrap();
            let specs = registry.specs();
            let mut old: Vec<u16> = specs
                .iter()
                .flat_map(|vip| &vip.old)
                .inspect(|old| assert_eq!(old.flow_action, FlowAction::Reset, "{name}"))
                .map(|old| old.listen.ports.first)
                .collect();
            old.sort_unstable();
            assert_eq!((old.as_slice(), registry.removed().len() == 1), (lost, another), "{name}");
            // The steering stays, and the return path of the backend.
            let rules = registry.steer_rules(&[]);
            let all = rules.vips.iter().filter(|key| key.address == web.address.address()).count();
            let now_there = if name == "address" { 0 } else { new.ports.ranges().len() };
            let both = if another { 0 } else { lost.len() };
            assert_eq!(all, now_there + both, "{name}");
            assert_eq!(rules.returns.len(), 1, "{name}");
            registry.release(&[], now + Duration::from_millis(500));
            assert_eq!(
                registry.lingering() > 0,
                !lost.is_empty(),
                "{name}: not before workers know"
            );
            registry.release(&[], now + Duration::from_secs(2));
            assert_eq!((registry.lingering(), registry.removed().len()), (0, 0), "{name}");
        }
    }

    /// Flows of a port that moves from one VIP to another stay on their backends until the last of
    /// them has ended.
    #[test]
    fn flows_of_a_port_that_another_vip_takes_over_go_on() {
        let web = config::Vip { on_remove: FlowAction::Reset, ..vip("web", &[backend("a", 1)]) };
        let ports =
            |name: &str, ports: Ports| config::Vip { name: name.to_owned(), ports, ..web.clone() };
        let range = Ports::List(vec![PortRange { first: 400, last: 500 }]);
        for taken_by in [Ports::of(&[443]), Ports::of(&[22, 443]), range, Ports::All] {
            let mut registry = Registry::default();
            let now = Instant::now();
            registry.apply(&[ports("web", Ports::of(&[80, 443]))], &[], now).unwrap();
            let new = [ports("web", Ports::of(&[80])), ports("tls", taken_by.clone())];
            assert!(registry.removals(&new, &[]).lost.is_empty(), "{taken_by:?}: none is cut");
            registry.apply(&new, &[], now).unwrap();
            let specs = registry.specs();
            let left: Vec<_> = specs[0].old.iter().map(|old| old.flow_action).collect();
            assert_eq!(left, [FlowAction::Keep], "{taken_by:?}");
            let place = registry.kept_places()[0];
            registry.release(&[], now + Duration::from_millis(500));
            assert_eq!(registry.kept_places(), [place], "{taken_by:?}: its flows are counted");
        }
    }

    /// Each port of a lost range has the fate that it would have by itself.
    #[test]
    fn a_lost_range_goes_in_parts() {
        let now = Instant::now();
        let range = |first, last| PortRange { first, last };
        let at = |name: &str, ports: &[PortRange]| config::Vip {
            on_remove: FlowAction::Reset,
            ports: Ports::List(ports.to_vec()),
            name: name.to_owned(),
            ..vip(name, &[backend("a", 1)])
        };
        let workers = [worker(8)];
        workers[0].stats.backends[0].flows_active.add(7);
        let mut registry = Registry::default();
        registry.apply(&[at("web", &[range(1000, 2000)])], &workers, now).unwrap();
        let divided = [
            at("web", &[range(1000, 1499)]),
            at("one", &[range(1500, 1500), range(1600, 1650)]),
            at("two", &[range(900, 999), range(1900, 2100)]),
        ];
        let parts = |registry: &Registry, fate: FlowAction| {
            let specs = registry.specs();
            let old = specs.iter().flat_map(|vip| &vip.old).filter(|old| old.flow_action == fate);
            let mut parts: Vec<_> = old.map(|old| old.listen.ports).collect();
            parts.sort_unstable();
            parts
        };
        let reset = [range(1501, 1599), range(1651, 1899)];
        let kept = [range(1500, 1500), range(1600, 1650), range(1900, 2000)];
        let mut reported: Vec<_> = registry
            .removals(&divided, &[])
            .lost
            .iter()
            .map(|(_, place, ..)| place.ports)
            .collect();
        reported.sort_unstable();
        assert_eq!(reported, reset, "what has ended is counted");
        registry.apply(&divided, &workers, now).unwrap();
        assert_eq!(parts(&registry, FlowAction::Reset), reset);
        assert_eq!(parts(&registry, FlowAction::Keep), kept);
        registry.release(&workers, now + super::super::drain::RESETS);
        assert_eq!(parts(&registry, FlowAction::Reset), []);
        // A listener that comes back is no longer lost, whatever its parts.
        let back = [at("web", &[range(1000, 1620)]), at("two", &[range(1900, 2100)])];
        registry.apply(&back, &workers, now).unwrap();
        assert_eq!(parts(&registry, FlowAction::Keep), [range(1621, 1650), range(1900, 2000)]);
        // Flows to be reset are kept where another VIP listens soon after.
        let mut registry = Registry::default();
        let ports = |name: &str, ports: &[u16]| {
            at(name, &ports.iter().copied().map(PortRange::single).collect::<Vec<_>>())
        };
        registry.apply(&[ports("web", &[80, 443])], &[], now).unwrap();
        registry.apply(&[ports("web", &[80])], &[], now).unwrap();
        assert_eq!(parts(&registry, FlowAction::Reset), [PortRange::single(443)]);
        registry.apply(&[ports("web", &[80]), ports("tls", &[443])], &[], now).unwrap();
        assert_eq!(parts(&registry, FlowAction::Keep), [PortRange::single(443)]);
        // All ports: no part of them is port 0, which stands for all.
        let all = config::Vip { ports: Ports::All, ..at("web", &[]) };
        let mut registry = Registry::default();
        registry.apply(&[all], &[], now).unwrap();
        registry.apply(&[at("web", &[range(1, 79), range(81, 65_535)])], &[], now).unwrap();
        assert_eq!(parts(&registry, FlowAction::Reset), [PortRange::single(80)]);
        // Far too many parts: nothing is reset.
        let odd: Vec<_> = (1000..2000).step_by(2).map(PortRange::single).collect();
        let many = [at("web", &[range(1, 1)]), at("odd", &odd)];
        let mut registry = Registry::default();
        registry.apply(&[at("web", &[range(1000, 2000)])], &[], now).unwrap();
        registry.apply(&many, &[], now).unwrap();
        assert_eq!(parts(&registry, FlowAction::Keep), [range(1000, 2000)]);
    }

    /// Holds for any number of reloads, and any number of removals.
    #[test]
    fn removed_backends_give_way_and_indices_stay_low() {
        let now = Instant::now();
        let kept = |host: u16| {
            let [high, low] = host.to_be_bytes();
            let address = IpAddr::from([127, 1, high, low]);
            let pool = [config::Backend { address, ..backend("a", 1) }];
            [config::Vip { on_remove: FlowAction::Keep, ..vip("web", &pool) }]
        };
        let mut small = Registry::with_room(1, 3);
        for host in 0..1000 {
            small.apply(&kept(host), &[], now).unwrap();
            assert!(small.lingering() < 3);
            assert_eq!(small.backends().count(), 1);
        }
        // With time between reloads nothing is left, and tables stay short.
        let mut registry = Registry::default();
        let mut highest = 0;
        for host in 0..3000 {
            registry.apply(&kept(host), &[], now).unwrap();
            registry.release(&[], now + Duration::from_secs(2));
            highest = highest.max(id(&registry, "web", "a").0);
        }
        assert!(usize::from(highest) <= RESTING + 2, "{highest}");
    }

    fn pick<T: Copy>(all: &[T], number: u64) -> T {
        all[usize::try_from(number).unwrap()]
    }

    /// Random reloads add and remove VIPs and backends, and bring them back with other names,
    /// addresses and modes.
    #[test]
    fn any_reloads_leave_every_index_with_one_owner() {
        let mut state = 1_u64;
        let mut below = move |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            (state >> 33) % bound
        };
        let workers = [worker(16)];
        let (mut registry, mut now) = (Registry::with_room(5, 12), Instant::now());
        for round in 0..1000 {
            let mut vips: Vec<config::Vip> = Vec::new();
            for host in 1..=4_u8 {
                if below(3) == 0 {
                    continue;
                }
                let mut pool = Vec::new();
                for server in 1..=3_u8 {
                    if below(2) == 0 {
                        pool.push(backend(&format!("b{}-{server}", below(2)), server));
                    }
                }
                let ports: [&[u16]; 3] = [&[80], &[443], &[80, 443]];
                let modes = [Forward::Nat, Forward::Dsr];
                let fates = [FlowAction::Keep, FlowAction::Reset, FlowAction::Rehash];
                let name = format!("v{}", (u64::from(host) + below(2) * 10) % 13);
                vips.push(config::Vip {
                    address: [192, 0, 2, host].into(),
                    ports: Ports::of(pick(&ports, below(3))),
                    forward: pick(&modes, below(2)),
                    on_remove: pick(&fates, below(3)),
                    ..vip(&name, &pool)
                });
            }
            for stats in &workers[0].stats.backends {
                stats.flows_active.sub(stats.flows_active.get());
                stats.flows_active.add(below(2));
            }
            registry.apply(&vips, &workers, now).unwrap();
            now += Duration::from_millis(below(3000));
            registry.release(&workers, now);
            let names = |vips: &[config::Vip]| {
                vips.iter().map(|vip| (vip.name.clone(), vip.backends.clone())).collect::<Vec<_>>()
            };
            let in_force: Vec<_> = registry.vips().iter().map(|vip| vip.config.clone()).collect();
            assert_eq!(names(&in_force), names(&vips), "{round}");
            for entry in registry.vips() {
                let made = entry.backends.iter().map(|backend| &backend.config);
                assert!(made.eq(&entry.config.backends), "{round}");
            }
            let all = || registry.all_vips();
            let vip_ids: HashSet<_> = all().map(|vip| vip.id).collect();
            assert_eq!(vip_ids.len() + registry.vip_indices.free(), 5, "{round}");
            assert_eq!(vip_ids.len(), all().count(), "{round}");
            let backends: Vec<_> = all().flat_map(VipEntry::all_backends).collect();
            let ids: HashSet<_> = backends.iter().map(|backend| backend.id.index).collect();
            assert_eq!(ids.len(), backends.len(), "{round}: one owner each");
            assert_eq!(ids.len() + registry.backend_indices.free(), 12, "{round}");
        }
    }

    #[test]
    fn an_index_is_used_again_last_and_with_another_generation() {
        let mut registry = Registry::with_room(2, 3);
        let with = |name: &str, host| [vip("web", &[backend(name, host)])];
        let mut seen = Vec::new();
        for host in 1..=5 {
            registry.apply(&with(&format!("b{host}"), host), &[], Instant::now()).unwrap();
            seen.push(id(&registry, "web", &format!("b{host}")));
        }
        assert_eq!(seen, [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)]);
        registry.end_generation(BackendIndex(1));
        assert_eq!(id(&registry, "web", "b5"), (1, 2));
        let all: Vec<_> = (6..=8).map(|host| backend("x", host)).collect();
        registry.apply(&[vip("web", &all)], &[], Instant::now()).unwrap();
        assert_eq!(registry.backends().count(), 3, "all at once still finds room");
    }

    #[test]
    fn too_many_change_nothing() {
        let mut registry = Registry::with_room(1, 1);
        registry.apply(&[vip("web", &[backend("a", 1)])], &[], Instant::now()).unwrap();
        let error =
            registry.apply(&[vip("web", &[backend("b", 1), backend("c", 2)])], &[], Instant::now());
        assert_eq!(error, Err(Full { what: "backends", count: 2, room: 1 }));
        assert!(registry.apply(&[vip("web", &[]), vip("mail", &[])], &[], Instant::now()).is_err());
        assert_eq!(id(&registry, "web", "a"), (0, 0));
    }

    #[test]
    fn health_and_drain_survive_a_reload() {
        let mut registry = Registry::default();
        let checked = config::Vip { health: tcp_health(), ..vip("web", &[backend("a", 1)]) };
        registry.apply(std::slice::from_ref(&checked), &[], Instant::now()).unwrap();
        let entry = registry.find_mut("web", "a").unwrap();
        entry.health.observe(false, 1, 1);
        entry.drain.begin(None, 0, tokio::time::Instant::now());
        registry.apply(std::slice::from_ref(&checked), &[], Instant::now()).unwrap();
        let spec = registry.find("web", "a").unwrap().1.spec();
        assert_eq!((spec.up, spec.service), (false, Service::Draining));
        registry.apply(&[vip("web", &[backend("a", 1)])], &[], Instant::now()).unwrap();
        assert!(registry.find("web", "a").unwrap().1.spec().up, "no check any more");
        registry.apply(&[checked], &[], Instant::now()).unwrap();
        assert!(registry.find("web", "a").unwrap().1.spec().up, "not yet checked again");
    }

    #[test]
    fn no_flow_is_refused_while_a_next_hop_is_looked_up() {
        let mut registry = Registry::default();
        let both = [backend("a", 1), backend("b", 2)];
        let web = with(vip("web", &both), |policy| policy.reject_no_backend = true);
        registry.apply(&[web], &[], Instant::now()).unwrap();
        let refuses = |registry: &Registry| registry.patient_specs()[0].policy.reject_no_backend;
        assert!(registry.specs()[0].policy.reject_no_backend);
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
        let client = config::Vip { split: Some(split), ..vip("web", &[backend("a", 1)]) };
        let client = with(client, |policy| policy.affinity = Affinity::Client);
        type Change = fn(&mut config::Vip);
        let rows: [(&str, Change, bool); 4] = [
            ("a backend", |vip| vip.backends.push(backend("b", 2)), true),
            ("limits", |vip| vip.split.as_mut().unwrap().max_load = 2.0, true),
            ("off", |vip| vip.split = None, false),
            (
                "others",
                |vip| vip.policy.affinity = Affinity::ClientPrefix { v4: 24, v6: 56 },
                false,
            ),
        ];
        for (name, change, stay) in rows {
            let mut registry = Registry::default();
            registry.apply(std::slice::from_ref(&client), &[], Instant::now()).unwrap();
            registry.vips_mut().first_mut().unwrap().splits = some.clone();
            let mut new = client.clone();
            change(&mut new);
            registry.apply(&[new], &[], Instant::now()).unwrap();
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
        registry.apply(&[nat, all, dsr], &[], Instant::now()).unwrap();
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

    /// Memory of the control thread as stated in docs/PERFORMANCE.md, without names.
    #[test]
    fn an_entry_takes_bounded_memory() {
        let (vip, backend) = (size_of::<VipEntry>(), size_of::<BackendEntry>());
        assert!(vip <= 672 && backend <= 720, "{vip} bytes per VIP, {backend} per backend");
    }
}
