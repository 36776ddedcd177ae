//! Memory of the shared tables: new for every process, or left by an earlier one.

use std::sync::Arc;

pub use super::header::boot;
use super::header::{Header, Kind, PAGE, TableError};
use crate::net::TableSecret;
use crate::xdp::memory::{Arena, Mapping, MappingError, Pages, Shareable};

/// Source of the memory of tables, each with a name.
pub trait TableMemory {
    /// Returns the memory that an earlier process has left under this name.
    fn found(&self, name: &str) -> Option<Arc<Arena>>;

    /// Returns zeroed memory of at least `bytes`, which a later process finds under this name; on
    /// pages of the huge page pool, or on ordinary ones.
    ///
    /// # Errors
    /// When there is too little memory, or no pool. A pool that is too small is noticed only when
    /// the memory is populated.
    fn fresh(&self, name: &str, bytes: usize, pages: Pages) -> Result<Arc<Arena>, MappingError>;

    /// Whether another process still writes what is found: it hands over later, in a consistent
    /// state, so that nothing is repaired.
    fn is_live(&self) -> bool {
        false
    }

    /// Records that the memory found under this name cannot be used.
    fn refuse(&self, name: &str, error: &TableError);
}

/// Memory that ends with the process.
#[derive(Debug, Clone, Copy)]
pub struct Anonymous;

impl TableMemory for Anonymous {
    fn found(&self, _name: &str) -> Option<Arc<Arena>> {
        None
    }

    fn fresh(&self, _name: &str, bytes: usize, pages: Pages) -> Result<Arc<Arena>, MappingError> {
        Arena::new(bytes, pages)
    }

    fn refuse(&self, _name: &str, _error: &TableError) {}
}

/// A table that consists of a header and entries of one type.
pub(super) struct Parts<'s> {
    pub(super) kind: Kind,
    pub(super) name: &'static str,
    pub(super) entries: usize,
    pub(super) secret: &'s TableSecret,
}

impl Parts<'_> {
    /// Takes over the entries that were left under the table's name, each repaired by `repair`, or
    /// makes new ones. Returns whether they were taken over.
    ///
    /// # Errors
    /// When there is too little memory.
    pub(super) fn open<T: Shareable>(
        &self,
        memory: &dyn TableMemory,
        repair: impl Fn(&T),
    ) -> Result<(Mapping<T>, bool), TableError> {
        let (entries, found) = self.reserve(memory)?;
        if !found {
            entries.populate()?;
        } else if !memory.is_live() {
            entries.iter().for_each(repair);
        }
        Ok((entries, found))
    }

    /// Takes over the entries that were left under the table's name, or reserves new ones, which are
    /// not backed by memory. Returns whether they were taken over.
    ///
    /// # Errors
    /// When there is too little address space.
    pub(super) fn reserve<T: Shareable>(
        &self,
        memory: &dyn TableMemory,
    ) -> Result<(Mapping<T>, bool), TableError> {
        if let Some(arena) = memory.found(self.name) {
            match self.take(&arena) {
                Ok(entries) => return Ok((entries, true)),
                Err(error) => memory.refuse(self.name, &error),
            }
        }
        let too_large = MappingError::TooLarge { len: self.entries, entry: size_of::<T>() };
        let bytes = self.entries.checked_mul(size_of::<T>()).and_then(|len| len.checked_add(PAGE));
        let arena = memory.fresh(self.name, bytes.ok_or(too_large)?, Pages::Ordinary)?;
        let entries = arena.part(PAGE, self.entries)?;
        Header::create(&arena, self.kind, self.entries as u64, self.secret)?;
        Ok((entries, false))
    }

    fn take<T: Shareable>(&self, arena: &Arc<Arena>) -> Result<Mapping<T>, TableError> {
        let (_, entries, secret) = Header::check(arena, self.kind)?;
        if secret.seed() != self.secret.seed() {
            return Err(TableError::OtherSet);
        }
        if entries != self.entries as u64 {
            return Err(TableError::Size { entries, bytes: arena.bytes() });
        }
        let part = arena.part(PAGE, self.entries);
        part.map_err(|_| TableError::Size { entries, bytes: arena.bytes() })
    }
}
