//! The pins of one VIP in simulated time, and the pool that its scheduler queries.

use crate::forwarding::ForwardingTable;
use crate::forwarding::scheduler::Pool;
use crate::forwarding::table::Vip;
use crate::net::{BackendIndex, VipId};

/// Index of a slot without a flow: greater than any backend index.
const NOBODY: BackendIndex = BackendIndex(u16::MAX);

/// All flows of a VIP, each with its backend.
///
/// A slot holds one flow; a new flow takes the slot of one that ended. Each worker has every n-th
/// slot: slots become free in no order, so each worker gets a random sample of the flows, as from
/// RSS.
pub struct World<'t> {
    table: &'t ForwardingTable,
    vip: Option<&'t Vip>,
    /// Backend of each slot's flow.
    pins: Vec<BackendIndex>,
    workers: Vec<Worker>,
}

/// Counts of a worker.
#[derive(Debug, Clone, Default)]
struct Worker {
    number: u64,
    /// Flows per backend, by index.
    active: Vec<u64>,
    active_total: u64,
    /// Flows that the scheduler has placed.
    placed: u64,
}

/// Inputs of a worker's scheduler, as in the data path.
struct View<'w> {
    table: &'w ForwardingTable,
    worker: &'w Worker,
}

impl Pool for View<'_> {
    fn accepts(&mut self, backend: BackendIndex) -> bool {
        self.table.backend(backend).is_some_and(|backend| backend.takes_new)
    }

    fn active(&self, backend: BackendIndex) -> u64 {
        self.worker.of(backend)
    }

    fn active_total(&self) -> u64 {
        self.worker.active_total
    }

    fn turn(&self) -> u64 {
        self.worker.placed.wrapping_add(self.worker.number)
    }
}

impl Worker {
    /// Chooses a backend for a new flow.
    fn place(
        &mut self,
        hash: u64,
        table: &ForwardingTable,
        vip: Option<&Vip>,
    ) -> Option<BackendIndex> {
        let mut view = View { table, worker: self };
        let chosen = vip?.scheduler.scheduler().choose(hash, &mut view)?;
        self.placed = self.placed.wrapping_add(1);
        Some(chosen)
    }

    fn of(&self, backend: BackendIndex) -> u64 {
        self.active.get(usize::from(backend.0)).copied().unwrap_or_default()
    }

    fn begin(&mut self, backend: BackendIndex) {
        let index = usize::from(backend.0);
        if self.active.len() <= index {
            self.active.resize(index + 1, 0);
        }
        self.active.get_mut(index).into_iter().for_each(|active| *active += 1);
        self.active_total += 1;
    }

    fn end(&mut self, backend: BackendIndex) {
        if let Some(active) = self.active.get_mut(usize::from(backend.0)) {
            *active = active.saturating_sub(1);
            self.active_total = self.active_total.saturating_sub(1);
        }
    }
}

impl<'t> World<'t> {
    /// Creates a world without flows.
    pub fn new(table: &'t ForwardingTable, vip: VipId, slots: u32, workers: u32) -> Self {
        let worker = |number| Worker { number: u64::from(number), ..Worker::default() };
        Self {
            table,
            vip: table.vip(vip),
            pins: vec![NOBODY; slots as usize],
            workers: (0..workers.max(1)).map(worker).collect(),
        }
    }

    /// Ends the flow in a slot, if there is one, and opens another; returns the new flow's backend.
    pub fn open(&mut self, slot: u32, hash: u64) -> Option<BackendIndex> {
        let slot = slot as usize;
        let number = slot.checked_rem(self.workers.len())?;
        let (pin, worker) = (self.pins.get_mut(slot)?, self.workers.get_mut(number)?);
        worker.end(*pin);
        let chosen = worker.place(hash, self.table, self.vip);
        *pin = chosen.unwrap_or(NOBODY);
        chosen.into_iter().for_each(|backend| worker.begin(backend));
        chosen
    }

    /// Returns the world with the same flows under another table, and the number of flows that lost
    /// their backend.
    pub fn reload<'n>(&self, table: &'n ForwardingTable) -> (World<'n>, u64) {
        let vip = self.vip.and_then(|vip| table.vip(vip.id));
        let mut pins = self.pins.clone();
        let mut workers = self.workers.clone();
        let mut broken = 0;
        let count = workers.len();
        for (slot, pin) in pins.iter_mut().enumerate() {
            let id = self.table.backend(*pin).map(|backend| backend.id);
            if id.is_some_and(|id| table.pinned(id).is_none()) {
                broken += 1;
                let worker = slot.checked_rem(count).and_then(|number| workers.get_mut(number));
                worker.into_iter().for_each(|worker| worker.end(*pin));
                *pin = NOBODY;
            }
        }
        (World { table, vip, pins, workers }, broken)
    }

    /// Schedules the datagrams of every flow again, for a VIP without pins. `hashes` are those of
    /// the flows, by slot.
    pub fn place_again(&mut self, hashes: &[u64]) {
        for (slot, &hash) in (0..).zip(hashes) {
            self.open(slot, hash);
        }
    }

    /// Returns the number of flows of this world that would be on another backend if `changed`, the
    /// world after a change, had no pins. For each flow the scheduler chooses as for a new flow,
    /// with the loads of `changed`. `hashes` are those of the flows, by slot.
    pub fn elsewhere(&self, changed: &World<'_>, hashes: &[u64]) -> u64 {
        // Turns advance, loads do not: a packet without a pin changes no count.
        let mut workers = changed.workers.clone();
        let count = workers.len();
        let mut elsewhere = 0;
        for (slot, (pin, &hash)) in self.pins.iter().zip(hashes).enumerate() {
            let worker = slot.checked_rem(count).and_then(|number| workers.get_mut(number));
            let chosen = worker.and_then(|worker| worker.place(hash, changed.table, changed.vip));
            elsewhere += u64::from(*pin != NOBODY && chosen != Some(*pin));
        }
        elsewhere
    }

    /// Returns the number of flows that have a backend.
    pub fn flows(&self) -> u64 {
        self.workers.iter().map(|worker| worker.active_total).sum()
    }

    /// Returns the flows per weight of the fullest backend, relative to the mean over all that take
    /// new flows; 0 if there is no such backend, or no flow.
    pub fn max_over_mean(&self) -> f64 {
        let (mut most, mut flows, mut weights) = (0.0_f64, 0, 0);
        for candidate in self.vip.map_or(&[][..], |vip| vip.scheduler.candidates()) {
            if self.table.backend(candidate.backend).is_some_and(|backend| backend.takes_new) {
                let active: u64 =
                    self.workers.iter().map(|worker| worker.of(candidate.backend)).sum();
                most = most.max(active as f64 / f64::from(candidate.weight));
                flows += active;
                weights += u64::from(candidate.weight);
            }
        }
        if flows == 0 { 0.0 } else { most * weights as f64 / flows as f64 }
    }
}
