//! The object file of the programs: creates its maps, and loads its programs.
//!
//! aya reads the object and has the types of the maps. Its loader is not used: that parses the BTF of
//! the whole kernel (`/sys/kernel/btf/vmlinux`, 6 MiB, some 60 ms) for relocations that the object
//! does not have, and during a restart nothing is forwarded meanwhile.
//!
//! Source: bpf(2); include/uapi/linux/bpf.h, `union bpf_attr`; kernel/bpf/syscall.c.
#![allow(unsafe_code, reason = "bpf(2)")]

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

use aya::EbpfError;
use aya::maps::{Map, MapData, MapError};
use aya::programs::ProgramError;
use aya_obj::VerifierLog;
use aya_obj::btf::BtfFeatures;
use aya_obj::generated::{
    BPF_F_XDP_HAS_FRAGS, bpf_attach_type, bpf_cmd, bpf_func_info, bpf_insn, bpf_line_info,
    bpf_prog_type,
};

use super::load::load_in_spite_of_signals;
use super::program::error::no_map;

/// Size of the verifier's log in bytes, and the part of it that an error has: the end, with the
/// reason.
const LOG: usize = 1 << 20;
const LOG_END: usize = 4096;

/// BTF that the oldest supported kernel, 6.1, knows: everything.
const FEATURES: BtfFeatures = BtfFeatures::new(true, true, true, true, true, true, true, true);

/// The kind of a program.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    number: bpf_prog_type,
    flags: u32,
    /// `None`: the kernel needs none for this kind.
    attach: Option<bpf_attach_type>,
}

/// An XDP program that accepts packets of several frames.
pub(super) const XDP: Kind = Kind {
    number: bpf_prog_type::BPF_PROG_TYPE_XDP,
    flags: BPF_F_XDP_HAS_FRAGS,
    attach: Some(bpf_attach_type::BPF_XDP),
};

/// A tc program.
pub(super) const CLASSIFIER: Kind =
    Kind { number: bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, flags: 0, attach: None };

/// The maps of an object, and its programs before they are loaded.
pub(super) struct Object {
    maps: HashMap<String, Map>,
    /// Ids of the maps, as in `bpftool map`.
    ids: HashMap<String, u32>,
    /// The programs, which refer to the maps.
    code: aya_obj::Object,
    btf: OwnedFd,
}

impl Object {
    /// Reads an object file and creates its maps.
    ///
    /// # Errors
    /// The kernel's reason.
    pub(super) fn create(file: &[u8]) -> Result<Self, EbpfError> {
        let mut code = aya_obj::Object::parse(file)?;
        let btf = code.fixup_and_sanitize_btf(&FEATURES)?.ok_or(EbpfError::NoBTF)?.to_bytes();
        let btf = load_btf(&btf).map_err(MapError::IoError)?;
        let mut created = Vec::new();
        for (name, definition) in std::mem::take(&mut code.maps) {
            let data = MapData::create(definition.clone(), &name, Some(btf.as_fd()))?;
            created.push((name, definition, data));
        }
        let text = code.functions.keys().map(|&(section, _)| section).collect();
        let references = created.iter().map(|(name, definition, data)| {
            (name.as_str(), data.fd().as_fd().as_raw_fd(), definition)
        });
        code.relocate_maps(references, &text)?;
        code.relocate_calls(&text)?;
        let id = |(name, _, data): &(String, _, MapData)| Ok((name.clone(), data.info()?.id()));
        let ids = created.iter().map(id).collect::<Result<_, MapError>>()?;
        let map = |(name, _, data)| Ok((name, Map::from_map_data(data)?));
        let maps = created.into_iter().map(map).collect::<Result<_, MapError>>()?;
        Ok(Self { maps, ids, code, btf })
    }

    /// Returns the id of a map, as in `bpftool map`.
    pub(super) fn map_id(&self, name: &str) -> Result<u32, MapError> {
        self.ids.get(name).copied().ok_or_else(|| no_map(name))
    }

    /// Returns a map.
    pub(super) fn map(&self, name: &str) -> Result<&Map, MapError> {
        self.maps.get(name).ok_or_else(|| no_map(name))
    }

    /// Returns a map, to change it.
    pub(super) fn map_mut(&mut self, name: &str) -> Result<&mut Map, MapError> {
        self.maps.get_mut(name).ok_or_else(|| no_map(name))
    }

    /// Takes a map, once.
    pub(super) fn take_map(&mut self, name: &str) -> Result<Map, MapError> {
        self.maps.remove(name).ok_or_else(|| no_map(name))
    }

