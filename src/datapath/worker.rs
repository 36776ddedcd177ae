//! A worker: one thread on one core, which runs packets from its NIC queues to completion.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::batch::{BATCH, Batch};
use super::conntrack::{Conntrack, prefetch};
use super::context::{Context, Environment, Identification};
use super::fragments::Fragments;
use super::handshakes::Handshakes;
use super::limiter::Limiter;
use super::passes::{forward, parse_and_classify};
use super::queues::{Queues, WorkerQueue};
use super::receive::receive;
use super::reset::TxBacklog;
use super::resources::Resources;
use super::syn_proxy::repeat;
use super::token_bucket::TokenBucket;
use super::transmit::transmit;
use crate::flow::shared::SharedTables;
use crate::forwarding::explain::Trace;
use crate::forwarding::publish::Subscription;
use crate::stats::WorkerStats;
use crate::units::Ticks;
use crate::xdp::cpu;
use crate::xdp::queue::wait;
use crate::xdp::umem::FramePool;
use crate::xdp::waker::Waker;

/// Consecutive empty polls after which a worker that may sleep does so.
const IDLE_POLLS: u32 = 64;
/// Longest sleep in milliseconds; bounds the delay of the sweep and of a stop.
const SLEEP_MS: u32 = 100;

/// Components of a new worker.
pub struct Parts {
    /// NIC queues.
    pub queues: Vec<WorkerQueue>,
    /// Free frames of the worker's UMEM.
    pub pool: FramePool,
    /// The tables that all workers share.
    pub shared: Arc<SharedTables>,
    /// Maximum number of parked fragments.
    pub parked: usize,
    /// Index of the worker, from 0.
    pub index: u8,
    /// The forwarding tables.
    pub tables: Subscription,
    /// Counters of the worker.
    pub stats: Arc<WorkerStats>,
    /// Packets per batch, 1..=64.
    pub batch: usize,
}

/// A worker.
pub struct Worker {
    environment: Environment,
    pipeline: Pipeline,
    /// The sweep of the flow table is behind, so the worker must not sleep.
    sweep_behind: bool,
}

/// The part of a worker that a poll changes.
struct Pipeline {
    queues: Queues,
    batch: Batch,
    max_batch: usize,
    resources: Resources,
}

impl Worker {
    /// Creates a worker and fills its fill rings.
    ///
    /// Returns `None` if there is no flow table for `index`, or another worker writes that table.
    pub fn new(parts: Parts, now: Ticks) -> Option<Self> {
        let conntrack = Conntrack::new(&parts.shared, parts.index, &parts.stats, now)?;
        Self::with(parts, conntrack)
    }

    /// Takes over queues, packet memory and flow table from their last user, which may be another
    /// process. Nothing is lost if it has [suspended](Self::suspend) its work.
    ///
    /// Returns `None` as [`Worker::new`] does.
    pub fn take_over(mut parts: Parts, now: Ticks) -> Option<Self> {
        for queue in &mut parts.queues {
            queue.xsk.resume();
        }
        parts.pool = parts.pool.renewed();
        let conntrack = Conntrack::take_over(&parts.shared, parts.index, &parts.stats, now)?;
        Self::with(parts, conntrack)
    }

    fn with(parts: Parts, conntrack: Conntrack) -> Option<Self> {
        let Parts { queues, pool, shared, parked, index, tables, stats, batch } = parts;
        let flows = Arc::clone(shared.flows.get(usize::from(index))?);
        let resources = Resources {
            conntrack,
            fragments: Fragments::new(parked),
            backlog: TxBacklog::default(),
            limiter: Limiter::default(),
            reset_limiter: Limiter::default(),
            asks: TokenBucket::default(),
            handshakes: Handshakes::default(),
            pool,
        };
        let identification = Identification::of(index);
        let environment =
            Environment { tables, flows, shared, identification, stats, worker: index };
        let max_batch = batch.clamp(1, BATCH);
        let (queues, batch) = (Queues::new(queues), Batch::default());
        let mut pipeline = Pipeline { queues, batch, max_batch, resources };
        for index in 0..pipeline.queues.queues.len() {
            pipeline.refill(index, &environment.stats);
        }
        Some(Self { environment, pipeline, sweep_behind: false })
    }

    /// Runs up to one batch from every port through all stages; returns the number of packets.
    ///
    /// `now` is the time on the clock of flow ages.
    pub fn poll(&mut self, now: Ticks) -> usize {
        self.poll_with(now, 0..self.pipeline.queues.queues.len(), None)
    }

    /// Polls the port number `queue` only, with `trace` recording the reasons of decisions. With
    /// batches of one, that is at most one packet.
    pub fn poll_traced(&mut self, now: Ticks, queue: usize, trace: &Trace) -> usize {
        self.poll_with(now, queue..queue + 1, Some(trace))
    }

    /// Inlined into both callers, so that a worker without a trace has no branch for it.
    #[inline(always)]
    fn poll_with(&mut self, now: Ticks, queues: Range<usize>, trace: Option<&Trace>) -> usize {
        let mut context = self.environment.context(now, trace);
        self.pipeline.begin(&context);
        let mut packets = 0;
        for index in queues {
            packets += self.pipeline.poll_queue(index, &mut context);
        }
        // The sweep handles no packet.
        context.trace = None;
        self.sweep_behind = self.pipeline.finish(&context);
        packets
    }

