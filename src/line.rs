//! Cache lines of one's own: what one thread writes must not lie beside what another one reads.

use std::ops::Deref;

/// A value that shares its cache line with nothing else.
///
/// 128 bytes, not 64: processors fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct OwnLine<T>(pub T);

impl<T> Deref for OwnLine<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}
