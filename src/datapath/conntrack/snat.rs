//! Part of the stage conntrack, for mode full_nat: replies to SNAT ports.
//!
//! ```text
//! reply to source s --> entry of s --> its flow, backend and way back
//!                                  '--> twice a second, and when its state changes: the pin
//! ```
//!
//! Cost: one prefetched line for most replies, whichever worker they arrive at; else the owner's pin
//! too, which is found by the flow's key in the owner's table. Nothing is searched.

use super::event::{News, reply};
use super::locate::Tables;
use super::state::{Class, Event, Verdict};
use super::untracked::Untracked;
use crate::datapath::batch::Packet;
use crate::datapath::bindings::{comes_from, is_stray};
use crate::datapath::context::Context;
use crate::datapath::target::{Cut, Target};
use crate::flow::bindings::{BindingId, Lease};
use crate::flow::entry::State;
use crate::forwarding::table::Backend;
use crate::net::{NextHop, Protocol, Tuple};
use crate::units::Ticks;

/// How often the pin is told that its flow lives. The shortest time-out is 1 s.
const TELL: Ticks = Ticks(50);

/// Where a packet for a SNAT port goes.
///
/// # Errors
/// [`Untracked`] when no flow has the port, or the packet does not come from its backend.
pub(super) fn track<'t>(
    tables: &Tables,
    packet: &mut Packet,
    id: BindingId,
    context: &Context<'t>,
) -> Result<NextHop, Untracked<'t>> {
    let lease = context.shared.bindings.read(id).ok_or(Untracked::NoFlow)?;
    let backend = context.table.pinned(lease.bound.backend).ok_or(Untracked::NoFlow)?;
    if !comes_from(packet, backend, &lease.bound) {
        return Err(Untracked::NoFlow);
    }
    packet.flow = tables.secret().hash(Tuple::from(lease.bound.flow));
    packet.vip = backend.vip;
    packet.backend = backend.id.index;
    if changes_nothing(packet, backend) && lease.told_within(TELL, context.now) {
        return Ok(lease.bound.way_back.next_hop());
    }
    track_unsteady(tables, packet, &lease, backend, context)
}

/// The same for a packet that changes something, or of which the flow's pin was not told for a while.
fn track_unsteady<'t>(
    tables: &Tables,
    packet: &Packet,
    lease: &Lease,
    backend: &'t Backend,
    context: &Context<'t>,
) -> Result<NextHop, Untracked<'t>> {
    if lease.bound.flow.client_port == 0 {
        // A client that sends from UDP port 0 wants no answer (RFC 768). Such a port is never told.
        return Err(Untracked::NoFlow);
    }
    let flow = &packet.flow;
    let located = tables.of_binding(flow, lease.id, context).ok_or(Untracked::NoFlow)?;
    let track = *located.track();
    let stray = is_stray(packet, backend, lease.id, context);
    let event = match stray {
        // The backend has lost the flow's connection: another SYN may begin a new one.
        true => Event::Reply(Class::Rst),
        false => reply(packet, &track, backend, context.now),
    };
    let news = News::of_reply(event, flow, &track, backend, context);
    if !news.is_kept() {
        return Err(Untracked::NoFlow);
    }
    let track = tables.store(&located, flow, &news, backend, context);
    if is_steady(flow.protocol(), track.state()) {
        context.shared.bindings.tell(lease, context.now);
    }
    let client = lease.bound.way_back.next_hop();
    match news.step.verdict {
        _ if stray => Err(Untracked::NoFlow),
        Verdict::Reset => Err(Untracked::Cut(Cut { client, target: Target::of(backend, &track) })),
        _ => Ok(client),
    }
}

/// Whether a backend's packet changes nothing in a flow that is in its steady state.
fn changes_nothing(packet: &Packet, backend: &Backend) -> bool {
    let tcp = packet.flow.protocol() == Protocol::Tcp;
    !backend.quirks.ends_flows() && (!tcp || packet.shape.flags.goes_on())
}

fn is_steady(protocol: Protocol, state: State) -> bool {
    match protocol {
        Protocol::Tcp => state == State::ESTABLISHED,
        _ => state == State::default(),
    }
}
