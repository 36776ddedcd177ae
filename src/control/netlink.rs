//! rtnetlink (rtnetlink(7)) in plain types: links, addresses, neighbours, routes, and a notifier of
//! their changes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::FutureExt as _;
use futures_util::stream::{Stream, StreamExt, TryStreamExt};
use hashbrown::HashMap;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol, CacheInfo,
};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, VlanProtocol,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
    NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{AddressMessageBuilder, Handle, MulticastGroup, RouteMessageBuilder};
use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::warn;

use super::error::ControlError;

/// `IFA_PROTO` (linux/if_addr.h, kernel 5.18) of the addresses that holdfast adds: 'H'. The kernel
/// itself uses 1 to 3. It distinguishes our addresses from an operator's after a crash.
pub const OUR_PROTOCOL: u8 = b'H';

/// Time after which a socket that has failed is opened again.
const REOPEN: Duration = Duration::from_secs(1);

/// Errno of an address that exists already.
const EEXIST: i32 = 17;
/// Errno of an address that does not exist.
const EADDRNOTAVAIL: i32 = 99;
/// Errno of a link that does not exist.
const ENODEV: i32 = 19;

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// MAC of an Ethernet-like device.
    pub mac: Option<[u8; 6]>,
    /// Whether it is the loopback device.
    pub loopback: bool,
    /// Whether it does neither ARP nor neighbour discovery (`IFF_NOARP`), such as a dummy device.
    pub no_arp: bool,
    /// Whether it is up (`IFF_UP`).
    pub up: bool,
    /// Whether nothing can be sent or received: it has no carrier, or is down (`IFF_LOWER_UP`).
    pub no_carrier: bool,
    /// MTU in bytes, without the Ethernet header; 0 if the kernel reports none.
    pub mtu: u32,
    /// Parameters of a VLAN device.
    pub vlan: Option<OnVlan>,
    /// Interface index of the device that it is a member of.
    pub master: Option<u32>,
    /// Whether it receives the packets of its members: a bond, bridge or team, but no VRF.
    pub takes_over: bool,
}

impl Link {
    /// Returns whether it has no neighbours, so that its addresses are reached by other interfaces
    /// only.
    pub const fn is_silent(&self) -> bool {
        self.loopback || self.no_arp
    }
}

/// Parameters of a VLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnVlan {
    /// Interface index of the device below.
    pub below: u32,
    /// VLAN identifier.
    pub id: u16,
    /// Whether its tags are 802.1ad, not 802.1Q.
    pub service: bool,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InterfaceAddress {
    /// Interface index.
    pub ifindex: u32,
    /// Address.
    pub address: IpAddr,
    /// Prefix length in bits.
    pub prefix_len: u8,
    /// Whether it carries [`OUR_PROTOCOL`].
    pub ours: bool,
}

/// Neighbour entry of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// MAC, if known.
    pub mac: Option<[u8; 6]>,
    /// State of the entry.
    pub certainty: Certainty,
}

/// NUD states (linux/neighbour.h), reduced to the six that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certainty {
    /// Known and verified.
    Good,
    /// Fixed by an operator, maintained by another program or by the kernel itself, or on a device
    /// that needs no resolution.
    Fixed,
    /// Known, but not verified for a while.
    Stale,
    /// Known, and being verified.
    Probing,
    /// Resolution under way.
    Resolving,
    /// No reply.
    Failed,
}

impl Neighbour {
    /// A neighbour that the kernel knows nothing of.
    pub const UNKNOWN: Self = Self { mac: None, certainty: Certainty::Resolving };

    /// Returns the MAC that the kernel would send to now.
    pub const fn usable(&self) -> Option<[u8; 6]> {
        match self.certainty {
            Certainty::Good | Certainty::Fixed | Certainty::Stale | Certainty::Probing => self.mac,
            Certainty::Resolving | Certainty::Failed => None,
        }
    }
}

/// Result of a route look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// The route leaves by an interface, to a gateway or to the address itself.
    Via {
        /// Interface index.
        ifindex: u32,
        /// Address of the neighbour: the gateway, or the looked-up address itself.
        hop: IpAddr,
        /// Path MTU in bytes, if the route has one or the kernel has learned one.
        mtu: Option<u32>,
    },
    /// The address belongs to this box.
    Local,
    /// There is no route, or the route rejects packets.
    None,
}

/// Netlink socket of one user.
///
/// The kernel dumps one table at a time per socket, and refuses a second dump with "Device or
/// resource busy" (net/netlink/af_netlink.c, `__netlink_dump_start`). Dumps therefore borrow the
/// socket exclusively, and it cannot be cloned.
#[derive(Debug)]
pub struct Netlink(Handle);

