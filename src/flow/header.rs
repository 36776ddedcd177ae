//! Header of a table's memory, by which a later process recognises it.
//!
//! ```text
//! line 0   "holdfast", kind (8 bytes), layout version, size, seed of the hash, boot (2 words),
//!          writer (0: none)
//! line 1   marks of the flow tables (2 words), notes of a writer (2 words), that writer, -, -,
//!          checksum of line 0 without the writer
//! ```
//!
//! The size is a number of entries, from which the layout of the rest follows. The contents change
//! all the time and have no checksum: the table that takes the memory over checks each entry.

use std::fs;
use std::hash::Hasher as _;
use std::sync::Arc;

use siphasher::sip::SipHasher13;

use crate::net::TableSecret;
use crate::sync::{AtomicU64, Ordering};
use crate::xdp::memory::{Arena, Line, Mapping, MappingError};

/// The first bytes in memory, whatever the byte order of the machine is.
const MAGIC: u64 = u64::from_ne_bytes(*b"holdfast");

/// The largest page that a kernel may have (aarch64), in bytes: each part of a table begins at one,
/// so that it can be populated by itself. The header takes the first.
pub(super) const PAGE: usize = 65536;

/// Lines of the header.
pub(super) const LINES: usize = 2;

/// Kind of a table, and the version of its layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    /// Name, padded with zeros.
    pub(super) name: [u8; 8],
    /// Version of the layout. Any change to the layout takes the next number.
    pub(super) version: u64,
}

/// Reason why memory is not a table that can be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The kernel has too little memory.
    #[error(transparent)]
    Memory(#[from] MappingError),
    /// The first bytes are not those of a table of this kind.
    #[error("this memory holds no table of this kind; start with an empty one")]
    NotATable,
    /// Header and checksum contradict each other.
    #[error("the header is damaged; start with an empty table")]
    Damaged,
    /// Another version of holdfast wrote the table.
    #[error(
        "the table has layout {got}, and this holdfast reads layout {reads}; start the version \
         that reads {got}, or start with an empty table"
    )]
    Version {
        /// Layout version in the header.
        got: u64,
        /// Layout version that is read.
        reads: u64,
    },
    /// Header and size contradict each other.
    #[error("the header states {entries} entries, for which {bytes} bytes are not the right size")]
    Size {
        /// Number of entries in the header.
        entries: u64,
        /// Size of the memory, in bytes.
        bytes: usize,
    },
    /// The table does not belong to the others.
    #[error("the table belongs to other flow tables; start with an empty one")]
    OtherSet,
    /// The machine was booted since, so that the table's times mean nothing.
    #[error("the table was written before this machine was booted; start with an empty one")]
    OtherBoot,
}

/// The first lines of a table's memory.
#[derive(Debug)]
pub(super) struct Header(Mapping<Line>);

impl Header {
    /// Writes the header of a new table into zeroed memory. `size` is its number of entries.
    pub(super) fn create(
        arena: &Arc<Arena>,
        kind: Kind,
        size: u64,
        secret: &TableSecret,
    ) -> Result<Self, TableError> {
        let header = Self(arena.part(0, LINES)?);
        header.0.populate()?;
        let [b0, b1] = boot();
        let name = u64::from_ne_bytes(kind.name);
        let values = [MAGIC, name, kind.version, size, secret.seed(), b0, b1];
        if let Some(line) = header.0.first() {
            for (word, value) in line.words.iter().zip(values) {
                // Relaxed: no other process has the memory yet.
                word.store(value, Ordering::Relaxed);
            }
        }
        header.seal();
        Ok(header)
    }

