//! The forwarding table: VIPs, backends and return paths, found in O(1).

use std::sync::Arc;

use arrayvec::ArrayVec;
use hashbrown::{HashMap, HashSet};

use super::affinity::{Affinity, Secret};
use super::history::{History, State, Taker};
use super::listeners::Listeners;
use super::local::UNLIMITED;
use super::old_listeners::OldListeners;
use super::quic_lb::QuicLb;
use super::scheduler::least_connections::LeastConnections;
use super::scheduler::{Built, Candidate};
use super::server::Server;
use super::service::{FlowAction, Miss, Service};
use super::share::{Shares, shares};
use super::spec::{BackendSpec, FULL_SHARE, VipSpec};
use super::sticky::{Hold, Reentry, Sticky};
use super::tunnel::Entropy;
use super::{Ask, ClientKey, FlowTimeouts, Local, MAX_RETURN_PATHS, Splits, VipPolicy};
use crate::net::{
    Address, BackendId, BackendIndex, FlowKey, Forward, Listen, ListenKey, NextHop, PathKey,
    PortRange, Protocol, VipId, exact,
};
use crate::units::Ticks;

/// Most backends that are likely to have a flow.
pub const MAX_OWNERS: usize = 16;

/// Backends that may have a flow without a pin, and can be asked.
#[derive(Debug, Default)]
pub struct Owners<'t> {
    /// The likely ones, each once, in the order in which they are to be asked.
    pub likely: ArrayVec<&'t Backend, MAX_OWNERS>,
    /// Whether any other backend of the VIP may have it, too.
    pub or_any: bool,
    /// Whether all tables that are known have chosen the same one.
    pub is_sure: bool,
}

/// The immutable forwarding state of all workers.
///
/// Memory: about 2 bytes per lookup table slot and VIP (shared between generations), 64 per
/// backend, 64 per VIP port, 64 per NAT backend and port.
///
/// Aligned to cache lines of its own: the reference count, which the control thread changes, is not
/// on lines that workers read.
#[derive(Debug)]
#[repr(align(128))]
pub struct ForwardingTable {
    generation: u64,
    secret: Secret,
    local: Local,
    vips: Vec<Option<Vip>>,
    backends: Vec<Option<Backend>>,
    listeners: Listeners,
    returns: HashMap<ListenKey, Vec<ReturnPath>>,
    /// Addresses of tunnel endpoints.
    tunnel_ends: HashSet<Address>,
    /// Flow hash for outer headers.
    entropy: Entropy,
    /// Backends that reply from ranges of ports, by address and protocol.
    return_ranges: HashMap<(Address, Protocol), Vec<(PortRange, ReturnPath)>>,
    /// Whether some backend replies from all ports; if not, that look-up is skipped.
    any_returns: bool,
    /// Whether some backend replies without pins; if not, that look-up is skipped.
    unpinned_returns: bool,
    /// Whether some VIP may have flows with splices; if not, that look-up is skipped.
    spliced: bool,
    /// Listeners that VIPs have lost by reloads.
    old: OldListeners,
}

/// A VIP.
#[derive(Debug)]
pub struct Vip {
    /// Index.
    pub id: VipId,
    /// Protocol of its flows.
    pub protocol: Protocol,
    /// How packets reach its backends.
    pub forward: Forward,
    /// Options.
    pub policy: VipPolicy,
    /// Scheduler over all backends that have weight, in service or not.
    pub scheduler: Built,
    /// Scheduler for returning clients, where they get the freest backend.
    pub freest: Option<LeastConnections>,
    /// Shares of the workers' tables.
    pub shares: Shares,
    /// Client addresses with flows spread over several backends.
    pub splits: Splits,
    /// What its choice depends on.
    state: State,
    /// The same, if all backends with weight were in service.
    whole: State,
    /// What it depended on in earlier tables.
    history: History,
    /// Whether workers report its new flows as samples.
    pub sampled: bool,
    /// Whether its backends, all of which are down, count as up.
    pub fails_open: bool,
    /// Longest IP packet of a client, in bytes, that reaches every backend in one piece.
    pub mtu: u16,
    /// Connection-id state, for [`Affinity::QuicCid`].
    pub quic: Option<Box<QuicLb>>,
    /// Names of its backends, for display.
    names: Arc<[(BackendIndex, Box<str>)]>,
}

/// Bits for extra processing that packets of a backend need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BackendFlags(u8);

impl BackendFlags {
    /// Connection ids may name another backend ([`Affinity::QuicCid`]).
    pub const QUIC: Self = Self(1);
    /// Packets keep the record of their client alive ([`VipPolicy::remember`]).
    pub const REMEMBERS: Self = Self(2);
    /// Flows of the backend may end: [`Backend::flow_action`] is not [`FlowAction::Keep`].
    pub const FLOW_ACTION: Self = Self(4);
    /// Flows to addresses and ports that the VIP has lost are reset ([`VipSpec::old`]).
    pub const OLD_PORTS: Self = Self(8);
    /// Flows may have splices ([`VipSpec::spliced`]).
    pub const SPLICED: Self = Self(16);

    /// Whether no bit is set.
    #[inline]
    pub const fn none(self) -> bool {
        self.0 == 0
    }

    /// Whether the only bit is [`BackendFlags::REMEMBERS`], for which most packets need no work.
    #[inline]
    pub const fn only_remembers(self) -> bool {
        self.0 == Self::REMEMBERS.0
    }

    /// Whether all of `bits` are set.
    #[inline]
    pub const fn has(self, bits: Self) -> bool {
        self.0 & bits.0 == bits.0
    }

    /// Whether policy may end some of its flows.
    #[inline(always)]
    pub const fn ends_flows(self) -> bool {
        self.0 & (Self::FLOW_ACTION.0 | Self::OLD_PORTS.0) != 0
    }

    fn of(vip: &VipSpec, flow_action: FlowAction) -> Self {
        let quic = if vip.policy.affinity == Affinity::QuicCid { Self::QUIC.0 } else { 0 };
        let remembers = if vip.policy.remember.is_some() { Self::REMEMBERS.0 } else { 0 };
        let flows_left = if flow_action == FlowAction::Keep { 0 } else { Self::FLOW_ACTION.0 };
        let resets = vip.old.iter().any(|old| old.flow_action == FlowAction::Reset);
        let old_ports = if resets { Self::OLD_PORTS.0 } else { 0 };
        let spliced = if vip.spliced { Self::SPLICED.0 } else { 0 };
        Self(quic | remembers | flows_left | old_ports | spliced)
    }
}

