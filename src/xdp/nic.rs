//! A network interface: its addresses, its queues and its driver.
//!
//! All facts come from netlink and ethtool ioctls, never from /sys, which shows the interfaces of
//! the namespace that it was mounted in.
#![allow(unsafe_code, reason = "ethtool ioctls")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_route::link::{LinkFlags, LinkLayerType};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::netlink::{Link, NetlinkError, Rtnetlink};

/// Commands of include/uapi/linux/ethtool.h. None of their structures exceeds [`REPLY`] words.
#[derive(Clone, Copy)]
enum Command {
    /// `ETHTOOL_GDRVINFO`.
    DriverInfo = 0x3,
    /// `ETHTOOL_GCHANNELS`.
    Channels = 0x3c,
}

/// Reason why an interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// No interface of this name in this network namespace.
    #[error("there is no interface {name}; there are: {}", existing.join(", "))]
    Missing {
        /// Requested name.
        name: String,
        /// Names that exist.
        existing: Vec<String>,
    },
    /// Not an Ethernet interface: a tunnel, or the loopback.
    #[error("{name} is not an Ethernet interface; holdfast forwards Ethernet frames only")]
    NotEthernet {
        /// Name of the interface.
        name: String,
    },
    /// The kernel refused the query.
    #[error("cannot ask the kernel about interface {name}: {reason}")]
    Refused {
        /// Name of the interface.
        name: String,
        /// The kernel's reason.
        reason: String,
    },
}

/// An Ethernet interface, in its state at the time of opening.
#[derive(Debug, Clone)]
pub struct Nic {
    name: String,
    index: u32,
    mac: [u8; 6],
    mtu: u32,
    driver: String,
    rx_queues: u32,
    up: bool,
}

impl Nic {
    /// Looks the interface up in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`NicError`]; for a name that does not exist it lists the names that do.
    pub fn open(name: &str) -> Result<Self, NicError> {
        let refused = |error: NetlinkError| NicError::Refused {
            name: name.to_owned(),
            reason: error.to_string(),
        };
        let netlink = Rtnetlink::open().map_err(|error| refused(error.into()))?;
        let Some(link) = netlink.link_by_name(name).map_err(refused)? else {
            let links = netlink.links().map_err(refused)?;
            let existing = links.into_iter().map(|link| link.name).collect();
            return Err(NicError::Missing { name: name.to_owned(), existing });
        };
        let mac = link.mac.filter(|_| link.kind == LinkLayerType::Ether);
        let mac = mac.ok_or_else(|| NicError::NotEthernet { name: name.to_owned() })?;
        let ethtool = Ethtool::open().map_err(|error| refused(error.into()))?;
        Ok(Self {
            driver: ethtool.driver(name),
            rx_queues: ethtool.rx_queues(&link),
            name: link.name,
            index: link.index,
            mac,
            mtu: link.mtu,
            up: link.flags.contains(LinkFlags::Up),
        })
    }

    /// Interface name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Interface index in this network namespace.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Hardware address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// MTU in bytes: the longest packet behind the Ethernet header.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Driver name, or `"unknown"`.
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// Number of receive queues in use.
    pub fn rx_queues(&self) -> u32 {
        self.rx_queues
    }

    /// Whether the interface is administratively up.
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Returns the current state of the interface. A renamed interface is found by its index, a
    /// re-created one by its name.
    ///
    /// Cost: two sockets, and two or three requests to the kernel (~50 us together).
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn now(&self) -> io::Result<NicNow> {
        let netlink = Rtnetlink::open()?;
        let asked = |error: NetlinkError| io::Error::other(error.to_string());
        let link = match netlink.link_by_index(self.index).map_err(asked)? {
            None => netlink.link_by_name(&self.name).map_err(asked)?,
            found => found,
        };
        let Some(link) = link else { return Ok(NicNow::Gone) };
        let ethtool = Ethtool::open()?;
        Ok(NicNow::There(LinkNow {
            index: link.index,
            mac: link.mac.unwrap_or_default(),
            up: link.flags.contains(LinkFlags::Up),
            carrier: link.flags.contains(LinkFlags::LowerUp),
            rx_queues: ethtool.rx_queues(&link),
            program: link.xdp.offloaded.or(link.xdp.native).or(link.xdp.generic),
        }))
    }

