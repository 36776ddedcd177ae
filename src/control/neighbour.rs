//! Next hops: resolution of a backend's address over route and neighbour to NIC, MAC and VLAN.
//!
//! A separate task resolves all wanted addresses again when netlink notifies of a change, and every
//! [`SAFETY_NET`]; consumers watch the [`Snapshot`]. The traffic of workers bypasses the kernel,
//! which therefore does not see that neighbours are in use: the task probes unknown ones every
//! [`RETRY`] and verifies stale ones every [`VERIFY`], so that a changed MAC is noticed.
//!
//! A next hop is kept until the kernel reports another one, or that the neighbour does not reply. An
//! entry that is missing from the kernel's table proves neither: the kernel drops entries to save
//! memory, when an operator flushes them, and all those of a link that loses its carrier
//! (net/core/neighbour.c, `neigh_carrier_down`). Without a carrier, silence proves nothing either.
//! Next hops by such a link are kept for the time of a [`FLAP`], then withdrawn, and are in use
//! again with the carrier. What the kernel learnt of a neighbour meanwhile is discarded then, as its
//! own next attempt could be a second away.
//!
//! Cost per pass: four dumps and one route look-up (~20 us) per distinct address. A pass is
//! followed by a pause of four times its length, so that a box with constantly changing routes
//! spends at most a fifth of the control thread here.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{StreamExt, TryStreamExt, iter};
use hashbrown::{HashMap, HashSet};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::client_hops::ClientHop;
use super::inbound::Arp;
use super::netlink::{Certainty, Error, InterfaceAddress, Link, Neighbour, Netlink, OnVlan, Route};
use super::routers::{self, Interface, Judgement, Key, KnownRouter, Replacement, Routers};
use super::view::NicView;
use crate::forwarding::local::UNLIMITED;
use crate::net::vlan::{Outer, Tags};
use crate::net::{NextHop, NicIndex};

/// Time within which several events lead to one pass.
const COALESCE: Duration = Duration::from_millis(20);
/// Time between two probes of an unresolved neighbour.
const RETRY: Duration = Duration::from_secs(1);
/// Time between two verifications of a stale neighbour.
const VERIFY: Duration = Duration::from_secs(15);
/// Time without a carrier after which next hops by a link are withdrawn.
const FLAP: Duration = Duration::from_secs(3);
/// Maximum time between two passes, in case an event was lost.
const SAFETY_NET: Duration = Duration::from_secs(5);
/// Maximum number of concurrent route look-ups; their replies fit into a default socket buffer.
pub(super) const LOOKUPS: usize = 64;

/// State of the network at the end of a pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Next hops, or reasons for their absence, by backend address.
    pub hops: HashMap<IpAddr, Result<NextHop, Problem>>,
    /// Path MTUs: the longest IP packet that may leave towards a backend, in bytes, by backend
    /// address; only for backends with a next hop.
    pub mtus: HashMap<IpAddr, u16>,
    /// MTU of each NIC in bytes, in the configuration's order.
    pub nic_mtus: Vec<u16>,
    /// Addresses of this box.
    pub addresses: Vec<InterfaceAddress>,
    /// Links, by interface index.
    pub links: HashMap<u32, Link>,
    /// ARP policies of links, by interface index.
    pub arp: HashMap<u32, Arp>,
    /// Return hops that another next hop replaces.
    pub replaced: Vec<Replacement>,
    /// Routers in use.
    pub routers: Vec<KnownRouter>,
}

/// Reason for which an address has no next hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// The kernel is resolving the neighbour, which is no failure yet.
    Resolving,
    /// The neighbour does not reply.
    NoAnswer {
        /// Address of the neighbour.
        hop: IpAddr,
        /// Name of the interface.
        interface: String,
    },
    /// The address belongs to this box.
    Local,
    /// The link towards it has no carrier, for longer than a flap takes.
    NoCarrier {
        /// Name of the interface.
        interface: String,
    },
    /// There is no route to the address.
    NoRoute,
    /// The route leaves by an interface that no worker serves.
    NotOurNic {
        /// Name of that interface.
        interface: String,
    },
    /// The route leaves by an 802.1ad VLAN device, with no 802.1Q tag inside.
    ServiceTag {
        /// Name of that interface.
        interface: String,
    },
}