/// A backend of one VIP, with all fields of both that a packet of a pinned flow needs: one cache
/// line, and a second one for the choice of a backend.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Backend {
    /// Index and generation, as stored in pins.
    pub id: BackendId,
    /// VIP of the backend.
    pub vip: VipId,
    /// Forwarding mode of the VIP.
    pub forward: Forward,
    /// Extra processing of its packets.
    pub flags: BackendFlags,
    /// Idle time-outs of its flows, from the VIP.
    pub timeouts: FlowTimeouts,
    /// Address of the server.
    pub address: Address,
    /// Next hop of frames to it.
    pub next_hop: Option<NextHop>,
    /// Where ports are rewritten: port of the server; `None` keeps the port that the client
    /// connected to.
    pub port: Option<u16>,
    /// Maximum length of an IP packet to it, in bytes.
    pub mtu: u16,
    /// Whether its health check passes.
    pub up: bool,
    /// Current treatment of its flows.
    pub flow_action: FlowAction,
    /// TCP: whether both ends of a flow that idled out receive a RST; from the VIP.
    pub reset_idle: bool,
    /// Whether it receives the client's address in a PROXY header; from the VIP.
    pub proxy: bool,
    /// Whether it may take new flows: up, active, with weight, and its next hop is known.
    pub takes_new: bool,
    /// Whether it may take packets of flows that lost their pin: up, in service or draining, and
    /// its next hop is known.
    pub takes_non_syn: bool,
    /// Whether it can be asked for a flow: the program of `holdfast backend` answers there.
    pub can_be_asked: bool,
    /// Part of the new flows scheduled to it that it takes, in units of 1/[`FULL_SHARE`].
    pub share: u16,
    /// Flows above which it takes no new ones, of all workers together; `None`: no limit.
    pub max_flows: Option<u32>,
    /// Tunnels: key of the path to it.
    pub path: PathKey,
    /// Whether frames for it would return to this box: it takes nothing, and `next_hop` is `None`.
    pub loops: bool,
}

// The fields that every packet reads are on the first line.
const _: () = assert!(std::mem::offset_of!(Backend, up) <= 64);

/// A VIP address and port from which the replies of a NAT backend may have to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReturnPath {
    /// Backend of the path.
    pub backend: BackendIndex,
    /// VIP of the backend.
    pub vip: VipId,
    /// Address that the client connected to.
    pub vip_address: Address,
    /// Port that the client connected to; `None`: the backend's source port.
    pub vip_port: Option<u16>,
    /// Whether its flows have pins. If not, this is the only path of its source in force (`check`
    /// ensures that).
    pub pinned: bool,
}

impl ForwardingTable {
    /// Builds a table. Lookup tables that did not change are reused from `previous`.
    ///
    /// Two specs with one index, or two VIPs with one listen key, are an error of the caller (the
    /// configuration refuses them); the later one wins.
    pub fn build(
        generation: u64,
        secret: Secret,
        local: Local,
        specs: &[VipSpec],
        previous: Option<&Self>,
    ) -> Self {
        let mut table = Self {
            generation,
            secret,
            local,
            vips: Vec::new(),
            backends: Vec::new(),
            listeners: Listeners::default(),
            returns: HashMap::new(),
            tunnel_ends: HashSet::new(),
            entropy: Entropy::new(&secret),
            return_ranges: HashMap::new(),
            any_returns: false,
            unpinned_returns: false,
            spliced: false,
            old: OldListeners::default(),
        };
        let previous = previous.filter(|previous| previous.secret == secret);
        for (spec, shares) in specs.iter().zip(shares(specs)) {
            table.add(spec, shares, previous.and_then(|previous| previous.vip(spec.id)));
        }
        table
    }

