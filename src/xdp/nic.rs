//! A network interface: what it is, how many queues it has, which driver runs it.
//!
//! Everything is asked through netlink and ethtool ioctls, never through /sys, which shows the
//! interfaces of the namespace that it was mounted in.
#![allow(unsafe_code, reason = "ethtool ioctls")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_route::link::{LinkFlags, LinkLayerType};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::netlink::{Link, NetlinkError, Rtnetlink};

/// Commands of include/uapi/linux/ethtool.h. None has a structure of more than [`ANSWER`] words.
#[derive(Clone, Copy)]
enum Command {
    /// `ETHTOOL_GDRVINFO`.
    DriverInfo = 0x3,
    /// `ETHTOOL_GCHANNELS`.
    Channels = 0x3c,
}

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

/// Words of the answer to an ethtool command: more than `struct ethtool_drvinfo` (49) has, the largest
/// one that is asked for here.
const ANSWER: usize = 64;

/// `struct ifreq` with a pointer, as ethtool commands take it.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: *mut [u32; ANSWER],
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

    /// `struct ethtool_drvinfo`: the command, 32 bytes with the driver's name, and more.
    fn driver(&self, name: &str) -> String {
        let Ok(answer) = self.ask(Command::DriverInfo, name) else { return "unknown".to_owned() };
        let bytes: Vec<u8> =
            answer.into_iter().skip(1).take(8).flat_map(u32::to_ne_bytes).collect();
        String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
    }

    /// Receive queues in use; drivers that do not say have as many as were allocated.
    /// `struct ethtool_channels`: the command, four maxima, then rx, tx, other and combined queues.
    fn rx_queues(&self, link: &Link) -> u32 {
        match self.ask(Command::Channels, &link.name) {
            Ok([_, _, _, _, _, rx, _, _, combined, ..]) if rx > 0 || combined > 0 => {
                rx.saturating_add(combined)
            }
            _ => link.rx_queues.max(1),
        }
    }

    /// `SIOCETHTOOL`: the kernel reads the command and fills in the rest of its structure.
    fn ask(&self, command: Command, name: &str) -> io::Result<[u32; ANSWER]> {
        let mut answer = [0; ANSWER];
        answer[0] = command as u32;
        let mut request =
            Request { name: [0; libc::IFNAMSIZ], data: &raw mut answer, rest: [0; 2] };
        // One byte is left for the final zero.
        let room = request.name.iter_mut().take(libc::IFNAMSIZ - 1);
        room.zip(name.bytes()).for_each(|(place, byte)| *place = byte);
        let (fd, code) = (self.0.as_raw_fd(), libc::SIOCETHTOOL);
        // SAFETY: `request` lives, its name ends with a zero, and its pointer is to a live array that
        // is longer than the structure of any `Command`; these consist of integers.
        let done = unsafe { libc::ioctl(fd, code as _, &raw mut request) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
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