/// Error of a netlink request.
pub type Error = rtnetlink::Error;

impl Netlink {
    /// Opens the socket; a task of the caller's runtime reads the replies.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub fn open() -> Result<Self, ControlError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(netlink_error)?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// Returns all links.
    ///
    /// # Errors
    /// When the kernel reports an error.
    pub async fn links(&mut self) -> Result<Vec<Link>, Error> {
        collect(self.0.link().get().execute(), |message| Some(link(message))).await
    }

    /// Returns all addresses of all links.
    ///
    /// # Errors
    /// When the kernel reports an error.
    pub async fn addresses(&mut self) -> Result<Vec<InterfaceAddress>, Error> {
        collect(self.0.address().get().execute(), interface_address).await
    }

    /// Returns all IPv4 and IPv6 neighbours, by interface index and address.
    ///
    /// # Errors
    /// When the kernel reports an error.
    pub async fn neighbours(&mut self) -> Result<HashMap<(u32, IpAddr), Neighbour>, Error> {
        let mut found = HashMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let request = self.0.neighbours().get().set_address_family(family);
            let neighbours: Vec<_> = collect(request.execute(), neighbour).await?;
            found.extend(neighbours);
        }
        Ok(found)
    }

    /// Looks up the kernel's route to `address`.
    ///
    /// # Errors
    /// When the request itself fails; the absence of a route is [`Route::None`].
    pub async fn route(&self, address: IpAddr) -> Result<Route, Error> {
        let message = match address {
            IpAddr::V4(ip) => {
                RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ip, 32).build()
            }
            IpAddr::V6(ip) => {
                RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(ip, 128).build()
            }
        };
        let mut replies = Box::pin(self.0.route().get(message).execute());
        match replies.next().await {
            Some(Ok(message)) => Ok(route(address, &message)),
            // ENETUNREACH, EHOSTUNREACH, EACCES (prohibit), EINVAL (blackhole): no route.
            None | Some(Err(Error::NetlinkError(_))) => Ok(Route::None),
            Some(Err(error)) => Err(error),
        }
    }

    /// Makes the kernel resolve an unknown neighbour or verify a stale one, as a packet to it would
    /// (`NTF_USE`, as `ip neighbour replace .. use`). Not for permanent entries: the kernel turns
    /// them into ordinary ones.
    ///
    /// # Errors
    /// When the kernel reports an error.
    pub async fn probe(&self, ifindex: u32, address: IpAddr) -> Result<(), Error> {
        let mut request = self.0.neighbours().add(ifindex, address);
        request = request.state(NeighbourState::None).flags(NeighbourFlags::Use).replace();
        request.execute().await
    }

    /// Makes the kernel verify a known neighbour now, by unicast, whatever its state
    /// (`NUD_PROBE`): a neighbour that does not reply fails after three probes, one a second. The
    /// request neither creates an entry nor changes its MAC (net/core/neighbour.c, `neigh_add`).
    /// Not for fixed entries.
    ///
    /// # Errors
    /// When the kernel reports an error, such as an entry that is gone or has no MAC.
    pub async fn verify(&self, ifindex: u32, address: IpAddr) -> Result<(), Error> {
        let mut message = neighbour_at(ifindex, address);
        message.header.state = NeighbourState::Probe;
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
        let mut replies = self.0.clone().request(request)?;
        match replies.next().await.map(|reply| reply.payload) {
            Some(NetlinkPayload::Error(error)) => Err(Error::NetlinkError(error)),
            _ => Ok(()),
        }
    }

    /// Removes an entry that is not fixed, so that the next probe begins a new resolution at once.
    ///
    /// # Errors
    /// When the kernel reports an error, such as an entry that is gone.
    pub async fn forget(&self, ifindex: u32, address: IpAddr) -> Result<(), Error> {
        self.0.neighbours().del(neighbour_at(ifindex, address)).execute().await
    }

    /// Adds `address` with a full prefix length to a link, marked with [`OUR_PROTOCOL`]. Returns
    /// false if it existed already.
    ///
    /// # Errors
    /// When the kernel reports another error than an existing address.
    pub async fn add_address(&self, ifindex: u32, address: IpAddr) -> Result<bool, Error> {
        let mut request = self.0.address().add(ifindex, address, full_prefix(address));
        mark(request.message_mut());
        match request.execute().await {
            Err(Error::NetlinkError(error)) if error.raw_code() == -EEXIST => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// Removes an address with a full prefix length from a link; a missing address or link is no
    /// error.
    ///
    /// # Errors
    /// When the kernel reports another error.
    pub async fn remove_address(&self, ifindex: u32, address: IpAddr) -> Result<(), Error> {
        let prefix_len = full_prefix(address);
        let message = match address {
            IpAddr::V4(ip) => AddressMessageBuilder::<Ipv4Addr>::new()
                .address(ip, prefix_len)
                .index(ifindex)
                .build(),
            IpAddr::V6(ip) => AddressMessageBuilder::<Ipv6Addr>::new()
                .address(ip, prefix_len)
                .index(ifindex)
                .build(),
        };
        match self.0.address().del(message).execute().await {
            Err(Error::NetlinkError(error))
                if [-EADDRNOTAVAIL, -ENODEV].contains(&error.raw_code()) =>
            {
                Ok(())
            }
            result => result,
        }
    }
}

/// Returns a notifier of changes of links, addresses, neighbours and routes. The messages
/// themselves are dropped, so that nothing accumulates when there are very many (a full BGP table
/// moves).
///
/// # Errors
/// When the socket cannot be opened.
pub fn watch() -> Result<Arc<Notify>, ControlError> {
    let mut messages = subscribe()?;
    let change_notifier = Arc::new(Notify::new());
    let ringer = Arc::clone(&change_notifier);
    tokio::spawn(async move {
        loop {
            while messages.next().await.is_some() {
                ringer.notify_one();
            }
            // The socket has failed.
            sleep(REOPEN).await;
            match subscribe() {
                Ok(again) => messages = again,
                Err(error) => warn!("{error}; changes are noticed late"),
            }
            ringer.notify_one();
        }
    });
    Ok(change_notifier)
}

/// Subscribes to changes; a task of the caller's runtime reads them.
fn subscribe() -> Result<impl Stream<Item = impl Sized> + Unpin, ControlError> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let (connection, _, messages) =
        rtnetlink::new_multicast_connection(&groups).map_err(netlink_error)?;
    tokio::spawn(connection);
    Ok(messages)
}

