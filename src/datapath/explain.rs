//! Explains the outcome of a packet, with the reasons.
//!
//! The stages themselves run on a made-up packet and on scratch flow tables, into which every pin
//! that they may look up is copied, with a [`Trace`] that records their reasons. No state of a
//! worker is changed, and workers are not disturbed.

use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use etherparse::{IpHeaders, IpNumber, PacketBuilder, PacketBuilderStep};

use super::ask::{Hops, asks, lists, owners, send};
use super::batch::Packet;
use super::classify::{LastVip, classify};
use super::clients::key_of;
use super::conntrack::{Conntrack, is_expired};
use super::context::{Context, Identification, Macs};
use super::forward::{Unsent, forward_packet};
use super::local_reply::reject_no_backend;
use super::parse::{Parsed, parse};
use super::reset::TxBacklog;
use super::rewrite::{mtu_towards, rewrite_to_backend, tunnel};
use super::select::{admit, rivals, select};
use super::syn_proxy::{guards, is_served};
use crate::flow::clients::Key;
use crate::flow::entry::{Pin, State};
use crate::flow::shared::{FoundPin, SharedTables};
use crate::flow::table::TableError;
use crate::forwarding::explain::{Explanation, Question, Segment, Trace};
use crate::forwarding::table::{Backend, Owners, Vip, name};
use crate::forwarding::{Ask, ForwardingTable, Miss};
use crate::net::{Address, FlowKey, Forward, NextHop, NicIndex, Protocol, Tuple, VipId};
use crate::stats::{Drop, FlowStats, WorkerStats};
use crate::units::Ticks;
use crate::wire::tunnel::Outer;
use crate::xdp::umem::{FramePool, Umem, UmemError};

/// Assumed next hop of a client that has no flow yet: a locally administered address.
const SOMEWHERE: NextHop = NextHop { nic: NicIndex(0), mac: [2, 0, 0, 0, 0, 1], vlan: None };

/// Client key of no VIP.
const NOBODY: Key = Key { vip: VipId::NONE, client: Address { high: 0, low: 0 }, part: 0 };

/// Explains the outcome of packets of a flow.
#[derive(Debug)]
pub struct Explainer {
    pool: FramePool,
    shared: Arc<SharedTables>,
    stats: Vec<Arc<WorkerStats>>,
}

/// Error of an explanation.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// No memory for scratch tables.
    #[error("no memory to try it in: {0}")]
    Memory(#[from] TableError),
    /// The packet cannot be built.
    #[error("no such packet: {0}")]
    Packet(String),
}

impl Explainer {
    /// Creates an explainer for workers with these tables and counters.
    ///
    /// # Errors
    /// [`UmemError`] if there is no memory for one packet, which is never given back.
    pub fn new(shared: Arc<SharedTables>, stats: Vec<Arc<WorkerStats>>) -> Result<Self, UmemError> {
        let (_, pool) = Umem::create(1, 4096)?;
        Ok(Self { pool, shared, stats })
    }

