//! AF_XDP properties of the kernel's drivers: packet bytes that a frame holds, and interfaces whose
//! frames never reach an AF_XDP socket.
//!
//! In zero copy the NIC writes into the frame itself, and the driver programs the buffer size in
//! the unit of a register. Where that unit is 1 kB, 2048-byte frames, less 256 bytes of headroom,
//! become buffers of 1024 bytes, and a longer packet arrives split in two: each part as a packet of
//! its own.
//!
//! Units, with the source under drivers/net/ethernet:
//!
//! - `igb`: 1 kB. `igb_setup_srrctl`: `buf_size >> E1000_SRRCTL_BSIZEPKT_SHIFT` (10),
//!   intel/igb/igb_main.c.
//! - `igc`: 1 kB. `igc_configure_rx_ring`: `IGC_SRRCTL_BSIZEPKT` divides by 1024,
//!   intel/igc/igc_base.h.
//! - `ixgbe`: 1 kB. `ixgbe_configure_srrctl`: 82599; later chips count bytes,
//!   intel/ixgbe/ixgbe_main.c.
//! - `i40e`: 128 bytes. `I40E_RXQ_CTX_DBUFF_SHIFT` (7), intel/i40e/i40e_main.c.
//! - `ice`: 128 bytes. `ICE_RLAN_CTX_DBUF_S` (7), intel/ice/ice_base.c.
//! - `mlx5_core`: bytes. `mlx5e_validate_xsk_param` refuses buffers that do not fit,
//!   mellanox/mlx5/core/en/xsk/setup.c.
//! - `st_gmac`, `st_xgmac`: bytes. `stmmac_xdp_enable_pool` refuses less than 1522,
//!   stmicro/stmmac/stmmac_xdp.c.
//! - `virtio_net`: bytes. `virtnet_add_recvbuf_xsk`, ../virtio_net.c.
//!
//! A driver that is not listed is treated as one that counts in 1 kB: larger frames cost memory,
//! while shorter buffers lose packets.

use super::checked::{Config, CopyMode, Nic, XdpMode};

/// Smaller frame size, in bytes. The kernel accepts 2048 and 4096 for aligned chunks
/// (`xdp_umem_reg`, net/xdp/xdp_umem.c).
pub const SMALL_FRAME: u32 = 2048;
/// Larger frame size, in bytes: a page.
pub const LARGE_FRAME: u32 = 4096;

/// Bytes of a frame reserved by the kernel: `XDP_PACKET_HEADROOM` in include/uapi/linux/bpf.h.
const HEADROOM: u32 = 256;
/// Bytes of an Ethernet header and two VLAN tags.
const LINK_HEADERS: u32 = 14 + 8;
/// Bytes of the frame check sequence, which some NICs write after the packet. The kernel counts it
/// when it compares the MTU with zero-copy buffers (`ETH_PAD_LEN` in net/xdp/xsk_buff_pool.c).
const FCS: u32 = 4;

/// Drivers with zero-copy buffers that are exact to 128 bytes or better. The frame size less its
/// headroom is a multiple of 128 bytes.
const EXACT: [&str; 6] = ["i40e", "ice", "mlx5_core", "st_gmac", "st_xgmac", "virtio_net"];
/// Unit of the zero-copy buffers of all other drivers, in bytes.
const COARSE_UNIT: u32 = 1024;

/// Drivers without zero copy: no `ndo_xsk_wakeup` (drivers/net/veth.c, drivers/net/tun.c).
const COPIES_ONLY: [&str; 2] = ["veth", "tun"];

/// Driver name of a bond. Native XDP on a bond runs on its members (`bond_xdp_set` in
/// drivers/net/bonding/bond_main.c), and an AF_XDP socket receives packets only from the device
/// that it is bound to (`xsk_rcv_check` in net/xdp/xsk.c).
const BOND: &str = "bonding";

/// Devices on top of others: name that ethtool reports (`drv_name`), and a description.
const UPPER: [(&str, &str); 5] = [
    ("802.1Q VLAN Support", "a VLAN device"),
    ("macvlan", "a macvlan"),
    ("ipvlan", "an ipvlan"),
    ("bridge", "a bridge"),
    ("team", "a team"),
];

/// Devices that deliver no frames to XDP. A VRF receives packets after the receive path that XDP is
/// part of (`vrf_ip_rcv` in drivers/net/vrf.c); a dummy receives none.
const WITHOUT_FRAMES: [(&str, &str); 2] = [("vrf", "a VRF"), ("dummy", "a dummy")];

/// Properties of a NIC that the kernel reports before a socket is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicFacts {
    /// Driver name, as `ethtool -i` reports it.
    pub driver: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether XDP runs, or will run, in the kernel's generic receive path.
    pub generic: bool,
}

