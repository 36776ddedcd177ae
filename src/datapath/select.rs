//! Stage 5 of 7, select: chooses a backend for every flow without a pin, and pins the flow.
//!
//! Reads: the flow key, the VIP's affinity and scheduler. Writes: the flow table.
//! Cost: nothing for a packet of a pinned flow; SipHash, a slot look-up and an insertion otherwise.

mod sticky;

use std::net::IpAddr;

use self::sticky::ClientRecord;
use super::batch::{Packet, TcpFlags};
use super::conntrack::Conntrack;
use super::context::Context;
use super::quic::named;
use super::target::Target;
use crate::flow::entry::Rule;
use crate::forwarding::affinity::mix;
use crate::forwarding::explain::Trace;
use crate::forwarding::scheduler::{Note, Pool, Scheduler};
use crate::forwarding::table::{Backend, Vip, name};
use crate::forwarding::{Affinity, ForwardingTable, Miss};
use crate::net::{BackendIndex, FlowKey, Forward, HashedKey, ListenKey, Protocol};
use crate::stats::{Counter, Drop, FlowStats, Sample};
use crate::wire::ip::is_header_sum_right;

/// Target of a packet without a pin. Its flow may be pinned now; the pin is removed again if the
/// packet is not sent.
#[must_use = "a pin is kept or taken back"]
pub struct Opened<'t> {
    /// Destination of the packet.
    pub target: Target<'t>,
    /// The new flow; `None` if no pin was made.
    flow: Option<NewFlow<'t>>,
}

/// Data for the counters of a new flow, once its first packet is sent.
struct NewFlow<'t> {
    vip: &'t Vip,
    rule: Rule,
    miss: Miss,
    client: Option<ClientRecord<'t>>,
}

impl Opened<'_> {
    /// Counts the flow: the packet is sent.
    pub fn keep(&self, key: &HashedKey, context: &Context<'_>) {
        let Some(NewFlow { vip, rule, miss, client }) = &self.flow else { return };
        let backend = self.target.backend;
        count(*rule, vip, backend, *miss, context);
        if let Some(client) = client {
            client.record(backend, context);
        }
        if *miss == Miss::Open {
            offer_sample(|| key.key(), vip, context);
        }
    }

    /// Removes the pin, if any: the packet is not sent.
    pub fn undo(&self, key: &HashedKey, conntrack: &mut Conntrack, context: &Context<'_>) {
        if self.flow.is_some() {
            conntrack.unpin(key, context);
        }
    }
}

/// Chooses a target for a packet without a pin, and pins its flow.
///
/// # Errors
/// The reason for which there is none.
#[cold]
pub fn select<'t>(
    packet: &Packet,
    miss: Miss,
    conntrack: &mut Conntrack,
    context: &Context<'t>,
) -> Result<Opened<'t>, Drop> {
    if let Some(trace) = context.trace {
        trace.record_miss();
    }
    let key = packet.flow.key();
    let vip = admit(packet, &key, context)?;
    let client = ClientRecord::of(&key, vip, context);
    // Anybody can forge an id: it must not divert the replies of another flow.
    let may_have = |named: &&Backend| {
        !is_itself(&key, named)
            && (vip.forward != Forward::Nat || !collides(&key, named, conntrack, context))
    };
    let (backend, rule) = match named(packet, context).filter(may_have) {
        Some(backend) => {
            if let Some(trace) = context.trace {
                let why = "the connection id was made by this backend, and it is up";
                trace.record("quic_cid", name(backend, context.table), why);
            }
            (backend, Rule::QuicCid)
        }
        None => choose(&key, miss, vip, client.as_ref(), None, conntrack, context)?,
    };
    if !deserves_pin(packet) {
        return match backend.forward {
            // Its SNAT port is not known.
            Forward::FullNat => Err(Drop::RequestNoFlow),
            _ => Ok(Opened { target: Target { backend, snat_port: None }, flow: None }),
        };
    }
    let pinned = match conntrack.admits(packet, context) {
        true => conntrack.pin(packet, backend, rule, context),
        false => Err(Drop::NewFlowLimit),
    };
    let target = match pinned {
        Err(reason @ (Drop::TableFull | Drop::NewFlowLimit)) => {
            let target = without_pin(packet, (backend, rule), reason, conntrack, context)?;
            return Ok(Opened { target, flow: None });
        }
        pinned => pinned?,
    };
    Ok(Opened { target, flow: Some(NewFlow { vip, rule, miss, client }) })
}

