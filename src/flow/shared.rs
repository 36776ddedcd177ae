//! The tables that all workers share, created together and passed around behind one `Arc`.
//!
//! A new shared table is a file of its own and a field here; every worker, the explainer, the
//! replay and the control API have it then.

use std::sync::Arc;

use super::clients::{self, Clients};
use super::entry::Pin;
use super::fragments::FragmentTable;
use super::memory::{Anonymous, TableMemory};
use super::path_mtus::PathMtus;
use super::return_hops::ReturnHops;
use super::snat::{SnatAllocator, SnatPool, SnatTable};
use super::splices::Splices;
use super::table::{Families, FlowTable, TableError};
use super::writer::FlowWriter;
use crate::net::{HashedKey, TableSecret};
use crate::units::Ticks;

/// Sizes of the shared tables, besides those of the flow tables. The default suits tests.
#[derive(Debug, Clone)]
pub struct TableSizes {
    /// Maximum number of clients with remembered backends.
    pub clients: usize,
    /// Maximum number of fragmented datagrams that are known at a time.
    pub datagrams: usize,
    /// Time in which all fragments of a datagram must arrive.
    pub fragment_timeout: Ticks,
    /// Addresses and ports of full-NAT flows.
    pub sources: SnatPool,
    /// Maximum number of clients with known return hops, for VIPs without pins.
    pub return_hops: usize,
    /// Whether the pins are those of an earlier process.
    pub taken_over: bool,
}

impl Default for TableSizes {
    fn default() -> Self {
        Self {
            clients: 1024,
            datagrams: 64,
            fragment_timeout: Ticks(3000),
            sources: SnatPool::default(),
            return_hops: 64,
            taken_over: false,
        }
    }
}

/// The shared tables. Every worker reads each of them; the table's own module states which threads
/// write it.
#[derive(Debug)]
pub struct SharedTables {
    /// The flow tables, in the order of their workers.
    pub flows: Arc<[Arc<FlowTable>]>,
    /// Backends of clients, for VIPs that remember their clients.
    pub clients: Clients,
    /// Fragmented datagrams.
    pub fragments: FragmentTable,
    /// SNAT entries of full-NAT flows.
    pub snat_table: SnatTable,
    /// Numbers of connections at VIPs with `syn_proxy`.
    pub splices: Splices,
    /// Return hops of clients, for VIPs without pins.
    pub return_hops: ReturnHops,
    /// Learnt path MTUs of tunnels.
    pub path_mtus: PathMtus,
    /// Whether pins are those of an earlier process: the NIC may send their packets to other workers
    /// than it did then.
    pub taken_over: bool,
}

/// A pin, and the worker that has it.
#[derive(Debug, Clone, Copy)]
pub struct FoundPin {
    /// Index of the worker.
    pub worker: usize,
    /// The flow.
    pub key: HashedKey,
    /// The pin.
    pub pin: Pin,
}

impl SharedTables {
    /// Creates the shared tables of the workers that have these flow tables. `secret` keys their
    /// hashes.
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn new(
        flows: Arc<[Arc<FlowTable>]>,
        secret: &TableSecret,
        sizes: TableSizes,
    ) -> Result<Arc<Self>, TableError> {
        Self::open(&Anonymous, flows, secret, sizes)
    }

    /// Removes the large tables from the page tables of this process, for it will end.
    pub fn let_go(&self) {
        self.flows.iter().for_each(|flows| flows.let_go());
        self.snat_table.let_go();
        self.splices.let_go();
    }

    /// Takes over the tables that an earlier process has left in `memory`, as far as their sizes
    /// are these, and makes the others. `flows` are the flow tables of the same memory and secret.
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn open(
        memory: &dyn TableMemory,
        flows: Arc<[Arc<FlowTable>]>,
        secret: &TableSecret,
        sizes: TableSizes,
    ) -> Result<Arc<Self>, TableError> {
        let TableSizes { clients, datagrams, fragment_timeout, sources, return_hops, taken_over } =
            sizes;
        let workers = u8::try_from(flows.len()).unwrap_or(u8::MAX);
        let splices = Splices::open(memory, &flows, secret)?;
        Ok(Arc::new(Self {
            flows,
            splices,
            clients: Clients::open(memory, clients, secret)?,
            fragments: FragmentTable::open(memory, datagrams, fragment_timeout, secret)?,
            snat_table: SnatTable::open(memory, sources, workers, secret)?,
            return_hops: ReturnHops::open(memory, return_hops, secret)?,
            path_mtus: PathMtus::default(),
            taken_over,
        }))
    }

    /// Returns a copy for the explanation of one packet, with these pins, this client and the path
    /// MTUs, and the SNAT ports that `worker` may allocate there. Fragments, return hops and splices
    /// are not copied, as no explanation reads them.
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn scratch(
        &self,
        pins: &[FoundPin],
        client: &clients::Key,
        worker: u8,
    ) -> Result<(Self, SnatAllocator), TableError> {
        let used = pins.iter().filter_map(|found| found.pin.flow_state.snat_port());
        let (snat_table, snat_allocator) = self.snat_table.scratch(used, worker)?;
        let secret = self.flows.first().map_or(TableSecret::new(0), |flows| flows.secret().clone());
        let flows = self.scratch_flows(pins)?;
        let scratch = Self {
            splices: Splices::open(&Anonymous, &flows, &secret)?,
            flows,
            clients: self.clients.scratch(client)?,
            fragments: FragmentTable::open(&Anonymous, 0, Ticks(0), &secret)?,
            snat_table,
            return_hops: ReturnHops::open(&Anonymous, 1, &secret)?,
            path_mtus: self.path_mtus.scratch(),
            taken_over: self.taken_over,
        };
        Ok((scratch, snat_allocator))
    }

    /// Creates flow tables with these pins, one per worker.
    fn scratch_flows(&self, pins: &[FoundPin]) -> Result<Arc<[Arc<FlowTable>]>, TableError> {
        let capacity = u32::try_from(pins.len()).unwrap_or(u32::MAX / 4) * 2 + 64;
        let table = |(worker, flows): (usize, &Arc<FlowTable>)| {
            let secret = flows.secret().clone();
            let table = Arc::new(FlowTable::new(capacity, secret, Families::BOTH)?);
            if let Some(mut writer) = FlowWriter::new(Arc::clone(&table)) {
                for found in pins.iter().filter(|found| found.worker == worker) {
                    // It has room for all.
                    let _ = writer.insert(&found.key, &found.pin);
                }
            }
            Ok(table)
        };
        self.flows.iter().enumerate().map(table).collect()
    }
}
