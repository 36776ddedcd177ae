//! Errors of loading, attaching and filling the XDP program.

use std::error::Error;
use std::io;

use aya::maps::{Map, MapError};
use aya::{Ebpf, EbpfError};

/// Reason why the program could not be loaded, configured or attached.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// Missing privileges.
    #[error(
        "{interface}: {step} refused ({source}): run as root, or with CAP_NET_ADMIN, CAP_BPF and \
         CAP_PERFMON"
    )]
    NotPermitted {
        /// The NIC.
        interface: String,
        /// Attempted operation.
        step: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The kernel rejects the program or its maps.
    #[error(
        "{interface}: the kernel does not accept the XDP program: {reason}; holdfast needs \
         kernel 6.1 or newer with CONFIG_BPF_SYSCALL and CONFIG_XDP_SOCKETS"
    )]
    Load {
        /// The NIC.
        interface: String,
        /// The kernel's reason, with the verifier's log if there is one.
        reason: String,
    },
    /// Another application's program is on the NIC.
    #[error(
        "{interface} already has an XDP program: {program} (id {id}, {mode}); stop who has \
         attached it, or remove it with `ip link set dev {interface} {keyword} off`"
    )]
    Foreign {
        /// The NIC.
        interface: String,
        /// Name of that program, if known.
        program: String,
        /// Its id, as in `bpftool prog`.
        id: u32,
        /// Its mode: native, generic or offloaded.
        mode: &'static str,
        /// Keyword of that mode in `ip link`.
        keyword: &'static str,
    },
    /// The program cannot be attached to the NIC.
    #[error("{interface}: cannot attach the XDP program ({mode}): {reason}; {hint}")]
    Attach {
        /// The NIC.
        interface: String,
        /// Attempted mode or modes.
        mode: &'static str,
        /// The kernel's reason, with the driver's message if there is one.
        reason: String,
        /// Suggested remedy.
        hint: &'static str,
    },
    /// More rules than a map holds.
    #[error("{got} entries for the XDP map `{map}`, which holds {max}: configure fewer {what}")]
    TooManyRules {
        /// The map.
        map: &'static str,
        /// Requested number of entries.
        got: usize,
        /// Capacity of the map in entries.
        max: usize,
        /// Configuration items that the entries represent.
        what: &'static str,
    },
    /// A map operation failed.
    #[error("{interface}: cannot {step} in the XDP map `{map}`: {reason}")]
    Map {
        /// The NIC.
        interface: String,
        /// Attempted operation.
        step: &'static str,
        /// The map.
        map: &'static str,
        /// The reason.
        reason: String,
    },
    /// The kernel refused the query for the attached program.
    #[error("cannot ask the kernel about the XDP program of {interface}: {reason}")]
    Query {
        /// The NIC.
        interface: String,
        /// The kernel's reason.
        reason: String,
    },
    /// The guard cannot be loaded, or attached.
    #[error(
        "{interface}: no guard in the kernel ({reason}): while the XDP program is not attached, the \
         kernel resets connections to VIPs; it needs CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS, \
         and no filter of another kind with priority 1 (`tc filter show dev {interface} ingress`)"
    )]
    Guard {
        /// The NIC.
        interface: String,
        /// The kernel's reason.
        reason: String,
    },
    /// The traffic generator's program could not be run.
    #[error(
        "{interface}: cannot send by BPF_PROG_RUN: {reason}; live frames need kernel 5.18 or newer, \
         root, and a driver with XDP redirect (a veth end has it while its peer has an XDP program)"
    )]
    Run {
        /// The NIC.
        interface: String,
        /// The kernel's reason.
        reason: String,
    },
    /// A fake queue has no socket to redirect to.
    #[error("{interface} queue {queue}: this queue is a fake, so no packet can be sent to it")]
    NoSocket {
        /// The NIC.
        interface: String,
        /// The queue.
        queue: u32,
    },
}

pub(in crate::xdp) fn map<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Map, MapError> {
    ebpf.map_mut(name).ok_or_else(|| no_map(name))
}

pub(in crate::xdp) fn no_map(name: &str) -> MapError {
    MapError::InvalidName { name: name.to_owned() }
}

pub(in crate::xdp) fn map_error(
    interface: &str,
    step: &'static str,
    map: &'static str,
) -> impl FnOnce(MapError) -> ProgramError {
    move |error| {
        let (interface, reason) = (interface.to_owned(), with_causes(&error));
        ProgramError::Map { interface, step, map, reason }
    }
}

/// Returns the first I/O error among an error and its causes.
pub(in crate::xdp) fn io_cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// Formats an error and its causes in one line, without repetitions.
pub(in crate::xdp) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in chain(error).map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

pub(in crate::xdp) fn load_error(interface: &str, error: EbpfError) -> ProgramError {
    let interface = interface.to_owned();
    match io_cause(&error).filter(|cause| is_permission(cause)) {
        Some(cause) => {
            let source = io::Error::from(cause.kind());
            ProgramError::NotPermitted { interface, step: "loading the XDP program", source }
        }
        None => ProgramError::Load { interface, reason: with_causes(&error) },
    }
}

pub(super) fn is_permission(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// Iterates over an error and its causes.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}
