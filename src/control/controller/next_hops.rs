//! Next hops of backends, and of replies to clients behind routers, as the resolver finds them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::sync::watch::error::RecvError;
use tokio::time::timeout;
use tracing::{info, warn};

use super::world::World;
use crate::config;
use crate::control::events::{Kind, NewEvent};
use crate::control::flows::list;
use crate::control::neighbour::{Problem, Snapshot};
use crate::control::routers::{Replacement, Why};
use crate::control::state::{BackendEntry, Registry};
use crate::format::mac;
use crate::net::NextHop;

/// Maximum time that a start or a reload waits for the next hops of new backends.
const FIRST_RESOLUTION: Duration = Duration::from_secs(1);
/// Part of that time that passes without a line in the log.
const QUIET_RESOLUTION: Duration = Duration::from_millis(200);

/// Receiver of the resolver's snapshots.
pub(super) struct NextHops {
    found: watch::Receiver<Arc<Snapshot>>,
}

impl NextHops {
    pub(super) fn new(found: watch::Receiver<Arc<Snapshot>>) -> Self {
        Self { found }
    }

    /// Waits for a new snapshot of the resolver.
    pub(super) async fn changed(&mut self) -> Result<(), RecvError> {
        self.found.changed().await
    }

    /// Waits until the next hops of all backends are known, but at most [`FIRST_RESOLUTION`].
    pub(super) async fn settle(&mut self, registry: &Registry) {
        let targets = registry.targets();
        let known = |snapshot: &Arc<Snapshot>| {
            targets.iter().all(|target| {
                let hop = snapshot.hops.get(target);
                hop.is_some_and(|hop| *hop != Err(Problem::Resolving))
            })
        };
        if timeout(QUIET_RESOLUTION, self.found.wait_for(known)).await.is_err() {
            let most = FIRST_RESOLUTION.as_secs();
            info!("waiting for the next hops of backends, {most} s at most");
            // A time-out is no error: backends without a next hop take no new flows until they have
            // one.
            let rest = FIRST_RESOLUTION.saturating_sub(QUIET_RESOLUTION);
            let _ = timeout(rest, self.found.wait_for(known)).await;
        }
    }

    /// Applies the latest snapshot of the resolver to the registry.
    pub(super) fn follow(&mut self, world: &mut World) {
        let World { registry, network, dirty, .. } = world;
        let before = std::mem::replace(network, Arc::clone(&self.found.borrow_and_update()));
        *dirty |= before.nic_mtus != network.nic_mtus || before.replaced != network.replaced;
        for (vip, backend) in registry.all_backends_mut() {
            if let Some(hop) = network.hops.get(&backend.config.address) {
                let next_hop = hop.as_ref().ok().copied();
                let awaited = backend.awaits_next_hop();
                *dirty |= backend.next_hop != next_hop;
                backend.next_hop = next_hop;
                let mtu = network.mtus.get(&backend.config.address).copied();
                let mtu = mtu.unwrap_or(backend.mtu);
                *dirty |= backend.mtu != mtu;
                backend.mtu = mtu;
                let problem = hop.as_ref().err().map(Problem::to_string);
                backend.next_hop_detail = problem.unwrap_or_default();
                log_problem(vip, backend, hop.as_ref().err());
                *dirty |= backend.awaits_next_hop() != awaited;
            }
        }
        if before.routers != network.routers {
            registry.routers.clone_from(&network.routers);
            world.saving.save(&world.registry);
        }
        report_replaced(world, &before.replaced);
    }
}

/// Reports the return hops that are replaced from now on, and those that no longer are.
fn report_replaced(World { network, nics, journal, .. }: &mut World, before: &[Replacement]) {
    let interface =
        |hop: &NextHop| nics.get(usize::from(hop.nic.0)).map_or("?", |nic| nic.interface.as_str());
    let now = &network.replaced;
    let name = |router: Option<IpAddr>| {
        router.map_or_else(|| "the router".to_owned(), |address| format!("router {address}"))
    };
    for Replacement { hop, why, router } in now.iter().filter(|found| !before.contains(found)) {
        let (nic, old, new) = (interface(&hop.old), mac(hop.old.mac), mac(hop.new.mac));
        let router = name(*router);
        let why = match why {
            Why::Moved => "no longer has this MAC",
            Why::Silent => "does not reply",
            Why::NoCarrier => "is behind a link without carrier",
        };
        let over = interface(&hop.new);
        let text = format!(
            "{router}, MAC {old} on {nic}, {why}: replies to its clients go to {new} on {over}"
        );
        journal.record(NewEvent::at_nic(Kind::ReturnHopReplaced, nic), text);
    }
    for Replacement { hop, router, .. } in before {
        let replaced =
            |found: &Replacement| found.hop.old == hop.old && found.hop.family == hop.family;
        if !now.iter().any(replaced) {
            let (nic, old) = (interface(&hop.old), mac(hop.old.mac));
            let router = name(*router);
            let text = format!("replies go to {router}, MAC {old} on {nic}, again");
            journal.record(NewEvent::at_nic(Kind::ReturnHopRestored, nic), text);
        }
    }
}