    /// Returns the backends that may have a flow without a pin, and can be asked; none if there are
    /// fewer than two of them, or the one that the hash chooses cannot be asked.
    ///
    /// The likely ones are the choice of this table; that which it would make if all backends were in
    /// service; those of the VIP's earlier [states](super::history); and those that it would make if
    /// backends were out, as another box may see them. Those that seem to be gone come last.
    ///
    /// Cost: some fifteen choices of the scheduler; no allocation.
    pub fn owners(&self, vip: &Vip, key: &FlowKey, now: Ticks) -> Owners<'_> {
        let recall = vip.policy.recall;
        let hash = |splits: &Splits| self.hash_with(splits, vip, key);
        let present = hash(&vip.splits);
        let by_hash = vip.policy.ask == Ask::History;
        let mut ids = ArrayVec::<BackendId, MAX_OWNERS>::new();
        let mut chosen = 0;
        if by_hash {
            let can_be_asked = |id| self.pinned(id).is_some_and(|chosen| chosen.can_be_asked);
            if !vip.state.chosen(present).all(can_be_asked) {
                return Owners::default();
            }
            let now_or_whole = vip.state.chosen(present).chain(vip.whole.chosen(present));
            add_new(&mut ids, now_or_whole.chain(vip.history.chosen(hash, recall, now)));
            chosen = ids.len();
            add_new(&mut ids, vip.state.successors(present));
        }
        let known =
            || ids.iter().filter_map(|&id| self.pinned(id)).filter(|one| one.is_asked_of(vip));
        let there = known().filter(|backend| backend.takes_non_syn);
        let likely = there.chain(known().filter(|backend| !backend.takes_non_syn)).collect();
        let or_any = !by_hash || !vip.history.reaches(recall, now);
        let owners = Owners { likely, or_any, is_sure: chosen == 1 };
        let is_one = owners.likely.len() + self.others(vip, &owners).take(2).count() < 2;
        if is_one { Owners::default() } else { owners }
    }

    /// The affinity hash of a flow with these splits.
    #[cold]
    #[inline(never)]
    fn hash_with(&self, splits: &Splits, vip: &Vip, key: &FlowKey) -> u64 {
        vip.policy.affinity.hash(&self.secret, key, splits)
    }

    /// Returns the backends of a VIP that may have a flow, besides the likely owners: first those that
    /// serve.
    pub fn others<'t>(
        &'t self,
        vip: &'t Vip,
        owners: &Owners<'t>,
    ) -> impl Iterator<Item = &'t Backend> + Clone {
        let is_other = |backend: &&Backend| {
            owners.or_any
                && backend.is_asked_of(vip)
                && !owners.likely.iter().any(|likely| likely.id == backend.id)
        };
        let others = self.backends_of(vip).filter(is_other);
        let there = others.clone().filter(|backend| backend.takes_non_syn);
        there.chain(others.filter(|backend| !backend.takes_non_syn))
    }

    /// The backends of a VIP.
    pub fn backends_of<'t>(&'t self, vip: &'t Vip) -> impl Iterator<Item = &'t Backend> + Clone {
        vip.names.iter().filter_map(|(index, _)| self.backend(*index))
    }

    /// Backends with weight that `takes` accepts.
    fn takers(&self, scheduler: &Built, takes: impl Fn(&Backend) -> bool) -> Vec<Taker> {
        let with_weight = scheduler.candidates().iter().filter(|one| one.weight > 0);
        let backends = with_weight.filter_map(|candidate| self.backend(candidate.backend));
        let taker =
            |backend: &Backend| Taker { id: backend.id, partly: backend.share < FULL_SHARE };
        backends.filter(|backend| takes(backend)).map(taker).collect()
    }

    /// Takes over what the table before this one knows of the past of VIPs that ask by it, at the time
    /// of the change.
    /// Without it, nothing is known of the past: all backends may have a flow.
    #[must_use]
    pub fn recalling(mut self, before: Option<&Self>, now: Ticks) -> Self {
        for vip in self.vips.iter_mut().flatten() {
            if vip.policy.ask != Ask::History {
                // Its lookup tables are not kept longer than needed.
                continue;
            }
            let before = before.and_then(|table| table.vip(vip.id));
            let begun = History::begun(now);
            vip.history = match before {
                Some(Vip { state, policy, history, .. }) => {
                    let known = if policy.ask == Ask::History { history } else { &begun };
                    known.after(state, &vip.state, now)
                }
                None => begun,
            };
        }
        self
    }

    /// Sequence number of this table among the published ones.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// Key of the hashes that choose a backend.
    pub const fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Properties of the local box.
    #[inline]
    pub const fn local(&self) -> &Local {
        &self.local
    }

    /// The VIP with an index.
    #[inline]
    pub fn vip(&self, id: VipId) -> Option<&Vip> {
        self.vips.get(usize::from(id.0))?.as_ref()
    }

    /// The backend with an index.
    #[inline]
    pub fn backend(&self, index: BackendIndex) -> Option<&Backend> {
        self.backends.get(usize::from(index.0))?.as_ref()
    }

    /// The backend that a pin refers to; `None` if its generation has ended.
    #[inline]
    pub fn pinned(&self, id: BackendId) -> Option<&Backend> {
        self.backend(id.index).filter(|backend| backend.id == id)
    }

    /// The VIP that listens on `key`, whose port is 0 with [`Protocol::Any`] and only then. An
    /// exact address and port wins; else the longest prefix, and within it the port, a range with
    /// it, all ports, any protocol.
    ///
    /// Cost: a hash look-up; without an exact match, one for each prefix length
    /// ([`MAX_PREFIX_LENGTHS`] at most).
    ///
    /// [`MAX_PREFIX_LENGTHS`]: super::MAX_PREFIX_LENGTHS
    #[inline]
    pub fn listener(&self, key: ListenKey) -> Option<VipId> {
        self.listeners.find(key)
    }

    /// The VIP that listened on `key` before a reload, while flows remain there, and the treatment
    /// of those flows; `None` if a VIP listens there now.
    #[inline]
    pub fn old_listener(&self, key: impl FnOnce() -> ListenKey) -> Option<(VipId, FlowAction)> {
        if self.old.is_empty() { None } else { self.lost_listener(key()) }
    }

    /// Whether VIPs have lost addresses or ports that still have flows.
    #[inline]
    pub fn has_lost(&self) -> bool {
        !self.old.is_empty()
    }

    #[cold]
    fn lost_listener(&self, key: ListenKey) -> Option<(VipId, FlowAction)> {
        if self.listeners.find(key).is_some() {
            return None;
        }
        self.old.find(key)
    }

    /// The VIP that owns flows to `key`: it listens there, or did before a reload.
    pub fn owner(&self, key: ListenKey) -> Option<VipId> {
        self.listener(key).or_else(|| Some(self.old_listener(|| key)?.0))
    }

    /// Whether an address belongs to a VIP, on any port.
    pub fn is_vip(&self, address: Address) -> bool {
        self.listeners.have(address)
    }

    /// VIP addresses and ports that a packet with *source* `key` may be a reply from: exact ports
    /// first, then all ports, then ranges.
    #[inline]
    pub fn return_paths(&self, key: ListenKey) -> impl Iterator<Item = &ReturnPath> + Clone {
        let exact = self.returns.get(&key).map_or(&[][..], Vec::as_slice);
        let any = any_port(key, self.any_returns).and_then(|key| self.returns.get(&key));
        let any = any.map_or(&[][..], Vec::as_slice);
        let ranges = match self.return_ranges.is_empty() {
            true => None,
            false => self.return_ranges.get(&(key.address, key.protocol)),
        };
        let ranges = ranges.map_or(&[][..], Vec::as_slice).iter();
        let within = move |(range, _): &&(PortRange, ReturnPath)| range.contains(key.port);
        let ranges = ranges.filter(within).map(|(_, path)| path);
        exact.iter().chain(any).chain(ranges)
    }

    /// The first of [`return_paths`](Self::return_paths); the path without pins, if there is one.
    /// The others at such a source belong to VIPs that have lost their listener by a reload, and
    /// replies of their flows cannot be distinguished from its own.
    #[inline]
    pub fn return_path(&self, key: ListenKey) -> Option<&ReturnPath> {
        let mut paths = self.return_paths(key);
        let unpinned = || paths.clone().find(|path| !path.pinned);
        self.unpinned_returns.then(unpinned).flatten().or_else(|| paths.next())
    }

    /// Whether flows may have splices ([`VipSpec::spliced`]).
    #[inline]
    pub const fn is_spliced(&self) -> bool {
        self.spliced
    }

    /// Flow hash for outer headers.
    #[inline]
    pub const fn entropy(&self) -> &Entropy {
        &self.entropy
    }

    /// The path to `address`, if it is a tunnel endpoint.
    pub fn tunnel_path(&self, address: Address) -> Option<PathKey> {
        self.tunnel_ends.get(&address).copied().map(PathKey::new)
    }

    fn add(&mut self, spec: &VipSpec, shares: Shares, previous: Option<&Vip>) {
        for &ports in spec.ports.ranges() {
            let listen = Listen { network: spec.address, protocol: spec.protocol, ports };
            self.listeners.add(listen, spec.id);
        }
        for &old in &spec.old {
            self.old.add(old, spec.id);
        }
        let mut mtu = UNLIMITED;
        for backend in &spec.backends {
            let mut built = self.backend_of(spec, backend);
            built.stay_off(&self.local);
            self.spliced |= spec.spliced;
            mtu = mtu.min(built.mtu - growth(spec, &built).min(built.mtu));
            place(&mut self.backends, backend.id.index.0, built);
            if spec.forward == Forward::Nat {
                self.add_returns(spec, backend);
            }
            if spec.forward.tunnels() {
                self.tunnel_ends.insert(backend.address.into());
            }
        }
        let vip = Vip { shares, mtu, ..Vip::new(spec, self, previous) };
        place(&mut self.vips, spec.id.0, vip);
    }

    /// A backend, with its MTU limited to that of its NIC.
    fn backend_of(&self, vip: &VipSpec, spec: &BackendSpec) -> Backend {
        let backend = Backend::new(vip, spec);
        let nic = spec.next_hop.map_or(UNLIMITED, |hop| self.local.mtu(hop.nic));
        Backend { mtu: spec.mtu.min(nic), ..backend }
    }

    fn add_returns(&mut self, spec: &VipSpec, backend: &BackendSpec) {
        self.unpinned_returns |= !spec.policy.pin;
        let now = spec.ports.ranges().iter().map(|&ports| (spec.address, ports));
        let before = spec.old.iter().map(|old| (old.listen.network, old.listen.ports));
        for (address, ports) in now.chain(before) {
            let path = ReturnPath {
                backend: backend.id.index,
                vip: spec.id,
                vip_address: address.address(),
                vip_port: Some(ports.first).filter(|_| ports.is_single()),
                pinned: spec.policy.pin,
            };
            let listen = return_listen(backend, ports, spec.protocol);
            match exact(listen) {
                // One backend port for several ports of the VIP: one path for each.
                Some(key) if ports != PortRange::ALL && !ports.is_single() => {
                    for port in (ports.first..=ports.last).take(MAX_RETURN_PATHS) {
                        self.add_return(key, ReturnPath { vip_port: Some(port), ..path });
                    }
                }
                Some(key) => self.add_return(key, path),
                None => {
                    let key = (listen.network.address(), listen.protocol);
                    self.return_ranges.entry(key).or_default().push((ports, path));
                }
            }
        }
    }

    fn add_return(&mut self, key: ListenKey, path: ReturnPath) {
        self.any_returns |= key.port == 0;
        // Usually one path.
        self.returns.entry(key).or_insert_with(|| Vec::with_capacity(1)).push(path);
    }
}