    /// Returns the components of the worker, with counters that begin again. Packets that it keeps
    /// are lost: parked fragments and local replies.
    pub fn into_parts(self) -> Parts {
        let Self { environment, pipeline, .. } = self;
        let Environment { tables, shared, stats, .. } = environment;
        let Pipeline { queues, max_batch, resources, .. } = pipeline;
        let Resources { conntrack, fragments, pool, .. } = resources;
        stats.clear_gauges();
        Parts {
            queues: queues.queues,
            pool,
            shared,
            parked: fragments.limit(),
            index: conntrack.worker(),
            tables,
            stats,
            batch: max_batch,
        }
    }

    /// Records for another user of the queues what their rings do not show. Called between two
    /// polls; the worker may be polled again if there is no other user.
    pub fn suspend(&self) {
        self.pipeline.queues.queues.iter().for_each(|queue| queue.xsk.suspend());
        self.pipeline.resources.conntrack.suspend();
    }

    /// Polls until `stop` is set. An idle worker sleeps if there is a `waker`, which ends its sleep.
    pub fn run(&mut self, stop: &AtomicBool, waker: Option<&Waker>) {
        let mut idle = 0_u32;
        // Relaxed: the flag publishes nothing else.
        while !stop.load(Ordering::Relaxed) {
            if self.poll(Ticks::at_ms(cpu::monotonic_ms())) > 0 {
                idle = 0;
                continue;
            }
            self.environment.stats.idle_polls.add(1);
            idle = idle.saturating_add(1);
            if let Some(waker) = waker
                && idle > IDLE_POLLS
                && !self.sweep_behind
                && self.pipeline.resources.fragments.is_empty()
            {
                self.sleep(waker);
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// Blocks until a packet arrives, or for a bounded time.
    fn sleep(&self, waker: &Waker) {
        self.environment.stats.sleeps.add(1);
        let queues = self.pipeline.queues.queues.iter().map(|queue| &queue.xsk);
        wait(queues, Some(waker.file()), SLEEP_MS);
    }

    /// Whether the sweep of the flow table has more to do now, so that another poll is due.
    pub fn is_behind(&self) -> bool {
        self.sweep_behind
    }

    /// Number of frames that this worker owns, here and in the kernel's rings: a constant.
    pub fn frames(&self) -> usize {
        let with_kernel: u32 =
            self.pipeline.queues.queues.iter().map(|queue| queue.xsk.with_kernel()).sum();
        let Resources { pool, fragments, .. } = &self.pipeline.resources;
        pool.len() + with_kernel as usize + fragments.frames(pool)
    }
}

impl Pipeline {
    /// Begins a poll: drops parked fragments that have waited too long, and reclaims sent frames.
    #[inline(always)]
    fn begin(&mut self, context: &Context<'_>) {
        let Resources { fragments, pool, .. } = &mut self.resources;
        fragments.look(context, pool);
        for queue in &mut self.queues.queues {
            queue.xsk.reclaim(pool);
        }
    }

    /// Runs one batch of a port through all passes; returns its number of packets. Each pass
    /// prefetches, for all packets, the memory that the next pass needs.
    #[inline(always)]
    fn poll_queue(&mut self, index: usize, context: &mut Context<'_>) -> usize {
        let Self { queues, batch, max_batch, resources } = self;
        let Some(queue) = queues.queues.get_mut(index) else { return 0 };
        context.nic = queue.nic;
        receive(batch, queue, &mut resources.fragments, context, *max_batch);
        let packets = batch.len();
        if packets > 0 {
            parse_and_classify(batch, resources, context);
            prefetch(batch, context.flows);
            forward(batch, resources, context);
            transmit(batch, queues, &mut resources.pool, context.stats);
            context.stats.batches.add(1);
        }
        self.refill(index, context.stats);
        packets
    }

    /// Ends a poll: queues locally generated packets, wakes the kernel, sweeps the flow table.
    /// Returns whether the sweep is behind.
    #[inline(always)]
    fn finish(&mut self, context: &Context<'_>) -> bool {
        if !self.resources.handshakes.is_empty() {
            repeat(&mut self.resources, context);
        }
        let Resources { conntrack, backlog, pool, .. } = &mut self.resources;
        backlog.send(&mut self.queues, pool, context);
        for queue in &mut self.queues.queues {
            queue.flush(context.stats);
        }
        conntrack.sweep(context, backlog)
    }

    #[inline]
    fn refill(&mut self, index: usize, stats: &WorkerStats) {
        let Some(queue) = self.queues.queues.get_mut(index) else { return };
        let pool = &mut self.resources.pool;
        queue.xsk.refill(pool);
        let bad = queue.new_bad_descriptors();
        if let Some(counters) = stats.nics.get(usize::from(queue.nic.0)) {
            if pool.is_empty() {
                counters.no_free_frame.add(1);
            }
            if bad > 0 {
                counters.bad_descriptors.add(bad);
            }
        }
    }
}
