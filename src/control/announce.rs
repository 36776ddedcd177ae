//! VIP addresses on NICs: added so that the kernel answers ARP and ND for them, told to the
//! network, and removed again when nobody needs them.
//!
//! An address that an operator put there is left alone. Ours carry an `IFA_PROTO` of their own
//! ([`netlink::OUR_PROTOCOL`]), so that one that survived a crash is recognised and owned again.

use std::net::IpAddr;

use hashbrown::{HashMap, HashSet};
use tracing::{info, warn};

use super::NicView;
use super::gratuitous::{Advertiser, Announcement, frames};
use super::netlink::{self, InterfaceAddress, Link, Netlink};
use crate::config::{Announce, Config, Vip};
use crate::format;

/// Why an address cannot be announced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnounceError {
    /// No such interface.
    #[error(
        "address {address}: interface {interface} does not exist; set announce to one that \
         does, or to \"none\""
    )]
    NoInterface {
        /// The VIP's address, or a source of full NAT.
        address: IpAddr,
        /// What `announce` says.
        interface: String,
    },
    /// The kernel refused.
    #[error(
        "address {address} cannot be added to {interface}: {reason}; holdfast needs \
         CAP_NET_ADMIN, and for IPv6 net.ipv6.conf.{interface}.disable_ipv6 = 0"
    )]
    Refused {
        /// The VIP's address, or a source of full NAT.
        address: IpAddr,
        /// The interface.
        interface: String,
        /// The kernel's word.
        reason: String,
    },
    /// Netlink itself failed.
    #[error("addresses cannot be listed: netlink: {0}")]
    Netlink(String),
}

/// An address on an interface. VIPs that share an address share its place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Assignment {
    /// Interface name.
    pub interface: String,
    /// Address of a VIP, or source of full NAT.
    pub address: IpAddr,
}

impl Assignment {
    /// Where a VIP wants to be announced.
    pub fn of(vip: &Vip) -> Option<Self> {
        match &vip.announce {
            Announce::Interface(interface) => {
                Some(Self { interface: interface.clone(), address: vip.address.ip() })
            }
            Announce::None => None,
        }
    }

    /// Where all of them want to be announced, and the sources of full NAT.
    pub fn all(config: &Config) -> HashSet<Self> {
        let sources = match &config.full_nat.announce {
            Announce::Interface(interface) => {
                let place = |&address| Self { interface: interface.clone(), address };
                config.full_nat.sources.iter().map(place).collect()
            }
            Announce::None => Vec::new(),
        };
        config.vips.iter().filter_map(Self::of).chain(sources).collect()
    }
}

/// An address that is where it should be.
#[derive(Debug, Clone, Copy)]
struct Held {
    ifindex: u32,
    /// We put it there.
    ours: bool,
}

/// Which addresses are on which interface, and whether holdfast put them there.
type Present = HashMap<(u32, IpAddr), bool>;

/// Keeps addresses where they should be.
#[derive(Debug)]
pub struct Announcer {
    netlink: Netlink,
    /// Interface index and MAC of each NIC.
    nics: Vec<(u32, [u8; 6])>,
    held: HashMap<Assignment, Held>,
    advertiser: Advertiser,
}

impl Announcer {
    /// Holds nothing yet.
    pub fn new(netlink: Netlink, nics: &[NicView], advertiser: Advertiser) -> Self {
        let nics = nics.iter().map(|nic| (nic.ifindex, nic.mac)).collect();
        Self { netlink, nics, held: HashMap::new(), advertiser }
    }

    /// Whether holdfast put this address there.
    pub fn is_ours(&self, place: &Assignment) -> bool {
        self.held.get(place).is_some_and(|held| held.ours)
    }

    /// Whether an address that was put there has gone: the kernel takes IPv6 addresses away when
    /// a link goes down.
    pub fn lost_any(&self, addresses: &[InterfaceAddress]) -> bool {
        let present: HashSet<(u32, IpAddr)> =
            addresses.iter().map(|found| (found.ifindex, found.address)).collect();
        self.held.iter().any(|(place, held)| !present.contains(&(held.ifindex, place.address)))
    }

    /// Whether every wanted interface exists.
    ///
    /// # Errors
    /// Names the first one that does not.
    pub async fn check(&self, wanted: &HashSet<Assignment>) -> Result<(), AnnounceError> {
        let links = self.links().await?;
        wanted.iter().try_for_each(|place| find(&links, place).map(|_| ()))
    }

    /// Removes what a process that was killed has left on our NICs and nobody wants any more.
    ///
    /// # Errors
    /// When addresses cannot be listed.
    pub async fn remove_leftovers(
        &self,
        wanted: &HashSet<Assignment>,
    ) -> Result<(), AnnounceError> {
        let wanted: HashSet<IpAddr> = wanted.iter().map(|place| place.address).collect();
        for found in self.addresses().await? {
            let nic = self.nics.iter().any(|&(ifindex, _)| ifindex == found.ifindex);
            if nic && found.ours && !wanted.contains(&found.address) {
                info!("address {}: left by a process that was killed; removed", found.address);
                self.remove(found.ifindex, found.address).await;
            }
        }
        Ok(())
    }