/// Returns the target of a packet whose flow gets no pin for `reason`: the backend that each packet
/// of the flow gets without a pin.
///
/// There is one where no reply needs the entry, and a connection id or the hash alone chooses. A
/// new flow goes where its later packets, which are chosen as mid-flow packets, will go: possibly
/// to a backend in slow start, but not to a draining one, which takes no new flow.
///
/// # Errors
/// The reason.
#[cold]
fn without_pin<'t>(
    packet: &Packet,
    (chosen, rule): (&'t Backend, Rule),
    reason: Drop,
    conntrack: &Conntrack,
    context: &Context<'t>,
) -> Result<Target<'t>, Drop> {
    let vip = context.table.vip(packet.vip).ok_or(Drop::NoVip)?;
    let named = rule == Rule::QuicCid;
    let hashed = vip.scheduler.kind().is_pure_hash() && vip.policy.remember.is_none();
    if vip.forward.translates() || !(named || hashed) {
        return Err(reason);
    }
    let backend = if rule == Rule::Scheduler && packet.flow.protocol() == Protocol::Tcp {
        let later =
            choose(&packet.flow.key(), Miss::NonSyn, vip, None, None, conntrack, context)?.0;
        Some(later).filter(|later| later.takes_new).ok_or(reason)?
    } else {
        chosen
    };
    let stats = context.stats;
    let (counter, why) = match reason {
        Drop::NewFlowLimit => (&stats.new_flow_limit_unpinned, "new flows are over their budget"),
        _ => (&stats.table_full_unpinned, "the flow table is full"),
    };
    counter.add(1);
    if let Some(trace) = context.trace {
        let why = format!("{why}, and the hash gives each packet of the flow this backend");
        trace.record("conntrack", "no pin", why);
    }
    Ok(Target { backend, snat_port: None })
}

/// Returns the VIP of a packet without a pin, if the packet may be forwarded at all.
#[inline(always)]
pub(super) fn admit<'t>(
    packet: &Packet,
    key: &FlowKey,
    context: &Context<'t>,
) -> Result<&'t Vip, Drop> {
    if !is_header_sum_right(packet.network()) {
        return Err(Drop::BadIpv4Checksum);
    }
    check_source(key, packet.source_mac())?;
    if is_own_source(key, context) {
        return Err(Drop::OwnSource);
    }
    let vip = context.table.vip(packet.vip).ok_or(Drop::NoVip)?;
    if context.table.old_listener(|| packet.flow.tuple.listen_key()).is_some() {
        return Err(Drop::VipRemoved);
    }
    if vip.forward.translates() && expires(packet) {
        // The packet will not be sent, so it gets no flow entry and no SNAT port.
        return Err(Drop::TtlExceeded);
    }
    Ok(vip)
}

/// Reports a new flow's source to the control thread, if the VIP's sources are sampled.
pub(super) fn offer_sample(key: impl FnOnce() -> FlowKey, vip: &Vip, context: &Context<'_>) {
    if vip.sampled {
        let source = vip.client_key(&key()).client;
        context.stats.samples.offer(Sample { vip: vip.id, source });
    }
}

/// Whether a router must not forward the packet (RFC 1812 5.3.1, RFC 8200 3).
fn expires(packet: &Packet) -> bool {
    let hops = if packet.flow.tuple.is_v4() { 8 } else { 7 };
    packet.data().get(packet.layout.ip() + hops).is_none_or(|&hops| hops <= 1)
}

/// Returns the backend that a mid-flow packet of this flow, which has no pin, would get. Creates no
/// pin.
///
/// # Errors
/// The reason for which there is none.
#[cold]
pub fn guess<'t>(
    packet: &Packet,
    conntrack: &Conntrack,
    context: &Context<'t>,
) -> Result<&'t Backend, Drop> {
    let key = packet.flow.key();
    check_source(&key, packet.source_mac())?;
    let vip = context.table.vip(packet.vip).ok_or(Drop::NoVip)?;
    if !vip.policy.pin && !vip.scheduler.kind().heeds_affinity() {
        // The backend of the quoted datagram is not known.
        return Err(Drop::IcmpNoFlow);
    }
    // Without pins, the hash chooses the backend of each datagram.
    let miss = if vip.policy.pin { Miss::NonSyn } else { Miss::Open };
    let client = ClientRecord::of(&key, vip, context);
    let chosen = choose(&key, miss, vip, client.as_ref(), None, conntrack, context)?;
    Ok(chosen.0)
}

