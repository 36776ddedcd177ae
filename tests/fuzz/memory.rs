//! The state of an earlier process, damaged: tables that are taken over in place or imported, and
//! the registry, with a checksum that is right all the same.
//!
//! ```text
//! start:1 { file:1 place:4 bytes:1 data }...
//! start  bit 0  another number of workers: pins are imported
//!        bit 1  the checksum of the registry is set right
//! bytes  0: the file ends at `place`
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast::config::{self, Config};
use holdfast::control::saved::Moment;
use holdfast::flow::entry::{Pin, State};
use holdfast::flow::snat::SnatAllocator;
use holdfast::flow::writer::FlowWriter;
use holdfast::net::{
    Address, BackendId, BackendIndex, Family, FlowKey, NextHop, NicIndex, Protocol, VipId,
};
use holdfast::saved::{self, Directory, Document, Facts, Tables};
use holdfast::units::Ticks;
use siphasher::sip::SipHasher13;
use tokio::time::Instant;

use crate::bytes::Bytes;

/// Changes of an input at most.
const CHANGES: usize = 16;
const SEED: u64 = 7;
const NOW: Ticks = Ticks(1000);
const BACKEND: BackendId = BackendId { index: BackendIndex(1), generation: 0 };

const CONFIG: &str = r#"
    workers = { cores = [0], flows = 1024, clients = 1024 }
    fragments = { datagrams = 64 }
    full_nat = { sources = ["10.0.0.48"], ports = "1024-1123", announce = "none" }
    nic = [{ interface = "eth0" }]
    [[vip]]
    name = "web"
    address = "192.0.2.1"
    ports = [80]
    forward = "full_nat"
    backend = [{ name = "a", address = "198.18.2.1" }, { name = "b", address = "198.18.2.2" }]
"#;

struct Saved {
    root: PathBuf,
    /// Files of a process that has ended, by their paths.
    files: Vec<(PathBuf, Vec<u8>)>,
    config: Config,
}

thread_local! {
    static SAVED: Saved = Saved::new();
}

pub fn run(input: &[u8]) {
    SAVED.with(|saved| saved.run(Bytes::new(input)));
}

fn directory(root: &Path) -> Directory {
    Directory::open(root, Path::new("/run/control.sock")).unwrap()
}

fn moment() -> Moment {
    Moment { instant: Instant::now(), ticks: NOW }
}

fn open(directory: &Directory, config: &Config) -> Tables {
    saved::open(Some(directory), config, SEED, &moment(), &|_, make| make()).unwrap()
}

fn key(port: u16) -> FlowKey {
    let [client, vip] = [[198, 18, 1, 1], [192, 0, 2, 1]].map(Address::from_v4);
    FlowKey { client, vip, client_port: port, vip_port: 80, protocol: Protocol::Tcp }
}

fn pin() -> Pin {
    let hop = NextHop { nic: NicIndex(0), mac: [2, 0, 0, 0, 0, 9], vlan: None };
    Pin::new(VipId(0), BACKEND, State::ESTABLISHED, 0, &hop, Ticks(900))
}

impl Saved {
    /// Saves tables with some pins.
    fn new() -> Self {
        let config = config::parse(CONFIG, "memory").map_err(|e| e.messages()).unwrap();
        let root = PathBuf::from(format!("/dev/shm/holdfast-fuzz-{}", std::process::id()));
        let directory = directory(&root);
        let Tables { shared, mut registry, set, .. } = open(&directory, &config);
        let mut writer = FlowWriter::new(Arc::clone(&shared.flows[0])).unwrap();
        let secret = shared.flows[0].secret().clone();
        for port in 1..=40 {
            writer.insert(&secret.hash(key(port).into()), &pin()).unwrap();
        }
        registry.apply(&config.vips, &[], Instant::now()).unwrap();
        let saved = registry.save(&moment());
        let document = Document::new(set, SEED, Facts::of(&config), saved);
        directory.write(&document.to_bytes().unwrap()).unwrap();
        let mut files = Vec::new();
        collect(&root, &mut files);
        files.sort();
        Self { root, files, config }
    }

    fn run(&self, mut input: Bytes<'_>) {
        let start = input.byte();
        let mut files = self.files.clone();
        for _ in 0..CHANGES {
            if input.is_empty() {
                break;
            }
            let at = usize::from(input.byte()) % files.len();
            let file = &mut files[at].1;
            let place = usize::try_from(input.long()).unwrap() % (file.len() + 1);
            let len = usize::from(input.byte());
            let data = input.take(len);
            match len {
                0 => file.truncate(place),
                _ => file.iter_mut().skip(place).zip(data).for_each(|(old, new)| *old = *new),
            }
        }
        for (path, bytes) in &mut files {
            if start & 2 != 0 && path.ends_with("registry") {
                seal(bytes);
            }
            // A new file, as the tables of the last input may still be mapped.
            let _ = fs::remove_file(&path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            private(path);
        }
        let mut config = self.config.clone();
        if start & 1 != 0 {
            config.workers.cores = vec![0, 1];
        }
        let directory = directory(&self.root);
        use_tables(open(&directory, &config));
        directory.clear();
    }
}

/// Does what workers and control do with tables.
fn use_tables(tables: Tables) {
    let Tables { shared, mut registry, losses, .. } = tables;
    assert!(losses.iter().all(|loss| !loss.is_empty()));
    let _ = registry.specs();
    let config = config::parse(CONFIG, "memory").map_err(|e| e.messages()).unwrap();
    let _ = registry.apply(&config.vips, &[], Instant::now());
    let _ = registry.save(&moment());
    for (worker, table) in (0..).zip(shared.flows.iter()) {
        for position in 0..table.positions() {
            if let Some(entry) = table.pin_at(position) {
                let _ = table.lookup(&table.secret().hash(entry.key.into()));
                let state = entry.pin.flow_state;
                let _ = shared.snat_table.return_hop(&state);
                if let Some(port) = state.snat_port() {
                    let _ = shared.snat_table.read(port);
                    let _ = shared.snat_table.sources().source(port);
                }
            }
        }
        let mut writer = FlowWriter::take_over(Arc::clone(table));
        let secret = table.secret().clone();
        let _ = SnatAllocator::new(&shared.snat_table, worker, &secret).free(Family::V4);
        // Behind whatever is there, new flows are found.
        for port in 1000..1100 {
            let key = secret.hash(key(port).into());
            if writer.insert(&key, &pin()).is_ok() {
                assert!(table.lookup(&key).is_some(), "a flow is lost: port {port}");
            }
        }
        for port in 1..=40 {
            if let Some((slot, _)) = table.lookup(&secret.hash(key(port).into())) {
                writer.remove(slot);
            }
        }
    }
    for position in 0..shared.clients.positions() {
        let _ = shared.clients.at(position);
    }
}

fn collect(folder: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => collect(&entry.path(), files),
            false if entry.file_name() == "lock" => {}
            false => files.push((entry.path(), fs::read(entry.path()).unwrap())),
        }
    }
}

fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o700)).unwrap();
}

/// Sets the checksum in the first line of a registry right.
fn seal(bytes: &mut [u8]) {
    let Some(newline) = bytes.iter().position(|&byte| byte == b'\n') else { return };
    let sum = format!("{:016x}", SipHasher13::new().hash(&bytes[newline + 1..]));
    if let Some(from) = newline.checked_sub(sum.len()) {
        bytes[from..newline].copy_from_slice(sum.as_bytes());
    }
}
