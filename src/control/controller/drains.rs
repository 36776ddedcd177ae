//! Drains: requests, deadlines, and the return to service.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use tokio::time::Instant;

use super::health::Health;
use super::world::World;
use crate::config;
use crate::control::api::{DrainRequest, Name, Ordered, UndrainRequest};
use crate::control::drain::Step;
use crate::control::events::{Kind, NewEvent};
use crate::control::flows::list;
use crate::control::forecast::Forecaster;
use crate::control::hook::Hook;
use crate::control::pins::Pins;
use crate::control::refusal::Refusal;
use crate::control::state::{BackendEntry, VipEntry};
use crate::control::view::Clock;
use crate::control::{counters, status};
use crate::format::counted;
use crate::forwarding::Service;
use crate::net::BackendIndex;

/// Consequences of the steps of drains.
struct Consequences {
    /// Backends that begin their next generation.
    ended: Vec<BackendIndex>,
    /// Drained backends for the hook, each with the number of its terminated flows.
    drained: Vec<(Name, u64)>,
    /// Events to report, each with its text for the log.
    events: Vec<(NewEvent, String)>,
}

/// State of drains outside the registry: forecasts, and the command for the end.
pub(super) struct Drains {
    forecaster: Forecaster,
    hook: Hook,
}

impl Drains {
    pub(super) fn new(tables: Vec<Arc<dyn Pins>>, clock: Clock, on_drained: &[String]) -> Self {
        Self { forecaster: Forecaster::new(tables, clock), hook: Hook::new(on_drained) }
    }

    /// Advances every drain: its flows may have ended, or its deadline may have come.
    pub(super) fn advance(&mut self, world: &mut World, health: &mut Health, now: Instant) {
        self.forecaster.advance(&mut world.registry, &world.workers, now);
        let steps = steps(world, now);
        for (event, text) in steps.events {
            world.journal.record(event, text);
        }
        if !steps.ended.is_empty() {
            for index in steps.ended {
                world.registry.end_generation(index);
            }
            health.sync(&world.registry);
            world.dirty = true;
        }
        for (name, flows_cut) in &steps.drained {
            self.run_hook(world, name, *flows_cut);
        }
    }

    fn run_hook(&self, world: &World, name: &Name, flows_cut: u64) {
        let Name { vip, backend } = name;
        let Some((_, entry)) = world.registry.find(vip, backend) else { return };
        let environment = vec![
            ("HOLDFAST_EVENT", Kind::Drained.as_str().to_owned()),
            ("HOLDFAST_VIP", vip.clone()),
            ("HOLDFAST_BACKEND", backend.clone()),
            ("HOLDFAST_ADDRESS", entry.config.address.to_string()),
            ("HOLDFAST_FLOWS_CUT", flows_cut.to_string()),
            ("HOLDFAST_SOCKET", world.config.control.socket.display().to_string()),
        ];
        self.hook.run(format!("{vip}/{backend}"), environment);
    }
}

fn steps(world: &mut World, now: Instant) -> Consequences {
    let mut steps = Consequences { ended: Vec::new(), drained: Vec::new(), events: Vec::new() };
    let World { registry, workers, dirty, .. } = world;
    for (vip, entry) in registry.backends_mut() {
        if entry.drain.service() != Service::Draining {
            continue;
        }
        let flows = counters::flows_active(workers, entry.id.index);
        if let Some(step) = entry.drain.advance(flows, vip.drain.then, now) {
            *dirty |= matches!(step, Step::Resets { .. });
            steps.take(step, vip, entry);
        }
    }
    steps
}

/// Begins drains, or moves their deadlines: all that were requested, or none.
pub(super) fn drain(world: &mut World, order: &DrainRequest) -> Result<Ordered, Refusal> {
    if order.deadline_s == Some(0) {
        let error = "deadline_s = 0: use at least 1; without it, flows end by themselves";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, error));
    }
    let names = all_names(&order.vip, &order.backend, &order.also);
    all_known(world, &names)?;
    if !order.force {
        refuse_the_last(world, &names)?;
    }
    let mut begun = false;
    for name in &names {
        begun |= begin_drain(world, name, order.deadline_s.map(Duration::from_secs));
    }
    if begun {
        // Publishes at once, not at the end of the turn: the reply states the new state.
        world.publish();
    }
    ordered(world, &names)
}

