//! VIP addresses on NICs: added so that the kernel answers ARP and ND for them, told to the
//! network, and removed again when nobody needs them.
//!
//! An address that an operator put there is left alone. Ours carry an `IFA_PROTO` of their own
//! ([`netlink::OUR_PROTOCOL`]), so that one that survived a crash is recognised and owned again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::icmpv6::NeighborAdvertisementHeader;
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, Icmpv6Type, PacketBuilder};
use hashbrown::{HashMap, HashSet};
use tracing::{info, warn};

use super::NicView;
use super::netlink::{self, InterfaceAddress, Link, Netlink};
use crate::config::{Announce, Config, Vip};
use crate::words;

/// Ethernet broadcast.
const BROADCAST: [u8; 6] = [0xff; 6];
/// All nodes of a link, `ff02::1` (RFC 4291 section 2.7.1), and its MAC (RFC 2464 section 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// Neighbour discovery packets carry the largest hop limit, which proves that no router passed
/// them on (RFC 4861 section 7.1.2).
const ND_HOP_LIMIT: u8 = 255;

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
pub struct Place {
    /// Interface name.
    pub interface: String,
    /// Address of a VIP, or source of full NAT.
    pub address: IpAddr,
}

impl Place {
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

/// Frames that tell a link about an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// Interface to send them out of.
    pub ifindex: u32,
    /// Ethernet frames.
    pub frames: Vec<Vec<u8>>,
}

/// An address that is where it should be.
#[derive(Debug, Clone, Copy)]
struct Held {
    ifindex: u32,
    /// We put it there.
    ours: bool,
}

/// Keeps addresses where they should be.
#[derive(Debug)]
pub struct Announcer {
    netlink: Netlink,
    /// Interface index and MAC of each NIC.
    nics: Vec<(u32, [u8; 6])>,
    held: HashMap<Place, Held>,
}

impl Announcer {
    /// Holds nothing yet.
    pub fn new(netlink: Netlink, nics: &[NicView]) -> Self {
        let nics = nics.iter().map(|nic| (nic.ifindex, nic.mac)).collect();
        Self { netlink, nics, held: HashMap::new() }
    }

