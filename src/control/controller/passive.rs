//! Passive checks: backends that leave clients without an answer get no new flows for a while.

use tokio::time::Instant;

use super::world::World;
use crate::config;
use crate::control::events::{Journal, Kind, NewEvent};
use crate::control::passive::{self, Passive};
use crate::control::state::BackendEntry;
use crate::control::{answering, counters};

/// Takes readings, and takes out the backends that leave their flows unanswered.
pub(super) fn watch(world: &mut World, now: Instant) {
    let World { registry, workers, journal, dirty, .. } = world;
    for vip in registry.vips_mut() {
        let Some(rule) = vip.config.passive else { continue };
        for backend in &mut vip.backends {
            let totals = counters::answers(workers, backend.id.index, &backend.base);
            backend.passive.read(totals, rule.window, now);
        }
        let serving = vip.backends.iter_mut().filter(|b| b.serves() && b.next_hop.is_some());
        let mut serving: Vec<&mut BackendEntry> = serving.collect();
        let mut checks: Vec<&mut Passive> =
            serving.iter_mut().map(|backend| &mut backend.passive).collect();
        for (position, time) in passive::judge(&vip.config, rule, &mut checks, now) {
            let Some(backend) = serving.get(position) else { continue };
            notify_out(&vip.config, backend, time.as_secs(), journal);
            *dirty = true;
        }
    }
}

/// Returns backends to service: their time has come, no other one serves, or the VIP has no passive
/// check any longer.
pub(super) fn release(world: &mut World, now: Instant) {
    let World { registry, journal, dirty, .. } = world;
    for vip in registry.vips_mut() {
        let early = vip.config.passive.is_none()
            || !vip.backends.iter().any(|backend| backend.serves() && !backend.passive.is_out());
        for backend in &mut vip.backends {
            if !backend.passive.release(early, now) {
                continue;
            }
            backend.slow_start.begin(vip.config.drain.slow_start, now);
            let (name, vip_name) = (&backend.config.name, &vip.config.name);
            let text = format!("backend {name} of VIP {vip_name} gets new flows again");
            journal.record(NewEvent::of(Kind::PassiveBack, vip_name, name), text);
            *dirty = true;
        }
    }
}

fn notify_out(vip: &config::Vip, backend: &BackendEntry, hold_s: u64, journal: &mut Journal) {
    let (name, vip_name, flows) = (&backend.config.name, &vip.name, backend.passive.reason());
    let hint = answering::hint(vip, flows);
    let text = format!("backend {name} of VIP {vip_name} gets no new flows for {hold_s} s: {hint}");
    let event = NewEvent::of(Kind::PassiveOut, vip_name, name).with("hold_s", hold_s);
    let event = event.with("unanswered", flows.unanswered).with("flows", flows.all);
    journal.record(event, text);
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::time::Duration;

    use super::super::world::tests::{reported, world};
    use super::*;
    use crate::control::state::tests::{backend, vip};
    use crate::net::{BackendIndex, NextHop, NicIndex};

    const RULE: config::Passive =
        config::Passive { unanswered: 0.5, window: Duration::from_secs(5) };

    /// Two backends with next hops; flows of the second one are answered or not.
    fn pool(rule: Option<config::Passive>) -> World {
        let web = vip("web", &[backend("a", 1), backend("b", 2)]);
        let mut world = world(vec![config::Vip { passive: rule, ..web }]);
        for (_, backend) in world.registry.backends_mut() {
            backend.next_hop = Some(NextHop { nic: NicIndex(0), vlan: None, mac: [2; 6] });
        }
        world
    }

    fn traffic(world: &World, answers: [bool; 2]) {
        let stats = &world.workers.first().unwrap().stats;
        for (index, answers) in answers.into_iter().enumerate() {
            stats.backends.get(index).unwrap().flows_total.add(10);
            stats.answered.get(index).unwrap().add(if answers { 10 } else { 0 });
        }
    }

    fn shares(world: &mut World) -> [u16; 2] {
        world.publish();
        let table = world.publisher.current();
        [0, 1].map(|index| table.backend(BackendIndex(index)).unwrap().share)
    }

    #[test]
    fn a_silent_backend_gets_no_new_flows_and_returns_by_itself() {
        for (rule, out) in [(Some(RULE), true), (None, false)] {
            let (mut world, begun) = (pool(rule), Instant::now());
            let mut seconds = (0..).map(|second| begun + Duration::from_secs(second));
            for now in seconds.by_ref().take(7) {
                watch(&mut world, now);
                release(&mut world, now);
                traffic(&world, [true, false]);
            }
            assert_eq!(shares(&mut world), [1024, if out { 0 } else { 1024 }]);
            let events: &[&str] = if out { &["passive_out"] } else { &[] };
            assert_eq!(reported(&world), events);
            // No flow goes to it: the way back does not depend on any.
            let now = seconds.nth(30).unwrap();
            watch(&mut world, now);
            release(&mut world, now);
            assert_eq!(shares(&mut world), [1024, 1024]);
        }
    }

    #[test]
    fn it_returns_at_once_where_no_other_serves() {
        let (mut world, begun) = (pool(Some(RULE)), Instant::now());
        for second in 0..7 {
            watch(&mut world, begun + Duration::from_secs(second));
            traffic(&world, [true, false]);
        }
        assert_eq!(shares(&mut world), [1024, 0]);
        let first = world.registry.vips_mut().first_mut().unwrap();
        first.backends.first_mut().unwrap().config.weight = 0;
        release(&mut world, begun + Duration::from_secs(7));
        assert_eq!(shares(&mut world), [1024, 1024]);
        assert_eq!(reported(&world), ["passive_out", "passive_back"]);
    }
}
