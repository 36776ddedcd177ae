//! A worker of the generator: one thread, with one queue of each NIC, which plays clients and
//! backends at once.
//!
//! After its start it neither allocates nor locks, and makes no system call except for ring
//! wake-ups and reading the clock (vDSO).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arrayvec::ArrayVec;

use super::client::Client;
use super::judge::Judge;
use super::pace::Pacer;
use super::packet::Template;
use super::signature::Signature;
use super::tuple::Clients;
use crate::xdp::cpu;
use crate::xdp::queue::XskQueue;
use crate::xdp::umem::chain::MAX_FRAMES;
use crate::xdp::umem::{Frame, FramePool};

/// Most packets that are sent or received together.
pub const BATCH: u32 = 64;
/// Time after the end of a trial in which packets that were due before it may still be sent, in ns.
const GRACE_NS: u64 = 500_000_000;
/// Time without arrivals that ends a trial, after its last packet, in ns.
const QUIET_NS: u64 = 100_000_000;
/// Longest wait for late arrivals after the end of a trial, in ns.
const PATIENCE_NS: u64 = 1_000_000_000;

/// Plan of one trial for one worker. Times are in ns since the generator's start.
#[derive(Debug, Clone)]
pub struct Trial {
    /// Number of the trial.
    pub run: u16,
    /// Time of the first packet.
    pub start: u64,
    /// End: no packet is due later.
    pub end: u64,
    /// Schedule of packets.
    pub pacer: Pacer,
    /// Schedule of flow replacements.
    pub renewals: Pacer,
    /// Whether flows are only closed.
    pub closing: bool,
}

/// Counters of a running worker, for other threads.
#[derive(Debug, Default)]
pub struct Live {
    /// Packets sent.
    pub sent: AtomicU64,
    /// Packets that arrived at backends.
    pub received: AtomicU64,
    /// Affinity violations.
    pub violations: AtomicU64,
}

impl Live {
    /// Resets the counters before a trial.
    pub fn reset(&self) {
        // Relaxed: numbers for people.
        self.sent.store(0, Ordering::Relaxed);
        self.received.store(0, Ordering::Relaxed);
        self.violations.store(0, Ordering::Relaxed);
    }
}

/// Counts of the sending side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SentCounts {
    /// Packets sent by clients.
    pub packets: u64,
    /// Bytes sent by clients, without FCS.
    pub bytes: u64,
    /// Replies sent by backends.
    pub replies: u64,
    /// Replies for which the TX ring had no room.
    pub replies_dropped: u64,
    /// Longest delay of a packet by the generator's own fault, in ns.
    pub behind_ns: u64,
    /// Time after the trial's end at which the worker gave up sending the packets due before it, in
    /// ns; 0 if it sent all of them.
    pub overrun_ns: u64,
}

/// Components of a worker.
pub struct Parts {
    /// Queue of the client-side NIC.
    pub client_queue: XskQueue,
    /// Queue of the backend-side NIC, if it is a different one.
    pub backend_queue: Option<XskQueue>,
    /// Entries of a TX ring.
    pub ring: u32,
    /// Frames of the longest packet.
    pub frames_each: u32,
    /// Free frames.
    pub pool: FramePool,
    /// Packet templates by size, in the order in which they are sent.
    pub templates: Arc<[Template]>,
    /// Addresses and ports of the clients.
    pub clients: Clients,
    /// Client side, which chooses the packets to send.
    pub client: Client,
    /// Receiving side, which evaluates arriving packets.
    pub judge: Judge,
    /// Start of the generator on the monotonic clock, in ns.
    pub epoch_ns: u64,
}

/// One worker.
pub struct Worker {
    parts: Parts,
    next_template: usize,
    /// Counts of the current trial.
    sent: SentCounts,
}

impl Worker {
    /// Creates a worker and fills its fill rings.
    pub fn new(parts: Parts) -> Self {
        let mut worker = Self { parts, next_template: 0, sent: SentCounts::default() };
        worker.refill();
        worker
    }

