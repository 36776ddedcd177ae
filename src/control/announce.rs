//! VIP addresses on NICs. They are added so that the kernel answers ARP and ND for them, announced
//! to the network, and removed when no VIP uses them any longer.
//!
//! Addresses that an operator has added are left alone. Addresses added by holdfast carry their own
//! `IFA_PROTO` ([`netlink::OUR_PROTOCOL`]), so that one that survived a crash is recognised and
//! owned again.

use std::net::IpAddr;

use hashbrown::{HashMap, HashSet};
use tracing::{info, warn};

use super::error::AnnounceError;
use super::gratuitous::{Advertiser, Announcement, frames};
use super::netlink::{self, InterfaceAddress, Link, Netlink};
use super::view::NicView;
use crate::config::{Announce, Config, Vip};
use crate::format;

/// An address assigned to an interface. VIPs that share an address share its assignment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Assignment {
    /// Interface name.
    pub interface: String,
    /// Address of a VIP, or full-NAT source.
    pub address: IpAddr,
}

impl Assignment {
    /// Returns the assignment of a VIP; `None` if it is not announced.
    pub fn of(vip: &Vip) -> Option<Self> {
        match &vip.announce {
            Announce::Interface(interface) => {
                Some(Self { interface: interface.clone(), address: vip.address.ip() })
            }
            Announce::None => None,
        }
    }

    /// Returns the assignments of all VIPs and of the full-NAT sources.
    pub fn all(config: &Config) -> HashSet<Self> {
        let sources = match &config.full_nat.announce {
            Announce::Interface(interface) => {
                let assignment = |&address| Self { interface: interface.clone(), address };
                config.full_nat.sources.iter().map(assignment).collect()
            }
            Announce::None => Vec::new(),
        };
        config.vips.iter().filter_map(Self::of).chain(sources).collect()
    }
}

/// An assignment that is in place.
#[derive(Debug, Clone, Copy)]
struct Held {
    ifindex: u32,
    /// Whether holdfast added the address.
    ours: bool,
}

/// Addresses present on each interface, and whether holdfast added them.
type Present = HashMap<(u32, IpAddr), bool>;

/// Keeps the wanted addresses assigned to their interfaces.
#[derive(Debug)]
pub struct Announcer {
    netlink: Netlink,
    /// Interface index and MAC of each NIC.
    nics: Vec<(u32, [u8; 6])>,
    held: HashMap<Assignment, Held>,
    advertiser: Advertiser,
}

impl Announcer {
    /// Creates an announcer that holds no addresses yet.
    pub fn new(netlink: Netlink, nics: &[NicView], advertiser: Advertiser) -> Self {
        let nics = nics.iter().map(|nic| (nic.ifindex, nic.mac)).collect();
        Self { netlink, nics, held: HashMap::new(), advertiser }
    }

    /// Returns whether holdfast added this address.
    pub fn is_ours(&self, assignment: &Assignment) -> bool {
        self.held.get(assignment).is_some_and(|held| held.ours)
    }

    /// Returns whether an address that was in place has gone: the kernel removes IPv6 addresses
    /// when a link goes down.
    pub fn lost_any(&self, addresses: &[InterfaceAddress]) -> bool {
        let present: HashSet<(u32, IpAddr)> =
            addresses.iter().map(|found| (found.ifindex, found.address)).collect();
        self.held
            .iter()
            .any(|(assignment, held)| !present.contains(&(held.ifindex, assignment.address)))
    }

    /// Checks that the interface of every wanted assignment exists.
    ///
    /// # Errors
    /// [`AnnounceError::NoInterface`] for the first interface that does not exist.
    pub async fn check(&mut self, wanted: &HashSet<Assignment>) -> Result<(), AnnounceError> {
        let links = self.links().await?;
        wanted.iter().try_for_each(|assignment| find(&links, assignment).map(|_| ()))
    }

    /// Removes addresses that a killed process has left on our NICs and that are no longer wanted.
    ///
    /// # Errors
    /// When addresses cannot be listed.
    pub async fn remove_leftovers(
        &mut self,
        wanted: &HashSet<Assignment>,
    ) -> Result<(), AnnounceError> {
        let wanted: HashSet<IpAddr> = wanted.iter().map(|assignment| assignment.address).collect();
        for found in self.addresses().await? {
            let nic = self.nics.iter().any(|&(ifindex, _)| ifindex == found.ifindex);
            if nic && found.ours && !wanted.contains(&found.address) {
                info!("address {}: left by a process that was killed; removed", found.address);
                self.remove(found.ifindex, found.address).await;
            }
        }
        Ok(())
    }

    /// Makes the assigned addresses exactly the wanted ones, and announces new ones.
    ///
    /// # Errors
    /// The first error. The other addresses are processed all the same, and a later call tries
    /// again.
    pub async fn sync(&mut self, wanted: &HashSet<Assignment>) -> Result<(), AnnounceError> {
        self.withdraw(|assignment| !wanted.contains(assignment)).await;
        let (links, present) = (self.links().await?, self.present().await?);
        let (mut new, mut result) = (Vec::new(), Ok(()));
        for assignment in wanted {
            match self.hold(assignment, &links, &present).await {
                Ok(announcements) => new.extend(announcements),
                Err(error) => result = result.and(Err(error)),
            }
        }
        self.advertiser.announce(new);
        result
    }

