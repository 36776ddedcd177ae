//! Reloads leave nothing in memory that grows with their number. A counting allocator watches the
//! whole control plane.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![allow(unsafe_code, reason = "a global allocator is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast::config::{self, Config};
use holdfast::control::state::Registry;
use holdfast::control::{self, HandOver, Inputs, NicView, Signal, WorkerView};
use holdfast::flow::shared::{SharedTables, TableSizes};
use holdfast::flow::table::{Families, FlowTable};
use holdfast::forwarding::publish::Publisher;
use holdfast::forwarding::{ForwardingTable, Local};
use holdfast::net::TableSecret;
use holdfast::privileges::Kept;
use holdfast::stats::WorkerStats;
use holdfast::units::Ticks;

/// The system's allocator, which counts the bytes in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[path = "support/no_steering.rs"]
mod no_steering;

use no_steering::NoSteering;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Backends that each reload replaces.
const REPLACED: u32 = 50;
/// Reloads until bounded lists are full (events: 1,024, one for each backend and reload) and
/// indices have wrapped once.
const WARM: u32 = 30;
/// Reloads between the two compared figures: enough that a leak of each would exceed the memory
/// that checks, timers and capacities of tables take at times (40 KiB up or down, measured).
const COMPARED: u32 = 100;
/// Bytes that one removal may leave: a fifth of the size of an index for each.
const BYTES_PER_REMOVAL: usize = 32;

/// One VIP, with other backends in every round, none of which existed before.
fn file(round: u32) -> Config {
    let mut text = String::from(
        "[workers]\ncores = [0]\n[[nic]]\ninterface = \"eth0\"\n[[vip]]\nname = \"web\"\n\
         address = \"192.0.2.10\"\nports = [80]\nforward = \"nat\"\nannounce = \"none\"\non_remove = \"rehash\"\n\
         scheduler = { kind = \"maglev\", table_size = 1009 }\n\
         health = { interval_ms = 10000, timeout_ms = 1000 }\n",
    );
    for number in round * REPLACED..(round + 1) * REPLACED {
        let [_, _, high, low] = number.to_be_bytes();
        text += &format!(
            "[[vip.backend]]\nname = \"b{:05}\"\naddress = \"10.1.{high}.{low}\"\nport = 9\n",
            number
        );
    }
    let mut config = config::parse(&text, "holdfast.toml").unwrap();
    for backend in config.vips.iter_mut().flat_map(|vip| &mut vip.backends) {
        // Loopback addresses, which a file may not have, so that nothing leaves this machine.
        let IpAddr::V4(address) = backend.address else { continue };
        let [_, a, b, c] = address.octets();
        backend.address = [127, a, b, c].into();
    }
    config
}

fn inputs(directory: &Path, round: Arc<AtomicU32>, publisher: Publisher) -> Inputs {
    let flows = Arc::new(FlowTable::new(64, TableSecret::new(1), Families::BOTH).unwrap());
    let stats = Arc::new(WorkerStats::new(4096, 16_384, 1));
    let (sender, events) = crossbeam_channel::bounded(1);
    Inputs {
        config: file(0),
        config_path: PathBuf::from("holdfast.toml"),
        load: Arc::new(move |_| Ok(file(round.load(Ordering::Relaxed)))),
        control_socket: control::admin::claim(&directory.join("control.sock")).unwrap(),
        workers: vec![WorkerView { core: 0, stats, flows }],
        nics: vec![NicView {
            interface: "eth0".to_owned(),
            ifindex: 999_999,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            driver: "veth".to_owned(),
            mode: "copy".to_owned(),
            multi_buffer: false,
            queues: vec![0],
            rx_queues: 1,
            fallbacks: Vec::new(),
        }],
        registry: Registry::default(),
        save: None,
        privileges: Kept::default(),
        publisher,
        steering: Box::new(NoSteering),
        send_frame: Box::new(|_, _| Ok(())),
        shared: SharedTables::new(Arc::from([]), &TableSecret::new(1), TableSizes::default())
            .unwrap(),
        events,
        clock: Arc::new(|| Ticks(0)),
        explain: Arc::new(|_, _| Err("nothing is forwarded here".to_owned())),
        hand_over: HandOver::default(),
        ready: Box::new(move || drop(sender)),
    }
}

#[tokio::test]
async fn reloads_leave_nothing_behind_that_grows() {
    let directory = std::env::temp_dir().join(format!("hf-memory-{}", std::process::id()));
    let first = ForwardingTable::build(0, [0; 16], Local::default(), &[], None);
    let (publisher, mut tables) = Publisher::new(first);
    let round = Arc::new(AtomicU32::new(0));
    let (signals, receiver) = tokio::sync::mpsc::channel(4);
    let figures = Mutex::new(Vec::new());
    let reloads = async {
        for target in [WARM, WARM + COMPARED] {
            while round.load(Ordering::Relaxed) < target {
                let known = |address: u32, tables: &ForwardingTable| {
                    let [_, _, high, low] = (address * REPLACED).to_be_bytes();
                    let is_it = |ip: holdfast::net::Address| {
                        IpAddr::from(ip) == IpAddr::from([127, 1, high, low])
                    };
                    (0..16_384).any(|index| {
                        let backend = tables.backend(holdfast::net::BackendIndex(index));
                        backend.is_some_and(|backend| is_it(backend.address))
                    })
                };
                let next = round.fetch_add(1, Ordering::Relaxed) + 1;
                signals.send(Signal::Reload).await.unwrap();
                while !known(next, tables.current()) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            // Polls until old tables are freed, and a moment passes without checks.
            let mut least = usize::MAX;
            for _ in 0..40 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                least = least.min(IN_USE.load(Ordering::Relaxed));
            }
            figures.lock().unwrap().push(least);
        }
        signals.send(Signal::Stop).await.unwrap();
    };
    let served = control::serve(inputs(&directory, Arc::clone(&round), publisher), receiver);
    let (ended, ()) = tokio::join!(served, reloads);
    ended.unwrap();
    let _ = std::fs::remove_dir_all(&directory);
    let figures = figures.into_inner().unwrap();
    let [before, after] = figures[..] else { unreachable!("{figures:?}") };
    let removals = usize::try_from(COMPARED * REPLACED).unwrap();
    assert!(
        after < before + removals * BYTES_PER_REMOVAL,
        "{removals} removals took {figures:?} bytes"
    );
}
