//! One AF_XDP socket: from socket(2) to the bound socket with its four rings mapped.
//!
//! Each socket registers the packet memory as its own UMEM, although the sockets of one worker
//! share the memory: with `XDP_SHARED_UMEM` all of them would have to use the mode of the first,
//! and one NIC without zero copy would disable it for the others.
//! Source: Documentation/networking/af_xdp.rst; net/xdp/xsk.c; include/uapi/linux/if_xdp.h.
#![allow(unsafe_code, reason = "maps the kernel's rings")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use libc::{SOL_XDP, c_int};
use rustix::io::Errno;
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING,
    XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, XdpOptionsFlags, XdpUmemReg,
    XdpUmemRegFlags,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
    sockopt,
};

use super::nic::Nic;
use super::os::{Region, set_option};
use super::ring::{self, Consumer, Descriptor, Producer};
use super::umem::{HEADROOM, Umem};

/// Socket option 9, `XDP_MAX_TX_SKB_BUDGET`: packets sent per wake-up in copy mode. Kernel 6.18.
const XDP_MAX_TX_SKB_BUDGET: c_int = 9;

/// Lower bound of `XDP_MAX_TX_SKB_BUDGET`, and the kernel's default (`TX_BATCH_SIZE` of
/// net/xdp/xsk.c). The upper bound is the number of slots of the TX ring.
const LEAST_TX_BUDGET: u32 = 32;

/// `SO_BUSY_POLL` in microseconds. Any value but 0 makes our non-blocking calls run the NIC's poll
/// function once; the value matters for blocking calls only.
const BUSY_POLL_US: c_int = 20;

/// Waits between attempts to bind, in milliseconds: about 3 s in total. The kernel frees the queue
/// of a terminated process after a grace period, in a kernel thread.
const BIND_WAITS_MS: [u64; 10] = [5, 10, 20, 50, 100, 200, 400, 600, 800, 800];

/// Largest MTU without multi-buffer, in bytes: a frame of 4096, less headroom, Ethernet header and
/// two VLAN tags.
const LARGEST_MTU: u32 = 4096 - HEADROOM as u32 - 22;

/// Transfer of packets between the NIC and packet memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BindMode {
    /// Zero copy if the driver supports it, else copy.
    Auto,
    /// The kernel copies each packet.
    Copy,
    /// The NIC accesses packet memory directly, or the bind fails.
    ZeroCopy,
}

/// Settings of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Io {
    /// Transfer of packets between the NIC and packet memory.
    pub mode: BindMode,
    /// Whether packets may span several frames. Needs kernel 6.6; a driver whose zero copy lacks
    /// support falls back to copy.
    pub multi_buffer: bool,
    /// Whether the kernel requests wake-ups. Otherwise it is woken whenever there are packets to
    /// send, and expected to receive without wake-ups.
    pub need_wakeup: bool,
    /// Packets that the kernel sends per wake-up in copy mode, at least 32; capped at the number of
    /// slots of the TX ring. Kernel 6.18; older kernels send 32.
    pub tx_budget: u32,
    /// Packets in the TX ring that justify a wake-up while more are being added to it. 1: always.
    pub tx_kick: u32,
    /// Packets per call of the NIC's poll function when the worker runs it, instead of an interrupt
    /// (`SO_PREFER_BUSY_POLL`); 0: no busy polling.
    pub busy_poll: u16,
}

impl Default for Io {
    /// Returns the defaults of the configuration, which docs/PERFORMANCE.md describes.
    fn default() -> Self {
        Self {
            mode: BindMode::Auto,
            multi_buffer: false,
            need_wakeup: true,
            tx_budget: 256,
            tx_kick: 1,
            busy_poll: 0,
        }
    }
}

impl Io {
    fn bind_flags(self) -> SocketAddrXdpFlags {
        let mut flags = match self.mode {
            BindMode::Auto => SocketAddrXdpFlags::empty(),
            BindMode::Copy => SocketAddrXdpFlags::XDP_COPY,
            BindMode::ZeroCopy => SocketAddrXdpFlags::XDP_ZEROCOPY,
        };
        flags.set(SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP, self.need_wakeup);
        flags.set(SocketAddrXdpFlags::XDP_USE_SG, self.multi_buffer);
        flags
    }
}

