//! Changes of the worker's counters.

use crate::stats::{Drop, LocalReply, WorkerStats};

/// A counter of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// Counter of the worker itself.
    Worker(&'static str),
    /// Packets with this local reply.
    LocalReply(LocalReply),
    /// Packets dropped for this reason.
    Drop(Drop),
    /// Counter of a VIP, by its index.
    Vip(usize, &'static str),
    /// Counter of a backend, by its index.
    Backend(usize, &'static str),
    /// Counter of a NIC, by its index.
    Nic(usize, &'static str),
}

/// Names behind the indices.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Names of the VIPs.
    pub(super) vips: Vec<String>,
    /// Names of the backends: VIP and backend.
    pub(super) backends: Vec<(String, String)>,
    /// Names of the NICs.
    pub(super) nics: Vec<String>,
}

impl Names {
    /// Stores a name at its index.
    pub(super) fn put<T: Default + Clone>(list: &mut Vec<T>, index: usize, name: T) {
        if list.len() <= index {
            list.resize(index + 1, T::default());
        }
        list.get_mut(index).into_iter().for_each(|place| *place = name.clone());
    }

    pub(super) fn vip(&self, index: usize) -> Option<&str> {
        self.vips.get(index).map(String::as_str)
    }

    pub(super) fn backend(&self, index: usize) -> Option<&str> {
        self.backends.get(index).map(|(_, name)| name.as_str())
    }

    /// Returns the name of a counter as in `docs/REPLAY.md`.
    pub(super) fn text(&self, name: Name) -> String {
        match name {
            Name::Worker(name) => format!("workers.{name}"),
            Name::LocalReply(reply) => format!("workers.answers.{}", reply.as_str()),
            Name::Drop(reason) => format!("workers.drops.{}", reason.as_str()),
            Name::Vip(index, name) => {
                format!("vips.{}.{name}", self.vip(index).unwrap_or_default())
            }
            Name::Backend(index, name) => {
                let (vip, backend) = self.backends.get(index).cloned().unwrap_or_default();
                format!("vips.{vip}.backends.{backend}.{name}")
            }
            Name::Nic(index, name) => {
                format!("nics.{}.{name}", self.nics.get(index).map_or("", String::as_str))
            }
        }
    }
}

/// Last known counter values of a worker.
#[derive(Debug)]
pub(super) struct Counters {
    names: Names,
    /// Values in the order of [`walk`].
    last: Vec<u64>,
}

impl Counters {
    pub(super) fn new(names: Names, stats: &WorkerStats) -> Self {
        Self { names, last: walk(stats).map(|(_, value)| value).collect() }
    }

    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    /// Returns the counters that changed since the last call, and by how much. Cost: every counter
    /// is read.
    pub(super) fn moved(&mut self, stats: &WorkerStats) -> Vec<(Name, i64)> {
        let mut moved = Vec::new();
        for ((name, now), last) in walk(stats).zip(&mut self.last) {
            let before = std::mem::replace(last, now);
            if now != before {
                moved.push((name, now.wrapping_sub(before).cast_signed()));
            }
        }
        moved
    }
}

/// Yields every counter of packets and flows, always in the same order.
fn walk(stats: &WorkerStats) -> impl Iterator<Item = (Name, u64)> + '_ {
    let worker = stats.named().map(|(name, value)| (Name::Worker(name), value));
    let replies = stats.local_replies().map(|(reply, value)| (Name::LocalReply(reply), value));
    let drops = stats.drops().map(|(reason, value)| (Name::Drop(reason), value));
    let vips = stats.vips.iter().enumerate().flat_map(|(index, stats)| {
        stats.named().map(move |(name, value)| (Name::Vip(index, name), value))
    });
    let backends = stats.backends.iter().enumerate().flat_map(|(index, stats)| {
        stats.named().map(move |(name, value)| (Name::Backend(index, name), value))
    });
    let nics = stats.nics.iter().enumerate().flat_map(|(index, stats)| {
        stats.named().map(move |(name, value)| (Name::Nic(index, name), value))
    });
    worker.chain(replies).chain(drops).chain(vips).chain(backends).chain(nics)
}
