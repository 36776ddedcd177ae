//! Shares of the VIPs in what workers have a fixed number of: entries of flow tables, SNAT ports.
//!
//! Each VIP has a guaranteed share. Beyond it, it may use what is free besides the shares of the
//! others. So one comparison with two counts ensures that every VIP finds its share free: a VIP over
//! its share stops in time, and the others together take no more than their shares after that.

use super::spec::VipSpec;
use crate::net::Forward;

/// Parts of a whole share.
pub const WHOLE: u32 = 1_000_000;
/// Share of all VIPs together that have none of their own: a quarter leaves three of four entries to
/// any single VIP.
const COMMON: u32 = WHOLE / 4;

/// What shares that are set leave to the VIPs that have none, even if more than the whole is
/// guaranteed then.
const LEAST: u32 = WHOLE / 20;

/// Share of a VIP, in parts per million.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Guaranteed for the VIP.
    own: u32,
    /// Guaranteed for other VIPs.
    others: u32,
}

impl Share {
    /// Returns whether more of `capacity` are `free` than are guaranteed for the other VIPs.
    #[inline]
    pub fn is_plenty(self, capacity: u64, free: u64) -> bool {
        free > part(capacity, self.others)
    }

    /// Returns whether the VIP, which has `used` of `capacity`, has less than its share.
    #[inline]
    pub fn is_below(self, capacity: u64, used: u64) -> bool {
        used < part(capacity, self.own)
    }

    /// Returns whether the VIP, which has `used` of `capacity`, has more than its share.
    #[inline]
    pub fn exceeds(self, capacity: u64, used: u64) -> bool {
        used > part(capacity, self.own)
    }

    /// Returns the part of `capacity` that is guaranteed for all VIPs together.
    pub fn guaranteed(self, capacity: u64) -> u64 {
        part(capacity, self.own + self.others)
    }
}

fn part(capacity: u64, share: u32) -> u64 {
    capacity * u64::from(share) / u64::from(WHOLE)
}

/// Shares of a VIP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shares {
    /// In a worker's flow table, of the VIP's address family.
    pub flows: Share,
    /// In a worker's SNAT ports.
    pub snat_ports: Share,
}

/// Returns the shares of each VIP, in the order of `specs`.
pub fn shares(specs: &[VipSpec]) -> Vec<Shares> {
    let is_v4 = |spec: &VipSpec| spec.address.address().is_v4();
    let groups = [true, false].map(|v4| Group::of(specs.iter().filter(|spec| is_v4(spec) == v4)));
    let [v4, v6] = &groups;
    let full_nat = Group::of(specs.iter().filter(|spec| spec.forward == Forward::FullNat));
    let of = |spec: &VipSpec| Shares {
        flows: if is_v4(spec) { v4.share(spec) } else { v6.share(spec) },
        snat_ports: full_nat.share(spec),
    };
    specs.iter().map(of).collect()
}

/// VIPs that compete for the same things.
#[derive(Default)]
struct Group {
    /// Sum of the shares that the configuration sets.
    set: u32,
    /// Number of VIPs without such a share.
    unset: u32,
}

impl Group {
    fn of<'s>(specs: impl Iterator<Item = &'s VipSpec>) -> Self {
        specs.filter(|spec| has_flows(spec)).fold(Self::default(), |group, spec| {
            match spec.policy.table_share {
                Some(share) => Self { set: group.set.saturating_add(share), ..group },
                None => Self { unset: group.unset + 1, ..group },
            }
        })
    }

    fn share(&self, spec: &VipSpec) -> Share {
        let rest = WHOLE.saturating_sub(self.set);
        let common = if self.unset == 0 { 0 } else { rest.clamp(LEAST, COMMON) };
        let set = self.set.min(WHOLE - common);
        let own = match spec.policy.table_share {
            _ if !has_flows(spec) => 0,
            Some(share) => share.min(WHOLE),
            None => common / self.unset.max(1),
        };
        Share { own, others: (set + common).saturating_sub(own) }
    }
}