    /// Returns the packets that the kernel has dropped so far for want of a free frame or of room
    /// in the RX rings; 0 where the kernel has no such statistics.
    pub fn receiver_dropped(&self) -> u64 {
        let ports = [Some(self.client_queue()), self.backend_queue()];
        let statistics = ports.into_iter().flatten().flat_map(XskQueue::statistics);
        statistics.map(|socket| socket.rx_dropped + socket.rx_ring_full).sum()
    }

    /// Returns the client-side queue.
    pub fn client_queue(&self) -> &XskQueue {
        &self.parts.client_queue
    }

    /// Returns the backend-side queue, if there is one.
    pub fn backend_queue(&self) -> Option<&XskQueue> {
        self.parts.backend_queue.as_ref()
    }

    /// Returns the receiving side, with the counts of the current trial.
    pub fn judge(&self) -> &Judge {
        &self.parts.judge
    }

    /// Returns the client side, with the counts of the current trial.
    pub fn client(&self) -> &Client {
        &self.parts.client
    }

    /// Returns the counts of the sending side in the current trial.
    pub fn sent(&self) -> &SentCounts {
        &self.sent
    }

    /// Runs a trial to its end, and until nothing arrives any more. Setting `stop` ends it early.
    pub fn run(&mut self, trial: &Trial, live: &Live, stop: &AtomicBool) {
        self.begin(trial);
        let mut pacer = trial.pacer.clone();
        let mut last_arrival = self.now();
        let mut end = trial.end;
        loop {
            let arrived = self.receive();
            let now = self.now();
            if arrived > 0 {
                last_arrival = now;
            }
            // Relaxed: the flag publishes nothing else.
            if now < end && (stop.load(Ordering::Relaxed) || self.has_closed(trial)) {
                end = now;
            }
            if now < end {
                self.send(now, &mut pacer, trial.run);
            } else if end == trial.end && now < end + GRACE_NS && !pacer.is_finished(end) {
                // Only the packets that are due at the end.
                self.sent.behind_ns = self.sent.behind_ns.max(pacer.behind(now));
                self.send(end - 1, &mut pacer, trial.run);
                self.sent.overrun_ns = if pacer.is_finished(end) { 0 } else { now - end };
                last_arrival = now;
            } else if self.is_over(now, end, last_arrival) {
                break;
            }
            self.flush();
            self.publish(live);
        }
        self.publish(live);
    }

    fn begin(&mut self, trial: &Trial) {
        // Packets left in the rings belong to an earlier trial.
        self.receive();
        self.parts.judge.begin(trial.run);
        self.parts.client.begin(trial.renewals.clone());
        self.sent = SentCounts::default();
        if trial.closing {
            self.parts.client.close();
        }
    }

    fn has_closed(&self, trial: &Trial) -> bool {
        trial.closing && self.parts.client.is_closed()
    }

    fn is_over(&self, now: u64, end: u64, last_arrival: u64) -> bool {
        let quiet = now.saturating_sub(last_arrival.max(end)) > QUIET_NS;
        let outstanding = self.parts.client_queue.outstanding();
        quiet && outstanding == 0 || now.saturating_sub(end) > PATIENCE_NS
    }

    #[inline]
    fn now(&self) -> u64 {
        cpu::monotonic_ns().saturating_sub(self.parts.epoch_ns)
    }

    /// Sends the packets that are due, at most a batch.
    #[inline]
    fn send(&mut self, now: u64, pacer: &mut Pacer, run: u16) {
        let parts = &mut self.parts;
        parts.client_queue.reclaim(&mut parts.pool);
        let room = parts.ring.saturating_sub(parts.client_queue.outstanding());
        let due = pacer.due(now, (room / parts.frames_each.max(1)).min(BATCH));
        for _ in 0..due {
            if !self.send_one(now, pacer, run) {
                break;
            }
        }
        self.sent.behind_ns = self.sent.behind_ns.max(pacer.behind(now));
    }

