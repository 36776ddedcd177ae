//! What the control loop does about what reloads take away, and its flows.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use hashbrown::HashSet;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::warn;

use super::super::announce::Place;
use super::super::events::{Kind, News};
use super::super::flows::Pins;
use super::super::reload::{Rename, fate};
use super::super::removed::{Gone, Removal, count};
use super::Controller;
use crate::config::{self, Announce, Config};
use crate::forwarding::FlowsLeft;
use crate::net::{Listen, VipId};
use crate::words::counted;

/// How often flows are counted at the addresses and ports that VIPs have lost and where flows are kept: it reads
/// whole tables.
const RECOUNT: Duration = Duration::from_secs(10);

/// A place of a VIP.
type VipPlace = (VipId, Listen);

/// Counts the flows that are kept where VIPs no longer listen.
#[derive(Debug, Default)]
pub(super) struct Recount {
    task: Option<JoinHandle<Vec<(VipPlace, u64)>>>,
    last: Option<Instant>,
}

impl Controller {
    /// What a reload of `new` takes away.
    pub(super) async fn removals(&self, new: &Config) -> Vec<Removal> {
        let removals = self.registry.removals(&new.vips, &self.workers);
        if removals.lost.is_empty() {
            return removals.all;
        }
        let tables = self.tables();
        let known = removals.all.clone();
        // Without the count, what is known without it.
        tokio::task::spawn_blocking(move || removals.count(&tables)).await.unwrap_or(known)
    }

    fn tables(&self) -> Vec<Arc<dyn Pins>> {
        let tables = self.workers.iter().map(|worker| Arc::clone(&worker.flows) as Arc<dyn Pins>);
        tables.collect()
    }

    pub(super) fn tell_renames(&mut self, renames: Vec<Rename>) {
        for Rename { vip, backend, old } in renames {
            let (news, text) = match backend {
                None => (
                    News::of_vip(Kind::Renamed, &vip),
                    format!("VIP {old} is named {vip} now: its flows stay where they are"),
                ),
                Some(name) => (
                    News::of(Kind::Renamed, &vip, &name),
                    format!(
                        "backend {old} of VIP {vip} is named {name} now: its flows stay where they are"
                    ),
                ),
            };
            self.journal.tell(news, text);
        }
    }

    pub(super) fn tell_removals(&mut self, removals: &[Removal]) {
        for Removal { vip, backend, flows, left } in removals {
            let what = format!("its flows, {flows} by now, {}", fate(*left));
            let (news, text) = match backend {
                Some(backend) => (
                    News::of(Kind::Removed, vip, backend),
                    format!("backend {backend} of VIP {vip} was removed: {what}"),
                ),
                None => (
                    News::of_vip(Kind::Removed, vip),
                    format!("VIP {vip} has lost an address or ports: {what}"),
                ),
            };
            self.journal.tell(news.with("flows", *flows), text);
        }
    }

    /// Gives up what reloads have taken away and what has no flows any longer.
    pub(super) fn release_removed(&mut self) {
        let before = self.registry.lingering();
        if before == 0 {
            return;
        }
        for gone in self.registry.release(&self.workers, Instant::now()) {
            let Gone { vip, backend, flows, flows_left } = gone;
            if flows > 0 || flows_left > 0 {
                let news = News::of(Kind::RemovedGone, &vip, &backend);
                let text = format!(
                    "removed backend {backend} of VIP {vip} is gone: {} left of {flows}",
                    counted(flows_left, "flow")
                );
                self.journal.tell(news.with("flows_left", flows_left), text);
            }
        }
        if self.registry.lingering() < before {
            self.let_go();
        }
    }

    /// What goes leaves the XDP program before the table.
    fn let_go(&mut self) {
        self.steer_or_retry();
        self.targets.send_replace(self.registry.targets());
        (self.dirty, self.announce_pending) = (true, true);
    }

    /// Counts, now and then, the flows that are kept where VIPs no longer listen, and gives up places
    /// without. Never waits.
    pub(super) fn recount_kept_places(&mut self) {
        if let Some(mut task) = self.recount.task.take() {
            let Some(found) = (&mut task).now_or_never() else {
                self.recount.task = Some(task);
                return;
            };
            let before = self.registry.lingering();
            for (place, _) in found.unwrap_or_default().into_iter().filter(|(_, flows)| *flows == 0)
            {
                self.registry.forget_place(place);
            }
            if self.registry.lingering() < before {
                self.let_go();
            }
        }
        let places = self.registry.kept_places();
        let now = Instant::now();
        let due = self.recount.last.is_none_or(|last| now.duration_since(last) >= RECOUNT);
        if places.is_empty() || !due {
            return;
        }
        let tables = self.tables();
        self.recount.last = Some(now);
        self.recount.task = Some(tokio::task::spawn_blocking(move || {
            let flows = count(&places, &HashSet::new(), &tables);
            places.into_iter().zip(flows).collect()
        }));
    }

    /// Brings the XDP program up to date; if it has no room for what reloads have taken away, without
    /// that.
    pub(super) fn steer_all(&mut self) -> Result<(), String> {
        let result = self.steer(self.wanted_rules());
        if result.is_ok() || self.registry.lingering() == 0 {
            return result;
        }
        warn!("XDP program: no room for the flows of what reloads have removed: they are given up");
        self.registry.forget_removed();
        self.targets.send_replace(self.registry.targets());
        (self.dirty, self.announce_pending) = (true, true);
        self.steer(self.wanted_rules())
    }

    /// Where addresses are to be: those of VIPs, of sources, and those where flows are kept. Where flows
    /// are reset the address goes at once: another box may have it by now.
    pub(super) fn places(&self) -> HashSet<Place> {
        let mut places = Place::all(&self.config);
        for vip in self.registry.all_vips() {
            let config::Vip { announce: Announce::Interface(interface), .. } = &vip.config else {
                continue;
            };
            let kept = vip.old.iter().filter(|old| old.left == FlowsLeft::Keep);
            let addresses = kept.map(|old| old.what.network).filter(|network| network.is_single());
            places.extend(
                addresses
                    .map(|network| Place { interface: interface.clone(), address: network.ip() }),
            );
        }
        places
    }
}
