//! NICs: attachment of the XDP program to them, their faults, and the repair of faults.

use tracing::{debug, info, warn};

use super::steering::Steering;
use super::world::World;
use crate::control::error::ControlError;
use crate::control::events::{Kind, NewEvent};
use crate::control::nic_faults::{self, NicFault};
use crate::control::view::{AttachedView, NicView};
use crate::net::NicIndex;

/// State of the NICs, in the configuration's order.
#[derive(Default)]
pub(super) struct Nics {
    /// Attachment of the XDP program; empty before the start.
    pub(super) attached: Vec<AttachedView>,
    /// Faults of each NIC; empty before the first check.
    pub(super) faults: Vec<Vec<NicFault>>,
}

impl Nics {
    /// Records and logs how the program was attached.
    pub(super) fn attached(&mut self, attached: Vec<AttachedView>, nics: &[NicView]) {
        self.attached = attached;
        for (nic, AttachedView { xdp, fallbacks: lesser }) in nics.iter().zip(&self.attached) {
            let NicView { interface, driver, mode, multi_buffer, queues, fallbacks, .. } = nic;
            let frames = if *multi_buffer { "multi-buffer" } else { "one frame per packet" };
            info!(
                "NIC {interface}: driver {driver}, {xdp} XDP, {mode}, {frames}, queues {queues:?}"
            );
            for reason in lesser.iter().chain(fallbacks) {
                warn!("NIC {interface}: {reason}");
            }
        }
    }

    /// Checks every NIC, reports the faults that come and go, and repairs those that it can.
    ///
    /// # Errors
    /// [`ControlError::Nic`] for a fault that only a start can end.
    pub(super) fn watch(
        &mut self,
        world: &mut World,
        steering: &mut Steering,
    ) -> Result<(), ControlError> {
        self.faults.resize(world.nics.len(), Vec::new());
        for (index, faults) in (0..).zip(&mut self.faults) {
            let nic = NicIndex(index);
            let is_new = look(nic, faults, world, steering);
            if repair(nic, faults, is_new, world, steering) {
                look(nic, faults, world, steering);
            }
        }
        self.withhold_addresses(world);
        let mut nics = world.nics.iter().zip(&self.faults);
        let fatal =
            nics.find_map(|(nic, faults)| Some((nic, nic_faults::needs_start(nic, faults)?)));
        let Some((nic, fault)) = fatal else { return Ok(()) };
        let (interface, text) = (nic.interface.clone(), fault.text(nic));
        Err(ControlError::Nic { interface, text })
    }

    /// Takes the addresses from the NICs that have no program, and gives them back.
    fn withhold_addresses(&self, world: &mut World) {
        let nics = world.nics.iter().zip(&self.faults);
        let without = nics.filter(|(_, faults)| faults.iter().any(NicFault::is_without_program));
        let without: Vec<String> = without.map(|(nic, _)| nic.interface.clone()).collect();
        world.readdress |= without != world.without_program;
        world.without_program = without;
    }
}

/// Updates the faults of a NIC, and reports the changes; returns whether there are new faults.
fn look(
    index: NicIndex,
    faults: &mut Vec<NicFault>,
    world: &mut World,
    steering: &mut Steering,
) -> bool {
    let Some(nic) = world.nics.get(usize::from(index.0)) else { return false };
    let name = &nic.interface;
    let now = match steering.nic_now(index) {
        Ok(now) => nic_faults::faults(nic, now),
        Err(reason) => {
            debug!("NIC {name}: {reason}");
            return false;
        }
    };
    let before = std::mem::replace(faults, now);
    let mut is_new = false;
    for fault in faults.iter().filter(|fault| !before.contains(fault)) {
        is_new = true;
        let event = NewEvent::of_nic(Kind::NicFault, name, fault.as_str());
        world.journal.record(event, format!("NIC {name}: {}", fault.text(nic)));
    }
    for fault in before.iter().filter(|fault| !faults.contains(fault)) {
        let event = NewEvent::of_nic(Kind::NicMended, name, fault.as_str());
        world.journal.record(event, format!("NIC {name}: {} no longer", fault.as_str()));
    }
    is_new
}

/// Repairs faults of a NIC; returns whether it did anything. A failure is tried again every second,
/// and logged as a warning if there are new faults.
fn repair(
    index: NicIndex,
    faults: &[NicFault],
    is_new: bool,
    world: &mut World,
    steering: &mut Steering,
) -> bool {
    let Some(nic) = world.nics.get_mut(usize::from(index.0)) else { return false };
    let mut repaired = false;
    for fault in faults {
        let done = match fault {
            NicFault::ProgramGone => steering.attach_again(index),
            NicFault::GuardGone => steering.guard_again(index, nic.ifindex),
            // Packets that reach the new interface before the next start are not answered.
            NicFault::MadeAgain { ifindex } => steering.guard_again(index, *ifindex),
            NicFault::MacChanged { now } => steering.set_mac(index, *now).map(|()| {
                nic.mac = *now;
                (world.dirty, world.macs_changed) = (true, true);
            }),
            _ => continue,
        };
        match done {
            Ok(()) => repaired = true,
            Err(reason) if is_new => {
                warn!("NIC {}: {}: {reason}", nic.interface, fault.as_str());
            }
            Err(reason) => debug!("NIC {}: {}: {reason}", nic.interface, fault.as_str()),
        }
    }
    repaired
}