/// Time within which several events lead to one notification.
const COALESCE: Duration = Duration::from_millis(5);

/// Returns a notifier of changes of links: state, MAC, MTU, XDP program, creation and removal.
///
/// # Errors
/// When the socket cannot be opened.
pub fn watch_links() -> Result<Arc<Notify>, ControlError> {
    let (connection, _, mut messages) =
        rtnetlink::new_multicast_connection(&[MulticastGroup::Link]).map_err(netlink_error)?;
    tokio::spawn(connection);
    let change_notifier = Arc::new(Notify::new());
    let ringer = Arc::clone(&change_notifier);
    tokio::spawn(async move {
        while messages.next().await.is_some() {
            sleep(COALESCE).await;
            while let Some(Some(_)) = messages.next().now_or_never() {}
            ringer.notify_one();
        }
    });
    Ok(change_notifier)
}

/// Prefix length of a single address, in bits.
pub const fn full_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn neighbour_at(ifindex: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    let (family, address) = match address {
        IpAddr::V4(ip) => (AddressFamily::Inet, NeighbourAddress::Inet(ip)),
        IpAddr::V6(ip) => (AddressFamily::Inet6, NeighbourAddress::Inet6(ip)),
    };
    (message.header.family, message.header.ifindex) = (family, ifindex);
    message.attributes.push(NeighbourAttribute::Destination(address));
    message
}

fn netlink_error(error: std::io::Error) -> ControlError {
    ControlError::Netlink(error.to_string())
}

async fn collect<M, T, C: Default + Extend<T>>(
    replies: impl Stream<Item = Result<M, Error>>,
    convert: impl Fn(M) -> Option<T>,
) -> Result<C, Error> {
    let collected = replies.try_fold(C::default(), |mut all, message| {
        all.extend(convert(message));
        std::future::ready(Ok(all))
    });
    collected.await
}

fn mark(message: &mut AddressMessage) {
    message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(OUR_PROTOCOL)));
    if message.header.family == AddressFamily::Inet6 {
        message.header.flags |= AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        // Deprecated, so that the kernel never chooses the VIP as the source of this box's own
        // connections (RFC 6724 rule 3): rule 8 would prefer a /128 to the box's real address.
        let mut lifetimes = CacheInfo::default();
        (lifetimes.ifa_preferred, lifetimes.ifa_valid) = (0, u32::MAX);
        message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
    }
}

