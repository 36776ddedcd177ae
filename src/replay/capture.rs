//! Reads captures: pcap of both byte orders and both resolutions, and pcapng.
//!
//! Whoever wrote the file may lie. It is read as a stream, with one buffer of fixed size; lengths are
//! checked by pcap-file, what would grow with the file (interfaces of pcapng) has a limit here.

use std::io::{Chain, Cursor, Read};
use std::time::Duration;

use pcap_file::DataLink;
use pcap_file::pcap::{PcapReadError, PcapReader, PcapTsResolution, RawPcapPacket};
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::{
    ENHANCED_PACKET_BLOCK, INTERFACE_DESCRIPTION_BLOCK, PACKET_BLOCK, SIMPLE_PACKET_BLOCK,
};
use pcap_file::pcapng::{Block, PcapNgReadError, PcapNgReader, PcapNgState};

use crate::net::NicIndex;

/// Bytes that are read ahead, which also bounds a packet or block: 16 times libpcap's MAXIMUM_SNAPLEN.
const BUFFER: usize = 4 << 20;
/// Most interfaces of a pcapng section.
const MAX_INTERFACES: usize = 1024;
/// Most bytes of all descriptions of interfaces in a file: their options are kept in memory.
const MAX_DESCRIPTIONS: u64 = 1 << 20;
/// Latest time that fits into nanoseconds since the epoch: the year 2554.
const LATEST: Duration = Duration::from_nanos(u64::MAX);
/// Of the link type of a pcap file; the others say how long the frame check sequence is.
const LINK_TYPE_BITS: u32 = 0x03ff_ffff;

/// Block type of a pcapng section header, the same in both byte orders.
const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// Why a capture cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// It could not be read at all.
    #[error("cannot be read: {}", crate::words::reason(.0))]
    Read(std::io::Error),
    /// Neither pcap nor pcapng.
    #[error(
        "not a capture: it begins with neither the magic number of pcap nor that of pcapng; write \
         it with tcpdump -w, save it as pcapng, or unpack it if it is compressed"
    )]
    Format,
    /// Not Ethernet.
    #[error(
        "link type {0:?} ({number}): only Ethernet (1) can be replayed; capture on the NIC itself, \
         as in `tcpdump -i eth1`, not on \"any\"", number = u32::from(*.0)
    )]
    LinkType(DataLink),
    /// It ends in the middle of something.
    #[error(
        "cut short, or longer than 4 MiB: what comes after {0} cannot be read; what was written \
         before is good"
    )]
    Cut(String),
    /// It breaks a rule of its format.
    #[error("malformed after {0}: {1}")]
    Malformed(String, String),
}

/// A packet of a capture.
#[derive(Debug, Clone, Copy)]
pub struct Captured<'c> {
    /// The NIC that it is taken to have come by.
    pub nic: NicIndex,
    /// When, since the epoch.
    pub time: Duration,
    /// Bytes that it had on the wire.
    pub original_len: u32,
    /// Those that were captured.
    pub data: &'c [u8],
}

/// The file, with the bytes in front that were read to see what it is.
type Source<R> = Chain<Cursor<Vec<u8>>, R>;

/// A capture that is read packet by packet.
pub struct Capture<R: Read> {
    format: Format<R>,
    /// NICs of the configuration, by `NicIndex`.
    nics: Vec<String>,
    /// The NIC of what the file does not say.
    nic: NicIndex,
    /// Of the packet that is shown; a copy, so that errors can be told while it is.
    data: Vec<u8>,
    packets: u64,
    /// Of the last packet that had a time.
    time: Duration,
    /// Bytes of descriptions of interfaces.
    descriptions: u64,
}

enum Format<R: Read> {
    Pcap(Box<PcapReader<Source<R>>>),
    PcapNg(Box<PcapNgReader<Source<R>>>),
}

/// What is known of a packet besides its bytes.
struct Found {
    nic: NicIndex,
    time: Option<Duration>,
    original_len: u32,
}