/// Bytes by which a client's packet grows on the way to a backend.
fn growth(vip: &VipSpec, backend: &Backend) -> u16 {
    // An IPv6 header instead of an IPv4 header.
    if vip.forward == Forward::FullNat && vip.address.family().is_v4() && !backend.address.is_v4() {
        20
    } else {
        0
    }
}

/// The key for all ports, if some path has such a key.
#[inline]
fn any_port(key: ListenKey, there_are: bool) -> Option<ListenKey> {
    there_are.then_some(ListenKey { port: 0, ..key })
}

/// Adds those that are not there yet, as far as there is room.
fn add_new(ids: &mut ArrayVec<BackendId, MAX_OWNERS>, more: impl IntoIterator<Item = BackendId>) {
    for id in more {
        if !ids.contains(&id) && !ids.is_full() {
            ids.push(id);
        }
    }
}

/// Source of a NAT backend's replies to clients of these ports of the VIP.
pub fn return_listen(backend: &BackendSpec, ports: PortRange, protocol: Protocol) -> Listen {
    let ports = backend.port.map_or(ports, PortRange::single);
    Listen { network: backend.address.into(), protocol, ports }
}

impl Vip {
    /// `table`: with the VIP's backends, but without the VIP.
    fn new(spec: &VipSpec, table: &ForwardingTable, previous: Option<&Self>) -> Self {
        let candidates = Server::all(&spec.backends).map(candidate).collect();
        let names = names(spec, previous);
        let built = previous.map(|vip| &vip.scheduler);
        let scheduler = Built::build(spec.policy.scheduler, &table.secret, candidates, built);
        let state = State::new(
            scheduler.clone(),
            spec.splits.clone(),
            table.takers(&scheduler, |backend| backend.takes_new),
        );
        let takers = table.takers(&scheduler, |_| true);
        let whole = State::new(scheduler.clone(), spec.splits.clone(), takers);
        let freest = spec.policy.remember.filter(|remember| remember.on_reentry == Reentry::Freest);
        Self {
            id: spec.id,
            protocol: spec.protocol,
            forward: spec.forward,
            policy: spec.policy.clone(),
            freest: freest.map(|_| LeastConnections::build(scheduler.candidates())),
            scheduler,
            splits: spec.splits.clone(),
            state,
            whole,
            history: History::default(),
            shares: Shares::default(),
            sampled: spec.sampled,
            fails_open: spec.fails_open,
            mtu: UNLIMITED,
            quic: quic_ids(spec),
            names,
        }
    }

    /// Client identity of a flow.
    pub fn client_key(&self, key: &FlowKey) -> ClientKey {
        self.policy.affinity.client_key(key, &self.splits)
    }

    /// Affinity hash of a flow.
    pub fn affinity_hash(&self, secret: &Secret, key: &FlowKey) -> u64 {
        self.policy.affinity.hash(secret, key, &self.splits)
    }
}

