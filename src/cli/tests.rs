//! The commands against a scripted server on a Unix socket in a temporary directory.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use clap::{CommandFactory as _, Parser as _};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use super::client::{Client, ClientError};
use super::table::Look;
use super::*;
use crate::control::api::{self, BackendState, BackendStatus, HealthState};
use crate::forwarding::FlowAction;
use crate::net::{Forward, Protocol};

/// Replies to come, and the requests received.
#[derive(Default)]
struct Script {
    answers: VecDeque<(u16, String)>,
    requests: Vec<String>,
}

/// A server that takes its replies from a script, and repeats the last one.
struct Server {
    folder: PathBuf,
    script: Arc<Mutex<Script>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn new(answers: impl IntoIterator<Item = (u16, String)>) -> Self {
        let folder = folder();
        let listener = UnixListener::bind(folder.join("s")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let script = Script { answers: answers.into_iter().collect(), requests: Vec::new() };
        let script = Arc::new(Mutex::new(script));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let app = Router::new().fallback(answer).with_state(Arc::clone(&script));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                tokio::select! {
                    served = axum::serve(listener, app) => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self { folder, script, stop: Some(stop), thread: Some(thread) }
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("s")
    }

    /// Runs a command line against this server; returns its output, or the error.
    fn run(&self, line: &str) -> Result<String, String> {
        run(line, &self.socket())
    }

    fn requests(&self) -> Vec<String> {
        self.script.lock().unwrap().requests.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
        fs::remove_dir_all(&self.folder).unwrap();
    }
}

async fn answer(State(script): State<Arc<Mutex<Script>>>, request: Request) -> Response {
    let line = format!("{} {}", request.method(), request.uri());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let mut script = script.lock().unwrap();
    script.requests.push(format!("{line} {}", String::from_utf8_lossy(&body)).trim().to_owned());
    let next = if script.answers.len() > 1 {
        script.answers.pop_front()
    } else {
        script.answers.front().cloned()
    };
    let (status, body) = next.unwrap();
    (StatusCode::from_u16(status).unwrap(), body).into_response()
}

/// Creates a unique temporary directory.
fn folder() -> PathBuf {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("holdfast-cli-{}-{number}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn run(line: &str, socket: &Path) -> Result<String, String> {
    let socket = socket.display().to_string();
    let words = ["holdfast"].into_iter().chain(line.split(' ')).chain(["--socket", &socket]);
    let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
    let mut out = Vec::new();
    let result = match cli.command {
        Command::Status(args) => status::status(&args, false, &mut out),
        Command::Drain(args) => drain::drain(&args, false, &mut out),
        Command::Undrain(args) => undrain::undrain(&args, &mut out),
        Command::Reload(args) => reload::reload(&args, &mut out),
        Command::Events(args) => events::events(&args, &mut out),
        Command::Flows(args) => flows::flows(&args, &mut out),
        Command::Clients(args) => clients::clients(&args, &mut out),
        other => return Err(format!("{other:?} asks no server")),
    };
    result.map_err(|error| error.to_string())?;
    Ok(String::from_utf8(out).unwrap())
}

fn ok(document: &impl serde::Serialize) -> (u16, String) {
    (200, serde_json::to_string(document).unwrap())
}

fn backend(name: &str, state: BackendState, flows_active: u64) -> BackendStatus {
    BackendStatus {
        vip: "web".to_owned(),
        name: name.to_owned(),
        address: "10.0.0.11".parse().unwrap(),
        port: Some(8080),
        weight: 1,
        health: HealthState::Up,
        health_detail: String::new(),
        held_down_for_s: None,
        flaps: 0,
        state,
        deadline_in_s: None,
        flows_cut: 0,
        drain: None,
        max_connections: None,
        full: false,
        over_limit: 0,
        share_percent: 100,
        passive_out_for_s: None,
        next_hop: Some(api::NextHopStatus {
            interface: "eth1".to_owned(),
            mac: "02:00:00:00:00:11".to_owned(),
            vlan: None,
            mtu: 1500,
            outer_vlan: None,
        }),
        next_hop_detail: String::new(),
        syns_unanswered: 0,
        ask: None,
        hint: String::new(),
        traffic: api::Traffic { packets_in: 1_234_567, flows_active, ..Default::default() },
    }
}

fn vip(backends: Vec<BackendStatus>) -> api::VipStatus {
    api::VipStatus {
        name: "web".to_owned(),
        address: "192.0.2.10".parse().unwrap(),
        ports: vec![80.into(), 443.into()],
        protocol: Protocol::Tcp,
        forward: Forward::Nat,
        pin: true,
        scheduler: "maglev (table_size 65537)".to_owned(),
        affinity: "flow".to_owned(),
        announced_on: Some("eth1".to_owned()),
        splits: Vec::new(),
        fail_open: false,
        denied: 0,
        not_allowed: 0,
        over_rate: 0,
        backends_up: backends.iter().filter(|backend| backend.is_up()).count(),
        backends_in_service: backends.iter().filter(|backend| backend.is_in_service()).count(),
        traffic: api::Traffic::default(),
        backends,
    }
}

fn nic() -> api::NicStatus {
    api::NicStatus {
        interface: "eth1".to_owned(),
        driver: "veth".to_owned(),
        xdp: "native".to_owned(),
        mode: "copy".to_owned(),
        multi_buffer: true,
        queues: vec![0, 1],
        fallbacks: Vec::new(),
        faults: Vec::new(),
        rx_packets: 1000,
        rx_bytes: 64_000,
        tx_packets: 998,
        tx_bytes: 63_872,
        tx_wakeups: 40,
        bad_descriptors: 0,
        no_free_frame: 0,
        steered: 1000,
        passed: 7,
        no_socket: 0,
        guarded: 0,
        denied: 0,
        not_allowed: 0,
        over_rate: 0,
        kernel_rx_dropped: 0,
        kernel_rx_ring_full: 0,
        kernel_rx_fill_empty: 0,
        kernel_rx_invalid: 0,
        kernel_tx_invalid: 0,
    }
}

fn sample(backends: Vec<BackendStatus>) -> api::Status {
    let totals = api::Totals {
        received: 1000,
        transmitted: 997,
        answered: 1,
        dropped: 2,
        ..Default::default()
    };
    let drops = BTreeMap::from([("no_vip".to_owned(), 2), ("fragment".to_owned(), 0)]);
    let worker = api::WorkerStatus {
        core: 2,
        flow_capacity: 1_048_576,
        flow_aliases: 0,
        totals: totals.clone(),
        drops: drops.clone(),
        batches: 500,
        idle_polls: 10,
        sleeps: 3,
    };
    api::Status {
        version: "0.1.0".to_owned(),
        pid: 42,
        uptime_s: 7440,
        config: "/etc/holdfast.toml".to_owned(),
        generation: 3,
        digests: api::DigestStatus {
            configured: "3f1f0c3b0f0d5a8e".to_owned(),
            in_force: "7c6b5a4938271605".to_owned(),
        },
        log_lines_lost: 0,
        security: api::SecurityStatus {
            capabilities: vec!["CAP_BPF".to_owned(), "CAP_NET_ADMIN".to_owned()],
            seccomp: true,
        },
        totals,
        answers: BTreeMap::from([("echo_replies".to_owned(), 1)]),
        drops,
        vips: vec![vip(backends)],
        removed: Vec::new(),
        full_nat: None,
        flow_tables: vec![api::FlowTableStatus {
            family: "ipv4".to_owned(),
            capacity: 1_048_576,
            used: 15,
            tcp_per_second: Some(34_952),
            udp_per_second: None,
            new_per_second: 1234,
            load_percent: 4,
            hint: None,
        }],
        workers: vec![worker],
        nics: vec![nic()],
    }
}

fn flow() -> api::Flow {
    api::Flow {
        vip: "web".to_owned(),
        backend: "a".to_owned(),
        protocol: Protocol::Tcp,
        client: "198.51.100.7:40000".parse().unwrap(),
        destination: "192.0.2.10:80".parse().unwrap(),
        source: None,
        state: "established".to_owned(),
        age_ms: 61_500,
        idle_ms: 10,
        worker: 1,
    }
}

fn client() -> api::Client {
    api::Client {
        vip: Some("web".to_owned()),
        client: "198.51.100.7".parse().unwrap(),
        part: 1,
        backend: Some("a".to_owned()),
        age_ms: 61_500,
        idle_ms: 2010,
        proven: true,
        expired: false,
    }
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn status_as_tables() {
    let mut down = backend("b", BackendState::Active, 0);
    down.health = HealthState::Down;
    down.health_detail = "connection refused".to_owned();
    down.next_hop = None;
    down.next_hop_detail = "no route to its address; add one (ip route)".to_owned();
    let mut draining = backend("c", BackendState::Draining, 12);
    draining.deadline_in_s = Some(90);
    let backends = vec![backend("a", BackendState::Active, 3), down, draining];
    let server = Server::new([ok(&sample(backends))]);
    let printed = server.run("status").unwrap();
    assert_eq!(printed, include_str!("status.golden.txt"), "found:\n{printed}");
    // The length of a reason is unbounded; the other columns fit a terminal.
    assert!(printed.lines().filter(|line| !line.contains("refused")).all(|line| line.len() < 100));
    let printed = server.run("status --all").unwrap();
    assert_eq!(printed, include_str!("status-all.golden.txt"), "found:\n{printed}");
    assert_eq!(server.requests(), ["GET /v1/status", "GET /v1/status"]);
}

#[test]
fn colours_mark_what_is_down() {
    let mut down = backend("b", BackendState::Active, 0);
    down.health = HealthState::Down;
    let status = sample(vec![down]);
    let print = |colours| {
        let mut out = Vec::new();
        status::print(&status, Look { colours, all: false }, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    assert!(!print(false).contains('\x1b'));
    // 9 is bright red (ECMA-48, 256 colours).
    assert!(print(true).contains("\x1b[38;5;9mdown"), "{:?}", print(true));
}

/// The row of a VIP shows how many of its backends are up: a row that looks normal would hide that
/// none serves.
#[test]
fn a_vip_says_how_many_of_its_backends_serve() {
    let active = |name| backend(name, BackendState::Active, 0);
    let down = |name| BackendStatus { health: HealthState::Down, ..active(name) };
    let unresolved = |name| BackendStatus { next_hop: None, ..active(name) };
    let idle = |name| BackendStatus { weight: 0, ..active(name) };
    let drains = |name| backend(name, BackendState::Draining, 1);
    let (plain, yellow, red) = ("", "\x1b[38;5;11m", "\x1b[38;5;9m");
    for (backends, words, colour) in [
        (vec![active("a"), active("b"), active("c")], "3/3 up", plain),
        (vec![active("a"), active("b"), down("c")], "2/3 up", yellow),
        (vec![active("a"), unresolved("b"), drains("c")], "2/3 up", yellow),
        (vec![down("a"), down("b"), down("c")], "0/3 up", red),
        (vec![unresolved("a"), down("b")], "0/2 up", red),
        (vec![drains("a"), idle("b")], "2/2 up, none in service", red),
    ] {
        let status = sample(backends);
        let print = |colours| {
            let mut out = Vec::new();
            status::print(&status, Look { colours, all: false }, &mut out).unwrap();
            let text = String::from_utf8(out).unwrap();
            text.lines().find(|line| line.contains("192.0.2.10")).unwrap().to_owned()
        };
        assert!(print(false).contains(&format!(" {words} ")), "{}", print(false));
        assert!(print(true).contains(&format!("{colour}{words}")), "{words}: {:?}", print(true));
    }
}

/// A backend that is up and does not reply is named, with the possible fault.
#[test]
fn a_backend_that_answers_no_client_is_hinted_at() {
    let mut silent = backend("b", BackendState::Active, 0);
    silent.syns_unanswered = 23;
    silent.hint = "23 of 25 recent SYNs were not answered".to_owned();
    let server = Server::new([ok(&sample(vec![backend("a", BackendState::Active, 0), silent]))]);
    let printed = server.run("status").unwrap();
    let row = printed.lines().find(|line| line.contains("web/b")).unwrap();
    assert!(
        row.contains("  23  ") && row.ends_with("23 of 25 recent SYNs were not answered"),
        "{row}"
    );
}

#[test]
fn faults_of_a_nic_come_first() {
    let mut status = sample(Vec::new());
    let nic = status.nics.first_mut().unwrap();
    let (kind, text) = ("mac_changed".to_owned(), "its MAC is another".to_owned());
    nic.faults.push(api::NicFaultStatus { kind, text });
    nic.fallbacks.push("generic XDP is used".to_owned());
    let server = Server::new([ok(&status)]);
    let printed = server.run("status").unwrap();
    let (faults, vips) = (printed.find("NIC FAULTS"), printed.find("VIPS"));
    assert!(faults.is_some() && faults < vips, "{printed}");
    assert!(printed.contains("eth1  mac changed  its MAC is another"), "{printed}");
    assert!(printed.contains("generic XDP is used"), "{printed}");
}

#[test]
fn status_as_the_servers_document() {
    let mut document = serde_json::to_value(sample(Vec::new())).unwrap();
    // A key of a newer server is kept.
    document.as_object_mut().unwrap().insert("added_later".to_owned(), json!(1));
    let server = Server::new([ok(&document)]);
    let printed = server.run("status --json").unwrap();
    assert_eq!(serde_json::from_str::<Value>(&printed).unwrap(), document);
    assert!(printed.lines().count() > 50, "it is laid out for people");
}

#[test]
fn drain_orders_and_says_what_is_left() {
    let mut status = backend("a", BackendState::Draining, 1);
    status.deadline_in_s = Some(1800);
    let server = Server::new([ok(&status)]);
    let printed = server.run("drain web/a --deadline 30m").unwrap();
    assert_eq!(printed, "web/a: draining, 1 flow left, deadline in 30m 0s\n");
    let request = r#"POST /v1/drain {"vip":"web","backend":"a","deadline_s":1800}"#;
    assert_eq!(server.requests(), [request]);
}

#[test]
fn a_drain_that_goes_on_says_that_its_deadline_holds() {
    let mut status = backend("a", BackendState::Draining, 2);
    status.deadline_in_s = Some(59);
    let server = Server::new([ok(&status)]);
    assert_eq!(
        server.run("drain web/a").unwrap(),
        "web/a: drains already, its deadline stays: in 59s; --deadline moves it\n\
         web/a: draining, 2 flows left, deadline in 59s\n"
    );
    status.deadline_in_s = Some(0);
    let server = Server::new([ok(&status)]);
    let printed = server.run("drain web/a --deadline 1h30m").unwrap();
    assert_eq!(printed, "web/a: draining, 2 flows left, deadline now\n");
    assert!(server.requests().concat().contains(r#""deadline_s":5400"#));
}

#[test]
fn a_refusal_is_told_mistake_by_mistake() {
    let errors = ["f.toml:1:1: a", "f.toml:2:1: b"].map(str::to_owned).to_vec();
    let refusal = api::ApiError { error: errors.join("\n"), errors: errors.clone() };
    let server = Server::new([(422, serde_json::to_string(&refusal).unwrap())]);
    let client = Client::new(&server.socket()).unwrap();
    let error = client.order::<api::Reloaded>("/v1/reload").unwrap_err();
    assert_eq!(CliError::from(error).messages(), errors);
}

#[test]
fn several_are_one_order_and_one_line_each() {
    let both = api::Ordered {
        backend: backend("a", BackendState::Draining, 1),
        also: vec![backend("b", BackendState::Drained, 0)],
    };
    let server = Server::new([ok(&both)]);
    let printed = server.run("drain web/a web/b --deadline 60 --force").unwrap();
    assert_eq!(printed, "web/a: draining, 1 flow left\nweb/b: drained\n");
    let printed = server.run("undrain web/a web/b").unwrap();
    assert_eq!(printed, "web/a: active, takes new flows\nweb/b: active, takes new flows\n");
    let also = r#""also":[{"vip":"web","backend":"b"}]"#;
    assert_eq!(
        server.requests(),
        [
            format!(
                r#"POST /v1/drain {{"vip":"web","backend":"a","deadline_s":60,{also},"force":true}}"#
            ),
            format!(r#"POST /v1/undrain {{"vip":"web","backend":"a",{also}}}"#),
        ]
    );
}

/// Status of a drain that began with 10 flows.
fn how_it_goes(flows_left: u64, ends_in_s: Option<u64>) -> api::DrainStatus {
    api::DrainStatus {
        for_s: 5,
        flows_at_start: 10,
        flows_left,
        oldest_flow_s: Some(200),
        ends_in_s,
        deadline_in_s: None,
        then: FlowAction::Rehash,
        flows_cut: 0,
    }
}

#[test]
fn progress_tells_the_oldest_flow_and_when_it_ends() {
    let mut status = backend("a", BackendState::Draining, 2);
    for (drain, expected) in [
        (None, "web/a: draining, 2 flows left"),
        (Some(how_it_goes(2, None)), "web/a: draining, 2 flows left, the oldest 3m 20s"),
        (
            Some(how_it_goes(2, Some(130))),
            "web/a: draining, 2 flows left, the oldest 3m 20s, ends in about 2m 10s",
        ),
        (
            Some(how_it_goes(2, Some(0))),
            "web/a: draining, 2 flows left, the oldest 3m 20s, ends soon",
        ),
    ] {
        status.drain = drain;
        assert_eq!(drain::progress(&status), expected);
    }
}

#[test]
fn drains_have_a_table_and_slow_start_is_told() {
    let mut draining = backend("a", BackendState::Draining, 2);
    draining.drain = Some(how_it_goes(2, None));
    let mut back = backend("b", BackendState::Active, 3);
    back.share_percent = 19;
    let mut out = Vec::new();
    status::print(&sample(vec![draining, back]), Look::default(), &mut out).unwrap();
    let printed = String::from_utf8(out).unwrap();
    let (_, drains) = printed.split_once("\nDRAINS\n").unwrap();
    let rows: Vec<Vec<&str>> =
        drains.lines().take(2).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        rows,
        [
            "BACKEND FLOWS LEFT OF OLDEST ENDS IN DEADLINE IN THEN".split(' ').collect::<Vec<_>>(),
            "web/a 2 10 3m 20s unknown - rehash".split(' ').collect(),
        ],
        "{printed}"
    );
    assert!(printed.contains("active (19% of its new flows)"), "{printed}");
}

fn event() -> api::Event {
    api::Event {
        seq: 7,
        time: "2026-11-21T15:00:00.250Z".to_owned(),
        kind: "drained".to_owned(),
        vip: Some("web".to_owned()),
        backend: Some("a".to_owned()),
        nic: None,
        fault: None,
        numbers: BTreeMap::from([("flows_cut".to_owned(), 3)]),
        text: "backend a of VIP web is drained: 3 flows cut".to_owned(),
    }
}

#[test]
fn events_are_lines_for_people_or_machines() {
    let list = api::EventList { last: 7, lost: 6, events: vec![event()] };
    let server = Server::new([ok(&list)]);
    assert_eq!(
        server.run("events").unwrap(),
        "6 events before these are forgotten\n\
         2026-11-21T15:00:00.250Z  drained         backend a of VIP web is drained: 3 flows cut\n"
    );
    let line: Value = serde_json::from_str(&server.run("events --json").unwrap()).unwrap();
    assert_eq!(line, json!(event()));
    let client = Client::new(&server.socket()).unwrap();
    let mut out = Vec::new();
    let last = events::print(&client, 9, true, &mut out).unwrap();
    assert_eq!(last, 7, "of a process that was started again");
    let asked = server.requests();
    let asked: Vec<&str> = asked.iter().skip(2).map(String::as_str).collect();
    assert_eq!(asked, ["GET /v1/events?since=9", "GET /v1/events?since=0"]);
}

/// Waits for the drain of `web/a` on a server that reports these states, one per poll.
fn wait(looks: Vec<Vec<BackendStatus>>, stop: bool) -> Result<String, String> {
    let server = Server::new(looks.into_iter().map(|backends| ok(&sample(backends))));
    let client = Client::new(&server.socket()).unwrap();
    let start = vec![backend("a", BackendState::Draining, 2)];
    let mut out = Vec::new();
    let mut lines = drain::Lines::new(&mut out, start.len());
    drain::wait(&client, start, Duration::ZERO, &AtomicBool::new(stop), &mut lines)
        .map_err(|error| error.to_string())?;
    Ok(String::from_utf8(out).unwrap())
}

#[test]
fn drain_waits_for_the_last_flow() {
    let mut cut = backend("a", BackendState::Drained, 0);
    cut.flows_cut = 1;
    let draining = |flows| vec![other("b"), backend("a", BackendState::Draining, flows)];
    let looks = vec![draining(2), draining(1), draining(1), vec![cut]];
    assert_eq!(
        wait(looks, false).unwrap(),
        "web/a: draining, 2 flows left\nweb/a: draining, 1 flow left\n\
         web/a: drained, 1 flow cut at the deadline\n"
    );
}

/// An active backend at a different address.
fn other(name: &str) -> BackendStatus {
    BackendStatus {
        address: "10.0.0.12".parse().unwrap(),
        ..backend(name, BackendState::Active, 9)
    }
}

/// The backend is found even if another backend has its name by then.
#[test]
fn a_drain_is_waited_for_under_another_name() {
    let looks = vec![
        vec![backend("x", BackendState::Draining, 1), other("a")],
        vec![other("a"), backend("x", BackendState::Drained, 0)],
    ];
    assert_eq!(
        wait(looks, false).unwrap(),
        "web/a: draining, 2 flows left\nweb/x: draining, 1 flow left\nweb/x: drained\n"
    );
}

#[test]
fn ctrl_c_ends_the_waiting_and_says_that_the_drain_goes_on() {
    let reported = wait(vec![vec![backend("a", BackendState::Draining, 2)]], true).unwrap_err();
    assert!(reported.starts_with("waiting was interrupted: the drain goes on"), "{reported}");
}

#[test]
fn a_drain_that_does_not_come_to_its_end() {
    let undrained = wait(vec![vec![backend("a", BackendState::Active, 2)]], false);
    assert_eq!(undrained.unwrap_err(), "web/a takes new flows again: it was undrained meanwhile");
    let gone = wait(vec![vec![other("a")]], false).unwrap_err();
    assert!(gone.starts_with("web/a is gone: the configuration was reloaded without it"), "{gone}");
}

#[test]
fn undrain_and_reload_say_what_they_did() {
    let server = Server::new([ok(&backend("a", BackendState::Active, 0))]);
    assert_eq!(server.run("undrain web/a").unwrap(), "web/a: active, takes new flows\n");
    assert_eq!(server.requests(), [r#"POST /v1/undrain {"vip":"web","backend":"a"}"#]);
    let idle = BackendStatus { weight: 0, ..backend("a", BackendState::Active, 0) };
    let said = Server::new([ok(&idle)]).run("undrain web/a").unwrap();
    assert_eq!(said, "web/a: active, but its weight is 0: it takes no new flows\n");

    let changes = vec!["web/a: weight 1 -> 2".to_owned(), "web/c: added".to_owned()];
    let reloaded = |changes| api::Reloaded {
        changes,
        dry_run: false,
        flows: Vec::new(),
        lists_pending: false,
    };
    let server = Server::new([ok(&reloaded(changes)), ok(&json!({ "changes": [] }))]);
    assert_eq!(server.run("reload").unwrap(), "web/a: weight 1 -> 2\nweb/c: added\n");
    assert_eq!(server.run("reload").unwrap(), "nothing changed\n");
    let asked = r#"POST /v1/reload {"dry_run":false}"#;
    assert_eq!(server.requests(), [asked, asked]);

    let changes = vec!["[access] deny: 1000000 prefixes added".to_owned()];
    let server = Server::new([ok(&api::Reloaded { lists_pending: true, ..reloaded(changes) })]);
    let text = server.run("reload").unwrap();
    assert!(text.ends_with("lists are still being changed: see `holdfast deny list`\n"), "{text}");

    let flows = [
        (Some("b"), 12, FlowAction::Reset),
        (None, 1, FlowAction::Keep),
        (Some("c"), 0, FlowAction::Keep),
    ];
    let flows = flows.map(|(backend, flows, then)| api::FlowsRemoved {
        vip: "web".to_owned(),
        backend: backend.map(str::to_owned),
        flows,
        then,
    });
    let changes = vec!["backend b of VIP web removed".to_owned()];
    let server = Server::new([ok(&api::Reloaded {
        changes,
        dry_run: true,
        flows: flows.to_vec(),
        lists_pending: false,
    })]);
    assert_eq!(
        server.run("reload --dry-run").unwrap(),
        "backend b of VIP web removed\n\
         backend b of VIP web: flows that are reset: 12\n\
         addresses and ports that VIP web loses: flows that go on until they end: 1\n\
         dry run: nothing was applied\n"
    );
    assert_eq!(server.requests(), [r#"POST /v1/reload {"dry_run":true}"#]);
}

#[test]
fn status_shows_what_reloads_have_left() {
    let removed = api::RemovedStatus {
        vip: "web".to_owned(),
        backend: "z".to_owned(),
        address: [10, 0, 0, 9].into(),
        port: Some(80),
        flows_left: 12,
        then: FlowAction::Reset,
    };
    let status = api::Status { removed: vec![removed], ..sample(Vec::new()) };
    let said = Server::new([ok(&status)]).run("status").unwrap();
    let at = said.find("REMOVED BACKENDS").unwrap();
    for part in ["web/z", "10.0.0.9:80", "12", "reset"] {
        assert!(said[at..].contains(part), "{part}: {said}");
    }
    assert!(!Server::new([ok(&sample(Vec::new()))]).run("status").unwrap().contains("REMOVED"));
}

#[test]
fn flows_are_filtered_by_the_server_and_listed() {
    let line = serde_json::to_string(&flow()).unwrap();
    let two = (200, format!("{line}\n{line}\n"));
    let server = Server::new([two.clone(), two, (200, String::new())]);
    assert_eq!(server.run("flows --json").unwrap(), format!("{line}\n{line}\n"));
    let printed =
        server.run("flows --vip web --backend a --client 198.51.100.0/24 --limit 2").unwrap();
    let row = "web  a        tcp       198.51.100.7:40000  192.0.2.10:80  established  1m 1s    0s       1";
    assert_eq!(
        printed,
        format!(
            "VIP  BACKEND  PROTOCOL  CLIENT              DESTINATION    STATE          AGE  IDLE  WORKER\n\
             {row}\n{row}\nthese are the first 2; --limit N shows more\n"
        )
    );
    assert_eq!(server.run("flows --client 2001:db8::1").unwrap(), "no flows\n");
    assert_eq!(
        server.requests(),
        [
            "GET /v1/flows?limit=1000",
            "GET /v1/flows?limit=2&vip=web&backend=a&client=198.51.100.0/24",
            "GET /v1/flows?limit=1000&client=2001:db8::1/128",
        ]
    );
}

/// A VIP without pins has no flows: `flows` prints the reason, and `status` shows no number.
#[test]
fn a_vip_without_pins_says_so() {
    let mut status = sample(vec![backend("a", BackendState::Active, 0)]);
    status.vips.iter_mut().for_each(|vip| vip.pin = false);
    let none = (200, String::new());
    let server = Server::new([none.clone(), ok(&status), ok(&status), none, ok(&sample(vec![]))]);
    let printed = server.run("flows --vip web").unwrap();
    let why = "VIP web has pin = false, so each datagram is placed by itself";
    assert!(printed.starts_with(&format!("no flows: {why}")), "{printed}");
    let table = server.run("status").unwrap();
    let row = |start: &str| {
        let line = table.lines().find(|line| line.trim_start().starts_with(start)).unwrap();
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>()
    };
    assert_eq!(row("web  ").get(4..7), Some(&["nat, pin = false", "1/1 up", "-"][..]), "{table}");
    assert!(row("web/a").contains(&"-"), "{table}");
    assert_eq!(server.run("flows --vip web").unwrap(), "no flows\n");
    assert_eq!(server.requests().len(), 5);
}

#[test]
fn refusals_and_nonsense_of_the_server() {
    for (answer, expected) in [
        (
            (404, r#"{"error":"no VIP is called web; there are: dns"}"#),
            "no VIP is called web; there are: dns",
        ),
        ((502, "<html>"), "the answer is not understood (HTTP status 502 Bad Gateway)"),
        ((200, "{}"), "the answer is not understood (missing field `version` at line 1 column 2)"),
    ] {
        let server = Server::new([(answer.0, answer.1.to_owned())]);
        let message = server.run("status").unwrap_err();
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn a_socket_without_a_listener() {
    let folder = folder();
    let left_over = folder.join("left-over");
    drop(UnixListener::bind(&left_over).unwrap());
    let file = folder.join("file");
    fs::write(&file, "").unwrap();
    let cure = "is holdfast running? Start it with `holdfast run --config F`, or name its socket \
                with --socket";
    let none = folder.join("none");
    for (socket, expected) in [
        (
            &none,
            format!("no process listens at {}: there is no such socket: {cure}", none.display()),
        ),
        (&left_over, format!("no process listens at {}: {cure}", left_over.display())),
        (
            &file,
            format!(
                "{} is not a socket; name holdfast's control socket with --socket",
                file.display()
            ),
        ),
    ] {
        for line in [
            "status",
            "drain web/a",
            "undrain web/a",
            "reload",
            "events",
            "flows",
            "clients",
            "clients --delete --all",
        ] {
            assert_eq!(run(line, socket).unwrap_err(), expected, "{line}");
        }
    }
    let message = ClientError::PermissionDenied("/run/x".into()).to_string();
    assert_eq!(message, "/run/x: permission denied; run as root");
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn clients_are_listed_and_forgotten() {
    let gone = api::Client { vip: None, backend: None, part: 3, expired: true, ..client() };
    let (one, two) = (json!(client()), json!(gone));
    let lines = (200, format!("{one}\n{two}\n"));
    let forgotten = |forgotten| ok(&api::Forgotten { forgotten });
    let answers = [lines.clone(), lines, forgotten(1), forgotten(2), (200, String::new())];
    let server = Server::new(answers);
    assert_eq!(server.run("clients --json").unwrap(), format!("{one}\n{two}\n"));
    assert_eq!(
        server.run("clients --vip web --backend a --client 198.51.100.0/24 --limit 2").unwrap(),
        "VIP     CLIENT        PART  BACKEND    AGE  IDLE  PROVEN  EXPIRED\n\
         web     198.51.100.7     -  a        1m 1s    2s  yes     -\n\
         (gone)  198.51.100.7     3  (gone)   1m 1s    2s  yes     yes\n\
         these are the first 2; --limit N shows more\n"
    );
    assert_eq!(server.run("clients --delete --client ::1").unwrap(), "1 client forgotten\n");
    assert_eq!(server.run("clients --delete --all --json").unwrap(), "{\"forgotten\":2}\n");
    assert_eq!(server.run("clients").unwrap(), "no clients\n");
    assert_eq!(
        server.requests(),
        [
            "GET /v1/clients?limit=1000",
            "GET /v1/clients?limit=2&vip=web&backend=a&client=198.51.100.0/24",
            "DELETE /v1/clients?client=::1/128",
            "DELETE /v1/clients?all=true",
            "GET /v1/clients?limit=1000",
        ]
    );
}

#[test]
fn words_that_are_no_arguments() {
    for (line, part) in [
        ("drain web", "name the backend as VIP/BACKEND, such as web/a"),
        ("drain web/", "\"\" is not a name"),
        ("drain web/a --deadline soon", "write 90, 90s, 30m, 2h or 1h30m"),
        ("drain web/a --deadline -1s", "write 90, 90s, 30m, 2h or 1h30m"),
        ("drain web/a --deadline 0", "use at least 1s"),
        ("status --all --json", "cannot be used with"),
        ("flows --client here", "write an address or a prefix, such as 198.51.100.0/24"),
        ("flows --vip a&b", "\"a&b\" is not a name"),
        ("flows --limit 0", "0 is not in 1.."),
        (
            "clients --delete",
            "which clients? Name them with --vip, --backend or --client, or all of them",
        ),
        ("clients --delete --all --vip web", "cannot be used with"),
        ("clients --delete --limit 3", "cannot be used with"),
        ("clients --all", "--delete"),
    ] {
        let message = run(line, Path::new("/nowhere")).unwrap_err();
        assert!(message.contains(part), "{part:?} is not in\n{message}");
    }
}

/// Collects every key of a document except the drop reasons and `answers`, which are data.
fn keys(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                found.push(key.clone());
                if !["answers", "drops", "numbers"].contains(&key.as_str()) {
                    keys(value, found);
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| keys(value, found)),
        _ => {}
    }
}

#[test]
fn the_documentation_has_every_key_and_route() {
    let doc = include_str!("../../docs/API.md");
    let name = || api::Name { vip: String::new(), backend: String::new() };
    let documents = [
        json!(sample(vec![backend("a", BackendState::Active, 0)])),
        json!(how_it_goes(1, None)),
        json!(api::DrainRequest {
            vip: String::new(),
            backend: String::new(),
            deadline_s: None,
            also: vec![name()],
            force: true,
        }),
        json!(api::UndrainRequest {
            vip: String::new(),
            backend: String::new(),
            also: vec![name()]
        }),
        json!(api::RemovedStatus {
            vip: String::new(),
            backend: String::new(),
            address: [0; 4].into(),
            port: None,
            flows_left: 0,
            then: FlowAction::Keep,
        }),
        json!(api::EventList { last: 7, lost: 6, events: vec![event()] }),
        json!(api::Reloaded {
            changes: Vec::new(),
            dry_run: false,
            flows: vec![api::FlowsRemoved {
                vip: String::new(),
                backend: None,
                flows: 0,
                then: FlowAction::Keep
            }],
            lists_pending: false
        }),
        json!(flow()),
        json!(client()),
        json!(api::Forgotten { forgotten: 1 }),
        json!(api::ApiError { error: String::new(), errors: Vec::new() }),
    ];
    let mut found = Vec::new();
    documents.iter().for_each(|document| keys(document, &mut found));
    for key in found {
        assert!(doc.contains(&format!("`{key}`")), "`{key}` is not in docs/API.md");
    }
    for route in [
        "GET /v1/status",
        "POST /v1/drain",
        "POST /v1/undrain",
        "POST /v1/reload",
        "GET /v1/events",
        "GET /v1/flows",
        "GET /v1/clients",
        "DELETE /v1/clients",
        "GET /v1/explain",
    ] {
        assert!(doc.contains(&format!("`{route}")), "{route} is not in docs/API.md");
    }
}