/// Whether replies would come back to this box: the source is a VIP, a tunnel's source, or a
/// full-NAT source.
fn is_own_source(key: &FlowKey, context: &Context<'_>) -> bool {
    context.table.is_vip(key.client)
        || context.table.local().tunnels.is_source(key.client)
        || context.shared.snat_table.sources().has(key.client)
}

/// Counts a new flow.
fn count(rule: Rule, vip: &Vip, backend: &Backend, miss: Miss, context: &Context<'_>) {
    let stats = context.stats;
    match miss {
        _ if rule == Rule::QuicCid => stats.flows_by_cid.add(1),
        Miss::NonSyn => stats.flows_by_hash.add(1),
        Miss::Open => stats.flows_new.add(1),
    }
    let vip = stats.vips.get(usize::from(vip.id.0));
    let backend = stats.backends.get(usize::from(backend.id.index.0));
    for counters in vip.into_iter().chain(backend) {
        counters.flows_total.add(1);
        if matches!(rule, Rule::Scheduler | Rule::Midflow) {
            counters.flows_scheduled.add(1);
        }
    }
}

/// Whether a packet may create a pin. A packet that ends an unknown flow, or belongs to no flow (a
/// reply to a SYN that was never sent), is forwarded without one.
fn deserves_pin(packet: &Packet) -> bool {
    let flags = packet.layout.flags;
    let goes_on = flags.any(TcpFlags::ACK) && !flags.any(TcpFlags::SYN | TcpFlags::RST);
    packet.flow.protocol() != Protocol::Tcp || flags.opens() || goes_on
}

/// Returns a backend and the rule that chose it. `datagram` identifies the datagram of a fragment,
/// at a VIP without pins.
pub(super) fn choose<'t>(
    key: &FlowKey,
    miss: Miss,
    vip: &Vip,
    client: Option<&ClientRecord<'t>>,
    datagram: Option<u32>,
    conntrack: &Conntrack,
    context: &Context<'t>,
) -> Result<(&'t Backend, Rule), Drop> {
    let hash = vip.affinity_hash(context.table.secret(), key);
    if let Some(trace) = context.trace {
        record_affinity(key, hash, vip, trace);
    }
    let turn = match datagram {
        Some(datagram) => mix(hash ^ u64::from(datagram)),
        None => turn(vip, conntrack, context),
    };
    // With a scheduler that takes turns, slow start admits a share of the datagrams, not of the
    // clients.
    let by_turn = !vip.policy.pin && !vip.scheduler.kind().heeds_affinity();
    let hash = if by_turn { mix(turn) } else { hash };
    let mut candidates = Candidates {
        key,
        miss,
        vip,
        hash,
        turn,
        conntrack,
        context,
        slow_start: true,
        collided: false,
        itself: false,
        full: None,
    };
    if let Some(client) = client {
        let chosen = candidates.by_client(client);
        if let Some(trace) = context.trace {
            client.record_choice(chosen, context, trace);
        }
        if let Some(chosen) = chosen {
            return Ok(chosen);
        }
    }
    let scheduler = vip.scheduler.scheduler();
    let chosen = scheduler.choose(hash, &mut candidates).or_else(|| {
        // A backend in slow start is better than none.
        candidates.slow_start = false;
        scheduler.choose(hash, &mut candidates)
    });
    let rule = match miss {
        Miss::Open => Rule::Scheduler,
        Miss::NonSyn => Rule::Midflow,
    };
    if let Some(full) = candidates.full {
        count_full(full, context);
    }
    let backend = chosen.and_then(|index| context.table.backend(index));
    backend.map(|backend| (backend, rule)).ok_or(match candidates {
        Candidates { collided: true, .. } => Drop::NatCollision,
        Candidates { itself: true, .. } => Drop::ClientIsBackend,
        Candidates { full: Some(_), .. } => Drop::BackendsFull,
        _ => Drop::NoBackend,
    })
}

/// Counts a new flow that a backend did not get, as it is at its limit.
#[cold]
fn count_full(backend: BackendIndex, context: &Context<'_>) {
    if let Some(counter) = context.stats.over_limit.get(usize::from(backend.0)) {
        counter.add(1);
    }
}

