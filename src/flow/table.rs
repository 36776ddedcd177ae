//! Flow table: pins flows to backends. Fixed memory, one writer, readable by every thread.
//!
//! ```text
//!  hash of the tuple
//!    | high bits                        low 16 bits = tag, never 0
//!    v
//!  bucket lines (64 bytes each)                   entries (IPv4 32 bytes, IPv6 64 bytes)
//!  +------------------------------------------+     +------------------------------------------+
//!  | 8 x tag:16 | 8 x entry number:32 | -:128 | --> | hop  addresses(1, 4)  tail  backend_word |
//!  +------------------------------------------+     +------------------------------------------+
//!    a flow is in one of two buckets:             hop          = MAC:48 nic:4 vlan:12
//!    b1 = high bits, b2 = mix(tag) - b1 (mod n)   tail         = client port:16 vip port:16
//!                                                                state:8 owner:8 stamp:8
//!                                                                protocol:8
//!                                                 backend_word = backend:16 generation:16
//!                                                                last seen:32
//!                                               creations (8 bytes each), in a separate array
//!                                                 created      = created:32 vip:16 rule:4
//!                                                                version:12
//! ```
//!
//! A look-up touches one bucket line and one entry line (two bucket lines for the flows that did
//! not fit into their first). Every word is an atomic: plain loads and stores on x86-64 and
//! aarch64, and no data race. Entries are sequence-checked by the `version` in `created`: odd while
//! the writer changes the entry. Other threads may read everything, and write three things only:
//! `hop`, `last seen` and bits of `state`, by compare-and-swap against the values they have read.
//!
//! Memory: 49.4 bytes for an IPv4 flow and 81.4 for an IPv6 flow (8 slots per bucket, filled to
//! 85 %). Each family has room for all flows that the table is made for; a family takes memory when
//! it is first needed ([`FlowTable::populate`]). The table lies in a memfd
//! ([`layout`](super::layout)), which a later process may take over ([`FlowTable::attach`]).

use std::sync::Arc;

use super::entry::{ConntrackEntry, FlowState, Pin, State};
pub use super::family::Hit;
use super::family::{Family as _, FamilyTable, V4, V6, View};
use super::header::Header;
pub use super::header::TableError;
use super::layout::{FLOWS, KIND, Layout};
pub use super::slot::Slot;
use crate::net::{HashedKey, NextHop, TableSecret, Tuple};
use crate::units::Ticks;
use crate::xdp::memory::{Arena, Pages};

/// A set of address families.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Families {
    /// Both families.
    pub const BOTH: Self = Self { v4: true, v6: true };

    /// Returns the families of both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { v4: self.v4 || other.v4, v6: self.v6 || other.v6 }
    }
}

/// The shared half of a flow table, which every thread may read.
#[derive(Debug)]
pub struct FlowTable {
    secret: TableSecret,
    pub(super) header: Header,
    pub(super) v4: FamilyTable<V4>,
    pub(super) v6: FamilyTable<V6>,
}

impl FlowTable {
    /// Maps a table for `capacity` flows of each family (8 to 2^30), with memory for `families`: on
    /// pages of the huge page pool if it has enough.
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn new(capacity: u32, secret: TableSecret, families: Families) -> Result<Self, TableError> {
        let on = |pages| {
            let arena = Arena::new(Self::bytes(capacity), pages)?;
            Self::create(arena, capacity, secret.clone(), families)
        };
        on(Pages::Pool).or_else(|_: TableError| on(Pages::Ordinary))
    }

    /// Size of the memory of a table for `capacity` flows of each family, in bytes.
    pub fn bytes(capacity: u32) -> usize {
        Layout::of(capacity).bytes
    }

    /// Creates a table as [`FlowTable::new`] does, in zeroed memory of [`FlowTable::bytes`].
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn create(
        arena: Arc<Arena>,
        capacity: u32,
        secret: TableSecret,
        families: Families,
    ) -> Result<Self, TableError> {
        let layout = Layout::of(capacity);
        let header = Header::create(&arena, KIND, layout.v4.entries as u64, &secret)?;
        let table = Self::over(&arena, header, &layout, secret)?;
        table.populate(families)?;
        Ok(table)
    }