/// Reason why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The ring size is out of bounds, or not a power of two.
    #[error("ring size {got}: use a power of two between {} and {}", ring::SLOTS.start(), ring::SLOTS.end() / 2)]
    RingSize {
        /// Requested number of slots.
        got: u32,
    },
    /// The queue does not exist.
    #[error(
        "{interface} has {queues} queue(s), so there is no queue {queue}: use fewer workers, or \
         give it more queues (`ethtool -L {interface} combined N`; a veth pair has as many as it \
         was created with)"
    )]
    NoSuchQueue {
        /// The NIC.
        interface: String,
        /// Requested queue.
        queue: u32,
        /// Number of queues of the NIC.
        queues: u32,
    },
    /// The UMEM has served its maximum of sockets.
    #[error("{interface} queue {queue}: this UMEM has already served 127 sockets; create another")]
    TooManyQueues {
        /// The NIC.
        interface: String,
        /// The queue.
        queue: u32,
    },
    /// Missing privileges.
    #[error(
        "{interface} queue {queue}: {step} refused ({source}): run as root, or with CAP_NET_RAW, \
         CAP_NET_ADMIN and CAP_BPF, and with CAP_IPC_LOCK or a large enough RLIMIT_MEMLOCK"
    )]
    NotPermitted {
        /// The NIC.
        interface: String,
        /// The queue.
        queue: u32,
        /// The system call or option.
        step: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The kernel lacks AF_XDP.
    #[error(
        "this kernel has no AF_XDP sockets: use one that is built with CONFIG_XDP_SOCKETS=y \
         (Debian's are, from version 11 on)"
    )]
    NoAfXdp,
    /// Another process uses the queue.
    #[error(
        "{interface} queue {queue}: bind refused (EBUSY) for 3 s: another process has an AF_XDP \
         socket there; find it with `ss --xdp --processes` and stop it, or configure another NIC"
    )]
    Busy {
        /// The NIC.
        interface: String,
        /// The queue.
        queue: u32,
    },
    /// The driver lacks zero copy.
    #[error(
        "{interface} queue {queue}: bind(XDP_ZEROCOPY) refused (EOPNOTSUPP): driver {driver} has \
         no zero copy; set mode = \"copy\" for this NIC"
    )]
    NoZeroCopy {
        /// The NIC.
        interface: String,
        /// The queue.
        queue: u32,
        /// The NIC's driver.
        driver: String,
    },
    /// The kernel, or the driver's zero copy, lacks support for packets of several frames.
    #[error(
        "{interface} queue {queue}: bind(XDP_USE_SG) refused ({source}): packets longer than a frame \
         need kernel 6.6 or newer and, for zero copy, a driver that can do it (driver {driver}); \
         without, the largest MTU is {LARGEST_MTU}, with frames of 4096 bytes"
    )]
    NoMultiBuffer {
        /// The NIC.
        interface: String,
        /// The queue.
        queue: u32,
        /// The NIC's driver.
        driver: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Any other refusal of the kernel.
    #[error("{interface} queue {queue}: {step} refused: {source}; {hint}")]
    Refused {
        /// The NIC.
        interface: String,
        /// The queue.
        queue: u32,
        /// The system call or option.
        step: &'static str,
        /// The kernel's reason.
        source: io::Error,
        /// Suggested remedy.
        hint: &'static str,
    },
    /// The kernel's ring layout exceeds its own mapping.
    #[error("{interface} queue {queue}: the kernel's ring layout is not one that holdfast knows")]
    RingLayout {
        /// The NIC.
        interface: String,
        /// The queue.
        queue: u32,
    },
}

