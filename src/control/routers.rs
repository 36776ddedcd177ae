//! Client-side routers: what became of the next hops that clients' packets came by.
//!
//! A pin has the MAC of the router through which its client's packets came, and only a packet of the
//! client corrects it. A client that merely receives sends none, once replies go to a MAC that does
//! not exist any longer. So the routers in use ([`super::client_hops`]) are watched in the kernel's
//! neighbour table:
//!
//! ```text
//! its address has another MAC           replies go to that one (a replaced router, VRRP without a
//!                                       virtual MAC): gratuitous ARP, unsolicited NA, or a reply
//!                                       to a probe
//! it does not reply for [`DOUBT`],      replies go to the next hop of the kernel's route to its
//! the kernel says so, or its NIC has    clients; if that is the same router, to another router
//! no carrier                            that clients' packets come through
//! ```
//!
//! The kernel updates an entry that it has by an announcement (net/ipv4/arp.c, `arp_process`, a
//! gratuitous one also within `locktime`; net/ipv6/ndisc.c, `ndisc_recv_na`), and makes none. Its
//! entry of an idle router would become stale, and never be verified. So the routers' entries are
//! kept: verified by unicast every [`VERIFY`], looked up again when there is no reply, and resolved
//! where they are missing.
//!
//! A next hop that replies are redirected to is watched like a router in use, before pins with it are
//! found: it may be replaced soon, too.
//!
//! A process continues with the routers that the one before it knew: pins may have a MAC that no
//! address had when it started.
//!
//! A router is known by its MAC and the addresses of the clients' family that had it. A router
//! whose MAC is at no address that the kernel knows, and that is no gateway to its clients, is not
//! watched.

use std::net::IpAddr;
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::client_hops::ClientHop;
use super::netlink::{Certainty, Neighbour, Route};
use crate::forwarding::ReplacedHop;
use crate::net::vlan::Tags;
use crate::net::{Family, NextHop, NicIndex};

/// Time between two verifications of a router's address: two ARP requests a second are little for a
/// router, and find a silent one soon.
pub const VERIFY: Duration = Duration::from_millis(500);
/// Part of the time between verifications for each router, which bounds the rate of requests.
const VERIFY_EACH: Duration = Duration::from_millis(50);
/// Time without a reply to a unicast request after which a router is looked up by broadcast, as if
/// it were unknown: another MAC may have its address, and few routers reply to broadcasts only.
const ASK_ALL: Duration = Duration::from_millis(500);
/// Time without a reply, to the broadcast either, after which a router counts as gone.
const DOUBT: Duration = Duration::from_secs(1);
/// Time between two looks at a router that is in doubt.
pub const LOOK: Duration = Duration::from_millis(100);
/// Maximum number of addresses by which a router is known.
const ADDRESSES: usize = 8;
/// Time for which a next hop that replies were redirected to is watched as if it were in use: pins
/// have it from their clients' next packets on, and the sample finds them by then.
const EXPECTED: Duration = Duration::from_secs(60);
/// Maximum number of those next hops.
const MOST_EXPECTED: usize = 64;

/// Interface index and address of a neighbour.
pub type Key = (u32, IpAddr);

/// An interface by which a NIC sends: the NIC itself, or a VLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface {
    /// NIC.
    pub nic: NicIndex,
    /// VLAN tags.
    pub vlan: Option<Tags>,
    /// Whether it has a carrier.
    pub carrier: bool,
}

impl Interface {
    const fn hop(&self, mac: [u8; 6]) -> NextHop {
        NextHop { nic: self.nic, mac, vlan: self.vlan }
    }
}

/// State of the network that the routers are judged by.
#[derive(Debug, Clone, Copy)]
pub struct View<'v> {
    /// Interfaces by which NICs send, by interface index.
    pub interfaces: &'v HashMap<u32, Interface>,
    /// The kernel's neighbours.
    pub neighbours: &'v HashMap<Key, Neighbour>,
    /// The kernel's routes, by address.
    pub routes: &'v HashMap<IpAddr, Route>,
}

