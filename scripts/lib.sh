# shellcheck shell=bash
# What the scripts share: messages, and the installation of what is missing. To be sourced.

# Root's PATH has no sbin after a plain `su`.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# What the scripts, tests and benches run, and what installs it. One row each: Debian package | programs
# that are used of it, and paths that must be there (with a slash) | what it is for.
# tests/programs.rs compares these lists with what is run: a program that is missing here fails on a new
# machine only.
# shellcheck disable=SC2034 # used by the scripts that source this file
{
# In every Debian, the smallest too.
ESSENTIAL_PACKAGES=(
@ESS@)
BUILD_PACKAGES=(
    'gcc|cc|links Rust programs'
    'libc6-dev|/usr/include/linux/bpf.h|headers of libc and of the kernel'
    'ca-certificates|/etc/ssl/certs/ca-certificates.crt|lets cargo know the registry by its certificate'
    'clang|clang|compiles the XDP program'
    'libbpf-dev|/usr/include/bpf/bpf_helpers.h|headers of the XDP program'
)
NETWORK_PACKAGES=(
    'iproute2|ip ss bridge|makes network namespaces, links, addresses and routes'
    'ethtool|ethtool|turns checksum offload off on veth'
    'procps|sysctl|sets kernel parameters inside the namespaces'
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
    'procps|kill|sends signals'
    'tcpdump|tcpdump|captures what arrives at clients and backends'
    'bpftool|bpftool|lists the XDP programs that are left after a stop'
    'shellcheck|shellcheck|checks the scripts'
)
THROUGHPUT_PACKAGES=(
    'iperf3|iperf3|measures TCP throughput'
    'jq|jq|reads the JSON of iperf3 and holdfast'
)
BENCH_PACKAGES=(
    'valgrind|valgrind|counts instructions (callgrind)'
    'binutils|addr2line|tells which source line an instruction comes from'
    'jq|jq|puts the results together'
    'git|git|names the commit that was measured'
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
    'ca-certificates|/etc/ssl/certs/ca-certificates.crt|for a mirror that speaks HTTPS'
)
FRESH_PACKAGES=(
    'debootstrap|debootstrap|makes a minimal Debian'
    'git|git|makes the clone'
)
}

# say TEXT...: a message to the person who waits.
say() { printf '%s\n' "$*" >&2; }

# die TEXT...: a message, then the end.
die() {
    printf '%s: error: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# print_usage: the comment at the head of the script that runs.
print_usage() { sed -n '2,/^set /{ /^#/s/^# \{0,1\}//p; }' "$0"; }

require_root() {
    ((EUID == 0)) || die "must run as root (network namespaces, AF_XDP); try: sudo $0"
}

# is_present TEST: TEST is a path, or a command.
is_present() {
    case $1 in
        /*) [[ -e $1 ]] ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

# install_missing ROW...: installs the packages whose test fails, and says which and why.
install_missing() {
    local row package test why missing=()
    for row in "$@"; do
        IFS='|' read -r package test why <<<"$row"
        is_present "$test" && continue
        say "  missing: $package ($why)"
        missing+=("$package")
    done
    ((${#missing[@]} == 0)) && return
    command -v apt-get >/dev/null || die "no apt-get here; install by hand what does the work of: ${missing[*]}"
    say "  installing: apt-get install ${missing[*]}"
    install_without_services "${missing[@]}"
    for row in "$@"; do
        IFS='|' read -r package test why <<<"$row"
        is_present "$test" || die "$package is installed but $test is still missing ($why)"
    done
}

# install_without_services PACKAGE...: as apt-get install, but no service is started or enabled:
# nginx is a program for us, not a service of this machine.
install_without_services() {
    local policy=/usr/sbin/policy-rc.d
    (
        # Debian's way to say that installing must not start services; gone again whatever happens.
        if [[ ! -e $policy ]]; then
            trap 'rm -f "$policy"' EXIT
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod 755 "$policy"
        fi
        apt_get_install "$@"
    ) || die "apt-get could not install: $* (see above)"
    if [[ " $* " == *" nginx-light "* ]]; then
        update-rc.d nginx disable >/dev/null 2>&1 || true
        systemctl disable nginx.service >/dev/null 2>&1 || true
    fi
}

apt_get_install() {
    export DEBIAN_FRONTEND=noninteractive
    {
        apt-get update -qq || say "  apt-get update failed; trying with the package lists that are here"
        apt-get install -y -qq -o Dpkg::Use-Pty=0 --no-install-recommends "$@"
    } >&2 </dev/null
}

# require_rust: cargo of at least the version that Cargo.toml asks for, or how to get one.
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

# ---- a running holdfast in a lab ----
# Uses: LAB (name of the lab), HOLDFAST (the binary). Sets: HOLDFAST_PID.

lab() { "$REPOSITORY/scripts/lab" --name "$LAB" "$@"; }
lab_state() { printf '/var/lib/holdfast-lab/%s' "$LAB"; }
hf() { "$HOLDFAST" "$@" --socket "$(lab_state)/control.sock"; }
# hf_status JQ_FILTER [JQ_ARGUMENT...]: a value from the status document.
hf_status() { hf status --json | jq -r "$@"; }

# start_holdfast CONFIG: in the balancer's namespace; returns when every backend is up. PATIENCE_S, 10 by
# default, is for machines that are slow.
start_holdfast() {
    local log
    log=$(lab_state)/holdfast.log
    # A session of its own: it outlives this script where a script wants that.
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

# stop_holdfast: a clean stop; fails when it did not end well.
stop_holdfast() {
    local pid=${HOLDFAST_PID:-} result=0
    [[ -n $pid ]] || return 0
    HOLDFAST_PID=
    kill -TERM "$pid" 2>/dev/null || true
    wait "$pid" || result=$?
    return "$result"
}

# wait_until SECONDS CMD...: repeats CMD until it succeeds; fails when the time is over.
wait_until() {
    local end=$((SECONDS + $1))
    until "${@:2}"; do
        ((SECONDS < end)) || return 1
        sleep 0.05
    done
}