/// Counters of one socket since it was opened (`struct xdp_statistics`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SocketStatistics {
    /// Packets dropped before the RX ring, for example because they exceed a frame.
    pub rx_dropped: u64,
    /// Entries of the fill ring that the kernel rejected.
    pub rx_invalid: u64,
    /// Entries of the TX ring that the kernel rejected.
    pub tx_invalid: u64,
    /// Packets dropped because the RX ring was full.
    pub rx_ring_full: u64,
    /// Number of times that the kernel found the fill ring empty.
    pub rx_fill_empty: u64,
    /// Number of times that the kernel found the TX ring empty.
    pub tx_ring_empty: u64,
}

/// The process's halves of the four rings.
pub(super) struct Rings {
    pub rx: Consumer<Descriptor>,
    pub tx: Producer<Descriptor>,
    pub fill: Producer<u64>,
    pub completion: Consumer<u64>,
}

/// A bound AF_XDP socket. Closed when dropped; the kernel then releases its frames.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    zero_copy: bool,
}

/// An attempt to open a socket; names the NIC and queue in every error.
struct Opening<'a> {
    nic: &'a Nic,
    queue: u32,
    ring: u32,
    io: Io,
}

impl Socket {
    /// Opens a socket on `queue` of `nic`: RX and TX rings with `ring` slots, fill and completion
    /// rings with twice as many, so that no completion waits for a free slot.
    ///
    /// Blocks for up to 3 s while the queue is busy.
    pub(super) fn open(
        umem: &Umem,
        nic: &Nic,
        queue: u32,
        ring: u32,
        io: Io,
    ) -> Result<(Self, Rings), SocketError> {
        let opening = Opening { nic, queue, ring, io };
        opening.check()?;
        let fd = match socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None)
        {
            Err(Errno::AFNOSUPPORT) => return Err(SocketError::NoAfXdp),
            result => result.map_err(|error| opening.error("socket(AF_XDP)", error))?,
        };
        opening.set_up(fd.as_fd(), umem)?;
        let rings = opening.map_rings(fd.as_fd())?;
        opening.bind(fd.as_fd())?;
        opening.tune(fd.as_fd())?;
        let zero_copy = opening.is_zero_copy(fd.as_fd())?;
        Ok((Self { fd, zero_copy }, rings))
    }

    /// Maps the rings of a socket that another process has opened on `queue` of `nic`.
    pub(super) fn adopt(
        nic: &Nic,
        queue: u32,
        ring: u32,
        io: Io,
        fd: OwnedFd,
    ) -> Result<(Self, Rings), SocketError> {
        let opening = Opening { nic, queue, ring, io };
        opening.check()?;
        let rings = opening.map_rings(fd.as_fd())?;
        let zero_copy = opening.is_zero_copy(fd.as_fd())?;
        Ok((Self { fd, zero_copy }, rings))
    }

    /// Whether the NIC accesses packet memory directly.
    pub(super) fn zero_copy(&self) -> bool {
        self.zero_copy
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Makes the kernel process the TX ring. The result is ignored, as packets that the kernel
    /// cannot send now stay in the ring.
    #[inline]
    pub(super) fn wake_transmit(&self) {
        let _ = send(&self.fd, &[], SendFlags::DONTWAIT);
    }

    /// Makes the kernel process the fill ring.
    #[inline]
    pub(super) fn wake_receive(&self) {
        let nothing: &mut [u8] = &mut [];
        let _ = recv(&self.fd, nothing, RecvFlags::DONTWAIT);
    }

    /// Returns the kernel's counters of this socket.
    pub(super) fn statistics(&self) -> io::Result<SocketStatistics> {
        statistics(self.fd.as_fd())
    }

    /// Returns a view of the socket for another thread.
    pub(super) fn monitor(&self) -> io::Result<Monitor> {
        Ok(Monitor(self.fd.try_clone()?))
    }
}

/// A view of a socket for a thread other than the worker that owns the socket. The kernel keeps the
/// socket until both are dropped.
#[derive(Debug)]
pub struct Monitor(OwnedFd);

impl Monitor {
    /// Returns the kernel's counters of the socket.
    ///
    /// # Errors
    /// The error of getsockopt(2); none is expected.
    pub fn statistics(&self) -> io::Result<SocketStatistics> {
        statistics(self.0.as_fd())
    }
}

