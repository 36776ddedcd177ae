//! The rtnetlink requests of this layer: read a link, set its XDP program, set a tc program.
//!
//! A program that is set by rtnetlink belongs to the NIC. Unlike with a bpf_link, it stays attached
//! when the process is killed, and goes on dropping packets for VIPs (architecture invariant 8).
//! Source: rtnetlink(7); include/uapi/linux/if_link.h; net/core/dev.c, `dev_change_xdp_fd`;
//! net/sched/cls_api.c, `tc_new_tfilter`.

use std::os::fd::RawFd;
use std::{fmt, io};

use netlink_packet_core::{
    ErrorBuffer, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL,
    NLM_F_REPLACE, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NlaBuffer, NlasIterator, ParseableParametrized,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    LinkAttribute, LinkFlags, LinkHeader, LinkLayerType, LinkMessage, LinkXdp,
};
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage,
    TcOption,
};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

/// Size of `struct nlmsghdr` in bytes; `IFINFO` and `TCMSG` are the sizes of `struct ifinfomsg` and
/// `struct tcmsg`.
const HEADER: usize = 16;
const IFINFO: usize = 16;
const TCMSG: usize = 20;
/// Attribute with the name of a tc program, include/uapi/linux/pkt_cls.h.
const TCA_BPF_NAME: u16 = 7;

/// Attribute with the text of an extended acknowledgement, include/uapi/linux/netlink.h.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Filters see every protocol: `ETH_P_ALL` of include/uapi/linux/if_ether.h.
const ETH_P_ALL: u16 = 3;

/// Size of the receive buffer in bytes: twice the largest part of a dump.
const BUFFER: usize = 64 << 10;

/// A request that the kernel refused.
#[derive(Debug)]
pub(super) struct NetlinkError {
    /// The error number.
    pub source: io::Error,
    /// Text of the extended acknowledgement, from the driver or the networking core.
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

/// Description of a link, as reported by the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    pub kind: LinkLayerType,
    pub flags: LinkFlags,
    pub name: String,
    pub mac: Option<[u8; 6]>,
    pub mtu: u32,
    pub rx_queues: u32,
    /// Index of the bond, bridge or other device that the link is a member of.
    pub master: Option<u32>,
    pub xdp: AttachedIds,
}

/// Ids of the XDP programs on a link, by mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct AttachedIds {
    pub native: Option<u32>,
    pub generic: Option<u32>,
    pub offloaded: Option<u32>,
}

/// A filter at the ingress of a link, which is a tc program.
#[derive(Debug, Clone, Copy)]
pub(super) struct IngressFilter {
    /// Lower priorities come first.
    pub priority: u16,
    /// Number among the filters of the same priority.
    pub handle: u32,
}

impl IngressFilter {
    fn message(&self, index: u32, attributes: Vec<TcAttribute>) -> TcMessage {
        let parent = TcHandle { minor: TcHandle::MIN_INGRESS, ..TcHandle::CLSACT };
        let mut header = tc_header(index, parent);
        header.handle = self.handle.into();
        header.info = u32::from(self.priority) << 16 | u32::from(ETH_P_ALL.to_be());
        TcMessage::from_parts(header, attributes)
    }
}

/// A socket for rtnetlink requests, bound to the network namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Rtnetlink {
    socket: Socket,
}

