//! Errors that prevent a replay.

use crate::control::error::Full;
use crate::flow::table::TableError;
use crate::xdp::memory::MappingError;
use crate::xdp::socket::SocketError;
use crate::xdp::umem::UmemError;

/// Reason why a replay cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The configuration exceeds the capacity of the forwarding table.
    #[error(transparent)]
    Full(#[from] Full),
    /// No memory for the flow table.
    #[error("[workers] flows: {0}")]
    Flows(#[from] TableError),
    /// No memory for the SNAT table.
    #[error("[full_nat] sources: {0}")]
    SnatTable(#[from] MappingError),
    /// No packet memory.
    #[error("[workers]: {0}")]
    Umem(#[from] UmemError),
    /// The fake NIC could not be created.
    #[error(transparent)]
    Nic(#[from] SocketError),
    /// A bug: the worker could not take the flow table.
    #[error("the worker could not be made: its flow table is in use")]
    Worker,
}
