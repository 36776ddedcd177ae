//! Part of the stage conntrack, for mode full_nat: replies to SNAT ports.
//!
//! ```text
//! reply to SNAT port s --> entry of s --> its flow, backend and return hop
//!                                     '--> twice a second, and when its state changes: the pin
//! ```
//!
//! Cost: one prefetched line for most replies, whichever worker they arrive at; otherwise also the
//! owner's pin, which is looked up by the flow's key in the owner's table only.

use super::event::{FlowUpdate, reply};
use super::locate::Tables;
use super::state::{Class, Event, Verdict};
use super::untracked::Untracked;
use crate::datapath::batch::Packet;
use crate::datapath::context::Context;
use crate::datapath::snat::{comes_from, is_stray};
use crate::datapath::target::{Target, Terminated};
use crate::flow::entry::State;
use crate::flow::snat::{SnatEntry, SnatPort};
use crate::forwarding::table::Backend;
use crate::net::{HashedKey, NextHop, Protocol, Tuple};
use crate::units::Ticks;

/// Least interval between notifications of the pin: 0.5 s. The shortest time-out is 1 s.
const NOTIFY_INTERVAL: Ticks = Ticks(50);

/// Returns the next hop of a packet to a SNAT port.
///
/// # Errors
/// [`Untracked`] if no flow has the port, the packet does not come from its backend, or the flow is
/// terminated.
pub(super) fn track<'t>(
    tables: &Tables,
    packet: &mut Packet,
    id: SnatPort,
    context: &Context<'t>,
) -> Result<NextHop, Untracked<'t>> {
    // Borrowed: the entry is not moved on the stack.
    let Some(snat_entry) = &context.shared.snat_table.read(id) else {
        return Err(Untracked::NoFlow);
    };
    let backend = context.table.pinned(snat_entry.snat_flow.backend).ok_or(Untracked::NoFlow)?;
    if !comes_from(packet, backend, &snat_entry.snat_flow) {
        return Err(Untracked::NoFlow);
    }
    packet.vip = backend.vip;
    packet.backend = backend.id.index;
    if changes_nothing(packet, backend) && snat_entry.notified_within(NOTIFY_INTERVAL, context.now)
    {
        packet.flow = HashedKey::unhashed(Tuple::from(snat_entry.snat_flow.flow));
        return Ok(snat_entry.snat_flow.return_hop.next_hop());
    }
    // Only a look-up needs the hash.
    packet.flow = tables.secret().hash(Tuple::from(snat_entry.snat_flow.flow));
    track_unsteady(tables, packet, snat_entry, backend, context)
}

/// Handles a packet that changes the flow's state, or is due to notify the flow's pin.
fn track_unsteady<'t>(
    tables: &Tables,
    packet: &Packet,
    snat_entry: &SnatEntry,
    backend: &'t Backend,
    context: &Context<'t>,
) -> Result<NextHop, Untracked<'t>> {
    if snat_entry.snat_flow.flow.client_port == 0 {
        // A client that sends from UDP port 0 expects no reply (RFC 768), so its pin is never
        // notified.
        return Err(Untracked::NoFlow);
    }
    let flow = &packet.flow;
    let located = tables.of_snat_port(flow, snat_entry.id, context).ok_or(Untracked::NoFlow)?;
    let flow_state = *located.flow_state();
    let stray = is_stray(packet, backend, snat_entry.id, context);
    let event = match stray {
        // The backend has lost the flow's connection: another SYN may begin a new one.
        true => Event::Reply(Class::Rst),
        false => reply(packet, &flow_state, backend, context.now),
    };
    let update = FlowUpdate::of_reply(event, flow, &flow_state, backend, context);
    if !update.is_kept() {
        return Err(Untracked::NoFlow);
    }
    let flow_state = tables.store(&located, flow, &update, backend, context);
    if is_steady(flow.protocol(), flow_state.state()) {
        context.shared.snat_table.notify(snat_entry, context.now);
    }
    let client = snat_entry.snat_flow.return_hop.next_hop();
    match update.step.verdict {
        _ if stray => Err(Untracked::NoFlow),
        Verdict::Reset => Err(Untracked::Terminated(Terminated {
            client,
            target: Target::of(backend, &flow_state),
        })),
        _ if update.waits => Err(Untracked::Answers(client)),
        _ => Ok(client),
    }
}

/// Whether a backend's packet changes nothing in a flow that is in its steady state.
fn changes_nothing(packet: &Packet, backend: &Backend) -> bool {
    let tcp = packet.flow.protocol() == Protocol::Tcp;
    !backend.flags.ends_flows() && (!tcp || packet.layout.flags.goes_on())
}

fn is_steady(protocol: Protocol, state: State) -> bool {
    match protocol {
        Protocol::Tcp => state == State::ESTABLISHED,
        _ => state == State::default(),
    }
}
