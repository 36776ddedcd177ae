//! What stays what it was when the configuration changes: by address and port, whatever its name.
//!
//! A backend is its VIP, its address and its port. A VIP is its protocol, its way of forwarding, and its
//! address and ports; where those change, its name.

use hashbrown::{HashMap, HashSet};

use crate::config::{Backend, Vip};
use crate::net::{Forward, Listen, Network, Protocol};

/// What of a VIP cannot change: flows of one kind are no flows of another.
type Kind = (Protocol, Forward, bool);

/// Whether a VIP of before goes on as another one.
type GoesOn<'f> = &'f dyn Fn(&Vip, &Vip) -> bool;

const fn kind(vip: &Vip) -> Kind {
    (vip.protocol, vip.forward, vip.policy.proxy)
}

/// Most parts that a lost place is cut into.
const MOST_PARTS: usize = 256;

/// For each of `new`, the one of `old` that it goes on from; no two go on from one.
///
/// Of several the first: it is asked for the same address and ports, then for the same name, then
/// for the same address with a port in common.
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

/// Whether a backend of a VIP is the same server as before, whatever its name and weight are now.
pub fn same_server(old: &Backend, new: &Backend) -> bool {
    (old.address, old.port) == (new.address, new.port)
}

/// Where a VIP listens.
pub fn listens(vip: &Vip) -> impl Iterator<Item = Listen> {
    let Vip { address, protocol, ports, .. } = vip;
    let listen = |&ports| Listen { network: *address, protocol: *protocol, ports };
    ports.ranges().iter().map(listen)
}

/// Of the places `before`, those where `vip` does not listen.
pub fn lost(before: impl IntoIterator<Item = Listen>, vip: &Vip) -> Vec<Listen> {
    listens(vip).fold(before.into_iter().collect(), |lost, has| without(&lost, has))
}

/// A place that a VIP has lost, in parts.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Where another VIP listens, and has the packets of the flows there.
    pub taken: Vec<Listen>,
    /// Where none does.
    pub left: Vec<Listen>,
}

impl Parts {
    /// Parts of `place`, as `vips` listen. More than [`MOST_PARTS`] would be too many for workers to look
    /// through: all of it counts as taken then.
    pub fn of(place: Listen, vips: &[Vip]) -> Self {
        let mut parts = Self { taken: Vec::new(), left: vec![place] };
        for has in vips.iter().flat_map(listens) {
            let taken = parts.left.iter().filter_map(|&left| left.common(has));
            parts.taken.extend(taken);
            parts.left = without(&parts.left, has);
            if parts.taken.len() + parts.left.len() > MOST_PARTS {
                return Self { taken: vec![place], left: Vec::new() };
            }
        }
        parts
    }
}

fn without(places: &[Listen], gone: Listen) -> Vec<Listen> {
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
