//! What the XDP program gives to the workers.

use std::hash::Hash;

use hashbrown::HashSet;

use super::{Listen, ListenKey, Network, PortRange};
use crate::flow::Address;

/// The rules of the XDP program; what it makes of them is told in `steer.bpf.c`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SteerRules {
    /// Single addresses and ports where VIPs listen; port 0 stands for every port. At most 65,536.
    pub vips: Vec<ListenKey>,
    /// Prefixes, ranges of ports and all protocols where VIPs listen.
    pub networks: Vec<Listen>,
    /// Where replies of NAT backends come from; port 0 stands for every port. At most 65,536.
    pub returns: Vec<ListenKey>,
    /// The same, for ranges of ports; the addresses are single ones.
    pub return_ranges: Vec<Listen>,
    /// Full-NAT sources, to which replies come: TCP and UDP, and ICMP errors.
    pub sources: Vec<(Network, PortRange)>,
    /// Tunnel sources: ICMP errors about packets that are IPIP, or UDP to [`Self::gue_port`].
    pub tunnels: Vec<Network>,
    /// Where the GUE packets of this box go to; 0: it sends none.
    pub gue_port: u16,
    /// Addresses of this box: what is for them and for no VIP stays with the kernel. At most 4,096.
    pub locals: Vec<Address>,
}

impl SteerRules {
    /// The rules that are in both. A reload passes through it, so that rules go before the table
    /// that served them does, and come after the one that will.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        fn common<T: Copy + Eq + Hash>(left: &[T], right: &[T]) -> Vec<T> {
            let right: HashSet<&T> = right.iter().collect();
            left.iter().filter(|item| right.contains(item)).copied().collect()
        }
        Self {
            vips: common(&self.vips, &other.vips),
            networks: common(&self.networks, &other.networks),
            returns: common(&self.returns, &other.returns),
            return_ranges: common(&self.return_ranges, &other.return_ranges),
            sources: common(&self.sources, &other.sources),
            tunnels: common(&self.tunnels, &other.tunnels),
            gue_port: if self.gue_port == other.gue_port { self.gue_port } else { 0 },
            locals: common(&self.locals, &other.locals),
        }
    }
}
