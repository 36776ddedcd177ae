//! Datagrams that exceed a packet: requests and replies in fragments, by real kernels.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::lab::{Config, Family, Holdfast, Lab, Topology, vip};

const SOON: Duration = Duration::from_secs(5);
/// Bytes of data: 3 fragments, and 14.
const SIZES: [usize; 2] = [4_000, 20_000];
/// Clients per VIP and size.
const CLIENTS: usize = 6;

#[test]
fn long_datagrams_reach_one_backend_and_are_answered() {
    for topology in Topology::ALL {
        let lab = Lab::up(topology);
        let vips: Vec<_> = ["dsr", "nat", "full_nat"]
            .into_iter()
            .flat_map(|forward| Family::ALL.map(|family| vip(forward, family, true)))
            .collect();
        let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.clone()));
        for vip in &vips {
            let mut backends = BTreeMap::new();
            for number in 0..CLIENTS * SIZES.len() {
                let size = SIZES[number % SIZES.len()];
                let local = format!("{}:0", bracketed(&vip.family.client(0)));
                let socket = lab.udp_socket("client", local.parse().unwrap());
                socket.set_read_timeout(Some(SOON)).unwrap();
                let to = format!("{}:7", bracketed(&vip.address()));
                // Small, large and small again: one flow, one backend.
                for size in [100, size, 100] {
                    let sent: Vec<u8> = (0..=255).cycle().take(size).collect();
                    socket.send_to(&sent, &to).unwrap();
                    let mut back = vec![0; 65_535];
                    let (len, from) = socket.recv_from(&mut back).unwrap_or_else(|error| {
                        panic!("{}: {size} bytes: {error}\n{:#?}", vip.name, holdfast.status())
                    });
                    assert_eq!(from.to_string(), to, "{}", vip.name);
                    let (name, echo) = back[..len].split_at(3);
                    assert!(echo == sent, "{}: another {size} bytes came back", vip.name);
                    backends.entry(number).or_insert_with(Vec::new).push(name.to_vec());
                }
            }
            for names in backends.values() {
                assert!(names.iter().all(|name| *name == names[0]), "{}: {names:?}", vip.name);
            }
        }
        let status = holdfast.status();
        for (reason, count) in status.drops.iter().filter(|(name, _)| name.contains("fragment")) {
            assert_eq!(*count, 0, "{reason}");
        }
        for vip in &status.vips {
            // 3 or 14 fragments and two small ones from each.
            assert!(vip.traffic.packets_in >= 6 * (5 + 16), "{vip:#?}");
        }
        holdfast.assert_packets_accounted_for();
        holdfast.stop();
    }
}

fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}