impl<R: Read> Capture<R> {
    /// Begins to read. `nics` are the NICs of the configuration; `nic` is that of packets of which
    /// the file does not say by which of them they came.
    ///
    /// # Errors
    /// When it is no capture of an Ethernet.
    pub fn new(mut file: R, nics: Vec<String>, nic: NicIndex) -> Result<Self, CaptureError> {
        let mut magic = Vec::with_capacity(PCAPNG.len());
        let limit = PCAPNG.len() as u64;
        file.by_ref().take(limit).read_to_end(&mut magic).map_err(CaptureError::Read)?;
        let is_pcapng = magic == PCAPNG;
        let source = Cursor::new(magic).chain(file);
        let format = if is_pcapng {
            let reader = PcapNgReader::with_capacity(source, BUFFER);
            Format::PcapNg(Box::new(reader.map_err(|error| ng_error(error, 0))?))
        } else {
            let reader = PcapReader::with_capacity(source, BUFFER).map_err(no_pcap)?;
            check_link(reader.header().datalink, LINK_TYPE_BITS)?;
            Format::Pcap(Box::new(reader))
        };
        let (data, packets, time, descriptions) = (Vec::new(), 0, Duration::ZERO, 0);
        Ok(Self { format, nics, nic, data, packets, time, descriptions })
    }

    /// The next packet; `None` at the end.
    ///
    /// # Errors
    /// What is wrong with the file from here on.
    pub fn next_packet(&mut self) -> Result<Option<Captured<'_>>, CaptureError> {
        let found = match &mut self.format {
            Format::Pcap(reader) => next_pcap(reader, self.nic, self.packets, &mut self.data)?,
            Format::PcapNg(reader) => {
                let mut walk = Walk {
                    nics: &self.nics,
                    nic: self.nic,
                    packets: self.packets,
                    descriptions: &mut self.descriptions,
                };
                walk.next(reader, &mut self.data)?
            }
        };
        let Some(Found { nic, time, original_len }) = found else { return Ok(None) };
        self.packets += 1;
        // A simple packet block has no time: it came when the one before did.
        self.time = time.unwrap_or(self.time).min(LATEST);
        Ok(Some(Captured { nic, time: self.time, original_len, data: &self.data }))
    }
}

fn next_pcap<R: Read>(
    reader: &mut PcapReader<R>,
    nic: NicIndex,
    packets: u64,
    data: &mut Vec<u8>,
) -> Result<Option<Found>, CaptureError> {
    let unit = match reader.header().ts_resolution {
        PcapTsResolution::MicroSecond => 1000,
        PcapTsResolution::NanoSecond => 1,
    };
    let Some(packet) = reader.next_raw_packet() else { return Ok(None) };
    let RawPcapPacket { ts_sec, ts_frac, orig_len, data: bytes, .. } =
        packet.map_err(|error| pcap_error(error, packets))?;
    data.clear();
    data.extend_from_slice(&bytes);
    let fraction = Duration::from_nanos(u64::from(ts_frac) * unit);
    let time = Some(Duration::from_secs(ts_sec.into()) + fraction);
    Ok(Some(Found { nic, time, original_len: orig_len }))
}

/// On the way to the next packet of a pcapng file.
struct Walk<'w> {
    nics: &'w [String],
    nic: NicIndex,
    packets: u64,
    descriptions: &'w mut u64,
}

