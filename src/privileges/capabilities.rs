//! Capabilities: those that holdfast needs, and the removal of all others.

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

/// A capability that `holdfast run` needs.
#[derive(Debug, Clone, Copy)]
pub struct Needed {
    /// Number (include/uapi/linux/capability.h).
    pub number: u8,
    /// Name.
    pub name: &'static str,
    /// Purpose, after "needed to".
    pub purpose: &'static str,
}

/// Capabilities that `holdfast run` needs, and that the control thread keeps: a reload changes maps
/// and addresses, a removed XDP program is attached again, and a newer binary that this process
/// starts needs all of them.
pub const NEEDED: [Needed; 5] = [
    needed(
        Capability::CAP_NET_ADMIN,
        "CAP_NET_ADMIN",
        "attach XDP programs and announce addresses",
    ),
    needed(Capability::CAP_NET_RAW, "CAP_NET_RAW", "open AF_XDP sockets"),
    needed(Capability::CAP_PERFMON, "CAP_PERFMON", "load the XDP program"),
    needed(Capability::CAP_BPF, "CAP_BPF", "load the XDP program"),
    needed(Capability::CAP_IPC_LOCK, "CAP_IPC_LOCK", "lock packet memory above RLIMIT_MEMLOCK"),
];

const fn needed(capability: Capability, name: &'static str, purpose: &'static str) -> Needed {
    Needed { number: capability as u8, name, purpose }
}

/// Drops the capabilities of the calling thread except those of [`NEEDED`]; returns the names of
/// the rest.
///
/// CAP_SYS_ADMIN stays where it stands for CAP_BPF or CAP_PERFMON, which Linux 5.8 split off.
pub(super) fn keep_needed() -> Result<Vec<String>, CapsError> {
    let has = caps::read(None, CapSet::Permitted)?;
    let is_needed =
        |capability: &Capability| NEEDED.iter().any(|needed| needed.number == capability.index());
    let mut keep: CapsHashSet = has.iter().copied().filter(is_needed).collect();
    let split_off = [Capability::CAP_BPF, Capability::CAP_PERFMON];
    if has.contains(&Capability::CAP_SYS_ADMIN) && !split_off.iter().all(|one| has.contains(one)) {
        keep.insert(Capability::CAP_SYS_ADMIN);
    }
    keep_only(&keep)?;
    let mut names: Vec<String> = keep.iter().map(Capability::to_string).collect();
    names.sort_unstable();
    Ok(names)
}

/// Drops all capabilities of the calling thread.
pub(super) fn keep_none() -> Result<(), CapsError> {
    keep_only(&CapsHashSet::new())
}

/// Drops the capabilities of the calling thread except those in `keep`, in all sets. The ambient
/// set follows the permitted and the inheritable one (security/commoncap.c, `cap_capset`).
fn keep_only(keep: &CapsHashSet) -> Result<(), CapsError> {
    // Without CAP_SETPCAP the bounding set cannot be reduced. It has no effect then either: only
    // set-user-ID bits and file capabilities raise others, and no_new_privs prevents both.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for capability in caps::read(None, CapSet::Bounding)?.difference(keep) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        let rest = caps::read(None, set)?.intersection(keep).copied().collect();
        caps::set(None, set, &rest)?;
    }
    Ok(())
}