/// Returns the round-robin turn. Workers start at different turns, so that their first flows go to
/// different backends.
fn turn(vip: &Vip, conntrack: &Conntrack, context: &Context<'_>) -> u64 {
    let placed = context.stats.vips.get(usize::from(vip.id.0));
    gauge(placed, |c| &c.flows_scheduled).wrapping_add(conntrack.worker().into())
}

/// Traces which flows share this one's affinity hash.
fn record_affinity(key: &FlowKey, hash: u64, vip: &Vip, trace: &Trace) {
    let client = vip.client_key(key);
    let why = match vip.policy.affinity {
        Affinity::Flow | Affinity::QuicCid => "every flow for itself: its five-tuple".to_owned(),
        Affinity::ClientPrefix { v4, v6 } if client.part == 1 => {
            let bits = if client.client.is_v4() { v4 } else { v6 };
            format!("all flows of {}/{bits}", client.client)
        }
        _ if client.part == 1 => format!("all flows of {}", client.client),
        Affinity::ClientPorts { .. } => {
            format!("flows of {} from part {} of its ports", client.client, client.part)
        }
        _ => format!(
            "{} is split, as it has more new flows than one backend should bear: part {} of 2^{}",
            client.client,
            client.part,
            vip.splits.bits(client.client)
        ),
    };
    trace.record("affinity", format!("hash {hash:016x}"), why);
}

/// View of the backends for the scheduler, for one packet.
struct Candidates<'c, 't> {
    key: &'c FlowKey,
    miss: Miss,
    vip: &'c Vip,
    hash: u64,
    turn: u64,
    conntrack: &'c Conntrack,
    context: &'c Context<'t>,
    /// Backends in slow start admit only their share.
    slow_start: bool,
    /// A backend was refused because it has an indistinguishable flow.
    collided: bool,
    /// A backend was refused because it is the client itself.
    itself: bool,
    /// The first backend that was refused because it is at its limit.
    full: Option<BackendIndex>,
}

impl<'t> Candidates<'_, 't> {
    /// Returns the backend that follows from the client's record, if any, and the rule.
    fn by_client(&mut self, client: &ClientRecord<'t>) -> Option<(&'t Backend, Rule)> {
        if let Some(backend) = client.stays_at(self.miss) {
            let takes = !self.is_full(backend) && self.distinguishes(backend);
            return takes.then_some((backend, Rule::Sticky));
        }
        if self.miss == Miss::NonSyn || !client.comes_back() {
            return None;
        }
        let freest = self.vip.freest.as_ref()?;
        let index = freest.choose(self.hash, self)?;
        Some((self.context.table.backend(index)?, Rule::Freest))
    }

    /// Whether the backend can distinguish the flow from its other flows, and from its own
    /// connections.
    fn distinguishes(&mut self, backend: &Backend) -> bool {
        self.indistinct(backend).is_none()
    }

    /// Returns the reason for which the backend cannot distinguish the flow.
    fn indistinct(&mut self, backend: &Backend) -> Option<&'static str> {
        if is_itself(self.key, backend) {
            self.itself = true;
            return Some("is the client itself, which would get its own address as the source");
        }
        // Without pins, no other flow leads there (`check` ensures that).
        let collides = self.vip.forward == Forward::Nat
            && self.vip.policy.pin
            && collides(self.key, backend, self.conntrack, self.context);
        self.collided |= collides;
        collides.then_some("has a flow that it could not tell from this one")
    }

    /// Returns the reason for which the backend is refused. A flow that lost its pin may go to a
    /// draining backend: it is the most likely previous one.
    fn refusal(&mut self, backend: &Backend) -> Option<&'static str> {
        let in_service = match self.miss {
            Miss::NonSyn => backend.takes_non_syn,
            Miss::Open => backend.takes_new,
        };
        if !in_service {
            return Some(backend.out_of_service());
        }
        if self.miss == Miss::Open && self.slow_start && !backend.admits(self.hash) {
            return Some(match backend.share {
                0 => "gets no new flows, as it leaves them unanswered (passive)",
                _ => "starts slowly, and does not take this one yet",
            });
        }
        if self.is_full(backend) {
            return Some("has as many flows as max_connections allows");
        }
        self.indistinct(backend)
    }

    /// Whether a new flow would exceed the limit of the backend.
    fn is_full(&mut self, backend: &Backend) -> bool {
        if backend.max_flows.is_none() || self.miss == Miss::NonSyn {
            return false;
        }
        let workers = self.context.shared.flows.len();
        let max = backend.max_flows_of(self.conntrack.worker(), workers);
        let full = max.is_some_and(|max| self.active(backend.id.index) >= max);
        if full {
            self.full.get_or_insert(backend.id.index);
        }
        full
    }
}

