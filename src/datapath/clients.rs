//! Side door of conntrack and select: what is remembered of clients, at VIPs that want it.
//!
//! Reads and writes: the clients table. Cost: one test of a flag for the packets of other VIPs. A
//! flow of such a VIP notes its client at its first packet, at the end of its handshake, and then at
//! the first packet of every 1.28 s; a new flow looks its client up.

use super::context::Context;
use crate::flow::clients::{Key, Mapping, NotNoted};
use crate::flow::entry::{Rule, State, Track};
use crate::forwarding::Remember;
use crate::forwarding::explain::Trace;
use crate::forwarding::sticky::PERIOD_BITS;
use crate::forwarding::table::{Backend, Quirks, Vip, name};
use crate::net::{BackendId, FlowKey, HashedKey, Protocol};

/// What is known of the client of a new flow, at a VIP that remembers its clients.
#[derive(Clone, Copy)]
pub struct Known<'t> {
    remember: Remember,
    key: Key,
    mapping: Option<Mapping>,
    /// The client's backend, unless its generation has ended.
    backend: Option<&'t Backend>,
    /// It was silent for longer than the time-out.
    expired: bool,
}

impl<'t> Known<'t> {
    /// Looks the client of a flow up; `None` at VIPs that remember nothing.
    pub fn of(key: &FlowKey, vip: &Vip, context: &Context<'t>) -> Option<Self> {
        let remember = vip.remember?;
        let key = key_of(key, vip);
        let mapping = context.clients.find(&key);
        let expired = mapping.is_some_and(|m| remember.is_over(context.now.since(m.last_used)));
        let backend = mapping.and_then(|mapping| context.table.pinned(mapping.backend));
        Some(Self { remember, key, mapping, backend, expired })
    }

    /// The backend that the client's new flow follows it to; `midflow`: a flow whose pin was lost.
    pub fn stays_at(&self, midflow: bool) -> Option<&'t Backend> {
        let sticky = self.remember.sticky.filter(|_| !self.expired)?;
        self.backend.filter(|backend| sticky.stays(backend, midflow))
    }

    /// Whether the client comes back after its time-out.
    pub const fn comes_back(&self) -> bool {
        self.expired
    }

    /// Tells what is known of the client, and what came of it.
    pub fn tell(&self, chosen: Option<(&Backend, Rule)>, context: &Context<'_>, trace: &Trace) {
        let Some(mapping) = self.mapping else {
            return trace.tell("clients", "not known", "the client was not here, or is forgotten");
        };
        let name = |backend| name(backend, context.table);
        let seconds = |since| context.now.since(since).as_ms() / 1000;
        let has = self.backend.map_or("a backend that has left", name);
        let (since, idle) = (seconds(mapping.created), seconds(mapping.last_used));
        let known = format!("it has {has} for {since} s, its last packet was {idle} s ago");
        match (chosen, self.expired) {
            (Some((backend, Rule::Freest)), _) => {
                let why = format!("{known}: it comes back, and goes to the freest backend");
                trace.tell("clients", name(backend), why);
            }
            (Some((backend, _)), _) => trace.tell("clients", name(backend), known),
            (None, true) => trace.tell("clients", "comes back", format!("{known}: too long")),
            (None, false) => {
                let why = self.backend.map_or("gone", Backend::out_of_service);
                let sticks = self.remember.sticky.is_some();
                let why = if sticks { why } else { "clients do not stick at this VIP" };
                trace.tell("clients", "is free", format!("{known}: {why}"));
            }
        }
    }

    /// Notes that the flow went to `backend`.
    pub fn note(&self, backend: &Backend, context: &Context<'_>) {
        let Context { clients, now, .. } = *context;
        let same = self.mapping.is_some_and(|mapping| mapping.backend == backend.id);
        let goes_on = !self.expired && (same || self.remember.sticky.is_none());
        if self.mapping.is_some() && goes_on {
            clients.touch(&self.key, self.remember.kept_by(backend.id), now, false);
        } else if same || self.stays_at(false).is_none() {
            assign(&self.key, backend.id, context);
        }
        // Else one flow could not follow (its ports are taken there): the client stays where it is.
    }
}

/// Whether a packet is the first of its flow in a period.
#[inline(always)]
pub const fn is_due(track: &Track, context: &Context<'_>) -> bool {
    (context.now.0 ^ track.last_seen().0) >> PERIOD_BITS != 0
}

/// Notes a packet of a flow on `backend` that is in `state` by now, and was in `before`.
#[cold]
#[inline(never)]
pub fn seen(
    flow: &HashedKey,
    backend: &Backend,
    (before, state): (State, State),
    context: &Context<'_>,
) {
    let Some(vip) = context.table.vip(backend.vip) else { return };
    let Some(remember) = vip.remember else { return };
    let key = key_of(&flow.key(), vip);
    let proven = flow.protocol() != Protocol::Tcp || state.has(State::ESTABLISHED);
    let touch = || context.clients.touch(&key, remember.kept_by(backend.id), context.now, proven);
    // A flood may have pushed out what the SYN has left.
    let answered = proven && !before.has(State::ESTABLISHED) && flow.protocol() == Protocol::Tcp;
    if !touch() && answered {
        assign(&key, backend.id, context);
        touch();
    }
}

/// The same, where the flow's state does not change.
#[inline]
pub fn seen_again(flow: &HashedKey, backend: &Backend, state: State, context: &Context<'_>) {
    if backend.quirks.has(Quirks::REMEMBERS) {
        seen(flow, backend, (state, state), context);
    }
}

fn assign(key: &Key, backend: BackendId, context: &Context<'_>) {
    let Context { table, clients, now, stats, .. } = *context;
    let lives = |key: &Key, mapping: &Mapping| {
        let remember = table.vip(key.vip).and_then(|vip| vip.remember);
        remember.is_some_and(|remember| !remember.is_over(now.since(mapping.last_used)))
            && table.pinned(mapping.backend).is_some()
    };
    if clients.assign(key, backend, now, lives) == Err(NotNoted::Full) {
        stats.clients_full.add(1);
    }
}

/// Whom a flow is counted to.
pub fn key_of(key: &FlowKey, vip: &Vip) -> Key {
    let client = vip.client_key(key);
    Key { vip: vip.id, client: client.client, part: client.part }
}
