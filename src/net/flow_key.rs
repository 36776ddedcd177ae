//! The five-tuple of a flow, named from the client's side.

use std::net::SocketAddr;

use super::{Address, Protocol};

/// The five-tuple of a flow, from the client's side. Ports in host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Who opened the flow.
    pub client: Address,
    /// Where it was opened to.
    pub vip: Address,
    /// The client's port.
    pub client_port: u16,
    /// The VIP's port.
    pub vip_port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl FlowKey {
    /// The key as five words, equal if and only if the keys are: what chooses a backend is hashed
    /// from these, on every box alike.
    #[inline]
    pub const fn words(&self) -> [u64; 5] {
        let tail =
            (self.client_port as u64) << 48 | (self.vip_port as u64) << 32 | self.protocol as u64;
        [self.client.high, self.client.low, self.vip.high, self.vip.low, tail]
    }

    /// The client's address and port.
    pub fn client_socket(&self) -> SocketAddr {
        SocketAddr::new(self.client.into(), self.client_port)
    }

    /// The VIP's address and port.
    pub fn vip_socket(&self) -> SocketAddr {
        SocketAddr::new(self.vip.into(), self.vip_port)
    }
}