/// Names of a VIP's backends; reused from `previous` if unchanged.
fn names(spec: &VipSpec, previous: Option<&Vip>) -> Arc<[(BackendIndex, Box<str>)]> {
    let named = spec.backends.iter().map(|backend| (backend.id.index, backend.name.as_str()));
    match previous.map(|vip| &vip.names) {
        Some(known) if known.iter().map(|(index, name)| (*index, &**name)).eq(named.clone()) => {
            Arc::clone(known)
        }
        _ => named.map(|(index, name)| (index, name.into())).collect(),
    }
}

/// The server ids of a VIP whose affinity is the QUIC connection id.
fn quic_ids(spec: &VipSpec) -> Option<Box<QuicLb>> {
    let ids = |backend: &BackendSpec| {
        let index = backend.id.index;
        backend.server_ids.clone().into_iter().map(move |id| (id, index))
    };
    let servers = spec.backends.iter().filter(|backend| !backend.removed).flat_map(ids);
    let used = spec.policy.affinity == Affinity::QuicCid;
    used.then(|| Box::new(QuicLb::new(&spec.policy.quic, servers)))
}

/// Scheduler input of a backend.
const fn candidate((server, backend): (Server, &BackendSpec)) -> Candidate {
    Candidate { backend: backend.id.index, server, weight: backend.weight }
}

impl Backend {
    /// Reason why the backend takes no new flows.
    pub fn out_of_service(&self) -> &'static str {
        if !self.up {
            "down: its health check fails, or it is held down (flap damping)"
        } else if self.loops {
            "its next hop is this box itself"
        } else if self.next_hop.is_none() {
            "its next hop is not known"
        } else if self.takes_non_syn {
            "draining, or without weight"
        } else {
            "out of service: its drain met the deadline, or it was removed"
        }
    }

    /// Whether it can be asked for a flow of the VIP.
    fn is_asked_of(&self, vip: &Vip) -> bool {
        self.can_be_asked && self.next_hop.is_some() && self.vip == vip.id
    }

    /// Whether its share admits a new flow with this affinity hash.
    #[inline]
    pub const fn admits(&self, hash: u64) -> bool {
        // Low bits: table look-ups use the high ones.
        hash & (FULL_SHARE as u64 - 1) < self.share as u64
    }

    /// Returns the flows above which it takes no new ones from one of several workers; `None`: no
    /// limit. The limits of all workers add up to its own.
    pub fn max_flows_of(&self, worker: u8, workers: usize) -> Option<u64> {
        let (worker, workers) = (u64::from(worker), u64::try_from(workers).ok()?.max(1));
        let max = u64::from(self.max_flows?);
        Some(max / workers + u64::from(worker < max % workers))
    }

    fn new(vip: &VipSpec, spec: &BackendSpec) -> Self {
        Self {
            id: spec.id,
            vip: vip.id,
            forward: vip.forward,
            timeouts: vip.policy.timeouts.of(vip.protocol),
            address: spec.address.into(),
            port: spec.port,
            next_hop: spec.next_hop,
            mtu: spec.mtu,
            // A removed backend is no longer checked.
            up: spec.up || spec.removed,
            flow_action: flow_action(vip, spec),
            reset_idle: vip.policy.reset_idle,
            proxy: vip.policy.proxy,
            takes_new: spec.takes_new(),
            takes_non_syn: spec.up
                && !spec.removed
                && spec.service != Service::Out
                && spec.next_hop.is_some(),
            flags: BackendFlags::of(vip, flow_action(vip, spec)),
            can_be_asked: spec.can_be_asked,
            share: spec.share,
            max_flows: spec.max_flows,
            path: PathKey::new(spec.address.into()),
            loops: false,
        }
    }

    /// Takes the backend out of service if its next hop is this box.
    fn stay_off(&mut self, local: &Local) {
        self.loops = self.next_hop.is_some_and(|hop| local.macs.contains(&hop.mac));
        if self.loops {
            (self.next_hop, self.takes_new, self.takes_non_syn) = (None, false, false);
        }
    }
}

/// Name of a backend.
pub fn name<'t>(backend: &Backend, table: &'t ForwardingTable) -> &'t str {
    let names = table.vip(backend.vip).map_or(&[][..], |vip| &vip.names);
    let found = names.iter().find(|(index, _)| *index == backend.id.index);
    found.map_or("?", |(_, name)| name)
}

/// Treatment of a backend's flows: that of its drain, else the VIP's policy for a backend that is
/// down.
///
/// A UDP flow continues to send to a backend that cannot be reached, and so keeps its pin alive: it
/// is rehashed.
fn flow_action(vip: &VipSpec, spec: &BackendSpec) -> FlowAction {
    let reachable = spec.next_hop.is_some() || vip.protocol == Protocol::Tcp;
    let flow_action = match spec.flow_action {
        FlowAction::Keep if (spec.up || spec.removed) && reachable => return FlowAction::Keep,
        FlowAction::Keep => vip.policy.on_down,
        flow_action => flow_action,
    };
    match vip.protocol {
        Protocol::Tcp => flow_action,
        Protocol::Udp | Protocol::Any => FlowAction::Rehash,
    }
}

/// Stores `value` at `index`, growing the list as needed.
fn place<T>(list: &mut Vec<Option<T>>, index: u16, value: T) {
    let index = usize::from(index);
    if list.len() <= index {
        list.resize_with(index + 1, || None);
    }
    if let Some(place) = list.get_mut(index) {
        *place = Some(value);
    }
}

