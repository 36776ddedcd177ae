//! Part of the stage conntrack: room for new flows, in this worker's table and SNAT ports.
//!
//! ```text
//! more is free than the shares of the other VIPs --> a free entry
//! else --> the entry of an unproven flow, of a VIP over its share
//!          VIP below its share --> a free entry
//!          other VIP           --> the entry of an unproven flow of its own
//!          none                --> no pin
//! ```
//!
//! Reads: the gauges of VIPs, entries near the flow's own. Cost: nothing for pinned flows; some
//! comparisons for a new flow while there is room.

use super::commit::{count_gone, count_pinned};
use super::locate::Tables;
use crate::datapath::batch::Packet;
use crate::datapath::context::Context;
use crate::datapath::snat;
use crate::flow::entry::{FlowState, Pin, State};
use crate::flow::snat::SnatPort;
use crate::flow::table::Slot;
use crate::flow::writer::{Full, Rank};
use crate::forwarding::share::{Share, Shares};
use crate::forwarding::table::Backend;
use crate::net::{Family, HashedKey, Protocol, VipId};
use crate::stats::Drop;

/// Maximum number of SNAT ports that the search for one to take back visits: bounds the cost of a
/// new flow to some microseconds.
const LOOKS: u32 = 64;

/// A fixed number of things that the VIPs share.
struct Stock<'c> {
    capacity: u64,
    share: fn(&Shares) -> Share,
    context: &'c Context<'c>,
}

impl Stock<'_> {
    /// Whether a flow of `vip` may take a free one as a matter of course.
    #[inline]
    fn is_plenty(&self, vip: VipId, free: u64) -> bool {
        self.share(vip).is_plenty(self.capacity, free)
    }

    /// Whether a flow of `vip` may take one of those that are free in scarcity.
    fn is_below(&self, vip: VipId, free: u64) -> bool {
        free > 0 && self.share(vip).is_below(self.capacity, self.used(vip))
    }

    /// Whether a flow of `vip` may take the place of one of `other`; of its `own` only where it may
    /// take no free one.
    fn may_displace(&self, vip: VipId, other: VipId, own: bool) -> bool {
        if vip == other { own } else { self.share(other).exceeds(self.capacity, self.used(other)) }
    }

    /// Share of a VIP; none for one that was removed.
    #[inline]
    fn share(&self, vip: VipId) -> Share {
        self.context.table.vip(vip).map(|vip| (self.share)(&vip.shares)).unwrap_or_default()
    }

    #[inline]
    fn used(&self, vip: VipId) -> u64 {
        let counters = self.context.stats.vips.get(usize::from(vip.0));
        counters.map_or(0, |counters| counters.flows_active.get())
    }
}

impl Tables {
    fn entries<'c>(&self, context: &'c Context<'c>) -> Stock<'c> {
        let capacity = self.writer.table().capacity().into();
        Stock { capacity, share: |shares| shares.flows, context }
    }

    fn free(&self, flow: &HashedKey) -> u64 {
        self.writer.table().capacity().saturating_sub(self.writer.used(flow)).into()
    }

    /// Whether there is room for a remote entry. Remote entries leave the last eighth of the table,
    /// and what is guaranteed for VIPs, to pins.
    pub(super) fn has_remote_room(
        &self,
        flow: &HashedKey,
        vip: VipId,
        context: &Context<'_>,
    ) -> bool {
        let stock = self.entries(context);
        let (eighth, guaranteed) =
            (stock.capacity / 8, stock.share(vip).guaranteed(stock.capacity));
        // VIPs may have the whole table for their shares.
        self.free(flow) > guaranteed.clamp(eighth, stock.capacity - eighth)
    }

    /// Adds a pin.
    ///
    /// # Errors
    /// [`Full`]; the flow's SNAT port is then free again.
    pub fn insert(
        &mut self,
        flow: &HashedKey,
        pin: &Pin,
        context: &Context<'_>,
    ) -> Result<(), Full> {
        let plenty = self.entries(context).is_plenty(pin.vip, self.free(flow));
        if !plenty || self.writer.insert(flow, pin).is_err() {
            self.insert_in_scarcity(flow, pin, plenty, context)?;
        }
        count_pinned(pin, context.stats);
        Ok(())
    }

    /// Adds a pin where no entry is free as a matter of course, or (`plenty`) the flow's buckets are
    /// full: in the place of an unproven flow, so that a flood takes that of its own flows, and of no
    /// established one.
    #[cold]
    fn insert_in_scarcity(
        &mut self,
        flow: &HashedKey,
        pin: &Pin,
        plenty: bool,
        context: &Context<'_>,
    ) -> Result<(), Full> {
        let stock = self.entries(context);
        let below = stock.is_below(pin.vip, self.free(flow));
        let rank = |protocol, other: &Pin| {
            let rank = rank(protocol, &other.flow_state, context)?;
            stock.may_displace(pin.vip, other.vip, plenty || !below).then_some(rank)
        };
        let evicted = self.writer.evict(flow, context.now, !plenty, rank);
        if let Some(other) = &evicted {
            self.count_evicted(other, context);
        }
        let may_take = evicted.is_some() || !plenty && below;
        if may_take && self.writer.insert(flow, pin).is_ok() {
            return Ok(());
        }
        snat::release(&mut self.snat_allocator, pin, context);
        Err(Full)
    }