impl NicFacts {
    /// Creates the facts of a NIC, with the XDP mode that the configuration requests.
    pub fn new(driver: &str, mtu: u32, wanted: &Nic) -> Self {
        let generic = attach_mode(wanted, driver).0 == XdpMode::Generic;
        Self { driver: driver.to_owned(), mtu, generic }
    }
}

/// A mismatch between configuration and driver, with its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// The mismatch.
    pub what: String,
    /// Remedy.
    pub fix: String,
}

/// Bind mode of a NIC's sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Mode to request from the kernel.
    pub mode: CopyMode,
    /// Reason for copy mode where zero copy is available, and its remedy.
    pub lost: Option<Misfit>,
}

/// Returns the largest MTU at which every packet fits into one frame in copy mode. Longer packets
/// need multi-buffer.
pub const fn largest_mtu(frame_size: u32) -> u32 {
    frame_size - HEADROOM - LINK_HEADERS
}

/// Returns the packet bytes, from the Ethernet header on, that a frame holds when the NIC writes
/// into it.
fn zero_copy_bytes(driver: &str, frame_size: u32) -> u32 {
    let room = frame_size - HEADROOM;
    if EXACT.contains(&driver) { room } else { room - room % COARSE_UNIT }
}

/// Returns the largest MTU at which every packet fits into one frame in zero copy.
fn largest_mtu_zero_copy(driver: &str, frame_size: u32) -> u32 {
    zero_copy_bytes(driver, frame_size) - LINK_HEADERS - FCS
}

/// Whether binding as configured may result in zero copy.
fn may_zero_copy(wanted: &Nic, facts: &NicFacts) -> bool {
    let copies_only = COPIES_ONLY.contains(&facts.driver.as_str());
    match wanted.mode {
        CopyMode::Copy => false,
        CopyMode::ZeroCopy => true,
        CopyMode::Auto => !facts.generic && !copies_only,
    }
}

/// Whether frames of `frame_size` bytes hold every packet of the NIC's MTU.
fn holds(wanted: &Nic, facts: &NicFacts, frame_size: u32) -> bool {
    let largest = match may_zero_copy(wanted, facts) {
        true => largest_mtu_zero_copy(&facts.driver, frame_size),
        false => largest_mtu(frame_size),
    };
    facts.mtu <= largest
}

impl Config {
    /// Returns the bytes per frame: as configured, else the smallest size that holds every packet
    /// of the NICs' MTUs. All NICs have one size, as they share the packet memory of each worker.
    pub fn frame_size(&self, nics: &[NicFacts]) -> u32 {
        self.workers.frame_size.unwrap_or_else(|| {
            let all = self.nics.iter().zip(nics).all(|(nic, facts)| holds(nic, facts, SMALL_FRAME));
            if all { SMALL_FRAME } else { LARGE_FRAME }
        })
    }
}

/// Chooses the bind mode of a NIC's sockets with frames of `frame_size` bytes: zero copy only where
/// no packet arrives truncated.
///
/// # Errors
/// `mode = "zero_copy"` where packets would arrive truncated, or where XDP is generic.
pub fn binding(wanted: &Nic, facts: &NicFacts, frame_size: u32) -> Result<Binding, Misfit> {
    if wanted.mode == CopyMode::ZeroCopy && facts.generic {
        return Err(Misfit {
            what: format!("{}: generic XDP has no zero copy", wanted.interface),
            fix: "use mode = \"copy\" or \"auto\" for this NIC, or a driver with native XDP"
                .to_owned(),
        });
    }
    if !may_zero_copy(wanted, facts) {
        // Copy mode must be explicit: the kernel binds zero copy also under generic XDP, where the
        // driver's zero-copy rings neither receive nor send for the socket.
        return Ok(Binding { mode: CopyMode::Copy, lost: None });
    }
    let (driver, mtu) = (&facts.driver, facts.mtu);
    if EXACT.contains(&driver.as_str()) || holds(wanted, facts, frame_size) {
        return Ok(Binding { mode: wanted.mode, lost: None });
    }
    let what = format!(
        "{}: driver {driver} may receive in units of 1 kB in zero copy, so that frames of {frame_size} \
         bytes cut packets of more than {} bytes off, and its MTU is {mtu}",
        wanted.interface,
        zero_copy_bytes(driver, frame_size)
    );
    let fix = cure(&wanted.interface, facts, frame_size);
    match wanted.mode {
        CopyMode::ZeroCopy => Err(Misfit { what, fix }),
        _ => {
            let (what, fix) =
                (format!("{what}: copy mode is used"), format!("for zero copy {fix}"));
            Ok(Binding { mode: CopyMode::Copy, lost: Some(Misfit { what, fix }) })
        }
    }
}

