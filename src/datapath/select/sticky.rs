//! Part of the stage select: the backend that a client already has.
//!
//! Reads and writes: the clients table. Cost: one look-up for a new flow of a VIP that records its
//! clients.

use crate::datapath::clients::{assign, key_of};
use crate::datapath::context::Context;
use crate::flow::clients::{Key, Mapping};
use crate::flow::entry::Rule;
use crate::forwarding::explain::Trace;
use crate::forwarding::table::{Backend, Vip, name};
use crate::forwarding::{Miss, Remember};
use crate::net::FlowKey;

/// Record of the client of a new flow, at a VIP that records its clients.
#[derive(Clone, Copy)]
pub struct ClientRecord<'t> {
    remember: Remember,
    key: Key,
    mapping: Option<Mapping>,
    /// The client's backend, unless its generation has ended.
    backend: Option<&'t Backend>,
    /// The client was silent for longer than the time-out.
    expired: bool,
}

impl<'t> ClientRecord<'t> {
    /// Looks up the client of a flow; `None` at VIPs that keep no client records.
    pub fn of(key: &FlowKey, vip: &Vip, context: &Context<'t>) -> Option<Self> {
        let remember = vip.policy.remember?;
        let key = key_of(key, vip);
        let mapping = context.shared.clients.find(&key);
        let expired = mapping.is_some_and(|m| remember.is_over(context.now.since(m.last_used)));
        let backend = mapping.and_then(|mapping| context.table.pinned(mapping.backend));
        Some(Self { remember, key, mapping, backend, expired })
    }

