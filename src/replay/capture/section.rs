//! Parser of the blocks of a pcapng file (draft-ietf-opsawg-pcapng).

use std::time::Duration;

use pcap_parser::{
    EPB_MAGIC, IDB_MAGIC, Linktype, OptionCode, SHB_MAGIC, SPB_MAGIC, parse_enhancedpacketblock_be,
    parse_enhancedpacketblock_le, parse_interfacedescriptionblock_be,
    parse_interfacedescriptionblock_le, parse_sectionheaderblock, parse_simplepacketblock_be,
    parse_simplepacketblock_le, parse_unknownblock_be, parse_unknownblock_le,
};

use super::packet::{Found, Nics, Parsed, Wrong, check_link, len_of, malformed};
use crate::net::NicIndex;

/// Maximum number of interfaces of a section.
const MAX_INTERFACES: usize = 1024;
/// Maximum bytes of all interface descriptions in a file.
const MAX_DESCRIPTIONS: usize = 1 << 20;

/// Type of the obsolete packet block, which pcap-parser does not support.
const OLD_PACKET_BLOCK: u32 = 2;

/// State of the current section.
#[derive(Default)]
pub(super) struct Section {
    big_endian: bool,
    interfaces: Vec<Interface>,
    /// Bytes of the interface descriptions, in all sections.
    descriptions: usize,
}

struct Interface {
    link: Linktype,
    nic: NicIndex,
    clock: Clock,
    /// Snapshot length, in bytes; 0: unlimited.
    snaplen: u32,
}

/// Bytes of an interface description block outside its options.
const IDB_FIXED: usize = 20;

/// A packet as encoded in its block.
struct Packet<'b> {
    interface: u32,
    time: Option<u64>,
    original_len: u32,
    data: &'b [u8],
}

impl Section {
    /// Returns the length of the first block; `None` if it is incomplete.
    pub(super) fn len_of(&self, bytes: &[u8]) -> Result<Option<usize>, Wrong> {
        match bytes.first_chunk() {
            None => Ok(None),
            // The byte order is that of the section which begins here.
            Some(kind) if u32::from_le_bytes(*kind) == SHB_MAGIC => {
                len_of(bytes, parse_sectionheaderblock(bytes))
            }
            Some(_) if self.big_endian => len_of(bytes, parse_unknownblock_be(bytes)),
            Some(_) => len_of(bytes, parse_unknownblock_le(bytes)),
        }
    }

    /// Reads a block, and its packet's bytes into `data`; returns `None` if it has no packet.
    pub(super) fn read(
        &mut self,
        block: &[u8],
        nics: &Nics,
        data: &mut Vec<u8>,
    ) -> Result<Option<Found>, Wrong> {
        let kind = self.word(block).unwrap_or_default();
        if kind != SHB_MAGIC {
            self.check_length(block)?;
        }
        let packet = match kind {
            SHB_MAGIC => {
                let (_, header) = parse_sectionheaderblock(block).map_err(malformed)?;
                self.big_endian = header.big_endian();
                self.interfaces.clear();
                return self.check_length(block).map(|()| None);
            }
            IDB_MAGIC => return self.add_interface(block, nics).map(|()| None),
            EPB_MAGIC => self.enhanced(block)?,
            SPB_MAGIC => self.simple(block)?,
            OLD_PACKET_BLOCK => self.old(block).ok_or("a packet block that is too short")?,
            // Names, statistics, secrets: nothing that a worker would receive.
            _ => return Ok(None),
        };
        let Some(interface) = self.interface(packet.interface) else {
            let what = format!("a packet of interface {}, which there is not", packet.interface);
            return Err(Wrong::Malformed(what));
        };
        check_link(interface.link, u32::MAX).map_err(Wrong::LinkType)?;
        let time = packet.time.map(|units| interface.clock.time(units).ok_or("an impossible time"));
        data.clear();
        data.extend_from_slice(packet.data);
        let (nic, original_len) = (interface.nic, packet.original_len);
        Ok(Some(Found { nic, time: time.transpose()?, original_len }))
    }

    /// Checks that a block repeats its length at the end, and consists of whole words.
    fn check_length(&self, block: &[u8]) -> Result<(), Wrong> {
        let last = block.len().checked_sub(4).and_then(|at| self.word(block.get(at..)?));
        let same = last.is_some_and(|last| usize::try_from(last) == Ok(block.len()));
        match same && block.len().is_multiple_of(4) {
            true => Ok(()),
            false => Err("a block whose two lengths differ, or are no multiple of 4".into()),
        }
    }

