//! The cases of `mistakes.txt`, the meaning of a small file, and unreadable files.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may stop at the first surprise")]

use std::fs;

use super::*;
use crate::net::Protocol;
use crate::units::Ticks;
use std::path::PathBuf;

/// The configuration that the cases of `mistakes.txt` modify.
const GOOD: &str = r#"[workers]
cores = [2, 3]

[[nic]]
interface = "eth1"

[[vip]]
name = "web"
address = "192.0.2.10"
ports = [80, 443]
forward = "nat"

[[vip.backend]]
name = "a"
address = "10.0.0.11"

[[vip.backend]]
name = "b"
address = "10.0.0.12"
"#;

fn messages(text: &str) -> Vec<String> {
    match parse(text, "f.toml") {
        Ok(_) => Vec::new(),
        Err(errors) => errors.0.iter().map(ConfigError::to_string).collect(),
    }
}

/// One case of `mistakes.txt`.
#[derive(Default)]
struct Case {
    from: Vec<&'static str>,
    to: Vec<&'static str>,
    messages: Vec<&'static str>,
}

fn cases() -> impl Iterator<Item = (&'static str, Case)> {
    include_str!("mistakes.txt").split("\n# ").skip(1).map(|text| {
        let (name, lines) = text.split_once('\n').unwrap();
        let mut case = Case::default();
        for line in lines.lines() {
            match (line.get(..1), line.get(2..).unwrap_or_default()) {
                (Some("-"), rest) => case.from.push(rest),
                (Some("+"), rest) => case.to.push(rest),
                (Some(">"), rest) => case.messages.push(rest),
                _ => {}
            }
        }
        (name, case)
    })
}

#[test]
fn every_mistake_is_told_with_its_place_and_cure() {
    let mut wrong = String::new();
    for (name, case) in cases() {
        let text = GOOD.replacen(&case.from.join("\n"), &case.to.join("\n"), 1);
        assert_ne!(text, GOOD, "{name}: the case changes something");
        let found = messages(&text);
        let fits = found.iter().zip(&case.messages).all(|(message, part)| message.contains(part));
        if !fits || found.len() != case.messages.len() {
            let (wanted, found) = (case.messages.join("\n"), found.join("\n"));
            wrong += &format!("\n--- {name}: wanted\n{wanted}\nfound\n{found}\n");
        }
    }
    assert_eq!(wrong, "");
    assert!(cases().count() > 70, "all cases are read");
}

#[test]
fn an_empty_file_lacks_what_has_no_default() {
    let found = messages("");
    assert_eq!(found.len(), 3, "{found:#?}");
    for (message, part) in found.iter().zip([
        "f.toml:1:1: workers.cores: missing; name one core per worker",
        "f.toml:1:1: nic: missing; add at least one [[nic]]",
        "f.toml:1:1: vip: missing; add at least one [[vip]]",
    ]) {
        assert!(message.starts_with(part), "{message}");
    }
}

