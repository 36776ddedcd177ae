//! Part of the stage conntrack, for VIPs with `syn_proxy`: the splice of a flow, beside its pin.
//!
//! Reads: the flow tables of all workers, and the splices. Cost: one look-up in this worker's table,
//! or in the one that a remote entry names, and the line of the splice; only for such VIPs.

use super::context::Context;
use crate::flow::entry::{Pin, State};
use crate::flow::splices::{Place, Splice};
use crate::forwarding::table::{Backend, BackendFlags};
use crate::net::HashedKey;
use crate::wire::splice::Shift;

/// Window scale that clients are told: windows of up to 8 MiB, in steps of 128 bytes.
pub(super) const TOLD: u8 = 7;

/// A flow with a splice, wherever its pin is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    /// Place of pin and splice.
    pub place: Place,
    /// The pin.
    pub pin: Pin,
    /// The splice.
    pub splice: Splice,
}

/// Finds the splice of a flow; `None` if it has none, as flows have that began before `syn_proxy`
/// was switched on.
pub(super) fn find(flow: &HashedKey, context: &Context<'_>) -> Option<Found> {
    let (place, pin) = place_of(flow, context)?;
    let splice = context.shared.splices.read(&place)?;
    Some(Found { place, pin, splice })
}

/// Records the splice of a flow that this worker has just pinned. Returns false if that is not
/// possible.
pub(super) fn record(flow: &HashedKey, splice: &Splice, context: &Context<'_>) -> bool {
    let Some((place, _)) = place_of(flow, context) else { return false };
    context.shared.splices.record(&place, splice);
    place.worker == context.worker && context.shared.splices.read(&place).is_some()
}

fn place_of(flow: &HashedKey, context: &Context<'_>) -> Option<(Place, Pin)> {
    let flows = &context.shared.flows;
    let own = flows.get(usize::from(context.worker))?;
    // The flow of a packet to a SNAT port has no hash.
    let hashed = if flow.value() == 0 { own.secret().hash(flow.tuple) } else { *flow };
    let at = |worker: u8| {
        let table = flows.get(usize::from(worker))?;
        let (slot, pin) = table.lookup(&hashed)?;
        Some((Place { worker, slot, stamp: table.stamp(slot)? }, pin))
    };
    let is_pin = |(_, pin): &(Place, Pin)| !pin.flow_state.state().has(State::REMOTE);
    let named = at(context.worker).and_then(|found| match is_pin(&found) {
        true => Some(found),
        false => at(found.1.flow_state.owner()).filter(is_pin),
    });
    if let Some(found) = named.filter(|(_, pin)| !is_over(pin.flow_state.state())) {
        return Some(found);
    }
    // There was no room for a remote entry, or the ports are in use again, at another worker: the
    // newest pin is the flow's.
    let all = (0..u8::try_from(flows.len()).unwrap_or(u8::MAX)).filter_map(at).filter(is_pin);
    all.reduce(|one, other| if one.1.created.is_before(other.1.created) { other } else { one })
}

/// Whether a connection in this state may have a successor with the same ports.
const fn is_over(state: State) -> bool {
    let fins = State::FIN_CLIENT.with(State::FIN_BACKEND);
    state.has(State::RST) || state.has(State::TERMINATED) || state.has(fins)
}

/// Whether a flow on `backend`, in `state` here, waits for the backend's part of the handshake.
#[inline]
pub(super) fn waits(
    flow: &HashedKey,
    state: State,
    backend: &Backend,
    context: &Context<'_>,
) -> bool {
    backend.flags.has(BackendFlags::SPLICED)
        // A remote entry may be older than the pin.
        && (!state.has(State::ESTABLISHED) || state.has(State::REMOTE))
        && !state.has(State::TERMINATED)
        && is_waiting(flow, context)
}

#[cold]
fn is_waiting(flow: &HashedKey, context: &Context<'_>) -> bool {
    find(flow, context).is_some_and(|it| !it.pin.flow_state.state().has(State::ESTABLISHED))
}

/// Whether a flow on `backend` has a splice.
#[cold]
pub(super) fn is_spliced(flow: &HashedKey, backend: &Backend, context: &Context<'_>) -> bool {
    backend.flags.has(BackendFlags::SPLICED) && find(flow, context).is_some()
}

/// Finds the splice of a flow on `backend`, if such flows have one.
pub(super) fn find_on(
    flow: &HashedKey,
    backend: &Backend,
    context: &Context<'_>,
) -> Option<Splice> {
    if !backend.flags.has(BackendFlags::SPLICED) {
        return None;
    }
    Some(find(flow, context)?.splice)
}

/// Returns the numbers of a splice; `None` before the backend has answered.
pub(super) fn shift(splice: &Splice) -> Option<Shift> {
    let Splice { cookie, offer, answer, .. } = splice;
    let answer = answer.as_ref()?;
    Some(Shift {
        shift: answer.isn.wrapping_sub(*cookie),
        clock: answer.clock,
        upscale: if answer.scale.is_none() { offer.scale.unwrap_or_default() } else { 0 },
        scale: answer.scale.unwrap_or_default(),
        told: if offer.scale.is_some() { TOLD } else { 0 },
    })
}