impl Pool for Candidates<'_, '_> {
    fn accepts(&mut self, backend: BackendIndex) -> bool {
        let Some(backend) = self.context.table.backend(backend) else { return false };
        let refusal = self.refusal(backend);
        if let Some(trace) = self.context.trace {
            let name = name(backend, self.context.table);
            match refusal {
                None => {
                    let why = match self.vip.fails_open {
                        true => "down, as all are, and the VIP has fail_open",
                        false => "in service",
                    };
                    trace.record("scheduler", format!("{name} takes it"), why);
                }
                Some(why) => trace.record("scheduler", format!("not {name}"), why),
            }
        }
        refusal.is_none()
    }

    fn active(&self, backend: BackendIndex) -> u64 {
        gauge(self.context.stats.backends.get(usize::from(backend.0)), |c| &c.flows_active)
    }

    fn active_total(&self) -> u64 {
        gauge(self.context.stats.vips.get(usize::from(self.vip.id.0)), |c| &c.flows_active)
    }

    fn turn(&self) -> u64 {
        self.turn
    }

    fn record(&mut self, step: Note) {
        let Some(trace) = self.context.trace else { return };
        let kind = self.vip.scheduler.kind();
        match step {
            Note::Full(full) => {
                let full = self.context.table.backend(full);
                let name = full.map_or("?", |backend| name(backend, self.context.table));
                trace.record(
                    "scheduler",
                    format!("not {name}"),
                    format!("it is at the bound of {kind}"),
                );
            }
            Note::Slot(_) | Note::Point(_) => trace.record("scheduler", step, kind),
        }
    }
}

fn gauge(counters: Option<&FlowStats>, which: impl Fn(&FlowStats) -> &Counter) -> u64 {
    counters.map_or(0, |counters| which(counters).get())
}

/// Whether a NAT backend is the client: it would receive a packet from its own address, which every
/// kernel drops (Linux: `fib_validate_source`), or takes for one of its own connections.
fn is_itself(key: &FlowKey, backend: &Backend) -> bool {
    backend.forward == Forward::Nat && backend.address == key.client
}

/// Whether the backend already has a flow from this client address and port, through another VIP or
/// another port of this one: neither the backend nor holdfast could distinguish the two.
fn collides(
    key: &FlowKey,
    backend: &Backend,
    conntrack: &Conntrack,
    context: &Context<'_>,
) -> bool {
    rivals(key, backend, context.table).any(|(rival, backend)| {
        let rival = conntrack.secret().hash(rival.into());
        conntrack.is_pinned_anywhere(&rival, backend, context)
    })
}

/// Returns the flows that a NAT backend could not distinguish from this one, each with the backend
/// of its VIP that is the same server.
pub(super) fn rivals<'t>(
    key: &FlowKey,
    backend: &Backend,
    table: &'t ForwardingTable,
) -> impl Iterator<Item = (FlowKey, BackendIndex)> + use<'t> {
    let (key, port) = (*key, backend.port.unwrap_or(key.vip_port));
    let source = ListenKey { address: backend.address, port, protocol: key.protocol };
    let paths = table.return_paths(source);
    // A single path is this flow's own.
    let several = paths.clone().nth(1).is_some();
    let rivals = paths.filter(move |_| several).map(move |path| {
        let vip_port = path.vip_port.unwrap_or(port);
        (FlowKey { vip: path.vip_address, vip_port, ..key }, path.backend)
    });
    rivals.filter(move |(rival, _)| *rival != key)
}

