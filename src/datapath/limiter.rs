//! How many ICMP errors a worker sends: a token bucket, and smaller ones by where the packets come from.
//!
//! RFC 1812 4.3.2.8 and RFC 4443 2.4 (f) want a limit on the rate; a token bucket lets the burst through
//! that a path change causes. The smaller buckets keep a flood from one network from taking what
//! the others need. Writes: its own buckets. Cost: one keyed hash per error.

use std::hash::{BuildHasher, RandomState};

use crate::forwarding::local::IcmpRate;
use crate::net::Address;
use crate::units::Ticks;

/// Buckets by network. Networks that share one share its tokens, and nobody outside can know which do.
const NETWORKS: usize = 256;
/// A network may have this part of the rate, and of the burst.
const PART: u32 = 8;
/// Ticks per second: what one error costs, where a tick is worth the rate per second.
const COST: u64 = 100;

/// Tokens, as far as they are used up: a bucket that was never used is full.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    used: u64,
    at: Ticks,
}

impl Bucket {
    /// Gives back what has grown since; returns whether there is a token.
    fn refresh(&mut self, rate: IcmpRate, now: Ticks) -> bool {
        let grown = u64::from(now.since(self.at).0) * u64::from(rate.per_second);
        self.used = self.used.saturating_sub(grown);
        self.at = now;
        self.used + COST <= u64::from(rate.burst) * COST
    }
}

/// The limiter of one worker.
#[derive(Debug)]
pub struct Limiter {
    all: Bucket,
    networks: Box<[Bucket; NETWORKS]>,
    hasher: RandomState,
}

impl Default for Limiter {
    fn default() -> Self {
        Self {
            all: Bucket::default(),
            networks: Box::new([Bucket::default(); NETWORKS]),
            hasher: RandomState::new(),
        }
    }
}

impl Limiter {
    /// Takes one token, if an error to `source` may be sent now.
    pub fn take(&mut self, source: Address, rate: IcmpRate, now: Ticks) -> bool {
        let part = |whole: u32| (whole / PART).max(1.min(whole));
        let share = IcmpRate { per_second: part(rate.per_second), burst: part(rate.burst) };
        let hash = self.hasher.hash_one(network(source)) % NETWORKS as u64;
        let place = usize::try_from(hash).unwrap_or_default();
        let Some(own) = self.networks.get_mut(place) else { return false };
        if rate.per_second == 0 || !own.refresh(share, now) || !self.all.refresh(rate, now) {
            return false;
        }
        own.used += COST;
        self.all.used += COST;
        true
    }
}

/// The first 24 bits of an IPv4 address, the first 56 of an IPv6 one: what one site has as a rule.
fn network(address: Address) -> (bool, u64) {
    if address.is_v4() { (true, address.low >> 8) } else { (false, address.high >> 8) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: IcmpRate = IcmpRate { per_second: 1000, burst: 80 };

    fn client(network: u8, host: u8) -> Address {
        Address::from_v4([198, 18, network, host])
    }

    fn taken(limiter: &mut Limiter, source: Address, rate: IcmpRate, now: u32, tries: u32) -> u32 {
        (0..tries).map(|_| u32::from(limiter.take(source, rate, Ticks(now)))).sum()
    }

    #[test]
    fn one_network_has_a_part_of_the_burst_and_of_the_rate() {
        let mut limiter = Limiter::default();
        // Across the wrap of the clock.
        let start = u32::MAX - 3;
        let mut take = |host, ticks: u32| {
            taken(&mut limiter, client(1, host), RATE, start.wrapping_add(ticks), 1000)
        };
        assert_eq!(take(1, 0), 10, "an eighth of 80");
        assert_eq!(take(2, 0), 0, "its neighbour is of the same network");
        assert_eq!(take(1, 4), 5, "125 a second: 5 in 40 ms");
        assert_eq!(take(1, 5), 1, "1.25 in 10 ms");
        assert_eq!(take(1, 1000), 10, "no more than the burst");
    }

    #[test]
    fn all_networks_together_have_the_whole() {
        let mut limiter = Limiter::default();
        let mut all = |now| {
            (0..=255).map(|at| taken(&mut limiter, client(at, 1), RATE, now, 10)).sum::<u32>()
        };
        assert_eq!(all(7), 80);
        assert_eq!(all(7), 0);
        assert_eq!(all(11), 40, "1000 a second: 40 in 40 ms");
    }

    #[test]
    fn a_flood_leaves_others_their_part() {
        let mut limiter = Limiter::default();
        for now in 0..200 {
            taken(&mut limiter, client(9, 1), RATE, now, 1000);
        }
        // Another bucket than the flood's, whatever the hash: one of many networks has.
        let others = (10..30).map(|at| taken(&mut limiter, client(at, 1), RATE, 200, 1));
        assert!(others.sum::<u32>() >= 10);
    }

    #[test]
    fn the_edges_of_the_rate() {
        let small = IcmpRate { per_second: 1, burst: 1 };
        let mut limiter = Limiter::default();
        let mut take = |rate, now| taken(&mut limiter, client(1, 1), rate, now, 3);
        assert_eq!((take(small, 0), take(small, 99), take(small, 100)), (1, 0, 1));
        let none = IcmpRate { per_second: 0, burst: 0 };
        assert_eq!(take(none, 100_000), 0, "0 sends none");
        let none_at_all = IcmpRate { per_second: 0, burst: 100 };
        assert_eq!(take(none_at_all, 200_000), 0, "not even the burst");
    }

    #[test]
    fn networks_of_both_families() {
        let v6 = |bytes: [u8; 8]| {
            let mut address = [0; 16];
            address[..8].copy_from_slice(&bytes);
            network(Address::from_v6(address))
        };
        let of = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0];
        assert_eq!(v6(of), v6([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0xff]));
        assert_ne!(v6(of), v6([0x20, 1, 0x0d, 0xb8, 0, 0, 1, 0]));
        assert_eq!(network(client(1, 1)), network(client(1, 2)));
        assert_ne!(network(client(1, 1)), network(client(2, 1)));
    }
}
