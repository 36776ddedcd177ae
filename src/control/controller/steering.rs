//! The XDP program: its rules, kept in sync with VIPs and backends, and its attachment.

use tracing::{error, warn};

use super::world::World;
use crate::control::SteerRules;
use crate::control::lists::Lists;
use crate::control::view::{
    AccessDrops, AccessMaps, AttachedView, NicNow, SocketStatistics, SteerCounters, SteeringProgram,
};
use crate::net::{NicIndex, VipId};

/// Rules of the XDP program.
pub(super) struct Steering {
    port: Box<dyn SteeringProgram>,
    /// Rules that were sent last.
    rules: SteerRules,
    /// Whether these were refused; they are sent again every second.
    pending: bool,
}

impl Steering {
    pub(super) fn new(port: Box<dyn SteeringProgram>) -> Self {
        Self { port, rules: SteerRules::default(), pending: false }
    }

    /// Sends the first rules.
    pub(super) fn start(&mut self, world: &World) -> Result<(), String> {
        self.sync(wanted(world))
    }

    /// Attaches the program to every NIC.
    pub(super) fn attach(&mut self) -> Result<Vec<AttachedView>, String> {
        self.port.attach()
    }

    fn sync(&mut self, rules: SteerRules) -> Result<(), String> {
        if rules == self.rules && !self.pending {
            return Ok(());
        }
        let result = self.port.sync(&rules);
        self.pending = result.is_err();
        self.rules = rules;
        result
    }

    /// Removes rules that are no longer wanted, and adds none.
    pub(super) fn withdraw(&mut self, world: &World) -> Result<(), String> {
        self.sync(self.rules.intersection(&wanted(world)))
    }

    /// Brings the program up to date; if it has no room for removed backends and listeners, they
    /// are given up.
    pub(super) fn follow(&mut self, world: &mut World) -> Result<(), String> {
        let result = self.sync(wanted(world));
        if result.is_ok() || world.registry.lingering() == 0 {
            return result;
        }
        warn!("XDP program: no room for the flows of what reloads have removed: they are given up");
        world.registry.forget_removed();
        world.let_go();
        self.sync(wanted(world))
    }

    /// Brings the program up to date; an error is logged, and retried every second.
    pub(super) fn follow_or_retry(&mut self, world: &mut World) {
        let failed_before = self.pending;
        if let Err(reason) = self.follow(world)
            && !failed_before
        {
            error!("XDP program: rules could not be set: {reason}; tried again every second");
        }
    }

    /// Sends refused rules again.
    pub(super) fn retry(&mut self, world: &mut World) {
        if self.pending {
            self.follow_or_retry(world);
        }
    }

    /// Returns the current state of a NIC.
    pub(super) fn nic_now(&mut self, nic: NicIndex) -> Result<NicNow, String> {
        self.port.nic_now(nic)
    }

    /// Attaches the program to a NIC again.
    pub(super) fn attach_again(&mut self, nic: NicIndex) -> Result<(), String> {
        self.port.attach_again(nic)
    }

    /// Attaches the guard of a NIC to an interface.
    pub(super) fn guard_again(&mut self, nic: NicIndex, ifindex: u32) -> Result<(), String> {
        self.port.guard_again(nic, ifindex)
    }

    /// Sets the MAC of a NIC in its program.
    pub(super) fn set_mac(&mut self, nic: NicIndex, mac: [u8; 6]) -> Result<(), String> {
        self.port.set_mac(nic, mac)
    }

    /// Takes the maps of the lists, once.
    pub(super) fn take_lists(&mut self) -> Result<Box<dyn AccessMaps>, String> {
        self.port.take_lists()
    }

    /// Returns the packets of a VIP that the lists have dropped.
    pub(super) fn access_drops(&mut self, vip: VipId) -> AccessDrops {
        self.port.access_drops(vip)
    }

    /// Leaves programs and guards on the NICs at the end of this process.
    pub(super) fn leave(&mut self) {
        self.port.leave();
    }