    fn interface(&self, id: u32) -> Option<&Interface> {
        self.interfaces.get(usize::try_from(id).ok()?)
    }

    fn add_interface(&mut self, block: &[u8], nics: &Nics) -> Result<(), Wrong> {
        self.descriptions += block.len();
        if self.interfaces.len() >= MAX_INTERFACES || self.descriptions > MAX_DESCRIPTIONS {
            return Err(Wrong::Malformed(format!(
                "more than {MAX_INTERFACES} interfaces, or {MAX_DESCRIPTIONS} bytes of their \
                 descriptions"
            )));
        }
        let (le, be) = (parse_interfacedescriptionblock_le, parse_interfacedescriptionblock_be);
        let described = self.parse(block, le, be)?;
        let end = described.options.iter().position(|o| o.code == OptionCode::EndOfOpt);
        let options = described.options.get(..end.unwrap_or(described.options.len()));
        let options = options.unwrap_or_default();
        let used: usize = options.iter().map(|o| 4 + usize::from(o.len).next_multiple_of(4)).sum();
        if end.is_none() && used != block.len().saturating_sub(IDB_FIXED) {
            return Err("options of an interface that do not fit into its block".into());
        }
        let option = |code| {
            let found = options.iter().find(|option| option.code == code);
            found.and_then(|option| option.as_bytes().ok())
        };
        let offset = option(OptionCode::IfTsoffset).and_then(|bytes| bytes.first_chunk());
        let resolution = option(OptionCode::IfTsresol).and_then(|bytes| bytes.first());
        self.interfaces.push(Interface {
            link: described.linktype,
            nic: nics.named(option(OptionCode::IfName)),
            clock: Clock {
                resolution: resolution.copied().unwrap_or(MICROSECONDS),
                offset: offset.map_or(0, |bytes| match self.big_endian {
                    true => i64::from_be_bytes(*bytes),
                    false => i64::from_le_bytes(*bytes),
                }),
            },
            snaplen: described.snaplen,
        });
        Ok(())
    }

