//! The floor: the least cost of a batch of packets on this machine, at this moment.
//!
//! Per packet: read the header line, touch two lines of a table as large as the worker's, write the
//! header. Batches of 64; the lines are prefetched in one pass and touched in the next. The packets
//! are the worker's, in frames of the same kind of memory, written by the same code just before;
//! the table is mapped by the same code.

use std::hint::black_box;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrayvec::ArrayVec;
use holdfast::xdp::cpu;
use holdfast::xdp::memory::{Line, Mapping};
use holdfast::xdp::umem::{Frame, FramePool, Umem};

use super::bed::{BATCH, FRAMES, ROUND};
use super::measure::Subject;
use super::packets::{Random, Template};
use super::rig::Family;

pub struct Floor {
    buckets: Mapping<Line>,
    entries: Mapping<Line>,
    /// Each frame is reused after all others, like those of a fill ring.
    frames: Vec<Frame>,
    next: usize,
    template: Template,
    flows: u64,
    random: Random,
    /// Owner of the unused frames, which are of the same memory.
    _pool: FramePool,
}

impl Floor {
    /// Creates the floor for `flows` flows in a table of `capacity` entries that takes `memory`
    /// bytes.
    pub fn new(flows: u64, capacity: usize, memory: usize) -> Self {
        let (_, mut pool) = Umem::create(FRAMES, 2048).unwrap();
        let template = Template::request(Family::V4, false);
        // As many as the fill ring of the worker has.
        let frames = (0..2 * ROUND).map(|_| pool.pop().unwrap()).collect();
        // 8 slots per bucket, filled to 85 %, as in the flow table.
        let buckets = (capacity * 100).div_ceil(8 * 85).max(2);
        Self {
            buckets: Mapping::zeroed(buckets).unwrap(),
            entries: Mapping::zeroed((memory / size_of::<Line>()).saturating_sub(buckets).max(1))
                .unwrap(),
            frames,
            next: 0,
            template,
            flows,
            random: Random::new(0xf100),
            _pool: pool,
        }
    }
}

/// Returns the lines that a packet's header maps to.
#[inline]
fn lines_of(header: &[u8], buckets: usize, entries: usize) -> (usize, usize) {
    let word = |at: usize| u64::from_ne_bytes(*header[at..].first_chunk().unwrap());
    // Client address and VIP; VIP and ports.
    let hash = (word(26) ^ word(30).rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let other = hash.rotate_left(32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let pick =
        |hash: u64, len: usize| usize::try_from((u128::from(hash) * len as u128) >> 64).unwrap();
    (pick(hash, buckets), pick(other, entries))
}

/// Processes one batch.
#[inline(never)]
fn batch(frames: &mut [Frame], buckets: &[Line], entries: &[Line]) {
    let mut named = ArrayVec::<_, BATCH>::new();
    for frame in &mut *frames {
        let (bucket, entry) = lines_of(frame.data(), buckets.len(), entries.len());
        let (bucket, entry) = (&buckets[bucket], &entries[entry]);
        cpu::prefetch(bucket);
        cpu::prefetch(entry);
        named.push((bucket, entry));
    }
    for (frame, (bucket, entry)) in frames.iter_mut().zip(named) {
        let first = bucket.words[0].load(Ordering::Relaxed);
        let second = entry.words[7].load(Ordering::Relaxed);
        let [a, b, c, d, e, f, g, h] = (first ^ second).to_ne_bytes();
        let header: &mut [u8; 12] = frame.data_mut().first_chunk_mut().unwrap();
        *header = [a, b, c, d, e, f, g, h, a, b, c, d];
    }
}

impl Subject for Floor {
    fn prepare(&mut self) {
        self.next = (self.next + ROUND) % self.frames.len();
        for frame in &mut self.frames[self.next..self.next + ROUND] {
            assert!(frame.copy_from(&[0; 96][..self.template.len()]), "a frame has room");
            self.template.write(self.random.below(self.flows), frame.data_mut());
        }
    }

    fn run(&mut self) -> usize {
        for frames in self.frames[self.next..self.next + ROUND].chunks_mut(BATCH) {
            batch(black_box(frames), &self.buckets, &self.entries);
        }
        ROUND
    }

    fn finish(&mut self, _took: Duration) {}
}
