# shellcheck shell=bash disable=SC2034
# Functions of the scripts: messages, and installation of missing packages. To be sourced.

# Root's PATH has no sbin after a plain `su`.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Programs that scripts, tests and benches run, and their packages. One row each: Debian package | used
# programs of it, and required paths (with a slash) | purpose.
# tests/programs.rs compares these lists with the sources: a program that is missing here would fail on a
# new machine only.

# Packages of every Debian, the smallest too.
ESSENTIAL_PACKAGES=(
    'coreutils|/usr/bin/env basename chroot chmod cat chown cp cut date dirname env head id ln ls mkdir mkfifo mktemp mv nice nproc od paste realpath rm sha256sum sleep sort tail tee timeout touch tr true uname uniq wc|files and text'
    'util-linux|flock prlimit setpriv setsid taskset unshare|namespaces, privileges, cores'
    'bsdutils|renice|priorities'
    'mount|mount|folders in other places'
    'findutils|find xargs|walks through folders'
    'grep|grep|looks for text'
    'sed|sed|cuts text'
    'mawk|awk|rows and numbers'
    'gzip|gzip|packs the initramfs of the guest'
    'tar|tar|keeps the base of a fresh machine'
    'bash|bash|the shell of the scripts'
    'dash|sh|the shell of generated scripts'
    'dpkg|dpkg dpkg-query|packages that are here'
    'init-system-helpers|update-rc.d|keeps services from starting'
    'apt|apt-get|installs packages'
)
BUILD_PACKAGES=(
    'gcc|cc|links Rust programs'
    'libc6-dev|/usr/include/linux/bpf.h|headers of libc and of the kernel'
    'ca-certificates|/etc/ssl/certs/ca-certificates.crt|lets cargo know the registry by its certificate'
    'clang|clang|compiles the XDP program'
    'libbpf-dev|/usr/include/bpf/bpf_helpers.h|headers of the XDP program'
)
NETWORK_PACKAGES=(
    'iproute2|ip ss bridge tc nstat|makes network namespaces, links, addresses and routes'
    'ethtool|ethtool|turns checksum offload off on veth'
    'procps|sysctl kill pgrep ps|sets kernel parameters inside the namespaces, sends signals'
)
LAB_PACKAGES=(
    "${NETWORK_PACKAGES[@]}"
    'nginx-light|nginx|the HTTP servers behind the balancer'
    'openssl|openssl|makes the file of pseudo-random bytes that is downloaded'
    'python3-minimal|/usr/bin/python3 python3|runs the UDP echo and the banner server of the lab'
)
QUICKSTART_PACKAGES=(
    'curl|curl|the HTTP client'
    'jq|jq|reads the JSON that holdfast prints'
    'iputils-ping|ping|pings the balancer'
)
CONFORMANCE_PACKAGES=(
    'tshark|tshark|judges captured packets independently of our code'
    'python3-scapy|/usr/lib/python3/dist-packages/scapy|makes packets, and judges them independently of our code'
    'python3-minimal|/usr/bin/python3|runs the model of the cases'
)
TEST_PACKAGES=(
    "${CONFORMANCE_PACKAGES[@]}"
    'nftables|nft|drops packets, as a lossy link does'
    'tcpdump|tcpdump|captures what arrives at clients and backends'
    'bpftool|bpftool|lists the XDP programs that are left after a stop'
    'shellcheck|shellcheck|checks the scripts'
)
SOAK_PACKAGES=(
    'python3-minimal|/usr/bin/python3|the clients, and the order of actions'
    'python3-scapy|/usr/lib/python3/dist-packages/scapy|makes the packets of floods'
)
ANYCAST_PACKAGES=(
    'python3-minimal|/usr/bin/python3|the events, clients and servers'
    'bird2|bird birdc|announces VIPs, and routes to them'
    'nftables|nft|keeps a box from checking a backend'
)
THROUGHPUT_PACKAGES=(
    'iperf3|iperf3|measures TCP throughput'
    'jq|jq|reads the JSON of iperf3 and holdfast'
)
BENCH_PACKAGES=(
    "${NETWORK_PACKAGES[@]}"
    'valgrind|valgrind|counts instructions (callgrind)'
    'binutils|addr2line|tells which source line an instruction comes from'
    'jq|jq|puts the results together'
    'git|git|names the commit that was measured'
    'iproute2|ip|makes the interface of benches/lists.rs'
)
COMPARE_PACKAGES=(
    'jq|jq|reads the measurements and draws the chart'
    'nftables|nft|one of the peers: DNAT by connection tracking'
    'haproxy|haproxy|one of the peers: a TCP proxy'
    'wrk|wrk|the HTTP client of the TCP rows'
    'curl|curl|asks the peers of the TCP rows whether they serve'
    'git|git|names the commit that was measured'
)
GUEST_PACKAGES=(
    'debian-archive-keyring|/usr/share/keyrings/debian-archive-keyring.gpg|knows the signatures of the packages'
)
FRESH_PACKAGES=(
    'debootstrap|debootstrap|makes a minimal Debian'
    'git|git|makes the clone'
)