/// Whether a VIP gets new flows in the table: it was not removed by a reload, and has pins.
fn has_flows(spec: &VipSpec) -> bool {
    !spec.ports.ranges().is_empty() && spec.policy.pin
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use super::*;
    use crate::forwarding::{Ports, Splits, VipPolicy};
    use crate::net::{Network, Protocol, VipId};

    fn vip(address: &str, forward: Forward, table_share: Option<u32>) -> VipSpec {
        let address: std::net::IpAddr = address.parse().unwrap();
        VipSpec {
            id: VipId(0),
            address: Network::from(address),
            ports: Ports::of(&[80]),
            protocol: Protocol::Tcp,
            forward,
            policy: VipPolicy { table_share, ..VipPolicy::default() },
            splits: Splits::default(),
            spliced: false,
            sampled: false,
            fails_open: false,
            backends: Vec::new(),
            old: Vec::new(),
        }
    }

    #[test]
    fn vips_without_a_share_divide_a_quarter_of_their_familys_table() {
        let mut removed = vip("192.0.2.3", Forward::Dsr, None);
        removed.ports = Ports::of(&[]);
        let mut unpinned = vip("192.0.2.4", Forward::Dsr, None);
        unpinned.policy.pin = false;
        let specs = [
            vip("192.0.2.1", Forward::Dsr, None),
            vip("192.0.2.2", Forward::FullNat, None),
            removed,
            unpinned,
            vip("2001:db8::1", Forward::FullNat, None),
        ];
        let quarter = Share { own: 125_000, others: 125_000 };
        let none = Share { own: 0, others: 250_000 };
        let flows: Vec<Share> = shares(&specs).iter().map(|shares| shares.flows).collect();
        let alone = Share { own: 250_000, others: 0 };
        assert_eq!(flows, [quarter, quarter, none, none, alone]);
        let ports: Vec<Share> = shares(&specs).iter().map(|shares| shares.snat_ports).collect();
        assert_eq!(ports[1], quarter);
        assert_eq!(ports[4], quarter);
    }

    #[test]
    fn shares_that_are_set_come_before_the_common_one() {
        let [a, b] = [Some(800_000), None];
        let specs = [a, b, b].map(|share| vip("192.0.2.1", Forward::Dsr, share));
        let own: Vec<u32> = shares(&specs).iter().map(|shares| shares.flows.own).collect();
        assert_eq!(own, [800_000, 100_000, 100_000]);
        assert!(shares(&specs).iter().all(|shares| shares.flows.guaranteed(1000) == 1000));
    }

    #[test]
    fn shares_of_the_whole_leave_something_to_the_others() {
        let specs =
            [Some(500_000), Some(500_000), None].map(|share| vip("192.0.2.1", Forward::Dsr, share));
        let own: Vec<u32> = shares(&specs).iter().map(|shares| shares.flows.own).collect();
        assert_eq!(own, [500_000, 500_000, 50_000]);
        let last = shares(&specs)[2].flows;
        assert!(last.is_plenty(1000, 1000) && last.is_below(1000, 0));
    }

    /// Whatever the order of new and ended flows, a VIP below its share finds room, and one alone
    /// has all that is not guaranteed for others.
    #[test]
    fn every_vip_finds_its_share_free() {
        const CAPACITY: u64 = 1000;
        let specs = [None, None, Some(300_000)].map(|share| vip("192.0.2.1", Forward::Dsr, share));
        let shares = shares(&specs);
        let has_room = |vip: usize, used: u64, free| {
            let share = shares[vip].flows;
            share.is_plenty(CAPACITY, free) || share.is_below(CAPACITY, used)
        };
        let mut used = [0_u64; 3];
        let mut random = 1_u64;
        for step in 0..200_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // In long phases one of them is flooded.
            let flooded = step / 10_000 % 3;
            let draw = usize::try_from(random >> 60).unwrap();
            let vip = if draw < 12 { flooded } else { draw % 3 };
            let free = CAPACITY - used.iter().sum::<u64>();
            if random >> 40 & 7 == 0 {
                used[vip] = used[vip].saturating_sub(1);
            } else if has_room(vip, used[vip], free) {
                assert!(free > 0, "{step}: no room in the share of {vip}: {used:?}");
                used[vip] += 1;
            }
        }
        let alone = (0..CAPACITY).find(|&used| !has_room(0, used, CAPACITY - used));
        // A half of the common quarter, and the share that is set, are kept for others.
        assert_eq!(alone, Some(CAPACITY - 125 - 300));
    }
}