    fn enhanced<'b>(&self, block: &'b [u8]) -> Result<Packet<'b>, Wrong> {
        let (le, be) = (parse_enhancedpacketblock_le, parse_enhancedpacketblock_be);
        let packet = self.parse(block, le, be)?;
        Ok(Packet {
            interface: packet.if_id,
            time: Some(u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low)),
            original_len: packet.origlen,
            data: first(packet.data, packet.caplen),
        })
    }

    /// Reads a simple packet block: first interface, at most the snapshot length of bytes.
    fn simple<'b>(&self, block: &'b [u8]) -> Result<Packet<'b>, Wrong> {
        let packet = self.parse(block, parse_simplepacketblock_le, parse_simplepacketblock_be)?;
        let snaplen = self.interface(0).map(|interface| interface.snaplen);
        let most = snaplen.filter(|&snaplen| snaplen > 0).unwrap_or(u32::MAX);
        let len = packet.origlen.min(most);
        if usize::try_from(len).map_or(true, |len| packet.data.len() < len) {
            return Err("a simple packet block that is shorter than its packet".into());
        }
        let data = first(packet.data, len);
        Ok(Packet { interface: 0, time: None, original_len: packet.origlen, data })
    }

    /// Reads an obsolete packet block: type and length; interface and drops, of 16 bits each; time,
    /// captured length, length.
    fn old<'b>(&self, block: &'b [u8]) -> Option<Packet<'b>> {
        let word = |index: usize| self.word(block.get(index * 4..)?);
        let interface = block.get(8..)?.first_chunk()?;
        let data = block.get(28..block.len().checked_sub(4)?)?;
        let captured = word(5)?;
        Some(Packet {
            interface: match self.big_endian {
                true => u16::from_be_bytes(*interface),
                false => u16::from_le_bytes(*interface),
            }
            .into(),
            time: Some(u64::from(word(3)?) << 32 | u64::from(word(4)?)),
            original_len: word(6)?,
            data: data.get(..usize::try_from(captured).ok()?)?,
        })
    }

    /// Returns the first word of `bytes`.
    fn word(&self, bytes: &[u8]) -> Option<u32> {
        let bytes = *bytes.first_chunk()?;
        Some(if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn parse<'b, T>(
        &self,
        block: &'b [u8],
        little_endian: fn(&'b [u8]) -> Parsed<'b, T>,
        big_endian: fn(&'b [u8]) -> Parsed<'b, T>,
    ) -> Result<T, Wrong> {
        let parse = if self.big_endian { big_endian } else { little_endian };
        parse(block).map(|(_, parsed)| parsed).map_err(malformed)
    }
}

/// Returns the first `len` bytes, without the padding that follows.
fn first(data: &[u8], len: u32) -> &[u8] {
    usize::try_from(len).ok().and_then(|len| data.get(..len)).unwrap_or(data)
}

/// Default `if_tsresol` of an interface.
const MICROSECONDS: u8 = 6;

/// Time unit and offset of an interface.
struct Clock {
    /// `if_tsresol`: the negative exponent of a second, to the base of 10, or of 2 if the top bit
    /// is set.
    resolution: u8,
    /// `if_tsoffset`: offset in seconds.
    offset: i64,
}

impl Clock {
    /// Returns the time since the epoch; `None` if it is before the epoch, or exceeds a `Duration`.
    fn time(&self, units: u64) -> Option<Duration> {
        let exponent = u32::from(self.resolution & 0x7f);
        let per_second = match self.resolution & 0x80 {
            0 => 10_u128.checked_pow(exponent),
            _ => 1_u128.checked_shl(exponent),
        };
        // If a second has more units than 128 bits can count, the time is below a nanosecond.
        let nanos = per_second.map_or(0, |per| u128::from(units) * 1_000_000_000 / per);
        let seconds = u64::try_from(nanos / 1_000_000_000).ok()?;
        let nanos = u32::try_from(nanos % 1_000_000_000).ok()?;
        Some(Duration::new(seconds.checked_add_signed(self.offset)?, nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes words in one byte order.
    #[derive(Clone, Copy)]
    struct Order(bool);

    impl Order {
        fn word(self, word: u32) -> [u8; 4] {
            if self.0 { word.to_be_bytes() } else { word.to_le_bytes() }
        }

        fn halves(self, halves: [u16; 2]) -> [u8; 4] {
            let half = |half: u16| if self.0 { half.to_be_bytes() } else { half.to_le_bytes() };
            let [[a, b], [c, d]] = halves.map(half);
            [a, b, c, d]
        }

        fn block(self, kind: u32, words: &[[u8; 4]]) -> Vec<u8> {
            let len = self.word(u32::try_from(words.len() * 4 + 12).unwrap_or_default());
            [&[self.word(kind), len], words, &[len]].concat().concat()
        }

        fn section(self) -> Vec<u8> {
            self.block(
                SHB_MAGIC,
                &[self.word(0x1a2b_3c4d), self.halves([1, 0]), [0xff; 4], [0xff; 4]],
            )
        }
    }

    /// The packets of a file: NIC, time, length on the wire, bytes.
    type Seen = Vec<(u8, Option<Duration>, u32, Vec<u8>)>;

    /// Returns the packets that a section reads from blocks.
    fn read(blocks: &[Vec<u8>]) -> Result<Seen, String> {
        let nics = ["eth0", "eth1"].map(str::to_owned).to_vec();
        let nics = Nics { names: nics, default: NicIndex(0) };
        let (mut section, mut data, mut seen) = (Section::default(), Vec::new(), Vec::new());
        for block in blocks {
            assert!(matches!(section.len_of(block), Ok(Some(len)) if len == block.len()));
            match section.read(block, &nics, &mut data) {
                Ok(None) => {}
                Ok(Some(Found { nic, time, original_len })) => {
                    seen.push((nic.0, time, original_len, data.clone()));
                }
                Err(Wrong::Malformed(what)) => return Err(what),
                Err(Wrong::LinkType(link)) => return Err(link.to_string()),
            }
        }
        Ok(seen)
    }

    /// An Ethernet called eth1 that captures 6 bytes of a packet, with a time offset of 100 s. Its
    /// options have no end mark.
    fn interface(order: Order) -> Vec<u8> {
        let offset = if order.0 { 100_i64.to_be_bytes() } else { 100_i64.to_le_bytes() };
        let [a, b, c, d, e, f, g, h] = offset;
        let name = [order.halves([2, 4]), *b"eth1"];
        let offset = [order.halves([14, 8]), [a, b, c, d], [e, f, g, h]];
        let words = [&[order.halves([1, 0]), order.word(6)][..], &name, &offset].concat();
        order.block(IDB_MAGIC, &words)
    }

    #[test]
    fn packets_of_every_kind_of_block_are_read_in_both_byte_orders() {
        for order in [Order(false), Order(true)] {
            let word = |word| order.word(word);
            let bytes = [[1, 2, 3, 4], [5, 6, 0, 0]];
            let enhanced = [&[0, 0, 1_500_000, 6, 60].map(word)[..], &bytes].concat();
            let old = [&[order.halves([0, 9])][..], &[0, 2_000_000, 5, 60].map(word), &bytes];
            let seen = read(&[
                order.section(),
                interface(order),
                order.block(EPB_MAGIC, &enhanced),
                order.block(SPB_MAGIC, &[&[word(60)][..], &bytes].concat()),
                order.block(SPB_MAGIC, &[&[word(5)][..], &bytes].concat()),
                order.block(OLD_PACKET_BLOCK, &old.concat()),
            ]);
            let at = |ms: u64| Some(Duration::from_millis(100_000 + ms));
            let six = vec![1, 2, 3, 4, 5, 6];
            let five = vec![1, 2, 3, 4, 5];
            let expected = vec![
                (1, at(1500), 60, six.clone()),
                (1, None, 60, six),
                (1, None, 5, five.clone()),
                (1, at(2000), 60, five),
            ];
            assert_eq!(seen, Ok(expected));
        }
    }

    #[test]
    fn blocks_that_lie_are_malformed() {
        let order = Order(false);
        let words = |words: &[u32]| words.iter().map(|&word| order.word(word)).collect::<Vec<_>>();
        for (kind, body, what) in [
            (EPB_MAGIC, words(&[0, 0, 0, 9, 9, 1, 2]), "too short"),
            (EPB_MAGIC, words(&[1, 0, 0, 4, 4, 1]), "interface 1, which there is not"),
            (OLD_PACKET_BLOCK, words(&[0, 0, 0, 9, 9, 1, 2]), "too short"),
            (OLD_PACKET_BLOCK, words(&[0, 0]), "too short"),
            (IDB_MAGIC, words(&[1]), "too short"),
            // if_name of 200 bytes, in a block of 28.
            (IDB_MAGIC, words(&[1, 0, 2 | 200 << 16, 0]), "do not fit"),
            (SPB_MAGIC, words(&[1500]), "shorter than its packet"),
        ] {
            let blocks = [order.section(), interface(order), order.block(kind, &body)];
            let error = read(&blocks).err().unwrap_or_default();
            assert!(error.contains(what), "{kind}: {error:?}");
        }
        for kind in [EPB_MAGIC, 0x0bad_0001] {
            let mut lies = order.block(kind, &words(&[0, 0, 0, 4, 4, 1]));
            lies.iter_mut().rev().take(4).for_each(|byte| *byte = 7);
            let error = read(&[order.section(), interface(order), lies]).err().unwrap_or_default();
            assert!(error.contains("lengths differ"), "{kind:#x}: {error:?}");
        }
    }

    /// Bytes after the end mark are not options.
    #[test]
    fn options_end_at_their_end() {
        let order = Order(false);
        let body = [1, 0, 0, 9 | 1 << 16, 9].map(|word| order.word(word));
        let mut section = Section::default();
        let (nics, mut data) =
            (Nics { names: Vec::new(), default: crate::net::NicIndex(0) }, Vec::new());
        assert!(section.read(&order.section(), &nics, &mut data).is_ok());
        assert!(section.read(&order.block(IDB_MAGIC, &body), &nics, &mut data).is_ok());
        let resolution = section.interface(0).map(|interface| interface.clock.resolution);
        assert_eq!(resolution, Some(MICROSECONDS));
    }

    #[test]
    fn times_of_every_resolution_are_read_to_the_nanosecond() {
        let time = |resolution, offset, units| Clock { resolution, offset }.time(units);
        for (resolution, offset, units, expected) in [
            (6, 0, 1_500_000, Some(Duration::from_millis(1500))),
            (9, 0, 1_500_000_001, Some(Duration::new(1, 500_000_001))),
            (0, 0, 7, Some(Duration::from_secs(7))),
            (3, 0, 7, Some(Duration::from_millis(7))),
            (12, 0, 1_999, Some(Duration::from_nanos(1))),
            (0x80 | 10, 0, 1536, Some(Duration::from_millis(1500))),
            (0x80 | 32, 0, 1 << 31, Some(Duration::from_millis(500))),
            (0x80, 0, 5, Some(Duration::from_secs(5))),
            (6, 10, 0, Some(Duration::from_secs(10))),
            (6, -1, 3_000_000, Some(Duration::from_secs(2))),
            (6, -4, 3_000_000, None),
            (0, i64::MAX, u64::MAX, None),
            (0, 0, u64::MAX, Some(Duration::from_secs(u64::MAX))),
            (0x7f, 0, u64::MAX, Some(Duration::ZERO)),
            (0xff, 0, u64::MAX, Some(Duration::ZERO)),
        ] {
            assert_eq!(time(resolution, offset, units), expected, "{resolution:#x} {units}");
        }
    }
}
