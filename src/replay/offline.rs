//! The worker on fake rings: one packet of one NIC per poll, and a clock that the capture advances.

use std::sync::Arc;

use super::decision::Sent;
use super::error::ReplayError;
use crate::datapath::queues::WorkerQueue;
use crate::datapath::worker::{Parts, Worker};
use crate::flow::shared::{SharedTables, TableSizes};
use crate::flow::table::{Families, FlowTable};
use crate::forwarding::ForwardingTable;
use crate::forwarding::explain::Trace;
use crate::forwarding::publish::Publisher;
use crate::net::{NicIndex, TableSecret};
use crate::stats::WorkerStats;
use crate::units::Ticks;
use crate::xdp::fake::FakeNic;
use crate::xdp::socket::Io;
use crate::xdp::umem::Umem;

/// Slots of each ring: more than a worker sends in one poll.
const RING: u32 = 256;
/// Steps in which the clock crosses a gap between packets. The sweep completes its work at each
/// step.
const STEPS: u32 = 64;
/// Seed of the flow table's hash; the slots of flows do not affect the result.
const SEED: u64 = 1;

/// Components and sizes of an offline worker.
pub(super) struct Blueprint {
    /// The forwarding table.
    pub(super) table: ForwardingTable,
    /// NICs: whether each delivers packets that are longer than a frame.
    pub(super) nics: Vec<bool>,
    /// Counters, with room for every VIP, backend and NIC.
    pub(super) stats: Arc<WorkerStats>,
    /// Capacity of the flow table.
    pub(super) flows: u32,
    /// Address families of the flow table.
    pub(super) families: Families,
    /// Address families of the VIPs with `syn_proxy`.
    pub(super) spliced: Families,
    /// Sizes of the other tables.
    pub(super) sizes: TableSizes,
    /// Maximum number of parked fragments.
    pub(super) parked: usize,
    /// Bytes per frame.
    pub(super) frame_size: u32,
}

/// A worker and its NICs.
pub(super) struct Offline {
    worker: Worker,
    /// NICs, each with whether it delivers packets that are longer than a frame.
    nics: Vec<(FakeNic, bool)>,
    stats: Arc<WorkerStats>,
    now: Ticks,
    /// Keeps the forwarding table alive.
    _publisher: Publisher,
}

impl Offline {
    pub(super) fn new(blueprint: Blueprint) -> Result<Self, ReplayError> {
        let Blueprint { table, nics: plans, stats, flows, families, .. } = blueprint;
        let Blueprint { spliced, sizes, parked, frame_size, .. } = blueprint;
        let (publisher, tables) = Publisher::new(table);
        let secret = TableSecret::new(SEED);
        let flows: Arc<[Arc<FlowTable>]> =
            Arc::from([Arc::new(FlowTable::new(flows, secret.clone(), families)?)]);
        let shared = SharedTables::new(flows, &secret, sizes)?;
        shared.splices.populate(spliced)?;
        // Fill ring, TX ring, and the frames that the worker holds.
        let waiting = u32::try_from(parked).unwrap_or(0);
        let frames = u32::try_from(plans.len()).unwrap_or(1) * 3 * RING + RING + waiting;
        let (umem, pool) = Umem::create(frames, frame_size)?;
        let (mut queues, mut nics) = (Vec::new(), Vec::new());
        for (index, multi_buffer) in (0..).zip(plans) {
            let (xsk, nic) = FakeNic::with(&umem, RING, Io { multi_buffer, ..Io::default() })?;
            queues.push(WorkerQueue::new(NicIndex(index), xsk));
            nics.push((nic, multi_buffer));
        }
        let now = Ticks(0);
        let parts = Parts {
            queues,
            pool,
            shared,
            parked,
            index: 0,
            tables,
            stats: Arc::clone(&stats),
            // One packet per poll, so that the counter changes of a poll belong to one packet.
            batch: 1,
        };
        let worker = Worker::new(parts, now).ok_or(ReplayError::Worker)?;
        Ok(Self { worker, nics, stats, now, _publisher: publisher })
    }

    /// Returns the worker's counters.
    pub(super) fn stats(&self) -> &WorkerStats {
        &self.stats
    }

    /// Returns the number of frames that the worker owns, in its rings too.
    pub(super) fn frames(&self) -> usize {
        self.worker.frames()
    }

    /// Returns the worker's time.
    pub(super) fn now(&self) -> Ticks {
        self.now
    }

    /// Advances the time to `now`, as for a worker without packets; returns the frames it sent.
    pub(super) fn advance(&mut self, now: Ticks, trace: &Trace) -> Vec<Sent> {
        let mut sent = Vec::new();
        let gap = now.since(self.now).0;
        let step = gap.div_ceil(STEPS).max(1);
        let mut left = gap;
        while left > 0 {
            let ticks = step.min(left);
            left -= ticks;
            self.now = self.now.after(Ticks(ticks));
            loop {
                self.worker.poll_traced(self.now, 0, trace);
                sent.extend(self.collect());
                if !self.worker.is_behind() {
                    break;
                }
            }
        }
        sent
    }

    /// Passes a packet to the worker; returns the frames it sent. `None` if the NIC cannot deliver
    /// the packet: it is longer than a frame, and the NIC's MTU does not require multi-buffer.
    pub(super) fn packet(
        &mut self,
        nic: NicIndex,
        packet: &[u8],
        trace: &Trace,
    ) -> Option<Vec<Sent>> {
        let queue = usize::from(nic.0);
        let (nic, multi_buffer) = self.nics.get_mut(queue)?;
        let arrived = if *multi_buffer && packet.len() <= usize::from(u16::MAX) {
            nic.deliver_long(packet)
        } else {
            nic.deliver(packet)
        };
        if !arrived {
            return None;
        }
        // A packet of several frames needs one poll per frame.
        for _ in 0..RING {
            if self.worker.poll_traced(self.now, queue, trace) > 0 {
                break;
            }
        }
        Some(self.collect())
    }

    /// Polls without a new packet; returns the frames sent for a fragment of this NIC that is no
    /// longer parked.
    pub(super) fn poll(&mut self, nic: NicIndex, trace: &Trace) -> Vec<Sent> {
        self.worker.poll_traced(self.now, nic.0.into(), trace);
        self.collect()
    }

    fn collect(&mut self) -> Vec<Sent> {
        let mut sent = Vec::new();
        for (index, (nic, _)) in (0..).zip(&mut self.nics) {
            nic.collect(|bytes| sent.push(Sent { nic: NicIndex(index), bytes: bytes.to_vec() }));
        }
        sent
    }
}
