//! Per-batch context passed to every stage, and the environment that a worker builds it from.

use std::cell::Cell;
use std::sync::Arc;

use crate::flow::shared::SharedTables;
use crate::flow::table::{FlowTable, FlowView};
use crate::forwarding::ForwardingTable;
use crate::forwarding::explain::Trace;
use crate::forwarding::publish::Subscription;
use crate::net::NicIndex;
use crate::stats::WorkerStats;
use crate::units::Ticks;

/// MAC addresses of the NICs, by [`NicIndex`].
pub type Macs = [[u8; 6]];

/// Tables, addresses, clock and counters that stages read. Stages write packets, atomics and
/// [`Resources`](super::resources::Resources).
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The forwarding table of this poll.
    pub table: &'a ForwardingTable,
    /// This worker's flow table.
    pub flows: FlowView<'a>,
    /// The tables that all workers share.
    pub shared: &'a SharedTables,
    /// MAC addresses of all NICs.
    pub macs: &'a Macs,
    /// Identifications of this worker's IPv4 packets that may be fragmented.
    pub identification: &'a Identification,
    /// Index of this worker.
    pub worker: u8,
    /// The NIC that the batch came from.
    pub nic: NicIndex,
    /// Time of the poll, in ticks of 10 ms.
    pub now: Ticks,
    /// The worker's counters.
    pub stats: &'a WorkerStats,
    /// Recorder of reasons, for an explanation or a replay.
    pub trace: Option<&'a Trace>,
}

/// Tables and counters of a worker, from which its contexts are built.
pub struct Environment {
    /// The forwarding tables.
    pub tables: Subscription,
    /// This worker's flow table.
    pub flows: Arc<FlowTable>,
    /// The tables that all workers share.
    pub shared: Arc<SharedTables>,
    /// Identifications of this worker's IPv4 packets that may be fragmented.
    pub identification: Identification,
    /// The worker's counters.
    pub stats: Arc<WorkerStats>,
    /// Index of the worker.
    pub worker: u8,
}

impl Environment {
    /// Returns the context of a poll, with the newest forwarding table and the first NIC. Each
    /// batch sets its own NIC.
    #[inline(always)]
    pub fn context<'a>(&'a mut self, now: Ticks, trace: Option<&'a Trace>) -> Context<'a> {
        let table = self.tables.current();
        Context {
            table,
            flows: self.flows.view(),
            shared: &self.shared,
            macs: &table.local().macs,
            identification: &self.identification,
            worker: self.worker,
            nic: NicIndex(0),
            now,
            stats: &self.stats,
            trace,
        }
    }
}

/// Counter of IPv4 identifications: a number is reused after 65,536 packets (RFC 6864 4.3).
#[derive(Debug)]
pub struct Identification(Cell<u16>);

impl Identification {
    /// Creates the counter of a worker. No two workers start at the same number.
    pub fn of(worker: u8) -> Self {
        Self(Cell::new(u16::from(worker) << 8))
    }

    /// Returns the next identification.
    #[inline]
    pub fn next(&self) -> u16 {
        let next = self.0.get().wrapping_add(1);
        self.0.set(next);
        next
    }
}