    /// Announces all addresses of this box on its NICs again, with the MACs that these have now.
    /// Also addresses that holdfast does not hold: backends send to them, and the kernel announces
    /// a new MAC only if `arp_notify` is set.
    ///
    /// # Errors
    /// When links or addresses cannot be listed.
    pub async fn announce_again(&mut self, nics: &[NicView]) -> Result<(), AnnounceError> {
        self.nics = nics.iter().map(|nic| (nic.ifindex, nic.mac)).collect();
        let (links, addresses) = (self.links().await?, self.addresses().await?);
        let find = |ifindex| links.iter().find(|link| link.index == ifindex);
        let is_nic = |link: &&Link| nics.iter().any(|nic| link.mac == Some(nic.mac));
        let on_nics = addresses
            .iter()
            .filter_map(|found| Some((find(found.ifindex).filter(is_nic)?, found.address)));
        let elsewhere = self.held.iter().filter_map(|(assignment, held)| {
            let silent = find(held.ifindex).filter(|link| link.is_silent());
            Some((silent?, assignment.address))
        });
        let all = on_nics.chain(elsewhere);
        let announcements = all.flat_map(|(link, address)| self.announcements(link, address));
        self.advertiser.announce(announcements.collect());
        Ok(())
    }

    /// Removes all addresses that holdfast added, and announces none any longer.
    pub async fn end(&mut self) {
        self.withdraw(|_| true).await;
        self.advertiser.end().await;
    }

    async fn withdraw(&mut self, which: impl Fn(&Assignment) -> bool) {
        let gone: Vec<(Assignment, Held)> =
            self.held.extract_if(|assignment, _| which(assignment)).collect();
        self.advertiser.forget(gone.iter().map(|(assignment, _)| assignment.address).collect());
        for (assignment, held) in gone.into_iter().filter(|(_, held)| held.ours) {
            self.remove(held.ifindex, assignment.address).await;
            info!("address {} removed from {}", assignment.address, assignment.interface);
        }
    }

    async fn remove(&self, ifindex: u32, address: IpAddr) {
        if let Err(error) = self.netlink.remove_address(ifindex, address).await {
            warn!("address {address} cannot be removed: {error}; remove it with `ip address del`");
        }
    }

    /// Assigns one address. Returns the announcements to send if it was not held before.
    async fn hold(
        &mut self,
        assignment: &Assignment,
        links: &[Link],
        present: &Present,
    ) -> Result<Vec<Announcement>, AnnounceError> {
        let link = find(links, assignment)?;
        let known = self.held.get(assignment).is_some_and(|held| held.ifindex == link.index);
        let ours = match present.get(&(link.index, assignment.address)) {
            Some(_) if known => return Ok(Vec::new()),
            Some(&ours) => ours,
            None => self.add(assignment, link.index).await?,
        };
        match ours {
            true => {
                info!("address {} is announced on {}", assignment.address, assignment.interface)
            }
            false => info!(
                "address {} was on {} before; it stays",
                assignment.address, assignment.interface
            ),
        }
        self.held.insert(assignment.clone(), Held { ifindex: link.index, ours });
        Ok(self.announcements(link, assignment.address))
    }

    async fn add(&self, assignment: &Assignment, ifindex: u32) -> Result<bool, AnnounceError> {
        let added = self.netlink.add_address(ifindex, assignment.address).await;
        added.map_err(|error| AnnounceError::Refused {
            address: assignment.address,
            interface: assignment.interface.clone(),
            reason: reason(&error),
        })
    }

    /// Returns the announcements of an address. On the loopback or a dummy device it would not be
    /// heard, so it is announced on every NIC instead, where the kernel answers ARP for all of its
    /// addresses.
    fn announcements(&self, link: &Link, address: IpAddr) -> Vec<Announcement> {
        let own = link.mac.map(|mac| (link.index, mac));
        let ways = if link.is_silent() { self.nics.clone() } else { own.into_iter().collect() };
        let reported =
            |(ifindex, mac)| Announcement { ifindex, address, frames: frames(mac, address) };
        ways.into_iter().map(reported).collect()
    }

    async fn present(&mut self) -> Result<Present, AnnounceError> {
        let addresses = self.addresses().await?.into_iter();
        Ok(addresses.map(|found| ((found.ifindex, found.address), found.ours)).collect())
    }

    async fn links(&mut self) -> Result<Vec<Link>, AnnounceError> {
        self.netlink.links().await.map_err(|error| AnnounceError::Netlink(reason(&error)))
    }

    async fn addresses(&mut self) -> Result<Vec<InterfaceAddress>, AnnounceError> {
        self.netlink.addresses().await.map_err(|error| AnnounceError::Netlink(reason(&error)))
    }
}

fn find<'a>(links: &'a [Link], assignment: &Assignment) -> Result<&'a Link, AnnounceError> {
    links.iter().find(|link| link.name == assignment.interface).ok_or_else(|| {
        let Assignment { interface, address } = assignment.clone();
        AnnounceError::NoInterface { address, interface }
    })
}

/// Returns the kernel's error without the wrapping of the netlink crate.
fn reason(error: &netlink::Error) -> String {
    match error {
        netlink::Error::NetlinkError(message) => format::reason(&message.to_io()),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::reload::tests::config;
    use super::super::state::tests::vip;
    use super::*;

    #[test]
    fn vips_share_a_place_and_may_have_none_and_sources_have_their_own() {
        let mut web = vip("web", &[]);
        let quiet = web.clone();
        web.announce = Announce::Interface("eth1".to_owned());
        let assignment = Assignment { interface: "eth1".to_owned(), address: web.address.ip() };
        let mut config = config(vec![web.clone(), web, quiet]);
        assert_eq!(Assignment::all(&config), HashSet::from([assignment.clone()]));
        config.full_nat.sources = vec![[10, 0, 0, 48].into()];
        assert_eq!(Assignment::all(&config), HashSet::from([assignment.clone()]));
        config.full_nat.announce = Announce::Interface("eth2".to_owned());
        let source = Assignment { interface: "eth2".to_owned(), address: [10, 0, 0, 48].into() };
        assert_eq!(Assignment::all(&config), HashSet::from([assignment, source]));
    }
}
