//! Fuzz targets, in one binary: `HOLDFAST_FUZZ` names the target. `scripts/fuzz` builds and runs it
//! (docs/SECURITY.md).
//!
//! libFuzzer (<https://llvm.org/docs/LibFuzzer.html>) has the `main` function. It changes inputs and
//! keeps those that reach code which no other input has reached.

#![no_main]
#![allow(unsafe_code, reason = "the entry points of libFuzzer have C names")]
#![allow(missing_docs, reason = "no library")]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a target stops at the first surprise"
)]

mod api;
mod bytes;
mod checksum;
mod fragments;
mod memory;
#[path = "../support/no_steering.rs"]
mod no_steering;
mod player;
mod quic;
mod text;
mod wire;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

/// Runs one input.
type Target = fn(&[u8]);

/// Targets by name.
const TARGETS: [(&str, Target); 8] = [
    ("api", api::run),
    ("capture", text::capture),
    ("config", text::config),
    ("fragments", fragments::run),
    ("memory", memory::run),
    ("neighbours", text::neighbours),
    ("quic", quic::run),
    ("wire", wire::run),
];

static TARGET: OnceLock<Target> = OnceLock::new();

fn chosen() -> Target {
    let name = std::env::var("HOLDFAST_FUZZ").unwrap_or_default();
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    let names = TARGETS.map(|(name, _)| name).join(", ");
    found.unwrap_or_else(|| panic!("HOLDFAST_FUZZ={name}: the targets are {names}")).1
}

fuzz_target!(|data: &[u8]| TARGET.get_or_init(chosen)(data));
