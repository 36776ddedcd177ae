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
        judge(outcome, world);
        while let Ok(outcome) = self.outcomes.try_recv() {
            judge(outcome, world);
        }
    }
}

fn judge(Outcome { backend: id, result }: Outcome, world: &mut World) {
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
    let (name, vip_name, detail) = (&backend.config.name, &vip.name, &backend.health_detail);
    let (kind, text) = if up {
        (Kind::BackendUp, format!("backend {name} of VIP {vip_name} is up"))
    } else {
        (Kind::BackendDown, format!("backend {name} of VIP {vip_name} is down: {detail}"))
    };
    let event = NewEvent::of(kind, vip_name, name);
    if up {
        backend.slow_start.begin(vip.drain.slow_start, Instant::now());
    }
    world.journal.record(event, text);
    world.dirty = true;
}

/// Detects backends that are up but do not answer clients.
pub(super) fn compare_answers(world: &mut World) {
    let now = Instant::now();
    let World { registry, workers, journal, .. } = world;
    for vip in registry.vips_mut().iter_mut().filter(|v| v.config.protocol == Protocol::Tcp) {
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
}