    /// Returns the counters of the first `nics` NICs.
    pub(super) fn counters(&mut self, nics: usize) -> Vec<(SteerCounters, SocketStatistics)> {
        let nics = (0..).map(NicIndex).take(nics);
        nics.map(|nic| (self.port.counters(nic), self.port.socket_statistics(nic))).collect()
    }
}

fn wanted(world: &World) -> SteerRules {
    let World { config, registry, network, .. } = world;
    let rules = config.tunnels.steered(registry.steer_rules(&network.addresses));
    Lists::of(&config.access, registry).steered(rules, registry)
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::super::world::tests::world;
    use super::*;
    use crate::control::state::tests::{backend, vip};
    use crate::forwarding::FlowAction;

    /// Room of a fake program for rules of VIPs, and the number of such rules in each call.
    #[derive(Default)]
    pub struct Room {
        pub vips: usize,
        pub sent: Vec<usize>,
    }

    struct Program(Rc<RefCell<Room>>);

    impl SteeringProgram for Program {
        fn sync(&mut self, rules: &SteerRules) -> Result<(), String> {
            let mut room = self.0.borrow_mut();
            room.sent.push(rules.vips.len());
            if rules.vips.len() > room.vips { Err("map full".to_owned()) } else { Ok(()) }
        }

        fn attach(&mut self) -> Result<Vec<AttachedView>, String> {
            Ok(Vec::new())
        }

        fn counters(&mut self, _nic: NicIndex) -> SteerCounters {
            SteerCounters::default()
        }

        fn access_drops(&mut self, _vip: VipId) -> AccessDrops {
            AccessDrops::default()
        }

        fn take_lists(&mut self) -> Result<Box<dyn AccessMaps>, String> {
            Err("no lists".to_owned())
        }

        fn socket_statistics(&mut self, _nic: NicIndex) -> SocketStatistics {
            SocketStatistics::default()
        }

        fn nic_now(&mut self, _nic: NicIndex) -> Result<NicNow, String> {
            Ok(NicNow::Gone)
        }

        fn attach_again(&mut self, _nic: NicIndex) -> Result<(), String> {
            Ok(())
        }

        fn guard_again(&mut self, _nic: NicIndex, _ifindex: u32) -> Result<(), String> {
            Ok(())
        }

        fn set_mac(&mut self, _nic: NicIndex, _mac: [u8; 6]) -> Result<(), String> {
            Ok(())
        }

        fn leave(&mut self) {}
    }

    /// Returns a [`Steering`] with a program that has room for this many VIPs.
    pub fn steering(vips: usize) -> (Steering, Rc<RefCell<Room>>) {
        let room = Rc::new(RefCell::new(Room { vips, sent: Vec::new() }));
        (Steering::new(Box::new(Program(Rc::clone(&room)))), room)
    }

    #[test]
    fn refused_rules_are_sent_again_until_they_are_taken() {
        let mut world = world(vec![vip("web", &[backend("a", 1)])]);
        let (mut steering, room) = steering(0);
        steering.follow_or_retry(&mut world);
        steering.retry(&mut world);
        assert_eq!(room.borrow().sent, [1, 1]);
        room.borrow_mut().vips = 1;
        steering.retry(&mut world);
        steering.retry(&mut world);
        steering.follow_or_retry(&mut world);
        assert_eq!(room.borrow().sent, [1, 1, 1], "what was taken is not sent again");
    }

    #[test]
    fn without_room_what_reloads_have_removed_is_given_up() {
        let mut web = vip("web", &[backend("a", 1)]);
        web.on_remove = FlowAction::Keep;
        let mut world = world(vec![web.clone()]);
        let (mut steering, room) = steering(1);
        steering.start(&world).unwrap_or_default();
        web.ports = crate::forwarding::Ports::of(&[81]);
        let now = tokio::time::Instant::now();
        assert!(world.registry.apply(&[web], &world.workers, now).is_ok());
        world.dirty = false;
        assert_eq!(steering.follow(&mut world), Ok(()));
        assert_eq!(room.borrow().sent, [1, 2, 1]);
        assert_eq!(world.registry.lingering(), 0);
        assert!(world.dirty && world.readdress, "table and addresses follow");
    }
}
