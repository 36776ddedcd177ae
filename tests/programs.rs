//! Every program that scripts, tests and benches run is declared in `scripts/lib.sh` and installed.
//!
//! An undeclared program fails on a new machine only, as the machines of developers have more
//! programs installed. So the test reads the sources for the programs that they run.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise"
)]

#[path = "programs/shell.rs"]
mod shell;
#[path = "programs/source.rs"]
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Programs of the Rust toolchain, which rustup installs, not a Debian package.
const RUST: [&str; 2] = ["cargo", "rustc"];
/// Programs that only machines with systemd have and need.
const OPTIONAL: [&str; 1] = ["systemctl"];
/// Programs that scripts/guest provides: its busybox, and modprobe, which runs in the guest only.
const OF_THE_GUEST: [&str; 3] = ["bin/busybox", "modprobe", "poweroff"];
/// Programs that `cargo` runs: the linker, and the compiler of the XDP program.
const OF_CARGO: [&str; 2] = ["cc", "clang"];
/// Sources that a script runs besides itself: tests, benches, scripts.
const RUNS: [(&str, &[&str]); 13] = [
    (
        "test",
        &[
            "tests",
            "src",
            "scripts/lab",
            "scripts/lab-server",
            "scripts/lab-decap",
            "scripts/guest",
            "scripts/trafficgen",
            "scripts/bench",
            "scripts/fuzz",
            "benches/instructions",
            "build.rs",
            ".ci",
        ],
    ),
    ("anycast", &["tests/anycast", "tests/lab/sessions.py", "scripts/lab", "scripts/lab-server"]),
    ("bench", &["benches"]),
    ("compare", &["scripts/lab"]),
    ("conformance", &["tests/conformance", "tests/conformance.rs"]),
    ("flood", &["tests/soak", "scripts/lab", "scripts/lab-server"]),
    ("fresh", &[]),
    ("guest", &[]),
    ("models", &[]),
    ("quickstart", &["scripts/lab", "scripts/lab-server"]),
    ("soak", &["tests/soak", "tests/lab/flood.py", "scripts/lab", "scripts/lab-server"]),
    ("throughput", &["scripts/lab"]),
    ("trafficgen", &[]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A row of a list: a package, and its programs that are used.
#[derive(Debug, Clone)]
struct Row {
    package: String,
    programs: Vec<String>,
}

/// The lists `NAME_PACKAGES` of `scripts/lib.sh`; a list may include another one.
fn declared() -> BTreeMap<String, Vec<Row>> {
    let mut lists: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    let mut name = None;
    for line in read("scripts/lib.sh").lines() {
        if let Some(list) = line.strip_suffix("=(").filter(|list| list.ends_with("_PACKAGES")) {
            name = Some(list.to_owned());
            lists.insert(list.to_owned(), Vec::new());
        } else if line == ")" {
            name = None;
        } else if let Some(name) = &name {
            let line = line.trim().trim_matches(['\'', '"']);
            let rows = match line.strip_prefix("${").and_then(|line| line.strip_suffix("[@]}")) {
                Some(other) => lists[other].clone(),
                None => vec![row(line)],
            };
            lists.get_mut(name).unwrap().extend(rows);
        }
    }
    lists
}

fn row(line: &str) -> Row {
    let fields: Vec<&str> = line.split('|').collect();
    assert_eq!(fields.len(), 3, "scripts/lib.sh: not package|programs or paths|why: {line}");
    assert!(!fields[2].is_empty(), "scripts/lib.sh: {line}: why?");
    let programs = fields[1].split_whitespace().map(str::to_owned).collect();
    Row { package: fields[0].to_owned(), programs }
}

fn programs_of(rows: &[Row]) -> BTreeSet<String> {
    rows.iter().flat_map(|row| row.programs.clone()).collect()
}

/// Programs and paths that a script installs, and those of every Debian.
fn installed_by(script: &str, lists: &BTreeMap<String, Vec<Row>>) -> BTreeSet<String> {
    let text = read(Path::new("scripts").join(script));
    let mut found = programs_of(&lists["ESSENTIAL_PACKAGES"]);
    for (name, rows) in lists {
        if text.contains(&format!("\"${{{name}[@]}}\"")) {
            found.extend(programs_of(rows));
        }
    }
    found
}

fn sources(under: &str) -> Vec<PathBuf> {
    let (mut found, mut left) = (Vec::new(), vec![root().join(under)]);
    while let Some(path) = left.pop() {
        // This test contains names of programs that it does not run.
        if path.ends_with("tests/programs") || path.ends_with("tests/programs.rs") {
            continue;
        }
        if path.is_dir() {
            left.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            found.push(path);
        }
    }
    found
}

/// Programs that a file runs.
fn executed(path: &Path) -> BTreeSet<String> {
    let Ok(text) = std::fs::read_to_string(path) else { return BTreeSet::new() };
    let end = path.extension().and_then(|end| end.to_str());
    let first = text.lines().next().unwrap_or_default();
    if end == Some("rs") {
        source::programs(&text)
    } else if end == Some("py") || first.ends_with("python3") {
        let text_of_lists = text.replace("Popen([", "");
        let calls = ["os.system", "os.exec", "os.popen", "os.spawn", "Popen(", "shell=True"];
        let hidden = calls.iter().find(|&&call| text_of_lists.contains(call));
        assert_eq!(hidden, None, "{}: use subprocess.run([\"program\", ...])", path.display());
        if text.contains("import subprocess") { source::programs(&text) } else { BTreeSet::new() }
    } else if first.ends_with("bash") || first.starts_with("# shellcheck shell=bash") {
        let functions = shell::programs(&read("scripts/lib.sh")).1;
        let (programs, own) = shell::programs(&text);
        programs
            .into_iter()
            .filter(|name| !functions.contains(name) && !own.contains(name))
            .collect()
    } else {
        BTreeSet::new()
    }
}

/// Whether a name is a script or the binary of this project.
fn is_ours(name: &str) -> bool {
    let path = Path::new(name);
    name == "holdfast"
        || name.starts_with("/guest/")
        || (name.contains('/') && !path.is_absolute() && root().join(path).is_file())
}

/// Programs in `executed` that are not in `declared`.
fn undeclared(executed: &BTreeSet<String>, declared: &BTreeSet<String>) -> Vec<String> {
    let known = |name: &&String| {
        declared.contains(*name)
            || RUST.contains(&name.as_str())
            || OPTIONAL.contains(&name.as_str())
            || OF_THE_GUEST.contains(&name.as_str())
            || is_ours(name)
    };
    let mut missing: Vec<String> = executed.iter().filter(|name| !known(name)).cloned().collect();
    if executed.contains("cargo") {
        let of_cargo = OF_CARGO.iter().filter(|&&name| !declared.contains(name));
        missing.extend(of_cargo.map(|&name| name.to_owned()));
    }
    missing
}

#[test]
fn every_program_that_is_run_is_installed() {
    let lists = declared();
    let mut missing = Vec::new();
    for (script, others) in RUNS {
        let installed = installed_by(script, &lists);
        let own = format!("scripts/{script}");
        for path in others.iter().copied().chain([own.as_str()]).flat_map(sources) {
            for name in undeclared(&executed(&path), &installed) {
                let file = path.strip_prefix(root()).unwrap().display();
                missing
                    .push(format!("{file} runs {name:?}, which scripts/{script} does not install"));
            }
        }
    }
    // The file that the scripts share uses declared programs only.
    let all: BTreeSet<String> = lists.values().flat_map(|rows| programs_of(rows)).collect();
    missing.extend(undeclared(&executed(&root().join("scripts/lib.sh")), &all));
    assert!(
        missing.is_empty(),
        "declare the package in scripts/lib.sh, in a list that the script installs:\n{}",
        missing.join("\n")
    );
}

/// The scan finds known programs, one at least for each way to run a program.
#[test]
fn the_scan_sees_programs_that_are_known_to_be_run() {
    for (under, known) in [
        (
            "tests",
            &[
                "nft",
                "ip",
                "ss",
                "curl",
                "ping",
                "bridge",
                "setpriv",
                "tcpdump",
                "tshark",
                "bpftool",
                "sha256sum",
                "kill",
                "timeout",
                "bash",
                "/usr/bin/python3",
                "mkfifo",
            ][..],
        ),
        ("benches", &["valgrind", "addr2line"]),
        (
            "scripts",
            &[
                "nginx",
                "sysctl",
                "ethtool",
                "jq",
                "openssl",
                "iperf3",
                "haproxy",
                "wrk",
                "nft",
                "taskset",
                "flock",
                "gzip",
                "xargs",
                "shellcheck",
                "apt-get",
                "unshare",
                "chroot",
                "debootstrap",
                "git",
                "modprobe",
                "ip",
                "ss",
            ],
        ),
    ] {
        let found: BTreeSet<String> =
            sources(under).iter().flat_map(|path| executed(path)).collect();
        for name in known {
            assert!(found.contains(*name), "{under}: {name} is not seen; seen are {found:?}");
        }
    }
}

/// The smallest sources that hide a program, one for each way.
#[test]
fn a_program_is_seen_wherever_it_stands() {
    for text in [
        "nft list",
        "  if ! nft -c; then :; fi",
        "x=$(nft list) y=1",
        "echo \"a $(echo \"$(nft x)\")\" # b",
        "cat x | nft -f -",
        "a && A=1 nft x",
        "case $1 in a | b) nft x ;; *) : ;; esac",
        "f() { nft; }",
        "[[ -n $(nft x) && a < b ]] || :",
        "in_host \"$1\" timeout -k 1 5 nft",
        "ip netns exec \"$(box a)\" taskset -c \"$CORE\" nft -f - <<'X'\nadd rule\nX",
        "cat <<X\n$(nft x)\nX",
        "Y=(nft --check \"$a\")",
        "while read -r a; do :; done < <(nft x)",
        "((a == 1)) && nft",
        "trap 'nft flush' EXIT",
        "bash -c 'cd / && nft x'",
        "for a in b c; do nft; done",
        "echo \"${a:-$(nft)}\"",
        "cat <<'X'\nit's\nX\nnft",
    ] {
        let found = shell::programs(text).0;
        assert!(found.contains("nft"), "{text}: {found:?}");
    }
    for text in [
        "echo nft",
        "# nft",
        "x='nft'",
        "for a in nft; do :; done",
        "cat <<'X'\nnft\nX",
        "nft() { :; }",
        "A=nft",
        "case nft in nft) : ;; esac",
        "a=(nft b)",
        "echo \\\n  nft",
        "[[ nft == nft ]]",
    ] {
        let (found, own) = shell::programs(text);
        assert!(!found.contains("nft") || own.contains("nft"), "{text}: {found:?}");
    }
    for text in [
        "Command::new(\"nft\")",
        "lab.command(\"b1\", \"nft\")",
        "lab.command(&host.name(), \"nft\")",
        "lab.run(\"b1\", &[\"nft\", \"list\"])",
        "lab.try_run(b, &[&[\"x\"], &[]].concat()); let line = [\"nft\", \"-f\", &file];",
        "lab.run(\"lb\", &[\"timeout\", \"5\", \"bash\", \"-c\", \"nft x\"])",
        "run(\"nft\", &[\"list\"])",
        "run(&format!(\"nft list {x}\"))",
        "run(\"ip netns exec x nft list\")",
        "subprocess.run([\"nft\", \"list\"])",
    ] {
        let found = source::programs(text);
        assert!(found.contains("nft"), "{text}: {found:?}");
    }
    for text in [
        "// Command::new(\"nft\")",
        "holdfast.ok(&[\"nft\", \"-x\"])",
        "command.args([\"nft\", \"-x\"])",
        "let x = [\"nft\", \"b\"];",
    ] {
        assert!(!source::programs(text).contains("nft"), "{text}");
    }
}

/// Packages that are declared as part of every Debian are required, and have the programs.
#[test]
fn essential_programs_are_in_every_debian() {
    for Row { package, programs } in &declared()["ESSENTIAL_PACKAGES"] {
        let query = |arguments: &[&str]| {
            let output = Command::new("dpkg-query").args(arguments).arg(package).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let priority = query(&["--show", "--showformat", "${Essential} ${Priority}"]);
        // apt installs the others.
        assert!(
            priority.contains("yes") || priority.contains("required") || package == "apt",
            "{package}: {priority:?}"
        );
        let files = query(&["--listfiles"]);
        for program in programs.iter().filter(|program| !program.starts_with('/')) {
            // Debian always has an awk; mawk is the required one.
            let end = format!("bin/{}", if program == "awk" { "mawk" } else { program });
            assert!(files.lines().any(|file| file.ends_with(&end)), "{package} has no {program}");
        }
    }
}