impl View<'_> {
    fn neighbour(&self, key: &Key) -> Neighbour {
        self.neighbours.get(key).copied().unwrap_or(Neighbour::UNKNOWN)
    }

    /// Returns the next hop that a neighbour is now, if its MAC is known.
    fn hop(&self, key: &Key) -> Option<NextHop> {
        Some(self.interfaces.get(&key.0)?.hop(self.neighbour(key).usable()?))
    }

    fn has_carrier(&self, nic: NicIndex) -> bool {
        let mut own = self.interfaces.values().filter(|found| found.nic == nic);
        own.any(|interface| interface.carrier)
    }
}

/// A return hop that another next hop replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replacement {
    /// Return hop, and next hop instead of it.
    pub hop: ReplacedHop,
    /// Reason.
    pub why: Why,
    /// An address of the router, if one is known.
    pub router: Option<IpAddr>,
}

/// Reason for which a return hop is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The router has another MAC.
    Moved,
    /// The router does not reply.
    Silent,
    /// The NIC towards the router has no carrier.
    NoCarrier,
}

/// Result of a look at the routers.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Return hops that are replaced from now on.
    pub replaced: Vec<Replacement>,
    /// Known neighbours for the kernel to verify.
    pub verify: Vec<Key>,
    /// Known neighbours that do not reply, for the kernel to look up again.
    pub again: Vec<Key>,
    /// Unknown neighbours for the kernel to resolve, at the resolver's pace.
    pub resolve: Vec<Key>,
    /// Whether a verdict is outstanding.
    pub pending: bool,
}

/// A router in use, and the addresses that have, or had, its MAC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownRouter {
    /// Return hop, and a client behind it.
    pub used: ClientHop,
    /// Interface indices and addresses.
    pub addresses: Vec<Key>,
}

/// The routers in use.
#[derive(Debug, Default)]
pub struct Routers {
    known: HashMap<(Family, NextHop), Router>,
    /// Next hops that replies were redirected to, with the last time.
    expected: Vec<(ClientHop, Instant)>,
}

/// A router: the addresses of one family that have, or had, its MAC.
#[derive(Debug)]
struct Router {
    addresses: Vec<Watched>,
    /// Last time at which its MAC was not in doubt.
    certain: Instant,
    /// Time at which one of its addresses was first seen with another MAC.
    moved: Option<Instant>,
    replaced: Option<(NextHop, Why)>,
}

/// An address of a router, and the time of its last verification.
#[derive(Debug)]
struct Watched {
    key: Key,
    verified: Option<Instant>,
}

/// State of a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It has its MAC, as far as is known.
    There,
    /// Another MAC has its address.
    Moved(NextHop),
    Gone(Why),
    Unsure,
}

impl Routers {
    /// Continues with the routers that another process knew, until pins with them are found.
    pub fn restore(known: &[KnownRouter], now: Instant) -> Self {
        let mut routers = Self::default();
        for KnownRouter { used, addresses } in known.iter().take(MOST_EXPECTED) {
            let addresses = addresses.iter().take(ADDRESSES);
            let addresses = addresses.map(|&key| Watched { key, verified: None }).collect();
            let router = Router { addresses, certain: now, moved: None, replaced: None };
            routers.known.insert((used.family(), used.hop), router);
            expect(&mut routers.expected, *used, now);
        }
        routers
    }

    /// Returns the routers of which an address is known, for [`restore`](Self::restore). `in_use`
    /// as judged last.
    pub fn known(&self, in_use: &[ClientHop]) -> Vec<KnownRouter> {
        let mut listed = HashSet::new();
        let all = in_use.iter().chain(self.expected.iter().map(|(used, _)| used));
        let each = all.filter(|used| listed.insert((used.family(), used.hop)));
        let known = each.filter_map(|used| {
            let router = self.known.get(&(used.family(), used.hop))?;
            let addresses = router.addresses.iter().map(|watched| watched.key).collect();
            Some(KnownRouter { used: *used, addresses })
        });
        known.filter(|router| !router.addresses.is_empty()).collect()
    }