    /// Checks the header that another process has written; also returns the number of entries and
    /// the secret of the hash.
    pub(super) fn check(
        arena: &Arc<Arena>,
        kind: Kind,
    ) -> Result<(Self, u64, TableSecret), TableError> {
        let header = Self(arena.part(0, LINES).map_err(|_| TableError::NotATable)?);
        let [Some(first), Some(last)] = [header.0.first(), header.0.last()] else {
            return Err(TableError::NotATable);
        };
        // Relaxed: the memory came by a system call, after it was written.
        let words = first.words.each_ref().map(|word| word.load(Ordering::Relaxed));
        let [magic, name, version, size, seed, b0, b1, _] = words;
        if [magic, name] != [MAGIC, u64::from_ne_bytes(kind.name)] {
            return Err(TableError::NotATable);
        }
        let sum = last.words.last().map(|word| word.load(Ordering::Relaxed));
        if sum != Some(checksum(&[magic, name, version, size, seed, b0, b1])) {
            return Err(TableError::Damaged);
        }
        if version != kind.version {
            return Err(TableError::Version { got: version, reads: kind.version });
        }
        if [b0, b1] != boot() {
            return Err(TableError::OtherBoot);
        }
        Ok((header, size, TableSecret::new(seed)))
    }

    /// Writes the checksum.
    fn seal(&self) {
        let [Some(first), Some(last)] = [self.0.first(), self.0.last()] else { return };
        let [values @ .., _] = first.words.each_ref().map(|word| word.load(Ordering::Relaxed));
        if let Some(word) = last.words.last() {
            word.store(checksum(&values), Ordering::Relaxed);
        }
    }

    /// Takes the right to write for `owner` (not 0); false while another writer has it.
    pub(super) fn take_writer(&self, owner: u64) -> bool {
        // AcqRel: the next writer sees all writes of the last.
        self.writer().is_some_and(|word| {
            word.compare_exchange(0, owner, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    }

    /// Releases the right to write, whichever writer has it.
    pub(super) fn release_writer(&self) {
        self.seize_writer(0);
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

    /// Leaves notes for the next writer. They count as long as `owner` has the right to write.
    pub(super) fn leave_notes(&self, owner: u64, notes: [u64; 2]) {
        let Some(line) = self.0.last() else { return };
        let [_, _, a, b, by, ..] = &line.words;
        for (word, note) in [a, b].into_iter().zip(notes) {
            word.store(note, Ordering::Relaxed);
        }
        // Release pairs with `notes`.
        by.store(owner, Ordering::Release);
    }

    /// Returns the notes of the writer that has the right to write, if it has left some.
    pub(super) fn notes(&self) -> Option<[u64; 2]> {
        let [_, _, a, b, by, ..] = &self.0.last()?.words;
        // Acquire pairs with `leave_notes`.
        let by = by.load(Ordering::Acquire);
        let writer = self.writer()?.load(Ordering::Acquire);
        (by != 0 && by == writer).then(|| [a, b].map(|note| note.load(Ordering::Relaxed)))
    }

    fn writer(&self) -> Option<&AtomicU64> {
        self.0.first()?.words.last()
    }
}

/// Checksum of the header's words: detects damage, not intent.
fn checksum(words: &[u64; 7]) -> u64 {
    let mut hasher = SipHasher13::new();
    words.iter().for_each(|&word| hasher.write_u64(word));
    hasher.finish()
}

/// Returns the boot ID of the machine (`/proc/sys/kernel/random/boot_id`); zeros without /proc.
pub fn boot() -> [u64; 2] {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let id = u128::from_str_radix(&digits, 16).unwrap_or_default().to_be_bytes();
    let half = |range| id.get(range).and_then(|bytes: &[u8]| bytes.try_into().ok());
    [half(0..8), half(8..16)].map(|bytes| u64::from_be_bytes(bytes.unwrap_or_default()))
}

/// Writes the checksum of a header that a test has changed.
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
pub(super) fn seal(arena: &Arc<Arena>) {
    Header(arena.part(0, LINES).unwrap()).seal();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_boot_has_a_name() {
        assert_ne!(boot(), [0; 2]);
        assert_eq!(boot(), boot());
    }
}