    /// Whether holdfast put this address there.
    pub fn is_ours(&self, place: &Place) -> bool {
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
    pub async fn check(&self, wanted: &HashSet<Place>) -> Result<(), AnnounceError> {
        let links = self.links().await?;
        wanted.iter().try_for_each(|place| find(&links, place).map(|_| ()))
    }

    /// Removes what a process that was killed has left on our NICs and nobody wants any more.
    ///
    /// # Errors
    /// When addresses cannot be listed.
    pub async fn remove_leftovers(&self, wanted: &HashSet<Place>) -> Result<(), AnnounceError> {
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

    /// Makes exactly the wanted addresses be there, and returns what is to be told of those that
    /// are new.
    ///
    /// # Errors
    /// The first one; the other addresses have been seen to even so, and a later call tries again.
    pub async fn sync(
        &mut self,
        wanted: &HashSet<Place>,
    ) -> (Vec<Announcement>, Result<(), AnnounceError>) {
        self.withdraw(|place| !wanted.contains(place)).await;
        let (links, addresses) = match self.survey().await {
            Ok(survey) => survey,
            Err(error) => return (Vec::new(), Err(error)),
        };
        let (mut news, mut result) = (Vec::new(), Ok(()));
        for place in wanted {
            match self.hold(place, &links, &addresses).await {
                Ok(announcements) => news.extend(announcements),
                Err(error) => result = result.and(Err(error)),
            }
        }
        (news, result)
    }

    /// Removes everything that is ours.
    pub async fn withdraw_all(&mut self) {
        self.withdraw(|_| true).await;
    }

    async fn withdraw(&mut self, which: impl Fn(&Place) -> bool) {
        let gone: Vec<(Place, Held)> = self.held.extract_if(|place, _| which(place)).collect();
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
        place: &Place,
        links: &[Link],
        addresses: &[InterfaceAddress],
    ) -> Result<Vec<Announcement>, AnnounceError> {
        let link = find(links, place)?;
        let on_link = |found: &&InterfaceAddress| {
            (found.ifindex, found.address) == (link.index, place.address)
        };
        let known = self.held.get(place).filter(|held| held.ifindex == link.index).copied();
        let present = addresses.iter().find(on_link);
        let ours = match present {
            Some(_) if known.is_some() => return Ok(Vec::new()),
            Some(found) => found.ours,
            None => self.add(place, link.index).await?,
        };
        match ours {
            true => info!("address {} is announced on {}", place.address, place.interface),
            false => info!("address {} was on {} before; it stays", place.address, place.interface),
        }
        self.held.insert(place.clone(), Held { ifindex: link.index, ours });
        Ok(self.announcements(link, place.address))
    }

    async fn add(&self, place: &Place, ifindex: u32) -> Result<bool, AnnounceError> {
        let added = self.netlink.add_address(ifindex, place.address).await;
        added.map_err(|error| AnnounceError::Refused {
            address: place.address,
            interface: place.interface.clone(),
            reason: reason(&error),
        })
    }

    /// On the loopback device nobody would hear it: it is told on every NIC instead, where the
    /// kernel answers ARP for all of its addresses.
    fn announcements(&self, link: &Link, address: IpAddr) -> Vec<Announcement> {
        let own = link.mac.map(|mac| (link.index, mac));
        let ways = if link.loopback { self.nics.clone() } else { own.into_iter().collect() };
        let told = |(ifindex, mac)| Announcement { ifindex, frames: frames(mac, address) };
        ways.into_iter().map(told).collect()
    }

    async fn survey(&self) -> Result<(Vec<Link>, Vec<InterfaceAddress>), AnnounceError> {
        Ok((self.links().await?, self.addresses().await?))
    }

    async fn links(&self) -> Result<Vec<Link>, AnnounceError> {
        self.netlink.links().await.map_err(|error| AnnounceError::Netlink(reason(&error)))
    }

    async fn addresses(&self) -> Result<Vec<InterfaceAddress>, AnnounceError> {
        self.netlink.addresses().await.map_err(|error| AnnounceError::Netlink(reason(&error)))
    }
}

fn find<'a>(links: &'a [Link], place: &Place) -> Result<&'a Link, AnnounceError> {
    links.iter().find(|link| link.name == place.interface).ok_or_else(|| {
        let Place { interface, address } = place.clone();
        AnnounceError::NoInterface { address, interface }
    })
}

/// The kernel's word without the crate's wrapping.
fn reason(error: &netlink::Error) -> String {
    match error {
        netlink::Error::NetlinkError(message) => words::reason(&message.to_io()),
        other => other.to_string(),
    }
}

/// The frames that tell a link that `address` is at `mac`.
pub fn frames(mac: [u8; 6], address: IpAddr) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(ip) => [ArpOperation::REQUEST, ArpOperation::REPLY]
            .into_iter()
            .filter_map(|operation| gratuitous_arp(operation, mac, ip))
            .collect(),
        IpAddr::V6(ip) => neighbour_advertisement(mac, ip).into_iter().collect(),
    }
}

/// An ARP announcement (RFC 5227 section 2.3): sender and target are the address itself. Some
/// hosts learn from requests only, others from replies only.
fn gratuitous_arp(operation: ArpOperation, mac: [u8; 6], ip: Ipv4Addr) -> Option<Vec<u8>> {
    // RFC 5227 section 1.1: the target MAC of a request is ignored and should be zero.
    let target = if operation == ArpOperation::REQUEST { [0; 6] } else { mac };
    let (hardware, protocol) = (ArpHardwareId::ETHERNET, EtherType::IPV4);
    let ip = ip.octets();
    let packet = ArpPacket::new(hardware, protocol, operation, &mac, &ip, &target, &ip).ok()?;
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac, BROADCAST).arp(packet).write(&mut frame).ok()?;
    Some(frame)
}