fn statistics(socket: BorrowedFd<'_>) -> io::Result<SocketStatistics> {
    let raw = sockopt::xdp_statistics(socket)?;
    Ok(SocketStatistics {
        rx_dropped: raw.rx_dropped,
        rx_invalid: raw.rx_invalid_descs,
        tx_invalid: raw.tx_invalid_descs,
        rx_ring_full: raw.rx_ring_full.unwrap_or_default(),
        rx_fill_empty: raw.rx_fill_ring_empty_descs.unwrap_or_default(),
        tx_ring_empty: raw.tx_ring_empty_descs.unwrap_or_default(),
    })
}

impl Opening<'_> {
    fn check(&self) -> Result<(), SocketError> {
        check_ring_size(self.ring)?;
        if self.queue >= self.nic.rx_queues() {
            return Err(SocketError::NoSuchQueue {
                interface: self.nic.name().to_owned(),
                queue: self.queue,
                queues: self.nic.rx_queues(),
            });
        }
        Ok(())
    }

    /// Registers the memory and requests the rings.
    fn set_up(&self, socket: BorrowedFd<'_>, umem: &Umem) -> Result<(), SocketError> {
        let memory = umem.memory();
        let registration = XdpUmemReg {
            addr: memory.start().as_ptr().addr() as u64,
            len: memory.len() as u64,
            chunk_size: memory.chunk_size(),
            headroom: 0,
            flags: XdpUmemRegFlags::empty(),
            tx_metadata_len: 0,
        };
        let (slots, twice) = (self.ring, self.ring * 2);
        let refused = |step| move |error| self.error(step, error);
        sockopt::set_xdp_umem_reg(socket, registration).map_err(refused("XDP_UMEM_REG"))?;
        sockopt::set_xdp_umem_fill_ring_size(socket, twice)
            .map_err(refused("XDP_UMEM_FILL_RING"))?;
        sockopt::set_xdp_umem_completion_ring_size(socket, twice)
            .map_err(refused("XDP_UMEM_COMPLETION_RING"))?;
        sockopt::set_xdp_rx_ring_size(socket, slots).map_err(refused("XDP_RX_RING"))?;
        sockopt::set_xdp_tx_ring_size(socket, slots).map_err(refused("XDP_TX_RING"))
    }

    fn map_rings(&self, socket: BorrowedFd<'_>) -> Result<Rings, SocketError> {
        let offsets = sockopt::xdp_mmap_offsets(socket)
            .map_err(|error| self.error("XDP_MMAP_OFFSETS", error))?;
        let layout =
            || SocketError::RingLayout { interface: self.nic.name().to_owned(), queue: self.queue };
        let region = |ring: &ring::Offsets, slots: u32, slot: usize, page: u64| {
            let header = usize::try_from(ring.desc).map_err(|_| layout())?;
            let len = (slots as usize * slot).checked_add(header).ok_or_else(layout)?;
            Region::shared(socket, len, page).map_err(|error| self.error("mmap of a ring", error))
        };
        let (packet, address) = (size_of::<Descriptor>(), size_of::<u64>());
        let (slots, twice) = (self.ring, self.ring * 2);
        let rx = region(&offsets.rx, slots, packet, XDP_PGOFF_RX_RING)?;
        let tx = region(&offsets.tx, slots, packet, XDP_PGOFF_TX_RING)?;
        let fill = region(&offsets.fr, twice, address, XDP_UMEM_PGOFF_FILL_RING)?;
        let completion = region(&offsets.cr, twice, address, XDP_UMEM_PGOFF_COMPLETION_RING)?;
        // SAFETY: the kernel laid out the RX ring of this socket at these offsets, with the
        // requested slots; its read side is taken only here.
        let rx = unsafe { Consumer::kernel(rx, &offsets.rx, slots) };
        // SAFETY: likewise the write side of the TX ring.
        let tx = unsafe { Producer::kernel(tx, &offsets.tx, slots) };
        // SAFETY: likewise the write side of the fill ring.
        let fill = unsafe { Producer::kernel(fill, &offsets.fr, twice) };
        // SAFETY: likewise the read side of the completion ring.
        let completion = unsafe { Consumer::kernel(completion, &offsets.cr, twice) };
        Ok(Rings {
            rx: rx.ok_or_else(layout)?,
            tx: tx.ok_or_else(layout)?,
            fill: fill.ok_or_else(layout)?,
            completion: completion.ok_or_else(layout)?,
        })
    }

    fn is_zero_copy(&self, socket: BorrowedFd<'_>) -> Result<bool, SocketError> {
        let options = sockopt::xdp_options(socket);
        let options = options.map_err(|error| self.error("XDP_OPTIONS", error))?;
        Ok(options.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY))
    }

    /// Sets the options that a bound socket accepts.
    fn tune(&self, socket: BorrowedFd<'_>) -> Result<(), SocketError> {
        let budget = self.io.tx_budget.min(self.ring).max(LEAST_TX_BUDGET);
        // An older kernel does not know the option (ENOPROTOOPT), and a kernel with a ring of fewer
        // slots refuses it (EACCES): it then sends 32 per wake-up.
        let _ = set_option(socket, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, budget.cast_signed());
        if self.io.busy_poll == 0 {
            return Ok(());
        }
        for (name, step, value) in [
            (libc::SO_PREFER_BUSY_POLL, "SO_PREFER_BUSY_POLL", 1),
            (libc::SO_BUSY_POLL, "SO_BUSY_POLL", BUSY_POLL_US),
            (libc::SO_BUSY_POLL_BUDGET, "SO_BUSY_POLL_BUDGET", c_int::from(self.io.busy_poll)),
        ] {
            set_option(socket, libc::SOL_SOCKET, name, value)
                .map_err(|error| self.error(step, error))?;
        }
        Ok(())
    }

    fn bind(&self, socket: BorrowedFd<'_>) -> Result<(), SocketError> {
        let address = SocketAddrXdp::new(self.io.bind_flags(), self.nic.index(), self.queue);
        let mut waits = BIND_WAITS_MS.into_iter();
        loop {
            let Err(error) = bind(socket, &address) else { return Ok(()) };
            let wait = waits.next().filter(|_| error == Errno::BUSY);
            let Some(wait_ms) = wait else { return Err(self.bind_error(error.into())) };
            std::thread::sleep(Duration::from_millis(wait_ms));
        }
    }

    fn bind_error(&self, error: io::Error) -> SocketError {
        let (interface, queue) = (self.nic.name().to_owned(), self.queue);
        match error.raw_os_error() {
            Some(libc::EBUSY) => SocketError::Busy { interface, queue },
            Some(libc::EINVAL | libc::EOPNOTSUPP) if self.io.multi_buffer => {
                let driver = self.nic.driver().to_owned();
                SocketError::NoMultiBuffer { interface, queue, driver, source: error }
            }
            Some(libc::EOPNOTSUPP) if self.io.mode == BindMode::ZeroCopy => {
                SocketError::NoZeroCopy { interface, queue, driver: self.nic.driver().to_owned() }
            }
            _ => self.error("bind", error),
        }
    }

    fn error(&self, step: &'static str, source: impl Into<io::Error>) -> SocketError {
        let source = source.into();
        let (interface, queue) = (self.nic.name().to_owned(), self.queue);
        let hint = match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                return SocketError::NotPermitted { interface, queue, step, source };
            }
            Some(libc::ENOBUFS) => {
                "raise RLIMIT_MEMLOCK (`LimitMEMLOCK=infinity` in the service) or add CAP_IPC_LOCK"
            }
            Some(libc::ENOMEM) => "free memory, or configure fewer frames and smaller rings",
            Some(libc::ENOPROTOOPT) => {
                "the kernel was built without it (CONFIG_NET_RX_BUSY_POLL): set busy_poll = 0"
            }
            Some(libc::ENODEV) => "has the NIC been removed or renamed?",
            Some(libc::ENETDOWN) => "set the NIC up (`ip link set dev NAME up`)",
            Some(libc::EINVAL) => {
                "is the MTU larger than a frame, or has the NIC fewer queues than before?"
            }
            _ => "see the kernel's log (`dmesg`)",
        };
        SocketError::Refused { interface, queue, step, source, hint }
    }
}

