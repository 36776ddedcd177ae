//! Part of the stage conntrack: records of clients, for VIPs that keep them.
//! [`select`](super::select) looks up the client of a new flow.
//!
//! Reads and writes: the clients table. Cost: one test of a flag for packets of other VIPs. A flow
//! of such a VIP records its client at its first packet, when its state changes, and at the first
//! packet of every 1.28 s.

use super::context::Context;
use crate::flow::clients::{Key, Mapping, NotRecorded};
use crate::flow::entry::{FlowState, State};
use crate::forwarding::sticky::PERIOD_BITS;
use crate::forwarding::table::{Backend, Vip};
use crate::net::{BackendId, FlowKey, HashedKey, Protocol};

/// Whether a packet is the first of its flow in a period of 1.28 s.
#[inline(always)]
pub const fn is_due(flow_state: &FlowState, context: &Context<'_>) -> bool {
    (context.now.0 ^ flow_state.last_seen().0) >> PERIOD_BITS != 0
}

/// Records a packet of a flow on `backend` that changed the flow's state from `before` to `state`.
#[cold]
#[inline(never)]
pub fn record(
    flow: &HashedKey,
    backend: &Backend,
    (before, state): (State, State),
    context: &Context<'_>,
) {
    let Some(vip) = context.table.vip(backend.vip) else { return };
    let Some(remember) = vip.policy.remember else { return };
    let key = key_of(&flow.key(), vip);
    let proven = flow.protocol() != Protocol::Tcp || state.has(State::ESTABLISHED);
    let touch =
        || context.shared.clients.touch(&key, remember.kept_by(backend.id), context.now, proven);
    // A flood may have evicted the record that the SYN created.
    let answered = proven && !before.has(State::ESTABLISHED) && flow.protocol() == Protocol::Tcp;
    if !touch() && answered {
        assign(&key, backend.id, context);
        touch();
    }
}

/// Assigns the client to `backend`.
pub fn assign(key: &Key, backend: BackendId, context: &Context<'_>) {
    let Context { table, shared, now, stats, .. } = *context;
    let lives = |key: &Key, mapping: &Mapping| {
        let remember = table.vip(key.vip).and_then(|vip| vip.policy.remember);
        remember.is_some_and(|remember| !remember.is_over(now.since(mapping.last_used)))
            && table.pinned(mapping.backend).is_some()
    };
    if shared.clients.assign(key, backend, now, lives) == Err(NotRecorded::Full) {
        stats.clients_full.add(1);
    }
}

/// Returns the client-table key of a flow.
pub fn key_of(key: &FlowKey, vip: &Vip) -> Key {
    let client = vip.client_key(key);
    Key { vip: vip.id, client: client.client, part: client.part }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;
    use crate::datapath::testing::*;
    use crate::forwarding::Remember;
    use crate::forwarding::sticky::{Hold, Reentry, Sticky};
    use crate::net::{BackendIndex, Forward, VipId};
    use crate::units::Ticks;

    fn bed() -> Bed {
        let sticky = Some(Sticky { on_drain: Hold::Release, on_down: Hold::Release });
        let remember = Remember { timeout: Ticks(1000), sticky, on_reentry: Reentry::Hash };
        Bed::new(1, &[with(vip(Forward::Nat, 2), |policy| policy.remember = Some(remember))])
    }

    #[test]
    fn a_handshake_proves_a_client_and_notes_one_that_was_pushed_out() {
        let mut bed = bed();
        let packet = bed.request(1, "S");
        let context = bed.context(0, 5);
        let backend = context.table.backend(BackendIndex(1)).unwrap();
        let key = key_of(&packet.flow.key(), context.table.vip(VipId(0)).unwrap());
        let (begun, established) = (State::default(), State::ESTABLISHED);
        for (states, recorded) in [
            // A client without a record: only the end of a handshake creates one.
            ((begun, begun), None),
            ((established, established), None),
            ((begun, established), Some(true)),
            ((begun, begun), Some(true)),
        ] {
            record(&packet.flow, backend, states, &context);
            let mapping = context.shared.clients.find(&key);
            assert_eq!(mapping.map(|mapping| mapping.proven), recorded, "{states:?}");
        }
    }

    #[test]
    fn flows_to_another_backend_do_not_keep_a_client_where_it_is() {
        let mut bed = bed();
        let packet = bed.request(1, "S");
        let backend = |index| bed.table.backend(BackendIndex(index)).unwrap();
        let key = key_of(&packet.flow.key(), bed.table.vip(VipId(0)).unwrap());
        assign(&key, backend(0).id, &bed.context(0, 0));
        let (begun, last_used) = ((State::default(), State::default()), |bed: &Bed| {
            bed.shared.clients.find(&key).unwrap().last_used
        });
        record(&packet.flow, backend(1), begun, &bed.context(0, 50));
        assert_eq!(last_used(&bed), Ticks(0));
        record(&packet.flow, backend(0), begun, &bed.context(0, 50));
        assert_eq!(last_used(&bed), Ticks(50));
    }

    #[test]
    fn a_packet_is_due_once_in_a_period() {
        let mut bed = bed();
        let mut conntrack = bed.conntrack(0);
        let packet = bed.request(1, "S");
        let context = bed.context(0, 100);
        let backend = context.table.backend(BackendIndex(0)).unwrap();
        conntrack.pin(&packet, backend, crate::flow::entry::Rule::Scheduler, &context).unwrap();
        let flow_state = bed.track(0, &packet).unwrap();
        for (now, due) in [(100, false), (127, false), (128, true), (255, true)] {
            assert_eq!(is_due(&flow_state, &bed.context(0, now)), due, "{now}");
        }
    }
}
