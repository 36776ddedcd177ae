//! Why a replay cannot begin.

use crate::control::state::Full;
use crate::flow::table::TableError;
use crate::xdp::memory::MappingError;
use crate::xdp::socket::SocketError;
use crate::xdp::umem::UmemError;

/// Why nothing can be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// More than the forwarding table has room for.
    #[error(transparent)]
    Full(#[from] Full),
    /// No memory for the flow table.
    #[error("[workers] flows: {0}")]
    Flows(#[from] TableError),
    /// No memory for the sources of full-NAT flows.
    #[error("[full_nat] sources: {0}")]
    SnatTable(#[from] MappingError),
    /// No packet memory.
    #[error("[workers]: {0}")]
    Umem(#[from] UmemError),
    /// No fake NIC.
    #[error(transparent)]
    Nic(#[from] SocketError),
    /// A bug.
    #[error("the worker could not be made: its flow table is in use")]
    Worker,
}