/// An unsolicited neighbour advertisement to all nodes (RFC 4861 section 7.2.6) with the override
/// flag, so that caches that hold another MAC take this one.
fn neighbour_advertisement(mac: [u8; 6], ip: Ipv6Addr) -> Option<Vec<u8>> {
    let header = NeighborAdvertisementHeader { router: false, solicited: false, r#override: true };
    let mut body = ip.octets().to_vec();
    // Target link-layer address option: type 2, length 1 (x 8 bytes); RFC 4861 section 4.6.1.
    body.extend([2, 1]);
    body.extend(mac);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac, ALL_NODES_MAC)
        .ipv6(ip.octets(), ALL_NODES.octets(), ND_HOP_LIMIT)
        .icmpv6(Icmpv6Type::NeighborAdvertisement(header))
        .write(&mut frame, &body)
        .ok()?;
    Some(frame)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::super::reload::tests::config;
    use super::super::state::tests::vip;
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    #[test]
    fn ipv4_is_told_by_a_request_and_a_reply() {
        let frames = frames(MAC, IpAddr::from([192, 0, 2, 10]));
        let mut seen = Vec::new();
        for frame in &frames {
            let packet = SlicedPacket::from_ethernet(frame).unwrap();
            let ethernet = packet.link.unwrap().to_header().unwrap();
            let ethernet = ethernet.ethernet2().unwrap();
            assert_eq!((ethernet.source, ethernet.destination), (MAC, BROADCAST));
            let Some(NetSlice::Arp(arp)) = packet.net else { unreachable!("not ARP") };
            assert_eq!(arp.sender_hw_addr(), MAC);
            assert_eq!(arp.sender_protocol_addr(), [192, 0, 2, 10]);
            assert_eq!(arp.target_protocol_addr(), [192, 0, 2, 10]);
            seen.push((arp.operation(), arp.target_hw_addr().to_vec()));
        }
        let expected = [(ArpOperation::REQUEST, vec![0; 6]), (ArpOperation::REPLY, MAC.to_vec())];
        assert_eq!(seen, expected);
    }

    #[test]
    fn ipv6_is_told_by_an_unsolicited_advertisement() {
        let ip: Ipv6Addr = "2001:db8::10".parse().unwrap();
        let frames = frames(MAC, ip.into());
        let [frame] = frames.as_slice() else { unreachable!("one frame") };
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let ethernet = packet.link.unwrap().to_header().unwrap();
        assert_eq!(ethernet.ethernet2().unwrap().destination, ALL_NODES_MAC);
        let Some(NetSlice::Ipv6(ipv6)) = packet.net else { unreachable!("not IPv6") };
        assert_eq!(ipv6.header().hop_limit(), 255);
        assert_eq!(ipv6.header().source_addr(), ip);
        assert_eq!(ipv6.header().destination_addr(), ALL_NODES);
        let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else { unreachable!("no ICMP") };
        assert!(icmp.is_checksum_valid(ip.octets(), ALL_NODES.octets()));
        let Icmpv6Type::NeighborAdvertisement(header) = icmp.icmp_type() else {
            unreachable!("another type")
        };
        assert_eq!((header.solicited, header.r#override), (false, true));
        let (target, option) = icmp.payload().split_at(16);
        assert_eq!(target, ip.octets());
        assert_eq!(option, [2, 1, 2, 0, 0, 0, 0, 7]);
    }

    #[test]
    fn vips_share_a_place_and_may_have_none_and_sources_have_their_own() {
        let mut web = vip("web", &[]);
        let quiet = web.clone();
        web.announce = Announce::Interface("eth1".to_owned());
        let place = Place { interface: "eth1".to_owned(), address: web.address.ip() };
        let mut config = config(vec![web.clone(), web, quiet]);
        assert_eq!(Place::all(&config), HashSet::from([place.clone()]));
        config.full_nat.sources = vec![[10, 0, 0, 48].into()];
        assert_eq!(Place::all(&config), HashSet::from([place.clone()]));
        config.full_nat.announce = Announce::Interface("eth2".to_owned());
        let source = Place { interface: "eth2".to_owned(), address: [10, 0, 0, 48].into() };
        assert_eq!(Place::all(&config), HashSet::from([place, source]));
    }
}
