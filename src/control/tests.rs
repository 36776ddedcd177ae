//! Tests of the whole control plane in one thread, over its real socket, with a steering port that
//! only records calls. Backends have loopback addresses: nothing on this machine is changed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::handshake;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::admin::tests::Scratch;
use super::api::{
    ApiError, BackendState, BackendStatus, DenyEntry, DenyList, EventList, Explained, Flow,
    HealthState, Ordered, Reloaded, Status,
};
use super::error::ControlError;
use super::inputs::Inputs;
use super::reload::tests::config;
use super::signals::Signal;
use super::state::Registry;
use super::state::tests::{backend, tcp_health, vip};
use super::view::{
    AccessDrops, AccessMaps, AttachedView, NicNow, NicView, ProgramNow, SocketStatistics,
    SteerCounters, SteeringProgram, WorkerEvent, WorkerView,
};
use super::{HandOver, SteerRules, admin, serve};
use crate::config::{Config, Vip};
use crate::flow::entry::{Pin, State};
use crate::flow::shared::{SharedTables, TableSizes};
use crate::flow::table::{Families, FlowTable};
use crate::flow::writer::FlowWriter;
use crate::forwarding::publish::{Publisher, Subscription};
use crate::forwarding::{FULL_SHARE, FlowAction, ForwardingTable, Local};
use crate::net::{
    Address, BackendId, BackendIndex, FlowKey, ListEntry, ListKey, Network, NextHop, NicIndex,
    Protocol, TableSecret, VipId,
};
use crate::privileges::Kept;
use crate::stats::WorkerStats;
use crate::units::Ticks;

/// Calls of a fake steering port in order, and its replies.
#[derive(Default)]
struct Notes {
    /// Rules, each with the generation of the table that was published then.
    synced: Vec<(SteerRules, u64)>,
    attached_after: Option<usize>,
    refuse: bool,
    /// State of the NIC.
    nic: Option<NicNow>,
    /// Repairs of the NIC.
    repairs: Vec<String>,
    /// Entries of the lists.
    lists: Vec<(ListKey, ListEntry)>,
    /// What has ended, in order.
    ended: Vec<&'static str>,
}

struct FakeSteering {
    notes: Arc<Mutex<Notes>>,
    tables: Subscription,
    _ends: Ends,
}

/// Lists that are recorded.
struct FakeLists(Arc<Mutex<Notes>>);

impl AccessMaps for FakeLists {
    fn insert(&mut self, key: &ListKey, entry: ListEntry) -> Result<(), String> {
        let mut notes = self.0.lock().unwrap();
        if notes.refuse {
            return Err("map full".to_owned());
        }
        notes.lists.push((*key, entry));
        Ok(())
    }

    fn remove(&mut self, key: &ListKey) -> Result<(), String> {
        self.0.lock().unwrap().lists.retain(|(there, _)| there != key);
        Ok(())
    }
}

/// Records its end.
struct Ends(&'static str, Arc<Mutex<Notes>>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.1.lock().unwrap().ended.push(self.0);
    }
}

impl SteeringProgram for FakeSteering {
    fn sync(&mut self, rules: &SteerRules) -> Result<(), String> {
        let mut notes = self.notes.lock().unwrap();
        if notes.refuse {
            return Err("map full".to_owned());
        }
        notes.synced.push((rules.clone(), self.tables.current().generation()));
        Ok(())
    }

    fn attach(&mut self) -> Result<Vec<AttachedView>, String> {
        let mut notes = self.notes.lock().unwrap();
        notes.attached_after = Some(notes.synced.len());
        let fallbacks = vec!["no native XDP".to_owned()];
        Ok(vec![AttachedView { xdp: "generic".to_owned(), fallbacks }])
    }

    fn counters(&mut self, _nic: NicIndex) -> SteerCounters {
        let dropped = AccessDrops { denied: 10, not_allowed: 11, over_rate: 12 };
        SteerCounters { steered: 5, passed: 6, no_socket: 7, guarded: 9, dropped }
    }

    fn access_drops(&mut self, vip: VipId) -> AccessDrops {
        AccessDrops { denied: u64::from(vip.0) + 3, not_allowed: 4, over_rate: 5 }
    }

    fn take_lists(&mut self) -> Result<Box<dyn AccessMaps>, String> {
        Ok(Box::new(FakeLists(Arc::clone(&self.notes))))
    }

    fn socket_statistics(&mut self, _nic: NicIndex) -> SocketStatistics {
        SocketStatistics { rx_ring_full: 8, ..SocketStatistics::default() }
    }

    fn nic_now(&mut self, _nic: NicIndex) -> Result<NicNow, String> {
        self.notes.lock().unwrap().nic.ok_or_else(|| "not looked at".to_owned())
    }

    fn attach_again(&mut self, _nic: NicIndex) -> Result<(), String> {
        self.repaired("program".to_owned(), |_, program| *program = ProgramNow::Ours)
    }

    fn guard_again(&mut self, _nic: NicIndex, ifindex: u32) -> Result<(), String> {
        self.repaired(format!("guard of {ifindex}"), |guarded, _| *guarded = true)
    }

    fn set_mac(&mut self, _nic: NicIndex, mac: [u8; 6]) -> Result<(), String> {
        self.repaired(format!("MAC {}", mac[5]), |_, _| ())
    }

    fn leave(&mut self) {}
}

impl FakeSteering {
    /// Records a repair, and changes the state of the NIC accordingly.
    fn repaired(
        &self,
        what: String,
        change: impl FnOnce(&mut bool, &mut ProgramNow),
    ) -> Result<(), String> {
        let mut notes = self.notes.lock().unwrap();
        notes.repairs.push(what);
        if let Some(NicNow::There { guarded, program, .. }) = &mut notes.nic {
            change(guarded, program);
        }
        Ok(())
    }
}

