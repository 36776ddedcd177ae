//! The real binary as a user runs it: output, streams and exit codes.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise"
)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Result of a run.
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn holdfast(arguments: &[&str]) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_holdfast")).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A temporary folder, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("holdfast-binary-{test}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn check_accepts_the_files_that_are_shipped() {
    // Two tables of 1,048,576 flows, and 30 s for each short flow.
    let tcp = "69,905 new TCP flows a second";
    let both = "69,905 new TCP or 69,905 new UDP flows a second";
    for (file, counts, bears, more) in [
        ("config/holdfast.toml", "2 workers, 1 NIC, 2 VIPs, 4 backends", both, ""),
        ("config/example-nat.toml", "2 workers, 1 NIC, 1 VIP, 2 backends", tcp, ""),
        ("config/example-dsr.toml", "2 workers, 1 NIC, 2 VIPs, 3 backends", both, ""),
        ("config/example-tunnel.toml", "2 workers, 1 NIC, 1 VIP, 2 backends", tcp, ""),
        (
            "config/example-full-nat.toml",
            "2 workers, 1 NIC, 1 VIP, 2 backends",
            tcp,
            ", 71 MB of full-NAT sources",
        ),
    ] {
        let path = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
        let run = holdfast(&["check", "--config", &path, "--offline"]);
        let memory = format!("105 MB of flow tables (IPv4 bears {bears}), 27 MB of packet memory");
        let expected =
            format!("{path}: good (the machine was not looked at): {counts}; {memory}{more}\n");
        assert_eq!(
            (run.code, run.stdout, run.stderr),
            (Some(0), expected, String::new()),
            "{file}"
        );
    }
}

#[test]
fn check_notes_what_may_not_be_meant() {
    let folder = Folder::new("notes");
    let good =
        fs::read_to_string(format!("{}/config/example-nat.toml", env!("CARGO_MANIFEST_DIR")));
    let text = good.unwrap().replace("port = 8080", "port = 8080\n  weight = 0");
    let file = folder.file("idle.toml", &text);
    let run = holdfast(&["check", "--config", &file, "--offline"]);
    let expected = format!(
        "note: {file}: vip.backend.weight: VIP web: every backend has weight 0: it takes no new \
         flows; give one of them a weight\n{file}: good (the machine was not looked at): "
    );
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    assert!(run.stdout.starts_with(&expected), "{}", run.stdout);
}