# say TEXT...: prints a progress message.
say() { printf '%s\n' "$*" >&2; }

# die TEXT...: prints a message and exits with 1.
die() {
    printf '%s: error: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# print_usage: prints the comment at the head of the running script.
print_usage() { sed -n '2,/^set /{ /^#/s/^# \{0,1\}//p; }' "$0"; }

require_root() {
    ((EUID == 0)) || die "must run as root (network namespaces, AF_XDP); try: sudo $0"
}

# missing_of WORD...: prints the first of these paths and programs that does not exist.
missing_of() {
    local word
    for word in "$@"; do
        case $word in
            /*) [[ -e $word ]] ;;
            # A builtin of bash is not a program.
            *) type -P "$word" >/dev/null ;;
        esac || { echo "$word" && return; }
    done
}

# install_missing ROW...: installs the packages of missing programs; prints them and the reason.
install_missing() {
    local row package programs program why missing=()
    for row in "$@"; do
        IFS='|' read -r package programs why <<<"$row"
        # shellcheck disable=SC2086 # several words
        [[ -n $(missing_of $programs) ]] || continue
        say "  missing: $package ($why)"
        missing+=("$package")
    done
    ((${#missing[@]} == 0)) && return
    command -v apt-get >/dev/null || die "no apt-get here; install by hand what does the work of: ${missing[*]}"
    say "  installing: apt-get install ${missing[*]}"
    install_without_services "${missing[@]}"
    for row in "$@"; do
        IFS='|' read -r package programs why <<<"$row"
        # shellcheck disable=SC2086 # several words
        program=$(missing_of $programs)
        [[ -z $program ]] || die "$package is installed but $program is still missing ($why)"
    done
}

# install_without_services PACKAGE...: as apt-get install, but no service is started or enabled:
# nginx, HAProxy and BIRD are programs for us, not services of this machine.
install_without_services() {
    local policy=/usr/sbin/policy-rc.d
    (
        # Debian's way to keep an installation from starting services; removed in any case.
        if [[ ! -e $policy ]]; then
            trap 'rm -f "$policy"' EXIT
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod 755 "$policy"
        fi
        apt_get_install "$@"
    ) || die "apt-get could not install: $* (see above)"
    local service
    for service in nginx haproxy bird; do
        [[ " $* " == *" $service"* ]] || continue
        update-rc.d "$service" disable >/dev/null 2>&1 || true
        systemctl disable "$service.service" >/dev/null 2>&1 || true
    done
}

apt_get_install() {
    export DEBIAN_FRONTEND=noninteractive
    {
        apt-get update -qq || say "  apt-get update failed; trying with the package lists that are here"
        apt-get install -y -qq -o Dpkg::Use-Pty=0 --no-install-recommends "$@"
    } >&2 </dev/null
}

# require_rust: requires cargo of the version in Cargo.toml, or exits with instructions.
require_rust() {
    # sudo drops the PATH that rustup has set up.
    [[ -d ${CARGO_HOME:-$HOME/.cargo}/bin ]] && PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$REPOSITORY/Cargo.toml")
    local cure="Debian's is too old; get it from https://rustup.rs:
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c clippy -c rustfmt"
    command -v cargo >/dev/null || die "no Rust toolchain here, and holdfast needs Rust $wanted. $cure"
    found=$(cd "$REPOSITORY" && rustc --version | cut -d' ' -f2)
    [[ $(printf '%s\n' "$wanted" "$found" | sort -V | head -n1) == "$wanted" ]] \
        || die "Rust $found is older than $wanted. Run: rustup update stable, or: $cure"
}

# ---- steps that run despite failures ----

# Failures: title|command that repeats it.
FAILED_STEPS=()

step() { printf '\n==> %s (%d s)\n' "$*" "$SECONDS"; }

# attempt TITLE CMD...: runs a step; its failure is reported at the end, and later steps still run.
attempt() {
    step "$1"
    "${@:2}" || FAILED_STEPS+=("$1|${*:2}")
}

# attempt_tests CMD...: runs cargo test as steps; each failed test is a failure.
attempt_tests() {
    local log rows
    step "$*"
    log=$(mktemp)
    if ! CARGO_TERM_COLOR=never "$@" 2>&1 | tee "$log"; then
        mapfile -t rows < <(failed_tests <"$log")
        # Without a failed test the build failed: the failure is the command itself.
        ((${#rows[@]} > 0)) || rows=("$*|$*")
        FAILED_STEPS+=("${rows[@]}")
    fi
    rm -f "$log"
}

# failed_tests: rows of FAILED_STEPS from the output of cargo test. A target that ends without a
# message (a crash, a bench) is one row.
failed_tests() {
    awk '
        function row(test) {
            failed = 1
            printf "%s%s|cargo test --locked %s%s\n", source, test == "" ? "" : " " test, target,
                test == "" ? "" : " -- --exact " test
        }
        /^ +Running / {
            failed = 0
            source = $2 == "unittests" ? $3 : $2
            name = source
            sub(/^[a-z]+\//, "", name)
            sub(/(\/main)?\.rs$/, "", name)
            target = source ~ /^tests\// ? "--test " name : source ~ /^benches\// ? "--bench " name : \
                source == "src/lib.rs" ? "--lib" : "--bins"
        }
        /^ +Doc-tests / { failed = 0; source = "Doc-tests"; target = "--doc" }
        /^test .* \.\.\. FAILED$/ { sub(/^test /, ""); sub(/( - should panic)? \.\.\. FAILED$/, ""); row($0) }
        /^error: (test|doctest) failed, to rerun pass/ { if (!failed) row("") }'
}

# Skipped checks, with the reason.
NOT_RUN=()

# not_run TEXT: records a check that this machine cannot run; report_failures repeats it.
not_run() {
    step "not run: $1"
    NOT_RUN+=("$1")
}

# report_failures: prints the failures and the skipped checks; fails if there are failures.
report_failures() {
    ((${#NOT_RUN[@]} == 0)) || printf '\nnot run: %s\n' "${NOT_RUN[@]}"
    ((${#FAILED_STEPS[@]} > 0)) || return 0
    printf '\n%d FAILED; each with the command that runs it again:\n' "${#FAILED_STEPS[@]}"
    local failure
    for failure in "${FAILED_STEPS[@]}"; do printf '  %s\n      %s\n' "${failure%%|*}" "${failure#*|}"; done
    return 1
}

# ---- instructions per packet ----

# The program that counts instructions, in the release build.
COUNTER=$REPOSITORY/target/release/instructions
BUILD_COUNTER=(cargo build --release --locked --features instructions --bin instructions)

# start_aside CMD...: starts a background command that uses idle time of the steps. Sets: ASIDE_PID.
start_aside() {
    # A process group of its own, so that its priority and its end apply to all its processes. No
    # session of its own: between sessions priorities have no effect (sched(7), autogroup).
    set -m
    nice -n 19 "$@" >/dev/null 2>&1 </dev/null &
    ASIDE_PID=$!
    set +m
    trap stop_aside EXIT
    trap 'exit 130' INT TERM HUP
}

# wait_aside: waits for the background command; returns its exit status.
wait_aside() {
    local result=0
    renice -n 0 -g "$ASIDE_PID" >/dev/null 2>&1 || true
    wait "$ASIDE_PID" || result=$?
    ASIDE_PID=
    return "$result"
}

stop_aside() {
    [[ -z ${ASIDE_PID:-} ]] || kill -TERM -- "-$ASIDE_PID" 2>/dev/null || true
}

# ---- a running holdfast in a lab ----
# Uses: LAB (name of the lab), HOLDFAST (the binary). Sets: HOLDFAST_PID.

lab() { "$REPOSITORY/scripts/lab" --name "$LAB" "$@"; }
lab_state() { printf '/var/lib/holdfast-lab/%s' "$LAB"; }
hf() { "$HOLDFAST" "$@" --socket "$(lab_state)/control.sock"; }
# hf_status JQ_FILTER [JQ_ARGUMENT...]: prints a value of the status document.
hf_status() { hf status --json | jq -r "$@"; }

# start_holdfast CONFIG: starts holdfast in the balancer's namespace; returns when every backend is
# up. PATIENCE_S, 10 by default, is longer for slow machines.
start_holdfast() {
    local log
    log=$(lab_state)/holdfast.log
    # A session of its own, so that holdfast can outlive the script.
    setsid "$REPOSITORY/scripts/lab" --name "$LAB" exec lb "$HOLDFAST" run --config "$1" >"$log" 2>&1 </dev/null &
    HOLDFAST_PID=$!
    wait_until "${PATIENCE_S:-10}" holdfast_answers || die "holdfast did not start; it said: $(<"$log")"
    wait_until "${PATIENCE_S:-10}" every_backend_is_up \
        || die "not every backend came up: $(hf_status -c '[.vips[].backends[] | select(.health != "up") | {vip, name, health_detail}]')"
}

holdfast_answers() {
    kill -0 "$HOLDFAST_PID" 2>/dev/null || die "holdfast ended at once; it said: $(<"$(lab_state)/holdfast.log")"
    hf status --json >/dev/null 2>&1
}

every_backend_is_up() {
    [[ $(hf_status '[.vips[].backends[] | .health == "up" and .next_hop != null] | all') == true ]]
}

# stop_holdfast: stops holdfast cleanly; fails if its exit status is not 0.
stop_holdfast() {
    local pid=${HOLDFAST_PID:-} result=0
    [[ -n $pid ]] || return 0
    HOLDFAST_PID=
    kill -TERM "$pid" 2>/dev/null || true
    wait "$pid" || result=$?
    return "$result"
}

# wait_until SECONDS CMD...: repeats CMD until it succeeds; fails after the time-out.
wait_until() {
    local end=$((SECONDS + $1))
    until "${@:2}"; do
        ((SECONDS < end)) || return 1
        sleep 0.05
    done
}
