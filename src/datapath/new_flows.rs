//! Budgets of a worker's new flows: one token bucket, and one for each network of clients.
//!
//! Reads: the budgets in the forwarding table. Writes: its own buckets. Cost: one test for each new
//! flow without a budget, and a keyed hash with one.

use std::hash::{BuildHasher, RandomState};

use super::context::Context;
use super::token_bucket::TokenBucket;
use crate::forwarding::new_flows::PrefixBudget;
use crate::net::Address;
use crate::units::Ticks;

/// Number of buckets of networks. Networks that share a bucket share its tokens; the hash is keyed,
/// so no sender can find out which networks share one.
const NETWORKS: usize = 4096;

/// The budgets of one worker. A burst may be as long as a second's flows.
#[derive(Debug)]
pub struct NewFlowLimiter {
    all: TokenBucket,
    networks: Box<[TokenBucket]>,
    hasher: RandomState,
}

impl Default for NewFlowLimiter {
    fn default() -> Self {
        Self {
            all: TokenBucket::default(),
            networks: vec![TokenBucket::default(); NETWORKS].into(),
            hasher: RandomState::new(),
        }
    }
}

impl NewFlowLimiter {
    /// Takes one token from each bucket, if a flow of `client` may begin now.
    #[inline]
    pub fn take(&mut self, client: Address, context: &Context<'_>) -> bool {
        let budgets = &context.table.local().new_flows;
        !budgets.is_bounded()
            || self.take_bounded(client, budgets.per_second, budgets.per_prefix, context.now)
    }

    #[cold]
    fn take_bounded(
        &mut self,
        client: Address,
        per_second: Option<u32>,
        per_prefix: Option<PrefixBudget>,
        now: Ticks,
    ) -> bool {
        let place = per_prefix.map(|budget| self.place(client, budget));
        let mut own = place.and_then(|place| self.networks.get_mut(place));
        if let (Some(bucket), Some(PrefixBudget { per_second, .. })) = (&mut own, per_prefix)
            && !bucket.refresh(per_second, per_second, now)
        {
            return false;
        }
        if let Some(per_second) = per_second {
            if !self.all.refresh(per_second, per_second, now) {
                return false;
            }
            self.all.take();
        }
        if let Some(bucket) = own {
            bucket.take();
        }
        true
    }

    /// Returns the bucket of a client's network.
    fn place(&self, client: Address, budget: PrefixBudget) -> usize {
        let network = match client.is_v4() {
            true => (true, client.low >> 32_u8.saturating_sub(budget.v4)),
            false => (false, client.high >> 64_u8.saturating_sub(budget.v6)),
        };
        let place = self.hasher.hash_one(network) % NETWORKS as u64;
        usize::try_from(place).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: PrefixBudget = PrefixBudget { v4: 24, v6: 48, per_second: 20 };

    fn client(network: u8, host: u8) -> Address {
        Address::from_v4([198, 18, network, host])
    }

    fn taken(limiter: &mut NewFlowLimiter, clients: &[Address], all: Option<u32>, now: u32) -> u32 {
        let take = |&client| limiter.take_bounded(client, all, Some(BUDGET), Ticks(now));
        clients.iter().map(take).map(u32::from).sum()
    }

    #[test]
    fn a_network_has_its_budget_whatever_its_hosts_do() {
        let mut limiter = NewFlowLimiter::default();
        let flood: Vec<Address> = (0..=255).map(|host| client(1, host)).collect();
        assert_eq!(taken(&mut limiter, &flood, None, 0), 20, "a second's flows at once");
        assert_eq!(taken(&mut limiter, &flood, None, 50), 10, "and half of them in half a second");
        // Nearly all others have buckets of their own.
        let others: Vec<Address> = (2..=101).map(|network| client(network, 1)).collect();
        assert!(taken(&mut limiter, &others, None, 50) >= 90);
    }

    #[test]
    fn all_networks_together_have_the_total() {
        let mut limiter = NewFlowLimiter::default();
        let all: Vec<Address> = (0..=255).map(|network| client(network, 1)).collect();
        assert_eq!(taken(&mut limiter, &all, Some(100), 0), 100);
        assert_eq!(taken(&mut limiter, &all, Some(100), 10), 10);
    }

    #[test]
    fn prefixes_of_both_families() {
        let limiter = NewFlowLimiter::default();
        let v6 = |bytes: [u8; 8]| {
            let mut address = [0; 16];
            address[..8].copy_from_slice(&bytes);
            limiter.place(Address::from_v6(address), BUDGET)
        };
        let one = [0x20, 1, 0x0d, 0xb8, 0, 1, 0, 0];
        assert_eq!(v6(one), v6([0x20, 1, 0x0d, 0xb8, 0, 1, 0xff, 0xff]));
        assert_ne!(v6(one), v6([0x20, 1, 0x0d, 0xb8, 0, 2, 0, 0]));
        let v4 = |client| limiter.place(client, BUDGET);
        assert_eq!(v4(client(1, 1)), v4(client(1, 255)));
        assert_ne!(v4(client(1, 1)), v4(client(2, 1)));
    }
}
