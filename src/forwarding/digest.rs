//! Digests of what the choice of a backend depends on: boxes with the same ones choose alike.
//!
//! They are over text, so that they do not depend on versions and machines, and over sets, so that
//! they do not depend on the order of VIPs and backends. Not security: a difference is to be seen.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher13;

use super::affinity::Secret;
use super::spec::{BackendSpec, Ports, VipSpec};

/// Digests of the VIPs of a box, under the secret of its hashes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digests {
    /// Of the configuration: VIPs, schedulers, affinities, backends, weights.
    pub configured: u64,
    /// Of all that, and of what changes by itself: the backends that take new flows, their shares,
    /// and the split sources.
    pub in_force: u64,
}

impl Digests {
    /// Computes the digests. Cost: a hash of some 100 bytes for each VIP and backend.
    pub fn of(secret: &Secret, vips: &[VipSpec]) -> Self {
        let is_there = |vip: &&VipSpec| vip.ports != Ports::of(&[]);
        vips.iter()
            .filter(is_there)
            .map(|vip| of_vip(secret, vip))
            .fold(Self::default(), Self::with)
    }

    const fn with(self, other: Self) -> Self {
        Self {
            configured: self.configured.wrapping_add(other.configured),
            in_force: self.in_force.wrapping_add(other.in_force),
        }
    }
}

fn of_vip(secret: &Secret, vip: &VipSpec) -> Digests {
    let there = vip.backends.iter().filter(|backend| !backend.removed);
    let backends = there.map(|backend| of_backend(secret, backend));
    let Digests { configured, in_force } = backends.fold(Digests::default(), Digests::with);
    let VipSpec { address, ports, protocol, policy, splits, .. } = vip;
    let (protocol, affinity) = (protocol.as_str(), policy.affinity);
    let scheduler = policy.scheduler;
    let mut ports = ports.ranges().to_vec();
    ports.sort_unstable_by_key(|range| range.first);
    let ports = Ports::List(ports);
    let fixed = format!("{address} {protocol} {ports} {scheduler:?} {affinity} {configured:x}");
    let present = format!("{fixed} {splits:?} {in_force:x}");
    Digests { configured: hash(secret, &fixed), in_force: hash(secret, &present) }
}

fn of_backend(secret: &Secret, backend: &BackendSpec) -> Digests {
    let BackendSpec { address, port, weight, share, .. } = backend;
    let fixed = format!("{address} {port:?} {weight}");
    let present = format!("{fixed} {} {share}", backend.takes_new());
    Digests { configured: hash(secret, &fixed), in_force: hash(secret, &present) }
}

fn hash(secret: &Secret, text: &str) -> u64 {
    let mut hasher = SipHasher13::new_with_key(secret);
    hasher.write(text.as_bytes());
    hasher.finish()
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use super::super::scheduler::SchedulerKind;
    use super::super::table::testing::{backend, spec};
    use super::*;
    use crate::forwarding::Service;

    fn pool() -> Vec<VipSpec> {
        let mut other = VipSpec { backends: vec![backend(7)], ..spec(1) };
        other.ports = Ports::of(&[443]);
        vec![VipSpec { backends: vec![backend(0), backend(1), backend(2)], ..spec(0) }, other]
    }

    fn digests(change: impl FnOnce(&mut Vec<VipSpec>)) -> Digests {
        let mut vips = pool();
        change(&mut vips);
        Digests::of(&[3; 16], &vips)
    }

    #[test]
    fn digests_differ_by_what_the_choice_depends_on_and_by_nothing_else() {
        let same = digests(|_| {});
        let equal = |change: fn(&mut Vec<VipSpec>)| digests(change) == same;
        assert!(equal(|vips| vips.reverse()));
        assert!(equal(|vips| vips[0].backends.reverse()));
        assert!(equal(|vips| vips[0].backends[0].name = "other".to_owned()));
        assert!(equal(|vips| vips[0].backends[0].can_be_asked = false));
        let gone = BackendSpec { removed: true, ..backend(9) };
        let mut with_gone = pool();
        with_gone[0].backends.push(gone);
        assert_eq!(Digests::of(&[3; 16], &with_gone), same);
        let by_itself: [fn(&mut Vec<VipSpec>); 4] = [
            |vips| vips[0].backends[0].up = false,
            |vips| vips[0].backends[0].service = Service::Draining,
            |vips| vips[0].backends[0].share = 3,
            |vips| vips[0].backends[0].next_hop = None,
        ];
        for change in by_itself {
            let other = digests(change);
            assert_eq!(other.configured, same.configured);
            assert_ne!(other.in_force, same.in_force);
        }
        let configured: [fn(&mut Vec<VipSpec>); 6] = [
            |vips| vips[0].backends[0].weight = 2,
            |vips| vips[0].backends[0].address = [10, 9, 9, 9].into(),
            |vips| vips[0].policy.scheduler = SchedulerKind::Rendezvous,
            |vips| vips[0].ports = Ports::of(&[81]),
            |vips| drop(vips.pop()),
            |vips| drop(vips[0].backends.pop()),
        ];
        for change in configured {
            let other = digests(change);
            assert_ne!(other.configured, same.configured);
            assert_ne!(other.in_force, same.in_force);
        }
        assert_ne!(Digests::of(&[4; 16], &pool()).configured, same.configured, "another secret");
    }
}