impl Problem {
    /// Text of the problem.
    pub fn what(&self) -> String {
        match self {
            Self::Resolving => "its route and MAC are being looked up".to_owned(),
            Self::NoAnswer { hop, interface } => {
                let question = if hop.is_ipv4() { "ARP" } else { "neighbour discovery" };
                format!("{hop} does not answer {question} on {interface}")
            }
            Self::NoCarrier { interface } => format!("{interface} has no carrier"),
            Self::Local => "its address is one of this box".to_owned(),
            Self::NoRoute => "no route to its address".to_owned(),
            Self::NotOurNic { interface } => {
                format!("its route goes out by {interface}, which is no [[nic]]")
            }
            Self::ServiceTag { interface } => {
                format!("its route goes out by {interface}, whose 802.1ad tag is the inner one")
            }
        }
    }

    /// Text of the remedy; empty when waiting suffices.
    pub const fn cure(&self) -> &'static str {
        match self {
            Self::Resolving => "",
            Self::NoAnswer { .. } => "is the host up, and in this network?",
            Self::NoCarrier { .. } => "look at cable, transceiver and switch port",
            Self::Local => "a backend must be another host",
            Self::NoRoute => "add one (ip route)",
            Self::NotOurNic { .. } => "add it or fix the route",
            Self::ServiceTag { .. } => "put an 802.1Q device on it, and the route there",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cure() {
            "" => write!(f, "{}", self.what()),
            cure => write!(f, "{}; {cure}", self.what()),
        }
    }
}

/// Addresses that next hops are wanted for.
#[derive(Debug)]
pub struct Inputs {
    /// Addresses of backends.
    pub targets: watch::Receiver<HashSet<IpAddr>>,
    /// Return hops of clients behind routers.
    pub client_hops: watch::Receiver<Arc<Vec<ClientHop>>>,
    /// Routers that an earlier process knew.
    pub routers: Vec<KnownRouter>,
}

/// Task that resolves next hops.
#[derive(Debug)]
pub struct Resolver {
    netlink: Netlink,
    /// Interface indices of the NICs, in the configuration's order.
    nics: Vec<u32>,
    /// Indices of the NICs, by interface index.
    ports: HashMap<u32, NicIndex>,
    inputs: Inputs,
    snapshot: watch::Sender<Arc<Snapshot>>,
    probes: Probes,
    routers: Routers,
    /// Last next hops of targets, unless they were disproved.
    last: HashMap<IpAddr, NextHop>,
    /// Links without carrier, by interface index, and since when.
    without_carrier: HashMap<u32, Instant>,
    failing: bool,
}

/// The kernel's links and neighbours in a pass.
struct Known {
    links: HashMap<u32, Link>,
    neighbours: HashMap<Key, Neighbour>,
    /// Links whose carrier has returned since the last pass.
    returned: HashSet<u32>,
    /// Links that have had no carrier for longer than a [`FLAP`].
    cut: HashSet<u32>,
}

impl Known {
    fn neighbour(&self, key: Key) -> Neighbour {
        self.neighbours.get(&key).copied().unwrap_or(Neighbour::UNKNOWN)
    }

    fn has_carrier(&self, ifindex: u32) -> bool {
        self.links.get(&ifindex).is_some_and(|link| !link.no_carrier)
    }

    /// Returns an error if a link has had no carrier for longer than a flap.
    fn check_carrier(&self, ifindex: u32) -> Result<(), Problem> {
        match self.cut.contains(&ifindex) {
            true => Err(Problem::NoCarrier { interface: name(ifindex, &self.links) }),
            false => Ok(()),
        }
    }
}

/// Times of the last probes of neighbours.
#[derive(Debug, Default)]
struct Probes {
    last: HashMap<Key, Instant>,
}