/// Refuses sources that no host may use (RFC 1122 3.2.1.3, RFC 4291 2.5-2.7).
fn check_source(key: &FlowKey, source_mac: [u8; 6]) -> Result<(), Drop> {
    let bad = match IpAddr::from(key.client) {
        IpAddr::V4(ip) => {
            ip.is_multicast()
                || ip.is_broadcast()
                || ip.is_loopback()
                || ip.octets().starts_with(&[0])
        }
        IpAddr::V6(ip) => ip.is_multicast() || ip.is_loopback() || ip.is_unspecified(),
    };
    // A group address as the source MAC (IEEE 802.3 3.2.3): replies would go to the group.
    let [first, ..] = source_mac;
    if bad || first & 1 == 1 {
        return Err(Drop::BadSource);
    }
    if (key.client, key.client_port) == (key.vip, key.vip_port) {
        return Err(Drop::Land);
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::datapath::testing::*;
    use crate::forwarding::{Ports, Service, VipSpec};
    use crate::net::VipId;

    /// Returns the backend chosen for a packet of a flow without a pin, and whether it is pinned.
    fn chosen(bed: &mut Bed, packet: &Packet, miss: Miss) -> Result<(BackendIndex, bool), Drop> {
        let mut conntrack = bed.conntrack(0);
        let context = bed.context(0, 0);
        let opened = select(packet, miss, &mut conntrack, &context)?;
        let pinned = conntrack.peek(&packet.flow, packet.hint, &context).is_some();
        let backend = opened.target.backend.id.index;
        opened.undo(&packet.flow, &mut conntrack, &context);
        assert!(bed.track(0, packet).is_none(), "taken back");
        Ok((backend, pinned))
    }

    /// The first of two workers may use 3 of 5 flows.
    #[test]
    fn a_backend_at_its_limit_takes_no_new_flows() {
        let mut spec = vip(Forward::Nat, 2);
        spec.backends[0].max_flows = Some(5);
        let mut bed = Bed::new(2, &[spec.clone()]);
        let used = |bed: &mut Bed, flags: &str, miss| {
            let mut used = [0; 2];
            for port in 1..40 {
                let packet = bed.request(port, flags);
                let (backend, _) = chosen(bed, &packet, miss).unwrap();
                used[usize::from(backend.0)] += 1;
            }
            used
        };
        bed.stats[0].backends[0].flows_active.add(2);
        let [first, second] = used(&mut bed, "S", Miss::Open);
        assert!(first > 10 && second > 10, "{first}, {second}");
        bed.stats[0].backends[0].flows_active.add(1);
        assert_eq!(used(&mut bed, "S", Miss::Open), [0, 39]);
        assert_eq!(bed.stats[0].over_limit[0].get(), first, "those that it would have got");
        assert_eq!(used(&mut bed, "A", Miss::NonSyn)[0], first, "it may have had them");
        spec.backends[1].max_flows = Some(2);
        bed.publish(&[spec]);
        bed.stats[0].backends[1].flows_active.add(1);
        let syn = bed.request(1, "S");
        assert_eq!(chosen(&mut bed, &syn, Miss::Open), Err(Drop::BackendsFull));
    }

    #[test]
    fn a_flow_is_pinned_to_a_backend_that_takes_new_ones() {
        let mut spec = vip(Forward::Nat, 2);
        spec.backends[0].up = false;
        let mut bed = Bed::new(1, &[spec.clone()]);
        for port in 1..50 {
            let packet = bed.request(port, "S");
            assert_eq!(chosen(&mut bed, &packet, Miss::Open), Ok((BackendIndex(1), true)));
        }
        // A draining backend may be the previous one of a flow that has lost its pin.
        spec.backends[1].service = Service::Draining;
        bed.publish(&[spec]);
        let (syn, ack) = (bed.request(1, "S"), bed.request(1, "A"));
        assert_eq!(chosen(&mut bed, &syn, Miss::Open), Err(Drop::NoBackend));
        assert_eq!(chosen(&mut bed, &ack, Miss::NonSyn), Ok((BackendIndex(1), true)));
    }

    #[test]
    fn the_same_client_port_gets_the_same_backend_opened_or_in_the_middle() {
        let mut bed = Bed::new(1, &[vip(Forward::Nat, 2)]);
        let mut seen = [0; 2];
        for port in 1..50 {
            let (syn, ack) = (bed.request(port, "S"), bed.request(port, "A"));
            let opened = chosen(&mut bed, &syn, Miss::Open).unwrap();
            assert_eq!(chosen(&mut bed, &ack, Miss::NonSyn), Ok(opened), "{port}");
            seen[usize::from(opened.0.0)] += 1;
        }
        assert!(seen[0] > 5 && seen[1] > 5, "{seen:?}");
    }

    #[test]
    fn packets_that_end_a_flow_leave_no_pin() {
        let mut bed = Bed::new(1, &[vip(Forward::Nat, 2), full_nat()]);
        for (flags, pinned) in [("S", true), ("A", true), ("FA", true), ("R", false), ("SA", false)]
        {
            let packet = bed.request(1, flags);
            let chosen = chosen(&mut bed, &packet, Miss::NonSyn);
            assert_eq!(chosen.map(|(_, pinned)| pinned), Ok(pinned), "{flags}");
        }
        let packet = bed.receive(&tcp((CLIENT, 1), (VIP, 81), "R")).unwrap();
        assert_eq!(chosen(&mut bed, &packet, Miss::NonSyn), Err(Drop::RequestNoFlow));
    }

    /// A full-NAT VIP on port 81.
    fn full_nat() -> VipSpec {
        let mut spec = vip(Forward::FullNat, 1);
        spec.backends[0].id.index = BackendIndex(4);
        VipSpec { id: VipId(1), ports: Ports::of(&[81]), ..spec }
    }

    #[test]
    fn sources_that_no_host_may_use_are_refused() {
        let mut bed = Bed::new(1, &[vip(Forward::Nat, 1), full_nat()]);
        for (source, reason) in [
            (Ipv4Addr::new(224, 0, 0, 1), Drop::BadSource),
            (Ipv4Addr::new(127, 0, 0, 1), Drop::BadSource),
            (Ipv4Addr::new(0, 1, 2, 3), Drop::BadSource),
            (Ipv4Addr::BROADCAST, Drop::BadSource),
            (VIP, Drop::OwnSource),
            (SNAT, Drop::OwnSource),
            (backend(0), Drop::ClientIsBackend),
        ] {
            let packet = bed.receive(&tcp((source, 1), (VIP, 80), "S")).unwrap();
            assert_eq!(chosen(&mut bed, &packet, Miss::Open), Err(reason), "{source}");
        }
        let packet = bed.receive(&tcp((VIP, 80), (VIP, 80), "S")).unwrap();
        assert_eq!(chosen(&mut bed, &packet, Miss::Open), Err(Drop::Land));
    }

    /// Two VIP ports lead to one port of a backend: it cannot distinguish a client's two flows.
    #[test]
    fn a_flow_goes_to_no_backend_that_could_not_tell_it_from_another() {
        let spec = VipSpec { ports: Ports::of(&[80, 81]), ..vip(Forward::Nat, 2) };
        let mut bed = Bed::new(1, &[spec]);
        let mut conntrack = bed.conntrack(0);
        let mut open = |bed: &mut Bed, vip_port| {
            let packet = bed.receive(&tcp((CLIENT, 1), (VIP, vip_port), "S")).unwrap();
            let opened = select(&packet, Miss::Open, &mut conntrack, &bed.context(0, 0));
            opened.map(|opened| opened.target.backend.id.index)
        };
        let first = open(&mut bed, 80).unwrap();
        let second = open(&mut bed, 81).unwrap();
        assert_ne!(first, second);
        let spec = VipSpec { ports: Ports::of(&[80, 81, 82]), ..vip(Forward::Nat, 2) };
        bed.publish(&[spec]);
        assert_eq!(open(&mut bed, 82), Err(Drop::NatCollision));
    }

    #[test]
    fn a_full_table_forwards_without_a_pin_where_the_hash_alone_chooses() {
        for (forward, expected) in [(Forward::Dsr, None), (Forward::Nat, Some(Drop::TableFull))] {
            let mut bed = Bed::new(1, &[vip(forward, 2)]);
            let mut conntrack = bed.conntrack(0);
            let reason = (1..100).find_map(|port| {
                let [packet, next] = ["S", "A"].map(|flags| bed.request(port, flags));
                let context = bed.context(0, 0);
                let opened = select(&packet, Miss::Open, &mut conntrack, &context).err();
                // An established flow makes no room.
                let _ = conntrack.track(&next, &context);
                opened.or_else(|| {
                    (context.stats.table_full_unpinned.get() > 5).then_some(Drop::NoVip)
                })
            });
            let unpinned = bed.stats[0].table_full_unpinned.get();
            assert_eq!(
                (reason, unpinned > 5),
                (expected.or(Some(Drop::NoVip)), expected.is_none())
            );
        }
    }
}