    /// Returns whether no router is in use.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Judges the routers in use.
    pub fn judge(&mut self, in_use: &[ClientHop], view: View<'_>, now: Instant) -> Judgement {
        self.expected.retain(|(_, last)| now.saturating_duration_since(*last) < EXPECTED);
        let mut wanted = HashSet::new();
        let expected = self.expected.iter().map(|(hop, _)| *hop);
        let in_use: Vec<ClientHop> = in_use.iter().copied().chain(expected).collect();
        let in_use = in_use.iter().filter(|used| wanted.insert((used.family(), used.hop)));
        let in_use: Vec<&ClientHop> = in_use.collect();
        self.known.retain(|router, _| wanted.contains(router));
        self.learn(&wanted, view, now);
        let mut judgement = Judgement::default();
        let mut there = Vec::new();
        let mut verdicts = Vec::with_capacity(in_use.len());
        for &used in &in_use {
            let Some(router) = self.known.get_mut(&(used.family(), used.hop)) else { continue };
            let verdict = router.judge(&used.hop, view, now);
            // One of which no address is known may have gone long ago.
            if verdict == Verdict::There && !router.addresses.is_empty() {
                there.push((used.family(), used.hop));
            }
            verdicts.push((used, verdict));
        }
        for (used, verdict) in verdicts {
            let Some(router) = self.known.get_mut(&(used.family(), used.hop)) else { continue };
            match verdict {
                Verdict::There => router.replaced = None,
                Verdict::Moved(new) => router.replaced = Some((new, Why::Moved)),
                Verdict::Gone(why) => {
                    let new = instead(used, &there, &wanted, view);
                    router.replaced = new.map(|new| (new, why));
                }
                Verdict::Unsure => judgement.pending = true,
            }
            if let Some((new, _)) = router.replaced {
                expect(&mut self.expected, ClientHop { hop: new, client: used.client }, now);
            }
            let family = used.family();
            let address = router.addresses.first().map(|watched| watched.key.1);
            judgement.replaced.extend(router.replaced.map(|(new, why)| Replacement {
                hop: ReplacedHop { family, old: used.hop, new },
                why,
                router: address,
            }));
            // The gateway may be an address of this router, or the next hop instead of it.
            let unknown = |key: &Key| view.neighbour(key).usable().is_none();
            judgement.resolve.extend(gateway(used, view).filter(unknown));
        }
        let expected = self.expected.iter().map(|(hop, _)| (hop.family(), hop.hop));
        self.learn(&expected.collect(), view, now);
        self.maintain(view, now, &mut judgement);
        judgement
    }

    /// Adds new routers, and new addresses with the MAC of a router.
    fn learn(&mut self, wanted: &HashSet<(Family, NextHop)>, view: View<'_>, now: Instant) {
        for &router in wanted {
            self.known.entry(router).or_insert_with(|| Router {
                addresses: Vec::new(),
                certain: now,
                moved: None,
                replaced: None,
            });
        }
        for key in view.neighbours.keys() {
            let family = if key.1.is_ipv4() { Family::V4 } else { Family::V6 };
            let Some(hop) = view.hop(key) else { continue };
            let Some(router) = self.known.get_mut(&(family, hop)) else { continue };
            let known = router.addresses.iter().any(|watched| watched.key == *key);
            if !known && router.addresses.len() < ADDRESSES {
                router.addresses.push(Watched { key: *key, verified: None });
            }
        }
    }

    /// Determines the addresses that are due for a verification.
    fn maintain(&mut self, view: View<'_>, now: Instant, judgement: &mut Judgement) {
        let count = u32::try_from(self.known.len()).unwrap_or(u32::MAX);
        let pause = VERIFY.max(VERIFY_EACH.saturating_mul(count));
        for router in self.known.values_mut() {
            let moved = router.moved;
            let doubt = now.saturating_duration_since(router.certain);
            for Watched { key, verified } in &mut router.addresses {
                let since = verified.map(|at| now.saturating_duration_since(at));
                let due = since.is_none_or(|since| since >= pause)
                    || moved.zip(*verified).is_some_and(|(moved, at)| at < moved);
                match view.neighbour(key).certainty {
                    Certainty::Good | Certainty::Stale if due => {
                        judgement.verify.push(*key);
                        *verified = Some(now);
                    }
                    Certainty::Probing if moved.is_none() && doubt >= ASK_ALL => {
                        judgement.again.push(*key);
                    }
                    Certainty::Resolving | Certainty::Failed => judgement.resolve.push(*key),
                    _ => {}
                }
            }
        }
    }
}