impl Probes {
    /// Returns whether a neighbour is due for a probe; if so, records a probe now.
    fn due(&mut self, key: Key, certainty: Certainty, now: Instant) -> bool {
        let pause = match certainty {
            Certainty::Good | Certainty::Fixed | Certainty::Probing => return false,
            Certainty::Stale => VERIFY,
            Certainty::Resolving | Certainty::Failed => RETRY,
        };
        let last = self.last.get(&key);
        let due = last.is_none_or(|&last| now.saturating_duration_since(last) >= pause);
        if due {
            self.last.insert(key, now);
        }
        due
    }

    /// Makes the neighbours of links due at once.
    fn hasten(&mut self, links: &HashSet<u32>) {
        self.last.retain(|(ifindex, _), _| !links.contains(ifindex));
    }

    /// Removes entries that no longer delay a probe.
    fn prune(&mut self, now: Instant) {
        self.last.retain(|_, last| now.saturating_duration_since(*last) < VERIFY);
    }
}

/// Starts the resolver; it ends with the senders of its inputs.
pub fn start(
    netlink: Netlink,
    change_notifier: Arc<Notify>,
    nics: &[NicView],
    inputs: Inputs,
) -> watch::Receiver<Arc<Snapshot>> {
    let nics: Vec<u32> = nics.iter().map(|nic| nic.ifindex).collect();
    let ports = nics.iter().copied().zip((0..).map(NicIndex)).collect();
    let (snapshot, receiver) = watch::channel(Arc::default());
    let routers = Routers::restore(&inputs.routers, Instant::now());
    let resolver = Resolver {
        netlink,
        nics,
        ports,
        inputs,
        snapshot,
        probes: Probes::default(),
        routers,
        last: HashMap::new(),
        without_carrier: HashMap::new(),
        failing: false,
    };
    tokio::spawn(resolver.run(change_notifier));
    receiver
}

impl Resolver {
    async fn run(mut self, change_notifier: Arc<Notify>) {
        let mut first = true;
        loop {
            self.inputs.targets.mark_unchanged();
            self.inputs.client_hops.mark_unchanged();
            let begun = Instant::now();
            let pause = self.pass(std::mem::take(&mut first)).await;
            let spent = begun.elapsed();
            tokio::select! {
                () = change_notifier.notified() => {}
                changed = self.inputs.targets.changed() => if changed.is_err() { return },
                changed = self.inputs.client_hops.changed() => if changed.is_err() { return },
                () = sleep(pause) => {}
            }
            sleep(COALESCE.max(spent * 4)).await;
        }
    }

