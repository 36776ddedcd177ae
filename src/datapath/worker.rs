//! A worker: one thread on one core, which runs packets from its NIC queues to completion.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::batch::{BATCH, Batch};
use super::classify::classify;
use super::conntrack::{Conntrack, Context};
use super::parse::parse;
use super::receive::receive;
use super::rewrite::rewrite;
use super::select::select;
use super::transmit::transmit;
use crate::flow::table::FlowTable;
use crate::forwarding::publish::Subscription;
use crate::forwarding::{MAX_NICS, PortIndex};
use crate::stats::{PortStats, WorkerStats};
use crate::units::Ticks;
use crate::xdp::cpu;
use crate::xdp::port::{Port, wait};
use crate::xdp::umem::{Frame, FramePool};

/// Polls without a packet after which a worker that may sleep does.
const IDLE_POLLS: u32 = 64;
/// Longest sleep: bounds how late the sweep, and a stop, may be.
const SLEEP_MS: u32 = 100;

/// One NIC queue that a worker serves.
pub struct WorkerPort {
    /// The NIC.
    pub nic: PortIndex,
    /// Its socket and rings.
    pub port: Port,
    /// Bad descriptors that were counted.
    bad_descriptors: u64,
}

impl WorkerPort {
    /// A queue of `nic`.
    pub fn new(nic: PortIndex, port: Port) -> Self {
        Self { nic, port, bad_descriptors: 0 }
    }

    /// Bad descriptors since the last call.
    #[inline]
    fn new_bad_descriptors(&mut self) -> u64 {
        let now = self.port.bad_descriptors();
        now - std::mem::replace(&mut self.bad_descriptors, now)
    }
}

/// All NIC queues of a worker.
pub struct Ports {
    ports: Vec<WorkerPort>,
    /// For each NIC, which of `ports` sends.
    sender: [Option<usize>; MAX_NICS],
}

impl Ports {
    /// The first queue of each NIC becomes its sender.
    pub fn new(ports: Vec<WorkerPort>) -> Self {
        let mut sender = [None; MAX_NICS];
        for (index, port) in ports.iter().enumerate() {
            if let Some(place) = sender.get_mut(usize::from(port.nic.0)) {
                place.get_or_insert(index);
            }
        }
        Self { ports, sender }
    }

    /// Queues a frame on the NIC's TX ring. A full ring is given to the kernel and tried once more,
    /// unless `flushed` says that this was done in this batch already.
    ///
    /// # Errors
    /// The frame, when the ring stays full, or the worker has no queue on that NIC.
    #[inline]
    pub fn queue(
        &mut self,
        nic: PortIndex,
        frame: Frame,
        pool: &mut FramePool,
        flushed: &mut bool,
        stats: &WorkerStats,
    ) -> Result<(), Frame> {
        let index = self.sender.get(usize::from(nic.0)).copied().flatten();
        let Some(WorkerPort { port, .. }) = index.and_then(|index| self.ports.get_mut(index))
        else {
            return Err(frame);
        };
        let bytes = frame.len() as u64;
        let counters = stats.ports.get(usize::from(nic.0));
        match port.transmit(frame) {
            Ok(()) => {}
            Err(frame) if *flushed => return Err(frame),
            Err(frame) => {
                *flushed = true;
                flush(port, counters);
                port.reclaim(pool);
                port.transmit(frame)?;
            }
        }
        if let Some(counters) = counters {
            counters.tx_packets.add(1);
            counters.tx_bytes.add(bytes);
        }
        Ok(())
    }
}

/// What a worker is made of.
pub struct Parts {
    /// Its NIC queues.
    pub ports: Vec<WorkerPort>,
    /// The frames of its UMEM.
    pub pool: FramePool,
    /// MAC addresses of all NICs.
    pub macs: Vec<[u8; 6]>,
    /// The flow tables of all workers.
    pub flows: Arc<[Arc<FlowTable>]>,
    /// Its place among the workers.
    pub index: u8,
    /// The forwarding tables.
    pub tables: Subscription,
    /// Its counters.
    pub stats: Arc<WorkerStats>,
    /// Packets per batch, 1..=64.
    pub batch: usize,
}

/// One worker.
pub struct Worker {
    ports: Ports,
    pool: FramePool,
    macs: Vec<[u8; 6]>,
    conntrack: Conntrack,
    tables: Subscription,
    stats: Arc<WorkerStats>,
    batch: Batch,
    max_batch: usize,
    /// The sweep of the flow table is behind: no time to sleep.
    sweep_behind: bool,
}

