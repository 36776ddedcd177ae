//! What the stages look around with.

use std::cell::Cell;

use crate::flow::bindings::Bindings;
use crate::flow::clients::Clients;
use crate::flow::fragments::Datagrams;
use crate::flow::path_mtus::PathMtus;
use crate::flow::return_hops::ReturnHops;
use crate::flow::table::FlowView;
use crate::forwarding::ForwardingTable;
use crate::forwarding::explain::Trace;
use crate::net::NicIndex;
use crate::stats::WorkerStats;
use crate::units::Ticks;

/// What a stage needs to look around: the forwarding table, the NIC, the clock, the counters.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The forwarding table of this batch.
    pub table: &'a ForwardingTable,
    /// This worker's flow table.
    pub flows: FlowView<'a>,
    /// The clients of all workers.
    pub clients: &'a Clients,
    /// The datagrams of all workers that come in fragments.
    pub datagrams: &'a Datagrams,
    /// The full-NAT sources of all workers.
    pub bindings: &'a Bindings,
    /// Where the clients of VIPs without pins are.
    pub return_hops: &'a ReturnHops,
    /// What was learnt of the paths to tunnels' ends.
    pub paths: &'a PathMtus,
    /// Of the worker's IPv4 packets that may be fragmented.
    pub identification: &'a Identification,
    /// The NIC that the batch came from.
    pub nic: NicIndex,
    /// Now.
    pub now: Ticks,
    /// The worker's counters.
    pub stats: &'a WorkerStats,
    /// To whom reasons are told, where somebody asks.
    pub trace: Option<&'a Trace>,
}

/// IPv4 identifications in turn: one is used again after 65,536 packets (RFC 6864 4.3).
#[derive(Debug)]
pub struct Identification(Cell<u16>);

impl Identification {
    /// Those of a worker: no two begin at one number.
    pub fn of(worker: u8) -> Self {
        Self(Cell::new(u16::from(worker) << 8))
    }

    /// The next one.
    #[inline]
    pub fn next(&self) -> u16 {
        let next = self.0.get().wrapping_add(1);
        self.0.set(next);
        next
    }
}