    /// Resolves everything and publishes the snapshot if it changed. Returns the time until the next
    /// pass.
    async fn pass(&mut self, first: bool) -> Duration {
        match self.resolve().await {
            Ok((snapshot, pause)) => {
                self.failing = false;
                self.snapshot.send_if_modified(|current| {
                    let changed = first || **current != snapshot;
                    *current = Arc::new(snapshot);
                    changed
                });
                pause
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    warn!("netlink: {error}; next hops stay as they are until it answers");
                }
                // A socket that has failed stays so.
                if let Ok(netlink) = Netlink::open() {
                    self.netlink = netlink;
                }
                RETRY
            }
        }
    }

    async fn resolve(&mut self) -> Result<(Snapshot, Duration), Error> {
        let targets = self.inputs.targets.borrow().clone();
        let client_hops = Arc::clone(&self.inputs.client_hops.borrow());
        let addresses = self.netlink.addresses().await?;
        let links = self.netlink.links().await?;
        let links: HashMap<u32, Link> = links.into_iter().map(|link| (link.index, link)).collect();
        let netlink = &self.netlink;
        let mut wanted = targets.clone();
        wanted.extend(client_hops.iter().map(|used| used.client));
        let routes: HashMap<IpAddr, Route> = iter(wanted)
            .map(|target| async move { Ok::<_, Error>((target, netlink.route(target).await?)) })
            .buffer_unordered(LOOKUPS)
            .try_collect()
            .await?;
        let neighbours = self.netlink.neighbours().await?;
        let (returned, cut) = self.carriers(&links, Instant::now());
        self.probes.hasten(&returned);
        self.last.retain(|target, _| targets.contains(target));
        let known = Known { links, neighbours, returned, cut };
        let mut hops = HashMap::with_capacity(targets.len());
        let mut mtus = HashMap::with_capacity(targets.len());
        let mut settled = true;
        for target in targets {
            let route = routes.get(&target).copied().unwrap_or(Route::None);
            if let Route::Via { ifindex, hop, .. } = route {
                settled &= self.ask((ifindex, hop), &known).await;
            }
            let last = self.last.get(&target).copied();
            let hop = next_hop(route, last, &known, &self.nics, &self.ports);
            match &hop {
                Ok(hop) => _ = self.last.insert(target, *hop),
                Err(Problem::Resolving | Problem::NoCarrier { .. }) => {}
                Err(_) => _ = self.last.remove(&target),
            }
            if hop.is_ok() && route != Route::None {
                mtus.insert(target, path_mtu(route, &known.links));
            }
            hops.insert(target, hop);
        }
        let Judgement { replaced, pending, .. } = self.watch(&client_hops, &known, &routes).await;
        self.probes.prune(Instant::now());
        let Known { links, .. } = known;
        let nic_mtus = self.nics.iter().map(|&ifindex| link_mtu(ifindex, &links)).collect();
        let arp = Arp::read_all(links.values(), &addresses);
        let mut pause = if settled { SAFETY_NET } else { RETRY };
        if pending {
            pause = routers::LOOK;
        } else if !self.routers.is_empty() {
            pause = routers::VERIFY;
        }
        let routers = self.routers.known(&client_hops);
        Ok((Snapshot { hops, mtus, nic_mtus, addresses, links, arp, replaced, routers }, pause))
    }

    /// Judges the client-side routers, and makes the kernel verify and resolve them.
    async fn watch(
        &mut self,
        client_hops: &[ClientHop],
        known: &Known,
        routes: &HashMap<IpAddr, Route>,
    ) -> Judgement {
        let interfaces = known.links.values().filter_map(|link| {
            let (nic, vlan) = out_of(link.index, &known.links, &self.ports).ok()?;
            Some((link.index, Interface { nic, vlan, carrier: !link.no_carrier }))
        });
        let interfaces = interfaces.collect();
        let view = routers::View { interfaces: &interfaces, neighbours: &known.neighbours, routes };
        let judgement = self.routers.judge(client_hops, view, Instant::now());
        for &(ifindex, address) in &judgement.verify {
            if let Err(error) = self.netlink.verify(ifindex, address).await {
                debug!("router {address}: cannot be verified: {error}");
            }
        }
        for &(ifindex, address) in &judgement.again {
            // Errors: the entry has gone by itself, or the link has; the next pass finds out.
            let _ = self.netlink.forget(ifindex, address).await;
            let _ = self.netlink.probe(ifindex, address).await;
        }
        for &key in &judgement.resolve {
            self.ask(key, known).await;
        }
        judgement
    }

    /// Returns the links whose carrier has returned since the last pass, and those without a carrier
    /// for longer than a [`FLAP`].
    fn carriers(
        &mut self,
        links: &HashMap<u32, Link>,
        now: Instant,
    ) -> (HashSet<u32>, HashSet<u32>) {
        let without = |ifindex: &u32| links.get(ifindex).is_some_and(|link| link.no_carrier);
        let returned = self.without_carrier.extract_if(|ifindex, _| !without(ifindex));
        let returned = returned.map(|(ifindex, _)| ifindex).collect();
        for link in links.values().filter(|link| link.no_carrier) {
            self.without_carrier.entry(link.index).or_insert(now);
        }
        let long = |since: &Instant| now.saturating_duration_since(*since) >= FLAP;
        let cut = self.without_carrier.iter().filter(|(_, since)| long(since));
        (returned, cut.map(|(&ifindex, _)| ifindex).collect())
    }

    /// Probes a neighbour that is due. Returns false if its reply is outstanding.
    async fn ask(&mut self, key: Key, known: &Known) -> bool {
        let (ifindex, hop) = key;
        let certainty = known.neighbour(key).certainty;
        let unresolved = matches!(certainty, Certainty::Resolving | Certainty::Failed);
        if out_of(ifindex, &known.links, &self.ports).is_err() {
            return true;
        }
        if !known.has_carrier(ifindex) {
            // The event of the carrier's return leads to the next pass.
            return known.cut.contains(&ifindex);
        }
        if self.probes.due(key, certainty, Instant::now()) {
            if unresolved && known.returned.contains(&ifindex) {
                // An error: the entry has gone by itself.
                let _ = self.netlink.forget(ifindex, hop).await;
            }
            if let Err(error) = self.netlink.probe(ifindex, hop).await {
                debug!("neighbour {hop}: cannot be asked for: {error}");
            }
        }
        !unresolved
    }
}

