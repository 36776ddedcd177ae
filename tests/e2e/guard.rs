//! The guard in the kernel: without the XDP program, no packet of a VIP is answered by a RST, and
//! none of a backend reaches a client past the balancer.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::e2e::kernel::banner;
use crate::lab::{
    Config, Family, Holdfast, Lab, Running, SOON, Topology, Vip, conversation, download, requests,
    tunnel, vip, wait_for,
};

/// A capture of all packets of a host.
pub struct Capture {
    _running: Running,
    file: PathBuf,
}

impl Capture {
    pub fn begin(lab: &Lab, host: &str, interface: &str) -> Self {
        let file = lab.state().join(format!("{host}-guard.pcap"));
        let mut command = lab.command(host, "tcpdump");
        command.args(["-i", interface, "-U", "--immediate-mode", "-s", "128", "-w"]).arg(&file);
        let running = Running::start(command.stderr(Stdio::null()));
        wait_for("the capture begins", SOON, || {
            file.metadata().is_ok_and(|metadata| metadata.len() > 0)
        });
        Self { _running: running, file }
    }

    /// The packets that a filter of tcpdump(8) selects.
    pub fn packets(&self, filter: &str) -> Vec<String> {
        // The last packet of a growing file may be incomplete.
        let output = Command::new("tcpdump").arg("-nr").arg(&self.file).arg(filter).output();
        let text = String::from_utf8_lossy(&output.unwrap().stdout).into_owned();
        text.lines().map(str::to_owned).collect()
    }

    /// Panics if the client was sent a RST, or a backend's packet past the balancer, which the client
    /// would reset.
    pub fn assert_no_reset(&self, what: &str) {
        let resets = "(tcp[tcpflags] & tcp-rst != 0 and not src net 198.18.1.0/24) or \
                      (ip6 proto 6 and ip6[53] & 4 != 0 and not src net 2001:db8:1::/64)";
        assert_eq!(self.packets(resets), [] as [&str; 0], "{what}: resets");
        let past = "tcp and (src port 8080) and (src net 198.18.2.0/24 or src net 2001:db8:2::/64)";
        assert_eq!(self.packets(past), [] as [&str; 0], "{what}: past the balancer");
    }
}

/// The guard on a NIC of the balancer, as `tc` shows it.
pub fn guard(lab: &Lab, interface: &str) -> String {
    let filters = lab.run("lb", &["tc", "filter", "show", "dev", interface, "ingress"]);
    filters.lines().filter(|line| line.contains("holdfast_guard")).collect()
}

/// Removes the guard as docs/OPERATIONS.md says.
pub fn remove_guard(lab: &Lab, interface: &str) {
    let document = include_str!("../../docs/OPERATIONS.md");
    let command = document.split('`').find(|code| code.starts_with("tc filter del")).unwrap();
    let command = command.replace("eth1", interface);
    lab.run("lb", &command.split_whitespace().collect::<Vec<_>>());
    assert_eq!(guard(lab, interface), "");
}

/// Exit code of a request to a VIP: 7 is a refusal, 28 silence.
fn curl(lab: &Lab, url: &str) -> Option<i32> {
    lab.try_run("client", &["curl", "-s", "--noproxy", "*", "--connect-timeout", "1", url])
        .status
        .code()
}

fn remove_program(lab: &Lab) {
    lab.run("lb", &["ip", "link", "set", "dev", "eth0", "xdp", "off"]);
}

fn vips() -> Vec<Vip> {
    vec![
        vip("nat", Family::V4, false),
        vip("dsr", Family::V6, false),
        tunnel("ipip", Family::V4, Family::V4),
        vip("full_nat", Family::V6, false),
        vip("nat", Family::V4, true),
    ]
}

