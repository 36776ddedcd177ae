//! Arrivals and ends of flows, the same for every scheduler.
//!
//! The number of live flows is constant: as one arrives, the flow with the earliest end leaves.
//! Durations are heavy-tailed: Pareto with the exponent 4/3 (finite mean, infinite variance;
//! Crovella and Bestavros 1997 found 1.0 to 1.5). The first flows have the *remaining* lifetimes of
//! flows that are observed at a random time. The powers of these laws reduce to square roots, which
//! IEEE 754 rounds exactly, so that a seed gives the same trace on every machine.

use crate::generator::draw::Random;

/// End mark of a list of slots.
const END: u32 = u32::MAX;
/// Divisor of `flows` for the number of flows after the change.
const AFTER: u32 = 4;
/// Minimum number of flows after the change, so that shares of them are meaningful.
const AFTER_MIN: u32 = 10_000;

/// Flows in the order of their arrival, each with its affinity hash.
#[derive(Debug, PartialEq, Eq)]
pub struct Trace {
    /// First flow of every slot.
    first: Vec<u64>,
    /// `flows` further arrivals, before the change.
    churn: Arrivals,
    /// Flow of every slot when the change takes effect.
    live: Vec<u64>,
    /// Arrivals after the change.
    after: Arrivals,
}

/// Flows that take the slots of flows that end.
#[derive(Debug, PartialEq, Eq)]
struct Arrivals {
    slots: Vec<u32>,
    hashes: Vec<u64>,
}

impl Arrivals {
    fn with_room(count: usize) -> Self {
        Self { slots: Vec::with_capacity(count), hashes: Vec::with_capacity(count) }
    }

    fn iter(&self) -> impl ExactSizeIterator<Item = (u32, u64)> + '_ {
        self.slots.iter().copied().zip(self.hashes.iter().copied())
    }
}

impl Trace {
    /// Generates a trace with `flows` live flows; `hash` opens a flow.
    pub fn generate(flows: u32, seed: u64, mut hash: impl FnMut() -> u64) -> Self {
        let mut ends = Ends::new(flows, seed);
        let first: Vec<u64> = (0..flows).map(|_| hash()).collect();
        (0..flows).for_each(|slot| ends.put(slot, ends_after_meeting));
        let mut arrive = |count: u32| {
            let mut arrivals = Arrivals::with_room(count as usize);
            for turn in 0..count {
                // Where no end is due within the simulated time, all slots are equal.
                let slot = ends.next().unwrap_or(turn % flows.max(1));
                ends.put(slot, life);
                arrivals.slots.push(slot);
                arrivals.hashes.push(hash());
            }
            arrivals
        };
        let churn = arrive(flows);
        let after = arrive((flows / AFTER).max(AFTER_MIN));
        let mut live = first.clone();
        for (slot, hash) in churn.iter() {
            live.get_mut(slot as usize).into_iter().for_each(|live| *live = hash);
        }
        Self { first, churn, live, after }
    }

    /// Yields all flows before the change, with their slots.
    pub fn before(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        (0..).zip(self.first.iter().copied()).chain(self.churn.iter())
    }

    /// Returns the hashes of the flows that are live when the change takes effect, by slot.
    pub fn live(&self) -> &[u64] {
        &self.live
    }

    /// Yields the flows after the change, with their slots.
    pub fn after(&self) -> impl ExactSizeIterator<Item = (u32, u64)> + '_ {
        self.after.iter()
    }
}

/// Slots by the end of their flows; a tick is the mean time between two arrivals.
#[derive(Debug)]
struct Ends {
    /// First slot due at each tick.
    due: Vec<u32>,
    /// Next slot of the same tick, for each slot.
    next: Vec<u32>,
    now: usize,
    flows: f64,
    random: Random,
}

impl Ends {
    fn new(flows: u32, seed: u64) -> Self {
        // Later ends are after the end of the simulation.
        let ticks = 2 * flows as usize + AFTER_MIN as usize;
        Self {
            due: vec![END; ticks],
            next: vec![END; flows as usize],
            now: 0,
            flows: f64::from(flows),
            random: Random::new(seed ^ 0x656e_6473),
        }
    }

