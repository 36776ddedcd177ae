//! A worker: one thread on one core, which runs packets from its NIC queues to completion.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::batch::{BATCH, Batch, Way};
use super::classify::{LastVip, classify};
use super::conntrack::{Conntrack, prefetch};
use super::context::{Context, Identification};
use super::detour::{Hands, detour};
use super::forward::forward;
use super::fragments::{Fragments, Look};
use super::icmp;
use super::limiter::Limiter;
use super::parse::{Parsed, parse, parse_plain};
use super::ports::{Ports, WorkerPort};
use super::receive::receive;
use super::reset::Outbox;
use super::transmit::{end, transmit};
use crate::flow::bindings::{Bindings, Leases};
use crate::flow::clients::Clients;
use crate::flow::fragments::Datagrams;
use crate::flow::path_mtus::PathMtus;
use crate::flow::return_hops::ReturnHops;
use crate::flow::table::FlowTable;
use crate::forwarding::explain::Trace;
use crate::forwarding::publish::Subscription;
use crate::net::{HashedKey, NicIndex};
use crate::stats::WorkerStats;
use crate::units::Ticks;
use crate::xdp::cpu;
use crate::xdp::port::wait;
use crate::xdp::umem::FramePool;

/// Polls without a packet after which a worker that may sleep does.
const IDLE_POLLS: u32 = 64;
/// Longest sleep: bounds how late the sweep, and a stop, may be.
const SLEEP_MS: u32 = 100;

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
    /// The datagrams of all workers that come in fragments.
    pub datagrams: Arc<Datagrams>,
    /// Most fragments that it parks.
    pub parked: usize,
    /// The full-NAT sources of all workers.
    pub bindings: Arc<Bindings>,
    /// Where the clients of VIPs without pins are, by all workers.
    pub return_hops: Arc<ReturnHops>,
    /// What was learnt of the paths to tunnels' ends, by all workers.
    pub paths: Arc<PathMtus>,
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
    datagrams: Arc<Datagrams>,
    fragments: Fragments,
    bindings: Arc<Bindings>,
    return_hops: Arc<ReturnHops>,
    paths: Arc<PathMtus>,
    identification: Identification,
    tables: Subscription,
    stats: Arc<WorkerStats>,
    batch: Batch,
    outbox: Outbox,
    limiter: Limiter,
    max_batch: usize,
    /// The sweep of the flow table is behind: no time to sleep.
    sweep_behind: bool,
}

