//! Addresses of VIPs and SNAT sources on the NICs.

use hashbrown::{HashMap, HashSet};
use tracing::debug;

use super::world::World;
use crate::config::{self, Announce, Config};
use crate::control::announce::{Announcer, Assignment};
use crate::control::error::AnnounceError;
use crate::control::netlink::Link;
use crate::control::state::VipEntry;
use crate::control::view::NicView;
use crate::forwarding::FlowAction;

/// State of the announced addresses.
pub(super) struct Announcing {
    announcer: Announcer,
    /// Whether an address is missing from its interface; it is added again every second.
    pending: bool,
    /// Whether addresses may be there that an earlier process has left.
    leftovers: bool,
}

impl Announcing {
    pub(super) fn new(announcer: Announcer) -> Self {
        Self { announcer, pending: false, leftovers: true }
    }

    /// Removes what an earlier process has left, puts every address on its interface, and announces
    /// new ones to the network.
    pub(super) async fn announce(&mut self, world: &mut World) -> Result<(), AnnounceError> {
        world.readdress = false;
        let result = self.put(&places(world)).await;
        self.pending = result.is_err();
        result
    }

    async fn put(&mut self, places: &HashSet<Assignment>) -> Result<(), AnnounceError> {
        if self.leftovers {
            self.announcer.remove_leftovers(places).await?;
            self.leftovers = false;
        }
        self.announcer.sync(places).await
    }

    /// Records whether an address was removed from outside.
    pub(super) fn follow(&mut self, world: &World) {
        self.pending |= self.announcer.lost_any(&world.network.addresses);
    }

    /// Announces again after a failure or a change.
    pub(super) async fn retry(&mut self, world: &mut World) {
        if world.macs_changed {
            match self.announcer.announce_again(&world.nics).await {
                Ok(()) => world.macs_changed = false,
                Err(error) => debug!("{error}; tried again"),
            }
        }
        if (self.pending || world.readdress)
            && let Err(error) = self.announce(world).await
        {
            debug!("{error}; tried again");
        }
    }

    /// Checks that the addresses of a new configuration can be announced.
    pub(super) async fn check(&mut self, new: &Config) -> Result<(), AnnounceError> {
        self.announcer.check(&Assignment::all(new)).await
    }

    /// Removes all announced addresses, and announces none any longer.
    pub(super) async fn end(&mut self) {
        self.announcer.end().await;
    }

    /// Returns the interface that has a VIP's address, if holdfast put it there.
    pub(super) fn interface(&self, vip: &VipEntry) -> Option<String> {
        let place = Assignment::of(&vip.config)?;
        self.announcer.is_ours(&place).then_some(place.interface)
    }
}

/// Returns the wanted assignments of addresses: those of VIPs, of SNAT sources, and of previous
/// listeners with flows that are kept. Where flows are reset, the address is removed at once,
/// because another box may have it by now.
fn places(world: &World) -> HashSet<Assignment> {
    let mut places = Assignment::all(&world.config);
    for vip in world.registry.all_vips() {
        let config::Vip { announce: Announce::Interface(interface), .. } = &vip.config else {
            continue;
        };
        let kept = vip.old.iter().filter(|old| old.flow_action == FlowAction::Keep);
        let addresses = kept.map(|old| old.what.network).filter(|network| network.is_single());
        places.extend(
            addresses
                .map(|network| Assignment { interface: interface.clone(), address: network.ip() }),
        );
    }
    let withdrawn = withdrawn(world);
    places.retain(|place| has_program(world, &place.interface) && !withdrawn.contains(place));
    places
}

/// Returns the assignments of withdrawn VIPs, unless they are those of others, too.
fn withdrawn(world: &World) -> HashSet<Assignment> {
    let all = || world.registry.vips().iter();
    let of = |vip: &VipEntry| Assignment::of(&vip.config);
    let is_withdrawn = |vip: &&VipEntry| vip.config.withdraws && vip.withdrawal.is_withdrawn();
    let mut withdrawn: HashSet<_> = all().filter(is_withdrawn).filter_map(of).collect();
    for announced in all().filter(|vip| !is_withdrawn(vip)).filter_map(of) {
        withdrawn.remove(&announced);
    }
    withdrawn
}

/// Whether packets to an address on an interface meet an XDP program: that of the NIC below it, or,
/// for an interface that is on no NIC, such as the loopback, that of any NIC.
fn has_program(world: &World, interface: &str) -> bool {
    let World { nics, without_program, network, .. } = world;
    if without_program.is_empty() {
        return true;
    }
    let below = nic_below(interface, nics, &network.links);
    below.map_or(without_program.len() < nics.len(), |nic| !without_program.contains(nic))
}

/// Returns the NIC that an interface is, or is a VLAN device of.
fn nic_below<'n>(
    interface: &str,
    nics: &'n [NicView],
    links: &HashMap<u32, Link>,
) -> Option<&'n String> {
    let mut name = interface;
    // A VLAN device may lie on another.
    for _ in 0..3 {
        if let Some(nic) = nics.iter().find(|nic| nic.interface == name) {
            return Some(&nic.interface);
        }
        let link = links.values().find(|link| link.name == name)?;
        name = &links.get(&link.vlan?.below)?.name;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::world::tests::world;
    use super::*;
    use crate::control::neighbour::Snapshot;
    use crate::control::netlink::OnVlan;

    fn link(index: u32, name: &str, below: Option<u32>) -> (u32, Link) {
        let vlan = below.map(|below| OnVlan { below, id: 7, service: false });
        (index, Link { index, name: name.to_owned(), vlan, ..Link::default() })
    }

    fn nic(interface: &str, ifindex: u32) -> NicView {
        NicView {
            interface: interface.to_owned(),
            ifindex,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            driver: "veth".to_owned(),
            mode: "copy".to_owned(),
            multi_buffer: false,
            queues: vec![0],
            rx_queues: 1,
            fallbacks: Vec::new(),
        }
    }

    #[test]
    fn an_address_needs_the_program_of_the_nic_below_it() {
        let mut world = world(Vec::new());
        let links = [
            link(1, "lo", None),
            link(2, "eth1", None),
            link(3, "eth2", None),
            link(4, "eth1.7", Some(2)),
            link(5, "eth1.7.7", Some(4)),
            link(6, "loop", Some(6)),
        ];
        let snapshot = Snapshot { links: HashMap::from(links), ..Snapshot::default() };
        world.network = std::sync::Arc::new(snapshot);
        world.nics = vec![nic("eth1", 2), nic("eth2", 3)];
        let names = ["lo", "eth1", "eth2", "eth1.7", "eth1.7.7", "loop", "none"];
        for (without, expected) in [
            (&[][..], &names[..]),
            (&["eth1"], &["lo", "eth2", "loop", "none"]),
            (&["eth2"], &["lo", "eth1", "eth1.7", "eth1.7.7", "loop", "none"]),
            (&["eth1", "eth2"], &[]),
        ] {
            world.without_program = without.iter().map(|&name| name.to_owned()).collect();
            let found: Vec<_> =
                names.into_iter().filter(|name| has_program(&world, name)).collect();
            assert_eq!(found, expected, "without {without:?}");
        }
    }
}
