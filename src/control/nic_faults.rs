//! Faults of NICs while holdfast runs: changes after which packets are lost although every backend
//! passes its checks.
//!
//! A fault is reported when it comes and when it goes, and is part of the status in between. The
//! controller repairs a fault at once where it can; where only a start can follow the change,
//! holdfast ends for its supervisor to start it again.

use super::view::{NicNow, NicView, ProgramNow};

/// Fault of a NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NicFault {
    /// The interface does not exist.
    Gone,
    /// Another interface has its name.
    MadeAgain {
        /// Index of that interface.
        ifindex: u32,
    },
    /// The interface is set down.
    Down,
    /// The interface has no carrier.
    NoCarrier,
    /// Its MAC differs from the source MAC of rewritten packets.
    MacChanged {
        /// Current MAC.
        now: [u8; 6],
    },
    /// It has more queues than at the start, and no socket receives from the new ones.
    QueuesUnserved {
        /// Number of queues at the start.
        before: u32,
        /// Current number of queues.
        now: u32,
    },
    /// Its XDP program was removed.
    ProgramGone,
    /// Another XDP program has replaced its program.
    ProgramReplaced {
        /// Id of that program.
        id: u32,
    },
    /// Its guard was removed.
    GuardGone,
}

impl NicFault {
    /// Name in the API.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::MadeAgain { .. } => "made_again",
            Self::Down => "down",
            Self::NoCarrier => "no_carrier",
            Self::MacChanged { .. } => "mac_changed",
            Self::QueuesUnserved { .. } => "queues_unserved",
            Self::ProgramGone => "program_gone",
            Self::ProgramReplaced { .. } => "program_replaced",
            Self::GuardGone => "guard_gone",
        }
    }

    /// Text of the fault, its effect and its remedy.
    pub fn text(&self, nic: &NicView) -> String {
        let name = &nic.interface;
        match self {
            Self::Gone => {
                "the interface has been removed: no packet of a VIP comes in or goes out by it; when it \
                 is made again, holdfast ends with exit code 1, so that its supervisor starts it again"
                    .to_owned()
            }
            Self::MadeAgain { .. } => {
                "the interface has been removed and made again: sockets and XDP program went with the old \
                 one; as soon as the new one is up, holdfast ends with exit code 1, so that its \
                 supervisor starts it again"
                    .to_owned()
            }
            Self::Down => format!("it is down: `ip link set {name} up`"),
            Self::NoCarrier => "it has no carrier: look at cable, transceiver and switch port".to_owned(),
            Self::MacChanged { now } => format!(
                "its MAC is {} now, and no longer {}: packets of VIPs that are sent there are dropped \
                 until the XDP program and the workers have it, which is tried at once and every second",
                mac(*now),
                mac(nic.mac)
            ),
            Self::QueuesUnserved { before, now } if serves_all_queues(nic) => format!(
                "it has {now} queues, of which {before} were there at the start: packets of VIPs that \
                 arrive at the others are dropped (no_socket); holdfast ends with exit code 1, so that \
                 its supervisor starts it again with all of them"
            ),
            Self::QueuesUnserved { before, now } => format!(
                "it has {now} queues, of which {before} were there at the start: packets of VIPs that \
                 arrive at the others are dropped (no_socket); `ethtool -L {name} combined {before}`, or \
                 add them to [[nic]] queues and restart holdfast"
            ),
            Self::ProgramGone => {
                "its XDP program has been removed: packets of VIPs are dropped until it is attached \
                 again, which is tried at once and every second"
                    .to_owned()
            }
            Self::ProgramReplaced { id } => format!(
                "another XDP program (id {id}; `bpftool prog show id {id}`) has taken the place of \
                 holdfast's: packets of VIPs are dropped, and their addresses withdrawn from this NIC, \
                 until it is removed (`ip link set {name} xdp off`, or xdpgeneric); then holdfast \
                 attaches its own again"
            ),
            Self::GuardGone => {
                "the guard behind its XDP program, a tc filter, has been removed: it is put back at once, \
                 or tried every second"
                    .to_owned()
            }
        }
    }

    /// Whether the NIC has no XDP program of holdfast.
    pub const fn is_without_program(&self) -> bool {
        use NicFault::{Gone, MadeAgain, ProgramGone, ProgramReplaced};
        matches!(self, Gone | MadeAgain { .. } | ProgramGone | ProgramReplaced { .. })
    }
}

/// Returns the fault for which holdfast must be started again, if there is one. An interface that was
/// made again must be up, as a start may fail before.
pub fn needs_start<'f>(nic: &NicView, faults: &'f [NicFault]) -> Option<&'f NicFault> {
    let is_down = faults.contains(&NicFault::Down);
    faults.iter().find(|fault| match fault {
        NicFault::MadeAgain { .. } => !is_down,
        NicFault::QueuesUnserved { .. } => serves_all_queues(nic),
        _ => false,
    })
}

/// Whether the NIC had no queue at the start that is not served, so that a start serves new ones,
/// too. Queues that the configuration selects are left to the operator.
fn serves_all_queues(nic: &NicView) -> bool {
    nic.queues.iter().copied().eq(0..nic.rx_queues)
}

