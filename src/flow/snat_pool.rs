//! The local source addresses and ports of full-NAT flows, and their numbers.
//!
//! ```text
//! SnatPort   address:16 port:16      address: index among the pool's addresses, IPv4 first
//! ```
//!
//! A SNAT port is converted to its address and port, and a reply's destination to its SNAT port,
//! without a search. Worker `port % workers` owns a port.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};

use hashbrown::HashMap;

use crate::net::{Address, Family};

/// Maximum number of source addresses. With all ports of each, their entries take 1.1 GiB.
pub const MAX_SOURCES: usize = 256;

/// A source address and port, by number: identifies a full-NAT flow to its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SnatPort(pub(super) u32);

impl SnatPort {
    /// Returns the port.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
    pub const fn port(self) -> u16 {
        self.0 as u16
    }

    #[inline]
    const fn address(self) -> usize {
        (self.0 >> 16) as usize
    }
}

/// The source addresses, and their ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnatPool {
    /// IPv4 first.
    addresses: Vec<Address>,
    /// Number of IPv4 addresses.
    v4: usize,
    by_address: HashMap<Address, u16>,
    first: u16,
    /// Number of ports of each address.
    ports: usize,
}

impl SnatPool {
    /// Creates a pool of these addresses, [`MAX_SOURCES`] at most (more are left out), and these
    /// ports of each, without port 0.
    pub fn new(addresses: impl IntoIterator<Item = IpAddr>, ports: &RangeInclusive<u16>) -> Self {
        // IPv4 comes before IPv6.
        let sorted: BTreeSet<IpAddr> = addresses.into_iter().collect();
        let addresses: Vec<Address> =
            sorted.into_iter().take(MAX_SOURCES).map(Address::from).collect();
        let first = (*ports.start()).max(1);
        Self {
            v4: addresses.iter().filter(|address| address.is_v4()).count(),
            by_address: (0..).zip(&addresses).map(|(number, &address)| (address, number)).collect(),
            addresses,
            first,
            ports: (first..=*ports.end()).len(),
        }
    }

    /// Returns whether the pool is empty.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.addresses.is_empty() || self.ports == 0
    }

    /// The addresses, IPv4 first.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// First and last port of each address.
    pub fn ports(&self) -> (u16, u16) {
        let more = u16::try_from(self.ports.saturating_sub(1)).unwrap_or(u16::MAX);
        (self.first, self.first.saturating_add(more))
    }

    /// Returns whether `address` is in the pool.
    #[inline]
    pub fn has(&self, address: Address) -> bool {
        !self.is_empty() && self.by_address.contains_key(&address)
    }

    /// Returns the SNAT port of an address and port, if they are in the pool.
    #[inline]
    pub fn find(&self, address: Address, port: u16) -> Option<SnatPort> {
        if self.is_empty() || usize::from(port.checked_sub(self.first)?) >= self.ports {
            return None;
        }
        let number = self.by_address.get(&address)?;
        Some(SnatPort(u32::from(*number) << 16 | u32::from(port)))
    }

    /// Returns address and port of a SNAT port.
    #[inline]
    pub fn source(&self, id: SnatPort) -> Option<(Address, u16)> {
        Some((*self.addresses.get(id.address())?, id.port()))
    }

    /// Returns the index of a SNAT port among all, below [`SnatPool::len`].
    #[inline]
    pub(super) fn place(&self, id: SnatPort) -> Option<usize> {
        let port = usize::from(id.port().checked_sub(self.first)?);
        (port < self.ports).then_some(id.address() * self.ports + port)
    }

    /// Number of SNAT ports.
    pub const fn len(&self) -> usize {
        self.addresses.len() * self.ports
    }

    /// Describes the sources of one family for an operator: `10.0.0.48 and 3 more, ports
    /// 1024-65535`.
    pub fn describe(&self, family: Family) -> String {
        let (of_v4, of_v6) = self.addresses.split_at(self.v4);
        let Some((one, rest)) = (if family.is_v4() { of_v4 } else { of_v6 }).split_first() else {
            return "none".to_owned();
        };
        let more = match rest.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let (first, last) = self.ports();
        format!("{one}{more}, ports {first}-{last}")
    }

    /// Number of SNAT ports of one family that a worker has.
    pub fn share(&self, worker: u8, workers: u8, family: Family) -> usize {
        self.of_worker(worker, workers, family).count()
    }

    /// Returns the SNAT port at a position of [`SnatPool::of_worker`], without a walk.
    pub(super) fn nth_of_worker(
        &self,
        worker: u8,
        workers: u8,
        family: Family,
        nth: usize,
    ) -> Option<SnatPort> {
        let numbers = self.numbers(family);
        let number = numbers.start.checked_add(nth.checked_rem(numbers.len())?)?;
        let step = usize::from(workers.max(1));
        let mut first = (usize::from(self.first)..).take(step);
        let first = first.find(|port| port % step == usize::from(worker))?;
        let port = first.checked_add(nth.checked_div(numbers.len())?.checked_mul(step)?)?;
        let number = u16::try_from(number).ok()?;
        let id = SnatPort(u32::from(number) << 16 | u32::from(u16::try_from(port).ok()?));
        self.place(id).map(|_| id)
    }

    /// Numbers of the addresses of one family.
    fn numbers(&self, family: Family) -> Range<usize> {
        if family.is_v4() { 0..self.v4 } else { self.v4..self.addresses.len() }
    }

    /// Returns a worker's SNAT ports of one family: port by port, so that consecutive ones have
    /// different addresses.
    pub(super) fn of_worker(
        &self,
        worker: u8,
        workers: u8,
        family: Family,
    ) -> impl Iterator<Item = SnatPort> + '_ {
        let numbers = self.numbers(family);
        let ports = (self.first..=u16::MAX).take(self.ports);
        let mine = ports.filter(move |&port| owner(port, workers) == worker);
        mine.flat_map(move |port| {
            let numbers = numbers.clone();
            // Below `MAX_SOURCES`.
            let numbers = numbers.filter_map(|number| u16::try_from(number).ok());
            numbers.map(move |number| SnatPort(u32::from(number) << 16 | u32::from(port)))
        })
    }
}

