//! The two rtnetlink requests that this layer needs: read a link, and set its XDP program.
//!
//! ```text
//!  nlmsghdr | ifinfomsg | attribute | attribute ...       attribute: len u16, type u16, bytes
//! ```
//!
//! A program that is set this way belongs to the NIC: unlike with a bpf_link it stays when the
//! process is killed, and goes on dropping what is for a VIP (architecture invariant 8).
//! Source: rtnetlink(7); include/uapi/linux/if_link.h; net/core/dev.c, `dev_change_xdp_fd`.
#![allow(unsafe_code, reason = "send(2) and recv(2)")]

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use libc::{c_int, c_void};

use super::os::{set_option, socket};

const HEADER: usize = 16;
/// `struct ifinfomsg`.
const IFINFO: usize = 16;

// Attributes of a link, include/uapi/linux/if_link.h.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_XDP: u16 = 43;

// Attributes inside IFLA_XDP.
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_FLAGS: u16 = 3;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFLA_XDP_HW_PROG_ID: u16 = 7;
const IFLA_XDP_EXPECTED_FD: u16 = 8;

/// The text of an extended acknowledgement, include/uapi/linux/netlink.h.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// The bits of an attribute's type that are flags (`NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`).
const NLA_FLAGS: u16 = 0xc000;
const NLA_F_NESTED: u16 = 0x8000;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;

/// Receive buffer in bytes: twice what the kernel puts into one part of a dump.
const BUFFER: usize = 64 << 10;

/// The kernel refused a request.
#[derive(Debug)]
pub(super) struct NetlinkError {
    /// The error number.
    pub source: io::Error,
    /// What the driver or the core had to say about it.
    pub explanation: Option<String>,
}

impl NetlinkError {
    pub(super) fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

impl From<io::Error> for NetlinkError {
    fn from(source: io::Error) -> Self {
        Self { source, explanation: None }
    }
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.explanation {
            Some(text) => write!(f, "{}: {text}", self.source),
            None => self.source.fmt(f),
        }
    }
}

/// What the kernel tells about a link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    /// `ARPHRD_*`.
    pub kind: u16,
    /// `IFF_*`.
    pub flags: u32,
    pub name: String,
    pub mac: Option<[u8; 6]>,
    pub mtu: u32,
    pub rx_queues: u32,
    pub xdp: AttachedIds,
}

/// Identifiers of the XDP programs on a link, by mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct AttachedIds {
    pub native: Option<u32>,
    pub generic: Option<u32>,
    pub offloaded: Option<u32>,
}

/// A socket for rtnetlink requests. It stays in the network namespace where it was opened.
#[derive(Debug)]
pub(super) struct Rtnetlink {
    socket: OwnedFd,
}