/// A running control plane, seen from outside.
struct Bench {
    scratch: Scratch,
    signals: mpsc::Sender<Signal>,
    /// Result of the next read of the configuration file.
    file: Arc<Mutex<Result<Config, Vec<String>>>>,
    notes: Arc<Mutex<Notes>>,
    worker: WorkerView,
    tables: Subscription,
    events: crossbeam_channel::Sender<WorkerEvent>,
}

fn worker() -> WorkerView {
    let flows = Arc::new(FlowTable::new(64, TableSecret::new(1), Families::BOTH).unwrap());
    WorkerView { core: 3, stats: Arc::new(WorkerStats::new(8, 8, 1)), flows }
}

fn bench(vips: Vec<Vip>) -> (Bench, Inputs, mpsc::Receiver<Signal>) {
    let scratch = Scratch::new();
    let config = config(vips);
    let file = Arc::new(Mutex::new(Ok(config.clone())));
    let notes = Arc::new(Mutex::new(Notes::default()));
    let first = ForwardingTable::build(0, config.hash.secret, Local::default(), &[], None);
    let (publisher, tables) = Publisher::new(first);
    let (signals, receiver) = mpsc::channel(4);
    let (events, failures) = crossbeam_channel::bounded(4);
    let worker = worker();
    let reads = Arc::clone(&file);
    let announcements = Ends("announcements", Arc::clone(&notes));
    let inputs = Inputs {
        config,
        config_path: PathBuf::from("/etc/holdfast.toml"),
        load: Arc::new(move |_| reads.lock().unwrap().clone()),
        control_socket: admin::claim(&scratch.socket()).unwrap(),
        workers: vec![worker.clone()],
        nics: vec![NicView {
            interface: "eth1".to_owned(),
            ifindex: 999_999,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            driver: "veth".to_owned(),
            mode: "copy".to_owned(),
            multi_buffer: false,
            queues: vec![0, 1],
            rx_queues: 2,
            fallbacks: Vec::new(),
        }],
        registry: Registry::default(),
        save: None,
        privileges: Kept::default(),
        publisher,
        steering: Box::new(FakeSteering {
            notes: Arc::clone(&notes),
            tables: tables.clone(),
            _ends: Ends("program", Arc::clone(&notes)),
        }),
        send_frame: Box::new(move |_, _| {
            let Ends(..) = &announcements;
            Err(std::io::Error::other("nothing is announced here"))
        }),
        shared: SharedTables::new(Arc::from([]), &TableSecret::new(1), TableSizes::default())
            .unwrap(),
        events: failures,
        clock: Arc::new(|| Ticks(300)),
        explain: Arc::new(|_, _| Err("nothing is forwarded here".to_owned())),
        hand_over: HandOver::default(),
        ready: Box::new(|| {}),
    };
    let bench = Bench { scratch, signals, file, notes, worker, tables, events };
    (bench, inputs, receiver)
}

/// Packets are forwarded as long as there is the program, and closing the socket of announcements
/// takes the kernel long.
#[tokio::test]
async fn at_the_end_the_socket_of_announcements_is_closed_before_the_program_is_removed() {
    let (bench, inputs, signals) = bench(Vec::new());
    bench.signals.send(Signal::Stop).await.unwrap();
    serve(inputs, signals).await.unwrap();
    assert_eq!(bench.notes.lock().unwrap().ended, ["announcements", "program"]);
}

/// Returns the state of the NIC of [`bench`] with a MAC and a program.
fn nic_is(mac: [u8; 6], program: ProgramNow) -> NicNow {
    let (up, carrier, guarded) = (true, true, true);
    NicNow::There { ifindex: 999_999, mac, up, carrier, rx_queues: 2, program, guarded }
}

/// Runs control concurrently with a test, until the test ends.
async fn with_control(vips: Vec<Vip>, test: impl AsyncFnOnce(&mut Bench)) {
    let (mut bench, inputs, signals) = bench(vips);
    let socket = bench.scratch.socket();
    let asks = async {
        test(&mut bench).await;
        bench.signals.send(Signal::Stop).await.unwrap();
    };
    let (ended, ()) = tokio::join!(serve(inputs, signals), asks);
    ended.unwrap();
    assert!(!socket.exists(), "the socket goes with its process");
}

