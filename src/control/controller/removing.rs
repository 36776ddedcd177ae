//! Removed backends and listeners while they have flows: reported, counted, and given up.

use std::time::Duration;

use futures_util::FutureExt as _;
use hashbrown::HashSet;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::steering::Steering;
use super::world::World;
use crate::config::Config;
use crate::control::events::{Journal, Kind, NewEvent};
use crate::control::reload::{Rename, fate};
use crate::control::removed::{Gone, Removal, count};
use crate::format::counted;
use crate::net::{Listen, VipId};

/// Time between two counts of the flows that are kept at lost addresses and ports; a count reads
/// whole tables.
const RECOUNT: Duration = Duration::from_secs(10);

/// A listener of a VIP: address and ports.
type VipPlace = (VipId, Listen);

/// Gives up removed backends and listeners when their flows have ended.
#[derive(Debug, Default)]
pub(super) struct Removing {
    /// Running count of the flows that are kept where VIPs no longer listen.
    recount: Option<JoinHandle<Vec<(VipPlace, u64)>>>,
    /// Time at which the last count began.
    last: Option<Instant>,
}

impl Removing {
    /// Gives up removed backends and listeners without flows.
    pub(super) fn release(&mut self, world: &mut World, steering: &mut Steering, now: Instant) {
        let before = world.registry.lingering();
        if before == 0 {
            return;
        }
        for gone in world.registry.release(&world.workers, now) {
            let Gone { vip, backend, flows, flows_left } = gone;
            if flows > 0 || flows_left > 0 {
                let event = NewEvent::of(Kind::RemovedGone, &vip, &backend);
                let text = format!(
                    "removed backend {backend} of VIP {vip} is gone: {} left of {flows}",
                    counted(flows_left, "flow")
                );
                world.journal.record(event.with("flows_left", flows_left), text);
            }
        }
        let_go_of_less_than(before, world, steering);
    }

    /// Counts, every [`RECOUNT`], the flows that are kept where VIPs no longer listen, and gives up
    /// listeners without flows. Never blocks.
    pub(super) fn recount(&mut self, world: &mut World, steering: &mut Steering) {
        if let Some(mut task) = self.recount.take() {
            let Some(found) = (&mut task).now_or_never() else {
                self.recount = Some(task);
                return;
            };
            let before = world.registry.lingering();
            for (place, _) in found.unwrap_or_default().into_iter().filter(|(_, flows)| *flows == 0)
            {
                world.registry.forget_place(place);
            }
            let_go_of_less_than(before, world, steering);
        }
        let places = world.registry.kept_places();
        let now = Instant::now();
        let due = self.last.is_none_or(|last| now.duration_since(last) >= RECOUNT);
        if places.is_empty() || !due {
            return;
        }
        let tables = world.tables();
        self.last = Some(now);
        self.recount = Some(tokio::task::spawn_blocking(move || {
            let flows = count(&places, &HashSet::new(), &tables);
            places.into_iter().zip(flows).collect()
        }));
    }
}

/// If fewer removed items are left than `before`, withdraws those given up: from the XDP program
/// first, then from the table.
fn let_go_of_less_than(before: usize, world: &mut World, steering: &mut Steering) {
    if world.registry.lingering() < before {
        steering.follow_or_retry(world);
        world.let_go();
    }
}

/// Returns the removals of a reload of `new`.
pub(super) async fn removals(world: &World, new: &Config) -> Vec<Removal> {
    let removals = world.registry.removals(&new.vips, &world.workers);
    if removals.lost.is_empty() {
        return removals.all;
    }
    let tables = world.tables();
    let known = removals.all.clone();
    // If the count fails, the removals with known numbers of flows are returned.
    tokio::task::spawn_blocking(move || removals.count(&tables)).await.unwrap_or(known)
}

/// Reports VIPs and backends that continue under another name.
pub(super) fn notify_renames(journal: &mut Journal, renames: Vec<Rename>) {
    for Rename { vip, backend, old } in renames {
        let (event, text) = match backend {
            None => (
                NewEvent::of_vip(Kind::Renamed, &vip),
                format!("VIP {old} is named {vip} now: its flows stay where they are"),
            ),
            Some(name) => (
                NewEvent::of(Kind::Renamed, &vip, &name),
                format!(
                    "backend {old} of VIP {vip} is named {name} now: its flows stay where they are"
                ),
            ),
        };
        journal.record(event, text);
    }
}

/// Reports the removals of a reload.
pub(super) fn notify_removals(journal: &mut Journal, removals: &[Removal]) {
    for Removal { vip, backend, flows, flow_action } in removals {
        let what = format!("its flows, {flows} by now, {}", fate(*flow_action));
        let (event, text) = match backend {
            Some(backend) => (
                NewEvent::of(Kind::Removed, vip, backend),
                format!("backend {backend} of VIP {vip} was removed: {what}"),
            ),
            None => (
                NewEvent::of_vip(Kind::Removed, vip),
                format!("VIP {vip} has lost an address or ports: {what}"),
            ),
        };
        journal.record(event.with("flows", *flows), text);
    }
}

#[cfg(test)]
mod tests {
    use super::super::steering::tests::steering;
    use super::super::world::tests::{reported, world};
    use super::*;
    use crate::control::state::tests::{backend, vip};
    use crate::forwarding::FlowAction;

    #[tokio::test]
    async fn a_removed_backend_is_given_up_when_its_flows_have_ended() {
        let mut web = vip("web", &[backend("a", 1), backend("b", 2)]);
        web.on_remove = FlowAction::Keep;
        let (mut world, (mut steering, room)) = (world(vec![web.clone()]), steering(8));
        let flows = |world: &World, change: fn(&crate::stats::Counter)| {
            let stats = world.workers.first().and_then(|worker| worker.stats.backends.get(1));
            stats.into_iter().for_each(|stats| change(&stats.flows_active));
        };
        flows(&world, |flows| flows.add(2));
        web.backends.pop();
        let now = Instant::now();
        assert!(world.registry.apply(&[web], &world.workers, now).is_ok());
        let mut removing = Removing::default();
        let late = now + Duration::from_secs(60);
        removing.release(&mut world, &mut steering, late);
        assert_eq!((world.registry.lingering(), room.borrow().sent.len()), (1, 0));
        flows(&world, |flows| flows.sub(2));
        world.dirty = false;
        removing.release(&mut world, &mut steering, late);
        assert_eq!((world.registry.lingering(), room.borrow().sent.len()), (0, 1));
        assert_eq!(reported(&world), ["removed_gone"]);
        assert!(world.dirty && world.readdress, "table and addresses follow");
    }
}
