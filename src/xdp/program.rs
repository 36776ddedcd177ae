//! The XDP program of a NIC: loading, sockets and rules, attachment and removal.
//!
//! ```text
//!  load --> prepare --> set_socket, sync --> attach ... sync, counters ... detach
//!                                              |
//!                                              +-- killed: the program stays without
//!                                                  sockets, and drops packets for VIPs
//!                                                  until the next start replaces it
//! ```
//!
//! Sockets are opened under an attached program: only then is it certain whether XDP is native or
//! generic, and a socket bound in zero copy under generic XDP sends nothing. On a NIC without a
//! program, [`prepare`](Steering::prepare) attaches ours without rules, which leaves every packet
//! to the kernel, as before. The program of a killed process stays until ours has rules and
//! sockets, and is replaced in one step: no packet for a VIP ever reaches the kernel, where a RST
//! would end the connections that a restart preserves (architecture invariant 8). For the same
//! reason the program is attached through rtnetlink and not by a bpf_link, which would end with the
//! process. `steer.bpf.c` describes the program's decisions.

pub(super) mod error;
mod rules;

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use aya::maps::{PerCpuArray, XskMap};
use aya::programs::{ProgramFd, ProgramInfo, TestRun as _, TestRunOptions, Xdp, loaded_programs};
use aya::{Ebpf, EbpfLoader};

use super::netlink::{NetlinkError, Rtnetlink};
use super::nic::Nic;
use super::queue::XskQueue;

use error::{is_permission, load_error, map, map_error, no_map};
use rules::Rules;

pub use crate::net::SteerRules;
pub use error::ProgramError;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer.bpf.o"));

/// Name of the program, in the object and in the kernel (which stores 15 bytes of it). It
/// identifies the program of a killed process.
pub const PROGRAM_NAME: &str = "holdfast_steer";

// Flags of include/uapi/linux/if_link.h.
const XDP_FLAGS_UPDATE_IF_NOEXIST: u32 = 1;
const XDP_FLAGS_SKB_MODE: u32 = 2;
const XDP_FLAGS_DRV_MODE: u32 = 4;
const XDP_FLAGS_REPLACE: u32 = 16;

/// Absence of a program, in place of a descriptor.
const NONE: RawFd = -1;

/// Requested XDP mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver if supported, else in the kernel's generic receive path.
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the kernel's generic receive path, behind the allocation of a packet buffer.
    Generic,
}

/// XDP mode of an attached program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attached {
    /// In the driver.
    Native,
    /// In the kernel's generic receive path.
    Generic,
}

impl Attached {
    /// Returns `"native"` or `"generic"`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    const fn flag(self) -> u32 {
        match self {
            Self::Native => XDP_FLAGS_DRV_MODE,
            Self::Generic => XDP_FLAGS_SKB_MODE,
        }
    }
}

impl AttachMode {
    fn accepts(self, attached: Attached) -> bool {
        match self {
            Self::Auto => true,
            Self::Native => attached == Attached::Native,
            Self::Generic => attached == Attached::Generic,
        }
    }
}

/// Decisions of the program since it was loaded, in packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SteerCounters {
    /// Packets for a VIP.
    pub steered: u64,
    /// Packets from a NAT backend.
    pub returned: u64,
    /// Packets left to the kernel.
    pub passed: u64,
    /// Packets of `steered` and `returned` that were dropped, because the queue had no socket.
    pub no_socket: u64,
}

/// The program of one NIC. Removed from the NIC when dropped, but not when the process is killed.
pub struct Steering {
    interface: String,
    index: u32,
    /// Socket in the NIC's network namespace, independent of the thread that drops the program.
    netlink: Rtnetlink,
    ebpf: Ebpf,
    program: ProgramFd,
    /// The program's id, as in `bpftool prog`.
    id: u32,
    wanted: AttachMode,
    attached: Option<Attached>,
    fallback_reason: Option<String>,
    loaded: Rules,
}

/// The program of a killed process on the NIC.
struct Leftover {
    mode: Attached,
    program: ProgramFd,
}

