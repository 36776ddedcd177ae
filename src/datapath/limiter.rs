//! Rate limit of a worker's ICMP errors: one token bucket, and smaller ones per source network.
//!
//! RFC 1812 4.3.2.8 and RFC 4443 2.4 (f) require a rate limit; a token bucket admits the burst that
//! a path change causes. The smaller buckets keep a flood from one network from using up the tokens
//! of others. Writes: its own buckets. Cost: one keyed hash per error.

use std::hash::{BuildHasher, RandomState};

use super::token_bucket::TokenBucket;
use crate::forwarding::local::IcmpRate;
use crate::net::Address;
use crate::units::Ticks;

/// Number of per-network buckets. Networks that share a bucket share its tokens; the hash is keyed,
/// so no sender can find out which networks share one.
const NETWORKS: usize = 256;
/// Divisor: one network gets 1/8 of the rate and of the burst.
const PART: u32 = 8;
/// The limiter of one worker.
#[derive(Debug)]
pub struct Limiter {
    all: TokenBucket,
    networks: Box<[TokenBucket; NETWORKS]>,
    hasher: RandomState,
}

impl Default for Limiter {
    fn default() -> Self {
        Self {
            all: TokenBucket::default(),
            networks: Box::new([TokenBucket::default(); NETWORKS]),
            hasher: RandomState::new(),
        }
    }
}

impl Limiter {
    /// Takes one token from both buckets, if an error to `source` may be sent now.
    pub fn take(&mut self, source: Address, rate: IcmpRate, now: Ticks) -> bool {
        let part = |whole: u32| (whole / PART).max(1.min(whole));
        let (own_rate, own_burst) = (part(rate.per_second), part(rate.burst));
        let hash = self.hasher.hash_one(network(source)) % NETWORKS as u64;
        let place = usize::try_from(hash).unwrap_or_default();
        let Some(own) = self.networks.get_mut(place) else { return false };
        if rate.per_second == 0
            || !own.refresh(own_rate, own_burst, now)
            || !self.all.refresh(rate.per_second, rate.burst, now)
        {
            return false;
        }
        own.take();
        self.all.take();
        true
    }
}

/// Returns the first 24 bits of an IPv4 address or the first 56 of an IPv6 address: the usual size
/// of one site.
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
        // At least half of the other networks hash to other buckets than the flood's.
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
