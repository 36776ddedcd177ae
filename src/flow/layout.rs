//! Memory layout of a flow table, which another process can take over.
//!
//! ```text
//! | header | buckets v4 | entries v4 | created v4 | buckets v6 | entries v6 | created v6 |
//!
//! header   see `header`; the size is the number of flows per family, the marks are the numbers of
//!          entries that were ever used, v4 and v6
//! ```
//!
//! All references are numbers, none is a pointer, so that the memory may be mapped anywhere. Each
//! part begins at a page, a large one at a huge page.

use super::bucket::SLOTS;
use super::entry::{EntryV4, EntryV6};
use super::header::{Kind, PAGE};
use crate::sync::AtomicU64;
use crate::xdp::memory::{HUGE_PAGE, Line};

/// The layout that is described here and in [`entry`](super::entry), with the hash of
/// [`TableSecret`](crate::net::TableSecret), by which buckets are found.
pub(super) const KIND: Kind = Kind { name: *b"flows---", version: 3 };

/// Share of slots in use that the number of buckets is made for, in percent.
const LOAD_PERCENT: usize = 85;

/// Minimum and maximum number of flows per family.
pub(super) const FLOWS: std::ops::RangeInclusive<u32> = SLOTS..=1 << 30;

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
}