    /// Takes over the table that another process has left in this memory, for reading, and for
    /// writing once that process is gone
    /// ([`FlowWriter::take_over`](super::writer::FlowWriter::take_over)). Its pins name VIPs,
    /// backends, NICs and workers of that process: those must be taken over as well.
    ///
    /// # Errors
    /// [`TableError`] when the memory is not a table, or of another version, size or boot.
    pub fn attach(arena: Arc<Arena>) -> Result<Self, TableError> {
        let (header, entries, secret) = Header::check(&arena, KIND)?;
        let fits = u32::try_from(entries)
            .ok()
            .filter(|flows| FLOWS.contains(flows) && Layout::of(*flows).bytes == arena.bytes());
        let capacity = fits.ok_or(TableError::Size { entries, bytes: arena.bytes() })?;
        let table = Self::over(&arena, header, &Layout::of(capacity), secret)?;
        table.populate(Families { v4: table.v4.ever_used() > 0, v6: table.v6.ever_used() > 0 })?;
        Ok(table)
    }

    fn over(
        arena: &Arc<Arena>,
        header: Header,
        layout: &Layout,
        secret: TableSecret,
    ) -> Result<Self, TableError> {
        let v4 = FamilyTable::new(arena, &layout.v4)?;
        let v6 = FamilyTable::new(arena, &layout.v6)?;
        Ok(Self { secret, header, v4, v6 })
    }

    /// Backs the parts of `families` with memory, as far as they are not: to be called before the
    /// first flow of a family may come. Any thread, also while the table is in use.
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn populate(&self, families: Families) -> Result<(), TableError> {
        if families.v4 {
            self.v4.populate()?;
        }
        if families.v6 {
            self.v6.populate()?;
        }
        Ok(())
    }

    /// See [`Mapping::let_go`](crate::xdp::memory::Mapping::let_go).
    pub fn let_go(&self) {
        self.v4.let_go();
        self.v6.let_go();
    }

    /// Number of flows of each family that the table has room for.
    pub fn capacity(&self) -> u32 {
        self.v4.capacity()
    }

    /// Releases the right to write that an earlier process held when it ended. The caller must know
    /// that it has ended.
    pub fn release_writer(&self) {
        self.header.release_writer();
    }

    /// Returns the slots of all entries that were ever used.
    pub(super) fn slots(&self) -> impl Iterator<Item = Slot> + use<> {
        let of = |flag, used| (0..used).map(move |number| Slot::new(flag, number));
        of(V4::FLAG, self.v4.ever_used()).chain(of(V6::FLAG, self.v6.ever_used()))
    }

    /// Number of positions of [`FlowTable::pin_at`]: those of both families.
    pub fn positions(&self) -> u32 {
        self.capacity() * 2
    }

    /// Numbers of positions that ever had a flow: the first ones of IPv4, and of IPv6.
    pub fn ever_used(&self) -> [u32; 2] {
        [self.v4.ever_used(), self.v6.ever_used()]
    }

    /// Memory of `families`, in bytes.
    pub fn memory(&self, families: Families) -> usize {
        let v4 = if families.v4 { self.v4.bytes() } else { 0 };
        v4 + if families.v6 { self.v6.bytes() } else { 0 }
    }

    /// The secret of the table's hashes.
    #[inline]
    pub fn secret(&self) -> &TableSecret {
        &self.secret
    }

