//! Requests to the control API: the control thread runs in a thread, and each input is the bytes of
//! a connection.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use holdfast::config::{self, Config};
use holdfast::control::state::Registry;
use holdfast::control::{self, HandOver, Inputs, NicView, WorkerView};
use holdfast::flow::shared::{SharedTables, TableSizes};
use holdfast::flow::table::{Families, FlowTable};
use holdfast::forwarding::publish::Publisher;
use holdfast::forwarding::{ForwardingTable, Local};
use holdfast::net::TableSecret;
use holdfast::privileges::Kept;
use holdfast::stats::WorkerStats;
use holdfast::units::Ticks;

use super::no_steering::NoSteering;

/// Longer than any answer takes, and than the time-out of a header.
const PATIENCE: Duration = Duration::from_secs(30);

/// `scripts/fuzz` runs targets in a network namespace without links, so that the control thread asks
/// no host for a neighbour.
const CONFIG: &str = r#"
    workers = { cores = [0], flows = 1024 }
    nic = [{ interface = "lo" }]
    [[vip]]
    name = "web"
    address = "192.0.2.1"
    ports = [80]
    forward = "nat"
    announce = "none"
    health = { kind = "none" }
    drain = { slow_start_s = 0 }
    backend = [{ name = "a", address = "198.51.100.1" }, { name = "b", address = "198.51.100.2" }]
"#;

/// Wait for a response.
const MOMENT: Duration = Duration::from_millis(5);

static SOCKET: OnceLock<PathBuf> = OnceLock::new();

pub fn run(input: &[u8]) {
    let socket = SOCKET.get_or_init(serve);
    let mut stream = UnixStream::connect(socket).expect("the API is served");
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    // The server may close early.
    let _ = stream.write_all(input);
    // A server drops a request whose client closes. Most inputs are no complete request, for which
    // no response comes.
    let mut response = vec![0; 64 << 10];
    stream.set_read_timeout(Some(MOMENT)).unwrap();
    let first = stream.read(&mut response).unwrap_or(0);
    response.truncate(first);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.shutdown(Shutdown::Write);
    if let Err(error) = stream.read_to_end(&mut response) {
        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "no end of the response");
    }
    assert!(response.is_empty() || response.starts_with(b"HTTP/1."), "{response:?}");
    let server_error = response.starts_with(b"HTTP/1.1 500");
    assert!(!server_error, "{}", String::from_utf8_lossy(&response));
}

fn parsed() -> Config {
    config::parse(CONFIG, "api").map_err(|errors| errors.messages()).unwrap()
}

/// Starts a control thread; returns the path of its socket when it answers.
fn serve() -> PathBuf {
    let folder = PathBuf::from(format!("/dev/shm/holdfast-fuzz-api-{}", std::process::id()));
    let socket = folder.join("control.sock");
    let path = socket.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_signals, receiver) = tokio::sync::mpsc::channel(1);
            control::serve(inputs(&path), receiver).await.expect("the control thread goes on");
        });
    });
    while UnixStream::connect(&socket).is_err() {
        thread::sleep(Duration::from_millis(10));
    }
    socket
}

fn inputs(socket: &Path) -> Inputs {
    let secret = TableSecret::new(1);
    let flows = Arc::new(FlowTable::new(64, secret.clone(), Families::BOTH).unwrap());
    let stats = Arc::new(WorkerStats::new(4096, 16_384, 1));
    let (sender, events) = crossbeam_channel::bounded(1);
    let first = ForwardingTable::build(0, [0; 16], Local::default(), &[], None);
    let (publisher, _tables) = Publisher::new(first);
    Inputs {
        config: parsed(),
        config_path: PathBuf::from("holdfast.toml"),
        load: Arc::new(|_| Ok(parsed())),
        control_socket: control::admin::claim(socket).unwrap(),
        workers: vec![WorkerView { core: 0, stats, flows: Arc::clone(&flows) }],
        nics: vec![NicView {
            interface: "lo".to_owned(),
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
        publisher,
        steering: Box::new(NoSteering),
        send_frame: Box::new(|_, _| Ok(())),
        shared: SharedTables::new(Arc::from([flows]), &secret, TableSizes::default()).unwrap(),
        events,
        clock: Arc::new(|| Ticks(0)),
        explain: Arc::new(|_, _| Err("nothing is forwarded here".to_owned())),
        privileges: Kept::default(),
        hand_over: HandOver::default(),
        // The control thread ends when the sender does.
        ready: Box::new(move || std::mem::forget(sender)),
    }
}
