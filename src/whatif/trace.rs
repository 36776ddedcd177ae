//! Which flow comes when, and which ends: the same for every scheduler.
//!
//! The number of live flows is constant: as one comes, the one whose end is due first goes. How long
//! flows last is heavy-tailed: Pareto with the exponent 4/3 (finite mean, infinite variance; Crovella
//! and Bestavros 1997 found 1.0 to 1.5), and the first flows have the *remaining* lives of flows
//! that one meets at a random time. Powers of 4/3 are square roots, which IEEE 754 rounds exactly, so
//! that a seed gives the same on every machine.

use crate::generator::draw::Random;

/// Of a list of slots: no more.
const END: u32 = u32::MAX;
/// Flows that come after the change, per flow that was live.
const AFTER: u32 = 4;
/// At least so many, so that a share of them says something.
const AFTER_MIN: u32 = 10_000;

/// Flows in the order of their arrival, each with its affinity hash.
#[derive(Debug, PartialEq, Eq)]
pub struct Trace {
    /// The first flow of every slot.
    first: Vec<u64>,
    /// As many again, which come before the change.
    churn: Arrivals,
    /// The flow of every slot when the change comes.
    live: Vec<u64>,
    /// Those that come after the change.
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
    /// `flows` at a time; `hash` opens a flow.
    pub fn generate(flows: u32, seed: u64, mut hash: impl FnMut() -> u64) -> Self {
        let mut ends = Ends::new(flows, seed);
        let first: Vec<u64> = (0..flows).map(|_| hash()).collect();
        (0..flows).for_each(|slot| ends.put(slot, ends_after_meeting));
        let mut arrive = |count: u32| {
            let mut arrivals = Arrivals::with_room(count as usize);
            for turn in 0..count {
                // Where nothing is due within the time that is simulated, all are equal.
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

    /// All flows that come before the change, with their slots.
    pub fn before(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        (0..).zip(self.first.iter().copied()).chain(self.churn.iter())
    }

    /// The hashes of the flows that are live when the change comes, by slot.
    pub fn live(&self) -> &[u64] {
        &self.live
    }

    /// The flows that come after the change, with their slots.
    pub fn after(&self) -> impl ExactSizeIterator<Item = (u32, u64)> + '_ {
        self.after.iter()
    }
}

/// The slots by when their flows end; a tick is the mean time between two arrivals.
#[derive(Debug)]
struct Ends {
    /// Of each tick, the first slot that is due then.
    due: Vec<u32>,
    /// Of each slot, the next one of the same tick.
    next: Vec<u32>,
    now: usize,
    flows: f64,
    random: Random,
}

impl Ends {
    fn new(flows: u32, seed: u64) -> Self {
        // What ends later ends after the simulation does.
        let ticks = 2 * flows as usize + AFTER_MIN as usize;
        Self {
            due: vec![END; ticks],
            next: vec![END; flows as usize],
            now: 0,
            flows: f64::from(flows),
            random: Random::new(seed ^ 0x656e_6473),
        }
    }

    /// Says when the flow in a slot ends; `life` is a random number's, in mean lives.
    fn put(&mut self, slot: u32, life: impl FnOnce(&mut Random) -> f64) {
        // As many ticks as there are flows are one mean life, since one comes with each tick.
        let ticks = life(&mut self.random) * self.flows;
        #[expect(clippy::cast_possible_truncation, reason = "a float cast saturates")]
        #[expect(clippy::cast_sign_loss, reason = "a life is at least 0")]
        let end = self.now.saturating_add(ticks as usize);
        let places = (self.due.get_mut(end), self.next.get_mut(slot as usize));
        if let (Some(due), Some(next)) = places {
            *next = std::mem::replace(due, slot);
        }
    }

    /// Takes the slot that is due first.
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

/// A number above 0 and at most 1.
fn unit(random: &mut Random) -> f64 {
    ((random.bits() >> 11) + 1) as f64 / (1_u64 << 53) as f64
}

/// How long a new flow lasts, in mean lives: Pareto, at least a quarter.
fn life(random: &mut Random) -> f64 {
    let root = unit(random).sqrt();
    0.25 / (root * root.sqrt())
}

/// How long a flow that is met at a random time still lasts (the equilibrium distribution).
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