impl Steering {
    /// Loads a program and its maps for `nic`, to be attached by [`attach`](Self::attach) once
    /// sockets and rules are set.
    ///
    /// # Errors
    /// [`ProgramError`]: missing privileges, a kernel that rejects the program, or another
    /// application's program on the NIC.
    pub fn load(nic: &Nic, mode: AttachMode) -> Result<Self, ProgramError> {
        let interface = nic.name().to_owned();
        let netlink = Rtnetlink::open().map_err(|error| query_error(&interface, &error))?;
        let mut ebpf = EbpfLoader::new()
            .override_global("nic_mac", &nic.mac(), true)
            .load(OBJECT)
            .map_err(|error| load_error(&interface, error))?;
        let (program, id) =
            load_program(&mut ebpf).map_err(|error| load_error(&interface, error.into()))?;
        let steering = Self {
            interface,
            index: nic.index(),
            netlink,
            ebpf,
            program,
            id,
            wanted: mode,
            attached: None,
            fallback_reason: None,
            loaded: Rules::default(),
        };
        steering.leftover()?;
        Ok(steering)
    }

    /// Redirects packets of `queue` to `xsk`, which must have been opened on that queue.
    ///
    /// # Errors
    /// [`ProgramError::NoSocket`] for a fake queue, [`ProgramError::Map`] from queue 256 on.
    pub fn set_socket(&mut self, queue: u32, xsk: &XskQueue) -> Result<(), ProgramError> {
        let interface = &self.interface;
        let no_socket = || ProgramError::NoSocket { interface: interface.clone(), queue };
        let socket = xsk.fd().ok_or_else(no_socket)?;
        let result = map(&mut self.ebpf, "xsks")
            .and_then(XskMap::try_from)
            .and_then(|mut sockets| sockets.set(queue, socket.as_raw_fd(), 0));
        result.map_err(map_error(interface, "set a socket", "xsks"))
    }

    /// Makes the maps hold `rules`: adds new entries first and then removes old ones, so that
    /// entries of both are never missing.
    ///
    /// # Errors
    /// [`ProgramError::TooManyRules`] before any change; [`ProgramError::Map`] if the kernel
    /// refuses an entry, with a part of the changes made (a later call makes the rest).
    pub fn sync(&mut self, rules: &SteerRules) -> Result<(), ProgramError> {
        let wanted = Rules::new(rules, &self.loaded);
        wanted.check()?;
        self.loaded.change_to(wanted, &mut self.ebpf, &self.interface)
    }

    /// Attaches the program to a NIC without one, before there are rules. Returns the XDP mode of
    /// the NIC, or the mode after [`attach`](Self::attach) has replaced the program of a killed
    /// process. Must be called before sockets are opened.
    ///
    /// # Errors
    /// See [`attach`](Self::attach).
    pub fn prepare(&mut self) -> Result<Attached, ProgramError> {
        match (self.leftover()?, self.wanted) {
            (None, _) => {
                let mode = self.attach_first()?;
                self.attached = Some(mode);
                Ok(mode)
            }
            (Some(old), AttachMode::Auto) => Ok(old.mode),
            (Some(_), AttachMode::Native) => Ok(Attached::Native),
            (Some(_), AttachMode::Generic) => Ok(Attached::Generic),
        }
    }

    /// Attaches the program to the NIC, if [`prepare`](Self::prepare) has not done so. The program
    /// of a killed process is replaced, in one step if its mode is acceptable; [`AttachMode::Auto`]
    /// therefore keeps its mode.
    ///
    /// # Errors
    /// [`ProgramError`], with the driver's message if there is one.
    pub fn attach(&mut self) -> Result<Attached, ProgramError> {
        if let Some(mode) = self.attached {
            return Ok(mode);
        }
        let mode = match self.leftover()? {
            Some(old) if self.wanted.accepts(old.mode) => self.replace(&old)?,
            Some(old) => {
                // The kernel cannot change the mode in one step.
                let flags = old.mode.flag() | XDP_FLAGS_REPLACE;
                self.set(NONE, flags, Some(&old.program))
                    .map_err(|error| self.attach_error(old.mode.as_str(), &error))?;
                self.attach_first()?
            }
            None => self.attach_first()?,
        };
        self.attached = Some(mode);
        Ok(mode)
    }

