//! Conformance tests: golden cases and random packets through `holdfast replay`, judged by
//! independent code, a model in Python with scapy (`tests/conformance/oracle.py`) and tshark.
//!
//! The tests need neither root nor a network; `scripts/lib.sh` installs python3-scapy and tshark.
//! docs/CONFORMANCE.md describes the files of `tests/conformance/cases`.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Default seed, which gives the same packets in every run; `HOLDFAST_SEED` overrides it.
const SEED: &str = "1";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Runs `tests/conformance/conformance.py` in a folder.
fn run(folder: &Path, arguments: &[&str]) -> Output {
    // Debian's Python has scapy; another one in PATH may lack it.
    Command::new("/usr/bin/python3")
        .arg("-B")
        .arg(root().join("tests/conformance/conformance.py"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

/// Standard output of a run that must succeed; panics with all of the output otherwise.
fn conformance(arguments: &[&str]) -> String {
    let output = run(&root(), arguments);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {}\n{stdout}{stderr}", output.status);
    stdout
}

/// The case files of a folder of `tests/conformance`, sorted.
fn case_files(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).unwrap();
    let files = files.map(|entry| entry.unwrap().path().to_str().unwrap().to_owned());
    let mut files: Vec<String> = files.filter(|path| path.ends_with(".toml")).collect();
    files.sort();
    files
}

/// Runs every golden case of a mode.
fn golden(mode: &str) {
    let cases = case_files(&root().join("tests/conformance/cases"));
    let mut arguments = vec!["cases", "--binary", env!("CARGO_BIN_EXE_holdfast"), "--mode", mode];
    arguments.extend(cases.iter().map(String::as_str));
    conformance(&arguments);
}

/// Runs thousands of random packets of one mode.
fn random(mode: &str) {
    let seed = std::env::var("HOLDFAST_SEED").unwrap_or_else(|_| SEED.to_owned());
    let binary = env!("CARGO_BIN_EXE_holdfast");
    conformance(&["random", "--binary", binary, "--mode", mode, "--seed", &seed]);
}

/// Defines a module of tests for each mode.
macro_rules! modes {
    ($($mode:ident)*) => {
        $(mod $mode {
            #[test]
            fn golden_cases_hold() {
                super::golden(stringify!($mode));
            }

            #[test]
            fn random_packets_are_right() {
                super::random(stringify!($mode));
            }
        })*
    };
}

modes! { dsr nat full_nat proxy ipip gue }

/// docs/CONFORMANCE.md has the present table of rows and cases.
#[test]
fn the_table_of_cases_is_as_documented() {
    let text = std::fs::read_to_string(root().join("docs/CONFORMANCE.md")).unwrap();
    let table = conformance(&["table"]);
    assert!(text.contains(&table), "docs/CONFORMANCE.md: the table of rows is to be:\n\n{table}");
}

/// Cases that could pass without showing anything are refused, and cases that do not hold fail,
/// each with the message that its file expects. Neither keeps the other cases from running.
#[test]
fn bad_cases_are_refused_and_failures_are_short() {
    let folder = root().join("tests/conformance/refused");
    let files = case_files(&folder);
    let names = files.iter().map(|path| Path::new(path).file_name().unwrap().to_str().unwrap());
    let mut arguments = vec!["cases", "--binary", env!("CARGO_BIN_EXE_holdfast")];
    arguments.extend(names);
    let output = run(&folder, &arguments);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stdout}{stderr}");
    let texts: Vec<String> =
        files.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let lines = texts.iter().flat_map(|text| text.lines());
    let mut expected: Vec<&str> =
        lines.filter_map(|line| line.strip_prefix("# expected: ")).collect();
    let (of_cases, summary): (Vec<&str>, Vec<&str>) =
        stdout.lines().partition(|line| !line.contains(" cases hold; "));
    // The title of a failed case is followed by the folder with its files.
    let mut printed: Vec<&str> =
        of_cases.iter().map(|line| line.split("   (files: ").next().unwrap().trim()).collect();
    expected.sort_unstable();
    printed.sort_unstable();
    assert_eq!(printed, expected, "printed, expected\n{stderr}");
    // A minimal case in six modes, and the good one of two modes of another case.
    assert_eq!(summary, ["7 of 25 cases hold; tshark saw 18 frames"]);
}

/// A case from a capture, with a configuration file of its own, holds as docs/CONFORMANCE.md shows.
#[test]
fn a_case_from_a_capture_holds() {
    let folder = std::env::temp_dir().join(format!("holdfast-own-case-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let nat = std::fs::read_to_string(root().join("config/example-nat.toml")).unwrap();
    let near = "[[nic]]\ninterface = \"eth1\"\nmac = \"02:00:00:00:00:01\"\n\
                [[neighbour]]\naddress = \"10.0.0.11\"\nmac = \"02:00:00:00:00:11\"\n\
                interface = \"eth1\"\n";
    let case = "[[case]]\nname = \"own\"\n\
                config = \"nat.toml\"\nneighbours = \"near.toml\"\n\
                [[case.packet]]\npcap = \"in.pcap\"\nframes = [0]\nkernel = true\n\
                [[case.packet]]\npcap = \"in.pcap\"\nframes = [\"1-2\"]\nbackend = \"a\"\n";
    // A pcap file: a segment to a port without a VIP, and two segments to a VIP.
    let mut pcap = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        pcap.extend(word.to_le_bytes());
    }
    for port in [81, 80, 80] {
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1])
            .ipv4([198, 51, 100, 7], [192, 0, 2, 10], 64)
            .tcp(40_000, port, 1, 1024)
            .syn()
            .write(&mut frame, &[])
            .unwrap();
        let length = u32::try_from(frame.len()).unwrap();
        for word in [0, 0, length, length] {
            pcap.extend(word.to_le_bytes());
        }
        pcap.extend(frame);
    }
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
    write("nat.toml", nat.as_bytes());
    write("near.toml", near.as_bytes());
    write("own.toml", case.as_bytes());
    write("in.pcap", &pcap);
    let own = folder.join("own.toml").display().to_string();
    let output = conformance(&["cases", "--binary", env!("CARGO_BIN_EXE_holdfast"), &own]);
    assert!(output.contains("1 of 1 cases hold"), "{output}");
    std::fs::remove_dir_all(folder).unwrap();
}
