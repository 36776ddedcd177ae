//! Import of the pins of an earlier process into tables of another shape: other workers, NICs, SNAT
//! sources or sizes.
//!
//! Pins with their splices, clients and SNAT entries are imported. Fragments in flight and the return hops of VIPs
//! without pins are not: their senders' next packets make them again.

use std::sync::Arc;

use super::directory::Set;
use super::document::{Document, Facts};
use crate::flow::entry::{ConntrackEntry, Pin, ReturnHop};
use crate::flow::memory::{Anonymous, TableMemory};
use crate::flow::shared::{SharedTables, TableSizes};
use crate::flow::snat::{SnatPool, SnatPort};
use crate::flow::splices::Place;
use crate::flow::table::{Families, FlowTable, Slot, TableError};
use crate::flow::writer::FlowWriter;
use crate::format::counted;
use crate::net::{FlowKey, HashedKey, NextHop, NicIndex, TableSecret};
use crate::units::Ticks;
use crate::xdp::memory::{Arena, MappingError, Pages};

/// State of the earlier process that cannot be used, in one sentence.
pub type Loss = String;

/// The tables of the earlier process.
pub(super) struct Old {
    shared: Arc<SharedTables>,
    facts: Facts,
}

/// Memory of the earlier process, to be read only: what is missing there is made elsewhere.
struct ReadOnly<'m>(&'m Set<'m>);

impl TableMemory for ReadOnly<'_> {
    fn found(&self, name: &str) -> Option<Arc<Arena>> {
        self.0.found(name)
    }

    fn fresh(&self, name: &str, bytes: usize, pages: Pages) -> Result<Arc<Arena>, MappingError> {
        Anonymous.fresh(name, bytes, pages)
    }

    fn refuse(&self, name: &str, error: &TableError) {
        self.0.refuse(name, error);
    }
}

impl Old {
    /// Opens the tables that `document` describes.
    ///
    /// # Errors
    /// When there is too little memory.
    pub(super) fn open(memory: &Set<'_>, document: &Document) -> Result<Self, TableError> {
        let Document { seed, facts, .. } = document;
        let secret = TableSecret::new(*seed);
        let flows = (0..facts.workers).filter_map(|worker| memory.flows(worker, &secret));
        let (addresses, first, last) = &facts.snat;
        let sizes = TableSizes {
            clients: facts.clients,
            datagrams: facts.datagrams,
            fragment_timeout: Ticks(0),
            sources: SnatPool::new(addresses.iter().copied(), &(*first..=*last)),
            return_hops: facts.return_hops,
            taken_over: true,
        };
        let flows = flows.map(Arc::new).collect();
        let shared = SharedTables::open(&ReadOnly(memory), flows, &secret, sizes)?;
        Ok(Self { shared, facts: facts.clone() })
    }
}

impl Old {
    /// The tables.
    pub(super) fn shared(&self) -> &SharedTables {
        &self.shared
    }

    /// Returns the address families of the pins.
    pub(super) fn families(&self) -> Families {
        let used = |family: usize| {
            let mut tables = self.shared.flows.iter();
            tables.any(|table| table.ever_used().get(family).is_some_and(|&used| used > 0))
        };
        Families { v4: used(0), v6: used(1) }
    }
}

/// An import.
pub(super) struct Import<'i> {
    pub(super) old: &'i Old,
    pub(super) new: &'i SharedTables,
    pub(super) facts: &'i Facts,
}

/// Numbers of what was not imported.
#[derive(Default)]
struct Lost {
    no_source: usize,
    no_room: usize,
    clients: usize,
}