/// Checks that the kernel accepts a ring size, also when doubled.
pub(super) fn check_ring_size(ring: u32) -> Result<(), SocketError> {
    let fits = ring >= *ring::SLOTS.start() && ring <= ring::SLOTS.end() / 2;
    if fits && ring.is_power_of_two() { Ok(()) } else { Err(SocketError::RingSize { got: ring }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opening(nic: &Nic) -> Opening<'_> {
        let io = Io { mode: BindMode::ZeroCopy, ..Io::default() };
        Opening { nic, queue: 3, ring: 64, io }
    }

    #[test]
    fn every_refusal_says_where_why_and_what_to_do() {
        let nic = Nic::for_tests("eth2", "veth", 4);
        let io = Io { mode: BindMode::ZeroCopy, multi_buffer: true, ..Io::default() };
        for errno in [libc::EINVAL, libc::EOPNOTSUPP] {
            let opening = Opening { io, ..opening(&nic) };
            let error = opening.bind_error(io::Error::from_raw_os_error(errno)).to_string();
            assert!(
                error.contains("kernel 6.6") && error.contains("largest MTU is 3818"),
                "{error}"
            );
        }
        for (errno, parts) in [
            (libc::EBUSY, ["eth2 queue 3", "another process", "ss --xdp"]),
            (libc::EOPNOTSUPP, ["eth2 queue 3", "driver veth has", "set mode = \"copy\""]),
            (libc::EPERM, ["eth2 queue 3", "CAP_NET_ADMIN", "run as root"]),
            (libc::ENETDOWN, ["eth2 queue 3", "bind refused", "ip link set"]),
            (libc::ENOBUFS, ["eth2 queue 3", "bind refused", "RLIMIT_MEMLOCK"]),
            (libc::ENOPROTOOPT, ["eth2 queue 3", "bind refused", "busy_poll = 0"]),
        ] {
            let error = opening(&nic).bind_error(io::Error::from_raw_os_error(errno)).to_string();
            for part in parts {
                assert!(error.contains(part), "{part:?} missing from {error:?}");
            }
        }
    }

    #[test]
    fn impossible_requests_are_refused_before_the_kernel_sees_them() {
        let nic = Nic::for_tests("eth2", "veth", 3);
        let error = opening(&nic).check().err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("has 3 queue(s), so there is no queue 3"), "{error}");
        for (ring, good) in [(0, false), (1, false), (2, true), (3, false), (4096, true)] {
            assert_eq!(check_ring_size(ring).is_ok(), good, "{ring}");
        }
        assert!(check_ring_size(1 << 20).is_err(), "twice as many slots would be too many");
    }

    #[test]
    fn settings_become_the_kernels_flags() {
        // From include/uapi/linux/if_xdp.h.
        const XDP_COPY: u16 = 1 << 1;
        const XDP_ZEROCOPY: u16 = 1 << 2;
        const XDP_USE_NEED_WAKEUP: u16 = 1 << 3;
        const XDP_USE_SG: u16 = 1 << 4;
        for (mode, multi_buffer, need_wakeup, flags) in [
            (BindMode::Auto, false, true, XDP_USE_NEED_WAKEUP),
            (BindMode::Auto, true, false, XDP_USE_SG),
            (BindMode::Copy, true, true, XDP_USE_NEED_WAKEUP | XDP_COPY | XDP_USE_SG),
            (BindMode::ZeroCopy, false, false, XDP_ZEROCOPY),
        ] {
            let io = Io { mode, multi_buffer, need_wakeup, ..Io::default() };
            assert_eq!(io.bind_flags().bits(), flags, "{io:?}");
        }
    }

    #[test]
    fn the_waits_for_a_busy_queue_sum_up_to_3_s() {
        assert!((2_900..=3_100).contains(&BIND_WAITS_MS.iter().sum::<u64>()));
    }
}
