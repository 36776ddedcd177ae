//! Parses the output of callgrind, and attributes instructions to stages.
//!
//! The format is "Callgrind Format Specification" of valgrind's manual, as written with
//! `--dump-instr=yes --compress-strings=no --compress-pos=no`: `fn=` names the function of the cost
//! lines (`address line instructions`) that follow; after `calls=`, one cost line has the call's
//! own address and the inclusive count of the callee.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Folder of the stages: each is a file or a folder in it, except conntrack, which is three stages.
const STAGES: &str = "/src/datapath/";
/// Sources of this crate.
const OURS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/");

/// One function of the binary, with all functions that were inlined into it.
#[derive(Debug, Default)]
struct Function {
    object: String,
    /// Address and instructions.
    own: Vec<(u64, u64)>,
    /// Address, callee, inclusive instructions of the callee.
    calls: Vec<(u64, String, u64)>,
}

/// A parsed profile.
#[derive(Debug, Default)]
pub struct Profile {
    functions: HashMap<String, Function>,
    symbols: Symbols,
    total: u64,
}

/// A source position: function, file, line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Frame {
    function: String,
    file: String,
    line: String,
}

/// The inlined functions around each address, the innermost first.
#[derive(Debug, Default)]
pub struct Symbols(HashMap<u64, Vec<Frame>>);

impl Symbols {
    /// Runs addr2line.
    pub fn of(program: &Path, addresses: &[u64]) -> Result<Self, Box<dyn Error>> {
        let mut child = Command::new("addr2line")
            .args(["-a", "-f", "-i", "-C", "-e"])
            .arg(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot start addr2line ({error}); install binutils"))?;
        let mut stdin = child.stdin.take().ok_or("addr2line has no input")?;
        let list: String = addresses.iter().map(|address| format!("{address:#x}\n")).collect();
        let writer = std::thread::spawn(move || stdin.write_all(list.as_bytes()));
        let output = child.wait_with_output()?;
        writer.join().map_err(|_| "the writer panicked")??;
        Ok(Self::parse(&String::from_utf8_lossy(&output.stdout)))
    }

    fn parse(text: &str) -> Self {
        let mut symbols = HashMap::new();
        let mut lines = text.lines();
        let mut frames: &mut Vec<Frame> = &mut Vec::new();
        while let Some(line) = lines.next() {
            if let Some(address) = line.strip_prefix("0x") {
                let address = u64::from_str_radix(address, 16).unwrap_or_default();
                frames = symbols.entry(address).or_default();
                continue;
            }
            let place = lines.next().unwrap_or_default();
            let (file, rest) = place.rsplit_once(':').unwrap_or((place, "?"));
            frames.push(Frame {
                function: line.to_owned(),
                file: file.to_owned(),
                line: rest.split(' ').next().unwrap_or_default().to_owned(),
            });
        }
        Self(symbols)
    }

    fn frames(&self, address: u64) -> &[Frame] {
        self.0.get(&address).map_or(&[], Vec::as_slice)
    }

    /// Returns the stage around an address, if there is one.
    fn stage(&self, address: u64) -> Option<&str> {
        self.frames(address).iter().rev().find_map(|frame| {
            let (_, file) = frame.file.split_once(STAGES)?;
            let file = file.strip_suffix(".rs")?;
            let (stage, part) = file.split_once('/').unwrap_or((file, ""));
            match stage {
                // Not stages: the loop around them, and their data.
                "worker" | "passes" | "forward" | "detour" | "batch" | "context" | "resources"
                | "mod" => None,
                "conntrack" => {
                    let name = frame.function.rsplit("::").find(|part| !is_hash(part))?;
                    let of = |stage: &&str| part == *stage || name.starts_with(*stage);
                    ["prefetch", "sweep"].into_iter().find(of).or(Some("track"))
                }
                stage => Some(stage),
            }
        })
    }

    /// Returns the line of this crate that an address belongs to.
    fn place(&self, address: u64) -> String {
        let ours = self.frames(address).iter().find(|frame| frame.file.starts_with(OURS));
        match (ours, self.frames(address).first()) {
            (Some(frame), _) => {
                format!("src/{}:{}{}", &frame.file[OURS.len()..], frame.line, source(frame))
            }
            (None, Some(frame)) => format!("{} in {}:{}", frame.function, frame.file, frame.line),
            (None, None) => "elsewhere".to_owned(),
        }
    }
}

/// Returns the text of a line, if the file is where it was compiled.
fn source(frame: &Frame) -> String {
    let text = std::fs::read_to_string(&frame.file).unwrap_or_default();
    let number: usize = frame.line.parse().unwrap_or_default();
    let line = number.checked_sub(1).and_then(|before| text.lines().nth(before));
    line.map_or(String::new(), |line| format!("   {}", line.trim()))
}

/// Returns whether `part` is the hash (`h` and 16 digits) that older compilers append to a
/// function's name.
fn is_hash(part: &str) -> bool {
    part.len() == 17 && part.starts_with('h') && part[1..].bytes().all(|b| b.is_ascii_hexdigit())
}

impl Profile {
    /// Parses a profile.
    pub fn parse(text: &str) -> Result<Self, Box<dyn Error>> {
        let mut profile = Self::default();
        let (mut object, mut callee) = (String::new(), None);
        let mut current = String::new();
        let mut called = false;
        for line in text.lines() {
            if let Some(("ob", name)) = line.split_once('=') {
                object = name.to_owned();
            } else if let Some(("fn", name)) = line.split_once('=') {
                current = format!("{object} {name}");
                profile.functions.entry(current.clone()).or_default().object = object.clone();
                callee = None;
            } else if let Some(("cob", name)) = line.split_once('=') {
                callee = Some((name.to_owned(), String::new()));
            } else if let Some(("cfn", name)) = line.split_once('=') {
                let object = callee.take().map_or(object.clone(), |(object, _)| object);
                callee = Some((object, name.to_owned()));
            } else if line.starts_with("calls=") {
                called = true;
            } else if line.starts_with("0x") {
                let (address, cost) = cost_line(line).ok_or_else(|| format!("what is {line:?}"))?;
                let function = profile.functions.entry(current.clone()).or_default();
                if std::mem::take(&mut called) {
                    let (object, name) = callee.take().ok_or("a call of nothing")?;
                    function.calls.push((address, format!("{object} {name}"), cost));
                } else {
                    function.own.push((address, cost));
                    profile.total += cost;
                }
            }
        }
        (profile.total > 0).then_some(profile).ok_or_else(|| "nothing was counted".into())
    }

