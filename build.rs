//! Compiles the XDP programs with clang; the results are embedded in the binary.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

/// The balancer's program, the traffic generator's, and the one for backends.
const SOURCES: [&str; 3] =
    ["src/xdp/steer.bpf.c", "src/xdp/generate.bpf.c", "src/xdp/backend.bpf.c"];
const CURE: &str = "install them with `apt install clang libbpf-dev` (Debian, Ubuntu) or \
                    `dnf install clang libbpf-devel` (Fedora), or name a clang in $CLANG";

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=CLANG");
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
        if let Err(message) = compile(source) {
            eprintln!("error: cannot compile {source}: {message}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn compile(source: &str) -> Result<(), String> {
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let mut object = PathBuf::from(env::var("OUT_DIR").map_err(|_| "cargo sets no OUT_DIR")?);
    object.push(Path::new(source).with_extension("o").file_name().unwrap_or_default());
    let mut command = Command::new(&clang);
    // v3 instructions (32-bit ALU, atomics): since kernel 5.12. -g is for BTF, which describes maps.
    command.args(["-O2", "-g", "-mcpu=v3", "-Wall", "-Wextra", "-Werror", "-target"]);
    command.arg(if cfg!(target_endian = "big") { "bpfeb" } else { "bpfel" });
    for folder in system_includes(&clang)? {
        command.arg("-idirafter").arg(folder);
    }
    let output = run(command.args(["-c", source, "-o"]).arg(&object), &clang)?;
    if output.status.success() { Ok(()) } else { Err(explain(&output, &object)) }
}

/// Where clang finds the headers of the host: the BPF target does not look into the folder of the
/// architecture (`/usr/include/x86_64-linux-gnu` on Debian), in which `asm/types.h` lies.
fn system_includes(clang: &str) -> Result<Vec<PathBuf>, String> {
    let output = run(Command::new(clang).args(["-v", "-E", "-x", "c", "/dev/null"]), clang)?;
    let text = String::from_utf8_lossy(&output.stderr);
    let folders = text
        .lines()
        .skip_while(|line| !line.starts_with("#include <...>"))
        .skip(1)
        .take_while(|line| line.starts_with(' '));
    Ok(folders.map(|line| PathBuf::from(line.trim())).collect())
}

fn run(command: &mut Command, clang: &str) -> Result<Output, String> {
    let output = command.env("LC_ALL", "C").output();
    output.map_err(|error| {
        format!(
            "{clang} does not start ({error}); clang and the headers of libbpf are needed: {CURE}"
        )
    })
}

fn explain(output: &Output, object: &Path) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains("file not found") {
        return format!(
            "a header is missing; clang and the headers of libbpf are needed: {CURE}\n{text}"
        );
    }
    format!("clang failed to write {}:\n{text}", object.display())
}
