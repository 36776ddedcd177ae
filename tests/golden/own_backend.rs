//! A server that is a client of the VIP that it serves: `nat` never sends it to itself.

use std::net::IpAddr;

use holdfast::forwarding::sticky::{Hold, Reentry, Remember, Sticky};
use holdfast::forwarding::{Affinity, SchedulerKind, VipSpec};
use holdfast::net::{Forward, Protocol};
use holdfast::stats::{Drop, LocalReply};
use holdfast::units::Ticks;

use super::fragments::datagram;
use super::icmp::FAMILIES;
use crate::rig::{Family, Rig, SCHEDULERS, backend_mac, nic_mac, spec, tcp_of};

fn from_backend(family: Family, protocol: Protocol, index: u16, port: u16, flags: &str) -> Vec<u8> {
    let (client, vip) = ((family.backend(index), port), (family.vip(), 80));
    match protocol {
        Protocol::Tcp => tcp_of(client, vip, flags),
        _ => datagram([client, vip], [backend_mac(index), nic_mac(0)], 20),
    }
}

/// Every scheduler, TCP and UDP, with pins and without; new flows and flows that lost their pin.
#[test]
fn a_server_is_given_another_one() {
    for (family, scheduler) in
        FAMILIES.into_iter().flat_map(|family| SCHEDULERS.map(|scheduler| (family, scheduler)))
    {
        for (protocol, pin, flags) in [
            (Protocol::Tcp, true, "S"),
            (Protocol::Tcp, true, "A"),
            (Protocol::Udp, true, ""),
            (Protocol::Udp, false, ""),
        ] {
            if !pin && scheduler.counts_flows() {
                continue;
            }
            let vip = VipSpec {
                protocol,
                ..spec(0, Forward::Nat, family, 1, 3).with(|policy| {
                    policy.pin = pin;
                    policy.scheduler = scheduler;
                })
            };
            let mut rig = Rig::new(1, 1, vec![vip]);
            for port in 1000..1060 {
                let packet = from_backend(family, protocol, 1, port, flags);
                let sent = rig.send(0, 0, &packet);
                let name = format!("{family:?} {scheduler:?} {protocol:?} {pin} {flags}");
                assert_eq!(sent.len(), 1, "{name}");
                assert_ne!(sent[0].destination().0, sent[0].source().0, "{name}");
            }
            let taken = [0, 2].map(|index: usize| rig.stats(0).backends[index].packets_in.get());
            assert_eq!(taken.iter().sum::<u64>(), 60);
            assert!(taken.iter().all(|&count| count > 0), "both others: {taken:?}");
            rig.assert_accounted();
        }
    }
}

#[test]
fn without_another_backend_the_client_is_dropped_by_name_or_refused() {
    for (family, protocol) in FAMILIES
        .into_iter()
        .flat_map(|family| [Protocol::Tcp, Protocol::Udp].map(|protocol| (family, protocol)))
    {
        for (pin, reject_no_backend) in [(true, false), (true, true), (false, false), (false, true)]
        {
            if !pin && protocol == Protocol::Tcp {
                continue;
            }
            let mut vip = VipSpec {
                protocol,
                ..spec(0, Forward::Nat, family, 1, 2).with(|policy| {
                    policy.pin = pin;
                    policy.reject_no_backend = reject_no_backend;
                })
            };
            vip.backends[0].up = false;
            let mut rig = Rig::new(1, 1, vec![vip]);
            let sent = rig.send(0, 0, &from_backend(family, protocol, 1, 1000, "S"));
            let stats = rig.stats(0);
            let told = [LocalReply::Rejected, LocalReply::Unreachable];
            let told: u64 =
                told.iter().map(|&answer| stats.local_reply_counter(answer).get()).sum();
            let dropped = rig.drops(0, Drop::ClientIsBackend);
            let expected = if reject_no_backend { (1, 1, 0) } else { (0, 0, 1) };
            assert_eq!((sent.len(), told, dropped), expected, "{family:?} {protocol:?} {pin}");
            assert_eq!(stats.flows_active.get(), 0);
            rig.assert_accounted();
        }
    }
}

/// The mapping of a client does not lead it to itself: two servers within one prefix.
#[test]
fn a_servers_mapping_does_not_lead_it_to_itself() {
    for (family, on_reentry) in FAMILIES
        .into_iter()
        .flat_map(|family| [Reentry::Hash, Reentry::Freest].map(|reentry| (family, reentry)))
    {
        let sticky = (on_reentry == Reentry::Hash)
            .then_some(Sticky { on_drain: Hold::Release, on_down: Hold::Release });
        let remember = Remember { timeout: Ticks(1000), sticky, on_reentry };
        let vip = spec(0, Forward::Nat, family, 1, 3).with(|policy| {
            policy.remember = Some(remember);
            policy.affinity = Affinity::ClientPrefix { v4: 24, v6: 64 };
        });
        let mut rig = Rig::new(1, 1, vec![vip]);
        for round in 0..20 {
            for client in 0..3 {
                let port = 1000 + round;
                let syn = from_backend(family, Protocol::Tcp, client, port, "S");
                let sent = rig.send(0, 0, &syn);
                assert_eq!(sent.len(), 1, "{family:?} {on_reentry:?}");
                assert_ne!(sent[0].destination().0, sent[0].source().0);
                let ack = from_backend(family, Protocol::Tcp, client, port, "A");
                assert_eq!(rig.send(0, 0, &ack)[0].destination(), sent[0].destination());
            }
            rig.skip(150);
        }
        rig.assert_accounted();
    }
}

/// `dsr` and `full_nat` allow it: there the packet does not get two equal addresses.
#[test]
fn other_modes_may_give_a_server_itself() {
    for (family, forward) in FAMILIES
        .into_iter()
        .flat_map(|family| [Forward::Dsr, Forward::FullNat].map(|forward| (family, forward)))
    {
        let vip = spec(0, forward, family, 1, 3)
            .with(|policy| policy.scheduler = SchedulerKind::RoundRobin);
        let mut rig = Rig::new(1, 1, vec![vip]);
        for port in 1000..1030 {
            let sent = rig.send(0, 0, &from_backend(family, Protocol::Tcp, 1, port, "S"));
            let addresses: [IpAddr; 2] = [sent[0].source().0, sent[0].destination().0];
            assert_ne!(addresses[0], addresses[1]);
        }
        let taken = [0, 1, 2].map(|index: usize| rig.stats(0).backends[index].packets_in.get());
        assert_eq!(taken, [10; 3], "{family:?} {forward:?}");
        rig.assert_accounted();
    }
}