impl Walk<'_> {
    fn next<R: Read>(
        &mut self,
        reader: &mut PcapNgReader<R>,
        data: &mut Vec<u8>,
    ) -> Result<Option<Found>, CaptureError> {
        while let Some(block) = reader.next_raw_block() {
            let (block, state) = block.map_err(|error| ng_error(error, self.packets))?;
            match block.type_ {
                INTERFACE_DESCRIPTION_BLOCK => self.count_interface(block.initial_len, state)?,
                ENHANCED_PACKET_BLOCK | SIMPLE_PACKET_BLOCK | PACKET_BLOCK => {
                    let block = block.try_into_block(state);
                    let block = block.map_err(|error| self.malformed(&with_causes(&error)))?;
                    return self.packet(&block, state, data);
                }
                // Names, statistics, secrets: nothing that a worker would see.
                _ => {}
            }
        }
        Ok(None)
    }

    fn packet(
        &self,
        block: &Block<'_>,
        state: &PcapNgState,
        data: &mut Vec<u8>,
    ) -> Result<Option<Found>, CaptureError> {
        let (id, time, original_len, bytes) = match block {
            Block::EnhancedPacket(EnhancedPacketBlock {
                interface_id,
                timestamp,
                original_len,
                data,
                ..
            }) => (*interface_id, Some(*timestamp), *original_len, data),
            Block::Packet(packet) => {
                let id = u32::from(packet.interface_id);
                (id, Some(packet.timestamp), packet.original_len, &packet.data)
            }
            Block::SimplePacket(packet) => (0, None, packet.original_len, &packet.data),
            _ => return Ok(None),
        };
        let interface = usize::try_from(id).ok().and_then(|id| state.interfaces().get(id));
        let Some(interface) = interface else {
            return Err(self.malformed(&format!("a packet of interface {id}, which there is not")));
        };
        check_link(interface.linktype, u32::MAX)?;
        data.clear();
        data.extend_from_slice(bytes);
        Ok(Some(Found { nic: self.nic_of(interface), time, original_len }))
    }

    /// The NIC of the same name, if there is one.
    fn nic_of(&self, interface: &InterfaceDescriptionBlock<'_>) -> NicIndex {
        let name = interface.options.iter().find_map(|option| match option {
            InterfaceDescriptionOption::IfName(name) => Some(name.as_ref()),
            _ => None,
        });
        let found = (0..).zip(self.nics).find(|(_, nic)| name == Some(nic.as_str()));
        found.map_or(self.nic, |(index, _)| NicIndex(index))
    }

    fn count_interface(&mut self, bytes: u32, state: &PcapNgState) -> Result<(), CaptureError> {
        *self.descriptions += u64::from(bytes);
        if state.interfaces().len() > MAX_INTERFACES || *self.descriptions > MAX_DESCRIPTIONS {
            let what = format!(
                "more than {MAX_INTERFACES} interfaces, or {MAX_DESCRIPTIONS} bytes of their \
                 descriptions"
            );
            return Err(self.malformed(&what));
        }
        Ok(())
    }

    fn malformed(&self, what: &str) -> CaptureError {
        CaptureError::Malformed(after(self.packets), what.to_owned())
    }
}

fn check_link(link: DataLink, bits: u32) -> Result<(), CaptureError> {
    let ethernet = u32::from(DataLink::ETHERNET);
    if u32::from(link) & bits == ethernet { Ok(()) } else { Err(CaptureError::LinkType(link)) }
}

/// Where in the file.
fn after(packets: u64) -> String {
    if packets == 0 { "its beginning".to_owned() } else { format!("packet {}", packets - 1) }
}

/// What is no pcap file, whatever it is.
fn no_pcap(error: PcapReadError) -> CaptureError {
    match error {
        PcapReadError::Io(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
            CaptureError::Read(error)
        }
        _ => CaptureError::Format,
    }
}

fn pcap_error(error: PcapReadError, packets: u64) -> CaptureError {
    match error {
        PcapReadError::Io(error) => io_error(error, packets),
        error => CaptureError::Malformed(after(packets), error.to_string()),
    }
}

fn ng_error(error: PcapNgReadError, packets: u64) -> CaptureError {
    match error {
        PcapNgReadError::Io(error) => io_error(error, packets),
        error => CaptureError::Malformed(after(packets), with_causes(&error)),
    }
}

fn io_error(error: std::io::Error, packets: u64) -> CaptureError {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => CaptureError::Cut(after(packets)),
        _ => CaptureError::Read(error),
    }
}

/// An error and its causes in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}