/// The process is killed, and then the XDP program removed: the worst that can happen.
#[test]
fn without_process_and_program_the_kernel_is_silent_for_vips_and_as_ever_for_the_rest() {
    let lab = Lab::up(Topology::Stick);
    let vips = vips();
    let config = Config::new(&lab, 2, vips.clone());
    let first = Holdfast::start(&lab, &config);
    let tcp: Vec<_> = vips.iter().filter(|vip| !vip.udp).collect();
    // The hash leads these flows back to their backends.
    let kept: Vec<_> = tcp.iter().filter(|vip| vip.forward != "full_nat").collect();
    let mut connections: Vec<_> = kept.iter().map(|vip| conversation(&lab, vip)).collect();
    let backends: Vec<_> = connections.iter_mut().map(|connection| connection.ask()).collect();
    // A backend that goes on sending, past the balancer if it could.
    let sending = download(&lab, &vips[0], Some("1m"));
    sending.backend();
    let capture = Capture::begin(&lab, "client", "eth0");
    first.kill();
    remove_program(&lab);
    let leftover = guard(&lab, "eth0");
    assert!(leftover.contains("holdfast_guard"), "{leftover}");

    for vip in &tcp {
        assert_eq!(curl(&lab, &vip.url()), Some(28), "{}: silence, not a refusal", vip.name);
        let option = vip.family.option();
        lab.run("client", &["ping", option, "-q", "-c", "1", "-W", "2", &vip.address()]);
    }
    let script = "import socket, sys\n\
                  s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
                  s.settimeout(1)\n\
                  s.connect((sys.argv[1], 7))\n\
                  s.send(b'x')\n\
                  s.recv(9)";
    let datagram = ["/usr/bin/python3", "-c", script, &vips[4].address()];
    let error = lab.try_run("client", &datagram).stderr;
    let error = String::from_utf8_lossy(&error);
    assert!(error.contains("TimeoutError") || error.contains("timed out"), "{error}");
    capture.assert_no_reset("without a process");
    // What is no packet of a VIP stays with the kernel.
    assert_eq!(curl(&lab, &format!("{}:81", tcp[0].url())), Some(7), "another port: a refusal");
    assert_eq!(banner(&lab, Family::V4).trim(), "SSH-2.0-holdfast_lab");
    drop(sending);

    let second = Holdfast::start(&lab, &config);
    let taken_over = guard(&lab, "eth0");
    assert_eq!(taken_over.matches("handle").count(), 1, "{taken_over}");
    assert_ne!(taken_over, leftover, "the guard of the killed process is replaced");
    for ((connection, backend), vip) in connections.iter_mut().zip(&backends).zip(&kept) {
        assert_eq!(&connection.ask(), backend, "{}: the connection did not survive", vip.name);
    }
    second.kill();
    remove_program(&lab);
    remove_guard(&lab, "eth0");
    assert_eq!(curl(&lab, &tcp[0].url()), Some(7), "it was the guard that kept the kernel silent");
}

/// A filter of another kind in the guard's place is left alone.
#[test]
fn without_a_guard_holdfast_forwards_and_reports_it() {
    let lab = Lab::up(Topology::Stick);
    let (source, object) = (lab.state().join("other.c"), lab.state().join("other.o"));
    let program = "__attribute__((section(\"classifier\"), used)) int other(void *c) { return -1; }\n\
                   char _license[] __attribute__((section(\"license\"), used)) = \"GPL\";\n";
    std::fs::write(&source, program).unwrap();
    let (source, object) = (source.to_str().unwrap(), object.to_str().unwrap());
    lab.run("lb", &["clang", "-O2", "-g", "-target", "bpf", "-c", source, "-o", object]);
    lab.run("lb", &["tc", "qdisc", "add", "dev", "eth0", "clsact"]);
    let place = ["tc", "filter", "add", "dev", "eth0", "ingress", "pref", "1", "protocol", "ip"];
    lab.run("lb", &[&place[..], &["bpf", "direct-action", "object-file", object]].concat());
    let nat = vip("nat", Family::V4, false);
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 1, vec![nat.clone()]));
    let nic = holdfast.status().nics.remove(0);
    assert!(matches!(&nic.fallbacks[..], [text] if text.contains("no guard")), "{nic:?}");
    assert!(holdfast.log().contains("tc filter show dev eth0 ingress"), "{}", holdfast.log());
    requests(&lab, &nat, 0, 10).assert_none_failed("without a guard");
    sleep(Duration::from_millis(1100));
    assert!(holdfast.status().nics[0].faults.is_empty(), "it is no fault that comes and goes");
    holdfast.stop();
    assert_eq!(guard(&lab, "eth0"), "");
}

/// Addresses go first at a stop, so packets of clients find no listener; those of backends would be
/// forwarded to the clients, which would reset the connection.
#[test]
fn a_stop_and_a_start_reset_no_connection() {
    let lab = Lab::up(Topology::Stick);
    let nat = [Family::V4, Family::V6].map(|family| vip("nat", family, false));
    let config = Config::new(&lab, 2, nat.to_vec());
    let first = Holdfast::start(&lab, &config);
    let mut connections = nat.each_ref().map(|vip| conversation(&lab, vip));
    let backends = connections.each_mut().map(|connection| connection.ask());
    let sending = download(&lab, &nat[0], Some("1m"));
    sending.backend();
    let capture = Capture::begin(&lab, "client", "eth0");
    first.stop();
    assert!(guard(&lab, "eth0").contains("holdfast_guard"), "{}", guard(&lab, "eth0"));
    // The backend of the download retransmits meanwhile.
    sleep(Duration::from_millis(700));
    capture.assert_no_reset("after the stop");
    let second = Holdfast::start(&lab, &config);
    for ((connection, backend), vip) in connections.iter_mut().zip(&backends).zip(&nat) {
        assert_eq!(&connection.ask(), backend, "{}: the connection did not survive", vip.name);
    }
    capture.assert_no_reset("after the start");
    drop(sending);
    second.stop();
}
