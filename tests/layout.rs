//! No false sharing: data that two threads use, and one of them writes, has cache lines of its own
//! (docs/SCALING.md has the list).

use std::mem::{align_of, size_of};
use std::sync::atomic::AtomicBool;

use crossbeam_utils::CachePadded;
use holdfast::datapath::queues::WorkerQueue;
use holdfast::flow::table::{Families, FlowTable};
use holdfast::forwarding::ForwardingTable;
use holdfast::forwarding::table::Backend;
use holdfast::net::TableSecret;
use holdfast::stats::{FlowStats, NicStats, WorkerStats};
use holdfast::xdp::memory::Line;
use holdfast::xdp::queue::XskQueue;

const LINE: usize = 64;
/// Processors fetch lines in pairs: single instances, and those that change most, have a pair.
const PAIR: usize = 2 * LINE;

/// The alignment of a value decides its first line; its size decides which values may follow on its
/// last line.
fn has_lines_of_its_own<T>(align: usize) {
    let name = std::any::type_name::<T>();
    assert!(align_of::<T>() >= align, "{name} is aligned to {}", align_of::<T>());
    assert_eq!(size_of::<T>() % align, 0, "{name} ends in the middle of a line");
}

#[test]
fn data_that_a_worker_writes_and_others_read_has_its_own_lines() {
    has_lines_of_its_own::<WorkerStats>(PAIR);
    has_lines_of_its_own::<FlowStats>(LINE);
    has_lines_of_its_own::<NicStats>(LINE);
    has_lines_of_its_own::<Line>(LINE);
}

#[test]
fn data_that_the_control_thread_writes_and_workers_read_has_its_own_lines() {
    has_lines_of_its_own::<ForwardingTable>(PAIR);
    has_lines_of_its_own::<CachePadded<AtomicBool>>(PAIR);
    has_lines_of_its_own::<Option<Backend>>(LINE);
    // The first line has all that a packet of a pinned flow needs, as forwarding/table.rs ensures.
    assert_eq!(size_of::<Option<Backend>>(), 2 * LINE);
}

/// They lie in lists that are allocated one worker after the other.
#[test]
fn queues_of_two_workers_share_no_cache_line() {
    has_lines_of_its_own::<XskQueue>(PAIR);
    has_lines_of_its_own::<WorkerQueue>(PAIR);
}

#[test]
fn the_lists_of_counters_begin_at_a_line() {
    let stats = WorkerStats::new(3, 3, 3);
    assert_eq!(stats.vips.as_ptr().addr() % LINE, 0);
    assert_eq!(stats.backends.as_ptr().addr() % LINE, 0);
    assert_eq!(stats.nics.as_ptr().addr() % LINE, 0);
}

/// A table has pages of its own, so no two share a line, and it has the size that the documents
/// state.
#[test]
fn a_flow_table_takes_what_the_documents_say() {
    for flows in [1_000_u32, 1_048_576] {
        for (v4, entry) in [(true, 32), (false, 64)] {
            let families = Families { v4, v6: !v4 };
            let table = FlowTable::new(flows, TableSecret::new(1), families);
            let bytes = table.map(|table| table.memory(families)).unwrap_or_default();
            let flows = flows as usize;
            let buckets = (flows * 100).div_ceil(8 * 85) * LINE;
            assert_eq!(bytes, flows * (entry + 8) + buckets, "{flows} flows of {families:?}");
        }
    }
}
