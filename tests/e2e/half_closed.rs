//! A client that has sent everything and goes on receiving: `dsr` sees only its ACKs.

use std::io::{BufRead as _, BufReader};
use std::process::{ChildStdout, Stdio};

use crate::lab::{BACKENDS, Config, Family, Holdfast, Lab, Running, Topology, Vip, vip};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/half_closed.py");
/// Seconds after which the server sends a line: first such that some ACKs arrive in the second half
/// of the closing time-out of 6 s, even on a busy machine; then longer silences.
const SECONDS: [&str; 7] = ["1", "1", "1", "1", "1", "9", "9"];

fn start(lab: &Lab, host: &str, arguments: &[&str]) -> Running {
    let mut command = lab.command(host, "/usr/bin/python3");
    command.arg(SCRIPT).args(arguments).stdout(Stdio::piped());
    Running::start(&mut command)
}

/// A client, and its output.
fn ask(lab: &Lab, vip: &Vip) -> (Running, BufReader<ChildStdout>) {
    let address = vip.address();
    let mut client = start(lab, "client", &[&["ask", &address, "80"], &SECONDS[..]].concat());
    let lines = BufReader::new(client.0.stdout.take().unwrap());
    (client, lines)
}

fn line(lines: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// The backend takes no new flows meanwhile: a packet without a pin would go to another backend,
/// whose RST ends the connection.
#[test]
fn a_half_closed_connection_outlives_silences_and_changes_of_the_pool() {
    let lab = Lab::up(Topology::Stick);
    let servers = BACKENDS.map(|backend| {
        lab.stop_backend(backend);
        start(&lab, backend, &["serve", "80", backend])
    });
    let dsr = |family| Vip { timeouts: "{ closing_s = 6 }", ..vip("dsr", family, false) };
    let vips = Family::ALL.map(dsr).to_vec();
    let config = Config::new(&lab, 2, vips.clone());
    let holdfast = Holdfast::start(&lab, &config);

    let mut clients: Vec<_> = vips.iter().map(|vip| ask(&lab, vip)).collect();
    let mut text = config.toml();
    let mut serving = Vec::new();
    for (_, lines) in &mut clients {
        let first = line(lines);
        let backend = first.strip_suffix(" 0").unwrap_or_else(|| panic!("{first:?}")).to_owned();
        let name = format!("name = \"{backend}\"\n");
        if !text.contains(&format!("{name}weight")) {
            text = text.replace(&name, &format!("{name}weight = 0\n"));
        }
        serving.push(backend);
    }
    holdfast.write_text(&text);
    assert!(holdfast.ok(&["reload"]).contains("weight"), "the pool changes");
    for (backend, (vip, (_, lines))) in serving.iter().zip(vips.iter().zip(&mut clients)) {
        for number in 1..SECONDS.len() {
            assert_eq!(line(lines), format!("{backend} {number}"), "{}", vip.name);
        }
        assert_eq!(line(lines), "closed", "{}", vip.name);
    }
    drop(servers);
    holdfast.stop();
}
