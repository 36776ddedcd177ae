//! NICs: attachment of the XDP program to them, and their faults.

use tracing::{debug, info, warn};

use super::steering::Steering;
use super::world::World;
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
        for (nic, AttachedView { xdp, fallback }) in nics.iter().zip(&self.attached) {
            let NicView { interface, driver, mode, multi_buffer, queues, fallbacks, .. } = nic;
            let frames = if *multi_buffer { "multi-buffer" } else { "one frame per packet" };
            info!(
                "NIC {interface}: driver {driver}, {xdp} XDP, {mode}, {frames}, queues {queues:?}"
            );
            for reason in fallback.iter().chain(fallbacks) {
                warn!("NIC {interface}: {reason}");
            }
        }
    }

    /// Checks every NIC, and reports the faults that come and go.
    pub(super) fn watch(&mut self, world: &mut World, steering: &mut Steering) {
        self.faults.resize(world.nics.len(), Vec::new());
        let nics = world.nics.iter().zip(&mut self.faults).zip((0..).map(NicIndex));
        for ((nic, faults), index) in nics {
            let now = match steering.nic_now(index) {
                Ok(now) => nic_faults::faults(nic, now),
                Err(reason) => {
                    debug!("NIC {}: {reason}", nic.interface);
                    continue;
                }
            };
            let before = std::mem::replace(faults, now);
            let name = &nic.interface;
            for fault in faults.iter().filter(|fault| !before.contains(fault)) {
                let event = NewEvent::of_nic(Kind::NicFault, name, fault.as_str());
                world.journal.record(event, format!("NIC {name}: {}", fault.text(nic)));
            }
            for fault in before.iter().filter(|fault| !faults.contains(fault)) {
                let event = NewEvent::of_nic(Kind::NicMended, name, fault.as_str());
                world.journal.record(event, format!("NIC {name}: {} no longer", fault.as_str()));
            }
        }
    }
}