    /// Explains the outcome of a packet of the flow sent now. Cost: about a millisecond.
    pub fn explain(
        &mut self,
        question: &Question,
        table: &ForwardingTable,
        now: Ticks,
    ) -> Result<Explanation, ExplainError> {
        let trace = Trace::default();
        let key = key(question);
        let vip = table.owner(Tuple::from(key).listen_key()).and_then(|id| table.vip(id));
        let found = self.pins(&key, vip, table);
        let (worker, pinned) = match vip {
            Some(vip) if !vip.policy.pin => (0, None),
            _ => record_pin(&found, &key, table, now, &trace),
        };
        let stats = self.loads(worker, vip);
        let me = u8::try_from(worker).unwrap_or_default();
        let client = vip.map_or(NOBODY, |vip| key_of(&key, vip));
        let (scratch, snat_allocator) = self.shared.scratch(&found, &client, me)?;
        let Some(flows) = scratch.flows.get(worker).cloned() else {
            return Err(ExplainError::Packet("there is no worker".to_owned()));
        };
        let Some(mut conntrack) =
            Conntrack::of_scratch(Arc::clone(&scratch.flows), snat_allocator, me, now)
        else {
            return Err(ExplainError::Packet("the scratch table is in use".to_owned()));
        };
        let hop =
            pinned.map_or(SOMEWHERE, |pin| self.shared.snat_table.return_hop(&pin.flow_state));
        let opens = match question.packet {
            Segment::Likely => pinned.is_none(),
            Segment::Syn => true,
            Segment::Midflow => false,
        };
        record_packet(question.protocol, opens, vip.is_none_or(|vip| vip.policy.pin), &trace);
        let mut packet = self.packet(question, opens, &hop, &table.local().macs)?;
        let context = &Context {
            table,
            flows: flows.view(),
            shared: &scratch,
            macs: &table.local().macs,
            identification: &Identification::of(me),
            worker: me,
            nic: hop.nic,
            now,
            stats: &stats,
            trace: Some(&trace),
        };
        let verdict = run(&mut packet, &mut conntrack, &mut self.pool, context);
        let sent = verdict.is_ok();
        match verdict {
            Ok(Done::Forwarded) => record_rewrite(&packet, pinned, question, context),
            Ok(Done::Asked) => {}
            Err(reason) => record_end(reason, &packet, context, &trace),
        }
        let frame = if sent { packet.data().to_vec() } else { Vec::new() };
        let backend = Some(packet.backend).filter(|_| sent);
        let next_hop = backend.and_then(|backend| table.backend(backend)?.next_hop);
        if let Some(frame) = packet.frame.take() {
            self.pool.push(frame);
        }
        Ok(Explanation { steps: trace.into_steps(), backend, next_hop, frame })
    }

    /// Returns every pin that the stages may look up.
    fn pins(&self, key: &FlowKey, vip: Option<&Vip>, table: &ForwardingTable) -> Vec<FoundPin> {
        let backends = vip.into_iter().flat_map(|vip| vip.scheduler.candidates());
        let backends = backends.filter_map(|candidate| table.backend(candidate.backend));
        let rivals = backends.flat_map(|backend| rivals(key, backend, table)).map(|(key, _)| key);
        let mut keys: Vec<FlowKey> = rivals.collect();
        keys.push(*key);
        let mut found = Vec::new();
        for (worker, flows) in self.shared.flows.iter().enumerate() {
            for key in &keys {
                let key = flows.secret().hash((*key).into());
                found.extend(flows.lookup(&key).map(|(_, pin)| FoundPin { worker, key, pin }));
            }
        }
        found
    }

    /// Returns new counters, with the worker's values of those that schedulers read.
    fn loads(&self, worker: usize, vip: Option<&Vip>) -> WorkerStats {
        let Some(theirs) = self.stats.get(worker) else { return WorkerStats::new(0, 0, 0) };
        let ours = WorkerStats::new(theirs.vips.len(), theirs.backends.len(), theirs.nics.len());
        let Some(vip) = vip else { return ours };
        copy(&theirs.vips, &ours.vips, vip.id.0);
        for candidate in vip.scheduler.candidates() {
            copy(&theirs.backends, &ours.backends, candidate.backend.0);
        }
        ours
    }

    /// Builds the packet in question.
    fn packet(
        &mut self,
        question: &Question,
        opens: bool,
        hop: &NextHop,
        macs: &Macs,
    ) -> Result<Packet, ExplainError> {
        let mut bytes = Vec::new();
        let mac = macs.get(usize::from(hop.nic.0)).copied().unwrap_or_default();
        let ethernet = PacketBuilder::ethernet2(hop.mac, mac);
        let (from, to) = (question.client, question.destination);
        let builder = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
            _ => return Err(ExplainError::Packet(format!("{from} and {to} are of two families"))),
        };
        write(builder, question, opens, &mut bytes).map_err(ExplainError::Packet)?;
        let mut frame = self.pool.pop();
        if !frame.as_mut().is_some_and(|frame| frame.copy_from(&bytes)) {
            frame.into_iter().for_each(|frame| self.pool.push(frame));
            return Err(ExplainError::Packet(format!("{} bytes are too many", bytes.len())));
        }
        Ok(Packet { frame, ..Packet::NONE })
    }
}

