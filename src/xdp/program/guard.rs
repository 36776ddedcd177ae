//! The guard: a tc program behind the XDP program, for the time when there is no XDP program.
//!
//! It drops what the XDP program would redirect (`holdfast_guard` in `steer.bpf.c`), by the same
//! maps. Any administrator may remove an XDP program, and a stop does. Without the guard the kernel
//! would then answer a packet for a VIP by a RST, and forward a backend's reply to the client, which
//! would answer it by a RST.
//!
//! The program is attached through rtnetlink, so that it outlives the process; the next start
//! replaces it in one step. After `kill -9` it stays until then. A process that ends sets an end
//! for it ([`LINGER`]), as there may be no next start.

use std::io;
use std::time::Duration;

use aya::programs::ProgramError;

use crate::xdp::netlink::{AttachedIds, IngressFilter, NetlinkError, Rtnetlink};
use crate::xdp::object::{CLASSIFIER, Object, Program};

/// Name of the program in the object and in the kernel. `tc filter show` prints also the XDP program
/// to which it belongs: `holdfast_guard/xdp/1234`.
pub const GUARD_NAME: &str = "holdfast_guard";
/// Between the name and the id of the XDP program.
const OF: &str = "/xdp/";

/// Place of the guard among the filters of a NIC. Those of priority 1 come first, and a handle is one
/// filter among them: 'H', 'F'.
const FILTER: IngressFilter = IngressFilter { priority: 1, handle: 0x4846 };

/// Time for which the guard works after the end of the process: a restart has long begun, and a box
/// where holdfast has ended for good gets its ports back.
pub const LINGER: Duration = Duration::from_secs(60);

/// The loaded guard.
pub(super) struct Guard {
    program: Program,
}

impl Guard {
    /// Loads the guard from the object of the XDP program, whose maps it shares.
    pub(super) fn load(object: &Object) -> Result<Self, ProgramError> {
        object.load(GUARD_NAME, CLASSIFIER).map(|program| Self { program })
    }

    /// Attaches the guard of the XDP program with the id `guarded` to a NIC, in the place of the
    /// guard of an earlier process, which may also be on the members of a NIC that is a bond.
    pub(super) fn install(
        &self,
        netlink: &Rtnetlink,
        index: u32,
        guarded: u32,
    ) -> Result<(), NetlinkError> {
        remove_from_members(netlink, index)?;
        netlink.add_clsact(index)?;
        let name = format!("{GUARD_NAME}{OF}{guarded}");
        netlink.set_ingress_filter(index, self.program.fd(), name, &FILTER)
    }

    /// Whether the guard is attached to a NIC.
    pub(super) fn is_installed(
        &self,
        netlink: &Rtnetlink,
        index: u32,
    ) -> Result<bool, NetlinkError> {
        netlink.ingress_filter(index, &FILTER).map(|name| name.is_some())
    }

    /// Returns the verdict about an artificial packet.
    pub(super) fn verdict(&self, packet: &[u8]) -> io::Result<u32> {
        self.program.run(packet, 1).map(|(verdict, _)| verdict)
    }
}

/// Removes the guard that a process has left on a link before that became a member of a device: it
/// would drop for [`LINGER`] what the device is to receive. A member with an XDP program may be the
/// NIC of a running holdfast, and keeps its guard.
fn remove_from_members(netlink: &Rtnetlink, device: u32) -> Result<(), NetlinkError> {
    let members = netlink
        .links()?
        .into_iter()
        .filter(|link| link.master == Some(device) && link.xdp == AttachedIds::default());
    for member in members {
        if guarded(netlink, member.index)?.is_some() {
            netlink.remove_ingress_filter(member.index, &FILTER)?;
        }
    }
    Ok(())
}

/// Returns the id of the XDP program that the guard on a NIC belongs to, if there is one. Needs no
/// capability, unlike the name of the XDP program itself (kernel/bpf/syscall.c,
/// `bpf_prog_get_fd_by_id`: CAP_SYS_ADMIN).
pub(super) fn guarded(netlink: &Rtnetlink, index: u32) -> Result<Option<u32>, NetlinkError> {
    let name = netlink.ingress_filter(index, &FILTER)?;
    Ok(name.and_then(|name| name.strip_prefix(GUARD_NAME)?.strip_prefix(OF)?.parse().ok()))
}
