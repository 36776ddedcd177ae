//! Addresses and ports that a VIP listens on.

use serde::{Deserialize, Serialize};

use super::{Address, Network, PortRange, Protocol};

/// Address, port and protocol that a VIP listens on. Port 0 stands for every port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ListenKey {
    /// The address that clients connect to.
    pub address: Address,
    /// The port, in host byte order.
    pub port: u16,
    /// The transport protocol.
    pub protocol: Protocol,
}

/// A network, ports and a protocol to listen on: the general form of
/// [`ListenKey`](super::ListenKey).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Listen {
    /// The addresses.
    pub network: Network,
    /// The protocol; with [`Protocol::Any`] the ports have no meaning.
    pub protocol: Protocol,
    /// The ports.
    pub ports: PortRange,
}

impl Listen {
    /// Returns whether the listener contains `key`.
    pub fn contains(self, key: ListenKey) -> bool {
        let ports = self.ports == PortRange::ALL || self.ports.contains(key.port);
        self.protocol == key.protocol && ports && self.network.contains(key.address)
    }

    /// Returns the intersection of `self` and `other`.
    pub fn common(self, other: Self) -> Option<Self> {
        let network = match self.network.covers(other.network) {
            true => other.network,
            false => Some(self.network).filter(|network| other.network.covers(*network))?,
        };
        let first = self.ports.first.max(other.ports.first);
        let last = self.ports.last.min(other.ports.last);
        let meets = self.protocol == other.protocol && first <= last;
        meets.then_some(Self { network, ports: PortRange { first, last }, ..self })
    }

    /// Returns `self` without `other`, as disjoint parts.
    ///
    /// Two parts at most for the ports, and one for each bit by which the prefix of `other` is
    /// longer.
    pub fn without(self, other: Self) -> Vec<Self> {
        let Some(common) = self.common(other) else { return vec![self] };
        let (PortRange { first, last }, gone) = (self.ports, common.ports);
        // No flow has port 0, and a range of only that would stand for every port.
        let first = first.max(1);
        let below = (first < gone.first).then(|| PortRange { first, last: gone.first - 1 });
        let above = (gone.last < last).then(|| PortRange { first: gone.last + 1, last });
        let ports = below.into_iter().chain(above);
        let ports = ports.map(|ports| Self { ports, ..self });
        let networks = self.network.without(common.network);
        ports.chain(networks.map(|network| Self { network, ..common })).collect()
    }
}

/// Returns the key of a listener with a single address and a single port, or all ports (0).
pub fn exact(listen: Listen) -> Option<ListenKey> {
    let Listen { network, protocol, ports } = listen;
    let port = match ports {
        PortRange::ALL => 0,
        PortRange { first, last } if first == last => first,
        PortRange { .. } => return None,
    };
    let single = network.is_single() && protocol != Protocol::Any;
    single.then_some(ListenKey { address: network.address(), port, protocol })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    /// Every key is in one part or in the removed listener, never in both.
    #[test]
    fn a_place_without_another_is_the_rest_of_it() {
        let listen = |network: &str, ports: &str| Listen {
            network: network.parse().unwrap(),
            protocol: Protocol::Tcp,
            ports: ports.parse().unwrap(),
        };
        let whole = listen("192.0.2.0/28", "100-110");
        let rows = [
            (whole, 0),
            (listen("0.0.0.0/0", "1-65535"), 0),
            (listen("192.0.2.5", "105"), 2 + 4),
            (listen("192.0.2.8/29", "100-110"), 1),
            (listen("192.0.2.0/24", "90-104"), 1),
            (listen("192.0.2.0/28", "103-104"), 2),
            (listen("192.0.2.0/24", "111"), 1),
            (listen("192.0.2.16/28", "100"), 1),
            (Listen { protocol: Protocol::Udp, ..whole }, 1),
        ];
        for (gone, parts) in rows {
            let left = whole.without(gone);
            assert_eq!(left.len(), parts, "{gone:?}: {left:?}");
            let common = whole.common(gone);
            assert_eq!(common, gone.common(whole), "{gone:?}");
            for (host, port) in (0..32).flat_map(|host| (98..113).map(move |port| (host, port))) {
                let address = Address::from_v4([192, 0, 2, host]);
                let key = ListenKey { address, port, protocol: Protocol::Tcp };
                let found = left.iter().chain(&common).filter(|part| part.contains(key)).count();
                assert_eq!(found, usize::from(whole.contains(key)), "{gone:?}: {key:?}");
                let both = whole.contains(key) && gone.contains(key);
                assert_eq!(common.is_some_and(|common| common.contains(key)), both, "{gone:?}");
            }
        }
        assert_eq!(listen("::/0", "1").without(listen("2001:db8::1", "1")).len(), 128);
    }
}