/// Returns the remedy that makes zero copy safe.
fn cure(interface: &str, facts: &NicFacts, frame_size: u32) -> String {
    let most = largest_mtu_zero_copy(&facts.driver, LARGE_FRAME);
    if frame_size < LARGE_FRAME && facts.mtu <= most {
        return "leave [workers] frame_size out, or set it to 4096".to_owned();
    }
    let shrink = format!("`ip link set {interface} mtu {most}`");
    let grow = if frame_size < LARGE_FRAME { " and leave [workers] frame_size out" } else { "" };
    format!("{shrink}{grow}")
}

/// Returns the XDP mode to attach with, and the reason if it is generic because native XDP would
/// receive nothing.
pub fn attach_mode(wanted: &Nic, driver: &str) -> (XdpMode, Option<String>) {
    if driver == BOND && wanted.xdp == XdpMode::Auto {
        let reason = "native XDP on a bond runs on its members, and AF_XDP sockets of the bond do not \
                      receive their packets: generic XDP is used";
        return (XdpMode::Generic, Some(reason.to_owned()));
    }
    (wanted.xdp, None)
}

/// Checks that packets for a VIP can reach an AF_XDP socket on the interface.
///
/// # Errors
/// The kind of interface that receives none, and the remedy.
pub fn receives(wanted: &Nic, driver: &str) -> Result<(), Misfit> {
    let name = &wanted.interface;
    if driver == BOND && wanted.xdp == XdpMode::Native {
        return Err(Misfit {
            what: format!(
                "{name} is a bond: native XDP runs on its members, and AF_XDP sockets of {name} do not \
                 receive their packets"
            ),
            fix: "use xdp = \"generic\" for it".to_owned(),
        });
    }
    match WITHOUT_FRAMES.iter().find(|(other, _)| *other == driver) {
        Some((_, kind)) => Err(Misfit {
            what: format!("{name} is {kind}: XDP sees no packet on it"),
            fix: "name the NIC that packets arrive at".to_owned(),
        }),
        None => Ok(()),
    }
}

