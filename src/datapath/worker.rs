//! A worker: one thread on one core, which runs packets from its NIC queues to completion.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::batch::{BATCH, Batch, Packet, Way};
use super::classify::{LastVip, classify};
use super::conntrack::{Conntrack, Context, Reply, Untracked, prefetch};
use super::parse::{parse, parse_plain};
use super::receive::receive;
use super::reset::Outbox;
use super::rewrite::{Macs, rewrite_to_backend, rewrite_to_client};
use super::select::select;
use super::transmit::{end, transmit};
use crate::flow::clients::Clients;
use crate::flow::table::FlowTable;
use crate::forwarding::publish::Subscription;
use crate::forwarding::{MAX_NICS, PortIndex};
use crate::stats::{Drop, WorkerStats};
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
    /// Packets and bytes that were queued, and are not counted yet.
    queued: (u64, u64),
    /// The TX ring was full, and has been given to the kernel, in this batch.
    was_full: bool,
}

impl WorkerPort {
    /// A queue of `nic`.
    pub fn new(nic: PortIndex, port: Port) -> Self {
        Self { nic, port, bad_descriptors: 0, queued: (0, 0), was_full: false }
    }

    /// Bad descriptors since the last call.
    #[inline]
    fn new_bad_descriptors(&mut self) -> u64 {
        let now = self.port.bad_descriptors();
        now - std::mem::replace(&mut self.bad_descriptors, now)
    }

    /// Queues the frames of these packets; those that find no room stay. A full ring is given to the
    /// kernel and tried once more, once per batch. Returns how many were queued.
    #[inline]
    fn queue(&mut self, packets: &mut [Packet], pool: &mut FramePool, stats: &WorkerStats) -> u64 {
        let mut sent = self.try_queue(packets);
        let left = || packets.iter().any(|packet| packet.frame.is_some());
        if !self.was_full && self.port.is_full() && left() {
            self.was_full = true;
            self.hand_over(stats);
            self.port.reclaim(pool);
            sent += self.try_queue(packets);
        }
        sent
    }

    #[inline]
    fn try_queue(&mut self, packets: &mut [Packet]) -> u64 {
        let frames = packets.iter_mut().map(|packet| &mut packet.frame);
        let (sent, bytes) = self.port.transmit_all(frames);
        self.queued.0 += u64::from(sent);
        self.queued.1 += bytes;
        sent.into()
    }

    /// Queues one frame.
    fn queue_one(&mut self, frame: Frame) -> Result<(), Frame> {
        let bytes = u64::from(frame.bytes());
        self.port.transmit(frame)?;
        self.queued.0 += 1;
        self.queued.1 += bytes;
        Ok(())
    }

    /// Hands what was queued to the kernel.
    #[inline]
    fn flush(&mut self, stats: &WorkerStats) {
        self.hand_over(stats);
    }

