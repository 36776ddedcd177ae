//! Requirements of the dependencies (Cargo.toml, Cargo.lock; the rest is in deny.toml).

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]

use std::process::Command;

use serde_json::Value;

/// The packages that holdfast is built and tested with on this kind of machine.
fn packages() -> Vec<Value> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform"])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().clone();
    assert!(packages.len() > 100, "only {} packages", packages.len());
    packages
}

fn version(text: &str) -> Vec<u32> {
    let mut parts: Vec<u32> = text.split('.').map(|part| part.parse().unwrap()).collect();
    parts.resize(3, 0);
    parts
}

/// Version that our own code requires, for `if let` chains. Clippy (`incompatible_msrv`) finds
/// library functions that are newer than `rust-version`; a build with that compiler finds the rest.
const OUR_CODE: &str = "1.88";

/// `rust-version` is the lowest that dependencies and code allow: an older compiler cannot build
/// them, and none of them requires a newer one.
#[test]
fn rust_version_is_what_dependencies_and_code_ask_for() {
    let packages = packages();
    let asked = |package: &Value| package["rust_version"].as_str().map(version);
    let (ours, others): (Vec<_>, Vec<_>) =
        packages.iter().partition(|package| package["name"] == "holdfast");
    let strictest = others.into_iter().max_by_key(|package| asked(package)).unwrap();
    assert_eq!(
        asked(ours[0]),
        asked(strictest).max(Some(version(OUR_CODE))),
        "{} {} asks for Rust {}",
        strictest["name"],
        strictest["version"],
        strictest["rust_version"]
    );
}