impl Rtnetlink {
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
        let on: c_int = 1;
        set_option(socket.as_fd(), libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, &on)?;
        set_option(socket.as_fd(), libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, &on)?;
        Ok(Self { socket })
    }

    /// The link of that name, if there is one.
    pub(super) fn link_by_name(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
            return Ok(None);
        }
        let mut attributes = Vec::new();
        append(&mut attributes, IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
        self.link(0, &attributes)
    }

    /// The link of that index, if there is one.
    pub(super) fn link_by_index(&self, index: u32) -> Result<Option<Link>, NetlinkError> {
        self.link(index, &[])
    }

    fn link(&self, index: u32, attributes: &[u8]) -> Result<Option<Link>, NetlinkError> {
        let mut found = None;
        let request = request(libc::RTM_GETLINK, NLM_F_ACK, index, attributes);
        match self.exchange(&request, |link| found = Some(link)) {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            result => result.map(|()| found),
        }
    }

    /// The names of all links of this network namespace.
    pub(super) fn link_names(&self) -> Result<Vec<String>, NetlinkError> {
        let mut names = Vec::new();
        let request = request(libc::RTM_GETLINK, NLM_F_DUMP, 0, &[]);
        self.exchange(&request, |link| names.push(link.name))?;
        Ok(names)
    }

    /// Sets the XDP program of a link; `program` -1 removes it. With `expected`, only if that
    /// program is there now (`flags` must then have `XDP_FLAGS_REPLACE`).
    pub(super) fn set_xdp(
        &self,
        index: u32,
        program: RawFd,
        flags: u32,
        expected: Option<RawFd>,
    ) -> Result<(), NetlinkError> {
        let mut inner = Vec::new();
        append(&mut inner, IFLA_XDP_FD, &program.to_ne_bytes());
        append(&mut inner, IFLA_XDP_FLAGS, &flags.to_ne_bytes());
        if let Some(expected) = expected {
            append(&mut inner, IFLA_XDP_EXPECTED_FD, &expected.to_ne_bytes());
        }
        let mut attributes = Vec::new();
        append(&mut attributes, IFLA_XDP | NLA_F_NESTED, &inner);
        let request = request(libc::RTM_SETLINK, NLM_F_ACK, index, &attributes);
        self.exchange(&request, |_link| ())
    }

    /// Sends a request and shows each link of the answer to `each`, until the kernel is done.
    fn exchange(&self, request: &[u8], mut each: impl FnMut(Link)) -> Result<(), NetlinkError> {
        let pointer = request.as_ptr().cast::<c_void>();
        // SAFETY: pointer and length are those of one live slice.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), pointer, request.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error().into());
        }
        let mut buffer = vec![0; BUFFER];
        loop {
            let part = self.receive(&mut buffer)?;
            for message in messages(part) {
                match message.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return acknowledgement(&message),
                    libc::RTM_NEWLINK => each(parse_link(message.payload)),
                    _ => {}
                }
            }
        }
    }

    fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let (pointer, len) = (buffer.as_mut_ptr().cast::<c_void>(), buffer.len());
        // SAFETY: pointer and length are those of one live slice, which is borrowed mutably.
        let read = unsafe { libc::recv(self.socket.as_raw_fd(), pointer, len, libc::MSG_TRUNC) };
        // MSG_TRUNC returns the whole length, also when less was stored.
        let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
        buffer.get(..read).ok_or_else(|| io::Error::other("a netlink answer of over 64 KiB"))
    }
}

