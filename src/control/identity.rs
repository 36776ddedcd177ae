//! Identity of VIPs and backends across changes of the configuration: by address and port, whatever
//! their names.
//!
//! A backend is identified by its VIP, its address and its port. A VIP is identified by its
//! protocol, forwarding mode and PROXY protocol, and by its address and ports; where address or
//! ports change, by its name.

use hashbrown::{HashMap, HashSet};

use crate::config::{Backend, Vip};
use crate::net::{Forward, Listen, Network, Protocol};

/// Properties that a VIP keeps: protocol, forwarding mode, PROXY protocol. Flows of one kind cannot
/// become flows of another.
type Kind = (Protocol, Forward, bool);

/// Predicate: the first VIP continues as the second one.
type GoesOn<'f> = &'f dyn Fn(&Vip, &Vip) -> bool;

const fn kind(vip: &Vip) -> Kind {
    (vip.protocol, vip.forward, vip.policy.proxy)
}

/// Maximum number of parts that lost listeners are divided into.
const MOST_PARTS: usize = 256;

/// Returns for each VIP of `new` the index of the VIP of `old` that it continues; no two continue
/// the same one.
///
/// Candidates are tried in this order, and the first match counts: the same address and ports, the
/// same name, the same address with a port in common.
pub fn continued(old: &[&Vip], new: &[Vip]) -> Vec<Option<usize>> {
    let mut at_address = HashMap::<(Kind, Network), Vec<usize>>::new();
    let mut of_name = HashMap::<(Kind, &str), Vec<usize>>::new();
    for (index, vip) in old.iter().enumerate() {
        at_address.entry((kind(vip), vip.address)).or_default().push(index);
        of_name.entry((kind(vip), vip.name.as_str())).or_default().push(index);
    }
    let mut taken = HashSet::new();
    let mut found = vec![None; new.len()];
    let ports_meet = |a: &Vip, b: &Vip| {
        a.ports.ranges().iter().any(|a| b.ports.ranges().iter().any(|b| a.meets(*b)))
    };
    let passes: [(bool, GoesOn<'_>); 3] =
        [(true, &|a, b| a.ports == b.ports), (false, &|_, _| true), (true, &ports_meet)];
    for (by_address, goes_on) in passes {
        for (vip, found) in new.iter().zip(&mut found).filter(|(_, found)| found.is_none()) {
            let near = match by_address {
                true => at_address.get(&(kind(vip), vip.address)),
                false => of_name.get(&(kind(vip), vip.name.as_str())),
            };
            let mut near = near.into_iter().flatten().copied();
            *found = near.find(|&index| {
                !taken.contains(&index) && old.get(index).is_some_and(|old| goes_on(old, vip))
            });
            taken.extend(*found);
        }
    }
    found
}

/// Returns whether two backends of a VIP are the same server, whatever their names and weights.
pub fn same_server(old: &Backend, new: &Backend) -> bool {
    (old.address, old.port) == (new.address, new.port)
}

/// Returns the listeners of a VIP, one per range of ports.
pub fn listens(vip: &Vip) -> impl Iterator<Item = Listen> {
    let Vip { address, protocol, ports, .. } = vip;
    let listen = |&ports| Listen { network: *address, protocol: *protocol, ports };
    ports.ranges().iter().map(listen)
}

/// Returns whether the listener is a single port of a single address. Two such listeners are either
/// equal or disjoint.
fn is_single(listen: &Listen) -> bool {
    listen.network.is_single() && listen.ports.is_single()
}

/// Returns the parts of `before` where `vip` does not listen. Lost listeners stay whole if there
/// would be more than [`MOST_PARTS`] parts.
///
/// Cost: a hash look-up per single port; for each lost range or prefix, a comparison with all
/// listeners of the VIP.
pub fn lost(before: impl IntoIterator<Item = Listen>, vip: &Vip) -> Vec<Listen> {
    let has: HashSet<Listen> = listens(vip).collect();
    let gone: Vec<Listen> = before.into_iter().filter(|listen| !has.contains(listen)).collect();
    let (singles, wide): (Vec<_>, Vec<_>) = gone.iter().copied().partition(is_single);
    let singles = listens(vip).filter(|has| !is_single(has)).fold(singles, without);
    let parts = [singles, listens(vip).fold(wide, without)].concat();
    if parts.len() > gone.len().max(MOST_PARTS) { gone } else { parts }
}

/// Listeners of all VIPs of a configuration.
#[derive(Debug, Default)]
pub struct InForce {
    singles: HashSet<Listen>,
    wide: Vec<Listen>,
}

impl InForce {
    /// Collects the listeners of `vips`.
    pub fn of(vips: &[Vip]) -> Self {
        let all = vips.iter().flat_map(listens);
        let (singles, wide): (Vec<_>, Vec<_>) = all.partition(is_single);
        Self { singles: singles.into_iter().collect(), wide }
    }

    /// Divides lost listeners into the parts where another VIP listens, and receives the packets of
    /// the flows there (`true`), and those where none does (`false`). More than [`MOST_PARTS`]
    /// parts would be too many for workers to search: then everything counts as taken over.
    pub fn divide(&self, lost: &[Listen]) -> Vec<(Listen, bool)> {
        let mut parts = Vec::new();
        for place in lost {
            let mut left = vec![*place];
            let same = self.singles.get(place).filter(|_| is_single(place));
            let within = Some(&self.singles).filter(|_| !is_single(place)).into_iter().flatten();
            for has in same.into_iter().chain(within).chain(&self.wide) {
                parts.extend(left.iter().filter_map(|left| Some((left.common(*has)?, true))));
                left = without(left, *has);
            }
            parts.extend(left.into_iter().map(|left| (left, false)));
            if parts.len() > lost.len().max(MOST_PARTS) {
                return lost.iter().map(|place| (*place, true)).collect();
            }
        }
        parts
    }
}

fn without(places: Vec<Listen>, gone: Listen) -> Vec<Listen> {
    if places.iter().all(|place| place.common(gone).is_none()) {
        return places;
    }
    places.iter().flat_map(|place| place.without(gone)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::state::tests::{backend, vip, with};
    use super::*;
    use crate::forwarding::Ports;

    fn at(name: &str, host: u8, ports: &[u16]) -> Vip {
        Vip { address: [192, 0, 2, host].into(), ports: Ports::of(ports), ..vip(name, &[]) }
    }

    fn found(old: &[Vip], new: &[Vip]) -> Vec<Option<usize>> {
        continued(&old.iter().collect::<Vec<_>>(), new)
    }

    #[test]
    fn a_vip_is_its_address_and_ports_before_it_is_its_name() {
        let old = [at("web", 1, &[80]), at("mail", 2, &[25])];
        type Row<'r> = (&'r str, Vec<Vip>, &'r [Option<usize>]);
        let rows: [Row<'_>; 8] = [
            (
                "the same, in another order",
                vec![old[1].clone(), old[0].clone()],
                &[Some(1), Some(0)],
            ),
            ("renamed", vec![at("www", 1, &[80])], &[Some(0)]),
            ("swapped names", vec![at("mail", 1, &[80]), at("web", 2, &[25])], &[Some(0), Some(1)]),
            ("another port", vec![at("web", 1, &[8080])], &[Some(0)]),
            ("another address", vec![at("web", 3, &[80])], &[Some(0)]),
            ("renamed, with one port more", vec![at("www", 1, &[443, 80])], &[Some(0)]),
            ("another", vec![at("ftp", 3, &[21])], &[None]),
            ("divided by port", vec![at("tls", 1, &[80]), at("web", 1, &[443])], &[Some(0), None]),
        ];
        for (name, new, expected) in rows {
            assert_eq!(found(&old, &new), expected, "{name}");
        }
        let dsr = Vip { forward: Forward::Dsr, ..at("web", 1, &[80]) };
        let proxied = with(at("web", 1, &[80]), |policy| policy.proxy = true);
        let udp = Vip { protocol: Protocol::Udp, ..at("web", 1, &[80]) };
        assert_eq!(found(&old, &[dsr, proxied, udp]), [None; 3], "flows of another kind");
    }

    #[test]
    fn a_server_is_its_address_and_port() {
        let a = backend("a", 1);
        assert!(same_server(&a, &Backend { name: "b".to_owned(), weight: 9, ..a.clone() }));
        assert!(!same_server(&a, &Backend { port: None, ..a.clone() }));
        assert!(!same_server(&a, &backend("a", 2)));
    }
}
