//! Memory layout of a flow table, which another process can take over.
//!
//! ```text
//! | header | buckets v4 | entries v4 | created v4 | buckets v6 | entries v6 | created v6 |
//!
//! header   magic (2 words), layout version, flows per family, seed of the hash, boot (2 words),
//!          writer (0: none); entries that were ever used, v4 and v6
//! ```
//!
//! All references are numbers, none is a pointer, so that the memory may be mapped anywhere. Each
//! part begins at a page, a large one at a huge page.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::bucket::SLOTS;
use super::entry::{EntryV4, EntryV6};
use crate::xdp::memory::{Arena, HUGE_PAGE, Line, Mapping, MappingError};

/// Version of the layout that is described here and in [`entry`](super::entry). Any change to
/// either takes the next number.
const VERSION: u64 = 2;
/// `holdfast`, `flows`: in memory, whatever the byte order of the machine is.
const MAGIC: [u64; 2] = [u64::from_ne_bytes(*b"holdfast"), u64::from_ne_bytes(*b"flows\0\0\0")];

/// Share of slots in use that the number of buckets is made for, in percent.
const LOAD_PERCENT: usize = 85;

/// The largest page that a kernel may have (aarch64), in bytes: each part begins at one, so that it
/// can be populated by itself.
const PAGE: usize = 65536;

/// Minimum and maximum number of flows per family.
const FLOWS: std::ops::RangeInclusive<u32> = SLOTS..=1 << 30;

/// Reason why memory is not a flow table that can be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The kernel has too little memory.
    #[error(transparent)]
    Memory(#[from] MappingError),
    /// The first bytes are not those of a flow table.
    #[error("this memory holds no flow table of holdfast; start with an empty one")]
    NotATable,
    /// Another version of holdfast wrote the table.
    #[error(
        "the flow table has layout {got}, and this holdfast reads layout {VERSION}; \
         hand over to a version that reads {got}, or start with an empty table"
    )]
    Version {
        /// Layout version in the header.
        got: u64,
    },
    /// Header and size contradict each other.
    #[error("the flow table says {flows} flows, for which {bytes} bytes are not the right size")]
    Size {
        /// Flows per family in the header.
        flows: u64,
        /// Size of the memory, in bytes.
        bytes: usize,
    },
    /// The machine was booted since, so that the table's times mean nothing.
    #[error("the flow table was written before this machine was booted; start with an empty one")]
    OtherBoot,
}

/// Positions of the parts of one family, in bytes from the start, and their numbers of elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub buckets_at: usize,
    pub buckets: usize,
    pub entries_at: usize,
    pub creations_at: usize,
    pub entries: usize,
}

/// Positions of all parts of a table for a number of flows per family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub v4: Span,
    pub v6: Span,
    pub bytes: usize,
}

impl Layout {
    pub(super) fn of(flows: u32) -> Self {
        let entries = flows.clamp(*FLOWS.start(), *FLOWS.end()) as usize;
        let buckets = (entries * 100).div_ceil(SLOTS as usize * LOAD_PERCENT).max(2);
        let mut end = PAGE;
        let mut place = |bytes: usize| {
            let at = end.next_multiple_of(if bytes >= HUGE_PAGE { HUGE_PAGE } else { PAGE });
            end = at + bytes;
            at
        };
        let mut span = |entry: usize| Span {
            buckets_at: place(buckets * size_of::<Line>()),
            buckets,
            entries_at: place(entries * entry),
            creations_at: place(entries * size_of::<AtomicU64>()),
            entries,
        };
        let (v4, v6) = (span(size_of::<EntryV4>()), span(size_of::<EntryV6>()));
        Self { v4, v6, bytes: end.next_multiple_of(HUGE_PAGE) }
    }
}

/// Lines of the header that are in use.
pub(super) const HEADER_LINES: usize = 2;

/// The first page of the table.
#[derive(Debug)]
pub(super) struct Header(Mapping<Line>);

impl Header {
    /// Writes the header of a new table into zeroed memory.
    pub(super) fn create(arena: &Arc<Arena>, flows: u32, seed: u64) -> Result<Self, TableError> {
        let header = Self(arena.part(0, HEADER_LINES)?);
        header.0.populate()?;
        let [m0, m1] = MAGIC;
        let [b0, b1] = boot();
        if let Some(line) = header.0.first() {
            let values = [m0, m1, VERSION, flows.into(), seed, b0, b1, 0];
            for (word, value) in line.words.iter().zip(values) {
                // Relaxed: no other process has the memory yet.
                word.store(value, Ordering::Relaxed);
            }
        }
        Ok(header)
    }