#[test]
fn a_small_file_means_the_documented_defaults() {
    let config = parse(GOOD, "f.toml").unwrap();
    assert_eq!(config.workers.cores, [2, 3]);
    assert_eq!(config.workers.idle, Idle::Busy);
    assert_eq!(config.control.socket, PathBuf::from("/run/holdfast/control.sock"));
    let vip = config.vips.first().unwrap();
    assert_eq!(vip.protocol, Protocol::Tcp);
    assert_eq!(vip.announce, Announce::Interface("eth1".to_owned()));
    assert_eq!(vip.policy.timeouts.established, Ticks::seconds(7440));
    let Health::Tcp(health) = &vip.health else { panic!("TCP VIPs are checked") };
    assert_eq!((health.rise, health.fall, health.port), (2, 3, None));
    assert_eq!(vip.backends.iter().map(|b| b.weight).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn the_whole_message_with_line_and_caret() {
    let text = GOOD.replace("cores = [2, 3]", "cores = [2, 2]");
    assert_eq!(
        messages(&text),
        [
            "f.toml:2:13: workers.cores: core 2 is listed twice; list each core once: two workers on \
          one core halve each other\n    2 | cores = [2, 2]\n      |             ^"
        ]
    );
}

#[test]
fn changes_that_are_good() {
    for (name, from, to) in [
        ("no port needed", "[80, 443]", "\"all\"\nhealth = { kind = \"none\" }"),
        ("port of the check", "[80, 443]", "\"all\"\nhealth = { port = 80 }"),
        ("enough frames", "[2, 3]", "[2, 3]\nframes = 6208"),
        ("another port of one server", "10.0.0.12\"", "10.0.0.11\"\nport = 8080"),
        ("somebody else announces", "forward", "announce = \"none\"\nforward"),
        (
            "affinity of sticky clients",
            "forward =",
            "scheduler = \"round_robin\"\naffinity = \"client_prefix\"\nsticky = {}\nforward =",
        ),
        (
            "datagrams without pins",
            "forward =",
            "protocol = \"udp\"\npin = false\nscheduler = \"round_robin\"\nforward =",
        ),
        (
            "datagrams without pins, by client",
            "forward =",
            "protocol = \"udp\"\npin = false\naffinity = \"client\"\nsplit = \"auto\"\nforward =",
        ),
        ("smallest table", "[[nic]]", "[hash]\ntable_size = 251\n[[nic]]"),
    ] {
        let text = GOOD.replacen(from, to, 1);
        assert_eq!(messages(&text), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn a_second_vip_next_to_the_first() {
    for (name, keys, overlaps) in [
        ("another protocol", "address = \"192.0.2.10\"\nports = [80]\nprotocol = \"udp\"", false),
        ("another address", "address = \"192.0.2.11\"\nports = [80]", false),
        ("another port", "address = \"192.0.2.10\"\nports = [81]", false),
        ("the same", "address = \"192.0.2.10\"\nports = [80]", true),
    ] {
        let backend = "[[vip.backend]]\nname = \"c\"\naddress = \"10.0.0.13\"\n";
        let text = format!("{GOOD}[[vip]]\nname = \"w\"\nforward = \"nat\"\n{keys}\n{backend}");
        assert_eq!(messages(&text).len(), usize::from(overlaps), "{name}");
    }
}

#[test]
fn more_than_there_is_room_for() {
    let nics: String = (0..16).map(|n| format!("[[nic]]\ninterface = \"e{n}\"\n")).collect();
    let found = messages(&GOOD.replace("[[nic]]\ninterface = \"eth1\"\n", &nics));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found.iter().all(|m| m.contains("nic: 16 NICs; at most 15 are possible")), "{found:?}");

    let backends: String = (0..26)
        .map(|n| format!("[[vip.backend]]\nname = \"x{n}\"\naddress = \"10.0.1.{n}\"\n"))
        .collect();
    let found = messages(&format!("{GOOD}{backends}[hash]\ntable_size = 251\n"));
    let what =
        "hash.table_size: 251 entries are too few for a VIP with 28 backends; use a prime of";
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found.iter().all(|message| message.contains(what)), "{found:?}");
}

#[test]
fn files_that_cannot_be_read() {
    let folder = std::env::temp_dir().join(format!("holdfast-config-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let latin1 = folder.join("latin1.toml");
    fs::write(&latin1, b"[workers]\n# caf\xe9\n").unwrap();
    let fifo = folder.join("fifo");
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let socket = folder.join("socket");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    for (path, what) in [
        (fifo, "fifo: a FIFO or pipe, not a regular file; write the configuration to a regular"),
        (socket, "socket: a socket, not a regular file"),
        ("/dev/zero".into(), "/dev/zero: a device, not a regular file"),
        (
            folder.join("none.toml"),
            "none.toml: no such file; check the path, or put the file there",
        ),
        (folder.clone(), ": a directory; name a file in it"),
        (latin1, "latin1.toml: not UTF-8 in line 2; save the file as UTF-8"),
    ] {
        let message = load(&path).unwrap_err().to_string();
        assert!(message.contains(what), "{what:?} is not in {message}");
    }
    fs::remove_dir_all(&folder).unwrap();
}

/// Messages end in logs: a line with a secret is never shown, whichever mistake it has.
#[test]
fn secrets_are_not_told() {
    let quic = "affinity = \"quic_cid\"\nprotocol = \"udp\"\nforward = \"nat\"\n[[vip.quic]]\n";
    for (from, to) in [
        ("[[nic]]", "[hash]\nsecret = \"5ec2e7\"\n[[nic]]".to_owned()),
        ("[[nic]]", "[hash]\nsecret = \"5ec2e7\n[[nic]]".to_owned()),
        ("[[nic]]", "[hash]\nsecret = x5ec2e7\n[[nic]]".to_owned()),
        ("[workers]", "hash = { secret = \"5ec2e7\", table_size = 4 }\n[workers]".to_owned()),
        ("[workers]", "hash.\"secret\" = \"5ec2e7\"\n[workers]".to_owned()),
        ("forward = \"nat\"\n", format!("{quic}key = \"5ec2e7\"\n")),
        ("forward = \"nat\"\n", format!("{quic}key=[\"5ec2e7\"]\n")),
    ] {
        let found = messages(&GOOD.replacen(from, &to, 1)).join("\n");
        assert_ne!(found, "", "{to}");
        assert!(!found.contains("5ec2e7"), "{found}");
    }
}