    /// Returns the view that look-ups of the writer's thread use: to be taken once per batch.
    #[inline(always)]
    pub fn view(&self) -> FlowView<'_> {
        FlowView { v4: self.v4.view(), v6: self.v6.view() }
    }

    /// Returns a consistent copy of an entry; `None` if it is free, or changes during every
    /// attempt.
    pub fn read(&self, slot: Slot) -> Option<ConntrackEntry> {
        if slot.is_v6() { self.v6.read(slot.number()) } else { self.v4.read(slot.number()) }
    }

    /// Returns a word that changes whenever an entry is written: with it, other memory can belong to
    /// one pin only. Never 0; `None` for an entry that is free or in the middle of a change.
    pub fn stamp(&self, slot: Slot) -> Option<u64> {
        if slot.is_v6() { self.v6.stamp(slot.number()) } else { self.v4.stamp(slot.number()) }
    }

    /// Returns the entry of a key, for threads other than the writer's.
    pub fn lookup(&self, key: &HashedKey) -> Option<(Slot, Pin)> {
        match &key.tuple {
            Tuple::V4(words) => self.v4.lookup(words, key.hash),
            Tuple::V6(words) => self.v6.lookup(words, key.hash),
        }
    }

    /// Returns the pin (not a remote entry) at a position (`0..positions()`), if there is one.
    pub fn pin_at(&self, position: u32) -> Option<ConntrackEntry> {
        let entry = match position.checked_sub(self.capacity()) {
            None => self.v4.read_used(position),
            Some(number) => self.v6.read_used(number),
        };
        entry.filter(|entry| !entry.pin.flow_state.state().has(State::REMOTE))
    }

    /// Records that a packet of the flow came at `now`. Any thread; does nothing if the entry has
    /// another backend or time since `flow_state` was read from `slot`.
    pub fn touch(&self, slot: Slot, flow_state: &FlowState, now: Ticks) {
        if slot.is_v6() {
            self.v6.touch(slot.number(), flow_state, now);
        } else {
            self.v4.touch(slot.number(), flow_state, now);
        }
    }

    /// Changes the return hop. Any thread; does nothing if the entry has another one since
    /// `flow_state` was read from `slot`. If the entry was reused at this moment, for a flow that came
    /// by the same hop, that flow's next packet corrects it.
    pub fn change_hop(&self, slot: Slot, flow_state: &FlowState, hop: &NextHop) {
        if slot.is_v6() {
            self.v6.change_hop(slot.number(), flow_state, hop);
        } else {
            self.v4.change_hop(slot.number(), flow_state, hop);
        }
    }

    /// Sets and clears bits of the flow's state. Any thread; does nothing if the entry was reused
    /// since `flow_state` was read from `slot`.
    pub fn change_state(
        &self,
        slot: Slot,
        key: &HashedKey,
        flow_state: &FlowState,
        set: State,
        clear: State,
    ) {
        if flow_state.state().with(set).without(clear) == flow_state.state() {
            return;
        }
        match &key.tuple {
            Tuple::V4(words) => self.v4.change_state(slot.number(), words, flow_state, set, clear),
            Tuple::V6(words) => self.v6.change_state(slot.number(), words, flow_state, set, clear),
        }
    }
}

/// The parts of a table that look-ups touch.
#[derive(Clone, Copy)]
pub struct FlowView<'t> {
    v4: View<'t, V4>,
    v6: View<'t, V6>,
}

impl<'t> FlowView<'t> {
    /// First stage of a batched look-up: prefetches the bucket line.
    #[inline(always)]
    pub fn prefetch_bucket(&self, key: &HashedKey) {
        match key.tuple {
            Tuple::V4(_) => self.v4.prefetch_bucket(key.hash),
            Tuple::V6(_) => self.v6.prefetch_bucket(key.hash),
        }
    }

    /// Second stage: prefetches the entry line, if the first bucket has the tag, and returns the
    /// entry's slot, a hint for [`FlowView::find_at`]. Else prefetches the other bucket's line, for
    /// [`FlowView::prefetch_entry_elsewhere`].
    #[inline(always)]
    pub fn prefetch_entry(&self, key: &HashedKey) -> Option<Slot> {
        match key.tuple {
            Tuple::V4(_) => self.v4.prefetch_entry(key.hash),
            Tuple::V6(_) => self.v6.prefetch_entry(key.hash),
        }
    }

    /// Third stage, if the second returned no slot: prefetches the entry line from the other
    /// bucket.
    #[inline]
    pub fn prefetch_entry_elsewhere(&self, key: &HashedKey) -> Option<Slot> {
        match key.tuple {
            Tuple::V4(_) => self.v4.prefetch_entry_elsewhere(key.hash),
            Tuple::V6(_) => self.v6.prefetch_entry_elsewhere(key.hash),
        }
    }

    /// Returns the entry of a key, if it is the one at `hint`; for the writer's thread.
    #[inline(always)]
    pub fn at(&self, key: &HashedKey, hint: Slot) -> Option<Hit<'t>> {
        match &key.tuple {
            Tuple::V4(words) => self.v4.at(words, hint),
            Tuple::V6(words) => self.v6.at(words, hint),
        }
    }

    /// Returns the entry of a key, for the writer's thread: others use [`FlowTable::lookup`].
    /// [`Slot::NOWHERE`] is a valid hint.
    #[inline]
    pub fn find_at(&self, key: &HashedKey, hint: Slot) -> Option<Hit<'t>> {
        match &key.tuple {
            Tuple::V4(words) => self.v4.find_at(words, key.hash, hint),
            Tuple::V6(words) => self.v6.find_at(words, key.hash, hint),
        }
    }
}
