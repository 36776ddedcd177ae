//! Identity of a backend for schedulers: its address, so that names are for display only.

use std::hash::Hasher;
use std::net::IpAddr;

use hashbrown::HashMap;
use siphasher::sip::SipHasher13;

use super::affinity::Secret;
use super::spec::BackendSpec;

/// A server in the pool of a VIP, as schedulers hash and order it: equal on every box with this
/// pool.
///
/// The identity is the address without the port: two VIPs for different ports of the same servers
/// (HTTP and HTTPS) make the same choice. Backends of a VIP that share an address are numbered in
/// the order of their ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Server {
    /// Address; an IPv4 address is mapped (RFC 4291 2.5.5.2).
    address: [u8; 16],
    /// Number of backends of this address with a lower port.
    nth: u16,
}

impl Server {
    /// The only backend at an address, or the `nth` by its port.
    pub const fn new(address: IpAddr, nth: u16) -> Self {
        let address = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        };
        Self { address, nth }
    }

    /// Servers of a pool, each with its backend, without removed backends.
    pub fn all(pool: &[BackendSpec]) -> impl Iterator<Item = (Self, &BackendSpec)> {
        let mut pool: Vec<&BackendSpec> = pool.iter().filter(|backend| !backend.removed).collect();
        pool.sort_by_key(|backend| (backend.address, backend.port));
        let mut seen = HashMap::<IpAddr, u16>::new();
        pool.into_iter().map(move |backend| {
            let next = seen.entry(backend.address).or_default();
            let nth = *next;
            *next += 1;
            (Self::new(backend.address, nth), backend)
        })
    }

    /// Hash of the server, independent for each `purpose`.
    pub fn hash(&self, secret: &Secret, purpose: u8) -> u64 {
        let mut hasher = SipHasher13::new_with_key(secret);
        hasher.write(&[purpose]);
        hasher.write(&self.address);
        hasher.write(&self.nth.to_le_bytes());
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forwarding::table::testing::backend;

    fn pool(servers: &[(u8, Option<u16>)]) -> Vec<BackendSpec> {
        let spec = |(index, &(host, port)): (u16, &(u8, Option<u16>))| BackendSpec {
            address: [10, 0, 0, host].into(),
            port,
            ..backend(index)
        };
        (0..).zip(servers).map(spec).collect()
    }

    /// Names, order and ports do not enter; servers on other ports are the same servers.
    #[test]
    fn a_server_is_its_address_and_its_turn_among_the_ports_there() {
        let of = |servers: &[(u8, Option<u16>)]| {
            let pool = pool(servers);
            let all = Server::all(&pool).map(|(server, spec)| (spec.id.index.0, server));
            let mut all: Vec<_> = all.collect();
            all.sort_unstable();
            all.into_iter().map(|(_, server)| server).collect::<Vec<_>>()
        };
        let at = |host: u8, nth| Server::new([10, 0, 0, host].into(), nth);
        let http = of(&[(2, Some(80)), (1, Some(81)), (1, Some(80))]);
        assert_eq!(http, [at(2, 0), at(1, 1), at(1, 0)]);
        assert_eq!(of(&[(2, Some(443)), (1, Some(8444)), (1, Some(8443))]), http);
        assert_eq!(of(&[(7, None)]), of(&[(7, Some(80))]), "another port only");
        assert_eq!(Server::new([0, 0, 0, 0, 0, 0xffff, 0x0a00, 2].into(), 0), at(2, 0));
    }
}
