use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use tokio::time::Instant;

use super::*;
use crate::config::{Config, FullNat, State};
use crate::control::reload::tests::config as of_vips;
use crate::control::saved::{Moment, SavedRegistry};
use crate::control::state::tests::{backend, vip};
use crate::flow::clients;
use crate::flow::entry::{Pin, State as FlowState};
use crate::flow::snat::SnatFlow;
use crate::flow::splices::{Answer, Offer, Place, Splice};
use crate::flow::writer::FlowWriter;
use crate::net::{Address, BackendId, BackendIndex, FlowKey, NextHop, NicIndex, Protocol, VipId};
use crate::units::Ticks;

/// A directory in memory that is removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = format!("/dev/shm/holdfast-unit-{}-{name}", std::process::id());
        Self(PathBuf::from(path))
    }

    fn directory(&self) -> Directory {
        Directory::open(&self.0, Path::new("/run/holdfast/control.sock")).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn config(workers: usize, sources: &[&str]) -> Config {
    let mut config = of_vips(vec![vip("web", &[backend("a", 1), backend("b", 2)])]);
    config.workers.cores = (0..workers).collect();
    config.workers.flows = 1024;
    config.state = State { directory: None };
    let sources = sources.iter().map(|text| text.parse().unwrap()).collect();
    config.full_nat = FullNat { sources, ports: 1024..=1123, ..FullNat::default() };
    config
}

fn opened(directory: &Directory, config: &Config) -> Tables {
    let moment = Moment { instant: Instant::now(), ticks: Ticks(1000) };
    open(Some(directory), config, 7, &moment, &|_, make| make()).unwrap()
}

/// Saves the registry with the configuration's VIPs in it, as a process does.
fn save(directory: &Directory, config: &Config, tables: Tables) -> SavedRegistry {
    let moment = Moment { instant: Instant::now(), ticks: Ticks(1000) };
    let Tables { mut registry, shared, set, .. } = tables;
    registry.apply(&config.vips, &[], moment.instant).unwrap();
    let saved = registry.save(&moment);
    let seed = shared.flows[0].secret().seed();
    let document = Document::new(set, seed, Facts::of(config), saved.clone());
    directory.write(&document.to_bytes().unwrap()).unwrap();
    directory.keep_only(set);
    saved
}

fn key(port: u16) -> FlowKey {
    let [client, vip] = [[198, 18, 1, 1], [192, 0, 2, 1]].map(Address::from_v4);
    FlowKey { client, vip, client_port: port, vip_port: 80, protocol: Protocol::Tcp }
}

const BACKEND: BackendId = BackendId { index: BackendIndex(1), generation: 0 };

fn hop(nic: u8) -> NextHop {
    NextHop { nic: NicIndex(nic), mac: [2, 0, 0, 0, 0, 9], vlan: Some(7.into()) }
}

/// Pins flows in the tables of all workers, each second one with a SNAT port if there are any.
fn pin_flows(tables: &Tables, flows: u16) {
    let shared = &tables.shared;
    for (worker, table) in (0_u8..).zip(shared.flows.iter()) {
        let mut writer = FlowWriter::new(std::sync::Arc::clone(table)).unwrap();
        let secret = table.secret().clone();
        let mut snat = crate::flow::snat::SnatAllocator::new(&shared.snat_table, worker, &secret);
        for port in (0..flows).filter(|port| port % 2 == u16::from(worker) % 2) {
            let mut pin =
                Pin::new(VipId(0), BACKEND, FlowState::ESTABLISHED, worker, &hop(0), Ticks(900));
            if port % 4 < 2 {
                let return_hop = crate::flow::entry::ReturnHop::of(&hop(0));
                let (flow, backend) = (key(port), BACKEND);
                let snat_flow = SnatFlow {
                    flow,
                    backend,
                    return_hop,
                    isn: Some(port.into()),
                    answered: true,
                    acknowledged: false,
                };
                let family = crate::net::Family::V4;
                if let Some(id) = snat.bind(&shared.snat_table, family, &snat_flow) {
                    pin = pin.with_snat_port(id);
                }
            }
            writer.insert(&secret.hash(key(port).into()), &pin).unwrap();
        }
    }
    let client = clients::Key { vip: VipId(0), client: key(0).client, part: 1 };
    shared.clients.assign(&client, BACKEND, Ticks(900), |_, _| true).unwrap();
}

/// A pin as a later process sees it: its port, worker, SNAT address and port, and return hop.
type Seen = (u16, usize, Option<(Address, u16)>, NextHop);

fn pins(tables: &Tables) -> Vec<Seen> {
    let shared = &tables.shared;
    let mut found = Vec::new();
    for (worker, table) in shared.flows.iter().enumerate() {
        for entry in (0..table.positions()).filter_map(|at| table.pin_at(at)) {
            let flow_state = entry.pin.flow_state;
            assert_eq!((flow_state.backend(), usize::from(flow_state.owner())), (BACKEND, worker));
            let looked_up = table.lookup(&table.secret().hash(entry.key.into()));
            assert_eq!(looked_up.map(|(_, pin)| pin), Some(entry.pin), "found by its hash");
            let source = flow_state.snat_port().map(|id| {
                assert_eq!(usize::from(shared.snat_table.owner(id)), worker);
                assert_eq!(shared.snat_table.read(id).unwrap().snat_flow.flow, entry.key);
                shared.snat_table.sources().source(id).unwrap()
            });
            let hop = shared.snat_table.return_hop(&flow_state);
            found.push((entry.key.client_port, worker, source, hop));
        }
    }
    found.sort_by_key(|(port, ..)| *port);
    found
}

#[test]
fn the_next_process_continues_in_place() {
    let scratch = Scratch::new("place");
    let config = config(2, &["198.18.9.1"]);
    let directory = scratch.directory();
    let tables = opened(&directory, &config);
    assert!(!tables.continues && tables.losses.is_empty());
    pin_flows(&tables, 100);
    let before = pins(&tables);
    assert_eq!(before.len(), 100);
    assert_eq!(before.iter().filter(|(.., source, _)| source.is_some()).count(), 50);
    let saved = save(&directory, &config, tables);
    assert!(
        matches!(
            Directory::open(&scratch.0, Path::new("/run/holdfast/control.sock")),
            Err(StateError::InUse(_))
        ),
        "one process at a time"
    );
    drop(directory);

    let directory = scratch.directory();
    let tables = opened(&directory, &config);
    assert!(tables.continues && tables.losses.is_empty(), "{:?}", tables.losses);
    assert_eq!((tables.set, pins(&tables)), (1, before));
    let moment = Moment { instant: Instant::now(), ticks: Ticks(1000) };
    assert_eq!(tables.registry.save(&moment), saved);
    let client = clients::Key { vip: VipId(0), client: key(0).client, part: 1 };
    assert_eq!(tables.shared.clients.find(&client).map(|it| it.backend), Some(BACKEND));
}

#[test]
fn pins_are_imported_into_tables_of_another_shape() {
    for (name, change) in [
        ("one worker", (|c| c.workers.cores = vec![0]) as fn(&mut Config)),
        ("three workers", |c| c.workers.cores = vec![0, 1, 2]),
        ("more flows", |c| c.workers.flows = 4096),
        ("more clients", |c| c.workers.clients *= 2),
        ("an address before the others", |c| {
            c.full_nat.sources.insert(0, "198.18.8.8".parse().unwrap());
        }),
        ("other ports", |c| c.full_nat.ports = 1000..=1200),
        ("another NIC first", |c| {
            let first = crate::config::Nic { interface: "eth0".to_owned(), ..c.nics[0].clone() };
            c.nics.insert(0, first);
        }),
    ] {
        let scratch = Scratch::new(&name.replace(' ', "-"));
        let before = config(2, &["198.18.9.1"]);
        let directory = scratch.directory();
        let tables = opened(&directory, &before);
        pin_flows(&tables, 100);
        let expected = pins(&tables);
        save(&directory, &before, tables);
        drop(directory);

        let mut after = before.clone();
        change(&mut after);
        let directory = scratch.directory();
        let tables = opened(&directory, &after);
        assert!(tables.continues && tables.losses.is_empty(), "{name}: {:?}", tables.losses);
        let nic = NicIndex(u8::try_from(after.nics.len() - 1).unwrap());
        let found = pins(&tables);
        assert_eq!(found.len(), 100, "{name}");
        for ((port, _, source, hop), (now_port, _, now_source, now_hop)) in
            expected.iter().zip(&found)
        {
            assert_eq!((port, source), (now_port, now_source), "{name}");
            assert_eq!(NextHop { nic, ..*hop }, *now_hop, "{name}");
        }
        let client = clients::Key { vip: VipId(0), client: key(0).client, part: 1 };
        assert!(tables.shared.clients.find(&client).is_some(), "{name}");
        save(&directory, &after, tables);
        assert!(!scratch.0.join("run-holdfast-control.sock/tables.1").exists(), "{name}");
    }
}

/// Two workers may have pinned one flow, one after the other: the newer pin is imported.
#[test]
fn of_two_pins_of_a_flow_the_newer_one_is_imported() {
    for (created, expected) in [(950, 0), (850, 1)] {
        let scratch = Scratch::new("twice");
        let before = config(2, &[]);
        let directory = scratch.directory();
        let tables = opened(&directory, &before);
        pin_flows(&tables, 2);
        let table = std::sync::Arc::clone(&tables.shared.flows[1]);
        let hashed = table.secret().hash(key(0).into());
        let other = BackendId { index: BackendIndex(0), generation: 0 };
        let at = Ticks(created);
        let pin = Pin::new(VipId(0), other, FlowState::ESTABLISHED, 1, &hop(0), at);
        FlowWriter::new(table).unwrap().insert(&hashed, &pin).unwrap();
        save(&directory, &before, tables);
        drop(directory);
        let tables = opened(&scratch.directory(), &config(1, &[]));
        let table = &tables.shared.flows[0];
        let found = table.lookup(&table.secret().hash(key(0).into())).unwrap().1;
        assert_eq!(found.flow_state.backend().index, BackendIndex(expected), "{created}");
        assert_eq!((0..table.positions()).filter_map(|at| table.pin_at(at)).count(), 2);
    }
}

/// A process whose tables are elsewhere leaves nothing that a later one could take for its own.
#[test]
fn a_cleared_directory_holds_no_pins() {
    let scratch = Scratch::new("cleared");
    let config = config(1, &[]);
    let directory = scratch.directory();
    let tables = opened(&directory, &config);
    pin_flows(&tables, 10);
    save(&directory, &config, tables);
    directory.clear();
    let tables = opened(&directory, &config);
    assert!(!tables.continues && tables.losses.is_empty());
    assert_eq!(pins(&tables), []);
}

#[test]
fn losses_of_an_import_are_counted() {
    let scratch = Scratch::new("losses");
    let before = config(2, &["198.18.9.1", "198.18.9.2"]);
    let directory = scratch.directory();
    let tables = opened(&directory, &before);
    pin_flows(&tables, 100);
    let on_first = pins(&tables)
        .iter()
        .filter(|(.., source, _)| {
            source.is_some_and(|(it, _)| it == Address::from_v4([198, 18, 9, 1]))
        })
        .count();
    save(&directory, &before, tables);
    drop(directory);
    let tables = opened(&scratch.directory(), &config(2, &["198.18.9.2"]));
    let expected = format!("{on_first} pins on SNAT ports that [full_nat] no longer has");
    assert_eq!(tables.losses, [expected]);
    assert_eq!(pins(&tables).len(), 100 - on_first);
}

#[test]
fn no_damaged_document_is_read() {
    let scratch = Scratch::new("document");
    let config = config(1, &[]);
    let directory = scratch.directory();
    let tables = opened(&directory, &config);
    save(&directory, &config, tables);
    let bytes = directory.read().unwrap().unwrap();
    assert!(Document::of_bytes(&bytes).is_ok());
    for length in 0..bytes.len() {
        assert!(Document::of_bytes(&bytes[..length]).is_err(), "cut to {length}");
    }
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x20;
        assert!(Document::of_bytes(&damaged).is_err(), "byte {at}");
    }
}