fn mac([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// Returns all faults of a NIC.
pub fn faults(nic: &NicView, now: NicNow) -> Vec<NicFault> {
    let NicNow::There { ifindex, mac, up, carrier, rx_queues, program, guarded } = now else {
        return vec![NicFault::Gone];
    };
    let link = match (up, carrier) {
        (false, _) => Some(NicFault::Down),
        (true, false) => Some(NicFault::NoCarrier),
        (true, true) => None,
    };
    if ifindex != nic.ifindex {
        return [Some(NicFault::MadeAgain { ifindex }), link].into_iter().flatten().collect();
    }
    let mac = (mac != nic.mac).then_some(NicFault::MacChanged { now: mac });
    let queues = (rx_queues > nic.rx_queues)
        .then_some(NicFault::QueuesUnserved { before: nic.rx_queues, now: rx_queues });
    let program = match program {
        ProgramNow::Ours => None,
        ProgramNow::None => Some(NicFault::ProgramGone),
        ProgramNow::Other(id) => Some(NicFault::ProgramReplaced { id }),
    };
    let guard = (!guarded).then_some(NicFault::GuardGone);
    [link, mac, queues, program, guard].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic() -> NicView {
        NicView {
            interface: "eth1".to_owned(),
            ifindex: 7,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            driver: "igb".to_owned(),
            mode: "zero_copy".to_owned(),
            multi_buffer: false,
            queues: vec![0, 1],
            rx_queues: 2,
            fallbacks: Vec::new(),
        }
    }

    fn there() -> NicNow {
        NicNow::There {
            ifindex: 7,
            mac: [2, 0, 0, 0, 0, 1],
            up: true,
            carrier: true,
            rx_queues: 2,
            program: ProgramNow::Ours,
            guarded: true,
        }
    }

    /// `there()` with some fields changed.
    fn changed(
        change: impl FnOnce(&mut u32, &mut [u8; 6], &mut [bool; 2], &mut u32, &mut ProgramNow),
    ) -> NicNow {
        let NicNow::There {
            mut ifindex,
            mut mac,
            up,
            carrier,
            mut rx_queues,
            mut program,
            guarded,
        } = there()
        else {
            return NicNow::Gone;
        };
        let mut flags = [up, carrier];
        change(&mut ifindex, &mut mac, &mut flags, &mut rx_queues, &mut program);
        let [up, carrier] = flags;
        NicNow::There { ifindex, mac, up, carrier, rx_queues, program, guarded }
    }

    #[test]
    fn changes_that_lose_packets_are_faults() {
        let other_mac = [2, 0, 0, 0, 0, 9];
        for (now, expected) in [
            (there(), &[][..]),
            (NicNow::Gone, &["gone"]),
            (changed(|index, _, _, _, _| *index = 8), &["made_again"]),
            (
                changed(|index, _, flags, _, _| (*index, *flags) = (8, [false, false])),
                &["made_again", "down"],
            ),
            (changed(|_, mac, _, _, _| *mac = other_mac), &["mac_changed"]),
            (changed(|_, _, flags, _, _| *flags = [false, false]), &["down"]),
            (changed(|_, _, flags, _, _| *flags = [true, false]), &["no_carrier"]),
            (changed(|_, _, _, queues, _| *queues = 4), &["queues_unserved"]),
            (changed(|_, _, _, queues, _| *queues = 1), &[]),
            (changed(|_, _, _, _, program| *program = ProgramNow::None), &["program_gone"]),
            (changed(|_, _, _, _, program| *program = ProgramNow::Other(9)), &["program_replaced"]),
            (
                changed(|_, mac, _, _, program| (*mac, *program) = (other_mac, ProgramNow::None)),
                &["mac_changed", "program_gone"],
            ),
        ] {
            let found = faults(&nic(), now);
            let names: Vec<_> = found.iter().map(NicFault::as_str).collect();
            assert_eq!(names, expected, "{now:?}");
            for fault in found {
                assert!(fault.text(&nic()).len() > 20, "{fault:?}");
            }
        }
    }

    #[test]
    fn a_start_follows_new_queues_and_a_new_interface_that_is_up() {
        let nic = nic();
        let selected = NicView { queues: vec![1], ..nic.clone() };
        for (name, nic, now, expected) in [
            ("no fault", &nic, there(), None),
            ("gone", &nic, NicNow::Gone, None),
            ("another", &nic, changed(|index, _, _, _, _| *index = 8), Some("made_again")),
            (
                "another, which is down",
                &nic,
                changed(|index, _, flags, _, _| (*index, *flags) = (8, [false, false])),
                None,
            ),
            ("queues", &nic, changed(|_, _, _, queues, _| *queues = 4), Some("queues_unserved")),
            ("queues beside", &selected, changed(|_, _, _, queues, _| *queues = 4), None),
            (
                "repaired here",
                &nic,
                changed(|_, mac, _, _, program| (*mac, *program) = ([9; 6], ProgramNow::None)),
                None,
            ),
        ] {
            let faults = faults(nic, now);
            let found = needs_start(nic, &faults).map(NicFault::as_str);
            assert_eq!(found, expected, "{name}");
        }
    }
}
