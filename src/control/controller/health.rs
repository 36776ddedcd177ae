//! Health checks: the running ones, their verdicts, and the detection of backends that are up but
//! do not answer clients.

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::debug;

use super::world::World;
use crate::config;
use crate::control::events::{Journal, Kind, NewEvent};
use crate::control::health::{Checks, Hysteresis, Outcome};
use crate::control::state::{BackendEntry, Registry};
use crate::control::{answering, counters};
use crate::format::counted;
use crate::net::Protocol;

/// Maximum number of queued check results; further ones wait in their tasks.
const OUTCOMES: usize = 1024;

/// Running health checks and their results.
pub(super) struct Health {
    checks: Checks,
    outcomes: mpsc::Receiver<Outcome>,
}

impl Health {
    pub(super) fn new() -> Self {
        let (sender, outcomes) = mpsc::channel(OUTCOMES);
        Self { checks: Checks::new(sender), outcomes }
    }

    /// Makes exactly the checks of the registry run.
    pub(super) fn sync(&mut self, registry: &Registry) {
        self.checks.sync(registry.checks());
    }

    /// Waits for the next result of a check.
    pub(super) async fn outcome(&mut self) -> Option<Outcome> {
        self.outcomes.recv().await
    }

    /// Evaluates a result, and all others that have arrived: together they lead to one table.
    pub(super) fn judge(&mut self, outcome: Outcome, world: &mut World) {
        let now = Instant::now();
        judge(outcome, world, now);
        while let Ok(outcome) = self.outcomes.try_recv() {
            judge(outcome, world, now);
        }
        release_holds(world, now);
    }
}

/// Ends the holds whose time has come; where no backend serves, those of backends with a successful
/// check end early.
pub(super) fn release_holds(world: &mut World, now: Instant) {
    let World { registry, journal, dirty, .. } = world;
    for vip in registry.vips_mut() {
        let serves = vip.backends.iter().any(BackendEntry::serves);
        for backend in &mut vip.backends {
            let early = vip.config.damping.is_none() || !serves && backend.health.usable();
            if backend.damping.release(early, now) && backend.is_up() {
                come_up(&vip.config, backend, journal, now);
                *dirty = true;
            }
        }
    }
}

/// Returns a backend to service.
fn come_up(vip: &config::Vip, backend: &mut BackendEntry, journal: &mut Journal, now: Instant) {
    backend.damping.rise(now);
    backend.slow_start.begin(vip.drain.slow_start, now);
    let (name, vip_name) = (&backend.config.name, &vip.name);
    let text = format!("backend {name} of VIP {vip_name} is up");
    journal.record(NewEvent::of(Kind::BackendUp, vip_name, name), text);
}

/// Records that a check has found a backend down, which may begin a hold.
fn go_down(vip: &config::Vip, backend: &mut BackendEntry, journal: &mut Journal, now: Instant) {
    let was_held = backend.damping.is_held();
    let hold = backend.damping.fall(vip.damping, now);
    let (name, vip_name, detail) = (&backend.config.name, &vip.name, &backend.health_detail);
    if !was_held {
        let text = format!("backend {name} of VIP {vip_name} is down: {detail}");
        journal.record(NewEvent::of(Kind::BackendDown, vip_name, name), text);
    }
    let Some(hold) = hold else { return };
    let (flaps, hold_s) = (backend.damping.flaps(), hold.as_secs());
    let text = format!(
        "backend {name} of VIP {vip_name} goes up and down: it stays down for {hold_s} s ({})",
        counted(flaps, "flap")
    );
    let event = NewEvent::of(Kind::BackendHeld, vip_name, name);
    journal.record(event.with("flaps", flaps.into()).with("hold_s", hold_s), text);
}

fn judge(Outcome { backend: id, result }: Outcome, world: &mut World, now: Instant) {
    let Some((vip, backend)) = world.registry.at_mut(id.index) else { return };
    // The result may have been under way when the backend or its check was removed.
    let Some(check) = backend.check.as_ref().filter(|_| backend.id == id) else { return };
    let (rise, fall) = (check.health.rise, check.health.fall);
    let success = result.is_ok();
    let was_known = backend.health != Hysteresis::default();
    let verdict = backend.health.observe(success, rise, fall);
    match result {
        Err(reason) => backend.health_detail = reason,
        Ok(()) if backend.health.usable() => backend.health_detail.clear(),
        Ok(()) => {}
    }
    let Some(up) = verdict else { return };
    // A backend without a result counts as up, so a first success changes nothing.
    if !was_known && up {
        return debug!("backend {} of VIP {} is up", backend.config.name, vip.name);
    }
    match up {
        // The check succeeds again, and the backend waits for the end of its hold.
        true if backend.damping.is_held() => return,
        true => come_up(vip, backend, &mut world.journal, now),
        false => go_down(vip, backend, &mut world.journal, now),
    }
    world.dirty = true;
}

