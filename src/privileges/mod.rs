//! Privileges that the threads of the process keep after the set-up.
//!
//! | threads | capabilities | system calls |
//! |---|---|---|
//! | workers, log | none | [`seccomp::Filter::Worker`], [`seccomp::Filter::Log`] |
//! | control and its helpers, and programs that they start | those of [`NEEDED`] | [`seccomp::Filter::Process`] |
//!
//! The kernel keeps privileges per thread, and a new thread or program has those of the thread that
//! starts it. So the main thread confines itself before it starts the others, and each of these
//! confines itself further. The threads share one memory: the confinement of a worker limits a
//! mistake, and an attacker who controls a worker has to get through the other threads.

mod capabilities;
mod seccomp;

use std::{fmt, io};

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::set_no_new_privs;

pub use self::capabilities::{NEEDED, Needed};
use self::seccomp::Filter;

/// Privileges of the control thread, for the log and `holdfast status`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// Names of the capabilities, sorted.
    pub capabilities: Vec<String>,
    /// Whether system calls are filtered.
    pub seccomp: bool,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let filter = if self.seccomp { "filtered" } else { "not filtered" };
        let control = self.capabilities.join(", ");
        write!(f, "privileges: control keeps {control}; workers none; system calls are {filter}")
    }
}

/// Reason why privileges could not be dropped.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegesError {
    /// The kernel did not drop capabilities.
    #[error("capabilities cannot be dropped: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    /// The kernel has no such process attribute.
    #[error("{step} refused: {source}")]
    Process {
        /// Attempted operation.
        step: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The kernel did not accept a filter of system calls.
    #[error(
        "system calls cannot be filtered ({0}): the kernel needs CONFIG_SECCOMP_FILTER; to run \
         without it, set [security] seccomp = false"
    )]
    Seccomp(#[from] seccompiler::Error),
}

/// Confines the main thread, which becomes the control thread, and threads and programs that it
/// starts later. Must be called when other applications' BPF programs need no longer be inspected,
/// which takes CAP_SYS_ADMIN.
///
/// # Errors
/// [`PrivilegesError`].
pub fn confine_process(seccomp: bool) -> Result<Kept, PrivilegesError> {
    // Threads without capabilities could otherwise be traced by other processes of the user, and
    // through their memory those with capabilities (kernel/ptrace.c, `__ptrace_may_access`).
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| refused("PR_SET_DUMPABLE", error.into()))?;
    let capabilities = capabilities::keep_needed()?;
    filter(seccomp, Filter::Process)?;
    Ok(Kept { capabilities, seccomp })
}

/// Confines the calling thread to the system calls of a worker, without capabilities.
///
/// # Errors
/// [`PrivilegesError`].
pub fn confine_worker(seccomp: bool) -> Result<(), PrivilegesError> {
    capabilities::keep_none()?;
    filter(seccomp, Filter::Worker)
}

/// Confines the calling thread to the system calls of the log writer, without capabilities.
///
/// # Errors
/// [`PrivilegesError`].
pub fn confine_log(seccomp: bool) -> Result<(), PrivilegesError> {
    capabilities::keep_none()?;
    filter(seccomp, Filter::Log)
}

/// Installs a filter. No program that the thread starts gets more privileges, by set-user-ID bits
/// or file capabilities (`PR_SET_NO_NEW_PRIVS`), with or without a filter.
fn filter(seccomp: bool, filter: Filter) -> Result<(), PrivilegesError> {
    set_no_new_privs(true).map_err(|error| refused("PR_SET_NO_NEW_PRIVS", error.into()))?;
    if seccomp {
        filter.install()?;
    }
    Ok(())
}

fn refused(step: &'static str, source: io::Error) -> PrivilegesError {
    PrivilegesError::Process { step, source }
}

#[cfg(test)]
mod tests;
