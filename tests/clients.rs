//! Sticky clients on the packet path: workers on fake rings that share one clients table. No root.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]

#[allow(dead_code, reason = "other tests use the rest")]
mod rig;

use std::net::SocketAddr;

use holdfast::flow::clients::Mapping;
use holdfast::forwarding::explain::Question;
use holdfast::forwarding::sticky::{Hold, Reentry, Sticky};
use holdfast::forwarding::{Affinity, Remember, Service, VipSpec};
use holdfast::net::{Forward, Protocol};
use holdfast::units::Ticks;
use rig::{Family, Rig, spec, tcp, udp};

/// Time-out of the sticky VIP, in ticks: 5 s, shorter than the 10 s of an established flow.
const TIMEOUT: u32 = 500;

fn sticky(on_drain: Hold, on_down: Hold) -> VipSpec {
    let sticky = Some(Sticky { on_drain, on_down });
    let remember = Remember { timeout: Ticks(TIMEOUT), sticky, on_reentry: Reentry::Hash };
    spec(0, Forward::Nat, Family::V4, 1, 3).with(|policy| policy.remember = Some(remember))
}

/// A rig with two workers and one client, which opens each connection from another port.
struct Client {
    rig: Rig,
    port: u16,
}

impl Client {
    fn new(spec: VipSpec) -> Self {
        Self { rig: Rig::new(2, 1, vec![spec]), port: 1000 }
    }

    /// Sends a packet of a flow of the client to a worker; returns its backend.
    fn send(&mut self, worker: usize, port: u16, flags: &str) -> u16 {
        let sent = self.rig.send(worker, 0, &tcp(Family::V4, port, 80, flags));
        sent[0].destination_mac()[5].into()
    }

    /// Opens a connection by a SYN alone; returns its backend.
    fn syn(&mut self, worker: usize) -> u16 {
        self.port += 1;
        self.send(worker, self.port, "S")
    }

    /// Opens a connection with its handshake; returns its backend.
    fn connect(&mut self, worker: usize) -> u16 {
        let backend = self.syn(worker);
        assert_eq!(self.send(worker, self.port, "A"), backend);
        backend
    }

    /// Opens `count` connections at both workers in turn; returns their backends.
    fn connections(&mut self, count: usize) -> Vec<u16> {
        let mut backends: Vec<u16> = (0..count).map(|n| self.connect(n % 2)).collect();
        backends.sort_unstable();
        backends.dedup();
        backends
    }

    fn mapping(&self) -> Option<Mapping> {
        let clients = self.rig.clients();
        let mut all = (0..clients.positions()).filter_map(|position| clients.at(position));
        let found = all.next();
        assert!(all.next().is_none(), "one client is one mapping");
        found.map(|(_, mapping)| mapping)
    }
}

#[test]
fn a_client_s_connections_go_to_one_backend_at_every_worker() {
    let mut free = Client::new(spec(0, Forward::Nat, Family::V4, 1, 3));
    assert_eq!(free.connections(40), [0, 1, 2], "without it they spread");
    assert_eq!(free.mapping(), None, "and nothing is remembered");
    let mut client = Client::new(sticky(Hold::Release, Hold::Release));
    let first = client.connect(0);
    assert_eq!(client.connections(40), [first]);
    // More backends change nothing for the client.
    client.rig.change(|specs| {
        specs[0] = spec(0, Forward::Nat, Family::V4, 1, 30)
            .with(|policy| policy.remember = specs[0].policy.remember)
    });
    assert_eq!(client.connections(40), [first]);
    client.rig.assert_accounted();
}

#[test]
fn parallel_connections_meet_before_any_handshake_is_done() {
    let mut client = Client::new(sticky(Hold::Release, Hold::Release));
    let first = client.syn(0);
    assert!(!client.mapping().unwrap().proven);
    let rest: Vec<u16> = (0..20).map(|n| client.syn(n % 2)).collect();
    assert!(rest.iter().all(|&backend| backend == first), "{rest:?}");
    client.send(0, 1001, "A");
    assert!(client.mapping().unwrap().proven);
}