impl Rtnetlink {
    pub(super) fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        Ok(Self { socket })
    }

    /// Returns the link named `name`, if it exists.
    pub(super) fn link_by_name(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
            return Ok(None);
        }
        self.link(about(0, vec![LinkAttribute::IfName(name.to_owned())]))
    }

    /// Returns the link with index `index`, if it exists.
    pub(super) fn link_by_index(&self, index: u32) -> Result<Option<Link>, NetlinkError> {
        self.link(about(index, Vec::new()))
    }

    fn link(&self, link: LinkMessage) -> Result<Option<Link>, NetlinkError> {
        let mut found = None;
        let request = request(RouteNetlinkMessage::GetLink(link), NLM_F_ACK);
        match self.exchange(&request, |link| found = Some(link)) {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            result => result.map(|()| found),
        }
    }

    /// Returns all links of this network namespace.
    pub(super) fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let mut links = Vec::new();
        let request = request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP);
        self.exchange(&request, |link| links.push(link))?;
        Ok(links)
    }

    /// Sets the XDP program of a link; `program` -1 removes it. With `expected`, the request
    /// succeeds only if that program is attached (`flags` must then contain `XDP_FLAGS_REPLACE`).
    pub(super) fn set_xdp(
        &self,
        index: u32,
        program: RawFd,
        flags: u32,
        expected: Option<RawFd>,
    ) -> Result<(), NetlinkError> {
        let mut xdp = vec![LinkXdp::Fd(program), LinkXdp::Flags(flags)];
        xdp.extend(expected.map(|expected| LinkXdp::ExpectedFd(expected.cast_unsigned())));
        let link = about(index, vec![LinkAttribute::Xdp(xdp)]);
        let request = request(RouteNetlinkMessage::SetLink(link), NLM_F_ACK);
        self.exchange(&request, |_link| ())
    }

    /// Adds the queueing discipline at whose hooks tc programs run, if the link has none.
    pub(super) fn add_clsact(&self, index: u32) -> Result<(), NetlinkError> {
        let mut header = tc_header(index, TcHandle::CLSACT);
        header.handle = TcHandle { minor: 0, ..TcHandle::CLSACT };
        let kind = vec![TcAttribute::Kind("clsact".to_owned())];
        let message = TcMessage::from_parts(header, kind);
        let message = RouteNetlinkMessage::NewQueueDiscipline(message);
        let request = request(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
        match self.exchange(&request, |_link| ()) {
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
            result => result,
        }
    }

    /// Runs a tc program on every packet that enters by a link, after its XDP program. A program
    /// with the same priority and handle is replaced in one step. `tc filter show` prints `name`.
    pub(super) fn set_ingress_filter(
        &self,
        index: u32,
        program: RawFd,
        name: String,
        filter: &IngressFilter,
    ) -> Result<(), NetlinkError> {
        let options = [
            TcFilterBpfOption::ProgFd(program.cast_unsigned()),
            TcFilterBpfOption::ProgName(name),
            // The program returns the verdict itself.
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        let attributes = vec![
            TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
            TcAttribute::Options(options.into_iter().map(TcOption::Bpf).collect()),
        ];
        let message = RouteNetlinkMessage::NewTrafficFilter(filter.message(index, attributes));
        let request = request(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE);
        self.exchange(&request, |_link| ())
    }

    /// Removes a filter of a link, if it is there.
    pub(super) fn remove_ingress_filter(
        &self,
        index: u32,
        filter: &IngressFilter,
    ) -> Result<(), NetlinkError> {
        let kind = vec![TcAttribute::Kind(TcFilterBpf::KIND.to_owned())];
        let message = RouteNetlinkMessage::DelTrafficFilter(filter.message(index, kind));
        if_found(self.exchange(&request(message, NLM_F_ACK), |_link| ()))
    }

    /// Returns the name of the filter of a link with this priority and handle, if there is one.
    pub(super) fn ingress_filter(
        &self,
        index: u32,
        filter: &IngressFilter,
    ) -> Result<Option<String>, NetlinkError> {
        let kind = vec![TcAttribute::Kind(TcFilterBpf::KIND.to_owned())];
        let message = RouteNetlinkMessage::GetTrafficFilter(filter.message(index, kind));
        let mut name = None;
        let found = self.replies(&request(message, NLM_F_ACK), |kind, payload| {
            if kind == libc::RTM_NEWTFILTER {
                name = Some(filter_name(payload).unwrap_or_default());
            }
        });
        if_found(found).map(|()| name)
    }

    /// Sends a request and passes each link of the reply to `each`, until the kernel is done.
    fn exchange(&self, request: &[u8], mut each: impl FnMut(Link)) -> Result<(), NetlinkError> {
        self.replies(request, |kind, payload| {
            if kind == libc::RTM_NEWLINK {
                each(parse_link(payload));
            }
        })
    }

    /// Sends a request and passes the type and payload of each message of the reply to `each`,
    /// until the kernel is done.
    fn replies(
        &self,
        request: &[u8],
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        self.socket.send(request, 0)?;
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            // MSG_TRUNC makes recv return the whole length, also when less was stored.
            if self.socket.recv(&mut buffer, libc::MSG_TRUNC)? > buffer.len() {
                return Err(io::Error::other("a netlink reply of over 64 KiB").into());
            }
            for message in messages(&buffer) {
                match message.message_type() {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return acknowledgement(&message),
                    kind => each(kind, message.payload()),
                }
            }
        }
    }
}

