//! Backends that can be asked for flows: their hellos, and changes of what has come of them.

use tokio::sync::mpsc;

use super::world::World;
use crate::control::events::{Journal, Kind, NewEvent};
use crate::control::hello::{Hellos, Replied, Reply};
use crate::control::state::BackendEntry;

/// Maximum number of queued replies; further ones wait in their tasks.
const REPLIES: usize = 1024;

/// Running hellos and their replies.
pub(super) struct Asking {
    hellos: Hellos,
    replies: mpsc::Receiver<Replied>,
}

impl Asking {
    pub(super) fn new() -> Self {
        let (sender, replies) = mpsc::channel(REPLIES);
        Self { hellos: Hellos::new(sender), replies }
    }

    /// Makes hellos run to exactly the backends of VIPs that ask.
    pub(super) fn sync(&mut self, world: &World) {
        self.hellos.sync(world.registry.hellos(&world.config.tunnels));
    }

    /// Waits for the next reply.
    pub(super) async fn reply(&mut self) -> Option<Replied> {
        self.replies.recv().await
    }

    /// Records a reply, and all others that have arrived: together they lead to one table.
    pub(super) fn record(&mut self, replied: Replied, world: &mut World) {
        record(replied, world);
        while let Ok(replied) = self.replies.try_recv() {
            record(replied, world);
        }
    }
}

fn record(Replied { backend: id, reply }: Replied, world: &mut World) {
    let Some((vip, backend)) = world.registry.at_mut(id.index) else { return };
    // The reply may have been under way when the backend was removed.
    if backend.id != id {
        return;
    }
    let was_ready = backend.program.is_ready();
    if !backend.program.observe(reply) {
        return;
    }
    report(&mut world.journal, &vip.name, backend, was_ready);
    world.dirty |= was_ready != backend.program.is_ready();
}

fn report(journal: &mut Journal, vip: &str, backend: &BackendEntry, was_ready: bool) {
    let (name, reply) = (&backend.config.name, backend.program.reply());
    match (was_ready, reply) {
        (_, Reply::Ready) => {
            let text = format!("backend {name} of VIP {vip} can be asked for connections");
            journal.record(NewEvent::of(Kind::ProgramFound, vip, name), text);
        }
        (_, Reply::Unknown) => {}
        (_, _) => {
            let hint = reply.hint();
            let text =
                format!("backend {name} of VIP {vip} cannot be asked for connections: {hint}");
            journal.record(NewEvent::of(Kind::ProgramMissing, vip, name), text);
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use super::super::world::tests::{reported, world};
    use super::*;
    use crate::control::state::tests::{backend, vip};
    use crate::forwarding::Ask;
    use crate::net::{FleetKey, Forward};

    fn world_of(ask: Ask) -> World {
        let mut vip = vip("web", &[backend("a", 1), backend("b", 2)]);
        vip.forward = Forward::Dsr;
        vip.policy.ask = ask;
        let mut world = world(vec![vip]);
        world.config.tunnels.fleet = Some([FleetKey([1; 16]); 2]);
        world
    }

    #[test]
    fn a_backend_is_asked_from_its_first_answer_until_three_are_missing() {
        let mut world = world_of(Ask::All);
        let backend = world.registry.vips()[0].backends[1].id;
        let can_be_asked = |world: &World| {
            let table = world.publisher.current();
            table.backend(backend.index).unwrap().can_be_asked
        };
        assert!(!can_be_asked(&world), "nothing is known");
        for (reply, expected) in [
            (Reply::Silent, false),
            (Reply::Ready, true),
            (Reply::Silent, true),
            (Reply::Silent, true),
            (Reply::Silent, false),
        ] {
            record(Replied { backend, reply }, &mut world);
            if world.dirty {
                world.publish();
            }
            assert_eq!(can_be_asked(&world), expected, "{reply:?}");
        }
        let (found, missing) = ("backend_program_found", "backend_program_missing");
        assert_eq!(reported(&world), [missing, found, missing]);
    }

    #[test]
    fn hellos_go_to_backends_of_vips_that_ask() {
        let count = |world: &World| world.registry.hellos(&world.config.tunnels).count();
        let mut world = world_of(Ask::History);
        assert_eq!(count(&world), 2);
        world.config.tunnels.fleet = None;
        assert_eq!(count(&world), 0, "without a key there is nothing to say");
        assert_eq!(count(&world_of(Ask::Never)), 0);
    }
}
