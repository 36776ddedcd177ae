//! Tracking of received packets by flow: loss, duplicates, reordering and affinity.

/// Packet counts of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets received, duplicates included.
    pub received: u64,
    /// Bytes received, without FCS.
    pub bytes: u64,
    /// Packets that had arrived before.
    pub duplicates: u64,
    /// Packets that arrived after a later one of their flow (RFC 4737: sequence number below the
    /// largest before it).
    pub reordered: u64,
    /// Packets of flows that had already ended.
    pub late: u64,
    /// Packets that went to another backend than the earlier ones of their flow.
    pub violations: u64,
}

impl Counts {
    /// Returns the number of distinct packets received.
    pub const fn unique(&self) -> u64 {
        self.received - self.duplicates
    }

    /// Adds the counts of another worker.
    pub fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.bytes += other.bytes;
        self.duplicates += other.duplicates;
        self.reordered += other.reordered;
        self.late += other.late;
        self.violations += other.violations;
    }
}

/// Sequence number of a packet, as far as its signature has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sequence {
    /// The whole number.
    Whole(u32),
    /// The lower half. The upper half is that of the number nearest to the largest one so far.
    Low(u16),
}

/// Number of a backend in a worker's list, from 1; 0: not known.
pub type BackendNumber = u16;

/// State of the newest flow of a slot.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    flow: u32,
    /// Largest sequence number received.
    highest: u32,
    /// Bitmap of the 64 numbers up to `highest` that were received; bit 0 is `highest`. 0: none
    /// yet.
    window: u64,
    backend: BackendNumber,
}

/// Tracks the packets of one direction that arrive at one worker. Cost of a packet: one entry of 24
/// bytes, at random.
#[derive(Debug)]
pub struct Tracker {
    entries: Box<[Entry]>,
    /// Counts since the last [`begin`](Self::begin).
    counts: Counts,
}

impl Tracker {
    /// Creates a tracker of this number of slots.
    pub fn new(slots: u32) -> Self {
        Self { entries: vec![Entry::default(); slots as usize].into(), counts: Counts::default() }
    }

    /// Resets the counts, and keeps the state of the flows.
    pub fn begin(&mut self) {
        self.counts = Counts::default();
    }

    /// Returns the counts.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Records a packet of `bytes` that arrived for `backend` (0: not known).
    #[inline]
    pub fn note(&mut self, flow: u32, sequence: Sequence, backend: BackendNumber, bytes: usize) {
        self.counts.received += 1;
        self.counts.bytes += bytes as u64;
        let index = flow as usize % self.entries.len().max(1);
        let Some(entry) = self.entries.get_mut(index) else { return };
        if entry.window != 0 && flow < entry.flow {
            self.counts.late += 1;
            return;
        }
        if entry.window == 0 || flow > entry.flow {
            let highest = match sequence {
                Sequence::Whole(number) => number,
                Sequence::Low(half) => u32::from(half),
            };
            *entry = Entry { flow, highest, window: 1, backend };
            return;
        }
        match entry.place(sequence) {
            Place::New => {}
            Place::Behind => self.counts.reordered += 1,
            Place::Seen => self.counts.duplicates += 1,
        }
        if backend != 0 && entry.backend != backend {
            self.counts.violations += u64::from(entry.backend != 0);
            entry.backend = backend;
        }
    }

    /// Returns, for each slot, the newest flow and its backend; `None` for an unused slot.
    pub fn flows(&self) -> impl Iterator<Item = Option<(u32, BackendNumber)>> + '_ {
        self.entries.iter().map(|entry| (entry.window != 0).then_some((entry.flow, entry.backend)))
    }
}

/// Position of a packet relative to the earlier ones of its flow.
enum Place {
    New,
    Behind,
    Seen,
}

impl Entry {
    /// Enters a number into the window.
    #[inline]
    fn place(&mut self, sequence: Sequence) -> Place {
        let ahead = self.distance(sequence);
        if ahead > 0 {
            let ahead = ahead.unsigned_abs();
            self.window = if ahead < 64 { self.window << ahead | 1 } else { 1 };
            self.highest = self.highest.wrapping_add(ahead);
            return Place::New;
        }
        let bit = match ahead.unsigned_abs() {
            behind @ 0..64 => 1_u64 << behind,
            // Too old to distinguish from a duplicate; reordering is likelier.
            _ => return Place::Behind,
        };
        if self.window & bit != 0 {
            return Place::Seen;
        }
        self.window |= bit;
        Place::Behind
    }

