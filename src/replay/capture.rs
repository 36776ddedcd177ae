//! Reads captures: pcap of both byte orders and both resolutions, and pcapng.
//!
//! The file is untrusted. It is read as a stream, through one window of fixed size; pcap-parser
//! checks lengths, and data that would grow with the file (interfaces of pcapng) is bounded here.

mod packet;
mod section;
mod window;

use std::io::Read;
use std::time::Duration;

use pcap_parser::nom::{self};
use pcap_parser::{
    LegacyPcapBlock, Linktype, SHB_MAGIC, parse_pcap_frame, parse_pcap_frame_be, parse_pcap_header,
};

use self::packet::{Found, Nics, Parsed, Wrong, check_link, len_of, malformed};
use self::section::Section;
use self::window::Window;
use crate::net::NicIndex;

/// Latest time that fits into nanoseconds since the epoch: the year 2554.
const LATEST: Duration = Duration::from_nanos(u64::MAX);
/// Bits of a pcap file's link type; the other bits give the length of the frame check sequence.
const LINK_TYPE_BITS: u32 = 0x03ff_ffff;

/// Reason why a capture cannot be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file could not be read.
    #[error("cannot be read: {}", crate::format::reason(.0))]
    Read(std::io::Error),
    /// Neither pcap nor pcapng.
    #[error(
        "not a capture: it begins with neither the magic number of pcap nor that of pcapng; write \
         it with tcpdump -w, save it as pcapng, or unpack it if it is compressed"
    )]
    Format,
    /// The link type is not Ethernet.
    #[error(
        "link type {0} ({number}): only Ethernet (1) can be replayed; capture on the NIC itself, \
         as in `tcpdump -i eth1`, not on \"any\"", number = .0.0
    )]
    LinkType(Linktype),
    /// The file ends within a packet or block.
    #[error(
        "cut short, or longer than 4 MiB: what comes after {0} cannot be read; what was written \
         before is good"
    )]
    Cut(String),
    /// The file violates its format.
    #[error("malformed after {0}: {1}")]
    Malformed(String, String),
}

/// A packet of a capture.
#[derive(Debug, Clone, Copy)]
pub struct Captured<'c> {
    /// NIC that the packet is assumed to have arrived on.
    pub nic: NicIndex,
    /// Capture time, since the epoch.
    pub time: Duration,
    /// Length on the wire, in bytes.
    pub original_len: u32,
    /// Captured bytes.
    pub data: &'c [u8],
}

/// A capture that is read packet by packet.
pub struct Capture<R: Read> {
    window: Window<R>,
    format: Format,
    nics: Nics,
    /// Bytes of the current packet; a copy, as the window moves on.
    data: Vec<u8>,
    packets: u64,
    /// Time of the last packet that had a time.
    time: Duration,
}

enum Format {
    /// pcap; `unit` is the unit of time, in nanoseconds.
    Pcap {
        big_endian: bool,
        unit: u64,
    },
    PcapNg(Section),
}

impl<R: Read> Capture<R> {
    /// Begins to read. `nics` are the NICs of the configuration; `nic` is the NIC of packets whose
    /// interface the file does not identify.
    ///
    /// # Errors
    /// The file is not a capture of an Ethernet.
    pub fn new(file: R, nics: Vec<String>, nic: NicIndex) -> Result<Self, CaptureError> {
        let mut window = Window::new(file);
        let magic = SHB_MAGIC.to_le_bytes();
        while window.data().len() < magic.len() && window.fill().map_err(CaptureError::Read)? {}
        // A section header is read with the other blocks.
        let format = match window.data().starts_with(&magic) {
            true => Format::PcapNg(Section::default()),
            false => pcap(&mut window)?,
        };
        let nics = Nics { names: nics, default: nic };
        let (data, packets, time) = (Vec::new(), 0, Duration::ZERO);
        Ok(Self { window, format, nics, data, packets, time })
    }