fn link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        no_arp: message.header.flags.contains(LinkFlags::Noarp),
        up: message.header.flags.contains(LinkFlags::Up),
        no_carrier: !message.header.flags.contains(LinkFlags::LowerUp),
        ..Link::default()
    };
    let (mut below, mut vlan_id) = (None, None);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Link(index) => below = Some(index),
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::LinkInfo(infos) => {
                link.takes_over = infos.iter().any(takes_over);
                vlan_id = infos.into_iter().find_map(vlan);
            }
            _ => {}
        }
    }
    link.vlan = below.zip(vlan_id).map(|(below, (id, service))| OnVlan { below, id, service });
    link
}

fn takes_over(info: &LinkInfo) -> bool {
    let LinkInfo::Kind(kind) = info else { return false };
    matches!(kind, InfoKind::Bond | InfoKind::Bridge) || kind.to_string() == "team"
}

/// Returns the identifier of a VLAN device, and whether it is 802.1ad.
fn vlan(info: LinkInfo) -> Option<(u16, bool)> {
    let LinkInfo::Data(InfoData::Vlan(details)) = info else { return None };
    let service = details.contains(&InfoVlan::Protocol(VlanProtocol::Ieee8021Ad));
    let id = details.into_iter().find_map(|detail| match detail {
        InfoVlan::Id(id) => Some(id),
        _ => None,
    })?;
    Some((id, service))
}

fn interface_address(message: AddressMessage) -> Option<InterfaceAddress> {
    let (mut local, mut address, mut ours) = (None, None, false);
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(ip),
            AddressAttribute::Address(ip) => address = Some(ip),
            AddressAttribute::Protocol(protocol) => ours = u8::from(protocol) == OUR_PROTOCOL,
            _ => {}
        }
    }
    Some(InterfaceAddress {
        ifindex: message.header.index,
        // On a point-to-point link IFA_ADDRESS is the peer's.
        address: local.or(address)?,
        prefix_len: message.header.prefix_len,
        ours,
    })
}

fn neighbour(message: NeighbourMessage) -> Option<((u32, IpAddr), Neighbour)> {
    let (mut address, mut mac) = (None, None);
    // Requests of ours would clear these flags (net/core/neighbour.c, `neigh_update_flags`).
    let mut owned = message.header.flags.contains(NeighbourFlags::ExtLearned);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                address = Some(ip.into())
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                address = Some(ip.into())
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok(),
            NeighbourAttribute::ExtFlags(flags) => {
                owned |= flags.contains(NeighbourExtFlags::Managed);
            }
            _ => {}
        }
    }
    let certainty = match message.header.state {
        NeighbourState::Failed => Certainty::Failed,
        NeighbourState::Incomplete | NeighbourState::None => Certainty::Resolving,
        NeighbourState::Permanent | NeighbourState::Noarp => Certainty::Fixed,
        _ if owned => Certainty::Fixed,
        // The kernel has sent to a stale neighbour, and waits before it verifies.
        NeighbourState::Stale | NeighbourState::Delay => Certainty::Stale,
        NeighbourState::Probe => Certainty::Probing,
        _ => Certainty::Good,
    };
    Some(((message.header.ifindex, address?), Neighbour { mac, certainty }))
}

fn route(address: IpAddr, message: &RouteMessage) -> Route {
    let (mut ifindex, mut hop, mut mtu) = (None, address, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => hop = (*ip).into(),
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => hop = (*ip).into(),
            RouteAttribute::Via(RouteVia::Inet(ip)) => hop = (*ip).into(),
            RouteAttribute::Via(RouteVia::Inet6(ip)) => hop = (*ip).into(),
            RouteAttribute::Metrics(metrics) => mtu = metrics.iter().find_map(route_mtu),
            _ => {}
        }
    }
    match (message.header.kind, ifindex) {
        (RouteType::Local, _) => Route::Local,
        (RouteType::Unicast, Some(ifindex)) => Route::Via { ifindex, hop, mtu },
        _ => Route::None,
    }
}

