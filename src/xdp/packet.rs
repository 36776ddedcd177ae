//! Transmission of single frames through the kernel (AF_PACKET), for announcements of the control
//! thread.
#![allow(unsafe_code, reason = "sendto(2) with a link-layer address")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use libc::{c_void, socklen_t};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// A socket that sends frames on any interface of the network namespace in which it was opened.
///
/// Meant to be kept: closing one takes the kernel some milliseconds (net/packet/af_packet.c,
/// `packet_release` waits in `synchronize_net`).
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens a send-only socket.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_RAW; `EMFILE`.
    pub fn open() -> io::Result<Self> {
        // Protocol 0: the socket receives no packets.
        let socket =
            socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self(socket))
    }

    /// Sends one Ethernet frame, from its destination address on and without its FCS, on the
    /// interface with index `interface`. Does not block.
    ///
    /// # Errors
    /// The kernel's error: `EAGAIN` and `ENOBUFS` while a queue is full, `ENETDOWN`, `EMSGSIZE`
    /// beyond the MTU.
    pub fn send(&self, interface: u32, frame: &[u8]) -> io::Result<()> {
        let address = libc::sockaddr_ll {
            sll_family: u16::try_from(libc::AF_PACKET).unwrap_or_default(),
            sll_ifindex: i32::try_from(interface).map_err(io::Error::other)?,
            sll_protocol: 0,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let (bytes, address) = (frame.as_ptr().cast::<c_void>(), &raw const address);
        let len = socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
        let flags = libc::MSG_DONTWAIT;
        let fd = self.0.as_raw_fd();
        // SAFETY: both pointers are to live values of the lengths that are passed.
        let sent = unsafe { libc::sendto(fd, bytes, frame.len(), flags, address.cast(), len) };
        match usize::try_from(sent) {
            Ok(sent) if sent == frame.len() => Ok(()),
            Ok(sent) => Err(io::Error::other(format!("{sent} of {} bytes sent", frame.len()))),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }
}