/// A registry that contradicts itself, though its checksum is right, is not used.
#[test]
fn no_contradictory_registry_is_restored() {
    let scratch = Scratch::new("contradiction");
    let config = config(1, &[]);
    let directory = scratch.directory();
    let tables = opened(&directory, &config);
    let saved = save(&directory, &config, tables);
    let moment = Moment { instant: Instant::now(), ticks: Ticks(0) };
    let restored = |change: &dyn Fn(&mut SavedRegistry)| {
        let mut saved = saved.clone();
        change(&mut saved);
        crate::control::state::Registry::restore(saved, Default::default(), &moment).is_some()
    };
    assert!(restored(&|_| {}));
    type Change<'c> = &'c dyn Fn(&mut SavedRegistry);
    let cases: [(&str, Change<'_>); 6] = [
        ("an index twice", &|r| r.vips[0].backends[0].index = 1),
        ("an index out of range", &|r| r.vips[0].backends[0].index = 9),
        ("another generation", &|r| r.vips[0].backends[0].generation = 3),
        ("an index that is free, too", &|r| r.backend_indices.free.push(0)),
        ("an index of nothing", &|r| r.backend_indices.generations.push(0)),
        ("too many indices", &|r| r.vip_indices.generations = vec![0; 5000]),
    ];
    for (name, change) in cases {
        assert!(!restored(change), "{name}");
    }
}

/// Splices of pins go on with them, in place and in tables of another shape; without them the pins
/// would have wrong numbers, and none is used.
#[test]
fn pins_of_a_vip_with_syn_proxy_go_on_with_their_splices_or_not_at_all() {
    let sources = ["192.0.2.100"];
    for (workers, is_lost) in [(2, false), (3, false), (2, true), (3, true)] {
        let scratch = Scratch::new(&format!("splices-{workers}-{is_lost}"));
        let directory = scratch.directory();
        let mut before = config(2, &sources);
        before.vips[0].policy.syn_proxy = true;
        let tables = opened(&directory, &before);
        pin_flows(&tables, 40);
        let splice = |port: u16| Splice {
            isn: port.into(),
            cookie: 7,
            offer: Offer { mss: port, scale: Some(9), sack: true, timestamp: None, window: 3 },
            answer: Some(Answer { isn: 5, scale: None, clock: 6 }),
        };
        let found = |tables: &Tables| {
            let mut found = Vec::new();
            for (worker, table) in (0_u8..).zip(tables.shared.flows.iter()) {
                for port in 0..40 {
                    let hashed = table.secret().hash(key(port).into());
                    let Some((slot, _)) = table.lookup(&hashed) else { continue };
                    let stamp = table.stamp(slot).unwrap();
                    found.push((port, Place { worker, slot, stamp }));
                }
            }
            found.sort_unstable_by_key(|(port, _)| *port);
            found
        };
        for (port, place) in found(&tables) {
            tables.shared.splices.record(&place, &splice(port));
        }
        save(&directory, &before, tables);
        if is_lost {
            let mut files = walk(&scratch.0).into_iter();
            let file = files.find(|path| path.ends_with("splices_v4")).unwrap();
            std::fs::remove_file(file).unwrap();
            half_made_set(&scratch.0);
        }
        let mut after = config(workers, &sources);
        after.vips[0].policy.syn_proxy = true;
        let tables = opened(&directory, &after);
        let pins = found(&tables);
        if is_lost {
            assert_eq!(pins.len(), 0);
            let client = clients::Key { vip: VipId(0), client: key(0).client, part: 1 };
            assert!(tables.shared.clients.find(&client).is_none(), "of the set that was half made");
            assert!(
                tables.losses.iter().any(|loss| loss.contains("splices")),
                "{:?}",
                tables.losses
            );
            continue;
        }
        assert_eq!(pins.len(), 40, "{:?}", tables.losses);
        for (port, place) in pins {
            assert_eq!(tables.shared.splices.read(&place), Some(splice(port)), "{workers}");
        }
    }
}

/// Makes a copy of the saved set under the next one's number, as a start leaves it that is killed
/// after it has imported clients.
fn half_made_set(folder: &Path) {
    let files = walk(folder).into_iter();
    let saved: Vec<_> = files.filter(|path| path.parent().unwrap().ends_with("tables.1")).collect();
    assert!(!saved.is_empty());
    for path in saved {
        let next = path.parent().unwrap().with_file_name("tables.2");
        if !next.exists() {
            std::fs::DirBuilder::new().mode(0o700).create(&next).unwrap();
        }
        std::fs::copy(&path, next.join(path.file_name().unwrap())).unwrap();
    }
}

/// Returns all files below a folder.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