impl Worker {
    /// Makes a worker and fills its fill rings.
    ///
    /// `None` if `flows` has no table for `index`, or another worker writes that table.
    pub fn new(parts: Parts, now: Ticks) -> Option<Self> {
        let own = parts.flows.get(usize::from(parts.index))?;
        let leases = Leases::new(Arc::clone(&parts.bindings), parts.index, own.secret());
        let mut worker = Self {
            flows: Arc::clone(parts.flows.get(usize::from(parts.index))?),
            conntrack: Conntrack::new(parts.flows, leases, parts.index, now)?,
            clients: parts.clients,
            datagrams: parts.datagrams,
            fragments: Fragments::new(parts.parked),
            bindings: parts.bindings,
            return_hops: parts.return_hops,
            paths: parts.paths,
            identification: Identification::of(parts.index),
            ports: Ports::new(parts.ports),
            pool: parts.pool,
            macs: parts.macs,
            tables: parts.tables,
            stats: parts.stats,
            batch: Batch::default(),
            outbox: Outbox::default(),
            limiter: Limiter::default(),
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
        self.poll_with(now, 0..self.ports.ports.len(), None)
    }

    /// As [`poll`](Self::poll), but from the port number `port` only, and the places that decide something
    /// tell `trace` why. With batches of one that is one packet at most.
    pub fn poll_traced(&mut self, now: Ticks, port: usize, trace: &Trace) -> usize {
        self.poll_with(now, port..port + 1, Some(trace))
    }

    /// Compiled twice, so that a worker to whom nobody listens does not even ask.
    #[inline(always)]
    fn poll_with(&mut self, now: Ticks, ports: Range<usize>, trace: Option<&Trace>) -> usize {
        let mut packets = 0;
        let look = Look { datagrams: &self.datagrams, now, stats: &self.stats, trace };
        self.fragments.look(&look, &mut self.pool);
        for port in &mut self.ports.ports {
            port.port.reclaim(&mut self.pool);
        }
        for index in ports {
            packets += self.poll_port(index, now, trace);
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
            datagrams: &self.datagrams,
            bindings: &self.bindings,
            return_hops: &self.return_hops,
            paths: &self.paths,
            identification: &self.identification,
            nic: NicIndex(0),
            now,
            stats: &self.stats,
            trace: None,
        };
        self.sweep_behind = self.conntrack.sweep(context, &mut self.outbox);
        packets
    }

    /// The packet's way, stage by stage. Each pass asks for the memory that the next one will need, of
    /// all packets, before that one begins.
    #[inline(always)]
    fn poll_port(&mut self, index: usize, now: Ticks, trace: Option<&Trace>) -> usize {
        let Self {
            ports,
            pool,
            macs,
            conntrack,
            tables,
            flows,
            clients,
            datagrams,
            fragments,
            bindings,
            return_hops,
            paths,
            identification,
            stats,
            batch,
            outbox,
            limiter,
            ..
        } = self;
        let Some(port) = ports.ports.get_mut(index) else { return 0 };
        let look = &Look { datagrams, now, stats, trace };
        receive(batch, port, fragments, look, self.max_batch);
        let packets = batch.len();
        if packets > 0 {
            let table = tables.current();
            let (flows_view, nic) = (flows.view(), port.nic);
            let context = &Context {
                table,
                flows: flows_view,
                clients,
                datagrams,
                bindings,
                return_hops,
                paths,
                identification,
                nic,
                now,
                stats,
                trace,
            };
            let mut last = LastVip::NONE;
            for packet in batch.in_flight() {
                // Twice the same, so that it is compiled for the plainest packets by itself.
                let known = match parse_plain(packet) {
                    Some(tuple) => classify(packet, tuple, context, flows.secret(), &mut last),
                    None => parse(packet).and_then(|parsed| match parsed {
                        Parsed::Flow(tuple) => {
                            classify(packet, tuple, context, flows.secret(), &mut last)
                        }
                        Parsed::Icmp(message) => {
                            icmp::classify(packet, &message, context, flows.secret(), macs, pool)
                        }
                        Parsed::Fragment(_) => {
                            // Its flow is that of its first one, which may be in this batch.
                            packet.way = Way::Fragment;
                            packet.flow = HashedKey::NONE;
                            Ok(())
                        }
                    }),
                };
                if let Err(reason) = known {
                    packet.forget();
                    end(packet, reason, pool, stats);
                }
            }
            prefetch(batch, context.flows);
            for packet in batch.in_flight() {
                if let Err(unsent) = forward(packet, conntrack, context, macs, outbox) {
                    let hands = &mut Hands { conntrack, fragments, outbox, limiter, pool, macs };
                    detour(packet, unsent, hands, context);
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
            if may_sleep && idle > IDLE_POLLS && !self.sweep_behind && self.fragments.is_empty() {
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

    /// Whether the sweep of the flow table has more to do at this time: poll again.
    pub fn is_behind(&self) -> bool {
        self.sweep_behind
    }

    /// Frames that this worker holds, here and in the kernel's rings: a constant.
    pub fn frames(&self) -> usize {
        let with_kernel: u32 = self.ports.ports.iter().map(|port| port.port.with_kernel()).sum();
        self.pool.len() + with_kernel as usize + self.fragments.frames(&self.pool)
    }
}