/// Ignores that a link has no filter of a handle or priority, no queueing discipline, or is gone.
fn if_found(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => {
            Ok(())
        }
        result => result,
    }
}

fn about(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = attributes;
    link
}

fn tc_header(index: u32, parent: TcHandle) -> TcHeader {
    let mut header = TcHeader::default();
    (header.index, header.parent) = (index.cast_signed(), parent);
    header
}

fn request(message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags | NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(header, message.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Splits a reply into messages, up to the first truncated one.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(bytes).ok()?;
        let len = usize::try_from(message.length()).ok()?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Iterates over a list of attributes, up to the first truncated one.
fn attributes(bytes: Option<&[u8]>) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(bytes.unwrap_or_default()).map_while(Result::ok)
}

/// Parses `NLMSG_ERROR`: 0 is success; otherwise an error, optionally with a text behind the
/// request's header.
fn acknowledgement(message: &NetlinkBuffer<&[u8]>) -> Result<(), NetlinkError> {
    let payload = message.payload();
    let cut_short = |_| io::Error::other("a netlink reply that is cut short");
    let error = ErrorBuffer::new_checked(payload).map_err(cut_short)?;
    let Some(code) = error.code() else { return Ok(()) };
    let answered = error.payload();
    let request = match message.flags() & NLM_F_CAPPED {
        0 => answered.first_chunk().and_then(|len| usize::try_from(u32::from_ne_bytes(*len)).ok()),
        _ => Some(HEADER),
    };
    let extended = message.flags() & NLM_F_ACK_TLVS != 0;
    let details = request.filter(|_| extended).and_then(|len| answered.get(len..));
    let explanation = attributes(details)
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .map(|text| String::from_utf8_lossy(text.value()).trim_end_matches('\0').to_owned());
    let source = io::Error::from_raw_os_error(code.get().saturating_neg());
    Err(NetlinkError { source, explanation })
}

/// Returns the name in an `RTM_NEWTFILTER` message, of a tc program.
fn filter_name(payload: &[u8]) -> Option<String> {
    let options = attributes(payload.get(TCMSG..)).find(|one| one.kind() == libc::TCA_OPTIONS)?;
    let name = attributes(Some(options.value())).find(|one| one.kind() == TCA_BPF_NAME)?;
    Some(String::from_utf8_lossy(name.value()).trim_end_matches('\0').to_owned())
}

/// Parses an `RTM_NEWLINK` message; a missing field keeps its default. An attribute that the crate
/// cannot parse is skipped, as a newer kernel may extend the format of an attribute that is not
/// needed here.
fn parse_link(payload: &[u8]) -> Link {
    let Ok(header) = LinkHeader::parse(payload) else { return Link::default() };
    let mut link = Link {
        kind: header.link_layer_type,
        index: header.index,
        flags: header.flags,
        ..Link::default()
    };
    for attribute in attributes(payload.get(IFINFO..)) {
        match LinkAttribute::parse_with_param(&attribute, header.interface_family) {
            Ok(LinkAttribute::IfName(name)) => link.name = name,
            Ok(LinkAttribute::Address(mac)) => link.mac = mac.try_into().ok(),
            Ok(LinkAttribute::Mtu(mtu)) => link.mtu = mtu,
            Ok(LinkAttribute::NumRxQueues(queues)) => link.rx_queues = queues,
            Ok(LinkAttribute::Controller(index)) => link.master = Some(index),
            Ok(LinkAttribute::Xdp(xdp)) => link.xdp = attached_ids(&xdp),
            _ => {}
        }
    }
    link
}

fn attached_ids(xdp: &[LinkXdp]) -> AttachedIds {
    let mut ids = AttachedIds::default();
    let mut without_mode = None;
    for attribute in xdp {
        match *attribute {
            LinkXdp::DrvProgId(id) => ids.native = Some(id),
            LinkXdp::SkbProgId(id) => ids.generic = Some(id),
            LinkXdp::HwProgId(id) => ids.offloaded = Some(id),
            LinkXdp::ProgId(id) => without_mode = Some(id),
            _ => {}
        }
    }
    if ids == AttachedIds::default() {
        // The kernel reports the mode since 4.18; without it, native is assumed.
        ids.native = without_mode;
    }
    ids
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use netlink_packet_core::{DefaultNla, Emitable};

    use super::*;

    const IFLA_MTU: u16 = 4;

    #[test]
    fn reads_the_loopback_of_this_namespace() {
        let netlink = Rtnetlink::open().unwrap();
        let lo = netlink.link_by_name("lo").unwrap().unwrap();
        assert_eq!((lo.name.as_str(), lo.mac), ("lo", Some([0; 6])));
        assert_eq!(lo.kind, LinkLayerType::Loopback);
        assert_eq!(netlink.link_by_index(lo.index).unwrap(), Some(lo));
        assert!(netlink.links().unwrap().iter().any(|link| link.name == "lo"));
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
        let attributes = vec![LinkAttribute::IfName("eth0".to_owned()), LinkAttribute::Mtu(1500)];
        let whole = request(RouteNetlinkMessage::NewLink(about(7, attributes)), 0);
        for len in 0..=whole.len() {
            let links: Vec<Link> =
                messages(whole.get(..len).unwrap()).map(|m| parse_link(m.payload())).collect();
            assert_eq!(links.len(), usize::from(len == whole.len()), "at {len} bytes");
        }
        let link = messages(&whole).map(|m| parse_link(m.payload())).next().unwrap();
        assert_eq!((link.index, link.name.as_str(), link.mtu), (7, "eth0", 1500));
        for len in 0..whole.len() - HEADER {
            parse_link(whole.get(HEADER..HEADER + len).unwrap());
        }
    }

    /// A newer kernel may use a format of an attribute that the crate does not parse.
    #[test]
    fn an_attribute_that_cannot_be_read_hides_no_other() {
        let attributes = vec![
            LinkAttribute::Other(DefaultNla::new(IFLA_MTU, vec![1])),
            LinkAttribute::IfName("eth0".to_owned()),
        ];
        let message = request(RouteNetlinkMessage::NewLink(about(7, attributes)), 0);
        let link = messages(&message).map(|m| parse_link(m.payload())).next().unwrap();
        assert_eq!((link.name.as_str(), link.mtu), ("eth0", 0));
    }

    #[test]
    fn programs_are_told_apart_by_mode() {
        let ids = |native, generic, offloaded| AttachedIds { native, generic, offloaded };
        for (xdp, expected) in [
            (vec![], ids(None, None, None)),
            (vec![LinkXdp::ProgId(7)], ids(Some(7), None, None)),
            (vec![LinkXdp::ProgId(7), LinkXdp::SkbProgId(7)], ids(None, Some(7), None)),
            (vec![LinkXdp::DrvProgId(8), LinkXdp::HwProgId(9)], ids(Some(8), None, Some(9))),
        ] {
            let link = about(7, vec![LinkAttribute::Xdp(xdp)]);
            let message = request(RouteNetlinkMessage::NewLink(link), 0);
            let link = messages(&message).map(|m| parse_link(m.payload())).next().unwrap();
            assert_eq!(link.xdp, expected);
        }
    }

    #[test]
    fn a_refusal_carries_the_drivers_words() {
        let text = DefaultNla::new(NLMSGERR_ATTR_MSG, b"MTU too large\0".to_vec());
        let mut details = vec![0; text.buffer_len()];
        text.emit(&mut details);
        let whole_request = request(RouteNetlinkMessage::GetLink(about(7, Vec::new())), 0);
        let header = whole_request.get(..HEADER).unwrap();
        // The kernel quotes the whole request, or its header alone.
        for (capped, request) in [(0, &whole_request[..]), (NLM_F_CAPPED, header)] {
            let code = (-libc::EINVAL).to_ne_bytes();
            let payload = [&code, request, &details].concat();
            let mut bytes = vec![0; HEADER + payload.len()];
            let mut message = NetlinkBuffer::new(&mut bytes);
            message.set_length(u32::try_from(HEADER + payload.len()).unwrap());
            message.set_flags(capped | NLM_F_ACK_TLVS);
            message.payload_mut().copy_from_slice(&payload);
            let error = acknowledgement(&NetlinkBuffer::new(&bytes)).unwrap_err();
            assert_eq!(error.errno(), Some(libc::EINVAL));
            assert!(error.to_string().ends_with(": MTU too large"), "{error}");
        }
    }
}
