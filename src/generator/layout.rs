//! Header offsets in the generator's frames: Ethernet, IP, and UDP or TCP, none with options.

/// Bytes of the frame check sequence, which frame sizes include (RFC 2544) and memory does not.
pub const FCS: usize = 4;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

/// Headers of a run: identical in all its packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// IPv6, else IPv4.
    pub ipv6: bool,
    /// TCP, else UDP.
    pub tcp: bool,
}

impl Layout {
    /// Offset of the transport header.
    #[inline]
    pub const fn transport(self) -> usize {
        ETHERNET + if self.ipv6 { 40 } else { 20 }
    }

    /// Offset of the first byte behind all headers, where the signature begins.
    #[inline]
    pub const fn payload(self) -> usize {
        self.transport() + if self.tcp { 20 } else { 8 }
    }

    /// Offset of the last four bytes of the source address.
    #[inline]
    pub const fn source_tail(self) -> usize {
        if self.ipv6 { 34 } else { 26 }
    }

    /// Offset of the transport checksum.
    #[inline]
    pub const fn transport_checksum(self) -> usize {
        self.transport() + if self.tcp { 16 } else { 6 }
    }

    /// EtherType, in network byte order.
    pub const fn ether_type(self) -> [u8; 2] {
        if self.ipv6 { [0x86, 0xdd] } else { [0x08, 0x00] }
    }

    /// IP protocol number.
    pub const fn protocol(self) -> u8 {
        if self.tcp { 6 } else { 17 }
    }
}