    /// Returns the next packet; `None` at the end.
    ///
    /// # Errors
    /// The file is unusable from here on.
    pub fn next_packet(&mut self) -> Result<Option<Captured<'_>>, CaptureError> {
        while let Some(len) = self.record()? {
            let record = self.window.data().get(..len).unwrap_or_default();
            let found = match &mut self.format {
                Format::Pcap { big_endian, unit } => {
                    packet(*big_endian, *unit, record, self.nics.default, &mut self.data).map(Some)
                }
                Format::PcapNg(section) => section.read(record, &self.nics, &mut self.data),
            };
            let found = found.map_err(|wrong| self.error(wrong))?;
            self.window.consume(len);
            if let Some(Found { nic, time, original_len }) = found {
                self.packets += 1;
                // A simple packet block has no time: that of the previous packet is used.
                self.time = time.unwrap_or(self.time).min(LATEST);
                return Ok(Some(Captured { nic, time: self.time, original_len, data: &self.data }));
            }
        }
        Ok(None)
    }

    /// Reads the next packet or block into the window; returns its bytes, or `None` at the end of
    /// the file.
    fn record(&mut self) -> Result<Option<usize>, CaptureError> {
        loop {
            let bytes = self.window.data();
            let len = match &self.format {
                Format::Pcap { big_endian, .. } => len_of(bytes, frame(*big_endian, bytes)),
                Format::PcapNg(section) => section.len_of(bytes),
            };
            match len.map_err(|wrong| self.error(wrong))? {
                Some(len) => return Ok(Some(len)),
                None if self.window.fill().map_err(CaptureError::Read)? => {}
                None if self.window.data().is_empty() => return Ok(None),
                None => return Err(CaptureError::Cut(after(self.packets))),
            }
        }
    }

    fn error(&self, wrong: Wrong) -> CaptureError {
        match wrong {
            Wrong::Malformed(what) => CaptureError::Malformed(after(self.packets), what),
            Wrong::LinkType(link) => CaptureError::LinkType(link),
        }
    }
}

/// Reads the header of a pcap file.
fn pcap<R: Read>(window: &mut Window<R>) -> Result<Format, CaptureError> {
    loop {
        let header = match parse_pcap_header(window.data()) {
            Ok((_, header)) if !header.is_modified_format() => Some(header),
            Err(nom::Err::Incomplete(_)) => None,
            _ => return Err(CaptureError::Format),
        };
        if let Some(header) = header {
            check_link(header.network, LINK_TYPE_BITS).map_err(CaptureError::LinkType)?;
            window.consume(header.size());
            let unit = if header.is_nanosecond_precision() { 1 } else { 1000 };
            return Ok(Format::Pcap { big_endian: header.is_bigendian(), unit });
        }
        if !window.fill().map_err(CaptureError::Read)? {
            return Err(CaptureError::Format);
        }
    }
}

/// Reads a packet of a pcap file.
fn packet(
    big_endian: bool,
    unit: u64,
    record: &[u8],
    nic: NicIndex,
    data: &mut Vec<u8>,
) -> Result<Found, Wrong> {
    let (_, frame) = frame(big_endian, record).map_err(malformed)?;
    data.clear();
    data.extend_from_slice(frame.data);
    let fraction = Duration::from_nanos(u64::from(frame.ts_usec) * unit);
    let time = Some(Duration::from_secs(frame.ts_sec.into()) + fraction);
    Ok(Found { nic, time, original_len: frame.origlen })
}

fn frame(big_endian: bool, bytes: &[u8]) -> Parsed<'_, LegacyPcapBlock<'_>> {
    if big_endian { parse_pcap_frame_be(bytes) } else { parse_pcap_frame(bytes) }
}

/// Describes a position in the file.
fn after(packets: u64) -> String {
    if packets == 0 { "its beginning".to_owned() } else { format!("packet {}", packets - 1) }
}