impl Worker {
    /// Makes a worker and fills its fill rings.
    ///
    /// `None` if `flows` has no table for `index`, or that table is not empty.
    pub fn new(parts: Parts, now: Ticks) -> Option<Self> {
        let mut worker = Self {
            conntrack: Conntrack::new(parts.flows, parts.index, now)?,
            ports: Ports::new(parts.ports),
            pool: parts.pool,
            macs: parts.macs,
            tables: parts.tables,
            stats: parts.stats,
            batch: Batch::default(),
            max_batch: parts.batch.clamp(1, BATCH),
            sweep_behind: false,
        };
        for index in 0..worker.ports.ports.len() {
            worker.refill(index);
        }
        Some(worker)
    }

    /// Takes up to one batch from every port through all stages; returns how many packets that was.
    ///
    /// `now` is the time on the clock that flow ages are kept in.
    pub fn poll(&mut self, now: Ticks) -> usize {
        let mut packets = 0;
        for index in 0..self.ports.ports.len() {
            packets += self.poll_port(index, now);
        }
        self.flush();
        let table = self.tables.current();
        self.sweep_behind = self.conntrack.sweep(Context { table, now, stats: &self.stats });
        packets
    }

    /// The packet's way, stage by stage.
    #[inline]
    fn poll_port(&mut self, index: usize, now: Ticks) -> usize {
        let Some(port) = self.ports.ports.get_mut(index) else { return 0 };
        port.port.reclaim(&mut self.pool);
        receive(&mut self.batch, port, self.max_batch, &self.stats);
        let packets = self.batch.len();
        if packets > 0 {
            let table = self.tables.current();
            let context = Context { table, now, stats: &self.stats };
            parse(&mut self.batch);
            classify(&mut self.batch, table, self.conntrack.secret());
            self.conntrack.prefetch(&mut self.batch);
            self.conntrack.track(&mut self.batch, context);
            select(&mut self.batch, &mut self.conntrack, context);
            rewrite(&mut self.batch, context, &self.macs);
            transmit(&mut self.batch, &mut self.ports, &mut self.pool, &self.stats);
            self.stats.batches.add(1);
        }
        self.refill(index);
        packets
    }

    #[inline]
    fn refill(&mut self, index: usize) {
        let Some(port) = self.ports.ports.get_mut(index) else { return };
        port.port.refill(&mut self.pool);
        let bad = port.new_bad_descriptors();
        if let Some(counters) = self.stats.ports.get(usize::from(port.nic.0)) {
            if self.pool.is_empty() {
                counters.no_free_frame.add(1);
            }
            if bad > 0 {
                counters.bad_descriptors.add(bad);
            }
        }
    }

    /// Hands what was queued to the kernel, on every NIC.
    #[inline]
    fn flush(&mut self) {
        for WorkerPort { nic, port, .. } in &mut self.ports.ports {
            flush(port, self.stats.ports.get(usize::from(nic.0)));
        }
    }

    /// Polls until `stop` is set; sleeps when there is nothing to do, if `may_sleep`.
    pub fn run(&mut self, stop: &AtomicBool, may_sleep: bool) {
        let mut idle = 0_u32;
        // Relaxed: the flag publishes nothing else.
        while !stop.load(Ordering::Relaxed) {
            if self.poll(Ticks::at_ms(cpu::monotonic_ms())) > 0 {
                idle = 0;
                continue;
            }
            self.stats.idle_polls.add(1);
            idle = idle.saturating_add(1);
            if may_sleep && idle > IDLE_POLLS && !self.sweep_behind {
                self.sleep();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// Blocks until a packet arrives, or for a bounded time.
    fn sleep(&self) {
        self.stats.sleeps.add(1);
        wait(self.ports.ports.iter().map(|port| &port.port), SLEEP_MS);
    }

    /// Frames that this worker holds, here and in the kernel's rings: a constant.
    pub fn frames(&self) -> usize {
        let with_kernel: u32 = self.ports.ports.iter().map(|port| port.port.with_kernel()).sum();
        self.pool.len() + self.batch.len() + with_kernel as usize
    }
}

#[inline]
fn flush(port: &mut Port, counters: Option<&PortStats>) {
    if port.flush()
        && let Some(counters) = counters
    {
        counters.tx_wakeups.add(1);
    }
}
