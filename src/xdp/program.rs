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

mod access;
pub(super) mod error;
mod guard;
mod rules;

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use aya::Pod;
use aya::maps::{Array, MapError, PerCpuArray, XskMap};
use aya::programs::{ProgramFd, ProgramInfo, loaded_programs};

use super::cpu;
use super::netlink::{NetlinkError, Rtnetlink};
use super::nic::Nic;
use super::object::{self, Object, Program};
use super::queue::XskQueue;

use crate::net::VipId;
use error::{is_permission, load_error, map_error, with_causes};
use guard::{Guard, guarded};
use rules::Rules;

pub use crate::net::SteerRules;
pub use access::AccessMap;
pub use error::ProgramError;
pub use guard::{GUARD_NAME, LINGER};

pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer.bpf.o"));

/// Name of the program, in the object and in the kernel (which stores 15 bytes of it). It
/// identifies the program of a killed process.
pub const PROGRAM_NAME: &str = "holdfast_steer";

// Flags of include/uapi/linux/if_link.h.
const XDP_FLAGS_UPDATE_IF_NOEXIST: u32 = 1;
const XDP_FLAGS_SKB_MODE: u32 = 2;
const XDP_FLAGS_DRV_MODE: u32 = 4;
const XDP_FLAGS_REPLACE: u32 = 16;

/// Verdict of the guard: drop; include/uapi/linux/pkt_cls.h.
const TC_ACT_SHOT: u32 = 2;

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

    /// Returns the keyword of `ip link` that removes such a program.
    const fn keyword(self) -> &'static str {
        match self {
            Self::Native => "xdpdrv",
            Self::Generic => "xdpgeneric",
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
    /// Packets that should have been redirected, and were dropped by the guard.
    pub guarded: u64,
    /// Packets for a VIP that were dropped because of the lists.
    pub dropped: AccessDrops,
}

/// Packets for a VIP that were dropped because of the lists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AccessDrops {
    /// Packets from sources in a deny list.
    pub denied: u64,
    /// Packets from sources that an allow list lacks.
    pub not_allowed: u64,
    /// Packets above the rate of their source.
    pub over_rate: u64,
}

/// The program of one NIC. Removed from the NIC when dropped, but not when the process is killed.
pub struct Steering {
    interface: String,
    index: u32,
    /// Socket in the NIC's network namespace, independent of the thread that drops the program.
    netlink: Rtnetlink,
    object: Object,
    program: Program,
    wanted: AttachMode,
    attached: Option<Attached>,
    fallback_reason: Option<String>,
    loaded: Rules,
    guard: Option<Guard>,
    /// Program of a killed process, found by [`prepare`](Self::prepare), before privileges are dropped.
    leftover: Option<Leftover>,
}

/// The program of a killed process on the NIC.
struct Leftover {
    id: u32,
    mode: Attached,
    /// The program; `None` without CAP_SYS_ADMIN, which opens programs of other processes.
    program: Option<ProgramFd>,
}

impl Leftover {
    /// Flags to replace it; without the program itself any program is replaced.
    fn flags(&self) -> u32 {
        if self.program.is_some() { XDP_FLAGS_REPLACE } else { 0 }
    }

    fn fd(&self) -> Option<RawFd> {
        self.program.as_ref().map(|program| program.as_fd().as_raw_fd())
    }
}