    #[inline]
    fn hand_over(&mut self, stats: &WorkerStats) {
        let woken = self.port.flush();
        let (packets, bytes) = std::mem::take(&mut self.queued);
        if (packets > 0 || woken)
            && let Some(counters) = stats.ports.get(usize::from(self.nic.0))
        {
            counters.tx_packets.add(packets);
            counters.tx_bytes.add(bytes);
            counters.tx_wakeups.add(woken.into());
        }
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

    /// Every full ring may be given to the kernel once more.
    #[inline]
    pub fn begin_batch(&mut self) {
        for port in &mut self.ports {
            port.was_full = false;
        }
    }

    /// Queues the frames of packets that leave by `nic` on its TX ring; returns how many. Those that
    /// find the ring full, or no queue of this worker on that NIC, stay.
    #[inline]
    pub fn queue(
        &mut self,
        nic: PortIndex,
        packets: &mut [Packet],
        pool: &mut FramePool,
        stats: &WorkerStats,
    ) -> u64 {
        self.sender(nic).map_or(0, |port| port.queue(packets, pool, stats))
    }

    /// Queues a frame that leaves by `nic`.
    ///
    /// # Errors
    /// The frame comes back when the ring is full, or no queue of this worker is on that NIC.
    pub fn queue_one(&mut self, nic: PortIndex, frame: Frame) -> Result<(), Frame> {
        match self.sender(nic) {
            Some(port) => port.queue_one(frame),
            None => Err(frame),
        }
    }

    #[inline]
    fn sender(&mut self, nic: PortIndex) -> Option<&mut WorkerPort> {
        let index = self.sender.get(usize::from(nic.0)).copied().flatten()?;
        self.ports.get_mut(index)
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
    /// The clients of all workers.
    pub clients: Arc<Clients>,
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
    /// Its own flow table.
    flows: Arc<FlowTable>,
    clients: Arc<Clients>,
    tables: Subscription,
    stats: Arc<WorkerStats>,
    batch: Batch,
    outbox: Outbox,
    max_batch: usize,
    /// The sweep of the flow table is behind: no time to sleep.
    sweep_behind: bool,
}

impl Worker {
    /// Makes a worker and fills its fill rings.
    ///
    /// `None` if `flows` has no table for `index`, or another worker writes that table.
    pub fn new(parts: Parts, now: Ticks) -> Option<Self> {
        let mut worker = Self {
            flows: Arc::clone(parts.flows.get(usize::from(parts.index))?),
            conntrack: Conntrack::new(parts.flows, parts.index, now)?,
            clients: parts.clients,
            ports: Ports::new(parts.ports),
            pool: parts.pool,
            macs: parts.macs,
            tables: parts.tables,
            stats: parts.stats,
            batch: Batch::default(),
            outbox: Outbox::default(),
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
        self.outbox.send(&mut self.ports, &mut self.pool, &self.macs, &self.stats);
        for port in &mut self.ports.ports {
            port.flush(&self.stats);
        }
        // The NIC is of no interest to the sweep.
        let context = &Context {
            table: self.tables.current(),
            flows: self.flows.view(),
            clients: &self.clients,
            nic: PortIndex(0),
            now,
            stats: &self.stats,
            trace: None,
        };
        self.sweep_behind = self.conntrack.sweep(context, &mut self.outbox);
        packets
    }

    /// The packet's way, stage by stage. Each pass asks for the memory that the next one will need, of
    /// all packets, before that one begins.
    #[inline]
    fn poll_port(&mut self, index: usize, now: Ticks) -> usize {
        let Self {
            ports, pool, macs, conntrack, tables, flows, clients, stats, batch, outbox, ..
        } = self;
        let Some(port) = ports.ports.get_mut(index) else { return 0 };
        port.port.reclaim(pool);
        receive(batch, port, self.max_batch, stats);
        let packets = batch.len();
        if packets > 0 {
            let table = tables.current();
            let (flows_view, nic) = (flows.view(), port.nic);
            let context =
                &Context { table, flows: flows_view, clients, nic, now, stats, trace: None };
            let mut last = LastVip::NONE;
            for packet in batch.in_flight() {
                // Twice the same, so that it is compiled for the plainest packets by itself.
                let known = match parse_plain(packet) {
                    Some(tuple) => classify(packet, tuple, context, flows.secret(), &mut last),
                    None => parse(packet).and_then(|tuple| {
                        classify(packet, tuple, context, flows.secret(), &mut last)
                    }),
                };
                if let Err(reason) = known {
                    packet.forget();
                    end(packet, reason, pool, stats);
                }
            }
            prefetch(batch, context.flows);
            for packet in batch.in_flight() {
                if let Err(reason) = forward(packet, conntrack, context, macs, outbox) {
                    end(packet, reason, pool, stats);
                }
            }
            transmit(batch, ports, pool, stats);
            stats.batches.add(1);
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
        self.pool.len() + with_kernel as usize
    }
}

/// From the flow to the headers that the packet leaves with.
#[inline(always)]
pub(super) fn forward(
    packet: &mut Packet,
    conntrack: &mut Conntrack,
    context: &Context<'_>,
    macs: &Macs,
    outbox: &mut Outbox,
) -> Result<(), Drop> {
    let Way::ToClient(source) = packet.way else {
        let backend = match conntrack.track(packet, context) {
            Ok(backend) => backend,
            Err(Untracked::Miss(miss)) => select(packet, miss, conntrack, context)?,
            Err(Untracked::Cut(cut)) => return Err(outbox.answer(packet, &cut)),
        };
        return rewrite_to_backend(packet, backend, macs);
    };
    match conntrack.track_reply(packet, source, context) {
        Some(Reply::To(hop)) => rewrite_to_client(packet, &hop, macs),
        Some(Reply::Cut(cut)) => Err(outbox.answer(packet, &cut)),
        None => Err(Drop::ReturnNoFlow),
    }
}