    /// Loads a program.
    ///
    /// # Errors
    /// The kernel's reason, with the end of the verifier's log.
    pub(super) fn load(&self, name: &str, kind: Kind) -> Result<Program, ProgramError> {
        let program = self.code.programs.get(name).ok_or(ProgramError::UnexpectedProgramType)?;
        let function = self.code.functions.get(&program.function_key());
        let function = function.ok_or(ProgramError::UnexpectedProgramType)?;
        let mut kernel_name = [0; 16];
        // The last byte stays zero, as the terminator.
        let room = kernel_name.iter_mut().take(15);
        room.zip(name.bytes()).for_each(|(place, byte)| *place = byte);
        let wanted = Wanted {
            kind,
            name: kernel_name,
            instructions: &function.instructions,
            functions: &function.func_info.func_info,
            lines: &function.line_info.line_info,
            license: &program.license,
            btf: self.btf.as_fd(),
        };
        let mut loaded = None;
        load_in_spite_of_signals(|| {
            loaded = Some(wanted.load(&mut []).map_err(|io_error| refused(&wanted, io_error))?);
            Ok(())
        })?;
        let fd = loaded.ok_or(ProgramError::NotLoaded)?;
        let id = id(fd.as_fd()).map_err(ProgramError::IOError)?;
        Ok(Program { fd, id })
    }
}

/// Returns the reason for the refusal of a program, with the end of the verifier's log, if the
/// verifier refuses it.
fn refused(wanted: &Wanted<'_>, io_error: io::Error) -> ProgramError {
    let mut log = Vec::new();
    // A signal has interrupted the verifier; it is asked again, without a log.
    if io_error.kind() != io::ErrorKind::WouldBlock {
        log.resize(LOG, 0);
        // Refused once more: the error is known, and the log is filled.
        let _ = wanted.load(&mut log);
        log.truncate(log.iter().position(|&byte| byte == 0).unwrap_or(LOG));
    }
    let end = log.get(log.len().saturating_sub(LOG_END)..).unwrap_or_default();
    let verifier_log = VerifierLog::new(String::from_utf8_lossy(end).into_owned());
    ProgramError::LoadError { io_error, verifier_log }
}

/// A loaded program.
pub(super) struct Program {
    fd: OwnedFd,
    /// The id, as in `bpftool prog`.
    id: u32,
}

impl Program {
    /// Returns the descriptor.
    pub(super) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Returns the id, as in `bpftool prog`.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Runs the program on an artificial packet so many times; returns its last result, and the mean
    /// time of a run.
    pub(super) fn run(&self, packet: &[u8], repeat: u32) -> io::Result<(u32, Duration)> {
        let mut run = TestRun {
            prog_fd: self.fd.as_raw_fd().cast_unsigned(),
            data_size_in: count(packet)?,
            data_in: address(packet),
            repeat,
            ..TestRun::default()
        };
        // SAFETY: `TestRun` is that part of `union bpf_attr` which the command uses, and its only
        // pointer is to a live slice of the stated size, which the kernel only reads.
        unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut run) }?;
        Ok((run.retval, Duration::from_nanos(run.duration.into())))
    }
}

/// A program to be loaded.
struct Wanted<'w> {
    kind: Kind,
    name: [u8; 16],
    instructions: &'w [bpf_insn],
    functions: &'w [bpf_func_info],
    lines: &'w [bpf_line_info],
    license: &'w std::ffi::CStr,
    btf: BorrowedFd<'w>,
}

impl Wanted<'_> {
    /// Loads the program; the verifier writes to `log`, if that is not empty.
    fn load(&self, log: &mut [u8]) -> io::Result<OwnedFd> {
        let mut load = ProgLoad {
            prog_type: self.kind.number as u32,
            insn_cnt: count(self.instructions)?,
            insns: address(self.instructions),
            license: address(self.license.to_bytes_with_nul()),
            log_level: u32::from(!log.is_empty()),
            log_size: count(log)?,
            log_buf: log.as_mut_ptr().expose_provenance() as u64,
            prog_flags: self.kind.flags,
            prog_name: self.name,
            expected_attach_type: self.kind.attach.map_or(0, |attach| attach as u32),
            prog_btf_fd: self.btf.as_raw_fd().cast_unsigned(),
            func_info_rec_size: record::<bpf_func_info>(),
            func_info: address(self.functions),
            func_info_cnt: count(self.functions)?,
            line_info_rec_size: record::<bpf_line_info>(),
            line_info: address(self.lines),
            line_info_cnt: count(self.lines)?,
            ..ProgLoad::default()
        };
        if log.is_empty() {
            // A buffer without a level is an error.
            load.log_buf = 0;
        }
        // SAFETY: `ProgLoad` is that part of `union bpf_attr` which the command uses. Its pointers
        // are to live slices of the stated numbers of records, and to a string with its end; the
        // kernel writes to the log only, which is borrowed mutably.
        let fd = unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut load) }?;
        owned(fd)
    }
}

