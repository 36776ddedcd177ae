//! Thin, checked wrappers around the system calls that the other files share.
#![allow(unsafe_code, reason = "system calls and memory mappings")]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use libc::{c_int, c_void, socklen_t};

/// Turns the kernel's -1 into the error in `errno`.
pub(super) fn check(returned: c_int) -> io::Result<c_int> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// `size_of::<T>()` as the kernel wants it.
pub(super) fn socklen_of<T>() -> socklen_t {
    socklen_t::try_from(size_of::<T>()).unwrap_or(socklen_t::MAX)
}

/// A plain value that the kernel may read and fill in: an integer, or a C struct of integers.
///
/// # Safety
/// Every bit pattern, all zeros among them, must be a valid value of the type.
pub(super) unsafe trait Plain: Copy {}

// SAFETY: an integer takes every bit pattern.
unsafe impl Plain for u32 {}
// SAFETY: an integer takes every bit pattern.
unsafe impl Plain for c_int {}
// SAFETY: a struct of integers takes every bit pattern.
unsafe impl Plain for libc::xdp_umem_reg {}
// SAFETY: a struct of integers takes every bit pattern.
unsafe impl Plain for libc::xdp_mmap_offsets {}
// SAFETY: a struct of integers takes every bit pattern.
unsafe impl Plain for libc::xdp_statistics {}
// SAFETY: a struct of integers takes every bit pattern.
unsafe impl Plain for libc::sockaddr_xdp {}
// SAFETY: a struct of integers takes every bit pattern.
unsafe impl Plain for libc::sockaddr_nl {}
// SAFETY: a struct of integers and an array of bytes takes every bit pattern.
unsafe impl Plain for libc::sockaddr_ll {}

/// A value of all zeros, to be filled in; the way to get C structs with private padding.
pub(super) fn zeroed<T: Plain>() -> T {
    // SAFETY: all zeros is a valid value of a `Plain` type.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// socket(2), always close-on-exec.
pub(super) fn socket(domain: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = check(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// bind(2) to a socket address of type `T`.
pub(super) fn bind<T: Plain>(socket: BorrowedFd<'_>, address: &T) -> io::Result<()> {
    let address = std::ptr::from_ref(address).cast();
    // SAFETY: `address` points at a live `T` of the size that is passed.
    check(unsafe { libc::bind(socket.as_raw_fd(), address, socklen_of::<T>()) }).map(drop)
}

/// setsockopt(2).
pub(super) fn set_option<T: Plain>(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &T,
) -> io::Result<()> {
    let pointer = std::ptr::from_ref(value).cast();
    // SAFETY: `pointer` points at a live `T` of the size that is passed.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, pointer, socklen_of::<T>()) };
    check(done).map(drop)
}

/// getsockopt(2). Fields that an older kernel does not know stay 0.
pub(super) fn get_option<T: Plain>(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
) -> io::Result<T> {
    let mut value: T = zeroed();
    let mut len = socklen_of::<T>();
    let pointer = (&raw mut value).cast();
    // SAFETY: `pointer` points at a live `T`, and `len` holds its size.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, pointer, &raw mut len) })?;
    Ok(value)
}

/// A memory mapping, unmapped when dropped.
#[derive(Debug)]
pub(super) struct Region {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; access goes through raw pointers
// whose users make their own claim.
unsafe impl Send for Region {}
// SAFETY: as above; `&Region` gives out only an address and a length.
unsafe impl Sync for Region {}

impl Region {
    /// Takes `len` bytes of address space, without memory or access.
    pub(super) fn reserve(len: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        Self::map(len, libc::PROT_NONE, flags, -1, 0)
    }

    /// Maps the first `len` bytes of `file`, shared, at `offset` (a whole number of pages) of this
    /// reserved space. They are not yet backed by memory.
    pub(super) fn place(&self, file: BorrowedFd<'_>, offset: usize, len: usize) -> io::Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: `offset + len <= self.len`, so the pointer stays inside our own mapping.
        let at = unsafe { self.start.add(offset) }.as_ptr().cast();
        // SAFETY: what is replaced is our own reserved space, which nobody has had access to.
        let start = unsafe { libc::mmap(at, len, access, flags, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Maps `len` bytes of `file` from `offset`, shared and backed by memory at once.
    pub(super) fn shared(
        file: BorrowedFd<'_>,
        len: usize,
        offset: libc::off_t,
    ) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        Self::map(len, access, flags, file.as_raw_fd(), offset)
    }

    fn map(
        len: usize,
        access: c_int,
        flags: c_int,
        fd: c_int,
        offset: libc::off_t,
    ) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { start, len })
    }

    /// The first byte.
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// madvise(2) for `len` bytes from `offset`, cut to the mapping.
    pub(super) fn advise(&self, offset: usize, len: usize, advice: c_int) -> io::Result<()> {
        let offset = offset.min(self.len);
        let len = len.min(self.len - offset);
        // SAFETY: `offset <= self.len`, so the pointer stays inside or one past the mapping.
        let start = unsafe { self.start.add(offset) };
        // SAFETY: the range lies inside our own mapping; the advice that is used here
        // (MADV_HUGEPAGE, MADV_POPULATE_WRITE) does not change the contents.
        check(unsafe { libc::madvise(start.as_ptr().cast::<c_void>(), len, advice) }).map(drop)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whoever used it has been dropped or promised to be.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