impl Steering {
    /// Loads a program and its maps for `nic`, to be attached by [`attach`](Self::attach) once
    /// sockets and rules are set. Changes nothing on the NIC, and looks at nothing there.
    ///
    /// # Errors
    /// [`ProgramError`]: missing privileges, or a kernel that rejects the program.
    pub fn load(nic: &Nic, mode: AttachMode) -> Result<Self, ProgramError> {
        let interface = nic.name().to_owned();
        let netlink = Rtnetlink::open().map_err(|error| query_error(&interface, &error))?;
        let object = Object::create(OBJECT).map_err(|error| load_error(&interface, error))?;
        let program = object.load(PROGRAM_NAME, object::XDP);
        let program = program.map_err(|error| load_error(&interface, error.into()))?;
        let mut steering = Self {
            interface,
            index: nic.index(),
            netlink,
            object,
            program,
            wanted: mode,
            attached: None,
            fallback_reason: None,
            loaded: Rules::default(),
            guard: None,
            leftover: None,
        };
        steering.set_mac(nic.mac())?;
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
        let result = self
            .object
            .map_mut("xsks")
            .and_then(XskMap::try_from)
            .and_then(|mut sockets| sockets.set(queue, socket.as_raw_fd(), 0));
        result.map_err(map_error(interface, "set a socket", "xsks"))
    }

    /// Sets the MAC of the NIC: the program leaves frames to other hosts to the kernel.
    ///
    /// # Errors
    /// [`ProgramError::Map`]; none is expected.
    pub fn set_mac(&mut self, [a, b, c, d, e, f]: [u8; 6]) -> Result<(), ProgramError> {
        set_only(&mut self.object, "nic_mac", [a, b, c, d, e, f, 0, 0]).map_err(map_error(
            &self.interface,
            "set the MAC",
            "nic_mac",
        ))
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
        self.loaded.change_to(wanted, &mut self.object, &self.interface)
    }