/// Returns the next hop of a target: that of its route and neighbour, or the `last` one while the
/// kernel does not know.
fn next_hop(
    route: Route,
    last: Option<NextHop>,
    known: &Known,
    nics: &[u32],
    ports: &HashMap<u32, NicIndex>,
) -> Result<NextHop, Problem> {
    let (ifindex, hop) = match route {
        Route::Local => return Err(Problem::Local),
        Route::None => {
            // The kernel may hide routes by a link without a carrier
            // (net.ipv4.conf.*.ignore_routes_with_linkdown).
            let nic = last.and_then(|last| nics.get(usize::from(last.nic.0)).copied());
            let nic = nic.filter(|&nic| !known.has_carrier(nic)).ok_or(Problem::NoRoute)?;
            known.check_carrier(nic)?;
            return last.ok_or(Problem::NoRoute);
        }
        Route::Via { ifindex, hop, .. } => (ifindex, hop),
    };
    let (nic, vlan) = out_of(ifindex, &known.links, ports)?;
    known.check_carrier(ifindex)?;
    let neighbour = known.neighbour((ifindex, hop));
    if let Some(mac) = neighbour.usable() {
        return Ok(NextHop { nic, mac, vlan });
    }
    let failed = neighbour.certainty == Certainty::Failed;
    let proven = failed && known.has_carrier(ifindex) && !known.returned.contains(&ifindex);
    last.filter(|_| !proven).ok_or_else(|| match failed {
        true => Problem::NoAnswer { hop, interface: name(ifindex, &known.links) },
        false => Problem::Resolving,
    })
}

/// Returns the longest packet that may leave by a route, in bytes: the route's own MTU, but at most
/// that of its link.
fn path_mtu(route: Route, links: &HashMap<u32, Link>) -> u16 {
    let Route::Via { ifindex, mtu, .. } = route else { return UNLIMITED };
    let route = mtu.filter(|&mtu| mtu > 0).and_then(|mtu| u16::try_from(mtu).ok());
    link_mtu(ifindex, links).min(route.unwrap_or(UNLIMITED))
}

/// Returns the MTU of a link in bytes; [`UNLIMITED`] if the kernel reports none.
fn link_mtu(ifindex: u32, links: &HashMap<u32, Link>) -> u16 {
    let mtu = links.get(&ifindex).map(|link| link.mtu).filter(|&mtu| mtu > 0);
    mtu.and_then(|mtu| u16::try_from(mtu).ok()).unwrap_or(UNLIMITED)
}

/// Returns the NIC and VLAN tags of an outgoing interface: a NIC, a VLAN device on a NIC, or a VLAN
/// device on such a device. An 802.1ad tag must be the outer one of two.
pub(super) fn out_of(
    ifindex: u32,
    links: &HashMap<u32, Link>,
    nics: &HashMap<u32, NicIndex>,
) -> Result<(NicIndex, Option<Tags>), Problem> {
    if let Some(&port) = nics.get(&ifindex) {
        return Ok((port, None));
    }
    let other = || Problem::NotOurNic { interface: name(ifindex, links) };
    let device = |ifindex: u32| links.get(&ifindex).and_then(|link| link.vlan);
    let inner = device(ifindex).ok_or_else(other)?;
    let (below, outer) = match device(inner.below) {
        Some(outer) if !nics.contains_key(&inner.below) => (outer.below, Some(outer)),
        _ => (inner.below, None),
    };
    let port = *nics.get(&below).ok_or_else(other)?;
    if inner.service {
        return Err(Problem::ServiceTag { interface: name(ifindex, links) });
    }
    let outer = match outer {
        None => Outer::None,
        Some(OnVlan { id, service: true, .. }) => Outer::Service(id),
        Some(OnVlan { id, .. }) => Outer::Customer(id),
    };
    Ok((port, Some(Tags { inner: inner.id, outer })))
}