#[test]
fn a_drain_or_a_failure_releases_at_the_next_connection_or_is_waited_out() {
    let draining = |backend: &mut holdfast::forwarding::BackendSpec| {
        backend.service = Service::Draining;
    };
    let down = |backend: &mut holdfast::forwarding::BackendSpec| backend.up = false;
    let no_weight = |backend: &mut holdfast::forwarding::BackendSpec| backend.weight = 0;
    let row = |policy: (Hold, Hold), change: fn(&mut _), stays: bool| {
        let mut client = Client::new(sticky(policy.0, policy.1));
        let first = client.connect(0);
        let old = client.port;
        client.rig.change(|specs| change(&mut specs[0].backends[usize::from(first)]));
        let next = client.connections(40);
        assert_eq!(next.len(), 1, "to one backend, old or new: {next:?}");
        assert_eq!(next == [first], stays, "{policy:?}");
        // The old connection stays, and does not pull the client back.
        assert_eq!(client.send(0, old, "A"), first);
        client.rig.advance(200);
        assert_eq!(client.send(0, old, "A"), first);
        assert_eq!(client.connections(10), next);
        // Back in service: a client that moved stays at its new backend.
        client.rig.change(|specs| {
            let backend = &mut specs[0].backends[usize::from(first)];
            (backend.up, backend.weight, backend.service) = (true, 1, Service::Active);
        });
        assert_eq!(client.connections(40), next);
        client.rig.assert_accounted();
    };
    let (release, keep) = (Hold::Release, Hold::Keep);
    row((release, keep), draining, false);
    row((keep, release), draining, true);
    row((release, keep), no_weight, false);
    row((keep, release), no_weight, true);
    row((keep, release), down, false);
    row((release, keep), down, true);
}

#[test]
fn a_removed_backend_releases_whatever_the_policy() {
    let mut client = Client::new(sticky(Hold::Keep, Hold::Keep));
    let first = client.connect(0);
    client.rig.change(|specs| specs[0].backends[usize::from(first)].id.generation += 1);
    let next = client.connections(40);
    assert_eq!(next.len(), 1);
    client.rig.change(|specs| specs[0].backends.retain(|backend| backend.id.index.0 != next[0]));
    let last = client.connections(40);
    assert!(last.len() == 1 && last != next, "{last:?}");
}

#[test]
fn a_client_is_free_again_when_no_packet_of_any_flow_came_for_the_time_out() {
    let mut client = Client::new(sticky(Hold::Release, Hold::Release));
    let first = client.connect(0);
    let flow = client.port;
    // Packets of one flow keep the mapping, at another worker too, and so do replies.
    let request = client.rig.send(0, 0, &tcp(Family::V4, flow, 80, "A"));
    for step in 0..8 {
        client.rig.advance(TIMEOUT);
        match step % 4 {
            0 => _ = client.send(0, flow, "A"),
            1 => _ = client.send(1, flow, "A"),
            2 => _ = client.rig.send(0, 0, &request[0].reply("A")),
            _ => _ = client.rig.send(1, 0, &request[0].reply("A")),
        }
    }
    client.rig.advance(TIMEOUT);
    assert_eq!(client.connections(10), [first]);
    // Silence for longer than the time-out: among many backends the next one is random.
    client.rig.change(|specs| {
        specs[0] = spec(0, Forward::Nat, Family::V4, 1, 50)
            .with(|policy| policy.remember = specs[0].policy.remember)
    });
    client.rig.advance(TIMEOUT + 140);
    let created = client.mapping().unwrap().created;
    client.connect(0);
    assert_ne!(client.mapping().unwrap().created, created, "a new choice");
    assert_eq!(client.connections(10).len(), 1, "and it sticks again");
}

#[test]
fn a_pin_that_was_lost_is_found_again_by_the_client_also_at_a_draining_backend() {
    let mut client = Client::new(sticky(Hold::Release, Hold::Release));
    let first = client.connect(0);
    let flow = client.port;
    client.rig.change(|specs| {
        specs[0].backends[usize::from(first)].service = Service::Draining;
    });
    client.send(0, flow, "R");
    client.rig.advance(250);
    assert_eq!(client.rig.stats(0).flows_active.get(), 0, "closed and swept");
    for port in 2000..2040 {
        assert_eq!(client.send(0, port, "A"), first, "in the middle of a connection");
    }
    assert_ne!(client.connect(0), first, "a new one is released");
}