impl Import<'_> {
    /// Imports everything; returns the losses.
    pub(super) fn run(&self) -> Vec<Loss> {
        let mut lost = Lost::default();
        // A new table has no other writer.
        let writers = self.new.flows.iter().map(|table| FlowWriter::new(Arc::clone(table)));
        let mut writers: Vec<FlowWriter> = writers.flatten().collect();
        for (worker, table) in self.old.shared.flows.iter().enumerate() {
            for position in 0..table.positions() {
                // An entry that its hash does not find was about to be removed, or is damaged.
                let entry = table.pin_at(position).filter(|entry| is_found(table, entry));
                if let Some(entry) = entry {
                    self.pin(&entry, worker, table, &mut writers, &mut lost);
                }
            }
        }
        let clients = &self.old.shared.clients;
        for (key, mapping) in (0..clients.positions()).filter_map(|at| clients.at(at)) {
            if !self.new.clients.restore(&key, &mapping) {
                lost.clients += 1;
            }
        }
        lost.in_words()
    }

    fn pin(
        &self,
        entry: &ConntrackEntry,
        worker: usize,
        from: &FlowTable,
        writers: &mut [FlowWriter],
        lost: &mut Lost,
    ) {
        let ConntrackEntry { key, pin } = *entry;
        let Some((owner, pin)) = self.placed(&pin, worker) else {
            lost.no_source += 1;
            return;
        };
        let Some(writer) = writers.get_mut(owner) else { return };
        let secret = self.new.flows.first().map_or(from.secret(), |table| table.secret());
        let hashed: HashedKey = secret.hash(key.into());
        // Two workers may have pinned one flow, one after the other: the newer pin holds.
        if let Some((slot, other)) = writer.table().lookup(&hashed) {
            if !other.created.is_before(pin.created) {
                return;
            }
            writer.remove(slot);
        }
        match writer.insert(&hashed, &pin) {
            Ok(slot) => self.splice((from, worker, &key), (writer.table(), owner, slot)),
            Err(_) => lost.no_room += 1,
        }
    }

    /// Copies the splice of a pin, if it has one.
    fn splice(
        &self,
        (from, worker, key): (&FlowTable, usize, &FlowKey),
        (to, owner, slot): (&FlowTable, usize, Slot),
    ) {
        let place = |table: &FlowTable, worker: usize, slot| {
            Some(Place { worker: u8::try_from(worker).ok()?, slot, stamp: table.stamp(slot)? })
        };
        let old = from.lookup(&from.secret().hash((*key).into()));
        let old = old.and_then(|(slot, _)| place(from, worker, slot));
        let splice = old.and_then(|place| self.old.shared.splices.read(&place));
        if let Some((place, splice)) = place(to, owner, slot).zip(splice) {
            self.new.splices.record(&place, &splice);
        }
    }

    /// Returns the worker that a pin belongs to now, and the pin as it is there. Writes its SNAT
    /// entry. `None` if its SNAT port is no longer one.
    fn placed(&self, pin: &Pin, worker: usize) -> Option<(usize, Pin)> {
        let workers = self.facts.workers.max(1);
        let Some(id) = pin.flow_state.snat_port() else {
            let owner = worker % workers;
            let hop = self.hop(pin.flow_state.hop());
            return Some((owner, pin.owned_by(u8::try_from(owner).ok()?, &hop)));
        };
        let (old, new) = (&self.old.shared.snat_table, &self.new.snat_table);
        let mut snat_flow = old.read(id)?.snat_flow;
        let (address, port) = old.sources().source(id)?;
        let id: SnatPort = new.sources().find(address, port)?;
        let hop = self.hop(snat_flow.return_hop.next_hop());
        snat_flow.return_hop = ReturnHop::of(&hop);
        new.restore(id, &snat_flow);
        let owner = new.owner(id);
        Some((owner.into(), pin.owned_by(owner, &hop).with_snat_port(id)))
    }

    /// Returns a next hop with the number that its NIC has now. A NIC that is gone becomes the
    /// first one: the client's next packet corrects the hop.
    fn hop(&self, hop: NextHop) -> NextHop {
        let name = self.old.facts.nics.get(usize::from(hop.nic.0));
        let number = self.facts.nics.iter().position(|nic| Some(nic) == name);
        let nic = number.and_then(|number| u8::try_from(number).ok()).unwrap_or_default();
        NextHop { nic: NicIndex(nic), ..hop }
    }
}

/// Whether the entry is the one that a look-up of its key finds.
fn is_found(table: &FlowTable, entry: &ConntrackEntry) -> bool {
    let found = table.lookup(&table.secret().hash(entry.key.into()));
    found.is_some_and(|(_, pin)| pin == entry.pin)
}

impl Lost {
    fn in_words(&self) -> Vec<Loss> {
        let Self { no_source, no_room, clients } = *self;
        let pins = |count| counted(count, "pin");
        let all = [
            (no_source, format!("{} on SNAT ports that [full_nat] no longer has", pins(no_source))),
            (no_room, format!("{} for which the smaller flow tables have no room", pins(no_room))),
            (clients, format!("{} for which there is no room", counted(clients, "client"))),
        ];
        all.into_iter().filter(|(count, _)| *count > 0).map(|(_, text)| text).collect()
    }
}