    /// Checks the header that another process has written; also returns the number of flows per
    /// family and the seed of the hash.
    pub(super) fn check(arena: &Arc<Arena>) -> Result<(Self, u32, u64), TableError> {
        let header = Self(arena.part(0, HEADER_LINES).map_err(|_| TableError::NotATable)?);
        let Some(line) = header.0.first() else { return Err(TableError::NotATable) };
        // Relaxed: the memory came by a system call, after it was written.
        let words = line.words.each_ref().map(|word| word.load(Ordering::Relaxed));
        let [m0, m1, version, flows, seed, b0, b1, _] = words;
        if [m0, m1] != MAGIC {
            return Err(TableError::NotATable);
        }
        if version != VERSION {
            return Err(TableError::Version { got: version });
        }
        let bytes = arena.bytes();
        let fits = u32::try_from(flows)
            .ok()
            .filter(|flows| FLOWS.contains(flows) && Layout::of(*flows).bytes == bytes);
        let capacity = fits.ok_or(TableError::Size { flows, bytes })?;
        if [b0, b1] != boot() {
            return Err(TableError::OtherBoot);
        }
        Ok((header, capacity, seed))
    }

    /// Takes the right to write for `owner` (not 0); false while another writer has it.
    pub(super) fn take_writer(&self, owner: u64) -> bool {
        // AcqRel: the next writer sees all writes of the last.
        self.writer().is_some_and(|word| {
            word.compare_exchange(0, owner, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    }

    /// Takes the right to write from any writer that has it.
    pub(super) fn seize_writer(&self, owner: u64) {
        if let Some(word) = self.writer() {
            word.swap(owner, Ordering::AcqRel);
        }
    }

    /// Releases the right to write, if `owner` still has it.
    pub(super) fn give_writer(&self, owner: u64) {
        if let Some(word) = self.writer() {
            // Release pairs with `take_writer`. A writer that was replaced releases nothing.
            let _ = word.compare_exchange(owner, 0, Ordering::Release, Ordering::Relaxed);
        }
    }

    fn writer(&self) -> Option<&AtomicU64> {
        self.0.first()?.words.last()
    }
}

/// Returns the boot ID of the machine (`/proc/sys/kernel/random/boot_id`); zeros without /proc.
fn boot() -> [u64; 2] {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let id = u128::from_str_radix(&digits, 16).unwrap_or_default().to_be_bytes();
    let half = |range| id.get(range).and_then(|bytes: &[u8]| bytes.try_into().ok());
    [half(0..8), half(8..16)].map(|bytes| u64::from_be_bytes(bytes.unwrap_or_default()))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other_without_overlap_and_small_tables_are_small() {
        for flows in [0, 8, 9, 1000, 100_000, 10_000_000] {
            let layout = Layout::of(flows);
            let mut end = PAGE;
            for (span, entry) in [(layout.v4, 32), (layout.v6, 64)] {
                let parts = [
                    (span.buckets_at, span.buckets * 64),
                    (span.entries_at, span.entries * entry),
                    (span.creations_at, span.entries * 8),
                ];
                for (at, bytes) in parts {
                    assert!(at >= end && at.is_multiple_of(PAGE), "{flows}: {at} {end}");
                    assert!(bytes < HUGE_PAGE || at.is_multiple_of(HUGE_PAGE));
                    end = at + bytes;
                }
                assert!(
                    span.entries >= flows as usize && span.buckets * 8 * 85 >= flows as usize * 100
                );
            }
            assert!(end <= layout.bytes && layout.bytes.is_multiple_of(HUGE_PAGE));
        }
        assert_eq!(Layout::of(1000).bytes, HUGE_PAGE);
    }

    /// Memory per flow as documented: 49.4 bytes for IPv4, 81.4 for IPv6.
    #[test]
    fn a_flow_takes_as_much_memory_as_documented() {
        let flows = 10_000_000;
        let layout = Layout::of(flows);
        for (span, entry, per_flow) in [(layout.v4, 32, 49.5), (layout.v6, 64, 81.5)] {
            let bytes = span.buckets * 64 + span.entries * (entry + 8);
            assert!(f64::from(u32::try_from(bytes).unwrap()) / f64::from(flows) < per_flow);
        }
    }

    #[test]
    fn every_boot_has_a_name() {
        assert_ne!(boot(), [0; 2]);
        assert_eq!(boot(), boot());
    }
}
