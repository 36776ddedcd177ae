//! The architecture invariants that can be read off the sources (docs/ARCHITECTURE.md).

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]

use std::collections::{BTreeMap, BTreeSet};
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

/// Files of a folder that can be read one after the other: none needs itself by way of others.
#[test]
fn files_of_a_folder_use_each_other_without_circles() {
    for folder in ["config", "control", "forwarding"] {
        let mut uses = uses_between_files(folder);
        assert!(uses.len() > 10, "src/{folder} has files");
        // What uses nothing that is left is no part of a circle, nor is what nothing left uses.
        loop {
            let before = uses.len();
            let left: BTreeSet<String> = uses.keys().cloned().collect();
            uses.retain(|_, used| !used.is_disjoint(&left));
            let used: BTreeSet<String> = uses.values().flatten().cloned().collect();
            uses.retain(|file, _| used.contains(file));
            if uses.len() == before {
                break;
            }
        }
        assert!(uses.is_empty(), "circles in src/{folder}: {uses:#?}");
    }
}

/// By module: the modules of the same folder that it uses. Tests use what they like, and `mod.rs` is the
/// folder itself.
fn uses_between_files(folder: &str) -> BTreeMap<String, BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(folder);
    let module = |path: &Path| {
        let path = path.strip_prefix(&root).unwrap().with_extension("");
        let names = path.iter().map(|name| name.to_str().unwrap());
        names.filter(|name| *name != "mod").collect::<Vec<_>>().join("::")
    };
    let files = sources(folder).into_iter().map(|(path, text)| (module(&path), text));
    let tests = |module: &str| ["tests", "reference"].iter().any(|name| module.ends_with(name));
    let files: BTreeMap<String, String> =
        files.filter(|(module, _)| !module.is_empty() && !tests(module)).collect();
    let used = |module: &str, text: &str| {
        let paths = paths(&without_tests(text));
        let named = paths.iter().filter_map(|path| absolute(path, folder, module));
        let longest = named.filter_map(|names| {
            let prefixes = (1..=names.len()).rev().map(|length| names[..length].join("::"));
            prefixes.into_iter().find(|prefix| files.contains_key(prefix))
        });
        longest.filter(|other| other != module).collect()
    };
    files.iter().map(|(module, text)| (module.clone(), used(module, text))).collect()
}

/// The code alone: up to its unit tests, and without comments.
fn without_tests(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let is_tests = |at: usize| {
        let item = lines[at + 1..].iter().find(|line| line.starts_with(char::is_alphabetic));
        lines[at] == "#[cfg(test)]" && item.is_some_and(|item| item.ends_with('{'))
    };
    let end = (0..lines.len()).find(|&at| is_tests(at)).unwrap_or(lines.len());
    let code = lines[..end].iter().map(|line| line.split("//").next().unwrap());
    code.collect::<Vec<_>>().join("\n")
}

/// Every path in a text that begins with `crate`, `self` or `super`, those in braces one by one.
fn paths(text: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for start in ["crate::", "self::", "super::"] {
        for (at, _) in text.match_indices(start) {
            let before = text[..at].chars().next_back();
            if before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':') {
                expand("", &text[at..], &mut paths);
            }
        }
    }
    paths
}

/// Appends the paths of a tree such as `a::{b, c::{d, e}}` at the start of a text; returns what is behind it.
fn expand<'t>(prefix: &str, text: &'t str, paths: &mut Vec<String>) -> &'t str {
    let in_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let end = text.find(|c| !in_path(c)).unwrap_or(text.len());
    let (path, mut rest) = (format!("{prefix}{}", &text[..end]), &text[end..]);
    if !path.ends_with("::") || !rest.starts_with('{') {
        paths.push(path);
        return rest;
    }
    rest = &rest[1..];
    while !rest.is_empty() && !rest.starts_with('}') {
        rest = match rest.find(|c: char| in_path(c) || c == '}') {
            Some(0) => expand(&path, rest, paths),
            Some(at) => &rest[at..],
            None => "",
        };
    }
    rest.strip_prefix('}').unwrap_or(rest)
}

/// The names behind the folder's own in a path that is written in one of its modules.
fn absolute(path: &str, folder: &str, module: &str) -> Option<Vec<String>> {
    let mut names: Vec<&str> = path.split("::").filter(|name| !name.is_empty()).collect();
    let mut base: Vec<&str> = module.split("::").collect();
    if names.first() == Some(&"crate") {
        let inside = names.get(1) == Some(&folder);
        return inside.then(|| names[2..].iter().map(ToString::to_string).collect());
    }
    while let Some(&name @ ("self" | "super")) = names.first() {
        if name == "super" {
            base.pop()?;
        }
        names.remove(0);
    }
    Some(base.into_iter().chain(names).map(str::to_owned).collect())
}