impl Router {
    fn judge(&mut self, hop: &NextHop, view: View<'_>, now: Instant) -> Verdict {
        let moved = self
            .addresses
            .iter()
            .find_map(|watched| view.hop(&watched.key).filter(|found| found.mac != hop.mac));
        let verdict = match moved {
            Some(new) => self.judge_moved(hop, new, view, now),
            None => {
                self.moved = None;
                self.judge_unmoved(hop, view, now)
            }
        };
        if verdict == Verdict::There {
            self.certain = now;
        }
        verdict
    }

    /// Judges a router of which an address has another MAC. The old MAC may still be that of a
    /// router, of which another address is known; only a reply since the change proves it.
    fn judge_moved(
        &mut self,
        hop: &NextHop,
        new: NextHop,
        view: View<'_>,
        now: Instant,
    ) -> Verdict {
        let moved = *self.moved.get_or_insert(now);
        let proven = self.addresses.iter().any(|watched| {
            view.hop(&watched.key) == Some(*hop)
                && match view.neighbour(&watched.key).certainty {
                    Certainty::Good => watched.verified.is_some_and(|at| at >= moved),
                    certainty => certainty == Certainty::Fixed,
                }
        });
        if !proven {
            return Verdict::Moved(new);
        }
        self.addresses.retain(|watched| view.hop(&watched.key).is_none_or(|found| found == *hop));
        self.moved = None;
        Verdict::There
    }

    fn judge_unmoved(&self, hop: &NextHop, view: View<'_>, now: Instant) -> Verdict {
        if !view.has_carrier(hop.nic) {
            return Verdict::Gone(Why::NoCarrier);
        }
        let states = || self.addresses.iter().map(|watched| view.neighbour(&watched.key).certainty);
        let known =
            |certainty| matches!(certainty, Certainty::Good | Certainty::Fixed | Certainty::Stale);
        if self.addresses.is_empty() || states().any(known) {
            return Verdict::There;
        }
        let failed = states().all(|certainty| certainty == Certainty::Failed);
        if failed || now.saturating_duration_since(self.certain) >= DOUBT {
            return Verdict::Gone(Why::Silent);
        }
        Verdict::Unsure
    }
}

/// Records a next hop that replies are redirected to.
fn expect(expected: &mut Vec<(ClientHop, Instant)>, new: ClientHop, now: Instant) {
    let same = |known: &ClientHop| known.hop == new.hop && known.family() == new.family();
    if let Some((_, last)) = expected.iter_mut().find(|(known, _)| same(known)) {
        *last = now;
    } else if expected.len() < MOST_EXPECTED {
        expected.push((new, now));
    }
}

/// Returns the gateway of the kernel's route to a client, if the route leaves by a NIC.
fn gateway(used: &ClientHop, view: View<'_>) -> Option<Key> {
    match view.routes.get(&used.client) {
        Some(&Route::Via { ifindex, hop, .. }) if view.interfaces.contains_key(&ifindex) => {
            Some((ifindex, hop))
        }
        _ => None,
    }
}

