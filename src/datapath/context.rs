//! What the stages look around with.

use crate::flow::clients::Clients;
use crate::flow::fragments::Datagrams;
use crate::flow::table::FlowView;
use crate::forwarding::explain::Trace;
use crate::forwarding::{ForwardingTable, PortIndex};
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
    /// The NIC that the batch came from.
    pub nic: PortIndex,
    /// Now.
    pub now: Ticks,
    /// The worker's counters.
    pub stats: &'a WorkerStats,
    /// To whom reasons are told, where somebody asks.
    pub trace: Option<&'a Trace>,
}