#[test]
fn a_client_that_comes_back_goes_to_the_freest_backend() {
    for sticky in [None, Some(Sticky { on_drain: Hold::Release, on_down: Hold::Release })] {
        let mut vip = spec(0, Forward::Nat, Family::V4, 1, 3);
        let timeout = Ticks(TIMEOUT);
        vip.policy.remember = Some(Remember { timeout, sticky, on_reentry: Reentry::Freest });
        vip.policy.timeouts.established = Ticks(TIMEOUT * 10);
        // One backend has the lowest load for its weight: it gets the flows that the others lack.
        vip.backends[1].weight = 4;
        let mut client = Client::new(vip);
        let first = client.connect(0);
        for _ in 0..20 {
            client.connect(0);
        }
        client.rig.advance(TIMEOUT + 140);
        let load = |client: &Client, backend: usize| {
            client.rig.stats(0).backends[backend].flows_active.get()
        };
        let weights = [1, 4, 1];
        let freest = (0..3).min_by_key(|&b| (load(&client, b) + 1) * 4 / weights[b]).unwrap();
        let before = load(&client, freest);
        assert_eq!(usize::from(client.syn(0)), freest, "{sticky:?}, first {first}");
        assert_eq!(load(&client, freest), before + 1);
        client.rig.assert_accounted();
    }
}

#[test]
fn udp_clients_stick_and_are_proven_by_a_later_packet() {
    let mut vip = sticky(Hold::Release, Hold::Release);
    vip.protocol = Protocol::Udp;
    let mut client = Client::new(vip);
    let send = |client: &mut Client, worker: usize, port: u16| {
        let sent = client.rig.send(worker, 0, &udp(Family::V4, port, 80, true));
        u16::from(sent[0].destination_mac()[5])
    };
    let first = send(&mut client, 0, 1000);
    for port in 1001..1040 {
        assert_eq!(send(&mut client, usize::from(port % 2), port), first);
    }
    assert!(!client.mapping().unwrap().proven);
    client.rig.advance(60);
    send(&mut client, 0, 1000);
    client.rig.advance(90);
    send(&mut client, 0, 1000);
    assert!(client.mapping().unwrap().proven);
}

#[test]
fn explain_says_what_is_known_of_the_client_and_changes_nothing() {
    let asked = |client: &Client, port: u16| {
        let question = Question {
            client: SocketAddr::new(Family::V4.client(), port),
            destination: SocketAddr::new(Family::V4.vip(), 80),
            protocol: Protocol::Tcp,
            packet: holdfast::forwarding::explain::Segment::Likely,
            payload: Vec::new(),
        };
        let rig = &client.rig;
        let answer = rig.explainer().explain(&question, &rig.table(), rig.now()).unwrap();
        let step = answer.steps.into_iter().find(|step| step.stage == "clients").unwrap();
        (answer.backend.unwrap().0, step.outcome, step.why)
    };
    let mut client = Client::new(sticky(Hold::Release, Hold::Release));
    assert_eq!(asked(&client, 1).1, "not known");
    let first = client.connect(0);
    client.rig.advance(300);
    let before = client.mapping();
    for port in 1..40 {
        let (backend, outcome, why) = asked(&client, port);
        assert_eq!((backend, outcome), (first, format!("b{first}")));
        assert!(why.contains("for 3 s"), "{why}");
    }
    let limit = |specs: &mut [VipSpec], most| {
        specs[0].backends[usize::from(first)].max_flows = most;
    };
    client.rig.change(|specs| limit(specs, Some(0)));
    let (backend, outcome, why) = asked(&client, 1);
    assert!(backend != first && outcome == "is free" && why.contains("the client keeps"), "{why}");
    client.rig.change(|specs| limit(specs, None));
    client.rig.change(|specs| {
        specs[0].backends[usize::from(first)].service = Service::Draining;
    });
    let (backend, outcome, why) = asked(&client, 1);
    assert!(backend != first && outcome == "is free" && why.contains("draining"), "{why}");
    assert_eq!(client.mapping(), before);
}

#[test]
fn affinity_defines_which_flows_are_one_client() {
    for (affinity, backends) in [(Affinity::Client, 1), (Affinity::ClientPorts { bits: 1 }, 2)] {
        let mut vip =
            sticky(Hold::Release, Hold::Release).with(|policy| policy.affinity = affinity);
        // Low and high ports are two clients; each may have either backend.
        vip.backends.truncate(2);
        let mut client = Client::new(vip);
        for port in [1000, 50_000, 2000, 60_000] {
            client.send(0, port, "S");
        }
        let clients = client.rig.clients();
        let known = (0..clients.positions()).filter(|&at| clients.at(at).is_some()).count();
        assert_eq!(known, backends, "{affinity:?}");
    }
}