/// What has become of a packet that is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    /// It goes to a backend.
    Forwarded,
    /// Backends are asked for its flow.
    Asked,
}

/// Runs the stages from parse to rewrite.
fn run(
    packet: &mut Packet,
    conntrack: &mut Conntrack,
    pool: &mut FramePool,
    context: &Context<'_>,
) -> Result<Done, Drop> {
    // The question is about a packet of a flow.
    let Parsed::Flow(tuple) = parse(packet)? else { return Err(Drop::UnsupportedProtocol) };
    let mut last = LastVip::NONE;
    classify(packet, tuple, context, conntrack.secret(), &mut last)?;
    // Resets of a terminated flow are not sent: only the verdict is reported.
    match forward_packet(packet, conntrack, &mut TxBacklog::default(), context) {
        Ok(()) => Ok(Done::Forwarded),
        Err(Unsent::Dropped(reason)) => Err(reason),
        Err(Unsent::NoPin(miss)) => {
            if miss == Miss::NonSyn
                && asks(packet, context)
                && let Some(owners) = owners(packet, context)
            {
                ask(packet, &owners, pool, context)?;
                return Ok(Done::Asked);
            }
            let miss = if guards(packet, context) {
                record_guard(packet.vip, miss, context)?
            } else {
                miss
            };
            let opened = select(packet, miss, conntrack, context)?;
            rewrite_to_backend(packet, &opened.target, context)?;
            Ok(Done::Forwarded)
        }
        Err(Unsent::Fragment) => Err(Drop::Fragment),
        Err(Unsent::Answer) => Err(Drop::AskAnswer),
        Err(Unsent::Waits | Unsent::Answers(_)) => Err(Drop::SynProxyWaits),
    }
}

/// Turns the packet into an ask, and traces who is asked, and why.
fn ask(
    packet: &mut Packet,
    owners: &Owners<'_>,
    pool: &mut FramePool,
    context: &Context<'_>,
) -> Result<(), Drop> {
    let vip = admit(packet, &packet.flow.key(), context)?;
    let lists = lists(vip, owners, context);
    let first = lists.first().ok_or(Drop::NoBackend)?;
    if let Some(trace) = context.trace {
        let named = |list: &Hops<'_>| {
            let names: Vec<_> = list.iter().map(|backend| name(backend, context.table)).collect();
            names.join(", then ")
        };
        let all: Vec<_> = lists.iter().map(named).collect();
        let why = match (vip.policy.ask, owners.or_any) {
            (Ask::All, _) => "lost.ask = \"all\"",
            (_, true) => "the VIP's past is not known as far back as lost.remember_s says",
            (_, false) if owners.is_sure => "another box may see health and drains differently",
            (_, false) => "earlier tables have chosen others than the present one",
        };
        let then = "the one that has the connection gets the packet, and answers: a pin";
        trace.record("ask", all.join("; and "), format!("{why}; {then}"));
    }
    send(packet, first, lists.len() > 1, pool, context)
}

/// Traces the proof that a VIP with `syn_proxy` wants of a client, and goes on as if it was given;
/// without a SYN there is none.
fn record_guard(vip: VipId, miss: Miss, context: &Context<'_>) -> Result<Miss, Drop> {
    if miss == Miss::NonSyn {
        return Err(Drop::NoCookie);
    }
    let vip = context.table.vip(vip).ok_or(Drop::NoVip)?;
    if !is_served(vip, context) {
        return Err(Drop::NoBackend);
    }
    if let Some(trace) = context.trace {
        let why = "the VIP has syn_proxy; what follows happens once the client has acknowledged it";
        trace.record("syn_proxy", "the SYN is answered with a cookie", why);
    }
    Ok(miss)
}