    /// Makes exactly the wanted addresses be there, and has those that are new announced.
    ///
    /// # Errors
    /// The first one; the other addresses have been seen to even so, and a later call tries again.
    pub async fn sync(&mut self, wanted: &HashSet<Assignment>) -> Result<(), AnnounceError> {
        self.withdraw(|place| !wanted.contains(place)).await;
        let (links, present) = (self.links().await?, self.present().await?);
        let (mut new, mut result) = (Vec::new(), Ok(()));
        for place in wanted {
            match self.hold(place, &links, &present).await {
                Ok(announcements) => new.extend(announcements),
                Err(error) => result = result.and(Err(error)),
            }
        }
        self.advertiser.tell(new);
        result
    }

    /// Removes everything that is ours.
    pub async fn withdraw_all(&mut self) {
        self.withdraw(|_| true).await;
    }

    async fn withdraw(&mut self, which: impl Fn(&Assignment) -> bool) {
        let gone: Vec<(Assignment, Held)> = self.held.extract_if(|place, _| which(place)).collect();
        self.advertiser.forget(gone.iter().map(|(place, _)| place.address).collect());
        for (place, held) in gone.into_iter().filter(|(_, held)| held.ours) {
            self.remove(held.ifindex, place.address).await;
            info!("address {} removed from {}", place.address, place.interface);
        }
    }

    async fn remove(&self, ifindex: u32, address: IpAddr) {
        if let Err(error) = self.netlink.remove_address(ifindex, address).await {
            warn!("address {address} cannot be removed: {error}; remove it with `ip address del`");
        }
    }

    /// Sees to one address; what is to be told if it was not held before.
    async fn hold(
        &mut self,
        place: &Assignment,
        links: &[Link],
        present: &Present,
    ) -> Result<Vec<Announcement>, AnnounceError> {
        let link = find(links, place)?;
        let known = self.held.get(place).is_some_and(|held| held.ifindex == link.index);
        let ours = match present.get(&(link.index, place.address)) {
            Some(_) if known => return Ok(Vec::new()),
            Some(&ours) => ours,
            None => self.add(place, link.index).await?,
        };
        match ours {
            true => info!("address {} is announced on {}", place.address, place.interface),
            false => info!("address {} was on {} before; it stays", place.address, place.interface),
        }
        self.held.insert(place.clone(), Held { ifindex: link.index, ours });
        Ok(self.announcements(link, place.address))
    }

    async fn add(&self, place: &Assignment, ifindex: u32) -> Result<bool, AnnounceError> {
        let added = self.netlink.add_address(ifindex, place.address).await;
        added.map_err(|error| AnnounceError::Refused {
            address: place.address,
            interface: place.interface.clone(),
            reason: reason(&error),
        })
    }

    /// On the loopback or a dummy device it would not be heard: it is told on every NIC instead, where
    /// the kernel answers ARP for all of its addresses.
    fn announcements(&self, link: &Link, address: IpAddr) -> Vec<Announcement> {
        let own = link.mac.map(|mac| (link.index, mac));
        let ways = if link.is_silent() { self.nics.clone() } else { own.into_iter().collect() };
        let told = |(ifindex, mac)| Announcement { ifindex, address, frames: frames(mac, address) };
        ways.into_iter().map(told).collect()
    }

    async fn present(&self) -> Result<Present, AnnounceError> {
        let addresses = self.addresses().await?.into_iter();
        Ok(addresses.map(|found| ((found.ifindex, found.address), found.ours)).collect())
    }

    async fn links(&self) -> Result<Vec<Link>, AnnounceError> {
        self.netlink.links().await.map_err(|error| AnnounceError::Netlink(reason(&error)))
    }

    async fn addresses(&self) -> Result<Vec<InterfaceAddress>, AnnounceError> {
        self.netlink.addresses().await.map_err(|error| AnnounceError::Netlink(reason(&error)))
    }
}

fn find<'a>(links: &'a [Link], place: &Assignment) -> Result<&'a Link, AnnounceError> {
    links.iter().find(|link| link.name == place.interface).ok_or_else(|| {
        let Assignment { interface, address } = place.clone();
        AnnounceError::NoInterface { address, interface }
    })
}

/// The kernel's word without the crate's wrapping.
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
        let place = Assignment { interface: "eth1".to_owned(), address: web.address.ip() };
        let mut config = config(vec![web.clone(), web, quiet]);
        assert_eq!(Assignment::all(&config), HashSet::from([place.clone()]));
        config.full_nat.sources = vec![[10, 0, 0, 48].into()];
        assert_eq!(Assignment::all(&config), HashSet::from([place.clone()]));
        config.full_nat.announce = Announce::Interface("eth2".to_owned());
        let source = Assignment { interface: "eth2".to_owned(), address: [10, 0, 0, 48].into() };
        assert_eq!(Assignment::all(&config), HashSet::from([place, source]));
    }
}