    /// Attaches the program to a NIC without one, before there are rules. Returns the XDP mode of
    /// the NIC, or the mode after [`attach`](Self::attach) has replaced the program of a killed
    /// process. Must be called before sockets are opened.
    ///
    /// # Errors
    /// See [`attach`](Self::attach); also another application's program on the NIC.
    pub fn prepare(&mut self) -> Result<Attached, ProgramError> {
        self.leftover = self.find_leftover()?;
        match (&self.leftover, self.wanted) {
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
        let still_there = self.attached_now()?.map(|(id, _)| id);
        let mode = match self.leftover.take().filter(|old| still_there == Some(old.id)) {
            Some(old) if self.wanted.accepts(old.mode) => self.replace(&old)?,
            Some(old) => {
                // The kernel cannot change the mode in one step.
                self.set(NONE, old.mode.flag() | old.flags(), old.fd())
                    .map_err(|error| self.attach_error(old.mode.as_str(), &error))?;
                self.attach_first()?
            }
            None => self.attach_first()?,
        };
        self.attached = Some(mode);
        Ok(mode)
    }

    /// Attaches the guard to the NIC, in the place of the guard of an earlier process. It applies
    /// the rules of the program from then on, whether the program is attached or not, and for
    /// [`LINGER`] after the end of this value.
    ///
    /// # Errors
    /// [`ProgramError::Guard`]; there is no guard then.
    pub fn guard(&mut self) -> Result<(), ProgramError> {
        self.load_guard()?;
        let installed = self.guard_interface(self.index);
        if installed.is_err() {
            self.guard = None;
        }
        installed
    }

    /// Attaches the guard, if there is one, to an interface: to the NIC again, or to the interface
    /// that has taken the NIC's name.
    ///
    /// # Errors
    /// [`ProgramError::Guard`].
    pub fn guard_interface(&self, index: u32) -> Result<(), ProgramError> {
        let install = |guard: &Guard| guard.install(&self.netlink, index, self.program.id());
        let installed = self.guard.as_ref().map(install);
        installed.unwrap_or(Ok(())).map_err(|reason| self.guard_error(&reason))
    }

    fn load_guard(&mut self) -> Result<(), ProgramError> {
        if self.guard.is_none() {
            let loaded = Guard::load(&self.object);
            self.guard = Some(loaded.map_err(|error| self.guard_error(&with_causes(&error)))?);
        }
        Ok(())
    }

    /// Ends the effect of the guard after some time; the next start replaces it.
    ///
    /// # Errors
    /// [`ProgramError::Map`]; none is expected.
    pub fn end_guard(&mut self, after: Duration) -> Result<(), ProgramError> {
        let after = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        set_only(&mut self.object, "guard_end", cpu::monotonic_ns().saturating_add(after))
            .map_err(map_error(&self.interface, "set the end", "guard_end"))
    }

    /// Whether the guard is attached to the NIC, as [`guard`](Self::guard) left it; also true where
    /// there never was one.
    ///
    /// # Errors
    /// [`ProgramError::Guard`].
    pub fn is_guarded(&self) -> Result<bool, ProgramError> {
        let Some(guard) = &self.guard else { return Ok(true) };
        guard.is_installed(&self.netlink, self.index).map_err(|reason| self.guard_error(&reason))
    }

    /// Attaches the program again, in the same mode, after it was removed from the NIC. The sockets
    /// have stayed bound.
    ///
    /// # Errors
    /// [`ProgramError::Attach`], also if there is another program now.
    pub fn attach_again(&mut self) -> Result<(), ProgramError> {
        let Some(mode) = self.attached else { return Ok(()) };
        self.set_ours(mode, XDP_FLAGS_UPDATE_IF_NOEXIST, None)
            .map_err(|error| self.attach_error(mode.as_str(), &error))
    }

    /// Removes the program from the NIC, if it is still attached. Later calls do nothing.
    pub fn detach(&mut self) {
        if let Some(mode) = self.attached.take() {
            let flags = mode.flag() | XDP_FLAGS_REPLACE;
            // Fails when the NIC is gone or has another program now; nothing is left to do in
            // either case.
            let _ = self.set(NONE, flags, Some(self.program.fd()));
        }
    }

    /// Leaves program and guard on the NIC when this value is dropped, as after `kill -9`: another
    /// process has sockets and rules for its own, and replaces them.
    pub fn leave(&mut self) {
        self.attached = None;
        self.guard = None;
    }

    /// XDP mode of the attached program; `None` before it is attached.
    pub fn mode(&self) -> Option<Attached> {
        self.attached
    }

    /// The program's id, as in `bpftool prog`.
    pub fn id(&self) -> u32 {
        self.program.id()
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
            .object
            .map("counts")
            .and_then(PerCpuArray::<_, [u64; 8]>::try_from)
            .and_then(|counts| counts.get(&0, 0))
            .map_err(map_error(&self.interface, "read", "counts"))?;
        let mut sum = SteerCounters::default();
        for &[steered, returned, passed, no_socket, guarded, denied, not_allowed, over_rate] in
            per_cpu.iter()
        {
            sum.steered += steered;
            sum.returned += returned;
            sum.passed += passed;
            sum.no_socket += no_socket;
            sum.guarded += guarded;
            sum.dropped.denied += denied;
            sum.dropped.not_allowed += not_allowed;
            sum.dropped.over_rate += over_rate;
        }
        Ok(sum)
    }

    /// Returns the packets for a VIP that its lists and those of all VIPs have dropped since the
    /// program was loaded. Packets that may have been for several VIPs are not among them.
    ///
    /// # Errors
    /// [`ProgramError::Map`]; none is expected.
    pub fn access_drops(&self, vip: VipId) -> Result<AccessDrops, ProgramError> {
        let per_cpu = self
            .object
            .map("drop_counts")
            .and_then(PerCpuArray::<_, [u64; 3]>::try_from)
            .and_then(|counts| counts.get(&access::slot(vip), 0))
            .map_err(map_error(&self.interface, "read", "drop_counts"))?;
        let plus = |sum: AccessDrops, &[denied, not_allowed, over_rate]: &[u64; 3]| AccessDrops {
            denied: sum.denied + denied,
            not_allowed: sum.not_allowed + not_allowed,
            over_rate: sum.over_rate + over_rate,
        };
        Ok(per_cpu.iter().fold(AccessDrops::default(), plus))
    }

    /// Takes the map of the lists, for another thread to change.
    ///
    /// # Errors
    /// [`ProgramError::Map`], if it was taken before.
    pub fn take_lists(&mut self) -> Result<AccessMap, ProgramError> {
        let map = self.object.take_map("access");
        map.and_then(|map| AccessMap::new(&self.interface, map)).map_err(map_error(
            &self.interface,
            "find the map",
            "access",
        ))
    }

    /// Runs the program on an artificial packet of at least 14 bytes (`BPF_PROG_TEST_RUN`);
    /// [`counters`](Self::counters) then show its decision. For the test of [`super::steer`].
    ///
    /// # Errors
    /// The kernel's error.
    pub fn try_packet(&mut self, packet: &[u8]) -> io::Result<()> {
        self.program.run(packet, 1).map(drop)
    }

    /// Runs the program on an artificial packet so many times; returns the mean time of a run. For
    /// the bench of the lists.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn time_packet(&mut self, packet: &[u8], repeat: u32) -> io::Result<Duration> {
        self.program.run(packet, repeat).map(|(_, mean)| mean)
    }

