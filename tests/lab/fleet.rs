//! A fleet: two boxes with one configuration, and backends with the program of `holdfast backend`.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;

use holdfast::control::api::{HealthState, Status};

use super::{
    BINARY, Config, Family, Holdfast, Lab, POLL, SOON, SessionServer, Sessions, Vip, sessions,
    tunnel, vip, wait_for,
};

/// The boxes.
pub const BOXES: [&str; 2] = ["lb", "lb2"];
/// The fleet's key: 16 times 7.
pub const KEY: &str = "07070707070707070707070707070707";
/// All backends of the lab.
const ALL: [&str; 4] = ["b1", "b2", "b3", "b4"];
/// The backends before a test adds the last one.
const FIRST: [&str; 3] = ["b1", "b2", "b3"];

/// VIPs of each mode that asks, each with these keys; a tunnel may be of the other family.
pub fn fleet_vips(keys: &'static str) -> Vec<Vip> {
    let (v4, v6) = (Family::V4, Family::V6);
    let vips = [
        vip("dsr", v4, false),
        vip("dsr", v6, false),
        tunnel("ipip", v4, v4),
        tunnel("ipip", v6, v4),
        tunnel("gue", v4, v6),
        tunnel("gue", v6, v6),
    ];
    vips.map(|vip| Vip { keys, backends: FIRST.to_vec(), ..vip }).to_vec()
}

/// Two boxes, four servers, and a client.
pub struct Fleet<'l> {
    lab: &'l Lab,
    /// The boxes, in the order of [`BOXES`].
    pub boxes: Vec<Holdfast<'l>>,
    /// The VIPs.
    pub vips: Vec<Vip>,
    /// The servers of all backends.
    pub servers: Vec<SessionServer>,
    /// The connections of the client.
    pub sessions: Sessions,
    /// A change of the configuration's text.
    pub edit: fn(String) -> String,
}

impl<'l> Fleet<'l> {
    /// Starts everything; the router sends to the first box.
    pub fn start(lab: &'l Lab, vips: Vec<Vip>) -> Self {
        let key = lab.state().join("fleet.key");
        let mut file = File::options().create_new(true).write(true).mode(0o600).open(&key).unwrap();
        io::Write::write_all(&mut file, KEY.as_bytes()).unwrap();
        let addresses: Vec<String> = vips.iter().map(Vip::address).collect();
        let mut load = vec![BINARY, "backend", "load", "--interface", "eth0"];
        load.extend(["--key-file", key.to_str().unwrap()]);
        load.extend(addresses.iter().flat_map(|address| ["--vip", address]));
        for backend in ALL {
            lab.run(backend, &load);
        }
        let servers = ALL.map(|backend| SessionServer::start(lab, backend)).into();
        let (boxes, sessions) = (Vec::new(), Sessions::new(lab));
        let mut fleet = Self { lab, boxes, vips, servers, sessions, edit: |text| text };
        for name in BOXES {
            let started = Holdfast::start_on(lab, name, &fleet.socket(name), &fleet.toml(name));
            fleet.boxes.push(started);
        }
        fleet.wait_until_ready();
        fleet
    }

    fn socket(&self, name: &str) -> String {
        self.lab.state().join(format!("{name}.sock")).to_str().unwrap().to_owned()
    }

    /// The configuration of a box.
    fn toml(&self, name: &str) -> String {
        let mut config = Config::new(self.lab, 2, self.vips.clone());
        config.socket = self.socket(name);
        config.more = format!("[fleet]\nkey = \"{KEY}\"\n");
        let ports = format!("ports = [{}]\nannounce = \"none\"", sessions::PORT);
        let mut text = config.toml().replace("ports = [80]", &ports);
        if name != BOXES[0] {
            for (key, own) in [("source_v4", "198.18.2.3"), ("source_v6", "2001:db8:2::3")] {
                let line = text.lines().find(|line| line.starts_with(key)).unwrap().to_owned();
                text = text.replace(&line, &format!("{key} = \"{own}\""));
            }
        }
        (self.edit)(text)
    }

