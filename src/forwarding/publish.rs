//! Publication of a forwarding table: one pointer, swapped by the control thread, read by workers.
//!
//! A worker checks the pointer once per batch and never frees a table: the publisher keeps every
//! published table until it holds the last reference.

use std::ops::Deref;
use std::sync::Arc;

use crossbeam_utils::CachePadded;

use super::ForwardingTable;
use crate::sync::{ArcSwap, Cache};

/// Shared pointer to the current table. Workers read it once per batch, so no data that changes
/// more often may share its cache lines.
#[derive(Debug, Clone)]
struct SharedTable(Arc<CachePadded<ArcSwap<ForwardingTable>>>);

impl Deref for SharedTable {
    type Target = ArcSwap<ForwardingTable>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// Publishing side, owned by the control thread.
#[derive(Debug)]
pub struct Publisher {
    current: SharedTable,
    /// Replaced tables that a worker may still hold.
    old: Vec<Arc<ForwardingTable>>,
}

/// Reading side. Clone it once per worker.
#[derive(Debug, Clone)]
pub struct Subscription {
    cache: Cache<SharedTable, Arc<ForwardingTable>>,
}

impl Publisher {
    /// Publishes the first table.
    pub fn new(table: ForwardingTable) -> (Self, Subscription) {
        let current = SharedTable(Arc::new(CachePadded::new(ArcSwap::from_pointee(table))));
        let cache = Cache::new(current.clone());
        (Self { current, old: Vec::new() }, Subscription { cache })
    }

    /// Replaces the table; workers see it at their next batch.
    pub fn publish(&mut self, table: ForwardingTable) {
        self.old.push(self.current.swap(Arc::new(table)));
        self.reap();
    }

    /// The published table.
    pub fn current(&self) -> Arc<ForwardingTable> {
        self.current.load_full()
    }

    /// Frees the replaced tables that no worker holds.
    pub fn reap(&mut self) {
        self.old.retain(|table| Arc::strong_count(table) > 1);
    }

    /// Number of replaced tables that are still held.
    pub fn retained(&self) -> usize {
        self.old.len()
    }
}

impl Subscription {
    /// Returns the newest table. Cost: one atomic load if nothing has changed.
    #[inline]
    pub fn current(&mut self) -> &ForwardingTable {
        self.cache.load()
    }
}

/// Prepares a thread that will use a [`Subscription`]: the first table that a thread loads costs
/// arc-swap a small allocation, and a worker must not allocate later on.
pub fn prepare_thread() {
    drop(ArcSwap::from_pointee(()).load_full());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(generation: u64) -> ForwardingTable {
        ForwardingTable::build(generation, [0; 16], crate::forwarding::Local::default(), &[], None)
    }

    #[test]
    fn a_table_is_freed_by_the_publisher_when_the_last_worker_has_moved_on() {
        let (mut publisher, mut first) = Publisher::new(table(1));
        let mut second = first.clone();
        assert_eq!(first.current().generation(), 1);
        publisher.publish(table(2));
        assert_eq!(publisher.retained(), 1, "both workers hold table 1");
        assert_eq!(first.current().generation(), 2);
        publisher.reap();
        assert_eq!(publisher.retained(), 1, "the second worker holds table 1");
        assert_eq!(second.current().generation(), 2);
        publisher.reap();
        assert_eq!(publisher.retained(), 0);
    }
}

#[cfg(all(test, holdfast_loom))]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod models {
    use loom::thread;

    use super::{ForwardingTable, Publisher};
    use crate::forwarding::Local;
    use crate::sync::check;

    fn table(generation: u64) -> ForwardingTable {
        ForwardingTable::build(generation, [0; 16], Local::default(), &[], None)
    }

    /// Two workers look at the table between batches, while control publishes two more. A worker
    /// that would free a table panics ([`crate::sync::Cache`]).
    #[test]
    fn the_publisher_frees_a_table_after_the_last_worker_has_moved_on() {
        check(2, || {
            let (mut publisher, first) = Publisher::new(table(1));
            let workers = [first.clone(), first].map(|mut tables| {
                thread::spawn(move || {
                    let mut last = 0;
                    for _batch in 0..2 {
                        let generation = tables.current().generation();
                        assert!(generation >= last, "{generation} after {last}");
                        last = generation;
                    }
                    tables
                })
            });
            publisher.publish(table(2));
            publisher.publish(table(3));
            for worker in workers {
                let mut tables = worker.join().unwrap();
                assert_eq!(tables.current().generation(), 3, "in force by the next batch");
            }
            publisher.reap();
            assert_eq!(publisher.retained(), 0);
        });
    }
}