/// Logs the next hops that are still being looked up; other problems have been logged by then.
pub(super) fn log_unresolved(world: &World) {
    let resolving = Err(Problem::Resolving);
    let hop = |address: &IpAddr| world.network.hops.get(address).unwrap_or(&resolving);
    let late = world.registry.backends().filter(|(_, b)| *hop(&b.config.address) == resolving);
    let late = late.map(|(vip, b)| format!("{}/{}", vip.config.name, b.config.name));
    let late: Vec<String> = late.collect();
    if !late.is_empty() {
        let late = list(late.into_iter());
        warn!("going on without next hops of {late}: no new flows for them until they answer");
    }
}

/// Logs a problem of a next hop when it comes, changes or goes; a repeated look-up is no change.
fn log_problem(vip: &config::Vip, backend: &mut BackendEntry, problem: Option<&Problem>) {
    let (name, vip) = (&backend.config.name, &vip.name);
    match problem {
        Some(Problem::Resolving) => {}
        Some(problem) => {
            let text = problem.to_string();
            if backend.problem.as_ref() != Some(&text) {
                warn!("backend {name} of VIP {vip}: {text}");
                backend.problem = Some(text);
            }
        }
        None => {
            if backend.problem.take().is_some() {
                info!("backend {name} of VIP {vip}: its next hop is known again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::tests::{reported, world};
    use super::*;
    use crate::control::state::tests::{backend, vip};
    use crate::forwarding::ReplacedHop;
    use crate::net::{Family, NicIndex};

    #[tokio::test]
    async fn a_table_follows_when_a_next_hop_comes_changes_or_goes() {
        let web = backend("a", 1);
        let mut world = world(vec![vip("web", std::slice::from_ref(&web))]);
        let (found, receiver) = watch::channel(Arc::default());
        let mut next_hops = NextHops::new(receiver);
        let hop = |last| Ok(NextHop { nic: NicIndex(0), mac: [2, 0, 0, 0, 0, last], vlan: None });
        for (row, hop, dirty) in [
            ("looked up", Err(Problem::Resolving), false),
            ("known", hop(1), true),
            ("the same", hop(1), false),
            ("another", hop(2), true),
            ("none", Err(Problem::NoRoute), true),
            ("still none", Err(Problem::NoRoute), false),
        ] {
            let hops = [(web.address, hop)].into_iter().collect();
            found.send_replace(Arc::new(Snapshot { hops, ..Snapshot::default() }));
            assert!(next_hops.changed().await.is_ok(), "{row}");
            world.dirty = false;
            next_hops.follow(&mut world);
            assert_eq!(world.dirty, dirty, "{row}");
        }
        let problem = world.registry.find("web", "a").and_then(|(_, a)| a.problem.clone());
        assert_eq!(problem, Some(Problem::NoRoute.to_string()));
    }

    #[tokio::test]
    async fn replaced_return_hops_are_published_and_reported() {
        let mut world = world(vec![vip("web", &[backend("a", 1)])]);
        let (found, receiver) = watch::channel(Arc::default());
        let mut next_hops = NextHops::new(receiver);
        let hop = |last| NextHop { nic: NicIndex(0), mac: [2, 0, 0, 0, 0, last], vlan: None };
        let replaced = |last, why| {
            let hop = ReplacedHop { family: Family::V4, old: hop(1), new: hop(last) };
            Replacement { hop, why, router: Some([198, 51, 100, 1].into()) }
        };
        for (row, replaced, event) in [
            ("silent", vec![replaced(2, Why::Silent)], Some("return_hop_replaced")),
            ("the same", vec![replaced(2, Why::Silent)], None),
            ("another MAC", vec![replaced(3, Why::Moved)], Some("return_hop_replaced")),
            ("as before", Vec::new(), Some("return_hop_restored")),
        ] {
            let before = reported(&world).len();
            let hops: Vec<ReplacedHop> = replaced.iter().map(|replaced| replaced.hop).collect();
            found.send_replace(Arc::new(Snapshot { replaced, ..Snapshot::default() }));
            world.dirty = false;
            next_hops.follow(&mut world);
            assert_eq!(world.dirty, event.is_some(), "{row}");
            world.publish();
            assert_eq!(world.publisher.current().local().replaced_hops, hops, "{row}");
            let kinds = reported(&world).split_off(before);
            assert_eq!(kinds.iter().map(String::as_str).next(), event, "{row}");
        }
    }
}
