//! A log that is not read loses lines, and affects nothing else.

use std::io::Write as _;

use crate::lab::{BACKENDS, BINARY, Config, Family, Holdfast, Lab, Topology, requests, vip};

/// Capacity of a pipe (`pipe(7)`, since Linux 2.6.11), in bytes.
const PIPE: usize = 65_536;
/// Backends that a reload adds, each with a line of the log.
const MANY: u16 = 300;

/// A VIP with backends that need no next hop of their own: ports of one server.
fn with_ports(config: &Config, ports: u16) -> String {
    let mut text = config.toml();
    text.push_str(
        "\n[[vip]]\nname = \"many\"\naddress = \"192.0.2.21\"\nports = [81]\nforward = \"nat\"\n",
    );
    text.push_str("health = { kind = \"none\" }\n");
    for port in 0..ports {
        text.push_str(&format!(
            "[[vip.backend]]\nname = \"p{port}\"\naddress = \"198.18.2.11\"\nport = {}\n",
            9000 + port
        ));
    }
    text
}

/// Reloads until all buffers before the reader are full.
fn lose_lines(holdfast: &Holdfast, config: &Config) {
    for _ in 0..10 {
        for ports in [MANY, 1] {
            holdfast.write_text(&with_ports(config, ports));
            holdfast.ok(&["reload"]);
        }
        if holdfast.status().log_lines_lost > 0 {
            return;
        }
    }
    panic!("no line was lost:\n{}", holdfast.ok(&["status", "--json"]));
}

#[test]
fn a_log_that_hangs_or_is_closed_stops_nothing() {
    for hangs in [true, false] {
        let lab = Lab::up(Topology::Stick);
        let nat = vip("nat", Family::V4, false);
        let config = Config::new(&lab, 2, vec![nat.clone()]);
        let (reader, mut log) = std::io::pipe().unwrap();
        log.write_all(&[b'.'; PIPE]).unwrap();
        let reader = hangs.then_some(reader);
        let holdfast = Holdfast::start_by(&lab, &config, lab.command("lb", BINARY), log.into());
        lose_lines(&holdfast, &config);
        let table = holdfast.ok(&["status"]);
        assert!(table.contains("of the log lost"), "{table}");
        requests(&lab, &nat, 0, 100).assert_from("with no reader of the log", &BACKENDS);
        holdfast.stop();
        drop(reader);
    }
}
