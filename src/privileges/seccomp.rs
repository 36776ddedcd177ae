//! Filters of system calls (seccomp(2)).
//!
//! A denied call returns an error, and the thread goes on: a call that a newer C library makes must
//! not end the process, and with it every connection of a reload or a drain.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::os::unix::fs::chroot;

use libc::c_long;
use rustix::process::getpid;
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

/// Filter of the system calls of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// Allows wake-ups of sockets and of the worker, poll, memory, and the end of the thread.
    Worker,
    /// Allows write(2) besides.
    Log,
    /// Denies [`DENIED`]: calls that administer a machine or inspect other processes.
    Process,
}

/// Calls of [`Filter::Worker`] with any arguments.
const WORKER: &[c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    // Memory that the thread frees at its end.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_close,
    // Signals, the end of the thread, and abort(3).
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Calls of [`Filter::Process`], with the groups of systemd.exec(5) to which they belong.
const DENIED: &[c_long] = &[
    // @debug, and the memory of other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    // @module, and another kernel.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
    // @mount and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_open_by_handle_at,
    // @reboot, @swap, @clock, @raw-io, @privileged.
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    // @keyring, and interfaces with a long history of flaws.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_personality,
];

/// Mark of the x32 calls, which have the numbers of x86-64 (arch/x86/include/uapi/asm/unistd.h).
#[cfg(target_arch = "x86_64")]
const X32: c_long = 0x4000_0000;

impl Filter {
    /// Installs the filter on the calling thread, which must have `no_new_privs`.
    pub(super) fn install(self) -> Result<(), Error> {
        if self == Self::Process && is_in_force() {
            return Ok(());
        }
        apply_filter(&self.program()?)
    }

    fn program(self) -> Result<BpfProgram, BackendError> {
        let target = TargetArch::try_from(ARCH)?;
        let filter = match self {
            Self::Process => {
                let denied = DENIED.iter().flat_map(|&call| with_x32(call));
                let rules = denied.map(|call| (call, Vec::new())).collect();
                // Not EPERM, with which others deny: see `is_in_force`.
                let deny = SeccompAction::Errno(libc::EACCES.cast_unsigned());
                SeccompFilter::new(rules, SeccompAction::Allow, deny, target)?
            }
            Self::Worker | Self::Log => {
                let deny = SeccompAction::Errno(libc::EPERM.cast_unsigned());
                SeccompFilter::new(self.allowed()?, deny, SeccompAction::Allow, target)?
            }
        };
        filter.try_into()
    }

    /// The calls that a worker or the log may make, with conditions on their arguments.
    fn allowed(self) -> Result<BTreeMap<c_long, Vec<SeccompRule>>, BackendError> {
        let mut rules: BTreeMap<_, _> = WORKER.iter().map(|&call| (call, Vec::new())).collect();
        // Wake-ups of AF_XDP sockets carry no data.
        for call in [libc::SYS_sendto, libc::SYS_recvfrom] {
            rules.insert(call, vec![argument(2, SeccompCmpOp::Eq, 0)?]);
        }
        // An eventfd ends the sleep of a worker.
        rules.insert(libc::SYS_read, vec![argument(2, SeccompCmpOp::Eq, 8)?]);
        // No memory becomes code.
        let executable = u64::from(libc::PROT_EXEC.cast_unsigned());
        for call in [libc::SYS_mmap, libc::SYS_mprotect] {
            rules.insert(call, vec![argument(2, SeccompCmpOp::MaskedEq(executable), 0)?]);
        }
        // abort(3) signals its own process only.
        let own = u64::from(getpid().as_raw_nonzero().get().cast_unsigned());
        rules.insert(libc::SYS_tgkill, vec![argument(0, SeccompCmpOp::Eq, own)?]);
        let output = match self {
            Self::Log => Vec::new(),
            // Last words of the runtime.
            _ => vec![argument(0, SeccompCmpOp::Eq, 2)?],
        };
        rules.insert(libc::SYS_write, output);
        Ok(rules)
    }
}

/// A rule that holds if an argument, of 32 bits, satisfies a comparison.
fn argument(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?;
    SeccompRule::new(vec![condition])
}

#[cfg(target_arch = "x86_64")]
fn with_x32(call: c_long) -> [c_long; 2] {
    [call, call | X32]
}

#[cfg(not(target_arch = "x86_64"))]
fn with_x32(call: c_long) -> [c_long; 1] {
    [call]
}

/// Whether a process that started this one has installed [`Filter::Process`]: filters are inherited,
/// add up, and each system call passes all of them.
///
/// chroot(2) of no path fails by ENOENT, whatever the privileges (fs/open.c). Other filters, such as
/// those of systemd, deny it by EPERM.
fn is_in_force() -> bool {
    chroot("").is_err_and(|error| error.raw_os_error() == Some(libc::EACCES))
}
