//! Memory mappings, and setsockopt(2) for options that rustix does not support.
#![allow(unsafe_code, reason = "memory mappings and setsockopt(2)")]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use libc::{c_int, socklen_t};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// Calls setsockopt(2) with an integer, for options that rustix has no name for.
pub(super) fn set_option(
    socket: impl AsFd,
    level: c_int,
    name: c_int,
    value: c_int,
) -> io::Result<()> {
    let socket = socket.as_fd().as_raw_fd();
    let len = socklen_t::try_from(size_of::<c_int>()).map_err(io::Error::other)?;
    // SAFETY: the pointer is to a live integer of the size that is passed.
    let done = unsafe { libc::setsockopt(socket, level, name, (&raw const value).cast(), len) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A memory mapping, unmapped when dropped.
#[derive(Debug)]
pub(super) struct Region {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread. Access goes through raw pointers, for
// which each user has its own safety argument.
unsafe impl Send for Region {}
// SAFETY: likewise; `&Region` gives out only an address and a length.
unsafe impl Sync for Region {}

impl Region {
    /// Reserves `len` bytes of address space, without memory or access.
    pub(super) fn reserve(len: usize) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::empty(), flags) }?;
        Self::new(start.cast(), len)
    }

    /// Maps the first `len` bytes of `file`, shared, at `offset` (a whole number of pages) of this
    /// reserved space. The bytes are not yet backed by memory.
    pub(super) fn place(&self, file: BorrowedFd<'_>, offset: usize, len: usize) -> io::Result<()> {
        let start = self.at(offset, len).ok_or(io::ErrorKind::InvalidInput)?.as_ptr().cast();
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: `at` found the range inside our own mapping, and the call replaces only reserved
        // space without access.
        unsafe { mmap(start, len, access, flags, file, 0) }?;
        Ok(())
    }

    /// Maps `len` bytes of `file` from `offset`, shared and immediately backed by memory.
    pub(super) fn shared(file: BorrowedFd<'_>, len: usize, offset: u64) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe { mmap(std::ptr::null_mut(), len, access, flags, file, offset) }?;
        Self::new(start.cast(), len)
    }

    fn new(start: *mut u8, len: usize) -> io::Result<Self> {
        let start = NonNull::new(start).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { start, len })
    }

    /// Returns the first byte.
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Returns the byte at `offset`; `None` if the `len` bytes from there exceed the mapping.
    pub(super) fn at(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        inside.then(|| self.start.map_addr(|address| address.saturating_add(offset)))
    }

    /// Calls madvise(2) for `len` bytes from `offset`, with advice that preserves the contents.
    pub(super) fn advise(&self, offset: usize, len: usize, advice: Keeping) -> io::Result<()> {
        let start = self.at(offset, len).ok_or(io::ErrorKind::InvalidInput)?.as_ptr().cast();
        let advice = match advice {
            Keeping::HugePages => Advice::LinuxHugepage,
            Keeping::Populate => Advice::LinuxPopulateWrite,
            Keeping::LetGo => Advice::LinuxDontNeed,
        };
        // SAFETY: the range lies inside our own mapping, and the advice preserves its contents.
        unsafe { madvise(start, len, advice) }?;
        Ok(())
    }
}

/// Memory advice that preserves the contents.
#[derive(Debug, Clone, Copy)]
pub(super) enum Keeping {
    /// `MADV_HUGEPAGE`.
    HugePages,
    /// `MADV_POPULATE_WRITE`.
    #[cfg_attr(holdfast_loom, expect(dead_code, reason = "in models, all memory is there"))]
    Populate,
    /// `MADV_DONTNEED`, for the shared mapping of a file: the contents are in the file.
    #[cfg_attr(holdfast_loom, expect(dead_code, reason = "in models, all memory is there"))]
    LetGo,
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours; its users are gone, or are bound by contract to be.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}