    /// Sets the end of the flow in a slot; `life` draws a lifetime, in mean lifetimes.
    fn put(&mut self, slot: u32, life: impl FnOnce(&mut Random) -> f64) {
        // `flows` ticks are one mean lifetime, since one flow arrives per tick.
        let ticks = life(&mut self.random) * self.flows;
        #[expect(clippy::cast_possible_truncation, reason = "a float cast saturates")]
        #[expect(clippy::cast_sign_loss, reason = "a life is at least 0")]
        let end = self.now.saturating_add(ticks as usize);
        let places = (self.due.get_mut(end), self.next.get_mut(slot as usize));
        if let (Some(due), Some(next)) = places {
            *next = std::mem::replace(due, slot);
        }
    }

    /// Removes the slot that is due first.
    fn next(&mut self) -> Option<u32> {
        loop {
            let due = self.due.get_mut(self.now)?;
            if *due != END {
                let slot = *due;
                *due = self.next.get(slot as usize).copied().unwrap_or(END);
                return Some(slot);
            }
            self.now += 1;
        }
    }
}

/// Draws a number above 0 and at most 1.
fn unit(random: &mut Random) -> f64 {
    ((random.bits() >> 11) + 1) as f64 / (1_u64 << 53) as f64
}

/// Draws the lifetime of a new flow, in mean lifetimes: Pareto, at least a quarter.
fn life(random: &mut Random) -> f64 {
    let root = unit(random).sqrt();
    0.25 / (root * root.sqrt())
}

/// Draws the remaining lifetime of a flow that is observed at a random time (the equilibrium
/// distribution).
fn ends_after_meeting(random: &mut Random) -> f64 {
    let u = unit(random);
    if random.bits().is_multiple_of(4) { u * 0.25 } else { 0.25 / (u * u * u) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(flows: u32, seed: u64) -> Trace {
        let mut hash = 0;
        Trace::generate(flows, seed, || {
            hash += 1;
            hash
        })
    }

    #[test]
    fn a_seed_gives_one_trace() {
        assert_eq!(trace(5000, 1), trace(5000, 1));
        assert_ne!(trace(5000, 1), trace(5000, 2));
        // Fixed: the same on every machine, and in every version.
        let sum = trace(5000, 1).before().fold(0_u64, |sum, (slot, hash)| {
            sum.wrapping_mul(31).wrapping_add(u64::from(slot) ^ hash)
        });
        assert_eq!(sum, 9_326_414_648_981_608_281);
    }

    #[test]
    fn live_flows_are_the_last_of_their_slots() {
        let trace = trace(1000, 7);
        let mut live = vec![0; 1000];
        for (slot, hash) in trace.before() {
            live.get_mut(slot as usize).into_iter().for_each(|live| *live = hash);
        }
        assert_eq!(live, trace.live());
        assert_eq!(trace.before().count(), 2000);
        assert_eq!(trace.after().len(), 10_000);
    }

    #[test]
    fn few_flows_last_long() {
        let trace = trace(100_000, 3);
        let old = trace.live().iter().filter(|&&hash| hash <= 100_000).count();
        // P(remaining life > 1 mean) = 3/4 * (1 / (1/4))^(-1/3) = 0.472 in equilibrium.
        assert!((46_000..49_000).contains(&old), "{old}");
    }

    #[test]
    fn one_flow_is_enough() {
        let trace = trace(1, 9);
        assert!(trace.before().chain(trace.after()).all(|(slot, _)| slot == 0));
    }

    #[test]
    fn lives_have_the_mean_1_in_their_bulk() {
        let mut random = Random::new(1);
        let short = (0..100_000).filter(|_| life(&mut random) < 0.25 * 8.0).count();
        // P(life < 8 * least) = 1 - 8^(-4/3) = 15/16.
        assert!((93_400..94_100).contains(&short), "{short}");
    }
}