/// A request about one link.
fn request(kind: u16, flags: u16, index: u32, attributes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER + IFINFO + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::new();
    // nlmsghdr: length, type, flags, sequence, port.
    bytes.extend(len.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    bytes.extend([0; 8]);
    // ifinfomsg: family, padding and type; index; flags; change mask.
    bytes.extend([0; 4]);
    bytes.extend(index.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(attributes);
    bytes
}

/// Appends an attribute and its padding to a multiple of 4 bytes.
fn append(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    bytes.extend(len.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    payload: &'a [u8],
}

/// Cuts an answer into messages; what is cut short ends it.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let len = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let message = Message {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            payload: bytes.get(HEADER..len)?,
        };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Cuts a list of attributes into type and value; what is cut short ends it.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & !NLA_FLAGS;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// `NLMSG_ERROR`: 0 is success; else the error, and maybe a text behind the request's header.
fn acknowledgement(message: &Message<'_>) -> Result<(), NetlinkError> {
    let code = u32_at(message.payload, 0).unwrap_or_default().cast_signed();
    if code == 0 {
        return Ok(());
    }
    let request = match message.flags & NLM_F_CAPPED {
        0 => u32_at(message.payload, 4).and_then(|len| usize::try_from(len).ok()),
        _ => Some(HEADER),
    };
    let extended = message.flags & NLM_F_ACK_TLVS != 0;
    let details = request.filter(|_| extended).and_then(|len| message.payload.get(4 + len..));
    let explanation = attributes(details.unwrap_or_default())
        .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
        .map(|(_, text)| text_of(text));
    Err(NetlinkError { source: io::Error::from_raw_os_error(code.saturating_neg()), explanation })
}

/// An `RTM_NEWLINK` message; what is missing keeps its default.
fn parse_link(payload: &[u8]) -> Link {
    let mut link = Link {
        kind: u16_at(payload, 2).unwrap_or_default(),
        index: u32_at(payload, 4).unwrap_or_default(),
        flags: u32_at(payload, 8).unwrap_or_default(),
        ..Link::default()
    };
    for (kind, value) in attributes(payload.get(IFINFO..).unwrap_or_default()) {
        match kind {
            IFLA_IFNAME => link.name = text_of(value),
            IFLA_ADDRESS => link.mac = value.try_into().ok(),
            IFLA_MTU => link.mtu = u32_at(value, 0).unwrap_or_default(),
            IFLA_NUM_RX_QUEUES => link.rx_queues = u32_at(value, 0).unwrap_or_default(),
            IFLA_XDP => link.xdp = parse_xdp(value),
            _ => {}
        }
    }
    link
}

fn parse_xdp(value: &[u8]) -> AttachedIds {
    let id = |wanted| {
        let found = attributes(value).find(|(kind, _)| *kind == wanted);
        found.and_then(|(_, value)| u32_at(value, 0)).filter(|&id| id != 0)
    };
    let by_mode = AttachedIds {
        native: id(IFLA_XDP_DRV_PROG_ID),
        generic: id(IFLA_XDP_SKB_PROG_ID),
        offloaded: id(IFLA_XDP_HW_PROG_ID),
    };
    if by_mode == AttachedIds::default() {
        // The kernel names the mode since 4.18; should it not, native is what a driver does.
        return AttachedIds { native: id(IFLA_XDP_PROG_ID), ..by_mode };
    }
    by_mode
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn reads_the_loopback_of_this_namespace() {
        let netlink = Rtnetlink::open().unwrap();
        let lo = netlink.link_by_name("lo").unwrap().unwrap();
        assert_eq!((lo.name.as_str(), lo.mac), ("lo", Some([0; 6])));
        assert_eq!(lo.kind, libc::ARPHRD_LOOPBACK);
        assert_eq!(netlink.link_by_index(lo.index).unwrap(), Some(lo));
        assert!(netlink.link_names().unwrap().contains(&"lo".to_owned()));
    }

    #[test]
    fn a_missing_link_is_none_and_not_an_error() {
        let netlink = Rtnetlink::open().unwrap();
        for name in ["", "nosuchlink0", "a name that is too long for a link", "a\0b"] {
            assert_eq!(netlink.link_by_name(name).unwrap(), None, "{name}");
        }
    }

    #[test]
    fn cut_messages_end_the_list_without_a_panic() {
        let mut attributes = Vec::new();
        append(&mut attributes, IFLA_IFNAME, b"eth0\0");
        append(&mut attributes, IFLA_MTU, &1500u32.to_ne_bytes());
        let whole = request(libc::RTM_NEWLINK, 0, 7, &attributes);
        for len in 0..=whole.len() {
            let links: Vec<Link> =
                messages(whole.get(..len).unwrap()).map(|m| parse_link(m.payload)).collect();
            assert_eq!(links.len(), usize::from(len == whole.len()), "at {len} bytes");
        }
        let link = messages(&whole).map(|m| parse_link(m.payload)).next().unwrap();
        assert_eq!((link.index, link.name.as_str(), link.mtu), (7, "eth0", 1500));
    }

    #[test]
    fn a_refusal_carries_the_drivers_words() {
        let mut payload = (-libc::EINVAL).to_ne_bytes().to_vec();
        payload.extend([0; HEADER]);
        append(&mut payload, NLMSGERR_ATTR_MSG, b"MTU too large\0");
        let flags = NLM_F_CAPPED | NLM_F_ACK_TLVS;
        let message = Message { kind: NLMSG_ERROR, flags, payload: &payload };
        let error = acknowledgement(&message).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EINVAL));
        assert!(error.to_string().ends_with(": MTU too large"), "{error}");
    }
}