/// Begins one drain, or moves its deadline. Returns true if the forwarding table changes.
fn begin_drain(world: &mut World, name: &Name, deadline: Option<Duration>) -> bool {
    let Name { vip, backend } = name;
    let now = Instant::now();
    let Some((config, index)) =
        world.registry.find(vip, backend).map(|(v, b)| (v.config.drain, b.id.index))
    else {
        return false;
    };
    let flows = world.flows_active(index);
    let Some(entry) = world.registry.find_mut(vip, backend) else { return false };
    // The configuration's deadline is only for drains that begin.
    let active = entry.drain.service() == Service::Active;
    let deadline = deadline.or(config.deadline.filter(|_| active));
    let begun = entry.drain.begin(deadline, flows, now);
    let left = entry.drain.deadline_in_s(now);
    let until = left.map_or_else(|| ", no deadline".to_owned(), |s| format!(", deadline in {s} s"));
    let what = if begun { "drains" } else { "drains already" };
    let text = format!("backend {backend} of VIP {vip} {what}: {}{until}", counted(flows, "flow"));
    let event = NewEvent::of(Kind::DrainBegun, vip, backend).with("flows_left", flows);
    world.journal.record(left.iter().fold(event, |event, &s| event.with("deadline_in_s", s)), text);
    begun
}

/// Returns backends to service: all that were named, or none.
pub(super) fn undrain(world: &mut World, order: &UndrainRequest) -> Result<Ordered, Refusal> {
    let names = all_names(&order.vip, &order.backend, &order.also);
    all_known(world, &names)?;
    let mut changed = false;
    for Name { vip, backend } in &names {
        let slow_start = world.registry.find(vip, backend).map(|(v, _)| v.config.drain.slow_start);
        let (Some(over), Some(entry)) = (slow_start, world.registry.find_mut(vip, backend)) else {
            continue;
        };
        if entry.drain.cancel() {
            entry.forecast = None;
            entry.slow_start.begin(over, Instant::now());
            let text = format!("backend {backend} of VIP {vip} is back in service");
            world.journal.record(NewEvent::of(Kind::Undrained, vip, backend), text);
            changed = true;
        }
    }
    if changed {
        world.publish();
    }
    ordered(world, &names)
}

/// Raises the share of new flows of backends in slow start.
pub(super) fn advance_slow_starts(world: &mut World, now: Instant) {
    for (_, backend) in world.registry.backends_mut() {
        world.dirty |= backend.slow_start.advance(now);
    }
}

fn ordered(world: &World, names: &[Name]) -> Result<Ordered, Refusal> {
    let now = Instant::now();
    let status = |Name { vip, backend }: &Name| {
        let found = world.registry.find(vip, backend);
        let (vip, entry) = found.ok_or_else(|| unknown(world, vip, backend))?;
        Ok(status::backend_status(vip, entry, &world.workers, &world.nics, now))
    };
    let (first, others) = names.split_first().ok_or_else(|| unknown(world, "", ""))?;
    let also = others.iter().map(status).collect::<Result<_, Refusal>>()?;
    Ok(Ordered { backend: status(first)?, also })
}

fn all_known(world: &World, names: &[Name]) -> Result<(), Refusal> {
    let mut missing = names.iter().filter(|n| world.registry.find(&n.vip, &n.backend).is_none());
    missing.next().map_or(Ok(()), |name| Err(unknown(world, &name.vip, &name.backend)))
}

/// Returns an error for an unknown name, with the names that exist.
fn unknown(world: &World, vip: &str, backend: &str) -> Refusal {
    let entry = world.registry.vips().iter().find(|entry| entry.config.name == vip);
    let error = match entry {
        None => {
            let vips = world.registry.vips().iter().map(|entry| entry.config.name.clone());
            format!("no VIP is named {vip:?}; there are: {}", list(vips))
        }
        Some(entry) => {
            let backends = entry.backends.iter().map(|entry| entry.config.name.clone());
            let backends = list(backends);
            format!("VIP {vip} has no backend named {backend:?}; there are: {backends}")
        }
    };
    Refusal::new(StatusCode::NOT_FOUND, error)
}

/// Returns an error if draining these would leave a VIP without a backend that takes new flows.
fn refuse_the_last(world: &World, names: &[Name]) -> Result<(), Refusal> {
    let errors: Vec<String> = world
        .registry
        .vips()
        .iter()
        .filter(|vip| leaves_none(vip, names))
        .map(|vip| {
            let name = &vip.config.name;
            let fate = if vip.config.policy.reject_no_backend { "refused" } else { "dropped" };
            format!(
                "VIP {name} would be left without a backend that takes new flows; add --force \
                 (\"force\": true) if new clients are to be {fate}, or first give it another \
                 backend that is up, has weight and does not drain (holdfast status)"
            )
        })
        .collect();
    if errors.is_empty() { Ok(()) } else { Err(Refusal { status: StatusCode::CONFLICT, errors }) }
}

