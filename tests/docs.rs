//! Checks of the documents against the code.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may stop at the first surprise")]

use clap::Parser as _;
use holdfast::cli::Cli;
use holdfast::net::{Forward, Protocol};
use holdfast::stats::{Drop, LocalReply};

fn document(name: &str) -> String {
    let path = format!("{}/docs/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Each drop reason has a row with its description, in the order of the code, and with advice.
#[test]
fn every_drop_reason_is_documented() {
    let text = document("COUNTERS.md");
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
    for reason in Drop::ALL {
        let start = format!("| `{}` | {} | ", reason.as_str(), reason.describe().trim());
        let row = rows.iter().find(|row| row.starts_with(&start));
        let row = row.unwrap_or_else(|| panic!("docs/COUNTERS.md lacks a row {start:?}"));
        assert!(row.len() > start.len() + 2, "{reason:?} has no advice");
    }
    let reasons = text.split("## Drop reasons").nth(1).unwrap().split("## Flows").next().unwrap();
    assert_eq!(
        reasons.lines().filter(|line| line.starts_with("| `")).count(),
        Drop::ALL.len(),
        "a row for no reason"
    );
}

/// Each kind of local reply has a row with its description.
#[test]
fn every_answer_is_documented() {
    let text = document("COUNTERS.md");
    for answer in LocalReply::ALL {
        let row = format!("| `{}` | {} |", answer.as_str(), answer.describe().trim());
        assert!(text.lines().any(|line| line == row), "docs/COUNTERS.md lacks a row {row:?}");
    }
}

/// The row of a key in a section of API.md.
fn api_row(section: &str, key: &str) -> String {
    let text = document("API.md");
    let section = text.split(&format!("\n{section}\n")).nth(1).unwrap();
    let section = section.split("\n#").next().unwrap();
    let row = section.lines().find(|line| line.starts_with(&format!("| `{key}` | ")));
    row.unwrap_or_else(|| panic!("docs/API.md, {section}: no row for {key}")).to_owned()
}

/// Quoted words of a row, without the key.
fn values(row: &str) -> Vec<&str> {
    let quoted = row.split("`\"").skip(1);
    quoted.filter_map(|rest| rest.split("\"`").next()).collect()
}

/// API.md names every forwarding mode and every protocol, and no others.
#[test]
fn the_words_of_the_api_are_those_of_the_code() {
    // A new variant does not compile until it is listed here.
    const fn listed(forward: Forward, protocol: Protocol) {
        match forward {
            Forward::Dsr | Forward::Nat | Forward::FullNat | Forward::Ipip | Forward::Gue => {}
        }
        match protocol {
            Protocol::Tcp | Protocol::Udp | Protocol::Any => {}
        }
    }
    listed(Forward::Dsr, Protocol::Tcp);
    let forwards = [Forward::Dsr, Forward::Nat, Forward::FullNat, Forward::Ipip, Forward::Gue];
    assert_eq!(values(&api_row("### VIP", "forward")), forwards.map(Forward::as_str));
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Any].map(Protocol::as_str);
    assert_eq!(values(&api_row("### VIP", "protocol")), protocols);
    assert_eq!(values(&api_row("## Flow", "protocol")), protocols);
}

/// API.md lists every section of the configuration as changed or refused by a reload.
#[test]
fn every_section_is_documented_as_reloadable_or_not() {
    let text = document("API.md");
    let words = text.split("\n## Reload\n").nth(1).unwrap().split("| key |").next().unwrap();
    let (changed, refused) = words.split_once("a change of").unwrap();
    let reference = std::fs::read_to_string("config/holdfast.toml").unwrap();
    let uncommented = reference.lines().map(|line| line.trim_start_matches(['#', ' ']));
    let mut sections: Vec<&str> = uncommented
        .filter(|line| line.starts_with('[') && line.ends_with(']') && !line.contains('.'))
        .collect();
    sections.dedup();
    assert!(sections.len() >= 9, "{sections:?}");
    for section in sections {
        let is_changed = ["[[vip]]", "[access]", "[tunnel]", "[fleet]", "[icmp]", "[new_flows]"]
            .contains(&section);
        let place = if is_changed { changed } else { refused };
        assert!(place.contains(&format!("`{section}`")), "docs/API.md, Reload: {section}");
    }
}

/// The lines of code blocks in README.md and the documents, without comments.
fn code_lines() -> Vec<(String, String)> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let documents =
        std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut lines = Vec::new();
    for path in documents.chain([root.join("README.md")]) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.ends_with(".md") {
            continue;
        }
        let mut is_code = false;
        for line in std::fs::read_to_string(&path).unwrap().lines().map(str::trim) {
            if line.starts_with("```") {
                is_code = !is_code;
            } else if is_code {
                let line = line.strip_prefix("$ ").unwrap_or(line);
                let line = line.split(" # ").next().unwrap().split(" && ").next().unwrap();
                lines.push((name.clone(), line.trim().to_owned()));
            }
        }
    }
    lines
}

/// Words of a command line; single quotes keep one together.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (at, part) in line.split('\'').enumerate() {
        match at % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_owned)),
            _ => words.push(part.to_owned()),
        }
    }
    words
}

/// Every holdfast command in the documents parses, with its options; named scripts and files of the
/// project exist.
#[test]
fn commands_that_are_shown_are_understood() {
    let (mut commands, mut files) = (0, 0);
    for (name, line) in code_lines() {
        let words = words(&line);
        if line.starts_with("holdfast ") {
            commands += 1;
            let parsed = Cli::try_parse_from(&words);
            assert!(parsed.is_ok(), "{name}: {line}\n{}", parsed.unwrap_err());
        }
        let ours = |word: &&String| word.starts_with("scripts/") || word.starts_with("config/");
        for file in words.iter().filter(ours) {
            files += 1;
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
            assert!(path.exists(), "{name}: {line}: {file} is not there");
        }
    }
    assert!(commands > 25 && files > 10, "{commands} commands, {files} files");
}

/// A capture on the box contains no packet of a VIP (tests/e2e/kernel.rs), so no document
/// recommends one.
#[test]
fn captures_are_made_where_packets_are_seen() {
    for name in ["REPLAY.md", "CONFORMANCE.md", "COUNTERS.md"] {
        let text = document(name);
        for line in text.lines().filter(|line| line.contains("tcpdump")) {
            let elsewhere = ["mirror", "backend", "before", "tcpdump -s"];
            let seen = elsewhere.iter().any(|word| line.contains(word));
            assert!(seen && !line.ends_with("# on the box"), "docs/{name}: where? {line}");
        }
    }
    assert!(document("REPLAY.md").contains("\n## Where to capture\n"));
}

/// Links between the documents, and from documents to files, resolve.
#[test]
fn relative_links_lead_to_files() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents = vec![root.join("README.md")];
    let listing = std::fs::read_dir(root.join("docs")).unwrap();
    documents.extend(listing.map(|entry| entry.unwrap().path()));
    let mut links = 0;
    for path in documents.iter().filter(|path| path.extension().is_some_and(|e| e == "md")) {
        let text = std::fs::read_to_string(path).unwrap();
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            links += 1;
            let file = path.parent().unwrap().join(target);
            assert!(file.exists(), "{}: {target} leads nowhere", path.display());
        }
    }
    assert!(links > 10, "the documents are linked");
}