#[test]
fn check_reports_every_mistake_and_exits_1() {
    let folder = Folder::new("mistakes");
    let file = folder.file(
        "bad.toml",
        "[workers]\ncores = [0, 0]\nidel = \"busy\"\n[[nic]]\ninterface = \"eth1\"\n[[vip]]\n\
         name = \"web\"\naddress = \"192.0.2.10\"\nports = [80]\nforward = \"nat\"\n\
         [[vip.backend]]\nname = \"a\"\naddress = \"2001:db8::1\"\n",
    );
    let run = holdfast(&["check", "--config", &file]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{}", run.stderr);
    let errors: Vec<_> = run.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    let expected = [
        format!("error: {file}:2:13: workers.cores: core 0 is listed twice; "),
        format!("error: {file}:3:1: workers.idel: unknown key `idel`; the keys here are: cores, "),
        format!("error: {file}:13:11: vip.backend.address: 2001:db8::1 is IPv6, but VIP \"web\""),
    ];
    assert_eq!(errors.len(), expected.len(), "{}", run.stderr);
    for (error, expected) in errors.iter().zip(&expected) {
        assert!(error.starts_with(expected), "{expected} is not the start of\n{error}");
    }
}

#[test]
fn check_looks_at_the_machine_unless_it_is_offline() {
    let folder = Folder::new("machine");
    let good =
        fs::read_to_string(format!("{}/config/example-nat.toml", env!("CARGO_MANIFEST_DIR")));
    let text = good.unwrap().replace("[2, 3]", "[1023]").replace("eth1", "no-such-nic");
    let file = folder.file("other-machine.toml", &text);
    assert_eq!(holdfast(&["check", "--config", &file, "--offline"]).code, Some(0));
    let run = holdfast(&["check", "--config", &file]);
    assert_eq!(run.code, Some(1));
    for part in [
        format!("error: {file}: workers.cores: core 1023 is not there or offline; use some of "),
        format!("error: {file}: nic.interface: there is no interface no-such-nic; there are: "),
    ] {
        assert!(run.stderr.contains(&part), "{part} is not in\n{}", run.stderr);
    }
}

#[test]
fn check_of_a_file_that_is_not_there() {
    let run = holdfast(&["check", "--config", "/nowhere/holdfast.toml"]);
    let expected =
        "error: /nowhere/holdfast.toml: no such file; check the path, or put the file there\n";
    assert_eq!((run.code, run.stderr.as_str()), (Some(1), expected));
}

#[test]
fn help_lists_the_commands() {
    let run = holdfast(&["--help"]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    for command in [
        "run", "check", "status", "drain", "undrain", "reload", "flows", "clients", "explain",
        "generate", "whatif",
    ] {
        assert!(run.stdout.contains(&format!("\n  {command} ")), "{command}\n{}", run.stdout);
        assert_eq!(holdfast(&[command, "--help"]).code, Some(0), "{command}");
    }
    let version = holdfast(&["--version"]);
    assert_eq!(version.stdout, format!("holdfast {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_exits_2() {
    for arguments in
        [&["fly"][..], &[], &["check"], &["run"], &["drain", "web"], &["status", "--jsno"]]
    {
        let run = holdfast(arguments);
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(
            run.stderr.contains("--help") || arguments.is_empty(),
            "{arguments:?}\n{}",
            run.stderr
        );
    }
}

#[test]
fn commands_without_an_answer_exit_1() {
    let folder = Folder::new("nobody");
    let socket = folder.0.join("control.sock").to_str().unwrap().to_owned();
    for command in [
        &["status"][..],
        &["drain", "web/a"],
        &["undrain", "web/a"],
        &["reload"],
        &["flows"],
        &["clients"],
    ] {
        let run = holdfast(&[command, &["--socket", &socket]].concat());
        let expected = format!(
            "error: no process listens at {socket}: there is no such socket: is holdfast running? Start it with \
             `holdfast run --config F`, or name its socket with --socket\n"
        );
        assert_eq!((run.code, run.stderr), (Some(1), expected), "{command:?}");
    }
}

/// A small simulation of the NAT example, with more arguments.
fn whatif(more: &[&str]) -> Run {
    let path = format!("{}/config/example-nat.toml", env!("CARGO_MANIFEST_DIR"));
    let small = ["whatif", "--config", &path, "--flows", "2000", "--clients", "500"];
    holdfast(&[&small[..], more].concat())
}

#[test]
fn whatif_reports_as_text_and_as_json() {
    let run = whatif(&["--change", "remove web/a"]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    let start = "VIP web: 2,000 flows of 500 clients, 20.0 % of them behind gateways; affinity flow; \
                 seed 1\nSCHEDULER ";
    assert!(run.stdout.starts_with(start), "{}", run.stdout);
    assert!(run.stdout.contains("\nmaglev *"), "{}", run.stdout);
    assert!(run.stdout.contains("\nremove web/a: "), "{}", run.stdout);

    let run = whatif(&["--change", "drain web/a", "--json", "--schedulers", "all"]);
    let document: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let rows = document["schedulers"].as_array().unwrap();
    for row in rows {
        assert_eq!(row["flows"], 2000);
        assert_eq!(row["broken_with_conntrack"], 0);
        for key in [
            "name",
            "broken_without_conntrack",
            "new_flows_moved_share",
            "max_over_mean",
            "max_over_mean_after",
            "build_ms",
        ] {
            assert!(!row[key].is_null(), "{key} of {row}");
        }
    }
    let two_words = whatif(&["--change", "remove", "web/a", "--change", "drain", "web/b"]);
    assert!(two_words.stdout.contains("\nremove web/a, drain web/b: "), "{}", two_words.stdout);
    let configured = whatif(&["--change", "drain web/a", "--json", "--schedulers", "configured"]);
    assert_eq!(configured.stdout.matches("\"name\":").count(), 1, "{}", configured.stdout);
}

#[test]
fn whatif_exits_3_where_a_bound_is_broken() {
    let good = whatif(&["--change", "drain web/a", "--fail-if", "broken>0.1%"]);
    assert_eq!((good.code, good.stderr.as_str()), (Some(0), ""));
    let bad = whatif(&["--change", "remove web/a", "--fail-if", "broken>0.1%"]);
    assert_eq!(bad.code, Some(3));
    assert!(
        bad.stderr.starts_with("error: VIP web, scheduler maglev: broken is "),
        "{}",
        bad.stderr
    );
    assert_eq!(bad.stderr.lines().count(), 1, "the configured scheduler only: {}", bad.stderr);
    assert!(bad.stdout.starts_with("VIP web: "), "the report is there all the same");
    let all = ["--change", "drain web/a", "--change", "drain web/b", "--fail-if", "dropped>0"];
    let bad = whatif(&all);
    assert_eq!(bad.code, Some(3), "{}", bad.stderr);
    assert!(bad.stdout.contains("100.0 % of the new flows find NO BACKEND"), "{}", bad.stdout);
}

#[test]
fn whatif_refuses_what_cannot_be() {
    for (arguments, code, said) in [
        (
            &["--change", "remove web/x"][..],
            1,
            "--change 'remove web/x': VIP web has no backend x; it has: a, b",
        ),
        (&["--change", "drop", "web/a"], 1, "--change drop: write 'remove VIP/BACKEND', "),
        (&["--change", "drop web/a"], 2, "write 'remove VIP/BACKEND', "),
        (
            &["--change", "drain web/a", "--schedulers", "fair"],
            1,
            "--schedulers: there is no scheduler fair",
        ),
        (&["--change", "drain web/a", "--fail-if", "lost>1%"], 2, "\"lost\" is no figure; "),
        (&["--change", "drain web/a", "--zipf", "9"], 2, "write an exponent from 0 "),
        (
            &["--change", "drain web/a", "--svg", "/nowhere/x.svg"],
            1,
            "cannot write /nowhere/x.svg: ",
        ),
        (&[], 2, "--change <CHANGE>"),
    ] {
        let run = whatif(arguments);
        assert_eq!(run.code, Some(code), "{arguments:?}\n{}", run.stderr);
        assert!(run.stderr.contains(said), "{arguments:?}\n{}", run.stderr);
    }
}

#[test]
fn whatif_draws_a_chart() {
    let folder = Folder::new("whatif");
    let file = folder.file("chart.svg", "");
    let run = whatif(&["--change", "drain web/a", "--svg", &file]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    assert!(fs::read_to_string(&file).unwrap().starts_with("<svg "));
}

/// Reports to a full disk: `/dev/full` has room for nothing.
#[test]
fn reports_that_cannot_be_written_are_errors() {
    let config = format!("{}/config/example-nat.toml", env!("CARGO_MANIFEST_DIR"));
    let folder = Folder::new("full");
    // A capture without packets (pcap-savefile(5)): magic, version 2.4, two unused words, 65535
    // bytes a packet, Ethernet.
    let header = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65535, 1];
    let capture = folder.0.join("empty.pcap");
    fs::write(&capture, header.map(u32::to_le_bytes).concat()).unwrap();
    let capture = capture.to_str().unwrap();
    for line in [
        &[
            "whatif",
            "--config",
            &config,
            "--change",
            "drain web/a",
            "--flows",
            "2000",
            "--svg",
            "/dev/full",
        ][..],
        &["replay", "--config", &config, capture, "--out", "/dev/full"],
    ] {
        let run = holdfast(line);
        assert_eq!(run.code, Some(1), "{line:?}: {}", run.stderr);
        assert!(run.stderr.contains("No space left on device"), "{line:?}: {}", run.stderr);
    }
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut check = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    check.args(["check", "--offline", "--config", &config]).stdout(full);
    let output = check.output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("No space left on device"), "{error}");
}