impl Consequences {
    fn take(&mut self, step: Step, vip: &config::Vip, entry: &BackendEntry) {
        let (vip, backend) = (vip.name.clone(), entry.config.name.clone());
        let name = format!("backend {backend} of VIP {vip}");
        let of = |kind| NewEvent::of(kind, &vip, &backend);
        match step {
            Step::Drained => {
                self.events
                    .push((of(Kind::Drained).with("flows_cut", 0), format!("{name} is drained")));
                self.drained.push((Name { vip, backend }, 0));
            }
            Step::Kept { flows_left } | Step::Resets { flows_left } => {
                let what = match step {
                    Step::Resets { .. } => "reset",
                    _ => "kept",
                };
                let text =
                    format!("{name}: deadline, {} left: {what}", counted(flows_left, "flow"));
                self.events.push((of(Kind::DrainDeadline).with("flows_left", flows_left), text));
            }
            Step::Cut { flows_cut, reported } => {
                self.ended.push(entry.id.index);
                if !reported {
                    let text = format!("{name} is drained: {} cut", counted(flows_cut, "flow"));
                    self.events.push((of(Kind::Drained).with("flows_cut", flows_cut), text));
                    self.drained.push((Name { vip, backend }, flows_cut));
                }
            }
        }
    }
}

/// Returns the backends of a request, each once.
fn all_names(vip: &str, backend: &str, also: &[Name]) -> Vec<Name> {
    let first = Name { vip: vip.to_owned(), backend: backend.to_owned() };
    let mut names: Vec<Name> = Vec::with_capacity(also.len() + 1);
    for name in std::iter::once(&first).chain(also) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// Returns whether draining `names` takes the last backend from a VIP: at least one of them could
/// get new flows, and no other backend can.
fn leaves_none(vip: &VipEntry, names: &[Name]) -> bool {
    let named = |entry: &BackendEntry| {
        names.iter().any(|name| name.vip == vip.config.name && name.backend == entry.config.name)
    };
    let begins = |entry: &BackendEntry| {
        entry.drain.service() == Service::Active && entry.config.weight > 0 && named(entry)
    };
    vip.backends.iter().any(begins)
        && !vip.backends.iter().any(|entry| vip.is_served_by(entry) && !named(entry))
}

#[cfg(test)]
mod tests {
    use super::super::world::tests::{reported, world};
    use super::*;
    use crate::config;
    use crate::control::health::Hysteresis;
    use crate::control::state::tests::{backend, tcp_health, vip};
    use crate::units::Ticks;

    fn order(backend: &str, deadline_s: Option<u64>) -> DrainRequest {
        let (vip, backend) = ("web".to_owned(), backend.to_owned());
        DrainRequest { vip, backend, also: Vec::new(), deadline_s, force: false }
    }

    /// Drains of this VIP end with a rehash: the pins that are left become stale.
    #[tokio::test]
    async fn a_deadline_ends_the_generation_of_a_backend_that_has_flows() {
        let mut world = world(vec![vip("web", &[backend("a", 1), backend("b", 2)])]);
        let mut drains = Drains::new(Vec::new(), Arc::new(|| Ticks(0)), &[]);
        let mut health = Health::new();
        if let Some(stats) = world.workers.first().and_then(|w| w.stats.backends.first()) {
            stats.flows_active.add(3);
        }
        let generation =
            |world: &World| world.registry.find("web", "a").map(|(_, a)| a.id.generation);
        assert!(drain(&mut world, &order("a", Some(60))).is_ok());
        let now = Instant::now();
        drains.advance(&mut world, &mut health, now);
        assert_eq!(
            (reported(&world), generation(&world)),
            (vec!["drain_begun".to_owned()], Some(0))
        );
        drains.advance(&mut world, &mut health, now + Duration::from_secs(60));
        assert_eq!(
            (reported(&world).last().cloned(), generation(&world)),
            (Some("drained".to_owned()), Some(1))
        );
        assert!(world.dirty, "the table follows");
    }

    #[test]
    fn a_backend_is_drained_while_others_serve_as_their_vip_fails_open() {
        let web = vip("web", &[backend("a", 1), backend("b", 2)]);
        let mut world = world(vec![config::Vip { health: tcp_health(), ..web }]);
        for vip in world.registry.vips_mut() {
            vip.backends.iter_mut().for_each(|entry| entry.health = Hysteresis::after(false));
        }
        let refused = drain(&mut world, &order("a", None)).err();
        assert_eq!(refused.map(|refusal| refusal.status), Some(StatusCode::CONFLICT));
        world.registry.vips_mut().iter_mut().for_each(|vip| vip.fails_open = true);
        assert!(drain(&mut world, &order("a", None)).is_ok());
        let last = drain(&mut world, &order("b", None)).err();
        assert_eq!(last.map(|refusal| refusal.status), Some(StatusCode::CONFLICT));
    }

    #[test]
    fn the_last_backend_of_a_vip_is_drained_by_force_only() {
        let mut world = world(vec![vip("web", &[backend("a", 1), backend("b", 2)])]);
        assert!(drain(&mut world, &order("a", None)).is_ok());
        let refused = drain(&mut world, &order("b", None)).err();
        assert_eq!(refused.map(|refusal| refusal.status), Some(StatusCode::CONFLICT));
        assert!(drain(&mut world, &DrainRequest { force: true, ..order("b", None) }).is_ok());
    }
}
