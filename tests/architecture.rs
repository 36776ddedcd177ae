//! Architecture invariants that can be checked in the sources (docs/ARCHITECTURE.md).

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

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

/// A plane names only planes that precede it in this order: `units < net < xdp < wire < flow`,
/// `net < forwarding`, all of these below `datapath`, and all below `config < control`, which do
/// not name each other. Doc comments may link anywhere.
const PLANES: [(&str, &[&str]); 10] = [
    ("sync.rs", &[]),
    ("net", &["units"]),
    ("xdp", &["units", "net", "sync"]),
    ("wire", &["units", "net", "xdp"]),
    ("flow", &["units", "net", "xdp", "wire", "sync"]),
    ("stats.rs", &["units", "net"]),
    ("forwarding", &["units", "net", "wire", "stats", "sync"]),
    ("datapath", &["units", "net", "xdp", "wire", "flow", "stats", "forwarding", "format"]),
    ("config", &["units", "net", "wire", "flow", "forwarding", "format", "privileges"]),
    (
        "control",
        &[
            "units",
            "net",
            "wire",
            "flow",
            "stats",
            "forwarding",
            "config",
            "format",
            "log",
            "privileges",
        ],
    ),
];

#[test]
fn planes_know_only_the_planes_below() {
    for (plane, below) in PLANES {
        let files = match plane.ends_with(".rs") {
            true => sources("").into_iter().filter(|(path, _)| path.ends_with(plane)).collect(),
            false => sources(plane),
        };
        for (path, text) in files {
            let code = text.lines().map(|line| line.split("//").next().unwrap());
            for named in code.flat_map(|line| line.split("crate::").skip(1).collect::<Vec<_>>()) {
                let name = named.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
                // Macros belong to no plane.
                let is_macro = named[name.len()..].starts_with('!');
                let known = is_macro || name == plane || below.contains(&name);
                assert!(known, "{} uses {name}: crate::{named}", path.display());
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
    let positions: Vec<usize> = words.iter().map(|word| text.find(word).unwrap()).collect();
    assert!(positions.is_sorted(), "{words:?}: {positions:?}");
}

/// Lines of a function in `datapath`, from after its signature to its closing brace, without
/// comments.
fn body(file: &str, function: &str) -> Vec<String> {
    let sources = sources("datapath");
    let (_, text) = sources.iter().find(|(path, _)| path.ends_with(file)).unwrap();
    let mut lines = text.lines().skip_while(|line| !line.contains(&format!("fn {function}(")));
    let head = lines.next().unwrap();
    let end = format!("{}}}", " ".repeat(head.len() - head.trim_start().len()));
    let body = lines.take_while(|line| *line != end);
    body.filter(|line| !line.trim_start().starts_with("//")).map(str::to_owned).collect()
}

/// `poll_queue` lists the path of a packet, pass by pass, and each pass lists its stages.
#[test]
fn the_worker_lists_the_stages_in_order() {
    for (file, function, stages) in [
        (
            "worker.rs",
            "poll_queue",
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

/// `poll_queue` is the list of passes and little else: it does not connect tables with stages.
#[test]
fn poll_queue_is_a_list() {
    let body = body("worker.rs", "poll_queue");
    assert!(body.len() <= 20, "{} lines: {body:#?}", body.len());
}

/// Path of a module from the crate's root.
type Module = Vec<String>;

fn module_of(path: &Path) -> Module {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let path = path.strip_prefix(src).unwrap().with_extension("");
    let mut names: Module = path.iter().map(|name| name.to_str().unwrap().to_owned()).collect();
    names.pop_if(|last| last == "mod");
    names
}

/// The code of a file, without comments and tests.
fn code_of(text: &str) -> String {
    // A test module in the file ends it; one in a file of its own is a line.
    let ends = text.match_indices("#[cfg(test)]").find(|(at, _)| {
        let item = text[*at..].lines().find(|line| !line.starts_with("#["));
        item.is_some_and(|item| item.ends_with('{'))
    });
    let text = ends.map_or(text, |(at, _)| &text[..at]);
    let code = |line: &str| line.split("//").next().unwrap_or_default().trim().to_owned() + "\n";
    text.lines().map(code).collect()
}

/// The paths of a `use` statement, with braces expanded.
fn expand(tree: &str) -> Vec<String> {
    let Some((stem, list)) = tree.split_once('{') else { return vec![tree.trim().to_owned()] };
    let list = list.trim().strip_suffix('}').unwrap_or(list);
    let (mut depth, mut items) = (0, vec![String::new()]);
    for letter in list.chars() {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        match letter {
            ',' if depth == 0 => items.push(String::new()),
            letter => items.last_mut().unwrap().push(letter),
        }
    }
    let items = items.iter().filter(|item| !item.trim().is_empty());
    items.flat_map(|item| expand(item)).map(|item| stem.trim().to_owned() + &item).collect()
}

/// Modules that a file names: in a `use`, in a path, or as a child.
fn names_of(module: &Module, code: &str, all: &BTreeSet<Module>) -> BTreeSet<Module> {
    let uses = code.split("use ").skip(1).filter_map(|rest| rest.split_once(';'));
    let mut paths: Vec<String> = uses.flat_map(|(tree, _)| expand(tree)).collect();
    let path = |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | ':');
    let words = code.split(|letter| !path(letter)).filter(|word| word.contains("::"));
    paths.extend(words.map(str::to_owned));
    let named = paths.iter().filter_map(|path| {
        let mut names = path.split("::").map(str::trim).peekable();
        let mut at = match *names.peek()? {
            "crate" => Module::new(),
            "super" => module.clone(),
            child => {
                let child = [module.as_slice(), &[child.to_owned()]].concat();
                if !all.contains(&child) || !path.contains("::") {
                    return None;
                }
                module.clone()
            }
        };
        names.next_if_eq(&"crate");
        while names.next_if_eq(&"super").is_some() {
            at.pop();
        }
        for name in names {
            let next = [at.as_slice(), &[name.to_owned()]].concat();
            if !all.contains(&next) {
                break;
            }
            at = next;
        }
        (all.contains(&at) && at != *module).then_some(at)
    });
    named.collect()
}

/// Files under a folder that depend on each other in a circle, each with those that it names.
fn circles(under: &str) -> BTreeMap<Module, BTreeSet<Module>> {
    let files = sources(under);
    let all: BTreeSet<Module> = files.iter().map(|(path, _)| module_of(path)).collect();
    let edges = files.iter().map(|(path, text)| {
        let module = module_of(path);
        let mut names = names_of(&module, &code_of(text), &all);
        // The folder's own module, which re-exports its children's names.
        names.remove(&vec![under.to_owned()]);
        (module, names)
    });
    let mut left: BTreeMap<Module, BTreeSet<Module>> = edges.collect();
    loop {
        let before = left.len();
        // A file that names no other of the rest, or that no other names, is in no circle.
        let rest: BTreeSet<Module> = left.keys().cloned().collect();
        left.values_mut().for_each(|names| names.retain(|name| rest.contains(name)));
        let named: BTreeSet<Module> = left.values().flatten().cloned().collect();
        left.retain(|module, names| !names.is_empty() && named.contains(module));
        if left.len() == before {
            return left;
        }
    }
}

#[test]
fn braces_of_use_statements_are_expanded() {
    let paths = expand("super::{self, a::{B, c::D}, e}");
    assert_eq!(paths, ["super::self", "super::a::B", "super::a::c::D", "super::e"]);
}

#[test]
fn a_circle_of_files_is_found() {
    let module = |path: &str| -> Module { path.split('/').map(str::to_owned).collect() };
    let all: BTreeSet<Module> = ["a", "a/b", "a/c", "d"].map(module).into();
    for (of, code, names) in [
        ("a/b", "use super::c::Type;", &["a/c"][..]),
        ("a/b", "use super::{c, Type};", &["a", "a/c"]),
        ("a/b", "use crate::d::{Type, Other};", &["d"]),
        ("a/b", "fn f() -> crate::a::c::Type {", &["a/c"]),
        ("a", "mod c; fn f() { c::g() }", &["a/c"]),
        ("a", "pub mod c;", &[]),
        ("a/b", "pub(super) fn f() {}", &[]),
    ] {
        let expected: BTreeSet<Module> = names.iter().map(|name| module(name)).collect();
        assert_eq!(names_of(&module(of), code, &all), expected, "{code}");
    }
}

/// Types that a folder's module defines and its children import from there.
fn types_from_above(files: &[(Module, bool, String)]) -> Vec<String> {
    let defined = |code: &str| -> BTreeSet<String> {
        let kinds = ["struct ", "enum ", "trait ", "type ", "union "];
        let lines = code.lines().map(|line| match line.split_once("pub(") {
            Some(("", rest)) => rest.split_once(") ").map_or(line, |(_, rest)| rest),
            _ => line.trim_start_matches("pub "),
        });
        let items = lines.filter_map(|line| kinds.iter().find_map(|kind| line.strip_prefix(kind)));
        let end = |letter: char| !letter.is_alphanumeric() && letter != '_';
        items.filter_map(|item| item.split(end).next().map(str::to_owned)).collect()
    };
    let mut found = Vec::new();
    for (parent, _, text) in files.iter().filter(|(_, is_folder, _)| *is_folder) {
        let defined = defined(text);
        let children = files
            .iter()
            .filter(|(child, ..)| child.len() > parent.len() && child.starts_with(parent));
        for (child, _, code) in children {
            let above = "super::".repeat(child.len() - parent.len());
            let full = format!("crate::{}::", parent.join("::"));
            let uses = code.split("use ").skip(1).filter_map(|rest| rest.split_once(';'));
            let mut paths: Vec<String> = uses.flat_map(|(tree, _)| expand(tree)).collect();
            let path = |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | ':');
            paths.extend(code.split(|letter| !path(letter)).map(str::to_owned));
            for named in paths {
                let name = named.strip_prefix(&above).or_else(|| named.strip_prefix(&full));
                let name = name.and_then(|name| name.split([':', ' ']).next());
                found.extend(name.filter(|name| defined.contains(*name)).map(|name| {
                    format!("{} imports {name} from {}", child.join("::"), parent.join("::"))
                }));
            }
        }
    }
    found.dedup();
    found
}

#[test]
fn a_type_from_above_is_found() {
    let file = |module: &str, is_folder, code: &str| {
        (module.split('/').map(str::to_owned).collect(), is_folder, code.to_owned())
    };
    let parent = file("a", true, "pub struct Type;\npub(super) enum Other {\nfn function() {}\n");
    for (child, code, expected) in [
        ("a/b", "use super::Type;", 1),
        ("a/b", "use super::{function, Other as O};", 1),
        ("a/b", "fn f(of: crate::a::Type) {}", 1),
        ("a/b/c", "use super::super::Type;", 1),
        ("a/b/c", "use super::Type;", 0),
        ("a/b", "use super::function;", 0),
        ("a/b", "use super::types::Type;", 0),
    ] {
        let found = types_from_above(&[parent.clone(), file(child, false, code)]);
        assert_eq!(found.len(), expected, "{code}: {found:?}");
    }
}

/// A folder's `mod.rs` re-exports types; the files that define them are below it, so that a child
/// depends on the file and not on the whole folder.
#[test]
fn types_that_children_import_are_in_files_of_their_own() {
    let files = sources("");
    let files: Vec<_> = files
        .iter()
        .map(|(path, text)| (module_of(path), path.ends_with("mod.rs"), code_of(text)))
        .collect();
    let found = types_from_above(&files);
    assert!(found.is_empty(), "{found:#?}");
}

/// The files can be ordered so that each follows those that it names.
#[test]
fn no_files_depend_on_each_other_in_a_circle() {
    for folder in [
        "net",
        "flow",
        "forwarding",
        "datapath",
        "config",
        "control",
        "xdp",
        "wire",
        "replay",
        "saved",
        "generator",
        "cli",
        "whatif",
    ] {
        let circles = circles(folder);
        assert!(circles.is_empty(), "src/{folder}: {circles:#?}");
    }
}