/// Detects backends that are up but do not answer clients.
pub(super) fn compare_answers(world: &mut World) {
    let now = Instant::now();
    let World { registry, workers, journal, .. } = world;
    let is_seen = |vip: &config::Vip| vip.protocol == Protocol::Tcp || vip.forward.translates();
    for vip in registry.vips_mut().iter_mut().filter(|vip| is_seen(&vip.config)) {
        for backend in &mut vip.backends {
            let syns = counters::syns(workers, backend.id.index, &backend.base);
            backend.answering.read(syns, now);
        }
        let up = vip.backends.iter_mut().filter(|backend| backend.is_up());
        let mut up: Vec<&mut BackendEntry> = up.collect();
        let mut answers: Vec<_> = up.iter_mut().map(|backend| &mut backend.answering).collect();
        for position in answering::judge(&mut answers) {
            let Some(backend) = up.get(position) else { continue };
            notify_answers(journal, &vip.config, backend);
        }
    }
}

/// Reports that a backend is suspected not to answer clients, or no longer.
fn notify_answers(journal: &mut Journal, vip: &config::Vip, backend: &BackendEntry) {
    let (name, vip_name) = (&backend.config.name, &vip.name);
    match backend.answering.suspected() {
        Some(syns) => {
            let event = NewEvent::of(Kind::SynsUnanswered, vip_name, name);
            let event = event.with("unanswered", syns.unanswered).with("syns", syns.all);
            let hint = answering::hint(vip, syns);
            journal.record(event, format!("backend {name} of VIP {vip_name}: {hint}"));
        }
        None => {
            let text = format!("backend {name} of VIP {vip_name} answers SYNs as the others do");
            journal.record(NewEvent::of(Kind::SynsAnswered, vip_name, name), text);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::world::tests::{reported, world};
    use super::*;
    use crate::control::state::tests::{backend, tcp_health, vip};
    use crate::net::{BackendId, BackendIndex};

    /// In the VIP's check `rise` is 2 and `fall` is 3.
    #[tokio::test]
    async fn as_many_failures_as_fall_says_take_a_backend_down_and_rise_brings_it_back() {
        let web = config::Vip { health: tcp_health(), ..vip("web", &[backend("a", 1)]) };
        let (mut world, mut health) = (world(vec![web]), Health::new());
        let result = |generation, result: Result<(), &str>| Outcome {
            backend: BackendId { index: BackendIndex(0), generation },
            result: result.map_err(str::to_owned),
        };
        for (row, outcome, events) in [
            ("another generation", result(1, Err("late")), 0),
            ("the first success", result(0, Ok(())), 0),
            ("one", result(0, Err("refused")), 0),
            ("two", result(0, Err("refused")), 0),
            ("three", result(0, Err("refused")), 1),
            ("one success", result(0, Ok(())), 1),
            ("two successes", result(0, Ok(())), 2),
        ] {
            let before = reported(&world).len();
            world.dirty = false;
            health.judge(outcome, &mut world);
            assert_eq!(reported(&world).len(), events, "{row}");
            assert_eq!(world.dirty, events > before, "{row}: the table follows");
        }
        assert_eq!(reported(&world), ["backend_down", "backend_up"]);
    }

    /// Results of checks of the backends of VIP `web`, by their positions: `a+` or `b-`.
    fn results(world: &mut World, list: &str, now: Instant) {
        for result in list.split_whitespace() {
            let index = u16::from(result.starts_with('b'));
            let backend = BackendId { index: BackendIndex(index), generation: 0 };
            let result = if result.ends_with('+') { Ok(()) } else { Err("refused".to_owned()) };
            judge(Outcome { backend, result }, world, now);
        }
        release_holds(world, now);
        if world.dirty {
            world.publish();
        }
    }

    fn pool(change: impl FnOnce(&mut config::Vip)) -> World {
        let mut web =
            config::Vip { health: tcp_health(), ..vip("web", &[backend("a", 1), backend("b", 2)]) };
        change(&mut web);
        world(vec![web])
    }

    /// Whether the published table sends new flows to the backends.
    fn serving(world: &World) -> [bool; 2] {
        let table = world.publisher.current();
        // Without next hops, `takes_new` is false in these tests.
        [0, 1].map(|index| table.backend(BackendIndex(index)).is_some_and(|backend| backend.up))
    }

    #[test]
    fn a_vip_that_fails_open_forwards_as_if_all_were_up_until_one_is() {
        for fail_open in [false, true] {
            let mut world = pool(|vip| vip.fail_open = fail_open);
            let now = Instant::now();
            for (list, up, opens) in [
                ("a- b+", [false, true], false),
                ("b- b- b-", [false, false], true),
                ("b+", [false, false], true),
                ("b+", [false, true], false),
            ] {
                results(&mut world, list, now);
                let opens = opens && fail_open;
                let expected = if opens { [true, true] } else { up };
                assert_eq!(serving(&world), expected, "{list}, fail_open = {fail_open}");
                assert_eq!(world.registry.vips().first().map(|vip| vip.fails_open), Some(opens));
            }
            let begun =
                reported(&world).iter().filter(|kind| kind.starts_with("fail_open")).count();
            assert_eq!(begun, if fail_open { 2 } else { 0 }, "{:?}", reported(&world));
        }
    }

    /// A backend that drains, or has no weight, is no reason not to fail open.
    #[test]
    fn only_backends_that_take_flows_keep_a_vip_from_failing_open() {
        let mut world = pool(|vip| {
            vip.fail_open = true;
            vip.backends.iter_mut().skip(1).for_each(|backend| backend.weight = 0);
        });
        results(&mut world, "a- b+", Instant::now());
        assert_eq!(serving(&world), [true, true]);
        let mut world = pool(|vip| {
            vip.fail_open = true;
            vip.backends.iter_mut().for_each(|backend| backend.weight = 0);
        });
        results(&mut world, "a- b-", Instant::now());
        assert_eq!(serving(&world), [false, false], "no backend takes flows at all");
    }

    const DAMPING: config::Damping = config::Damping {
        hold: Duration::from_secs(5),
        longest: Duration::from_secs(300),
        steady: Duration::from_secs(60),
    };

    #[test]
    fn a_backend_that_flaps_stays_down_until_its_hold_is_over() {
        let mut world = pool(|vip| vip.damping = Some(DAMPING));
        let (begun, second) = (Instant::now(), Duration::from_secs(1));
        for (at, list, up, events) in [
            (0, "a+ b+ a- a- a- a+ a+", true, "backend_down backend_up"),
            (10, "a- a- a-", false, "backend_down backend_held"),
            (11, "a+ a+ a+", false, ""),
            (14, "", false, ""),
            (15, "", true, "backend_up"),
            (16, "a- a- a- a+ a+", false, "backend_down backend_held"),
            (17, "a- a- a-", false, "backend_held"),
            (36, "a+", false, ""),
            (37, "", false, ""),
            (38, "a+", true, "backend_up"),
        ] {
            let before = reported(&world).len();
            results(&mut world, list, begun + second * at);
            let new = reported(&world).split_off(before).join(" ");
            assert_eq!((serving(&world), new.as_str()), ([up, true], events), "after {at} s");
        }
    }

    #[test]
    fn a_held_backend_serves_where_no_other_does_or_damping_is_turned_off() {
        let held = || {
            let mut world = pool(|vip| vip.damping = Some(DAMPING));
            results(&mut world, "a+ b+ a- a- a- a+ a+ a- a- a- a+ a+", Instant::now());
            assert_eq!(serving(&world), [false, true]);
            world
        };
        let mut world = held();
        results(&mut world, "b- b- b-", Instant::now());
        assert_eq!(serving(&world), [true, false], "the other one is down");
        let mut world = held();
        world.registry.vips_mut().iter_mut().for_each(|vip| vip.config.damping = None);
        results(&mut world, "", Instant::now());
        assert_eq!(serving(&world), [true, true], "off by now");
    }
}
