//! The tables of a process: those of the earlier one in place, imported, or new.

use std::sync::Arc;

use super::directory::{Directory, flows_of};
use super::document::{Document, Facts};
use super::import::{Import, Loss, Old};
use crate::config::Config;
use crate::control::saved::{Moment, SavedRegistry};
use crate::control::state::Registry;
use crate::flow::memory::{Anonymous, TableMemory};
use crate::flow::qinq;
use crate::flow::shared::{SharedTables, TableSizes};
use crate::flow::table::{Families, FlowTable, TableError};
use crate::net::TableSecret;
use crate::xdp::memory::Pages;

/// The tables of this process, and the registry that their pins refer to.
pub struct Tables {
    /// The tables.
    pub shared: Arc<SharedTables>,
    /// The registry: that of the earlier process, or an empty one.
    pub registry: Registry,
    /// Number of the set of tables.
    pub set: u32,
    /// Whether an earlier process has left tables.
    pub continues: bool,
    /// Losses, for the operator.
    pub losses: Vec<Loss>,
}

/// Creator of a worker's flow table: runs the function on that worker's core, so that the memory
/// lies on its NUMA node.
pub type OnCore<'f> = &'f dyn Fn(
    usize,
    &(dyn Fn() -> Result<FlowTable, TableError> + Sync),
) -> Result<FlowTable, TableError>;

impl Facts {
    /// Returns the facts of a configuration.
    pub fn of(config: &Config) -> Self {
        let TableSizes { clients, datagrams, return_hops, .. } = config.table_sizes();
        let (first, last) = (*config.full_nat.ports.start(), *config.full_nat.ports.end());
        Self {
            workers: config.workers.cores.len(),
            flows: config.workers.flows,
            nics: config.nics.iter().map(|nic| nic.interface.clone()).collect(),
            snat: (config.full_nat.sources.clone(), first, last),
            clients,
            datagrams,
            return_hops,
        }
    }
}

/// Opens the tables of a process with this configuration. `seed` keys the hashes of new ones.
///
/// # Errors
/// When there is too little memory.
pub fn open(
    directory: Option<&Directory>,
    config: &Config,
    seed: u64,
    moment: &Moment,
    on_core: OnCore<'_>,
) -> Result<Tables, TableError> {
    let start = Start { config, moment, on_core };
    let Some(directory) = directory else {
        return start.new_set(&Anonymous, 0, seed, Vec::new());
    };
    let common = directory.common();
    qinq::share(&common)?;
    let mut losses: Vec<Loss> = common.refused();
    let found =
        directory.read().and_then(|bytes| bytes.as_deref().map(Document::of_bytes).transpose());
    match found {
        Ok(None) => start.new_set(&directory.set(1), 1, seed, losses),
        Ok(Some(document)) => {
            let next = document.set.wrapping_add(1);
            match start.registry(document.registry.clone()) {
                Some(registry) if document.facts == Facts::of(config) => {
                    start.in_place(directory, &document, registry, losses)
                }
                Some(registry) => start.imported(directory, &document, registry, losses),
                None => {
                    losses.push("the registry contradicts itself: no pin is used".to_owned());
                    start.new_set(&directory.set(next), next, seed, losses)
                }
            }
        }
        Err(reason) => {
            losses.push(format!("the registry cannot be used: {reason}; no pin is used"));
            start.new_set(&directory.set(1), 1, seed, losses)
        }
    }
}

/// Loss of the numbers of connections at VIPs with `syn_proxy`.
const NO_SPLICES: &str = "the splices of VIPs with syn_proxy are missing: no pin is used";

/// What the start of a process knows.
struct Start<'s> {
    config: &'s Config,
    moment: &'s Moment,
    on_core: OnCore<'s>,
}