/// Returns the worker that owns a port.
#[inline]
pub(super) fn owner(port: u16, workers: u8) -> u8 {
    // The remainder of a division by a `u8` is one.
    u8::try_from(port % u16::from(workers.max(1))).unwrap_or_default()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn sources(ports: RangeInclusive<u16>) -> SnatPool {
        let addresses = ["2001:db8::50", "198.18.9.1", "198.18.9.2", "198.18.9.1"];
        SnatPool::new(addresses.map(|text| text.parse().unwrap()), &ports)
    }

    #[test]
    fn every_binding_has_one_worker_one_place_and_one_source() {
        for ports in [1024..=1024, 1024..=1100, 65_000..=65_535, 0..=9] {
            for workers in [1, 2, 3, 64] {
                let sources = sources(ports.clone());
                let (mut places, mut of) = (HashSet::new(), 0);
                for worker in 0..workers {
                    for family in Family::BOTH {
                        let ids: Vec<SnatPort> =
                            sources.of_worker(worker, workers, family).collect();
                        assert_eq!(ids.len(), sources.share(worker, workers, family));
                        let nth = |nth| sources.nth_of_worker(worker, workers, family, nth);
                        assert!((0..ids.len()).map(nth).eq(ids.iter().copied().map(Some)));
                        assert_eq!(nth(ids.len()), None);
                        of += ids.len();
                        for id in ids {
                            let (address, port) = sources.source(id).unwrap();
                            assert_eq!(sources.find(address, port), Some(id));
                            assert_eq!(address.family(), family);
                            assert_eq!(owner(port, workers), worker);
                            assert!(port != 0 && ports.contains(&port));
                            let place = sources.place(id).unwrap();
                            assert!(place < sources.len() && places.insert(place));
                        }
                    }
                }
                assert_eq!((of, places.len()), (sources.len(), sources.len()));
            }
        }
    }

    #[test]
    fn addresses_and_ports_outside_the_pool_have_no_snat_port() {
        let sources = sources(1024..=1100);
        let v4 = Address::from_v4([198, 18, 9, 1]);
        for (address, port) in [(v4, 1023), (v4, 1101), (v4, 0), (Address::default(), 1024)] {
            assert_eq!(sources.find(address, port), None);
        }
        assert_eq!(SnatPool::default().find(Address::default(), 0), None);
        assert!(SnatPool::default().is_empty() && !sources.has(Address::default()));
        assert_eq!(sources.describe(Family::V4), "198.18.9.1 and 1 more, ports 1024-1100");
        assert_eq!(sources.describe(Family::V6), "2001:db8::50, ports 1024-1100");
    }
}