    /// Runs the guard on an artificial packet, as [`try_packet`](Self::try_packet) does, but on the
    /// loopback; returns whether the guard drops it.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn try_guard(&mut self, packet: &[u8]) -> io::Result<bool> {
        self.load_guard().map_err(io::Error::other)?;
        let guard = self.guard.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok(guard.verdict(packet)? == TC_ACT_SHOT)
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
        self.set_ours(old.mode, old.flags(), old.fd())
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
        expected: Option<RawFd>,
    ) -> Result<(), NetlinkError> {
        self.set(self.program.fd(), mode.flag() | flags, expected)
    }

    fn set(&self, program: RawFd, flags: u32, expected: Option<RawFd>) -> Result<(), NetlinkError> {
        self.netlink.set_xdp(self.index, program, flags, expected)
    }

    /// Returns the program of a killed process on the NIC; fails if it is another application's.
    fn find_leftover(&self) -> Result<Option<Leftover>, ProgramError> {
        let Some((id, mode)) = self.attached_now()? else { return Ok(None) };
        let info = find_program(id);
        let ours = info.as_ref().filter(|info| info.name() == PROGRAM_NAME.as_bytes());
        let program = ours.and_then(|info| info.fd().ok());
        // Without a guard, or with that of another program, it is not known to be holdfast's.
        let is_guarded = || matches!(guarded(&self.netlink, self.index), Ok(Some(of)) if of == id);
        if program.is_some() || (info.is_none() && is_guarded()) {
            return Ok(Some(Leftover { id, mode, program }));
        }
        Err(self.foreign(id, info.as_ref(), mode.as_str(), mode.keyword()))
    }

    /// Returns the id and mode of the program on the NIC; fails if it runs on the NIC itself.
    fn attached_now(&self) -> Result<Option<(u32, Attached)>, ProgramError> {
        let link = self
            .netlink
            .link_by_index(self.index)
            .map_err(|error| query_error(&self.interface, &error))?
            .ok_or_else(|| query_error(&self.interface, &"it has been removed"))?;
        if let Some(id) = link.xdp.offloaded {
            return Err(self.foreign(id, find_program(id).as_ref(), "offloaded", "xdpoffload"));
        }
        Ok(match (link.xdp.native, link.xdp.generic) {
            (Some(id), _) => Some((id, Attached::Native)),
            (None, Some(id)) => Some((id, Attached::Generic)),
            (None, None) => None,
        })
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

    fn guard_error(&self, reason: &impl ToString) -> ProgramError {
        ProgramError::Guard { interface: self.interface.clone(), reason: reason.to_string() }
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
        if self.guard.is_some() {
            // Fails in no known case; the guard would then stay as it does after `kill -9`.
            let _ = self.end_guard(LINGER);
        }
    }
}

/// Sets the only element of an array map.
fn set_only<T: Pod>(object: &mut Object, name: &str, value: T) -> Result<(), MapError> {
    object.map_mut(name).and_then(Array::try_from).and_then(|mut array| array.set(0, value, 0))
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