    /// Sends one packet. Returns false if there is no free frame.
    #[inline]
    fn send_one(&mut self, now: u64, pacer: &mut Pacer, run: u16) -> bool {
        let parts = &mut self.parts;
        let Some(template) = parts.templates.get(self.next_template) else { return false };
        if parts.pool.len() < parts.frames_each as usize {
            return false;
        }
        let time = pacer.take(now);
        let Some(outgoing) = parts.client.next(now, template.payload_len()) else { return true };
        let Some(mut packet) = parts.pool.copy(template.bytes()) else { return false };
        let signature = Signature { flow: outgoing.flow, sequence: outgoing.sequence, run, time };
        let source = parts.clients.source(outgoing.flow);
        template.write(packet.data_mut(), source, outgoing.segment, &signature);
        self.next_template =
            if self.next_template + 1 < parts.templates.len() { self.next_template + 1 } else { 0 };
        match parts.client_queue.transmit(packet) {
            Ok(()) => {
                self.sent.packets += 1;
                self.sent.bytes += template.len() as u64;
                true
            }
            // Never, since there was room; such a packet counts as not sent.
            Err(packet) => {
                parts.pool.push(packet);
                false
            }
        }
    }

    /// Takes the packets that have arrived on both NICs, and replies to them. Returns their number.
    #[inline]
    fn receive(&mut self) -> usize {
        let epoch_ns = self.parts.epoch_ns;
        let Parts { client_queue, backend_queue, judge, pool, ring, frames_each, .. } =
            &mut self.parts;
        let mut arrived = 0;
        for port in [Some(client_queue), backend_queue.as_mut()].into_iter().flatten() {
            // As many packets as are sent in between, each of which may have several frames.
            for _ in 0..*frames_each {
                let mut packets = ArrayVec::<Frame, { BATCH as usize }>::new();
                port.receive(BATCH as usize, |packet| packets.push(packet));
                if packets.is_empty() {
                    break;
                }
                arrived += packets.len();
                let now = cpu::monotonic_ns().saturating_sub(epoch_ns);
                answer(port, *ring, packets, judge, pool, &mut self.sent, now);
            }
            port.refill(pool);
        }
        arrived
    }

    fn refill(&mut self) {
        let Parts { client_queue, backend_queue, pool, .. } = &mut self.parts;
        client_queue.refill(pool);
        if let Some(port) = backend_queue {
            port.refill(pool);
        }
    }

    #[inline]
    fn flush(&mut self) {
        let Parts { client_queue, backend_queue, pool, .. } = &mut self.parts;
        client_queue.flush();
        client_queue.reclaim(pool);
        if let Some(port) = backend_queue {
            port.flush();
            port.reclaim(pool);
        }
    }

    #[inline]
    fn publish(&self, live: &Live) {
        let received = self.parts.judge.requests.counts();
        // Relaxed: three numbers for people.
        live.sent.store(self.sent.packets, Ordering::Relaxed);
        live.received.store(received.received, Ordering::Relaxed);
        live.violations.store(received.violations, Ordering::Relaxed);
    }
}

/// Passes packets to the judge, and sends those that have become replies.
#[inline]
fn answer(
    port: &mut XskQueue,
    ring: u32,
    packets: ArrayVec<Frame, { BATCH as usize }>,
    judge: &mut Judge,
    pool: &mut FramePool,
    sent: &mut SentCounts,
    now: u64,
) {
    for mut packet in packets {
        let len = usize::from(packet.packet_len());
        if !packet.is_whole() || !judge.arrive(packet.data_mut(), len, now) {
            pool.push(packet);
            continue;
        }
        if port.outstanding() + MAX_FRAMES > ring {
            port.flush();
            port.reclaim(pool);
        }
        match port.transmit(packet) {
            Ok(()) => sent.replies += 1,
            Err(packet) => {
                sent.replies_dropped += 1;
                pool.push(packet);
            }
        }
    }
}