impl Bench {
    async fn ask(&self, method: Method, path: &str, body: &str) -> (u16, Bytes) {
        let stream = UnixStream::connect(self.scratch.socket()).await.unwrap();
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "holdfast");
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let (status, body) = self.ask(Method::GET, path, "").await;
        assert_eq!(status, 200, "{path}: {body:?}");
        serde_json::from_slice(&body).unwrap()
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: serde_json::Value) -> T {
        let (status, body) = self.ask(Method::POST, path, &body.to_string()).await;
        assert_eq!(status, 200, "{path}: {body:?}");
        serde_json::from_slice(&body).unwrap()
    }

    async fn refused(&self, method: Method, path: &str, body: &str) -> (u16, String) {
        let (status, body) = self.ask(method, path, body).await;
        let error: ApiError = serde_json::from_slice(&body).unwrap();
        (status, error.error)
    }

    async fn backend(&self, name: &str) -> BackendStatus {
        let status: Status = self.get("/v1/status").await;
        let mut backends = status.vips.into_iter().flat_map(|vip| vip.backends);
        backends.find(|backend| backend.name == name).unwrap()
    }

    async fn wait_for(&self, name: &str, done: impl Fn(&BackendStatus) -> bool) -> BackendStatus {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let backend = self.backend(name).await;
            if done(&backend) {
                return backend;
            }
            assert!(Instant::now() < end, "not in time: {backend:#?}");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Bench {
    async fn wait_for_event(&self, kind: &str) {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let list: EventList = self.get("/v1/events").await;
            if list.events.iter().any(|event| event.kind == kind) {
                return;
            }
            assert!(Instant::now() < end, "not in time: {kind}: {list:#?}");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

fn web() -> Vec<Vip> {
    vec![vip("web", &[backend("a", 1), backend("b", 2)])]
}

/// Faults of the NIC in the events of a kind, in order.
async fn nic_events(bench: &Bench, kind: &str) -> Vec<String> {
    let list: EventList = bench.get("/v1/events").await;
    let of_kind = list.events.into_iter().filter(|event| event.kind == kind);
    of_kind
        .map(|event| {
            assert_eq!(event.nic.as_deref(), Some("eth1"));
            event.fault.unwrap()
        })
        .collect()
}

#[tokio::test]
async fn a_nic_that_changes_is_repaired_or_reported_until_it_changes_back() {
    with_control(web(), async |bench| {
        let other = [2, 0, 0, 0, 0, 9];
        bench.notes.lock().unwrap().nic = Some(nic_is(other, ProgramNow::Other(77)));
        bench.wait_for_event("nic_mended").await;
        assert_eq!(nic_events(bench, "nic_fault").await, ["mac_changed", "program_replaced"]);
        assert_eq!(nic_events(bench, "nic_mended").await, ["mac_changed"]);
        let status: Status = bench.get("/v1/status").await;
        let nic = status.nics.first().unwrap();
        let texts: Vec<_> = nic.faults.iter().map(|fault| fault.text.as_str()).collect();
        assert!(matches!(texts[..], [text] if text.contains("id 77")), "{texts:?}");
        assert_eq!(bench.tables.current().local().macs, [other], "frames leave from the new MAC");

        bench.notes.lock().unwrap().nic = Some(nic_is(other, ProgramNow::None));
        let end = Instant::now() + Duration::from_secs(10);
        while nic_events(bench, "nic_mended").await.len() < 3 {
            assert!(Instant::now() < end, "not in time: the program is attached again");
            sleep(Duration::from_millis(10)).await;
        }
        let faults = ["mac_changed", "program_replaced", "program_gone"];
        assert_eq!(nic_events(bench, "nic_fault").await, faults);
        assert_eq!(nic_events(bench, "nic_mended").await, faults);
        assert_eq!(bench.notes.lock().unwrap().repairs, ["MAC 9", "program"]);
        let status: Status = bench.get("/v1/status").await;
        let nic = status.nics.first().unwrap();
        assert!(nic.faults.is_empty(), "{nic:?}");
        assert_eq!(nic.fallbacks, ["no native XDP"]);
    })
    .await;
}

/// Sockets belong to an interface: only a start can open others.
#[tokio::test]
async fn control_ends_when_another_interface_has_the_name_of_a_nic() {
    let (bench, inputs, signals) = bench(web());
    let mut now = nic_is([2, 0, 0, 0, 0, 1], ProgramNow::None);
    if let NicNow::There { ifindex, .. } = &mut now {
        *ifindex = 7;
    }
    bench.notes.lock().unwrap().nic = Some(now);
    let error = serve(inputs, signals).await.unwrap_err().to_string();
    assert!(error.starts_with("NIC eth1: ") && error.contains("made again"), "{error}");
    assert_eq!(bench.notes.lock().unwrap().repairs, ["guard of 7"], "before the end");
}

#[tokio::test]
async fn status_tells_everything() {
    with_control(web(), async |bench| {
        let stats = &bench.worker.stats;
        stats.received.add(10);
        stats.flows_closed.add(2);
        stats.flows_idled_out.add(1);
        stats.drop_counter(crate::stats::Drop::NoVip).add(4);
        stats.transmitted.add(6);
        stats.vips.first().unwrap().packets_in.add(3);
        stats.backends.get(1).unwrap().bytes_out.add(9);
        stats.nics.first().unwrap().rx_packets.add(2);
        let status: Status = bench.get("/v1/status").await;
        assert_eq!(status.pid, std::process::id());
        assert_eq!(status.config, "/etc/holdfast.toml");
        assert_eq!(status.generation, bench.tables.current().generation());
        let totals = &status.totals;
        assert_eq!((totals.received, totals.transmitted, totals.dropped), (10, 6, 4));
        assert_eq!((totals.flows_closed, totals.flows_idled_out), (2, 1));
        assert_eq!(status.drops.len(), crate::stats::Drop::ALL.len());
        assert_eq!(status.drops.get("no_vip"), Some(&4));
        let [vip] = status.vips.as_slice() else { unreachable!("one VIP") };
        assert_eq!((vip.traffic.packets_in, vip.announced_on.as_deref()), (3, None));
        let [_, b] = vip.backends.as_slice() else { unreachable!("two backends") };
        assert_eq!(
            (b.traffic.bytes_out, b.state, b.health),
            (9, BackendState::Active, HealthState::Unchecked)
        );
        let [worker] = status.workers.as_slice() else { unreachable!("one worker") };
        assert_eq!((worker.core, worker.flow_capacity), (3, 64));
        let [nic] = status.nics.as_slice() else { unreachable!("one NIC") };
        assert_eq!((nic.rx_packets, nic.steered, nic.kernel_rx_ring_full), (2, 5, 8));
        assert_eq!((nic.xdp.as_str(), nic.mode.as_str()), ("generic", "copy"));
    })
    .await;
}

#[tokio::test]
async fn sources_are_denied_and_admitted_by_requests() {
    with_control(web(), async |bench| {
        let entries = |bench: &Bench| {
            let lists = &bench.notes.lock().unwrap().lists;
            let text =
                |(key, _): &(ListKey, ListEntry)| format!("{} {:?}", key.prefix, key.list.vip);
            lists.iter().map(text).collect::<Vec<_>>()
        };
        let present = |bench: &Bench| {
            let notes = bench.notes.lock().unwrap();
            let (rules, _) = notes.synced.last().unwrap();
            (rules.global_lists.deny, rules.checks.first().map(|check| check.own.deny))
        };
        let list: DenyList = bench.get("/v1/deny").await;
        assert!(list.denied.is_empty() && list.lists.is_empty() && !list.pending, "{list:?}");
        assert_eq!(present(bench), (false, None));
        let order = json!({ "prefix": "203.0.113.0/24", "vip": "web", "for_s": 3600 });
        let entry: DenyEntry = bench.post("/v1/deny", order).await;
        assert_eq!((entry.vip.as_deref(), entry.ends_in_s), (Some("web"), Some(3600)));
        // The reply comes when the list is in force.
        assert_eq!(entries(bench), ["203.0.113.0/24 Some(VipId(0))"]);
        let list: DenyList = bench.get("/v1/deny").await;
        assert!(list.denied.len() == 1 && !list.pending, "{list:?}");
        assert_eq!(present(bench), (false, Some(true)));
        let _: DenyEntry = bench.post("/v1/deny", json!({ "prefix": "2001:db8::/32" })).await;
        assert_eq!(present(bench), (true, Some(true)));
        let explained: Explained = bench.get("/v1/explain?vip=web&client=203.0.113.9:1").await;
        let last = explained.steps.last().unwrap();
        let why = "`holdfast deny add` has put 203.0.113.0/24 on the deny list of VIP web, for 3";
        assert!(last.stage == "xdp" && last.why.starts_with(why), "{explained:?}");
        // An explanation of any other client needs the data path, which is not here.
        let path = "/v1/explain?vip=web&client=198.51.100.9:1";
        assert_eq!(bench.refused(Method::GET, path, "").await.0, 503);
        // A reload leaves them alone, and adds its own.
        let mut new = config(web());
        new.access.deny =
            ["192.0.2.7"].iter().map(|text| text.parse::<Network>().unwrap()).collect();
        *bench.file.lock().unwrap() = Ok(new);
        let (status, body) = bench.ask(Method::POST, "/v1/reload", "").await;
        assert_eq!(status, 200, "{body:?}");
        assert_eq!(entries(bench).len(), 3);
        for (path, status, part) in [
            ("/v1/deny?prefix=192.0.2.7", 404, "the configuration denies it: remove it there"),
            ("/v1/deny?prefix=203.0.113.0/24", 404, "`holdfast deny list` shows"),
            ("/v1/deny?prefix=203.0.113.0/24&vip=mail", 404, "there are: web"),
            ("/v1/deny?prefix=203.0.113.1/24", 400, "write \"203.0.113.0/24\""),
            ("/v1/deny?prefix=x", 400, "no address or prefix"),
        ] {
            let (got, error) = bench.refused(Method::DELETE, path, "").await;
            assert!(got == status && error.contains(part), "{path}: {got} {error}");
        }
        // The VIP would share addresses with another, which has no such list.
        let at = |name: &str, address: &str| crate::config::Vip {
            address: address.parse().unwrap(),
            ..vip(name, &[])
        };
        let sharing = config(vec![at("web", "192.0.2.10/31"), at("all", "192.0.2.0/28")]);
        *bench.file.lock().unwrap() = Ok(sharing);
        let (status, error) = bench.refused(Method::POST, "/v1/reload", "").await;
        let why = "VIP web has prefixes of `holdfast deny`, and would share addresses with VIP all";
        assert!(status == 409 && error.starts_with(why), "{status} {error}");
        let path = "/v1/deny?prefix=203.0.113.0/24&vip=web";
        assert_eq!(bench.ask(Method::DELETE, path, "").await.0, 200);
        assert_eq!(entries(bench).len(), 2);
        // A list that does not fit is tried again.
        bench.notes.lock().unwrap().refuse = true;
        let (status, error) =
            bench.refused(Method::POST, "/v1/deny", r#"{"prefix":"10.0.0.7"}"#).await;
        assert!(status == 500 && error.contains("not in force: map full"), "{status} {error}");
        bench.notes.lock().unwrap().refuse = false;
        let end = Instant::now() + Duration::from_secs(10);
        while entries(bench).len() < 3 {
            assert!(Instant::now() < end, "not in time: the list is sent again");
            sleep(Duration::from_millis(10)).await;
        }
        bench.notes.lock().unwrap().refuse = true;
        let mut other = config(web());
        other.access.deny =
            ["192.0.2.8"].iter().map(|text| text.parse::<Network>().unwrap()).collect();
        *bench.file.lock().unwrap() = Ok(other);
        let (status, error) = bench.refused(Method::POST, "/v1/reload", "").await;
        let why = "in force, but the deny and allow lists are not: map full; tried again";
        assert!(status == 500 && error.contains(why), "{status} {error}");
    })
    .await;
}

#[tokio::test]
async fn wrong_requests_get_the_reason() {
    with_control(web(), async |bench| {
        let (get, post) = (Method::GET, Method::POST);
        let long = format!("{{\"vip\": \"{}\"}}", "x".repeat(70_000));
        for (method, path, body, status, part) in [
            (&get, "/v2/status", "", 404, "/v2/status"),
            (&get, "/v1/drain", "", 405, "GET"),
            (&Method::DELETE, "/v1/status", "", 405, "DELETE"),
            (&post, "/v1/drain", "{", 400, "EOF"),
            (&post, "/v1/drain", "{}", 400, "missing field `vip`"),
            (&post, "/v1/drain", r#"{"vip":"web","backend":"a","dead":1}"#, 400, "`dead`"),
            (&post, "/v1/drain", &long, 413, "length limit"),
            (&post, "/v1/drain", r#"{"vip":"wbe","backend":"a"}"#, 404, "there are: web"),
            (&post, "/v1/undrain", r#"{"vip":"web","backend":"x"}"#, 404, "there are: a, b"),
            (&get, "/v1/flows?vip=x", "", 404, "there are: web"),
            (&get, "/v1/flows?backend=x", "", 404, "there are: a, b"),
            (&get, "/v1/flows?client=x", "", 400, "neither an address nor a network"),
            (&get, "/v1/flows?limit=1000001", "", 400, "at most 1000000"),
            (&get, "/v1/flows?limit=x", "", 400, "limit = x: write a number, at most 1000000"),
            (
                &post,
                "/v1/drain",
                r#"{"vip":"web","backend":"a","deadline_s":0}"#,
                400,
                "at least 1",
            ),
            (&get, "/v1/flows?colour=1", "", 400, "colour"),
            (&get, "/v1/clients?vip=x", "", 404, "there are: web"),
            (&get, "/v1/clients?all=true", "", 400, "all"),
            (&Method::DELETE, "/v1/clients", "", 400, "all=true"),
            (&Method::DELETE, "/v1/clients?backend=x", "", 404, "there are: a, b"),
            (&Method::DELETE, "/v1/clients?limit=1", "", 400, "limit"),
            (&post, "/v1/clients", "", 405, "POST"),
            (&get, "/v1/flows?vip=a&vip=b", "", 400, "each once"),
        ] {
            let (got, error) = bench.refused(method.clone(), path, body).await;
            assert_eq!(got, status, "{method} {path}: {error}");
            assert!(error.contains(part), "{method} {path}: {part:?} missing from {error:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_drain_ends_when_its_flows_have() {
    with_control(web(), async |bench| {
        let pinned = Arc::clone(&bench.worker.stats);
        let pinned = &pinned.backends.first().unwrap().flows_active;
        pinned.add(2);
        let _: Status = bench.get("/v1/status").await;
        let before = bench.tables.current().generation();
        let order = json!({ "vip": "web", "backend": "a" });
        let draining: BackendStatus = bench.post("/v1/drain", order.clone()).await;
        assert_eq!((draining.state, draining.traffic.flows_active), (BackendState::Draining, 2));
        assert!(bench.tables.current().generation() > before, "in force when it is answered");
        let moved = json!({ "vip": "web", "backend": "a", "deadline_s": 60 });
        let moved: BackendStatus = bench.post("/v1/drain", moved).await;
        assert_eq!(moved.deadline_in_s, Some(60));
        let again: BackendStatus = bench.post("/v1/drain", order.clone()).await;
        assert!(again.deadline_in_s.is_some_and(|s| s > 50), "an order without one keeps it");
        pinned.sub(2);
        assert_eq!(bench.backend("a").await.state, BackendState::Drained);
        let (status, _) = bench.ask(Method::POST, "/v1/reload", "").await;
        assert_eq!(status, 200);
        assert_eq!(bench.backend("a").await.state, BackendState::Drained, "survives a reload");
        assert_eq!(bench.backend("b").await.state, BackendState::Active);
        let active: BackendStatus = bench.post("/v1/undrain", order).await;
        assert_eq!((active.state, active.deadline_in_s), (BackendState::Active, None));
    })
    .await;
}

#[tokio::test]
async fn a_deadline_makes_pins_stale() {
    with_control(web(), async |bench| {
        let _: Status = bench.get("/v1/status").await;
        let pin = BackendId { index: BackendIndex(0), generation: 0 };
        bench.worker.stats.backends.first().unwrap().flows_active.add(3);
        assert!(bench.tables.current().pinned(pin).is_some());
        let order = json!({ "vip": "web", "backend": "a", "deadline_s": 1 });
        let begun = Instant::now();
        let _: BackendStatus = bench.post("/v1/drain", order).await;
        let cut = bench.wait_for("a", |a| a.state == BackendState::Drained).await;
        assert!(begun.elapsed() >= Duration::from_secs(1));
        assert_eq!((cut.flows_cut, cut.deadline_in_s), (3, None));
        let table = bench.tables.current();
        assert!(table.pinned(pin).is_none());
        assert_eq!(table.backend(BackendIndex(0)).unwrap().id.generation, 1);
    })
    .await;
}

#[tokio::test]
async fn several_are_drained_together_or_not_at_all() {
    with_control(web(), async |bench| {
        let also = |name| json!([{ "vip": "web", "backend": name }]);
        let order = json!({ "vip": "web", "backend": "a", "also": also("x") }).to_string();
        let (status, _) = bench.refused(Method::POST, "/v1/drain", &order).await;
        assert_eq!((status, bench.backend("a").await.state), (404, BackendState::Active));
        let order = json!({ "vip": "web", "backend": "a", "also": also("b") });
        let (status, error) = bench.refused(Method::POST, "/v1/drain", &order.to_string()).await;
        assert_eq!((status, bench.backend("a").await.state), (409, BackendState::Active));
        assert!(error.starts_with("VIP web would be left without a backend"), "{error}");
        assert!(error.contains("--force"), "{error}");

        let one = json!({ "vip": "web", "backend": "a" });
        let _: BackendStatus = bench.post("/v1/drain", one.clone()).await;
        let last = json!({ "vip": "web", "backend": "b" }).to_string();
        assert_eq!(bench.refused(Method::POST, "/v1/drain", &last).await.0, 409);
        let again: BackendStatus = bench.post("/v1/drain", one).await;
        assert_eq!(again.state, BackendState::Drained, "what drains already may be asked for");
        let mut forced = order.clone();
        forced.as_object_mut().unwrap().insert("force".to_owned(), json!(true));
        let both: Ordered = bench.post("/v1/drain", forced).await;
        assert_eq!((both.backend.name.as_str(), both.also.len()), ("a", 1));
        assert_eq!(bench.backend("b").await.state, BackendState::Drained);
        let both: Ordered = bench.post("/v1/undrain", order).await;
        assert!(both.also.iter().all(|b| b.name == "b" && b.state == BackendState::Active));
    })
    .await;
}

#[tokio::test]
async fn the_vips_deadline_holds_and_keep_keeps() {
    let mut vips = web();
    let drain = &mut vips.first_mut().unwrap().drain;
    (drain.deadline, drain.then) = (Some(Duration::from_secs(1)), FlowAction::Keep);
    with_control(vips, async |bench| {
        bench.worker.stats.backends.first().unwrap().flows_active.add(2);
        let order = json!({ "vip": "web", "backend": "a" });
        let begun: BackendStatus = bench.post("/v1/drain", order).await;
        assert_eq!(begun.deadline_in_s, Some(1));
        let generation = bench.tables.current().backend(BackendIndex(0)).map(|b| b.id.generation);
        let drain = begun.drain.unwrap();
        assert_eq!((drain.flows_at_start, drain.flows_left, drain.flows_cut), (2, 2, 0));
        assert_eq!((drain.then, drain.ends_in_s), (FlowAction::Keep, None));
        let kept = bench.wait_for("a", |a| a.deadline_in_s.is_none()).await;
        assert_eq!((kept.state, kept.flows_cut), (BackendState::Draining, 0));
        let now = bench.tables.current().backend(BackendIndex(0)).map(|b| b.id.generation);
        assert_eq!(now, generation, "pins are good");
        bench.worker.stats.backends.first().unwrap().flows_active.sub(2);
        bench.wait_for_event("drained").await;
        let list: EventList = bench.get("/v1/events").await;
        let kinds: Vec<&str> = list.events.iter().map(|event| event.kind.as_str()).collect();
        assert_eq!(kinds, ["drain_begun", "drain_deadline", "drained"]);
        let since: EventList = bench.get("/v1/events?since=2").await;
        assert_eq!((since.events.len(), since.last, since.lost), (1, 3, 0));
        let (status, error) = bench.refused(Method::GET, "/v1/events?after=1", "").await;
        assert!(status == 400 && error.contains("the keys are since"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_returning_backend_gets_a_growing_share_of_new_flows() {
    let mut vips = web();
    vips.first_mut().unwrap().drain.slow_start = Duration::from_secs(2);
    with_control(vips, async |bench| {
        let order = json!({ "vip": "web", "backend": "a" });
        let _: BackendStatus = bench.post("/v1/drain", order.clone()).await;
        let back: BackendStatus = bench.post("/v1/undrain", order).await;
        assert_eq!((back.state, back.share_percent), (BackendState::Active, 9));
        let share = |bench: &mut Bench| {
            bench.tables.current().backend(BackendIndex(0)).map(|backend| backend.share)
        };
        assert_eq!(share(bench), Some(FULL_SHARE / 10));
        let more = bench.wait_for("a", |a| a.share_percent > 9).await;
        assert!(more.share_percent < 100, "in steps: {more:?}");
        bench.wait_for("a", |a| a.share_percent == 100).await;
        assert_eq!(share(bench), Some(FULL_SHARE));
    })
    .await;
}

#[tokio::test]
async fn the_hook_gets_the_name_of_the_drained_backend() {
    let (bench, mut inputs, signals) = bench(web());
    let reported = bench.scratch.socket().with_file_name("told");
    let script = format!(
        "echo $HOLDFAST_EVENT $HOLDFAST_VIP $HOLDFAST_BACKEND $HOLDFAST_ADDRESS \
         $HOLDFAST_FLOWS_CUT $HOLDFAST_SOCKET >{0}.new && mv {0}.new {0}",
        reported.display()
    );
    inputs.config.control.on_drained = ["sh", "-c", &script].map(str::to_owned).to_vec();
    let asks = async {
        bench.worker.stats.backends.first().unwrap().flows_active.add(4);
        let order = json!({ "vip": "web", "backend": "a", "deadline_s": 1 });
        let _: BackendStatus = bench.post("/v1/drain", order).await;
        bench.wait_for_event("drained").await;
        while !reported.exists() {
            sleep(Duration::from_millis(10)).await;
        }
        bench.signals.send(Signal::Stop).await.unwrap();
    };
    let (ended, ()) = tokio::join!(serve(inputs, signals), asks);
    ended.unwrap();
    let text = std::fs::read_to_string(&reported).unwrap();
    // The socket of the configuration: that of the test was claimed by hand.
    let expected = "drained web a 127.0.1.1 4 /run/holdfast/control.sock\n";
    assert_eq!(text, expected);
}

#[tokio::test]
async fn a_reload_is_all_or_nothing() {
    with_control(web(), async |bench| {
        let _: Status = bench.get("/v1/status").await;
        let before = bench.tables.current().generation();
        let nothing = "nothing was applied: the old configuration stays in force";
        let mistakes = ["holdfast.toml:3: colour: unknown key", "holdfast.toml:4: not TOML"];
        *bench.file.lock().unwrap() = Err(mistakes.map(str::to_owned).to_vec());
        let (status, body) = bench.ask(Method::POST, "/v1/reload", "").await;
        let refusal: ApiError = serde_json::from_slice(&body).unwrap();
        assert_eq!(status, 422);
        assert_eq!(refusal.errors, [mistakes[0], mistakes[1], nothing]);
        assert_eq!(refusal.error, refusal.errors.join("\n"));

        let mut restart = config(vec![vip("other", &[])]);
        restart.workers.cores = vec![1];
        *bench.file.lock().unwrap() = Ok(restart);
        let (status, error) = bench.refused(Method::POST, "/v1/reload", "").await;
        assert_eq!(status, 409);
        let expected = "[workers] cores cannot change while running: restart holdfast, or take the \
                        change back (a reload changes [[vip]], [access], [new_flows], [tunnel] and [icmp] only)";
        assert_eq!(error, format!("{expected}\n{nothing}"));

        let mut nowhere = vip("web", &[]);
        nowhere.announce = crate::config::Announce::Interface("hf-none".to_owned());
        *bench.file.lock().unwrap() = Ok(config(vec![nowhere]));
        let (status, error) = bench.refused(Method::POST, "/v1/reload", "").await;
        assert_eq!(status, 422);
        assert!(error.contains("hf-none does not exist") && error.contains(nothing), "{error}");

        let dry_run = r#"{"dry_run":true}"#;
        assert_eq!(bench.refused(Method::POST, "/v1/reload", dry_run).await.0, 422);
        let list: EventList = bench.get("/v1/events").await;
        let mut refused = list.events.clone();
        refused.retain(|event| event.kind == "reload_refused");
        assert_eq!(refused.len(), 3, "a dry run is no event: {refused:?}");
        let text = "reload refused: holdfast.toml:3";
        assert!(refused.iter().any(|event| event.text.starts_with(text)), "{refused:?}");

        assert_eq!(bench.backend("b").await.name, "b");
        assert_eq!(bench.tables.current().generation(), before);
    })
    .await;
}

#[tokio::test]
async fn removed_vips_leave_the_program_first_and_new_ones_enter_it_last() {
    with_control(web(), async |bench| {
        let _: Status = bench.get("/v1/status").await;
        let published = bench.tables.current().generation();
        let mut added = vip("mail", &[backend("c", 3)]);
        added.address = [192, 0, 2, 25].into();
        *bench.file.lock().unwrap() = Ok(config(vec![added]));
        let reloaded: Reloaded = bench.post("/v1/reload", json!({})).await;
        assert_eq!(reloaded.changes.first().unwrap(), "VIP web removed");
        assert_eq!(reloaded.changes.len(), 2);
        let notes = bench.notes.lock().unwrap();
        let steps: Vec<(Vec<String>, u64)> = notes
            .synced
            .iter()
            .map(|(rules, generation)| {
                (rules.vips.iter().map(|key| key.address.to_string()).collect(), *generation)
            })
            .collect();
        let [first, .., removed, last] = steps.as_slice() else { unreachable!("{steps:?}") };
        assert_eq!(first.0, ["192.0.2.10"]);
        assert!(first.1 > 0, "the first table is there before the first rules");
        assert_eq!(notes.attached_after, Some(1), "and the program comes after both");
        assert_eq!(*removed, (vec![], published), "under the old table");
        assert_eq!(last.0, ["192.0.2.25"]);
        assert!(last.1 > published, "under the new table");
    })
    .await;
}

/// A dry run reports the flows that a reload would reset; only the reload resets them.
#[tokio::test]
async fn a_removed_backend_is_told_and_lingers_until_its_flows_have_ended() {
    let on_remove = FlowAction::Reset;
    let pool = [backend("a", 1), backend("b", 2)];
    let both = vec![Vip { on_remove, ..vip("web", &pool) }];
    let one = vec![Vip { on_remove, ..vip("web", &[backend("z", 1)]) }];
    with_control(both, async |bench| {
        let _: Status = bench.get("/v1/status").await;
        let flows = &bench.worker.stats.backends.get(1).unwrap().flows_active;
        flows.add(3);
        *bench.file.lock().unwrap() = Ok(config(one));
        let generation = bench.tables.current().generation();
        let reported: Reloaded = bench.post("/v1/reload", json!({ "dry_run": true })).await;
        assert_eq!(bench.tables.current().generation(), generation, "nothing was applied");
        let done: Reloaded = bench.post("/v1/reload", json!({})).await;
        for (name, said) in [("dry run", reported), ("reload", done)] {
            assert_eq!(said.dry_run, name == "dry run");
            assert_eq!(
                said.changes,
                ["backend b of VIP web removed", "backend a of VIP web renamed z"],
                "{name}"
            );
            let [flows] = said.flows.as_slice() else { unreachable!("{said:?}") };
            assert_eq!((flows.backend.as_deref(), flows.flows), (Some("b"), 3), "{name}");
            assert_eq!(flows.then, FlowAction::Reset, "{name}");
        }
        let left =
            bench.tables.current().backend(BackendIndex(1)).map(|b| (b.flow_action, b.takes_new));
        assert_eq!(left, Some((FlowAction::Reset, false)));
        let status: Status = bench.get("/v1/status").await;
        let [removed] = status.removed.as_slice() else { unreachable!("{:?}", status.removed) };
        assert_eq!((removed.backend.as_str(), removed.flows_left), ("b", 3));
        flows.sub(3);
        bench.wait_for_event("removed_gone").await;
        // The table behind an event is published by the reply to the next request.
        let _: Status = bench.get("/v1/status").await;
        assert!(bench.tables.current().backend(BackendIndex(1)).is_none());
        let events: EventList = bench.get("/v1/events").await;
        let kinds: Vec<_> = events.events.iter().map(|event| event.kind.as_str()).collect();
        assert!(["renamed", "removed"].iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
    })
    .await;
}

#[tokio::test]
async fn rules_that_could_not_be_set_are_told_and_tried_again() {
    with_control(web(), async |bench| {
        let _: Status = bench.get("/v1/status").await;
        bench.notes.lock().unwrap().refuse = true;
        *bench.file.lock().unwrap() = Ok(config(vec![vip("new", &[backend("a", 1)])]));
        let (status, error) = bench.refused(Method::POST, "/v1/reload", "").await;
        assert_eq!(status, 500);
        assert!(error.contains("in force") && error.contains("map full"), "{error}");
        let count = {
            let mut notes = bench.notes.lock().unwrap();
            notes.refuse = false;
            notes.synced.len()
        };
        bench.wait_for("a", |_| bench.notes.lock().unwrap().synced.len() > count).await;
    })
    .await;
}

#[tokio::test]
async fn sighup_reloads() {
    with_control(web(), async |bench| {
        let _: Status = bench.get("/v1/status").await;
        *bench.file.lock().unwrap() = Ok(config(vec![vip("web", &[backend("z", 9)])]));
        bench.signals.send(Signal::Reload).await.unwrap();
        // A signal and a request may overtake each other, so the test polls.
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let status: Status = bench.get("/v1/status").await;
            let names: Vec<_> = status.vips.iter().flat_map(|vip| &vip.backends).collect();
            if names.iter().map(|backend| backend.name.as_str()).eq(["z"]) {
                break;
            }
            assert!(Instant::now() < end, "{names:?}");
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn counters_of_a_new_backend_start_at_zero() {
    let (bench, inputs, signals) = bench(web());
    // As if this index had served another backend before.
    bench.worker.stats.backends.first().unwrap().flows_total.add(100);
    bench.worker.stats.vips.first().unwrap().packets_in.add(100);
    drop(inputs);
    let _ = signals;
    let mut registry = super::state::Registry::default();
    let workers = [bench.worker.clone()];
    registry.apply(&web(), &workers, tokio::time::Instant::now()).unwrap();
    bench.worker.stats.backends.first().unwrap().flows_total.add(1);
    let (vip, entry) = registry.find("web", "a").unwrap();
    let status = super::status::backend_status(vip, entry, &workers, &[], Instant::now());
    assert_eq!(status.traffic.flows_total, 1);
}

#[tokio::test]
async fn health_is_told_with_its_reason() {
    let listener = tokio::net::TcpListener::bind("127.0.1.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let at = |name: &str, host| crate::config::Backend { port: Some(port), ..backend(name, host) };
    let mut checked = vip("web", &[at("a", 1), at("b", 2)]);
    checked.health = tcp_health();
    with_control(vec![checked], async |bench| {
        let down = bench.wait_for("b", |b| b.health == HealthState::Down).await;
        assert_eq!(down.health_detail, format!("connect to 127.0.1.2:{port}: connection refused"));
        let up = bench.wait_for("a", |a| a.health == HealthState::Up).await;
        assert_eq!(up.health_detail, "");
        let table = bench.tables.current();
        assert!(table.backend(BackendIndex(0)).unwrap().up);
        assert!(!table.backend(BackendIndex(1)).unwrap().up);
        assert!(table.backend(BackendIndex(0)).unwrap().next_hop.is_none(), "it is this box");
        let expected = "its address is one of this box; a backend must be another host";
        assert_eq!((up.next_hop.is_none(), up.next_hop_detail.as_str()), (true, expected));
    })
    .await;
}

#[tokio::test]
async fn a_dead_worker_ends_the_process_with_its_reason() {
    let (bench, inputs, signals) = bench(web());
    let error = "poll: EBADF".to_owned();
    bench.events.send(WorkerEvent::Failed { worker: 1, error }).unwrap();
    let ended = serve(inputs, signals).await.unwrap_err();
    assert!(matches!(ended, ControlError::Worker { worker: 1, .. }), "{ended}");
    assert!(ended.to_string().contains("poll: EBADF"));
    assert!(!bench.scratch.socket().exists());
}

#[tokio::test]
async fn a_start_that_fails_leaves_no_socket() {
    let (bench, inputs, signals) = bench(web());
    bench.notes.lock().unwrap().refuse = true;
    let ended = serve(inputs, signals).await.unwrap_err();
    assert!(matches!(ended, ControlError::Steering(_)), "{ended}");
    assert_eq!(bench.notes.lock().unwrap().attached_after, None);
    assert!(!bench.scratch.socket().exists());
}

#[tokio::test]
async fn flows_are_json_lines() {
    with_control(web(), async |bench| {
        let table = &bench.worker.flows;
        let mut writer = FlowWriter::new(Arc::clone(table)).unwrap();
        for i in 0..10_u16 {
            let key = FlowKey {
                client: Address::from_v4([198, 51, 100, u8::try_from(i).unwrap()]),
                vip: Address::from_v4([192, 0, 2, 10]),
                client_port: 4000 + i,
                vip_port: 80,
                protocol: Protocol::Tcp,
            };
            let backend = BackendId { index: BackendIndex(i % 2), generation: i / 8 };
            let hop = NextHop { nic: NicIndex(0), mac: [0; 6], vlan: None };
            let pin = Pin::new(VipId(0), backend, State::ESTABLISHED, 0, &hop, Ticks(100));
            let pin = pin.with_last_seen(Ticks(200));
            writer.insert(&table.secret().hash(key.into()), &pin).unwrap();
        }
        for (query, expected) in
            [("", 8), ("?backend=b", 4), ("?vip=web&limit=3", 3), ("?client=198.51.100.0/31", 2)]
        {
            let (status, body) = bench.ask(Method::GET, &format!("/v1/flows{query}"), "").await;
            assert_eq!(status, 200);
            let lines = body.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
            let flows: Vec<Flow> =
                lines.map(|line| serde_json::from_slice(line).unwrap()).collect();
            assert_eq!(flows.len(), expected, "{query}: stale pins are not told");
            assert!(flows.iter().all(|flow| (flow.age_ms, flow.idle_ms) == (2000, 1000)));
        }
    })
    .await;
}

#[test]
fn the_intersection_keeps_what_both_have() {
    let key = |port| crate::net::ListenKey {
        address: Address::from_v4([192, 0, 2, 1]),
        port,
        protocol: Protocol::Tcp,
    };
    let rules = |ports: &[u16]| SteerRules {
        vips: ports.iter().map(|&port| key(port)).collect(),
        ..SteerRules::default()
    };
    assert_eq!(rules(&[1, 2, 3]).intersection(&rules(&[3, 4, 2])), rules(&[2, 3]));
}