impl Sticky {
    /// Whether a client's new flow goes to the client's backend; with `midflow`, a flow that lost
    /// its pin.
    pub fn stays(self, backend: &Backend, miss: Miss) -> bool {
        let keeps = |hold| hold == Hold::Keep;
        match (backend.up, backend.takes_new) {
            // A backend that leaves new flows unanswered is as good as down for them.
            (_, true) => backend.share > 0 || miss == Miss::NonSyn || keeps(self.on_down),
            (false, _) => keeps(self.on_down) && backend.next_hop.is_some(),
            // A flow whose pin was lost was most probably there already.
            (true, _) => (miss == Miss::NonSyn || keeps(self.on_drain)) && backend.takes_non_syn,
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Specs for tests.
    use super::*;
    use crate::forwarding::local::UNLIMITED;
    use crate::forwarding::spec::Ports;
    use crate::net::NicIndex;

    /// A NAT VIP 192.0.2.`10 + id` on TCP port 80, without backends.
    pub fn spec(id: u16) -> VipSpec {
        VipSpec {
            id: VipId(id),
            address: [192, 0, 2, 10 + u8::try_from(id).unwrap_or_default()].into(),
            ports: Ports::of(&[80]),
            protocol: Protocol::Tcp,
            forward: Forward::Nat,
            policy: VipPolicy::default(),
            splits: Splits::default(),
            spliced: false,
            sampled: false,
            fails_open: false,
            backends: Vec::new(),
            old: Vec::new(),
        }
    }

    /// A backend 10.0.x.y that is up, active and resolved.
    pub fn backend(index: u16) -> BackendSpec {
        let [high, low] = index.to_be_bytes();
        BackendSpec {
            id: BackendId { index: BackendIndex(index), generation: 0 },
            name: format!("b{index}"),
            address: [10, 0, high, low].into(),
            port: Some(8080),
            weight: 1,
            share: FULL_SHARE,
            up: true,
            service: Service::Active,
            flow_action: FlowAction::Keep,
            next_hop: Some(NextHop { nic: NicIndex(0), mac: [2, 0, 0, 0, high, low], vlan: None }),
            mtu: UNLIMITED,
            server_ids: Vec::new(),
            max_flows: None,
            can_be_asked: true,
            removed: false,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use super::testing::{backend, spec};
    use super::*;
    use crate::forwarding::policy::RECALL;
    use crate::forwarding::spec::Ports;

    fn key(address: [u8; 4], port: u16) -> ListenKey {
        ListenKey { address: Address::from_v4(address), port, protocol: Protocol::Tcp }
    }

    fn asking(ask: Ask, backends: &[BackendSpec]) -> VipSpec {
        let spec = VipSpec { backends: backends.to_vec(), ..spec(0) };
        spec.with(|policy| policy.ask = ask)
    }

    fn flow(port: u16) -> FlowKey {
        FlowKey {
            client: Address::from_v4([198, 51, 100, 1]),
            vip: Address::from_v4([192, 0, 2, 10]),
            client_port: port,
            vip_port: 80,
            protocol: Protocol::Tcp,
        }
    }

    fn changed(index: u16, change: fn(&mut BackendSpec)) -> BackendSpec {
        let mut backend = backend(index);
        change(&mut backend);
        backend
    }

    /// The table after `before`, which was published at the start of the clock.
    fn table_after(before: Option<&ForwardingTable>, vip: &VipSpec) -> ForwardingTable {
        let (secret, local) = ([0; 16], Local::default());
        let table = ForwardingTable::build(1, secret, local, std::slice::from_ref(vip), before);
        table.recalling(before, Ticks(0))
    }

    fn likely(owners: &Owners<'_>) -> Vec<u16> {
        owners.likely.iter().map(|backend| backend.id.index.0).collect()
    }

    /// Whatever has changed since a flow began, its backend is among its owners.
    #[test]
    fn the_owners_of_a_flow_include_the_backend_that_an_earlier_table_has_chosen() {
        use crate::forwarding::scheduler::testing::TestPool;
        let drains: fn(&mut BackendSpec) = |backend| backend.service = Service::Draining;
        let heavier: fn(&mut BackendSpec) = |backend| backend.weight = 4;
        let down: fn(&mut BackendSpec) = |backend| backend.up = false;
        let pools = [
            vec![backend(0), backend(1), backend(2)],
            vec![backend(0), backend(1), backend(2), backend(3)],
            vec![backend(0), changed(1, heavier), backend(2), backend(3)],
            vec![changed(0, drains), changed(1, heavier), backend(2), backend(3)],
            vec![changed(0, drains), changed(1, heavier), changed(2, down), backend(3)],
        ];
        let mut table: Option<ForwardingTable> = None;
        let mut chosen: Vec<Vec<BackendIndex>> = Vec::new();
        for pool in &pools {
            let next = table_after(table.as_ref(), &asking(Ask::History, pool));
            let vip = next.vip(VipId(0)).unwrap();
            let out = |index: &u16| !next.backend(BackendIndex(*index)).unwrap().takes_new;
            let all = u16::try_from(pool.len()).unwrap();
            let mut pool = TestPool { out: (0..all).filter(out).collect(), ..TestPool::default() };
            let mut choose = |port| {
                let hash = vip.affinity_hash(&next.secret, &flow(port));
                vip.scheduler.scheduler().choose(hash, &mut pool).unwrap()
            };
            chosen.push((1000..1100).map(&mut choose).collect());
            for (port, at) in (1000..1100).zip(0..) {
                let owners = next.owners(vip, &flow(port), RECALL);
                assert!(!owners.or_any, "the past is known");
                let of = |earlier: &Vec<BackendIndex>| earlier[at].0;
                let present = of(chosen.last().unwrap());
                assert!(
                    chosen.iter().all(|earlier| of(earlier) == present) || !owners.is_sure,
                    "{port}"
                );
                let owners = likely(&owners);
                assert_eq!(owners[0], present, "the present choice first");
                for earlier in &chosen {
                    assert!(owners.contains(&of(earlier)), "{port}: {owners:?} {earlier:?}");
                }
                assert!(owners.len() <= 4, "{owners:?}");
            }
            table = Some(next);
        }
    }

    /// Without knowledge of the past, any backend may have a flow; with it, those that were chosen.
    #[test]
    fn all_backends_may_have_a_flow_from_before_the_known_past() {
        let vip = asking(Ask::History, &[backend(0), backend(1), backend(2), backend(3)]);
        let table = table_after(None, &vip);
        let vip = table.vip(VipId(0)).unwrap();
        for port in 1000..1020 {
            let early = table.owners(vip, &flow(port), Ticks(RECALL.0 - 1));
            assert!(early.or_any);
            let mut all = likely(&early);
            assert_eq!(all.len(), 3);
            all.extend(table.others(vip, &early).map(|other| other.id.index.0));
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2, 3]);
            let late = table.owners(vip, &flow(port), RECALL);
            assert_eq!((likely(&late), late.or_any), (likely(&early), false));
            assert!(late.is_sure && early.is_sure, "the tables that are known agree");
        }
    }

    /// A VIP that begins to ask does not know what was before its present table and the last one.
    #[test]
    fn the_past_is_kept_for_vips_that_ask_by_it() {
        let pools = [vec![backend(0), backend(1)], vec![backend(0), backend(1), backend(2)]];
        for (asks, knows) in [
            ([Ask::History, Ask::History], true),
            ([Ask::Never, Ask::History], true),
            ([Ask::All, Ask::History], true),
            ([Ask::History, Ask::Never], false),
        ] {
            let before = table_after(None, &asking(asks[0], &pools[0]));
            let now = Ticks(RECALL.0 * 2);
            let after = asking(asks[1], &pools[1]);
            let table = ForwardingTable::build(
                2,
                [0; 16],
                Local::default(),
                std::slice::from_ref(&after),
                Some(&before),
            );
            let table = table.recalling(Some(&before), now);
            let vip = table.vip(VipId(0)).unwrap();
            let chosen = vip.history.chosen(|_| 7, RECALL, now).count();
            assert_eq!(chosen, usize::from(knows), "{asks:?}");
            let reaches = vip.history.reaches(RECALL, now);
            assert_eq!(reaches, asks == [Ask::History; 2], "{asks:?}");
            let later = now.after(RECALL);
            assert_eq!(vip.history.reaches(RECALL, later), knows, "{asks:?}: it is learnt");
        }
    }

    /// Another box sees one or two of four backends as down or draining, and opens a flow.
    #[test]
    fn the_owners_of_a_flow_include_the_choice_of_a_box_that_sees_backends_out() {
        let pool = [backend(0), backend(1), backend(2), backend(3)];
        let table = table_after(None, &asking(Ask::History, &pool));
        let vip = table.vip(VipId(0)).unwrap();
        for (a, b) in (0..4).flat_map(|a| (0..4).map(move |b| (a, b))) {
            let mut seen = pool.clone();
            seen[a].up = false;
            seen[b].service = Service::Draining;
            let other = table_after(None, &asking(Ask::History, &seen));
            let other_vip = other.vip(VipId(0)).unwrap();
            for port in 1000..1100 {
                let chosen = other.owners(other_vip, &flow(port), RECALL).likely[0].id.index.0;
                let owners = likely(&table.owners(vip, &flow(port), RECALL));
                assert!(owners.contains(&chosen), "{port}: {owners:?} {chosen}");
            }
        }
    }

    #[test]
    fn only_those_are_owners_that_can_be_asked() {
        let silent: fn(&mut BackendSpec) = |backend| backend.can_be_asked = false;
        let gone: fn(&mut BackendSpec) = |backend| backend.removed = true;
        let pool = [changed(0, silent), backend(1), changed(2, gone), backend(3)];
        let table = table_after(None, &asking(Ask::All, &pool));
        let vip = table.vip(VipId(0)).unwrap();
        let owners = table.owners(vip, &flow(1000), RECALL);
        let all: Vec<u16> = table.others(vip, &owners).map(|other| other.id.index.0).collect();
        assert_eq!((likely(&owners), all), (vec![], vec![1, 3, 2]), "the removed one last");
        // Where the hash's choice cannot be asked, the hash decides.
        let table = table_after(None, &asking(Ask::History, &pool));
        let vip = table.vip(VipId(0)).unwrap();
        let asked = (1000..1100).filter(|port| table.owners(vip, &flow(*port), Ticks(0)).or_any);
        assert!((40..90).contains(&asked.count()));
        // One that can be asked is not asked alone.
        let pool = [changed(0, silent), backend(1), changed(2, silent)];
        let table = table_after(None, &asking(Ask::All, &pool));
        assert!(!table.owners(table.vip(VipId(0)).unwrap(), &flow(1000), Ticks(0)).or_any);
    }

    #[test]
    fn exact_ports_win_over_all_ports() {
        let mut web = spec(0);
        web.ports = Ports::of(&[80, 443]);
        let mut rest = spec(1);
        rest.address = web.address;
        rest.ports = Ports::All;
        let table = ForwardingTable::build(1, [0; 16], Local::default(), &[web, rest], None);
        for (port, vip) in [(80, 0), (443, 0), (22, 1)] {
            assert_eq!(table.listener(key([192, 0, 2, 10], port)), Some(VipId(vip)), "{port}");
        }
        assert_eq!(table.listener(key([192, 0, 2, 11], 80)), None);
    }

    #[test]
    fn a_backend_that_keeps_the_ports_of_a_range_has_one_path_for_it() {
        let mut web = spec(0);
        web.ports = Ports::List(vec![80.into(), PortRange { first: 8000, last: 8999 }]);
        web.backends = vec![BackendSpec { port: None, ..backend(0) }];
        let mut few = spec(1);
        few.ports = Ports::List(vec![PortRange { first: 90, last: 92 }]);
        few.backends = vec![backend(1)];
        let table = ForwardingTable::build(1, [0; 16], Local::default(), &[web, few], None);
        let ports = |key| table.return_paths(key).map(|path| path.vip_port).collect::<Vec<_>>();
        assert_eq!(ports(key([10, 0, 0, 0], 80)), [Some(80)]);
        for (port, expected) in [(7999, &[][..]), (8000, &[None]), (8999, &[None]), (9000, &[])] {
            assert_eq!(ports(key([10, 0, 0, 0], port)), expected, "{port}");
        }
        assert_eq!(ports(key([10, 0, 0, 1], 8080)), [Some(90), Some(91), Some(92)]);
    }

    #[test]
    fn a_backend_whose_next_hop_is_this_box_takes_nothing() {
        let mut web = spec(0);
        web.backends = vec![backend(0), backend(1)];
        let own = web.backends.first().and_then(|backend| backend.next_hop).unwrap().mac;
        let other = NextHop { mac: [9; 6], ..web.backends[0].next_hop.unwrap() };
        web.backends[1].next_hop = Some(other);
        let local = Local { macs: vec![own], ..Local::default() };
        let table = ForwardingTable::build(1, [0; 16], local, &[web], None);
        let state = |index| {
            let backend = table.backend(BackendIndex(index)).unwrap();
            (backend.loops, backend.takes_new, backend.takes_non_syn, backend.next_hop.is_some())
        };
        assert_eq!(state(0), (true, false, false, false));
        assert_eq!(state(1), (false, true, true, true));
    }

    #[test]
    fn return_paths_name_every_port_that_a_backend_may_answer_for() {
        let mut web = spec(0);
        web.ports = Ports::of(&[80, 443]);
        web.backends = vec![backend(0)];
        let mut all = spec(1);
        all.ports = Ports::All;
        all.backends = vec![BackendSpec { port: None, ..backend(1) }];
        let table = ForwardingTable::build(1, [0; 16], Local::default(), &[web, all], None);
        let ports = |key| table.return_paths(key).map(|path| path.vip_port).collect::<Vec<_>>();
        assert_eq!(ports(key([10, 0, 0, 0], 8080)), [Some(80), Some(443)]);
        assert_eq!(ports(key([10, 0, 0, 0], 80)), []);
        assert_eq!(ports(key([10, 0, 0, 1], 12345)), [None]);
    }

    #[test]
    fn new_and_lost_flows_need_a_backend_in_service() {
        let row = |name, change: fn(&mut BackendSpec), new, midflow| {
            let mut backend = backend(0);
            change(&mut backend);
            let made = Backend::new(&spec(0), &backend);
            assert_eq!((made.takes_new, made.takes_non_syn), (new, midflow), "{name}");
        };
        row("in service", |_| {}, true, true);
        row("draining", |b| b.service = Service::Draining, false, true);
        row("out", |b| b.service = Service::Out, false, false);
        row("down", |b| b.up = false, false, false);
        row("weight 0", |b| b.weight = 0, false, true);
        row("unresolved", |b| b.next_hop = None, false, false);
    }

    #[test]
    fn drain_and_policy_decide_about_flows() {
        use FlowAction::{Keep, Rehash, Reset};
        for (protocol, up, on_down, drained, flow_action) in [
            (Protocol::Tcp, true, Reset, Keep, Keep),
            (Protocol::Tcp, false, Keep, Keep, Keep),
            (Protocol::Tcp, false, Reset, Keep, Reset),
            (Protocol::Tcp, false, Rehash, Keep, Rehash),
            (Protocol::Tcp, true, Keep, Reset, Reset),
            (Protocol::Tcp, false, Keep, Rehash, Rehash),
            (Protocol::Udp, true, Rehash, Keep, Keep),
            (Protocol::Udp, false, Keep, Keep, Rehash),
            (Protocol::Udp, true, Rehash, Reset, Rehash),
        ] {
            let vip = VipSpec { protocol, ..spec(0).with(|policy| policy.on_down = on_down) };
            let spec = BackendSpec { up, flow_action: drained, ..backend(0) };
            let name = format!("{protocol:?}, up: {up}, {on_down:?}, {drained:?}");
            assert_eq!(Backend::new(&vip, &spec).flow_action, flow_action, "{name}");
        }
    }

    #[test]
    fn a_pin_of_an_ended_generation_finds_no_backend() {
        let mut vip = spec(0);
        vip.backends = vec![backend(5)];
        let old = vip.backends.first().unwrap().id;
        let before = ForwardingTable::build(1, [0; 16], Local::default(), &[vip.clone()], None);
        assert!(before.pinned(old).is_some());
        vip.backends.first_mut().unwrap().id.generation += 1;
        let after = ForwardingTable::build(2, [0; 16], Local::default(), &[vip], Some(&before));
        assert!(after.pinned(old).is_none());
        assert!(after.backend(BackendIndex(5)).is_some());
    }

    #[test]
    fn unchanged_lookup_tables_are_shared_and_changed_ones_are_not() {
        let mut vip = spec(0);
        vip.backends = vec![backend(0), backend(1)];
        let build = |vip: &VipSpec, secret, previous| {
            ForwardingTable::build(1, secret, Local::default(), std::slice::from_ref(vip), previous)
        };
        let slots = |table: &ForwardingTable| {
            table.vip(VipId(0)).unwrap().scheduler.scheduler().slots().as_ptr()
        };
        let first = build(&vip, [0; 16], None);
        vip.backends.first_mut().unwrap().up = false;
        vip.backends.reverse();
        let flapped = build(&vip, [0; 16], Some(&first));
        assert_eq!(slots(&first), slots(&flapped), "a flap rebuilds nothing");
        vip.backends.iter_mut().for_each(|backend| backend.name.push('x'));
        let renamed = build(&vip, [0; 16], None);
        let (before, after) = (&first.vip(VipId(0)).unwrap().scheduler, renamed.vip(VipId(0)));
        let after = after.unwrap().scheduler.scheduler().slots();
        assert_eq!(before.scheduler().slots(), after, "names are for people");
        let rekeyed = build(&vip, [1; 16], Some(&first));
        assert_ne!(slots(&first), slots(&rekeyed));
        vip.backends.first_mut().unwrap().weight = 2;
        let reweighted = build(&vip, [0; 16], Some(&first));
        assert_ne!(slots(&first), slots(&reweighted));
    }

    #[test]
    fn workers_share_a_limit() {
        let made = |max_flows| Backend::new(&spec(0), &BackendSpec { max_flows, ..backend(0) });
        let limits = |max, workers: u8| {
            let all = 0..workers;
            all.map(|worker| made(max).max_flows_of(worker, workers.into())).collect::<Vec<_>>()
        };
        assert_eq!(limits(Some(10), 1), [Some(10)]);
        assert_eq!(limits(Some(10), 3), [Some(4), Some(3), Some(3)]);
        assert_eq!(limits(None, 2), [None, None]);
    }

    #[test]
    fn a_share_admits_that_part_of_the_hashes() {
        let made = |share| Backend::new(&spec(0), &BackendSpec { share, ..backend(0) });
        let admitted = |share| {
            let made = made(share);
            let hashes = (0..10_240_u64).map(crate::forwarding::affinity::mix);
            hashes.filter(|&hash| made.admits(hash)).count()
        };
        assert_eq!(admitted(0), 0);
        assert_eq!(admitted(FULL_SHARE), 10_240);
        assert!(admitted(FULL_SHARE / 4).abs_diff(2560) < 150, "{}", admitted(FULL_SHARE / 4));
    }
}