    fn count_evicted(&mut self, pin: &Pin, context: &Context<'_>) {
        if pin.flow_state.state().has(State::REMOTE) {
            context.stats.flow_aliases.sub(1);
            return;
        }
        context.stats.flows_evicted.add(1);
        snat::release(&mut self.snat_allocator, pin, context);
        count_gone(pin, context.stats);
    }

    /// Allocates a SNAT port for a packet's flow, which is to be pinned to `backend`.
    ///
    /// # Errors
    /// [`Drop::NoSourcePort`] if the VIP may take none, and no unproven flow has one to give up.
    pub fn bind(
        &mut self,
        packet: &Packet,
        backend: &Backend,
        context: &Context<'_>,
    ) -> Result<SnatPort, Drop> {
        let family = backend.address.family();
        let free = u64::try_from(self.snat_allocator.free(family)).unwrap_or(u64::MAX);
        let capacity = free.saturating_add(context.stats.snat_ports(family).get());
        let stock = Stock { capacity, share: |shares| shares.snat_ports, context };
        if !stock.is_plenty(packet.vip, free) {
            let below = stock.is_below(packet.vip, free);
            if !self.make_port_room(packet.vip, family, !below, &stock) && !below {
                return Err(Drop::NoSourcePort);
            }
        }
        snat::bind(&mut self.snat_allocator, packet, backend, context)
    }

    /// Removes the pin of an unproven flow with a SNAT port: the first one of the highest rank that
    /// the hand of the ports meets. As ports are allocated in a round, that is an old one.
    #[cold]
    fn make_port_room(&mut self, vip: VipId, family: Family, own: bool, stock: &Stock<'_>) -> bool {
        let mut silent = None;
        let mut unproven = None;
        for _ in 0..LOOKS {
            match self.next_port_victim(vip, family, own, stock) {
                Some((Rank::Unproven, slot)) => {
                    unproven = Some(slot);
                    break;
                }
                Some((Rank::Silent, slot)) => silent = silent.or(Some(slot)),
                None => {}
            }
        }
        let evicted = unproven.or(silent).and_then(|slot| self.writer.remove(slot));
        evicted.inspect(|pin| self.count_evicted(pin, stock.context)).is_some()
    }

    /// Returns the rank and the entry of the flow that has the next SNAT port, if it may go.
    fn next_port_victim(
        &mut self,
        vip: VipId,
        family: Family,
        own: bool,
        stock: &Stock<'_>,
    ) -> Option<(Rank, Slot)> {
        let snat_table = &stock.context.shared.snat_table;
        let id = self.snat_allocator.next(snat_table, self.me, family)?;
        let flow = snat_table.read(id)?.snat_flow.flow;
        let (slot, pin) = self.writer.table().lookup(&self.secret().hash(flow.into()))?;
        let may_go =
            pin.flow_state.snat_port() == Some(id) && stock.may_displace(vip, pin.vip, own);
        let rank = rank(flow.protocol, &pin.flow_state, stock.context).filter(|_| may_go)?;
        Some((rank, slot))
    }
}

/// Returns the rank at which a full table gives up a flow; `None` for a flow that has proven itself.
/// A terminated flow has no connection left: without its pin, its ends are notified by a RST of
/// another backend, or a refusal.
fn rank(protocol: Protocol, flow_state: &FlowState, context: &Context<'_>) -> Option<Rank> {
    let state = flow_state.state();
    let Some(backend) = context.table.pinned(flow_state.backend()) else {
        // Its next packet goes elsewhere.
        return Some(Rank::Unproven);
    };
    let unproven = match protocol {
        // After a RST there is no connection, unless it was forged and the client goes on.
        Protocol::Tcp => !state.has(State::ESTABLISHED) || state.has(State::RST),
        Protocol::Udp | Protocol::Any => state.has(State::FIRST),
    };
    if unproven && !state.has(State::TERMINATED) {
        return Some(Rank::Unproven);
    }
    let idle = context.now.since(flow_state.last_seen()).0;
    let silent = state.has(State::UNPROVEN) && idle > backend.timeouts.begun.0;
    let goes = state.has(State::TERMINATED) || silent || is_over(protocol, state, idle, backend);
    goes.then_some(Rank::Silent)
}

/// Whether both ends have closed a connection, and have repeated nothing for a quarter of the closing
/// time-out: longer than the gaps between the first five retransmissions of Linux.
fn is_over(protocol: Protocol, state: State, idle: u32, backend: &Backend) -> bool {
    let both = backend.forward.translates() && state.is_closing(backend.forward);
    protocol == Protocol::Tcp && both && idle > backend.timeouts.closing.0 / 4
}