fn key(question: &Question) -> FlowKey {
    // Where ports mean nothing, all packets of a client to an address are one flow.
    let port = |socket: SocketAddr| match question.protocol {
        Protocol::Any => 0,
        Protocol::Tcp | Protocol::Udp => socket.port(),
    };
    FlowKey {
        client: question.client.ip().into(),
        vip: question.destination.ip().into(),
        client_port: port(question.client),
        vip_port: port(question.destination),
        protocol: question.protocol,
    }
}

/// Traces the worker that has the flow's pin, if one is alive, and returns both; else returns the
/// first worker.
fn record_pin<'f>(
    found: &'f [FoundPin],
    key: &FlowKey,
    table: &ForwardingTable,
    now: Ticks,
    trace: &Trace,
) -> (usize, Option<&'f Pin>) {
    let own = |found: &&FoundPin| {
        found.key.key() == *key && !found.pin.flow_state.state().has(State::REMOTE)
    };
    let Some(FoundPin { worker, pin, .. }) = found.iter().find(own) else {
        trace.record("conntrack", "no pin", "no worker has this flow");
        return (0, None);
    };
    let ago = |then: Ticks| Seconds(now.since(then));
    let said = format!(
        "pinned {} ago by rule {}, last packet {} ago, worker {worker}",
        ago(pin.created),
        pin.rule.as_str(),
        ago(pin.flow_state.last_seen())
    );
    match table.pinned(pin.flow_state.backend()) {
        None => trace.record("conntrack", "no pin", format!("{said}: its backend has left")),
        Some(backend) if !is_expired(key.protocol, &pin.flow_state, backend, now) => {
            let overlay = match backend.takes_new {
                true => String::new(),
                false => format!("; no new flows go there: {}", backend.out_of_service()),
            };
            let outcome = format!("pinned to {}", name(backend, table));
            trace.record("conntrack", outcome, said + &overlay);
            return (*worker, Some(pin));
        }
        Some(_) => trace.record("conntrack", "no pin", format!("{said}: idle for too long")),
    }
    (*worker, None)
}

/// Traces the packet that is made up.
fn record_packet(protocol: Protocol, opens: bool, pin: bool, trace: &Trace) {
    let (packet, why) = match (protocol, opens) {
        (Protocol::Any, _) => {
            ("an ESP packet", "any protocol will do: each packet may begin a flow")
        }
        (Protocol::Udp, _) if !pin => ("a datagram", "each is placed by itself"),
        (Protocol::Udp, _) => ("a datagram", "each may begin a flow"),
        (Protocol::Tcp, true) => ("a SYN", "as if the client opened a connection now"),
        (Protocol::Tcp, false) => ("an ACK", "as if the connection existed, and went on"),
    };
    trace.record("packet", packet, why);
}

/// Ticks, displayed in seconds.
struct Seconds(Ticks);

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02} s", self.0.0 / 100, self.0.0 % 100)
    }
}

fn record_rewrite(
    packet: &Packet,
    pinned: Option<&Pin>,
    question: &Question,
    context: &Context<'_>,
) {
    let Some((trace, backend)) = context.trace.zip(context.table.backend(packet.backend)) else {
        return;
    };
    let name = name(backend, context.table);
    let to = SocketAddr::new(
        backend.address.into(),
        backend.port.unwrap_or_else(|| question.destination.port()),
    );
    let sources = context.shared.snat_table.sources();
    let source = pinned.and_then(|pin| sources.source(pin.flow_state.snat_port()?));
    let source = source.map(|(address, port)| SocketAddr::new(address.into(), port));
    let outcome = match backend.forward {
        Forward::Nat => format!("{} -> {to}", question.client),
        Forward::FullNat => {
            let from = source.map_or_else(
                || sources.describe(backend.address.family()),
                |source| source.to_string(),
            );
            format!("{from} -> {to}")
        }
        _ => format!("{} -> {}", question.client, question.destination),
    };
    let why = match backend.forward {
        Forward::Dsr => format!("dsr: only the destination MAC changes, to that of {name}"),
        Forward::Nat => format!("nat: to the address and port of {name}"),
        Forward::FullNat => {
            let from = if source.is_some() { "the source of this flow" } else { "a free source" };
            let proxy = if backend.proxy { ", behind a PROXY header" } else { "" };
            format!("full_nat: to the address and port of {name}, from {from}{proxy}")
        }
        Forward::Ipip => format!("ipip: as it is, in an IP packet to {name}"),
        Forward::Gue => format!("gue: as it is, in a UDP packet to {name}"),
    };
    trace.record("rewrite", outcome, why);
    record_neighbour(question, backend, context);
    if backend.forward.tunnels()
        && let Some(outer) = tunnel::outer(packet.flow.tuple, false, backend, context)
    {
        record_tunnel(&outer, mtu_towards(backend, packet.flow.tuple.family(), context), trace);
    }
}

