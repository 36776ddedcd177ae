//! Handshakes with backends that are not complete: a worker's list of the SYNs that it repeats at
//! VIPs with `syn_proxy`.
//!
//! Such a VIP sends the SYN itself, so no client repeats it: after 1, 2 and 4 s this box does (RFC
//! 6298 2 and 5.5). A client that has more to send repeats it, too, by its own packets.
//!
//! Writes: its own lists, of fixed size. Cost: one comparison per poll while they are empty.

use std::collections::VecDeque;

use crate::net::HashedKey;
use crate::units::Ticks;

/// Delay before each repetition: 1, 2, 4 s.
const DELAYS: [Ticks; 3] = [Ticks(100), Ticks(200), Ticks(400)];
/// Most handshakes of each list. Those beyond are repeated by their clients only.
const ROOM: usize = 16_384;
/// Most repetitions per poll.
const PER_POLL: usize = 16;

/// A handshake, and the time of its next SYN.
#[derive(Debug, Clone, Copy)]
struct Due {
    flow: HashedKey,
    at: Ticks,
}

/// The handshakes of a worker: one list for each delay, the next one first.
#[derive(Debug)]
pub struct Handshakes([VecDeque<Due>; DELAYS.len()]);

impl Default for Handshakes {
    fn default() -> Self {
        Self(std::array::from_fn(|_| VecDeque::with_capacity(ROOM)))
    }
}

impl Handshakes {
    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(VecDeque::is_empty)
    }

    /// Adds a handshake that begins now.
    pub fn begin(&mut self, flow: HashedKey, now: Ticks) {
        self.add(0, flow, now);
    }

    fn add(&mut self, delay: usize, flow: HashedKey, now: Ticks) {
        let Some((list, &delay)) = self.0.get_mut(delay).zip(DELAYS.get(delay)) else { return };
        if list.len() < ROOM {
            list.push_back(Due { flow, at: now.after(delay) });
        }
    }

    /// Calls `repeat` for the handshakes that are due; those for which it returns true go on.
    #[cold]
    pub fn run(&mut self, now: Ticks, mut repeat: impl FnMut(&HashedKey) -> bool) {
        let mut left = PER_POLL;
        for delay in 0..DELAYS.len() {
            while left > 0
                && let Some(list) = self.0.get_mut(delay)
                && let Some(&due) = list.front()
                && !now.is_before(due.at)
            {
                list.pop_front();
                left -= 1;
                if repeat(&due.flow) {
                    self.add(delay + 1, due.flow, now);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Tuple;

    fn flow(number: u64) -> HashedKey {
        HashedKey::unhashed(Tuple::V4([number, 1]))
    }

    /// Flows that are repeated at a time.
    fn at(handshakes: &mut Handshakes, now: u32, goes_on: bool) -> Vec<HashedKey> {
        let mut repeated = Vec::new();
        handshakes.run(Ticks(now), |flow| {
            repeated.push(*flow);
            goes_on
        });
        repeated
    }

    #[test]
    fn a_handshake_is_repeated_three_times_across_the_wrap_of_the_clock() {
        let mut handshakes = Handshakes::default();
        let start = u32::MAX - 150;
        handshakes.begin(flow(1), Ticks(start));
        let due = |ticks: u32, handshakes: &mut Handshakes| {
            at(handshakes, start.wrapping_add(ticks), true).len()
        };
        let times: Vec<u32> = (0..1000).filter(|&ticks| due(ticks, &mut handshakes) == 1).collect();
        assert_eq!(times, [100, 300, 700]);
        assert!(handshakes.is_empty());
    }

    #[test]
    fn one_that_is_complete_leaves() {
        let mut handshakes = Handshakes::default();
        handshakes.begin(flow(1), Ticks(0));
        handshakes.begin(flow(2), Ticks(1));
        assert_eq!(at(&mut handshakes, 100, false), [flow(1)]);
        assert_eq!(at(&mut handshakes, 101, false), [flow(2)]);
        assert!(handshakes.is_empty());
    }

    #[test]
    fn memory_and_work_are_bounded() {
        let mut handshakes = Handshakes::default();
        for number in 0..20_000 {
            handshakes.begin(flow(number), Ticks(0));
        }
        assert_eq!(at(&mut handshakes, 100, true).len(), PER_POLL);
        let repeated = (0..ROOM).map(|_| at(&mut handshakes, 100, false).len()).sum::<usize>();
        assert_eq!(repeated + PER_POLL, ROOM);
    }
}
