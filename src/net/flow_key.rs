//! The five-tuple of a flow, from the client's side.

use std::net::SocketAddr;

use super::{Address, Protocol};

/// The five-tuple of a flow, from the client's side. Ports in host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Address of the client, which opened the flow.
    pub client: Address,
    /// Address of the VIP.
    pub vip: Address,
    /// The client's port.
    pub client_port: u16,
    /// The VIP's port.
    pub vip_port: u16,
    /// The transport protocol.
    pub protocol: Protocol,
}

impl FlowKey {
    /// Returns the key as five words, equal if and only if the keys are. Hashes that choose a
    /// backend are computed from them, alike on every box.
    #[inline]
    pub const fn words(&self) -> [u64; 5] {
        let tail =
            (self.client_port as u64) << 48 | (self.vip_port as u64) << 32 | self.protocol as u64;
        [self.client.high, self.client.low, self.vip.high, self.vip.low, tail]
    }

    /// Returns the client's address and port.
    pub fn client_socket(&self) -> SocketAddr {
        SocketAddr::new(self.client.into(), self.client_port)
    }

    /// Returns the VIP's address and port.
    pub fn vip_socket(&self) -> SocketAddr {
        SocketAddr::new(self.vip.into(), self.vip_port)
    }
}