    /// Returns the backend that the client sticks to. `midflow`: the flow has lost its pin.
    pub fn stays_at(&self, miss: Miss) -> Option<&'t Backend> {
        let sticky = self.remember.sticky.filter(|_| !self.expired)?;
        self.backend.filter(|backend| sticky.stays(backend, miss))
    }

    /// Whether the client comes back after its time-out.
    pub const fn comes_back(&self) -> bool {
        self.expired
    }

    /// Traces the client's record and its effect on the choice.
    pub fn record_choice(
        &self,
        chosen: Option<(&Backend, Rule)>,
        context: &Context<'_>,
        trace: &Trace,
    ) {
        let Some(mapping) = self.mapping else {
            return trace.record(
                "clients",
                "not known",
                "the client was not here, or is forgotten",
            );
        };
        let name = |backend| name(backend, context.table);
        let seconds = |since| context.now.since(since).as_ms() / 1000;
        let has = self.backend.map_or("a backend that has left", name);
        let (since, idle) = (seconds(mapping.created), seconds(mapping.last_used));
        let known = format!("it has {has} for {since} s, its last packet was {idle} s ago");
        match (chosen, self.expired) {
            (Some((backend, Rule::Freest)), _) => {
                let why = format!("{known}: it comes back, and goes to the freest backend");
                trace.record("clients", name(backend), why);
            }
            (Some((backend, _)), _) => trace.record("clients", name(backend), known),
            (None, true) => trace.record("clients", "comes back", format!("{known}: too long")),
            (None, false) => {
                let why = match self.backend {
                    None => "gone",
                    Some(backend) if backend.takes_new => {
                        "it cannot take this flow, which goes elsewhere; the client keeps the backend"
                    }
                    Some(backend) => backend.out_of_service(),
                };
                let sticks = self.remember.sticky.is_some();
                let why = if sticks { why } else { "clients do not stick at this VIP" };
                trace.record("clients", "is free", format!("{known}: {why}"));
            }
        }
    }

    /// Records that the flow went to `backend`.
    pub fn record(&self, backend: &Backend, context: &Context<'_>) {
        let (clients, now) = (&context.shared.clients, context.now);
        let same = self.mapping.is_some_and(|mapping| mapping.backend == backend.id);
        let goes_on = !self.expired && (same || self.remember.sticky.is_none());
        if self.mapping.is_some() && goes_on {
            clients.touch(&self.key, self.remember.kept_by(backend.id), now, false);
        } else if same || self.stays_at(Miss::Open).is_none() {
            assign(&self.key, backend.id, context);
        }
        // Otherwise one flow could not follow (its ports are taken there): the client keeps its
        // backend.
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;
    use crate::datapath::testing::*;
    use crate::forwarding::sticky::{Hold, Reentry, Sticky};
    use crate::forwarding::{Service, VipSpec};
    use crate::net::{BackendIndex, Forward, VipId};
    use crate::units::Ticks;

    /// Clients stick for 10 s; a draining backend keeps them or not.
    fn sticky(on_drain: Hold) -> VipSpec {
        let sticky = Some(Sticky { on_drain, on_down: Hold::Release });
        let remember = Remember { timeout: Ticks(1000), sticky, on_reentry: Reentry::Hash };
        with(vip(Forward::Nat, 2), |policy| policy.remember = Some(remember))
    }

    fn known<'t>(bed: &'t mut Bed, now: u32) -> ClientRecord<'t> {
        let key = bed.request(1, "S").flow.key();
        let context = bed.context(0, now);
        ClientRecord::of(&key, context.table.vip(VipId(0)).unwrap(), &context).unwrap()
    }

    /// Sends the client's flow to a backend.
    fn record(bed: &mut Bed, backend: u16, now: u32) {
        let known = known(bed, now);
        let (key, remember) = (known.key, known.remember);
        let (mapping, expired) = (known.mapping, known.expired);
        let context = bed.context(0, now);
        let of = |index| context.table.backend(BackendIndex(index)).unwrap();
        let had = mapping.and_then(|mapping| context.table.pinned(mapping.backend));
        let known = ClientRecord { remember, key, mapping, backend: had, expired };
        known.record(of(backend), &context);
    }

    /// The backend that the client sticks to.
    fn stays(bed: &mut Bed, miss: Miss, now: u32) -> Option<BackendIndex> {
        known(bed, now).stays_at(miss).map(|backend| backend.id.index)
    }

    #[test]
    fn a_client_stays_at_its_backend_until_it_is_silent_for_too_long() {
        let mut bed = Bed::new(1, &[sticky(Hold::Release)]);
        assert_eq!(stays(&mut bed, Miss::Open, 0), None);
        record(&mut bed, 1, 0);
        assert_eq!(stays(&mut bed, Miss::Open, 1000), Some(BackendIndex(1)));
        assert!(!known(&mut bed, 1000).comes_back());
        // The recorded time may be 1.28 s old.
        assert_eq!(stays(&mut bed, Miss::Open, 1129), None);
        assert!(known(&mut bed, 1129).comes_back());
        record(&mut bed, 0, 1129);
        assert_eq!(stays(&mut bed, Miss::Open, 1130), Some(BackendIndex(0)));
    }

    #[test]
    fn one_flow_elsewhere_does_not_move_a_client() {
        let mut bed = Bed::new(1, &[sticky(Hold::Release)]);
        record(&mut bed, 1, 0);
        record(&mut bed, 0, 10);
        assert_eq!(stays(&mut bed, Miss::Open, 20), Some(BackendIndex(1)));
    }

    #[test]
    fn a_draining_backend_keeps_its_clients_if_the_vip_says_so() {
        for (on_drain, opens) in [(Hold::Release, None), (Hold::Keep, Some(BackendIndex(1)))] {
            let mut bed = Bed::new(1, &[sticky(on_drain)]);
            record(&mut bed, 1, 0);
            let mut spec = sticky(on_drain);
            spec.backends.iter_mut().for_each(|backend| backend.service = Service::Draining);
            bed.publish(&[spec]);
            assert_eq!(stays(&mut bed, Miss::Open, 10), opens, "{on_drain:?}");
            // A draining backend most probably had the flow whose pin was lost.
            assert_eq!(stays(&mut bed, Miss::NonSyn, 10), Some(BackendIndex(1)), "{on_drain:?}");
        }
    }

    #[test]
    fn vips_that_remember_nothing_know_no_client() {
        let mut bed = Bed::new(1, &[vip(Forward::Nat, 2)]);
        let key = bed.request(1, "S").flow.key();
        let context = bed.context(0, 0);
        let vip = context.table.vip(VipId(0)).unwrap();
        assert!(ClientRecord::of(&key, vip, &context).is_none());
    }
}