impl Start<'_> {
    fn registry(&self, saved: SavedRegistry) -> Option<Registry> {
        Registry::restore(saved, self.config.full_nat.numbered(), self.moment)
    }

    fn families(&self) -> Families {
        self.config.families()
    }

    /// Makes new tables.
    fn new_set(
        &self,
        memory: &(impl TableMemory + Sync),
        set: u32,
        seed: u64,
        losses: Vec<Loss>,
    ) -> Result<Tables, TableError> {
        self.set(memory, set, seed, self.config.table_sizes(), losses)
    }

    /// Sizes of tables that get the pins of an earlier process.
    fn continued_sizes(&self) -> TableSizes {
        TableSizes { taken_over: true, ..self.config.table_sizes() }
    }

    fn set(
        &self,
        memory: &(impl TableMemory + Sync),
        set: u32,
        seed: u64,
        sizes: TableSizes,
        losses: Vec<Loss>,
    ) -> Result<Tables, TableError> {
        let secret = TableSecret::new(seed);
        let flows = self.flow_tables(|worker| self.new_flows(memory, worker, &secret))?;
        let shared = SharedTables::open(memory, flows, &secret, sizes)?;
        shared.splices.populate(self.config.spliced())?;
        let registry = Registry::new(self.config.full_nat.numbered());
        Ok(Tables { shared, registry, set, continues: false, losses })
    }

    /// Continues the set of the earlier process. A table that cannot be used is replaced by a new
    /// one.
    fn in_place(
        &self,
        directory: &Directory,
        document: &Document,
        registry: Registry,
        mut losses: Vec<Loss>,
    ) -> Result<Tables, TableError> {
        let memory = directory.set(document.set);
        let secret = TableSecret::new(document.seed);
        let flows = self.flow_tables(|worker| match memory.flows(worker, &secret) {
            Some(table) if table.capacity() as usize == self.config.workers.flows => {
                table.populate(self.families())?;
                Ok(table)
            }
            _ => self.new_flows(&memory, worker, &secret),
        })?;
        let shared = SharedTables::open(&memory, flows, &secret, self.continued_sizes())?;
        if document.registry.is_spliced() && !shared.splices.are_found() {
            losses.extend(memory.refused());
            losses.push(NO_SPLICES.to_owned());
            return self.next_set(directory, document, self.config.table_sizes(), losses);
        }
        shared.splices.populate(self.config.spliced().and(registry.spliced()))?;
        losses.extend(memory.refused());
        Ok(Tables { shared, registry, set: document.set, continues: true, losses })
    }

    /// Makes the set after that of the earlier process. The seed stays, so that clients with SYN
    /// cookies of that process are known.
    fn next_set(
        &self,
        directory: &Directory,
        document: &Document,
        sizes: TableSizes,
        losses: Vec<Loss>,
    ) -> Result<Tables, TableError> {
        let set = document.set.wrapping_add(1);
        // What a start that was killed half-way has left has the same seed.
        directory.keep_only(document.set);
        self.set(&directory.set(set), set, document.seed, sizes, losses)
    }

    /// Makes the next set, and imports the pins of the earlier process into it.
    fn imported(
        &self,
        directory: &Directory,
        document: &Document,
        mut registry: Registry,
        losses: Vec<Loss>,
    ) -> Result<Tables, TableError> {
        let mut tables = self.next_set(directory, document, self.continued_sizes(), losses)?;
        let memory = directory.set(document.set);
        let old = Old::open(&memory, document)?;
        tables.losses.extend(memory.refused());
        if document.registry.is_spliced() && !old.shared().splices.are_found() {
            tables.losses.push(NO_SPLICES.to_owned());
            return Ok(tables);
        }
        // Flows of a family without a VIP by now need memory, too.
        tables.shared.flows.iter().try_for_each(|table| table.populate(old.families()))?;
        for splices in [&old.shared().splices, &tables.shared.splices] {
            splices.populate(registry.spliced())?;
        }
        let facts = Facts::of(self.config);
        if facts.nics != document.facts.nics {
            // Their hops have the NICs' old numbers.
            registry.routers.clear();
        }
        let import = Import { old: &old, new: &tables.shared, facts: &facts };
        tables.losses.extend(import.run());
        Ok(Tables { registry, continues: true, ..tables })
    }

    fn flow_tables(
        &self,
        table: impl Fn(usize) -> Result<FlowTable, TableError>,
    ) -> Result<Arc<[Arc<FlowTable>]>, TableError> {
        (0..self.config.workers.cores.len()).map(|worker| Ok(Arc::new(table(worker)?))).collect()
    }

    fn new_flows(
        &self,
        memory: &(impl TableMemory + Sync),
        worker: usize,
        secret: &TableSecret,
    ) -> Result<FlowTable, TableError> {
        let capacity = u32::try_from(self.config.workers.flows).unwrap_or(u32::MAX);
        let families = self.families();
        (self.on_core)(worker, &|| {
            let on = |pages| {
                let arena = memory.fresh(&flows_of(worker), FlowTable::bytes(capacity), pages)?;
                FlowTable::create(arena, capacity, secret.clone(), families)
            };
            on(Pages::Pool).or_else(|_: TableError| on(Pages::Ordinary))
        })
    }
}
