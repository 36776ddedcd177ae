//! Withdrawal of VIPs that no backend serves.

use tokio::time::Instant;

use super::world::World;
use crate::control::events::{Kind, NewEvent};

/// Withdraws VIPs that are no longer served, and announces those that are again.
pub(super) fn advance(world: &mut World, now: Instant) {
    let World { registry, journal, readdress, .. } = world;
    for vip in registry.vips_mut().iter_mut().filter(|vip| vip.config.withdraws) {
        let is_served = vip.is_served();
        if !vip.withdrawal.observe(is_served, now) {
            continue;
        }
        *readdress = true;
        let name = &vip.config.name;
        let (kind, text) = if vip.withdrawal.is_withdrawn() {
            let text = "no backend serves it: its address is withdrawn";
            (Kind::VipWithdrawn, format!("VIP {name}: {text}"))
        } else {
            (Kind::VipAnnounced, format!("VIP {name} is served again: its address is announced"))
        };
        journal.record(NewEvent::of_vip(kind, name), text);
    }
}
