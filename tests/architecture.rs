//! The architecture invariants that can be read off the sources (docs/ARCHITECTURE.md).

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::path::{Path, PathBuf};

fn sources(under: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(under);
    let mut found = Vec::new();
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "src/{under} has sources");
    found
}

/// A plane must not name another one, in any spelling of a path.
#[test]
fn planes_know_only_the_planes_below() {
    for (plane, strangers) in [
        ("datapath", &["control", "config", "cli", "daemon", "steering", "replay"][..]),
        ("control", &["datapath", "xdp", "cli", "daemon", "steering", "replay"]),
        (
            "forwarding",
            &["datapath", "control", "config", "xdp", "cli", "daemon", "steering", "replay"],
        ),
        ("flow", &["datapath", "control", "config", "cli", "daemon", "steering", "replay"]),
        (
            "wire",
            &["datapath", "control", "config", "cli", "daemon", "steering", "replay", "forwarding"],
        ),
        ("xdp", &["datapath", "control", "config", "cli", "daemon", "steering", "replay", "wire"]),
        ("config", &["datapath", "control", "xdp", "cli", "daemon", "steering", "replay"]),
    ] {
        for (path, text) in sources(plane) {
            for stranger in strangers {
                let names = [format!("crate::{stranger}"), format!("holdfast::{stranger}")];
                let used = text
                    .lines()
                    .filter(|line| !line.trim_start().starts_with("//"))
                    .any(|line| names.iter().any(|name| line.contains(name)));
                assert!(!used, "{} uses {stranger}", path.display());
            }
        }
    }
}

#[test]
fn unsafe_code_is_in_xdp_only() {
    for (path, text) in sources("") {
        let allows = text.contains("allow(unsafe_code") || text.contains("expect(unsafe_code");
        let in_xdp = path.components().any(|part| part.as_os_str() == "xdp");
        assert!(!allows || in_xdp, "{} allows unsafe code", path.display());
    }
}

fn assert_in_order(text: &str, words: &[&str]) {
    let places: Vec<usize> = words.iter().map(|word| text.find(word).unwrap()).collect();
    assert!(places.is_sorted(), "{words:?}: {places:?}");
}

/// The lines of a function in `datapath`, from behind its head to its closing brace, without comments.
fn body(file: &str, function: &str) -> Vec<String> {
    let sources = sources("datapath");
    let (_, text) = sources.iter().find(|(path, _)| path.ends_with(file)).unwrap();
    let mut lines = text.lines().skip_while(|line| !line.contains(&format!("fn {function}(")));
    let head = lines.next().unwrap();
    let end = format!("{}}}", " ".repeat(head.len() - head.trim_start().len()));
    let body = lines.take_while(|line| *line != end);
    body.filter(|line| !line.trim_start().starts_with("//")).map(str::to_owned).collect()
}

/// What a reader finds in `poll_port` is the packet's way, pass by pass, and in each pass stage by stage.
#[test]
fn the_worker_lists_the_stages_in_order() {
    for (file, function, stages) in [
        (
            "worker.rs",
            "poll_port",
            &["receive(", "parse_and_classify(", "prefetch(", "forward(", "transmit("][..],
        ),
        ("passes.rs", "parse_and_classify", &["parse_plain(", " classify(", "parse(", "end("]),
        ("passes.rs", "forward", &["forward_packet(", "detour("]),
        ("forward.rs", "forward_packet", &["conntrack.track(", "rewrite_to_backend("]),
        // A flow without a pin.
        ("detour.rs", "open", &["select(", "rewrite_to_backend("]),
    ] {
        assert_in_order(&body(file, function).join("\n"), stages);
    }
}

/// `poll_port` is the list of passes and little else: it does not wire tables and stages together.
#[test]
fn poll_port_is_a_list() {
    let body = body("worker.rs", "poll_port");
    assert!(body.len() <= 20, "{} lines: {body:#?}", body.len());
}
