//! A network interface: what it is, how many queues it has, which driver runs it.
//!
//! Everything is asked through netlink and ethtool ioctls, never through /sys, which shows the
//! interfaces of the namespace that it was mounted in.
#![allow(unsafe_code, reason = "ethtool ioctls")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::netlink::{Link, NetlinkError, Rtnetlink};
use super::os::{Plain, check, socket, zeroed};

// Commands of include/uapi/linux/ethtool.h.
const ETHTOOL_GDRVINFO: u32 = 0x3;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// Why an interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// No such name in this network namespace.
    #[error("there is no interface {name}; there are: {}", existing.join(", "))]
    Missing {
        /// Name asked for.
        name: String,
        /// Names that exist.
        existing: Vec<String>,
    },
    /// A tunnel, or the loopback.
    #[error("{name} is not an Ethernet interface; holdfast forwards Ethernet frames only")]
    NotEthernet {
        /// The interface.
        name: String,
    },
    /// The kernel refused to tell.
    #[error("cannot ask the kernel about interface {name}: {reason}")]
    Refused {
        /// The interface.
        name: String,
        /// The kernel's reason.
        reason: String,
    },
}

/// An Ethernet interface, as it was when it was opened.
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
    /// [`NicError`]; for a name that does not exist it lists those that do.
    pub fn open(name: &str) -> Result<Self, NicError> {
        let refused = |error: NetlinkError| NicError::Refused {
            name: name.to_owned(),
            reason: error.to_string(),
        };
        let netlink = Rtnetlink::open().map_err(|error| refused(error.into()))?;
        let Some(link) = netlink.link_by_name(name).map_err(refused)? else {
            let existing = netlink.link_names().map_err(refused)?;
            return Err(NicError::Missing { name: name.to_owned(), existing });
        };
        let mac = link.mac.filter(|_| link.kind == libc::ARPHRD_ETHER);
        let mac = mac.ok_or_else(|| NicError::NotEthernet { name: name.to_owned() })?;
        let ethtool =
            socket(libc::AF_INET, libc::SOCK_DGRAM, 0).map_err(|error| refused(error.into()))?;
        Ok(Self {
            driver: driver(ethtool.as_fd(), name),
            rx_queues: rx_queues(ethtool.as_fd(), &link),
            name: link.name,
            index: link.index,
            mac,
            mtu: link.mtu,
            up: link.flags & libc::IFF_UP as u32 != 0,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its index in this network namespace.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its hardware address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Its MTU: bytes of a packet behind the Ethernet header.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Its driver, or `"unknown"`.
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// Queues that receive now.
    pub fn rx_queues(&self) -> u32 {
        self.rx_queues
    }

    /// Whether it has been set up.
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// What has become of the interface. A renamed one is found by its index, one that was made again by
    /// its name.
    ///
    /// Cost: two sockets, and three or four requests to the kernel (~50 us together).
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
        let ethtool = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        Ok(NicNow::There(LinkNow {
            index: link.index,
            mac: link.mac.unwrap_or_default(),
            up: link.flags & libc::IFF_UP as u32 != 0,
            carrier: link.flags & IFF_LOWER_UP != 0,
            rx_queues: rx_queues(ethtool.as_fd(), &link),
            program: link.xdp.offloaded.or(link.xdp.native).or(link.xdp.generic),
        }))
    }

    #[cfg(test)]
    pub(super) fn for_tests(name: &str, driver: &str, rx_queues: u32) -> Self {
        let (name, driver) = (name.to_owned(), driver.to_owned());
        Self { name, index: 1, mac: [2; 6], mtu: 1500, driver, rx_queues, up: true }
    }
}

/// What has become of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NicNow {
    /// There is none of its index or name in its network namespace.
    Gone,
    /// There is one.
    There(LinkNow),
}

/// An interface, as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkNow {
    /// Its index: another one if it was made again.
    pub index: u32,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Whether it has been set up.
    pub up: bool,
    /// Whether there is a carrier.
    pub carrier: bool,
    /// Queues that receive.
    pub rx_queues: u32,
    /// Id of its XDP program.
    pub program: Option<u32>,
}

/// Flag of a link with a carrier, include/uapi/linux/if.h.
const IFF_LOWER_UP: u32 = 1 << 16;

/// `struct ethtool_drvinfo`.
#[derive(Clone, Copy)]
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    /// Versions, bus, and counts that are of no use here.
    rest: [u8; 160],
}

/// `struct ethtool_channels`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Channels {
    command: u32,
    /// Of receive, transmit, other and combined queues.
    max: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

// SAFETY: a struct of integers takes every bit pattern.
unsafe impl Plain for DriverInfo {}
// SAFETY: a struct of integers takes every bit pattern.
unsafe impl Plain for Channels {}

fn driver(ethtool: BorrowedFd<'_>, name: &str) -> String {
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, ..zeroed() };
    match ask(ethtool, name, &mut info) {
        Ok(()) => String::from_utf8_lossy(&info.driver).trim_end_matches('\0').to_owned(),
        Err(_) => "unknown".to_owned(),
    }
}

/// Receive queues in use; drivers that do not say have as many as were allocated.
fn rx_queues(ethtool: BorrowedFd<'_>, link: &Link) -> u32 {
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..zeroed() };
    match ask(ethtool, &link.name, &mut channels) {
        Ok(()) if channels.rx > 0 || channels.combined > 0 => {
            channels.rx.saturating_add(channels.combined)
        }
        _ => link.rx_queues.max(1),
    }
}

/// `SIOCETHTOOL`: the kernel reads the command and fills in the rest of `value`.
fn ask<T: Plain>(ethtool: BorrowedFd<'_>, name: &str, value: &mut T) -> io::Result<()> {
    // SAFETY: a struct of integers, bytes and a union of such and null pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte is left for the final zero.
    let room = request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1);
    for (place, byte) in room.zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(value).cast();
    // SAFETY: `request` lives, its name ends with a zero, and its pointer is to a live struct of
    // the layout that the command in its first word stands for.
    check(unsafe { libc::ioctl(ethtool.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) })
        .map(drop)
}

const _: () = assert!(size_of::<DriverInfo>() == 196 && size_of::<Channels>() == 36);

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