    /// Removes the program from the NIC, if it is still attached. Later calls do nothing.
    pub fn detach(&mut self) {
        if let Some(mode) = self.attached.take() {
            let flags = mode.flag() | XDP_FLAGS_REPLACE;
            // Fails when the NIC is gone or has another program now; nothing is left to do in
            // either case.
            let _ = self.set(NONE, flags, Some(&self.program));
        }
    }

    /// XDP mode of the attached program; `None` before it is attached.
    pub fn mode(&self) -> Option<Attached> {
        self.attached
    }

    /// The program's id, as in `bpftool prog`.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Reason why [`AttachMode::Auto`] did not result in native mode, if so.
    pub fn fallback_reason(&self) -> Option<&str> {
        self.fallback_reason.as_deref()
    }

    /// Returns the program's counters, summed over all CPUs.
    ///
    /// # Errors
    /// [`ProgramError::Map`]; none is expected.
    pub fn counters(&self) -> Result<SteerCounters, ProgramError> {
        let per_cpu = self
            .ebpf
            .map("counts")
            .ok_or_else(|| no_map("counts"))
            .and_then(PerCpuArray::<_, [u64; 4]>::try_from)
            .and_then(|counts| counts.get(&0, 0))
            .map_err(map_error(&self.interface, "read", "counts"))?;
        let mut sum = SteerCounters::default();
        for &[steered, returned, passed, no_socket] in per_cpu.iter() {
            sum.steered += steered;
            sum.returned += returned;
            sum.passed += passed;
            sum.no_socket += no_socket;
        }
        Ok(sum)
    }

    /// Runs the program on an artificial packet of at least 14 bytes (`BPF_PROG_TEST_RUN`);
    /// [`counters`](Self::counters) then show its decision. For the test of [`super::steer`].
    ///
    /// # Errors
    /// The kernel's error.
    pub fn try_packet(&mut self, packet: &[u8]) -> io::Result<()> {
        let program = self.ebpf.program_mut(PROGRAM_NAME).ok_or(io::ErrorKind::NotFound)?;
        let program: &mut Xdp = program.try_into().map_err(io::Error::other)?;
        let options = TestRunOptions { data_in: Some(packet), ..TestRunOptions::default() };
        program.test_run(options).map(drop).map_err(io::Error::other)
    }

    /// Attaches to a NIC without a program.
    fn attach_first(&mut self) -> Result<Attached, ProgramError> {
        let attach = |mode: Attached| self.set_ours(mode, XDP_FLAGS_UPDATE_IF_NOEXIST, None);
        if self.wanted != AttachMode::Generic {
            match attach(Attached::Native) {
                Ok(()) => return Ok(Attached::Native),
                Err(error) if self.wanted == AttachMode::Native || is_permission(&error.source) => {
                    return Err(self.attach_error("native", &error));
                }
                Err(error) => self.fallback_reason = Some(error.to_string()),
            }
        }
        match self.set_ours(Attached::Generic, XDP_FLAGS_UPDATE_IF_NOEXIST, None) {
            Ok(()) => Ok(Attached::Generic),
            Err(error) => Err(self.attach_error("generic", &error)),
        }
    }

    /// Replaces the program of a killed process, without a gap.
    fn replace(&mut self, old: &Leftover) -> Result<Attached, ProgramError> {
        self.set_ours(old.mode, XDP_FLAGS_REPLACE, Some(&old.program))
            .map_err(|error| self.attach_error(old.mode.as_str(), &error))?;
        if self.wanted == AttachMode::Auto && old.mode == Attached::Generic {
            self.fallback_reason = Some(
                "the program that a killed process left behind was generic, and was replaced \
                 without a gap; stop holdfast cleanly before a start to have native mode tried"
                    .to_owned(),
            );
        }
        Ok(old.mode)
    }

    fn set_ours(
        &self,
        mode: Attached,
        flags: u32,
        expected: Option<&ProgramFd>,
    ) -> Result<(), NetlinkError> {
        self.set(self.program.as_fd().as_raw_fd(), mode.flag() | flags, expected)
    }

    fn set(
        &self,
        program: RawFd,
        flags: u32,
        expected: Option<&ProgramFd>,
    ) -> Result<(), NetlinkError> {
        let expected = expected.map(|program| program.as_fd().as_raw_fd());
        self.netlink.set_xdp(self.index, program, flags, expected)
    }

