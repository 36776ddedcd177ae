//! Addresses of VIPs that direct clients to the kernel.

use super::world::World;
use crate::config::machine::Level;
use crate::control::events::{Kind, NewEvent};
use crate::control::inbound::{self, Trouble};
use crate::control::neighbour::Snapshot;

/// Troubles that the last check found.
#[derive(Default)]
pub(super) struct Troubles {
    known: Vec<Trouble>,
}

impl Troubles {
    /// Reports the addresses that direct clients to the kernel from now on, and those that no
    /// longer do.
    pub(super) fn follow(&mut self, world: &mut World) {
        let Snapshot { links, addresses, arp, .. } = world.network.as_ref();
        let now = inbound::troubles(&world.config, inbound::View { links, addresses, arp });
        let now: Vec<Trouble> =
            now.into_iter().filter(|trouble| trouble.level() == Level::Warning).collect();
        let before = std::mem::replace(&mut self.known, now);
        let among = |all: &[Trouble], one: &Trouble| all.iter().any(|other| other.is_still(one));
        for new in self.known.iter().filter(|trouble| !among(&before, trouble)) {
            world.journal.record(NewEvent::about(Kind::AddressTrouble, new.vip()), new.to_string());
        }
        for gone in before.iter().filter(|trouble| !among(&self.known, trouble)) {
            let text = format!("no longer so: {}", gone.what());
            world.journal.record(NewEvent::about(Kind::AddressRight, gone.vip()), text);
        }
    }
}