    /// Makes both boxes read the configuration of the present VIPs.
    pub fn reload(&self) {
        for (running, name) in self.boxes.iter().zip(BOXES) {
            running.write_text(&self.toml(name));
            running.ok(&["reload"]);
        }
        self.wait_until_ready();
    }

    /// Gives all VIPs these backends, at both boxes.
    pub fn set_backends(&mut self, backends: &[&'static str]) {
        self.vips.iter_mut().for_each(|vip| vip.backends = backends.to_vec());
        self.reload();
    }

    /// Starts or ends the drain of a backend of every VIP, at both boxes.
    pub fn drain(&self, command: &str, backend: &str) {
        for running in &self.boxes {
            let targets = self.vips.iter().map(|vip| format!("{}/{backend}", vip.name));
            let line: Vec<String> = [command.to_owned()].into_iter().chain(targets).collect();
            running.ok(&line.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }

    /// Waits until every backend is up, and, where the box says so, answers asks.
    fn wait_until_ready(&self) {
        let is_up = |status: &Status| {
            let mut backends = status.vips.iter().flat_map(|vip| &vip.backends);
            backends.all(|one| one.health == HealthState::Up && one.next_hop.is_some())
        };
        let asks = self.vips.iter().any(|vip| !vip.keys.contains("never"));
        for running in &self.boxes {
            running.wait_until("every backend is up", is_up);
            if !asks {
                continue;
            }
            wait_for("every backend can be asked", SOON, || {
                let status: serde_json::Value =
                    serde_json::from_str(&running.ok(&["status", "--json"])).unwrap();
                let vips = status["vips"].as_array().unwrap();
                let mut backends = vips.iter().flat_map(|vip| vip["backends"].as_array().unwrap());
                backends.all(|one| one["ask"].is_null() || one["ask"] == "ready")
            });
        }
    }

    /// Number of drops for a reason at a box.
    pub fn drops(&self, number: usize, reason: &str) -> u64 {
        self.boxes[number].status().drops[reason]
    }

    /// A counter of a backend's program.
    pub fn program(&self, backend: &str, counter: &str) -> u64 {
        self.program_status(backend)[counter].as_u64().unwrap()
    }

    fn program_status(&self, backend: &str) -> serde_json::Value {
        let line = [BINARY, "backend", "status", "--interface", "eth0", "--json"];
        let status: serde_json::Value =
            serde_json::from_str(&self.lab.run(backend, &line)).unwrap();
        status["counters"].clone()
    }

    /// Sum of a counter over all backends' programs.
    pub fn programs(&self, counter: &str) -> u64 {
        ALL.iter().map(|backend| self.program(backend, counter)).sum()
    }

    /// Makes the router send to a box, by its number.
    pub fn flip_to(&self, number: usize) {
        self.lab.route_vips_to(BOXES[number]);
        // Packets on their way to the other box.
        std::thread::sleep(POLL);
    }

    /// Opens connections from the client's first address; returns the backends that have them.
    pub fn open(&mut self, each: [usize; 3]) -> Vec<String> {
        let pairs: Vec<_> = self.vips.iter().map(|vip| (0, vip)).collect();
        self.sessions.open(&pairs, each)
    }

    /// Panics if a connection does not get on.
    pub fn assert_progress(&mut self, what: &str) {
        let broken = self.sessions.progress();
        assert!(broken.is_empty(), "{what}: {}: {broken:#?}\n{}", broken.len(), self.counted());
    }

    /// What boxes and programs have counted.
    fn counted(&self) -> String {
        let mut text = String::new();
        for (running, name) in self.boxes.iter().zip(BOXES) {
            let status = running.status();
            let drops = status.drops.into_iter().filter(|(_, count)| *count > 0);
            let drops: Vec<(String, u64)> = drops.collect();
            writeln!(text, "{name}: {:?} {drops:?}", status.totals).unwrap();
        }
        for backend in ALL {
            writeln!(text, "{backend}: {}", self.program_status(backend)).unwrap();
        }
        text
    }

    /// Ends all connections, each of which must end well, and the boxes.
    pub fn end(mut self) {
        let broken = self.sessions.end();
        assert!(broken.is_empty(), "the end: {}: {broken:#?}", broken.len());
        self.boxes.into_iter().for_each(Holdfast::stop);
    }
}