/// Returns the next hop instead of a router that is gone: that of the kernel's route to its clients,
/// or another router of the clients' family, one at the same NIC first.
fn instead(
    used: &ClientHop,
    there: &[(Family, NextHop)],
    in_use: &HashSet<(Family, NextHop)>,
    view: View<'_>,
) -> Option<NextHop> {
    let family = used.family();
    let gone = |hop: &NextHop| {
        let router = (family, *hop);
        (in_use.contains(&router) && !there.contains(&router)) || !view.has_carrier(hop.nic)
    };
    let by_route = gateway(used, view).and_then(|key| view.hop(&key));
    if let Some(hop) = by_route.filter(|hop| !gone(hop)) {
        return Some(hop);
    }
    let others = there.iter().filter(|(of, hop)| *of == family && !gone(hop)).map(|(_, hop)| *hop);
    others.min_by_key(|hop| (hop.nic != used.hop.nic, hop.nic.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;
    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 9));

    const fn mac(last: u8) -> [u8; 6] {
        [2, 0, 0, 0, 0, last]
    }

    const fn hop(nic: u8, last: u8) -> NextHop {
        NextHop { nic: NicIndex(nic), mac: mac(last), vlan: None }
    }

    fn address(last: u8) -> IpAddr {
        [198, 51, 100, last].into()
    }

    /// Interface `n + 1` is NIC `n`; all have a carrier, but for `cut`.
    fn interfaces(cut: Option<u32>) -> HashMap<u32, Interface> {
        let of = |index: u8| {
            let ifindex = u32::from(index) + 1;
            let carrier = cut != Some(ifindex);
            (ifindex, Interface { nic: NicIndex(index), vlan: None, carrier })
        };
        [0, 1].map(of).into()
    }

    /// A neighbour: interface index, last byte of its address and of its MAC (0: none), state.
    type Row = (u32, u8, u8, Certainty);

    /// A scene: the clients' hops, and the time.
    struct Scene {
        routers: Routers,
        in_use: Vec<ClientHop>,
        start: Instant,
        route: Option<(u32, u8)>,
        cut: Option<u32>,
    }

    impl Scene {
        fn new(hops: &[NextHop]) -> Self {
            let in_use = hops.iter().map(|&hop| ClientHop { hop, client: CLIENT }).collect();
            let (routers, start) = (Routers::default(), Instant::now());
            Self { routers, in_use, start, route: None, cut: None }
        }

        fn judge(&mut self, ms: u64, rows: &[Row]) -> Judgement {
            let neighbours = rows.iter().map(|&(ifindex, last, known, certainty)| {
                let mac = (known != 0).then_some(mac(known));
                ((ifindex, address(last)), Neighbour { mac, certainty })
            });
            let routes = self.route.iter().map(|&(ifindex, last)| {
                (CLIENT, Route::Via { ifindex, hop: address(last), mtu: None })
            });
            let (neighbours, routes) = (neighbours.collect(), routes.collect());
            let interfaces = interfaces(self.cut);
            let view = View { interfaces: &interfaces, neighbours: &neighbours, routes: &routes };
            self.routers.judge(&self.in_use, view, self.start + MS(ms))
        }

        /// The replacement of the first hop.
        fn replaced(&mut self, ms: u64, rows: &[Row]) -> Option<(NextHop, Why)> {
            let old = self.in_use.first().map(|used| used.hop);
            let replaced = self.judge(ms, rows).replaced;
            let found = replaced.iter().find(|replaced| Some(replaced.hop.old) == old)?;
            Some((found.hop.new, found.why))
        }
    }

    use Certainty::{Failed, Fixed, Good, Probing, Resolving, Stale};

    #[test]
    fn a_router_with_another_mac_is_followed_there_and_back() {
        let mut scene = Scene::new(&[hop(0, 1)]);
        for (name, ms, row, expected) in [
            ("known", 0, (1, 1, 1, Stale), None),
            ("announced", 500, (1, 1, 2, Stale), Some((hop(0, 2), Why::Moved))),
            ("verified", 600, (1, 1, 2, Good), Some((hop(0, 2), Why::Moved))),
            ("flushed", 700, (1, 1, 0, Resolving), Some((hop(0, 2), Why::Moved))),
            ("another one", 800, (1, 1, 3, Good), Some((hop(0, 3), Why::Moved))),
            ("back", 900, (1, 1, 1, Stale), None),
        ] {
            assert_eq!(scene.replaced(ms, &[row]), expected, "{name}");
        }
    }

    #[test]
    fn a_process_continues_with_the_routers_of_the_one_before() {
        let mut before = Scene::new(&[hop(0, 1)]);
        assert_eq!(before.replaced(0, &[(1, 1, 1, Good)]), None);
        let known = before.routers.known(&before.in_use);
        let used = ClientHop { hop: hop(0, 1), client: CLIENT };
        assert_eq!(known, [KnownRouter { used, addresses: vec![(1, address(1))] }]);
        let rows = [(1, 1, 2, Good)];
        let mut after = Scene::new(&[]);
        after.routers = Routers::restore(&known, after.start);
        let replaced = |judgement: Judgement| -> Vec<ReplacedHop> {
            judgement.replaced.iter().map(|replaced| replaced.hop).collect()
        };
        let expected = [ReplacedHop { family: Family::V4, old: hop(0, 1), new: hop(0, 2) }];
        assert_eq!(replaced(after.judge(0, &rows)), expected, "before a pin is found");
        assert_eq!(replaced(after.judge(61_000, &rows)), [], "no pin was found");
        let mut without = Scene::new(&[hop(0, 1)]);
        assert_eq!(replaced(without.judge(0, &rows)), [], "a MAC that no address had");
    }

    #[test]
    fn a_mac_that_another_address_still_has_is_replaced_until_it_replies() {
        let mut scene = Scene::new(&[hop(0, 1)]);
        let own = |certainty| (1, 1, 1, certainty);
        assert_eq!(scene.replaced(0, &[own(Good), (1, 9, 1, Good)]), None);
        // The address 9 moves to another router. The first one was verified before that.
        let moved = (1, 9, 2, Stale);
        let judgement = scene.judge(100, &[own(Good), moved]);
        assert_eq!(judgement.replaced.first().map(|found| found.why), Some(Why::Moved));
        assert!(judgement.verify.contains(&(1, address(1))), "{judgement:?}");
        assert!(scene.replaced(120, &[own(Probing), moved]).is_some());
        assert_eq!(scene.replaced(140, &[own(Good), moved]), None);
        // From now on, the address belongs to the other one.
        assert_eq!(scene.replaced(1_100, &[own(Probing), moved]), None);
        assert_eq!(scene.replaced(1_300, &[own(Good), moved]), None);
    }

    #[test]
    fn an_entry_that_an_operator_has_fixed_proves_a_mac() {
        let mut scene = Scene::new(&[hop(0, 1)]);
        let both = |moved| [(1, 1, 1, Fixed), (1, 9, moved, Good)];
        assert_eq!(scene.replaced(0, &both(1)), None);
        let judgement = scene.judge(2_000, &both(2));
        assert_eq!(judgement.replaced, []);
        assert!(!judgement.verify.contains(&(1, address(1))), "{judgement:?}");
    }

    #[test]
    fn a_silent_router_is_replaced_by_the_route_to_its_clients() {
        let mut scene = Scene::new(&[hop(0, 1)]);
        scene.route = Some((2, 8));
        let router = |known, certainty| [(1, 1, known, certainty), (2, 8, 5, Good)];
        let instead = Some((hop(1, 5), Why::Silent));
        for (name, ms, rows, expected) in [
            ("there", 0, router(1, Good), None),
            ("asked", 500, router(1, Probing), None),
            ("in doubt", 999, router(1, Probing), None),
            ("silent", 1_000, router(1, Probing), instead),
            ("failed", 3_000, router(0, Failed), instead),
            ("asked again", 3_100, router(0, Resolving), instead),
            ("there again", 3_200, router(1, Good), None),
            ("failed at once", 3_300, router(0, Failed), instead),
            ("heard of", 3_400, router(1, Stale), None),
            ("flushed", 3_500, router(0, Resolving), None),
        ] {
            assert_eq!(scene.replaced(ms, &rows), expected, "{name}");
        }
        assert!(scene.judge(3_600, &router(0, Resolving)).pending);
    }

    #[test]
    fn a_router_that_does_not_reply_is_looked_up_again() {
        let mut scene = Scene::new(&[hop(0, 1)]);
        for (name, ms, certainty, expected) in [
            ("verified", 0, Good, false),
            ("asked", 100, Probing, false),
            ("no reply", 500, Probing, true),
            ("looked up", 600, Resolving, false),
            ("found", 700, Good, false),
            ("asked in time", 1_199, Probing, false),
        ] {
            let known = if certainty == Resolving { 0 } else { 1 };
            let judgement = scene.judge(ms, &[(1, 1, known, certainty)]);
            assert_eq!(judgement.again.contains(&(1, address(1))), expected, "{name}");
        }
    }

    #[test]
    fn what_replaces_a_router_that_is_gone() {
        let gone = (1, 1, 0, Failed);
        let other = (2, 2, 2, Good);
        for (name, route, hops, rows, expected) in [
            ("nothing", None, &[hop(0, 1)][..], &[gone, other][..], None),
            ("the route", Some((2, 2)), &[hop(0, 1)], &[gone, other], Some(hop(1, 2))),
            ("the route, not looked up yet", Some((2, 2)), &[hop(0, 1)], &[gone], None),
            ("a route by another NIC", Some((7, 2)), &[hop(0, 1)], &[gone, other], None),
            (
                "another router, as the route is its own",
                Some((1, 1)),
                &[hop(0, 1), hop(1, 2)],
                &[gone, other],
                Some(hop(1, 2)),
            ),
            (
                "one at the same NIC first",
                None,
                &[hop(0, 1), hop(1, 2), hop(0, 3)],
                &[gone, other, (1, 3, 3, Good)],
                Some(hop(0, 3)),
            ),
            (
                "none that is gone as well",
                Some((2, 2)),
                &[hop(0, 1), hop(1, 2)],
                &[gone, (2, 2, 0, Failed)],
                None,
            ),
            ("none without a known address", None, &[hop(0, 1), hop(1, 7)], &[gone, other], None),
        ] {
            let mut scene = Scene::new(hops);
            scene.route = route;
            let _ = scene.judge(0, &[(1, 1, 1, Good), other, (1, 3, 3, Good)]);
            let judgement = scene.judge(100, rows);
            let replaced = judgement.replaced.iter().find(|found| found.hop.old == hop(0, 1));
            assert_eq!(replaced.map(|found| found.hop.new), expected, "{name}");
            let unknown = route == Some((2, 2)) && !rows.contains(&other);
            assert_eq!(judgement.resolve.contains(&(2, address(2))), unknown, "{name}");
        }
    }

    #[test]
    fn a_link_without_carrier_has_no_router() {
        let mut scene = Scene::new(&[hop(0, 1), hop(1, 2)]);
        let rows = [(1, 1, 1, Good), (2, 2, 2, Good)];
        assert_eq!(scene.replaced(0, &rows), None);
        scene.cut = Some(1);
        assert_eq!(scene.replaced(100, &rows[1..]), Some((hop(1, 2), Why::NoCarrier)));
        scene.cut = None;
        assert_eq!(scene.replaced(200, &rows), None);
    }

    /// Clients' packets come by the new MAC, and the router gets its former one before that is known.
    #[test]
    fn a_mac_that_replies_were_redirected_to_is_replaced_as_well() {
        let mut scene = Scene::new(&[hop(0, 1)]);
        for (ms, last, old) in
            [(0, 1, None), (100, 2, Some(1)), (200, 1, Some(2)), (300, 3, Some(1))]
        {
            let judgement = scene.judge(ms, &[(1, 1, last, Stale)]);
            let replaced = judgement.replaced.first();
            assert_eq!(replaced.map(|found| found.hop.old), old.map(|old| hop(0, old)), "{ms}");
            assert!(judgement.replaced.iter().all(|found| found.hop.new == hop(0, last)), "{ms}");
        }
        assert_eq!(scene.judge(400, &[(1, 1, 3, Good)]).replaced.len(), 2);
        scene.in_use = Vec::new();
        let _ = scene.judge(60_400, &[(1, 1, 3, Good)]);
        assert!(scene.judge(60_500, &[(1, 1, 3, Good)]).replaced.is_empty());
    }

    #[test]
    fn routers_are_verified_twice_a_second_and_forgotten_with_their_clients() {
        let mut scene = Scene::new(&[hop(0, 1)]);
        let row = [(1, 1, 1, Good)];
        let key = (1, address(1));
        for (ms, expected) in [(0, true), (499, false), (500, true), (900, false)] {
            assert_eq!(scene.judge(ms, &row).verify.contains(&key), expected, "{ms}");
        }
        assert!(!scene.routers.is_empty());
        scene.in_use.clear();
        assert_eq!(scene.judge(2_000, &row), Judgement::default());
        assert!(scene.routers.is_empty());
    }

    #[test]
    fn a_router_is_one_of_its_family_and_link() {
        let mut scene = Scene::new(&[hop(0, 1)]);
        // The same MAC behind another NIC is another router.
        let rows = |last| [(2, 1, last, Good)];
        assert_eq!(scene.replaced(0, &rows(1)), None);
        assert_eq!(scene.replaced(100, &rows(2)), None);
        scene.in_use =
            vec![ClientHop { hop: hop(0, 1), client: [0x2001, 0xdb8, 0, 0, 0, 0, 0, 9].into() }];
        assert_eq!(scene.replaced(200, &[(1, 1, 1, Good)]), None);
        assert_eq!(scene.replaced(300, &[(1, 1, 2, Good)]), None);
    }
}
