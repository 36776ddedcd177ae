//! Sends single frames through the kernel (AF_PACKET), for announcements of the control thread.
#![allow(unsafe_code, reason = "sendto(2) with a link-layer address")]

use std::io;
use std::os::fd::AsRawFd;

use libc::c_void;

use super::os::{socket, socklen_of, zeroed};

/// Sends one Ethernet frame, from its destination address on and without a checksum at the end,
/// out of the interface with index `interface`, in the calling thread's network namespace.
///
/// Several system calls: for gratuitous ARP and unsolicited neighbour advertisements.
///
/// # Errors
/// What the kernel says: `EPERM` without CAP_NET_RAW, `ENETDOWN`, `EMSGSIZE` beyond the MTU.
pub fn send_frame(interface: u32, frame: &[u8]) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).unwrap_or_default(),
        sll_ifindex: i32::try_from(interface).map_err(io::Error::other)?,
        ..zeroed()
    };
    // Protocol 0: this socket only sends.
    let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    let (bytes, address) = (frame.as_ptr().cast::<c_void>(), &raw const address);
    let len = socklen_of::<libc::sockaddr_ll>();
    // SAFETY: both pointers are to live values of the lengths that are passed.
    let sent =
        unsafe { libc::sendto(socket.as_raw_fd(), bytes, frame.len(), 0, address.cast(), len) };
    match usize::try_from(sent) {
        Ok(sent) if sent == frame.len() => Ok(()),
        Ok(sent) => Err(io::Error::other(format!("{sent} of {} bytes sent", frame.len()))),
        Err(_) => Err(io::Error::last_os_error()),
    }
}