fn name(ifindex: u32, links: &HashMap<u32, Link>) -> String {
    links.get(&ifindex).map_or_else(|| format!("interface {ifindex}"), |link| link.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, vlan: Option<(u32, u16, bool)>) -> (u32, Link) {
        let vlan = vlan.map(|(below, id, service)| OnVlan { below, id, service });
        (index, Link { index, name: name.to_owned(), mtu: 1500, vlan, ..Link::default() })
    }

    #[test]
    fn the_outgoing_interface_is_a_nic_or_a_vlan_on_one() {
        let links = HashMap::from([
            link(1, "eth1", None),
            link(2, "eth1.7", Some((1, 7, false))),
            link(3, "eth9", None),
            link(4, "eth9.7", Some((3, 7, false))),
            link(5, "eth1.7.8", Some((2, 8, false))),
            link(6, "eth1.s9", Some((1, 9, true))),
            link(7, "eth1.s9.8", Some((6, 8, false))),
            link(8, "eth1.7.8.9", Some((5, 9, false))),
            link(9, "loop", Some((9, 9, false))),
        ]);
        let nics = HashMap::from([(1, NicIndex(0))]);
        let pair = |outer| Tags { inner: 8, outer };
        let refused = |name: &str| {
            Err::<(NicIndex, Option<Tags>), _>(Problem::NotOurNic { interface: name.to_owned() })
        };
        for (name, ifindex, expected) in [
            ("the NIC itself", 1, Ok((NicIndex(0), None))),
            ("a VLAN on it", 2, Ok((NicIndex(0), Some(7.into())))),
            ("one on that", 5, Ok((NicIndex(0), Some(pair(Outer::Customer(7)))))),
            ("one on one of 802.1ad", 7, Ok((NicIndex(0), Some(pair(Outer::Service(9)))))),
            ("802.1ad alone", 6, Err(Problem::ServiceTag { interface: "eth1.s9".to_owned() })),
            ("three", 8, refused("eth1.7.8.9")),
            ("one on itself", 9, refused("loop")),
            ("another NIC", 3, refused("eth9")),
            ("a VLAN on another NIC", 4, refused("eth9.7")),
            ("one that has just gone", 99, refused("interface 99")),
        ] {
            assert_eq!(out_of(ifindex, &links, &nics), expected, "{name}");
        }
    }

    #[test]
    fn the_shorter_of_route_and_link_counts() {
        let mut odd = link(2, "eth1.7", Some((1, 7, false)));
        odd.1.mtu = 0;
        let links = HashMap::from([link(1, "eth1", None), odd]);
        let via = |ifindex, mtu| Route::Via { ifindex, hop: [10, 0, 0, 1].into(), mtu };
        for (name, route, expected) in [
            ("the link", via(1, None), 1500),
            ("the route", via(1, Some(1400)), 1400),
            ("a route that says more", via(1, Some(9000)), 1500),
            ("a route that says nothing", via(1, Some(0)), 1500),
            ("a link that says nothing", via(2, Some(1400)), 1400),
            ("a link that has just gone", via(3, None), UNLIMITED),
            ("more than a packet has", via(3, Some(70_000)), UNLIMITED),
            ("no way there", Route::None, UNLIMITED),
        ] {
            assert_eq!(path_mtu(route, &links), expected, "{name}");
        }
    }

    #[test]
    fn neighbours_are_asked_for_at_their_pace() {
        let key = (1, IpAddr::from([10, 0, 0, 1]));
        let (mut probes, now) = (Probes::default(), Instant::now());
        let at = |ms| now + Duration::from_millis(ms);
        for (name, ms, certainty, expected) in [
            ("a good one never", 0, Certainty::Good, false),
            ("a fixed one never", 0, Certainty::Fixed, false),
            ("one that is being asked never", 0, Certainty::Probing, false),
            ("an unknown one at once", 0, Certainty::Resolving, true),
            ("not twice within a second", 999, Certainty::Failed, false),
            ("again after a second", 1_000, Certainty::Failed, true),
            ("a stale one not so soon", 2_500, Certainty::Stale, false),
            ("a stale one after 15 s", 16_000, Certainty::Stale, true),
        ] {
            assert_eq!(probes.due(key, certainty, at(ms)), expected, "{name}");
        }
        probes.hasten(&HashSet::from([2]));
        assert!(!probes.due(key, Certainty::Resolving, at(16_500)), "another link");
        probes.hasten(&HashSet::from([1]));
        assert!(probes.due(key, Certainty::Resolving, at(16_600)), "its link has returned");
        probes.prune(at(32_000));
        assert!(probes.last.is_empty());
    }

    #[test]
    fn a_next_hop_is_kept_until_the_kernel_knows_better() {
        let (ports, nics) = (HashMap::from([(1, NicIndex(0)), (2, NicIndex(1))]), [1, 2]);
        let hop = IpAddr::from([10, 0, 0, 1]);
        let via = |ifindex| Route::Via { ifindex, hop, mtu: None };
        let to = |nic, last| NextHop { nic: NicIndex(nic), mac: [2, 0, 0, 0, 0, last], vlan: None };
        let of = |certainty, mac: Option<u8>| Neighbour {
            mac: mac.map(|last| [2, 0, 0, 0, 0, last]),
            certainty,
        };
        let silent = || Problem::NoAnswer { hop, interface: "eth1".to_owned() };
        let cut = || Problem::NoCarrier { interface: "eth1".to_owned() };
        /// State of the carrier of eth1.
        #[derive(PartialEq)]
        enum Carrier {
            Up,
            Down,
            DownForLong,
            Back,
        }
        use Carrier::{Back, Down, DownForLong, Up};
        let (failed, unknown) = (of(Certainty::Failed, None), of(Certainty::Resolving, None));
        let last = Some(to(0, 7));
        for (name, carrier, route, neighbour, last, expected) in [
            ("known", Up, via(1), of(Certainty::Good, Some(8)), last, Ok(to(0, 8))),
            ("stale", Up, via(1), of(Certainty::Stale, Some(8)), last, Ok(to(0, 8))),
            ("being verified", Up, via(1), of(Certainty::Probing, Some(8)), last, Ok(to(0, 8))),
            ("fixed", Up, via(1), of(Certainty::Fixed, Some(8)), last, Ok(to(0, 8))),
            ("flushed", Up, via(1), unknown, last, Ok(to(0, 7))),
            ("never known", Up, via(1), unknown, None, Err(Problem::Resolving)),
            ("silent", Up, via(1), failed, last, Err(silent())),
            ("no carrier", Down, via(1), failed, last, Ok(to(0, 7))),
            ("no carrier for long", DownForLong, via(1), failed, last, Err(cut())),
            (
                "fixed, no carrier for long",
                DownForLong,
                via(1),
                of(Certainty::Fixed, Some(8)),
                last,
                Err(cut()),
            ),
            ("silence of a time without carrier", Back, via(1), failed, last, Ok(to(0, 7))),
            ("of another link", Up, via(2), unknown, last, Ok(to(0, 7))),
            ("no route", Up, Route::None, unknown, last, Err(Problem::NoRoute)),
            ("no route without carrier", Down, Route::None, unknown, last, Ok(to(0, 7))),
            ("no route, no carrier for long", DownForLong, Route::None, unknown, last, Err(cut())),
            ("no route, never known", Down, Route::None, unknown, None, Err(Problem::NoRoute)),
            ("an own address", Up, Route::Local, unknown, last, Err(Problem::Local)),
        ] {
            let no_carrier = matches!(carrier, Down | DownForLong);
            let only_if = |condition: bool| condition.then_some(1).into_iter().collect();
            let eth1 = Link { no_carrier, ..link(1, "eth1", None).1 };
            let known = Known {
                links: HashMap::from([(1, eth1), link(2, "eth2", None)]),
                neighbours: HashMap::from([((1, hop), neighbour)]),
                returned: only_if(carrier == Back),
                cut: only_if(carrier == DownForLong),
            };
            assert_eq!(next_hop(route, last, &known, &nics, &ports), expected, "{name}");
        }
    }
}