/// Returns the drawbacks of an interface on top of another one, which works but is slow.
pub fn upper(wanted: &Nic, driver: &str) -> Option<Misfit> {
    let name = &wanted.interface;
    let (_, kind) = UPPER.iter().find(|(other, _)| *other == driver)?;
    Some(Misfit {
        what: format!("{name} is {kind}: it has generic XDP and copy mode only, which are slow"),
        fix: "name the NIC below it: holdfast serves its VLAN devices as well (docs/VLAN.md)"
            .to_owned(),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    fn nic(mode: CopyMode, xdp: XdpMode) -> Nic {
        Nic { interface: "eth1".to_owned(), mode, xdp, queues: None, ring: 64 }
    }

    fn facts(driver: &str, mtu: u32) -> NicFacts {
        NicFacts { driver: driver.to_owned(), mtu, generic: false }
    }

    fn config(frame_size: &str, mode: &str) -> Config {
        let text = format!(
            "workers = {{ cores = [0]{frame_size} }}\nnic = [{{ interface = \"eth1\", mode = \"{mode}\" }}]\n\
             vip = [{{ name = \"v\", address = \"192.0.2.1\", ports = [80], forward = \"dsr\", \
             backend = [{{ name = \"a\", address = \"10.0.0.1\" }}] }}]"
        );
        crate::config::parse(&text, "f").unwrap()
    }

    /// Bytes of a frame that a packet may occupy, by the register's unit.
    #[test]
    fn bytes_that_a_zero_copy_frame_holds() {
        for (driver, small, large) in [
            ("igb", 1024, 3072),
            ("igc", 1024, 3072),
            ("ixgbe", 1024, 3072),
            ("of_next_year", 1024, 3072),
            ("i40e", 1792, 3840),
            ("ice", 1792, 3840),
            ("mlx5_core", 1792, 3840),
            ("virtio_net", 1792, 3840),
        ] {
            assert_eq!(zero_copy_bytes(driver, 2048), small, "{driver}");
            assert_eq!(zero_copy_bytes(driver, 4096), large, "{driver}");
        }
        assert_eq!([largest_mtu(2048), largest_mtu(4096)], [1770, 3818]);
    }

    #[test]
    fn frames_hold_the_mtu_of_every_nic() {
        for (name, frame_size, mode, driver, mtu, expected) in [
            ("1 kB units", "", "auto", "igb", 1500, 4096),
            ("the same, insisting", "", "zero_copy", "igb", 1500, 4096),
            ("copied", "", "copy", "igb", 1500, 2048),
            ("short packets", "", "auto", "igb", 998, 2048),
            ("one byte more", "", "auto", "igb", 999, 4096),
            ("an unknown driver", "", "auto", "new", 1500, 4096),
            ("128-byte units", "", "auto", "ice", 1500, 2048),
            ("no zero copy at all", "", "auto", "veth", 1500, 2048),
            ("a larger MTU", "", "copy", "veth", 1771, 4096),
            ("as configured", ", frame_size = 2048", "auto", "igb", 1500, 2048),
            ("as configured", ", frame_size = 4096", "copy", "veth", 1500, 4096),
        ] {
            let config = config(frame_size, mode);
            assert_eq!(config.frame_size(&[facts(driver, mtu)]), expected, "{name}");
        }
        let generic = NicFacts { generic: true, ..facts("igb", 1500) };
        assert_eq!(config("", "auto").frame_size(&[generic]), 2048, "generic XDP copies");
        assert_eq!(config("", "auto").frame_size(&[]), 2048, "nothing is known");
    }

    #[test]
    fn zero_copy_only_where_no_packet_is_cut_off() {
        use CopyMode::{Auto, Copy, ZeroCopy};
        for (mode, driver, mtu, frame_size, expected) in [
            (Auto, "igb", 1500, 4096, Auto),
            (Auto, "igb", 3046, 4096, Auto),
            (Auto, "igb", 3047, 4096, Copy),
            (Auto, "igb", 1500, 2048, Copy),
            (Auto, "ice", 9000, 2048, Auto),
            (Auto, "veth", 1500, 2048, Copy),
            (Copy, "igb", 1500, 2048, Copy),
            (ZeroCopy, "igb", 1500, 4096, ZeroCopy),
            (ZeroCopy, "veth", 998, 2048, ZeroCopy),
        ] {
            let bound = binding(&nic(mode, XdpMode::Auto), &facts(driver, mtu), frame_size);
            let bound = bound.unwrap();
            assert_eq!(bound.mode, expected, "{mode:?} {driver} {mtu}");
            // The reason is reported where the driver has zero copy and the operator did not refuse
            // it.
            let lost = expected == Copy && driver == "igb" && mode == Auto;
            assert_eq!(bound.lost.is_some(), lost, "{mode:?} {driver} {mtu}");
        }
    }

    #[test]
    fn insisting_on_zero_copy_that_would_lose_packets_is_refused_with_the_cure() {
        for (mtu, frame_size, cure) in [
            (1500, 2048, "leave [workers] frame_size out, or set it to 4096"),
            (9000, 4096, "`ip link set eth1 mtu 3046`"),
            (9000, 2048, "`ip link set eth1 mtu 3046` and leave [workers] frame_size out"),
        ] {
            let insists = nic(CopyMode::ZeroCopy, XdpMode::Auto);
            let refused = binding(&insists, &facts("igb", mtu), frame_size).unwrap_err();
            assert_eq!(refused.fix, cure);
            assert!(refused.what.contains("cut packets"), "{}", refused.what);
        }
        let generic = NicFacts { generic: true, ..facts("igb", 1500) };
        let refused = binding(&nic(CopyMode::ZeroCopy, XdpMode::Auto), &generic, 4096).unwrap_err();
        assert!(refused.what.contains("generic XDP has no zero copy"), "{}", refused.what);
    }

    /// The kernel binds zero copy under generic XDP, and then sends nothing.
    #[test]
    fn generic_xdp_is_bound_in_copy_mode() {
        let wanted = nic(CopyMode::Auto, XdpMode::Generic);
        let facts = NicFacts::new("igb", 1500, &wanted);
        let expected = Binding { mode: CopyMode::Copy, lost: None };
        assert_eq!(binding(&wanted, &facts, 2048), Ok(expected));
    }

    #[test]
    fn interfaces_that_receive_nothing_are_refused_and_slow_ones_named() {
        let auto = nic(CopyMode::Auto, XdpMode::Auto);
        let native = nic(CopyMode::Auto, XdpMode::Native);
        for driver in ["vrf", "dummy"] {
            assert!(receives(&auto, driver).is_err(), "{driver}");
        }
        let refused = receives(&native, "bonding").unwrap_err();
        assert!(refused.fix.contains("xdp = \"generic\""), "{refused:?}");
        for driver in ["igb", "veth", "bonding", "bridge", "macvlan"] {
            assert_eq!(receives(&auto, driver), Ok(()), "{driver}");
        }
        assert_eq!(receives(&native, "igb"), Ok(()));
        let (mode, reason) = attach_mode(&auto, "bonding");
        assert!(mode == XdpMode::Generic && reason.is_some());
        assert_eq!(attach_mode(&auto, "igb"), (XdpMode::Auto, None));
        for (driver, slow) in [("macvlan", true), ("802.1Q VLAN Support", true), ("igb", false)] {
            assert_eq!(upper(&auto, driver).is_some(), slow, "{driver}");
        }
    }
}