    /// Returns the program of a killed process on the NIC; fails if it is another application's.
    fn leftover(&self) -> Result<Option<Leftover>, ProgramError> {
        let link = self
            .netlink
            .link_by_index(self.index)
            .map_err(|error| query_error(&self.interface, &error))?
            .ok_or_else(|| query_error(&self.interface, &"it has been removed"))?;
        if let Some(id) = link.xdp.offloaded {
            return Err(self.foreign(id, find_program(id).as_ref(), "offloaded", "xdpoffload"));
        }
        let attached = match (link.xdp.native, link.xdp.generic) {
            (Some(id), _) => Some((id, Attached::Native, "xdpdrv")),
            (None, Some(id)) => Some((id, Attached::Generic, "xdpgeneric")),
            (None, None) => None,
        };
        let Some((id, mode, keyword)) = attached else { return Ok(None) };
        let info = find_program(id);
        let ours = info.as_ref().filter(|info| info.name() == PROGRAM_NAME.as_bytes());
        let Some(program) = ours.and_then(|info| info.fd().ok()) else {
            return Err(self.foreign(id, info.as_ref(), mode.as_str(), keyword));
        };
        Ok(Some(Leftover { mode, program }))
    }

    fn foreign(
        &self,
        id: u32,
        info: Option<&ProgramInfo>,
        mode: &'static str,
        keyword: &'static str,
    ) -> ProgramError {
        let name = info.and_then(ProgramInfo::name_as_str).filter(|name| !name.is_empty());
        let program = name.unwrap_or("without a name").to_owned();
        ProgramError::Foreign { interface: self.interface.clone(), program, id, mode, keyword }
    }

    fn attach_error(&self, mode: &'static str, error: &NetlinkError) -> ProgramError {
        let interface = self.interface.clone();
        if is_permission(&error.source) {
            let source = io::Error::from(error.source.kind());
            return ProgramError::NotPermitted { interface, step: "attaching the program", source };
        }
        let hint = match (mode, error.errno()) {
            (_, Some(libc::EBUSY | libc::EEXIST)) => {
                "another program was attached meanwhile; see `ip link` and `bpftool net`"
            }
            ("native", _) => "set the XDP mode of this NIC to \"generic\" or \"auto\"",
            _ => "see the kernel's log (`dmesg`)",
        };
        ProgramError::Attach { interface, mode, reason: error.to_string(), hint }
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        self.detach();
    }
}

/// Longest time for which signals may interrupt the verifier, which takes some milliseconds.
const LOAD_PATIENCE: Duration = Duration::from_secs(10);

/// Loads a program, and retries when a signal interrupts the verifier. That fails with `EAGAIN`
/// (`do_check` in kernel/bpf/verifier.c), independent of the program.
pub(super) fn load_in_spite_of_signals(
    program: &mut Xdp,
) -> Result<(), aya::programs::ProgramError> {
    use aya::programs::ProgramError::LoadError;
    let end = Instant::now() + LOAD_PATIENCE;
    loop {
        match program.load() {
            Err(LoadError { io_error, .. })
                if io_error.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {}
            loaded => return loaded,
        }
    }
}

/// Loads the steering program; returns its descriptor and id.
fn load_program(ebpf: &mut Ebpf) -> Result<(ProgramFd, u32), aya::programs::ProgramError> {
    let program = ebpf.program_mut(PROGRAM_NAME);
    let program = program.ok_or(aya::programs::ProgramError::UnexpectedProgramType)?;
    let program: &mut Xdp = program.try_into()?;
    load_in_spite_of_signals(program)?;
    let id = program.info()?.id();
    Ok((program.fd()?.try_clone()?, id))
}

/// Returns the loaded program with this id; `None` also when the kernel denies access.
fn find_program(id: u32) -> Option<ProgramInfo> {
    loaded_programs().filter_map(Result::ok).find(|program| program.id() == id)
}

fn query_error(interface: &str, reason: &impl ToString) -> ProgramError {
    ProgramError::Query { interface: interface.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_is_embedded_and_its_name_fits_the_kernels_15_bytes() {
        assert!(OBJECT.starts_with(b"\x7fELF"));
        assert!(PROGRAM_NAME.len() <= 15);
    }
}
