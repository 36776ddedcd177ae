//! Stage 5 of 7, select: a backend for every flow without a pin, and the pin.
//!
//! Reads: the flow key, the VIP's affinity and scheduler. Writes: the flow table.
//! Cost: nothing for a packet of a pinned flow; SipHash, a slot look-up and an insertion otherwise.

use std::net::IpAddr;

use super::batch::{Packet, TcpFlags};
use super::conntrack::{Conntrack, Context, Miss};
use crate::flow::entry::Rule;
use crate::flow::{FlowKey, Protocol};
use crate::forwarding::affinity::Sample;
use crate::forwarding::scheduler::{Note, Pool};
use crate::forwarding::table::{Backend, Vip};
use crate::forwarding::{BackendIndex, Forward, ListenKey};
use crate::stats::{Counter, Drop, FlowStats};

/// The backend of a packet whose flow has no pin, which it leaves behind.
///
/// # Errors
/// Why there is none.
#[cold]
pub fn select<'t>(
    packet: &Packet,
    miss: Miss,
    conntrack: &mut Conntrack,
    context: &Context<'t>,
) -> Result<&'t Backend, Drop> {
    let key = packet.flow.key();
    check_source(&key, packet.source_mac())?;
    let vip = context.table.vip(packet.vip).ok_or(Drop::NoVip)?;
    let (backend, rule) = choose(&key, miss, vip, conntrack, context)?;
    if deserves_pin(packet) {
        conntrack.pin(packet, backend, rule, context).map_err(|_| Drop::TableFull)?;
        count(rule, vip, backend, miss, context);
        if vip.sampled && miss == Miss::Open {
            let source = vip.client_key(&key).client;
            context.stats.samples.offer(Sample { vip: vip.id, source });
        }
    }
    Ok(backend)
}

/// Counts a flow that was pinned.
fn count(rule: Rule, vip: &Vip, backend: &Backend, miss: Miss, context: &Context<'_>) {
    let stats = context.stats;
    match miss {
        Miss::Midflow => stats.flows_by_hash.add(1),
        Miss::Open => stats.flows_new.add(1),
    }
    if matches!(rule, Rule::Scheduler | Rule::Midflow) {
        let vip = stats.vips.get(usize::from(vip.id.0));
        let backend = stats.backends.get(usize::from(backend.id.index.0));
        vip.into_iter().chain(backend).for_each(|counters| counters.flows_scheduled.add(1));
    }
}

/// Whether a packet may leave a pin behind. What ends a flow that is not known here, or is no part
/// of any (an answer to a SYN that we never sent), is forwarded without.
fn deserves_pin(packet: &Packet) -> bool {
    let flags = packet.shape.flags;
    let goes_on = flags.any(TcpFlags::ACK) && !flags.any(TcpFlags::SYN | TcpFlags::RST);
    packet.flow.protocol() == Protocol::Udp || flags.opens() || goes_on
}

/// Chooses a backend, and says by what rule.
fn choose<'t>(
    key: &FlowKey,
    miss: Miss,
    vip: &Vip,
    conntrack: &Conntrack,
    context: &Context<'t>,
) -> Result<(&'t Backend, Rule), Drop> {
    let hash = vip.affinity_hash(context.table.secret(), key);
    let mut candidates =
        Candidates { key, miss, vip, hash, conntrack, context, slow_start: true, collided: false };
    let scheduler = vip.scheduler.scheduler();
    let chosen = scheduler.choose(hash, &mut candidates).or_else(|| {
        // Better one that starts slowly than none.
        candidates.slow_start = false;
        scheduler.choose(hash, &mut candidates)
    });
    let rule = match miss {
        Miss::Open => Rule::Scheduler,
        Miss::Midflow => Rule::Midflow,
    };
    let backend = chosen.and_then(|index| context.table.backend(index));
    backend.map(|backend| (backend, rule)).ok_or(if candidates.collided {
        Drop::NatCollision
    } else {
        Drop::NoBackend
    })
}

/// What the scheduler may ask about, for one packet.
struct Candidates<'c, 't> {
    key: &'c FlowKey,
    miss: Miss,
    vip: &'c Vip,
    hash: u64,
    conntrack: &'c Conntrack,
    context: &'c Context<'t>,
    /// Backends that start slowly take their share only.
    slow_start: bool,
    /// Some backend could not tell the flow from another one.
    collided: bool,
}

impl Candidates<'_, '_> {
    /// For a flow whose pin was lost a draining backend is as good as any: it most probably is the
    /// one that had it.
    fn in_service(&self, backend: &Backend) -> bool {
        match self.miss {
            Miss::Midflow => backend.takes_midflow,
            Miss::Open => backend.takes_new && (!self.slow_start || backend.admits(self.hash)),
        }
    }
}

impl Pool for Candidates<'_, '_> {
    fn accepts(&mut self, backend: BackendIndex) -> bool {
        let backend = self.context.table.backend(backend);
        let Some(backend) = backend.filter(|backend| self.in_service(backend)) else {
            return false;
        };
        let collides = self.vip.forward == Forward::Nat
            && collides(self.key, backend, self.conntrack, self.context);
        self.collided |= collides;
        !collides
    }

    fn active(&self, backend: BackendIndex) -> u64 {
        gauge(self.context.stats.backends.get(usize::from(backend.0)), |c| &c.flows_active)
    }

    fn active_total(&self) -> u64 {
        gauge(self.context.stats.vips.get(usize::from(self.vip.id.0)), |c| &c.flows_active)
    }

    /// Workers begin at different places, so that the first flows of each do not meet.
    fn turn(&self) -> u64 {
        let placed = self.context.stats.vips.get(usize::from(self.vip.id.0));
        gauge(placed, |c| &c.flows_scheduled).wrapping_add(self.conntrack.worker().into())
    }

    fn note(&mut self, _note: Note) {}
}

fn gauge(counters: Option<&FlowStats>, which: impl Fn(&FlowStats) -> &Counter) -> u64 {
    counters.map_or(0, |counters| which(counters).get())
}

/// Whether the backend already has a flow from this client address and port, by another VIP or
/// another port of this one: it could not tell the two apart, nor could we tell its replies.
fn collides(
    key: &FlowKey,
    backend: &Backend,
    conntrack: &Conntrack,
    context: &Context<'_>,
) -> bool {
    let port = backend.port.unwrap_or(key.vip_port);
    let source = ListenKey { address: backend.address, port, protocol: key.protocol };
    let paths = context.table.return_paths(source);
    if paths.clone().nth(1).is_none() {
        return false;
    }
    paths.into_iter().any(|path| {
        let vip_port = path.vip_port.unwrap_or(port);
        let other = FlowKey { vip: path.vip_address, vip_port, ..*key };
        other != *key && {
            let other = conntrack.secret().hash(other.into());
            conntrack.is_pinned_anywhere(&other, path.backend, context)
        }
    })
}

/// Refuses sources from which nobody may send (RFC 1122 3.2.1.3, RFC 4291 2.5-2.7).
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