    #[cfg(test)]
    pub(super) fn for_tests(name: &str, driver: &str, rx_queues: u32) -> Self {
        let (name, driver) = (name.to_owned(), driver.to_owned());
        Self { name, index: 1, mac: [2; 6], mtu: 1500, driver, rx_queues, up: true }
    }
}

/// Current state of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NicNow {
    /// No interface has its index or name in its network namespace.
    Gone,
    /// The interface exists.
    There(LinkNow),
}

/// Current state of an existing interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkNow {
    /// Interface index; differs from the opened one if the interface was re-created.
    pub index: u32,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Whether the interface is administratively up.
    pub up: bool,
    /// Whether the link has a carrier.
    pub carrier: bool,
    /// Number of receive queues in use.
    pub rx_queues: u32,
    /// Id of the attached XDP program.
    pub program: Option<u32>,
}

/// Words of the reply to an ethtool command: more than the largest structure in use, `struct
/// ethtool_drvinfo` (49), has.
const REPLY: usize = 64;

/// `struct ifreq` with a pointer, the argument of ethtool commands.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: *mut [u32; REPLY],
    rest: [u64; 2],
}

const _: () = assert!(size_of::<Request>() >= size_of::<libc::ifreq>());

/// A socket for ethtool commands.
struct Ethtool(OwnedFd);

impl Ethtool {
    fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        Ok(Self(socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?))
    }

    /// Returns the driver's name from `struct ethtool_drvinfo`: the command, 32 bytes with the
    /// name, and more.
    fn driver(&self, name: &str) -> String {
        let Ok(reply) = self.ask(Command::DriverInfo, name) else { return "unknown".to_owned() };
        let bytes: Vec<u8> = reply.into_iter().skip(1).take(8).flat_map(u32::to_ne_bytes).collect();
        String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
    }

    /// Returns the number of receive queues in use; for a driver that does not report it, the
    /// number of allocated ones. `struct ethtool_channels`: the command, four maxima, then rx, tx,
    /// other and combined queues.
    fn rx_queues(&self, link: &Link) -> u32 {
        match self.ask(Command::Channels, &link.name) {
            Ok([_, _, _, _, _, rx, _, _, combined, ..]) if rx > 0 || combined > 0 => {
                rx.saturating_add(combined)
            }
            _ => link.rx_queues.max(1),
        }
    }

    /// Issues `SIOCETHTOOL`: the kernel reads the command and fills in the rest of its structure.
    fn ask(&self, command: Command, name: &str) -> io::Result<[u32; REPLY]> {
        let mut reply = [0; REPLY];
        reply[0] = command as u32;
        let mut request = Request { name: [0; libc::IFNAMSIZ], data: &raw mut reply, rest: [0; 2] };
        // The last byte stays zero, as the terminator.
        let room = request.name.iter_mut().take(libc::IFNAMSIZ - 1);
        room.zip(name.bytes()).for_each(|(place, byte)| *place = byte);
        let (fd, code) = (self.0.as_raw_fd(), libc::SIOCETHTOOL);
        // SAFETY: `request` is live, its name is zero-terminated, and its pointer is to a live
        // array that is longer than the structure of any `Command`; these structures consist of
        // integers.
        let done = unsafe { libc::ioctl(fd, code as _, &raw mut request) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(reply) }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn a_missing_interface_is_an_error_that_lists_the_others() {
        let error = Nic::open("nosuchlink0").unwrap_err().to_string();
        assert!(error.contains("no interface nosuchlink0"), "{error}");
        assert!(error.contains("there are: ") && error.contains("lo"), "{error}");
    }

    #[test]
    fn the_loopback_is_refused() {
        let error = Nic::open("lo").unwrap_err();
        assert!(matches!(error, NicError::NotEthernet { .. }), "{error}");
    }
}
