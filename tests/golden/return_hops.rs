//! Replies whose return hop is replaced: their client-side router has another MAC, or is gone.

use holdfast::forwarding::{FlowAction, ReplacedHop, VipSpec};
use holdfast::net::{Forward, NextHop, NicIndex, Protocol};

use super::icmp::FAMILIES;
use crate::rig::{CLIENT_MAC, Family, Rig, Sent, nic_mac, spec, tagged, tcp, udp};

/// MAC of the router that takes the place of the client's.
const OTHER_MAC: [u8; 6] = [2, 0xc, 0, 0, 0, 9];

/// Every mode with replies, pinned or not, in both families.
fn vips() -> impl Iterator<Item = (&'static str, Family, VipSpec)> {
    FAMILIES.into_iter().flat_map(|family| {
        let vip = |forward| spec(0, forward, family, 2, 3);
        let unpinned = VipSpec {
            protocol: Protocol::Udp,
            ..vip(Forward::Nat).with(|policy| policy.pin = false)
        };
        [
            ("nat", family, vip(Forward::Nat)),
            ("full_nat", family, vip(Forward::FullNat)),
            ("unpinned", family, unpinned),
        ]
    })
}

fn request(rig: &mut Rig, vip: &VipSpec, family: Family, flags: &str) -> Sent {
    let packet = match vip.protocol {
        Protocol::Udp => udp(family, 40_000, 80, true),
        _ => tcp(family, 40_000, 80, flags),
    };
    Sent::of(0, &packet, rig)
}

/// The reply to a request, as it leaves.
fn reply(rig: &mut Rig, vip: &VipSpec, request: &Sent, flags: &str) -> Sent {
    let packet = match vip.protocol {
        Protocol::Udp => request.udp_reply(),
        _ => request.reply(flags),
    };
    let mut sent = rig.send(0, 1, &packet);
    assert_eq!(sent.len(), 1);
    sent[0].assert_checksums();
    sent.remove(0)
}

fn hop(nic: u8, mac: [u8; 6], vlan: Option<u16>) -> NextHop {
    NextHop { nic: NicIndex(nic), mac, vlan: vlan.map(Into::into) }
}

/// Replaces the client's return hop, for clients of `family`.
fn replace(rig: &mut Rig, family: Family, new: NextHop) {
    let old = hop(0, CLIENT_MAC, None);
    let replaced = ReplacedHop { family: family.into(), old, new };
    rig.change_box(|local| local.replaced_hops = vec![replaced]);
}

#[test]
fn replies_go_to_the_next_hop_that_replaces_their_return_hop() {
    for (name, family, vip) in vips() {
        let mut rig = Rig::new(1, 2, vec![vip.clone()]);
        let first = request(&mut rig, &vip, family, "S");
        let to = |sent: &Sent| (sent.nic, sent.destination_mac(), sent.source_mac(), sent.vlan());
        let direct = (0, CLIENT_MAC, nic_mac(0), None);
        assert_eq!(to(&reply(&mut rig, &vip, &first, "SA")), direct, "{name} {family:?}");
        for (nic, vlan) in [(0, None), (1, None), (1, Some(7))] {
            replace(&mut rig, family, hop(nic, OTHER_MAC, vlan));
            let nic = usize::from(nic);
            let expected = (nic, OTHER_MAC, nic_mac(nic), vlan);
            for flags in ["SA", "A"] {
                assert_eq!(to(&reply(&mut rig, &vip, &first, flags)), expected, "{name}");
            }
        }
        // The hop of clients of the other family is another one.
        let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
        replace(&mut rig, other, hop(1, OTHER_MAC, None));
        assert_eq!(to(&reply(&mut rig, &vip, &first, "A")), direct, "{name} {family:?}");
        rig.change_box(|local| local.replaced_hops.clear());
        assert_eq!(to(&reply(&mut rig, &vip, &first, "A")), direct, "{name} {family:?}");
        rig.assert_accounted();
    }
}

#[test]
fn a_packet_of_the_client_takes_precedence() {
    for (name, family, vip) in vips() {
        let mut rig = Rig::new(1, 2, vec![vip.clone()]);
        let first = request(&mut rig, &vip, family, "S");
        replace(&mut rig, family, hop(1, OTHER_MAC, None));
        assert_eq!(reply(&mut rig, &vip, &first, "SA").nic, 1, "{name}");
        // The client's packets come through another VLAN, and so do its replies.
        rig.advance(1);
        let packet = match vip.protocol {
            Protocol::Udp => udp(family, 40_000, 80, true),
            _ => tcp(family, 40_000, 80, "A"),
        };
        let again = Sent::of(0, &tagged(packet, Some(5)), &mut rig);
        let sent = reply(&mut rig, &vip, &again, "A");
        assert_eq!((sent.nic, sent.destination_mac(), sent.vlan()), (0, CLIENT_MAC, Some(5)));
        rig.assert_accounted();
    }
}

#[test]
fn a_reset_reaches_the_client_by_the_same_next_hop() {
    for family in FAMILIES {
        let vip = spec(0, Forward::Nat, family, 2, 1);
        let mut rig = Rig::new(1, 2, vec![vip.clone()]);
        request(&mut rig, &vip, family, "S");
        let first = request(&mut rig, &vip, family, "A");
        replace(&mut rig, family, hop(1, OTHER_MAC, None));
        rig.change(|specs| specs[0].backends[0].flow_action = FlowAction::Reset);
        let resets = rig.send(0, 1, &first.reply("A"));
        let macs: Vec<_> = resets.iter().map(|sent| (sent.nic, sent.destination_mac())).collect();
        assert!(macs.contains(&(1, OTHER_MAC)), "{macs:?}");
        assert!(!macs.iter().any(|&(_, mac)| mac == CLIENT_MAC), "{macs:?}");
    }
}
