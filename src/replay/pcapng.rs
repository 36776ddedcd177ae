//! Writes pcapng: the three kinds of blocks that a story needs (draft-ietf-opsawg-pcapng).
//!
//! ```text
//!  type u32 | length u32 | body, options | length u32      option: code u16, length u16, value
//! ```
//!
//! Little-endian, as the first block indicates; times in nanoseconds.

use std::io::{self, Write};
use std::time::Duration;

use pcap_parser::{EPB_MAGIC, IDB_MAGIC, OptionCode, SHB_MAGIC};

/// Link type of Ethernet.
const ETHERNET: u16 = 1;
/// Snapshot length, in bytes: libpcap's MAXIMUM_SNAPLEN.
const SNAPLEN: u32 = 262_144;
/// `if_tsresol` for nanoseconds.
const NANOSECONDS: u8 = 9;

/// A pcapng file being written.
pub(super) struct Writer<W: Write> {
    writer: W,
}

impl<W: Write> Writer<W> {
    /// Begins a file of the program `application`. An empty `comment` is omitted.
    pub(super) fn new(writer: W, application: &str, comment: &str) -> io::Result<Self> {
        let mut file = Self { writer };
        let mut body = Vec::new();
        body.extend(0x1a2b_3c4d_u32.to_le_bytes());
        // Version 1.0, and a section of unknown length.
        body.extend([1, 0, 0, 0]);
        body.extend(u64::MAX.to_le_bytes());
        option(&mut body, OptionCode::ShbUserAppl, application.as_bytes());
        if !comment.is_empty() {
            option(&mut body, OptionCode::Comment, comment.as_bytes());
        }
        file.block(SHB_MAGIC, body)?;
        Ok(file)
    }

    /// Adds an Ethernet interface. Interfaces are numbered in the order of these calls.
    pub(super) fn interface(&mut self, name: &str, description: &str) -> io::Result<()> {
        let mut body = Vec::new();
        body.extend(ETHERNET.to_le_bytes());
        body.extend([0, 0]);
        body.extend(SNAPLEN.to_le_bytes());
        option(&mut body, OptionCode::IfName, name.as_bytes());
        option(&mut body, OptionCode::IfDescription, description.as_bytes());
        option(&mut body, OptionCode::IfTsresol, &[NANOSECONDS]);
        self.block(IDB_MAGIC, body)
    }

    /// Adds a packet of an interface, with a comment.
    pub(super) fn packet(
        &mut self,
        interface: u32,
        time: Duration,
        data: &[u8],
        original_len: u32,
        comment: &str,
    ) -> io::Result<()> {
        let captured = u32::try_from(data.len()).map_err(io::Error::other)?;
        let nanos = u64::try_from(time.as_nanos()).map_err(io::Error::other)?;
        let mut body = Vec::with_capacity(data.len() + comment.len() + 64);
        body.extend(interface.to_le_bytes());
        // The upper half comes first in either byte order.
        body.extend(nanos.rotate_left(32).to_le_bytes());
        body.extend(captured.to_le_bytes());
        body.extend(original_len.to_le_bytes());
        pad(&mut body, data);
        option(&mut body, OptionCode::Comment, comment.as_bytes());
        self.block(EPB_MAGIC, body)
    }

    /// Flushes the output.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.writer.flush()
    }

    /// Writes a block with options at its end.
    fn block(&mut self, kind: u32, mut body: Vec<u8>) -> io::Result<()> {
        option(&mut body, OptionCode::EndOfOpt, &[]);
        let len = u32::try_from(body.len() + 12).map_err(io::Error::other)?;
        for part in [&kind.to_le_bytes()[..], &len.to_le_bytes(), &body, &len.to_le_bytes()] {
            self.writer.write_all(part)?;
        }
        Ok(())
    }
}

/// Appends an option; a value that is too long for an option is truncated.
fn option(body: &mut Vec<u8>, OptionCode(code): OptionCode, value: &[u8]) {
    let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
    body.extend(code.to_le_bytes());
    body.extend(len.to_le_bytes());
    pad(body, value.get(..usize::from(len)).unwrap_or_default());
}

/// Appends `bytes`, padded to a multiple of four.
fn pad(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend(bytes);
    body.resize(body.len().next_multiple_of(4), 0);
}