fn route_mtu(metric: &RouteMetric) -> Option<u32> {
    match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::neighbour::NeighbourHeader;

    use super::*;

    #[test]
    fn a_vlan_device_tells_what_it_is_on() {
        let mut message = LinkMessage::default();
        message.header.index = 9;
        message.attributes = vec![
            LinkAttribute::IfName("eth1.7".to_owned()),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
            LinkAttribute::Mtu(1500),
            LinkAttribute::Link(3),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(vec![
                    InfoVlan::Id(7),
                    InfoVlan::Protocol(VlanProtocol::Ieee8021Ad),
                ])),
            ]),
        ];
        let expected = Link {
            index: 9,
            name: "eth1.7".to_owned(),
            mac: Some([2, 0, 0, 0, 0, 1]),
            no_carrier: true,
            mtu: 1500,
            vlan: Some(OnVlan { below: 3, id: 7, service: true }),
            ..Link::default()
        };
        assert_eq!(link(message), expected);
        // One end of a veth pair names the other one, but is no VLAN device.
        let mut veth = LinkMessage::default();
        veth.attributes = vec![LinkAttribute::Link(3)];
        assert_eq!(link(veth).vlan, None);
    }

    #[test]
    fn neighbour_states_fall_into_six() {
        for (state, expected) in [
            (NeighbourState::Reachable, Certainty::Good),
            (NeighbourState::Permanent, Certainty::Fixed),
            (NeighbourState::Noarp, Certainty::Fixed),
            (NeighbourState::Probe, Certainty::Probing),
            (NeighbourState::Delay, Certainty::Stale),
            (NeighbourState::Stale, Certainty::Stale),
            (NeighbourState::None, Certainty::Resolving),
            (NeighbourState::Incomplete, Certainty::Resolving),
            (NeighbourState::Failed, Certainty::Failed),
        ] {
            let mut message = NeighbourMessage::default();
            message.header = NeighbourHeader { ifindex: 4, state, ..NeighbourHeader::default() };
            let address = NeighbourAddress::Inet(Ipv4Addr::new(10, 0, 0, 1));
            message.attributes.push(NeighbourAttribute::Destination(address));
            let entry = Neighbour { mac: None, certainty: expected };
            assert_eq!(neighbour(message), Some(((4, IpAddr::from([10, 0, 0, 1])), entry)));
        }
    }

    #[test]
    fn neighbours_of_other_owners_are_fixed() {
        for (flags, ext, state, expected) in [
            (NeighbourFlags::ExtLearned, None, NeighbourState::Stale, Certainty::Fixed),
            (NeighbourFlags::ExtLearned, None, NeighbourState::Failed, Certainty::Failed),
            (NeighbourFlags::Router, None, NeighbourState::Stale, Certainty::Stale),
            (
                NeighbourFlags::empty(),
                Some(NeighbourExtFlags::Managed),
                NeighbourState::Reachable,
                Certainty::Fixed,
            ),
        ] {
            let mut message = NeighbourMessage::default();
            message.header = NeighbourHeader { state, flags, ..NeighbourHeader::default() };
            let address = NeighbourAddress::Inet(Ipv4Addr::new(10, 0, 0, 1));
            message.attributes.push(NeighbourAttribute::Destination(address));
            message.attributes.extend(ext.map(NeighbourAttribute::ExtFlags));
            let found = neighbour(message).map(|(_, neighbour)| neighbour.certainty);
            assert_eq!(found, Some(expected), "{flags:?} {ext:?} {state:?}");
        }
    }

    #[test]
    fn route_answers() {
        let to = IpAddr::from([10, 0, 0, 9]);
        let reply = |kind, attributes: &[RouteAttribute]| {
            let mut message = RouteMessage::default();
            message.header.kind = kind;
            message.attributes = attributes.to_vec();
            route(to, &message)
        };
        let gateway = Ipv4Addr::new(10, 0, 0, 1);
        let via = RouteAttribute::Gateway(RouteAddress::Inet(gateway));
        let metrics = [RouteMetric::Hoplimit(64), RouteMetric::Mtu(1400)];
        let metrics = RouteAttribute::Metrics(metrics.to_vec());
        for (name, reply, expected) in [
            ("local", reply(RouteType::Local, &[RouteAttribute::Oif(1)]), Route::Local),
            (
                "on link",
                reply(RouteType::Unicast, &[RouteAttribute::Oif(2)]),
                Route::Via { ifindex: 2, hop: to, mtu: None },
            ),
            (
                "gateway",
                reply(RouteType::Unicast, &[RouteAttribute::Oif(2), via]),
                Route::Via { ifindex: 2, hop: gateway.into(), mtu: None },
            ),
            (
                "with an MTU",
                reply(RouteType::Unicast, &[RouteAttribute::Oif(2), metrics]),
                Route::Via { ifindex: 2, hop: to, mtu: Some(1400) },
            ),
            ("blackhole", reply(RouteType::BlackHole, &[]), Route::None),
            ("broadcast", reply(RouteType::Broadcast, &[RouteAttribute::Oif(2)]), Route::None),
        ] {
            assert_eq!(reply, expected, "{name}");
        }
    }
}