/// Traces that the client is another backend of its NAT VIP: its replies must not bypass holdfast
/// within the client's network.
fn record_neighbour(question: &Question, backend: &Backend, context: &Context<'_>) {
    let vip = context.table.vip(backend.vip).filter(|vip| vip.forward == Forward::Nat);
    let Some((vip, trace)) = vip.zip(context.trace) else { return };
    let client = Address::from(question.client.ip());
    let candidates = vip.scheduler.candidates().iter();
    let mut backends = candidates.filter_map(|it| context.table.backend(it.backend));
    if let Some(client) = backends.find(|it| it.address == client) {
        let outcome = format!("the client is {}", name(client, context.table));
        let why = "answers must come back through this box, not straight to the client's network: \
                   docs/MODES.md, \"Backends as clients\"";
        trace.record("client", outcome, why);
    }
}

/// Traces the flow's outer addresses, as a backend's NIC sees them, and the MTU inside the tunnel.
fn record_tunnel(outer: &Outer, mtu: u16, trace: &Trace) {
    let ports = outer.gue.map(|(from, to)| format!(", UDP port {from} to {to}"));
    let outcome = format!("{} -> {}", outer.source, outer.destination) + &ports.unwrap_or_default();
    let why = format!("what a NIC sees of the flow; packets of up to {mtu} bytes fit");
    trace.record("tunnel", outcome, why);
}

/// Traces the drop reason, and the reply to the sender.
fn record_end(reason: Drop, packet: &Packet, context: &Context<'_>, trace: &Trace) {
    trace.record("drop", reason.as_str(), reason.describe().trim());
    let why = match reason {
        Drop::NoBackend | Drop::BackendsFull | Drop::ClientIsBackend
            if reject_no_backend(packet, context) =>
        {
            "the VIP says on_no_backend = \"reject\""
        }
        Drop::VipRemoved => "nothing listens here any longer",
        _ => return,
    };
    let answer = match packet.flow.protocol() {
        Protocol::Tcp => "a RST",
        _ => "ICMP port unreachable",
    };
    trace.record("answer", answer, why);
}

/// Writes the packet: transport header and payload.
fn write(
    builder: PacketBuilderStep<IpHeaders>,
    question: &Question,
    opens: bool,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let (from, to) = (question.client.port(), question.destination.port());
    let payload = &question.payload;
    match question.protocol {
        Protocol::Udp => builder.udp(from, to).write(out, payload),
        Protocol::Any => builder.write(out, IpNumber::ENCAPSULATING_SECURITY_PAYLOAD, payload),
        Protocol::Tcp if opens => builder.tcp(from, to, 1, u16::MAX).syn().write(out, &[]),
        Protocol::Tcp => builder.tcp(from, to, 1, u16::MAX).ack(1).write(out, &[]),
    }
    .map_err(|error| error.to_string())
}

/// Copies the counters that schedulers read.
fn copy(theirs: &[FlowStats], ours: &[FlowStats], index: u16) {
    let index = usize::from(index);
    if let Some((theirs, ours)) = theirs.get(index).zip(ours.get(index)) {
        ours.flows_active.add(theirs.flows_active.get());
        ours.flows_scheduled.add(theirs.flows_scheduled.get());
    }
}