/// Loads BTF into the kernel.
fn load_btf(btf: &[u8]) -> io::Result<OwnedFd> {
    let mut load = BtfLoad { btf: address(btf), btf_size: count(btf)?, ..BtfLoad::default() };
    // SAFETY: `BtfLoad` is that part of `union bpf_attr` which the command uses, and its only pointer
    // is to a live slice of the stated size, which the kernel only reads.
    let fd = unsafe { bpf(bpf_cmd::BPF_BTF_LOAD, &mut load) }?;
    owned(fd)
}

/// Returns the id of a program.
fn id(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = ProgInfo::default();
    let mut query = InfoByFd {
        bpf_fd: program.as_raw_fd().cast_unsigned(),
        info_len: record::<ProgInfo>(),
        info: (&raw mut info).expose_provenance() as u64,
    };
    // SAFETY: `InfoByFd` is that part of `union bpf_attr` which the command uses, and its only pointer
    // is to a live structure of integers of the stated size.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut query) }?;
    Ok(info.id)
}

/// Calls bpf(2); returns its result.
///
/// # Safety
/// `attributes` must be the first part of the command's `union bpf_attr`, without padding; and what
/// its addresses point to must be as the command demands.
unsafe fn bpf<T>(command: bpf_cmd, attributes: &mut T) -> io::Result<libc::c_long> {
    let (attributes, size) = (std::ptr::from_mut(attributes), size_of::<T>());
    // SAFETY: the first `size` bytes are live, and the caller vouches for the rest. The kernel takes
    // what is missing as zero.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as u32, attributes, size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes the descriptor that bpf(2) has returned.
fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just created the descriptor for this call (`BPF_PROG_LOAD` and
    // `BPF_BTF_LOAD`), and it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address<T>(records: &[T]) -> u64 {
    records.as_ptr().expose_provenance() as u64
}

fn count<T>(records: &[T]) -> io::Result<u32> {
    u32::try_from(records.len()).map_err(io::Error::other)
}

#[expect(clippy::cast_possible_truncation, reason = "some tens of bytes")]
const fn record<T>() -> u32 {
    size_of::<T>() as u32
}

/// Attributes of `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

/// Attributes of `BPF_BTF_LOAD`.
#[repr(C)]
#[derive(Default)]
struct BtfLoad {
    btf: u64,
    btf_log_buf: u64,
    btf_size: u32,
    btf_log_size: u32,
    btf_log_level: u32,
    btf_log_true_size: u32,
}

/// Attributes of `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// Attributes of `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The first fields of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgInfo {
    kind: u32,
    id: u32,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use aya_obj::ProgramSection;

    use super::*;
    use crate::xdp::program::{GUARD_NAME, OBJECT, PROGRAM_NAME};

    #[test]
    fn programs_are_loaded_as_the_kinds_that_the_object_states() {
        let object = aya_obj::Object::parse(OBJECT).unwrap();
        assert!(!object.has_btf_relocations(), "they need the BTF of the kernel");
        let section = |name: &str| &object.programs.get(name).unwrap().section;
        let steer = section(PROGRAM_NAME);
        assert!(matches!(steer, ProgramSection::Xdp { frags: true, .. }), "{steer:?}");
        assert_eq!(XDP.flags, BPF_F_XDP_HAS_FRAGS);
        let guard = section(GUARD_NAME);
        assert!(matches!(guard, ProgramSection::SchedClassifier), "{guard:?}");
    }

    /// The kernel reads attributes by their offsets: include/uapi/linux/bpf.h.
    #[test]
    fn attributes_have_the_offsets_of_the_kernel() {
        use aya_obj::generated::bpf_attr;
        use std::mem::offset_of;
        assert_eq!(
            offset_of!(ProgLoad, prog_name),
            offset_of!(bpf_attr, __bindgen_anon_3.prog_name)
        );
        let lines = offset_of!(bpf_attr, __bindgen_anon_3.line_info);
        assert_eq!(offset_of!(ProgLoad, line_info), lines);
        assert_eq!(offset_of!(BtfLoad, btf_size), offset_of!(bpf_attr, __bindgen_anon_7.btf_size));
        assert_eq!(offset_of!(TestRun, duration), offset_of!(bpf_attr, test.duration));
        assert_eq!(offset_of!(InfoByFd, info), offset_of!(bpf_attr, info.info));
        for size in [size_of::<ProgLoad>(), size_of::<BtfLoad>(), size_of::<TestRun>()] {
            assert!(size <= size_of::<bpf_attr>());
        }
    }
}
