//! Limits of flows per backend: reports backends that are full.

use super::world::World;
use crate::control::counters;
use crate::control::events::{Kind, NewEvent};

/// Compares the backends with their limits.
pub(super) fn watch(world: &mut World) {
    let World { registry, workers, journal, .. } = world;
    for vip in registry.vips_mut() {
        for backend in &mut vip.backends {
            let max = backend.config.max_connections;
            if max.is_none() && !backend.limit.is_full() {
                continue;
            }
            let flows = counters::flows_active(workers, backend.id.index);
            let refused = counters::over_limit(workers, backend.id.index, &backend.base);
            let Some(full) = backend.limit.read(max, flows, refused) else { continue };
            let (name, vip) = (&backend.config.name, &vip.config.name);
            let max = max.map_or_else(String::new, |max| format!(" of {max}"));
            let (kind, what) = match full {
                true => (Kind::BackendFull, "is full, and gets no new ones"),
                false => (Kind::BackendHasRoom, "has room for new ones again"),
            };
            let text = format!("backend {name} of VIP {vip}: {flows}{max} flows: it {what}");
            journal.record(NewEvent::of(kind, vip, name).with("flows", flows), text);
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::super::world::tests::{reported, world};
    use super::*;
    use crate::config::Backend;
    use crate::control::state::tests::{backend, vip};

    #[test]
    fn a_full_backend_is_reported_once_and_when_it_has_room() {
        let limited = Backend { max_connections: Some(10), ..backend("a", 1) };
        let mut world = world(vec![vip("web", &[limited, backend("b", 2)])]);
        let stats = std::sync::Arc::clone(&world.workers.first().unwrap().stats);
        stats.backends.first().unwrap().flows_active.add(9);
        watch(&mut world);
        assert!(reported(&world).is_empty());
        stats.backends.first().unwrap().flows_active.add(1);
        watch(&mut world);
        watch(&mut world);
        assert_eq!(reported(&world), ["backend_full"]);
        stats.backends.first().unwrap().flows_active.sub(5);
        watch(&mut world);
        watch(&mut world);
        assert_eq!(reported(&world), ["backend_full", "backend_has_room"]);
    }
}