    /// Returns all addresses in `program`.
    pub fn addresses(&self, program: &Path) -> Vec<u64> {
        let program = program.to_string_lossy();
        let functions = self.functions.values().filter(|function| function.object == program);
        let all: HashSet<u64> = functions
            .flat_map(|function| {
                let calls = function.calls.iter().map(|(address, ..)| *address);
                function.own.iter().map(|(address, _)| *address).chain(calls)
            })
            .collect();
        all.into_iter().collect()
    }

    /// Sets the symbols of the addresses.
    pub fn resolve(&mut self, symbols: Symbols) {
        self.symbols = symbols;
    }

    /// Returns the number of all instructions.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Returns instructions by stage; `rings` is the rest of the worker: reclaim, refill, flush,
    /// and its loop. Calls are attributed to the stage that makes them.
    pub fn stages(&self, root: &str) -> BTreeMap<String, u64> {
        let mut stages = BTreeMap::new();
        let mut pending: Vec<&str> =
            self.functions.keys().map(String::as_str).filter(|name| name.contains(root)).collect();
        let mut seen: HashSet<&str> = pending.iter().copied().collect();
        while let Some(name) = pending.pop() {
            let Some(function) = self.functions.get(name) else { continue };
            for (address, cost) in &function.own {
                let stage = self.symbols.stage(*address).unwrap_or("rings");
                *stages.entry(stage.to_owned()).or_default() += cost;
            }
            for (address, callee, cost) in &function.calls {
                match self.symbols.stage(*address) {
                    Some(stage) => *stages.entry(stage.to_owned()).or_default() += cost,
                    // A function of the worker's loop: its parts belong to stages, or to none.
                    None if seen.insert(callee) => pending.push(callee),
                    None => {}
                }
            }
        }
        stages
    }

    /// Returns instructions by stage and line of this crate, the most first.
    pub fn lines(&self) -> Vec<(String, u64)> {
        let mut lines = HashMap::<String, u64>::new();
        for (address, cost) in self.functions.values().flat_map(|function| &function.own) {
            let stage = self.symbols.stage(*address).unwrap_or("-");
            let line = format!("{stage:<10} {}", self.symbols.place(*address));
            *lines.entry(line).or_default() += cost;
        }
        let mut lines: Vec<_> = lines.into_iter().collect();
        lines.sort_by_key(|(place, cost)| (std::cmp::Reverse(*cost), place.clone()));
        lines
    }
}

/// Parses address and instructions of `0xaddress line instructions`.
fn cost_line(line: &str) -> Option<(u64, u64)> {
    let mut parts = line.split(' ');
    let address = u64::from_str_radix(parts.next()?.strip_prefix("0x")?, 16).ok()?;
    Some((address, parts.nth(1)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = "\
ob=/bin/x
fl=/w/benches/bed.rs
fn=bed::measured_poll
0x10 7 1
cfn=worker::Worker::poll
calls=1 0x20 9
0x14 8 35
fn=worker::Worker::poll
0x20 9 2
fi=/w/src/datapath/parse.rs
0x24 3 10
0x28 4 3
cob=/lib/libc.so
cfn=memcpy
calls=4 0x90 0
0x28 4 20
ob=/lib/libc.so
fn=memcpy
0x90 0 20
";
    const SYMBOLS: &str = "\
0x0000000000000024
core::slice::get
/rustc/core/slice.rs:5
holdfast::datapath::parse::parse
/w/src/datapath/parse.rs:3 (discriminator 2)
holdfast::datapath::worker::Worker::poll
/w/src/datapath/worker.rs:9
0x0000000000000028
holdfast::datapath::conntrack::Conntrack::track::h0123456789abcdef
/w/src/datapath/conntrack.rs:4
";

    /// A profile of five instructions.
    #[test]
    fn instructions_belong_to_the_stage_around_them() {
        let mut profile = Profile::parse(PROFILE).unwrap();
        profile.resolve(Symbols::parse(SYMBOLS));
        assert_eq!(profile.total(), 36);
        let stages = profile.stages("measured_poll");
        let expected = [("parse", 10), ("rings", 3), ("track", 23)];
        assert_eq!(stages, expected.map(|(stage, cost)| (stage.to_owned(), cost)).into());
        assert_eq!(profile.addresses(Path::new("/lib/libc.so")), [0x90]);
    }

    #[test]
    fn a_stage_may_be_a_folder() {
        for (function, file, stage) in [
            ("rewrite::nat::to_backend", "rewrite/nat", "rewrite"),
            ("conntrack::sweep::one", "conntrack/sweep", "sweep"),
            ("conntrack::prefetch_here", "conntrack/mod", "prefetch"),
            ("conntrack::locate::find", "conntrack/locate", "track"),
        ] {
            let symbols =
                Symbols::parse(&format!("0x10\n{function}\n/w/src/datapath/{file}.rs:1\n"));
            assert_eq!(symbols.stage(0x10), Some(stage), "{file}");
        }
    }
}