    #[inline]
    #[expect(clippy::cast_possible_wrap, reason = "a distance on a circle has a sign")]
    #[expect(clippy::cast_possible_truncation, reason = "the low half is what is compared")]
    fn distance(&self, sequence: Sequence) -> i32 {
        match sequence {
            Sequence::Whole(number) => number.wrapping_sub(self.highest) as i32,
            Sequence::Low(half) => i32::from(half.wrapping_sub(self.highest as u16) as i16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(packets: &[(u32, u32, BackendNumber)], short: bool) -> Counts {
        let mut tracker = Tracker::new(4);
        for &(flow, number, backend) in packets {
            let low = u16::try_from(number & 0xffff).unwrap_or_default();
            let sequence = if short { Sequence::Low(low) } else { Sequence::Whole(number) };
            tracker.note(flow, sequence, backend, 60);
        }
        *tracker.counts()
    }

    #[test]
    fn order_loss_and_duplicates() {
        for (name, numbers, duplicates, reordered) in [
            ("in order", &[0, 1, 2, 3][..], 0, 0),
            ("a gap is loss, which the sender's count tells", &[0, 1, 5, 6], 0, 0),
            ("one late", &[0, 2, 1, 3], 0, 1),
            ("one twice", &[0, 1, 1, 2], 1, 0),
            ("twice, later", &[0, 1, 2, 3, 1], 1, 0),
            ("late and then twice", &[0, 2, 1, 1], 1, 1),
            ("first of all is late", &[1, 0, 2], 0, 1),
            ("across the wrap", &[u32::MAX - 1, u32::MAX, 0, 1], 0, 0),
            ("late across the wrap", &[u32::MAX, 1, 0], 0, 1),
            ("far behind", &[0, 100, 1], 0, 1),
            ("far ahead clears the window", &[0, 100, 100], 1, 0),
            ("exactly 63 behind, twice", &[0, 63, 0], 1, 0),
        ] {
            for short in [false, true] {
                let packets: Vec<_> = numbers.iter().map(|&number| (0, number, 1)).collect();
                let counts = counts(&packets, short);
                let found = (counts.received, counts.duplicates, counts.reordered);
                assert_eq!(found, (numbers.len() as u64, duplicates, reordered), "{name} {short}");
            }
        }
    }

    #[test]
    fn a_flow_at_two_backends_is_a_violation() {
        for (name, packets, violations) in [
            ("one backend", &[(0, 0, 1), (0, 1, 1), (0, 2, 1)][..], 0),
            ("two flows, two backends", &[(0, 0, 1), (1, 0, 2), (0, 1, 1), (1, 1, 2)], 0),
            ("moved once", &[(0, 0, 1), (0, 1, 2), (0, 2, 2)], 1),
            ("back and forth", &[(0, 0, 1), (0, 1, 2), (0, 2, 1)], 2),
            ("a new flow of the slot may go elsewhere", &[(0, 0, 1), (4, 0, 2), (4, 1, 2)], 0),
            ("not known", &[(0, 0, 1), (0, 1, 0), (0, 2, 1)], 0),
        ] {
            assert_eq!(counts(packets, false).violations, violations, "{name}");
        }
    }

    #[test]
    fn a_packet_of_a_flow_that_has_ended_is_late() {
        let counts = counts(&[(1, 0, 1), (5, 0, 2), (1, 1, 1), (5, 1, 2)], false);
        assert_eq!((counts.received, counts.late, counts.violations), (4, 1, 0));
    }

    #[test]
    fn a_new_trial_resets_the_counts_but_not_the_flows() {
        let mut tracker = Tracker::new(1);
        tracker.note(0, Sequence::Whole(0), 1, 60);
        tracker.begin();
        assert_eq!(*tracker.counts(), Counts::default());
        tracker.note(0, Sequence::Whole(1), 2, 100);
        let expected = Counts { received: 1, bytes: 100, violations: 1, ..Counts::default() };
        assert_eq!(*tracker.counts(), expected);
        assert_eq!(tracker.flows().collect::<Vec<_>>(), [Some((0, 2))]);
    }
}
