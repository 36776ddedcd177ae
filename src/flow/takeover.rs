//! Agreement of the tables that an earlier process has left.
//!
//! That process may have ended between two changes that belong together: a pin with its SNAT entry.
//! Each worker makes its own pins and SNAT entries agree before it handles packets.

use hashbrown::HashSet;

use super::entry::{ConntrackEntry, Pin, State};
use super::snat::{SnatPort, SnatTable};
use super::writer::FlowWriter;

/// Visits the pins and the remote entries of a worker's table, which a suspended writer has left in
/// agreement with the SNAT entries.
///
/// Cost: one look at every entry that was ever used.
pub fn count(writer: &FlowWriter, mut pinned: impl FnMut(&Pin), mut remote: impl FnMut()) {
    let table = writer.table();
    for ConntrackEntry { pin, .. } in table.slots().filter_map(|slot| table.read(slot)) {
        match pin.flow_state.state().has(State::REMOTE) {
            true => remote(),
            false => pinned(&pin),
        }
    }
}

/// Removes from a worker's table the remote entries, which workers make again when they are needed,
/// and the pins that have no SNAT entry of their own; frees the worker's SNAT entries without a
/// pin. `pinned` gets each pin that stays. Returns the number of pins that were removed.
///
/// Cost: one look at every entry that was ever used, and at every SNAT port of the worker. Nothing
/// for a new table, except the SNAT ports.
pub fn reconcile(
    writer: &mut FlowWriter,
    snat_table: &SnatTable,
    worker: u8,
    mut pinned: impl FnMut(&Pin),
) -> u64 {
    let table = writer.shared();
    let (mut kept, mut removed) = (HashSet::new(), 0);
    for slot in table.slots() {
        let Some(ConntrackEntry { key, pin }) = table.read(slot) else { continue };
        let flow_state = &pin.flow_state;
        if flow_state.state().has(State::REMOTE) {
            writer.remove(slot);
            continue;
        }
        if let Some(id) = flow_state.snat_port() {
            let entry = snat_table.read(id).filter(|_| snat_table.owner(id) == worker);
            let agrees = entry.is_some_and(|entry| {
                entry.snat_flow.flow == key && entry.snat_flow.backend == flow_state.backend()
            });
            if !agrees {
                writer.remove(slot);
                removed += 1;
                continue;
            }
            kept.insert(id);
        }
        pinned(&pin);
    }
    snat_table.retain(worker, |id: SnatPort| kept.contains(&id));
    removed
}
