//! `pin` of a VIP: whether its flows keep their backends, or each datagram is scheduled on its own.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::checked::Backend;
use super::key_path::{KeyPath, Located};
use super::report::Report;
use super::sections::Sections;
use crate::forwarding::sticky::Reentry;
use crate::forwarding::{Affinity, FlowAction, SchedulerKind, VipPolicy};
use crate::net::{Forward, PortRange, Protocol};

/// Settings of a VIP that need an entry per flow, or per client.
pub(super) struct Needs {
    pub(super) protocol: Protocol,
    pub(super) forward: Option<Forward>,
    pub(super) scheduler: SchedulerKind,
    pub(super) affinity: Affinity,
    pub(super) sticky: bool,
    pub(super) on_reentry: Reentry,
    pub(super) udp_timeout: bool,
    pub(super) on_remove: FlowAction,
}

/// Reads `pin`.
pub(super) fn check(
    raw: Option<bool>,
    vip: &KeyPath,
    needs: &Needs,
    report: &mut Report<'_>,
) -> bool {
    let pin = raw.unwrap_or(VipPolicy::default().pin);
    if !pin {
        needs.check(vip, report);
    }
    pin
}

impl Needs {
    /// Reports settings that are not possible without pins.
    fn check(&self, vip: &KeyPath, report: &mut Report<'_>) {
        const WITHOUT: &str = "remove it, or pin = false";
        if self.protocol != Protocol::Udp {
            let protocol = self.protocol.as_str();
            let what = format!("false with protocol = \"{protocol}\": only datagrams stand alone");
            report.error(&vip.key("pin"), what, "remove the key, or use protocol = \"udp\"");
        }
        if self.forward == Some(Forward::FullNat) {
            let what =
                "\"full_nat\" with pin = false: a reply finds its client by its flow's entry";
            report.error(
                &vip.key("forward"),
                what,
                "use \"nat\" or another, or remove pin = false",
            );
        }
        if self.scheduler.counts_flows() {
            let word = self.scheduler.as_str();
            let what = format!("\"{word}\" counts flows, and with pin = false there are none");
            let fix = "use one that hashes, such as \"maglev\", or \"round_robin\"";
            report.error(&vip.key("scheduler"), what, fix);
        }
        if self.affinity == Affinity::QuicCid {
            let what = "\"quic_cid\" with pin = false: until a server has made an id, only the pin \
                        leads to it";
            report.error(&vip.key("affinity"), what, "use another affinity, or remove pin = false");
        }
        if self.sticky {
            let what = "with pin = false no datagram asks which backend its client had";
            report.error(&vip.key("sticky"), what, WITHOUT);
        }
        if self.on_reentry == Reentry::Freest {
            let what = "\"freest\" with pin = false: there are no flows that could be counted";
            report.error(&vip.key("on_reentry"), what, WITHOUT);
        }
        if self.udp_timeout {
            let what = "says nothing: with pin = false there is no flow that could be idle";
            report.error(&vip.key("timeouts").key("udp_s"), what, WITHOUT);
        }
        if self.on_remove == FlowAction::Keep {
            let what = "\"keep\" with pin = false: there are no flows that could be kept";
            report.error(&vip.key("on_remove"), what, WITHOUT);
        }
    }
}

/// Ports that a NAT backend replies from, for a VIP.
struct Answers<'s> {
    from: PortRange,
    vip: &'s str,
    backend: &'s Located<Backend>,
    pin: bool,
}

/// Checks NAT replies: without a pin, their source alone must identify the VIP and port.
pub(super) fn return_paths(sections: &Sections<'_>, report: &mut Report<'_>) {
    let mut servers: BTreeMap<IpAddr, Vec<Answers<'_>>> = BTreeMap::new();
    let nat = sections.vips.iter().filter(|(vip, _)| {
        (vip.value.forward, vip.value.protocol) == (Forward::Nat, Protocol::Udp)
    });
    for (Located { value: vip, .. }, backends) in nat {
        for backend in backends {
            let answers = servers.entry(backend.value.address).or_default();
            answers.extend(vip.ports.ranges().iter().map(|&ports| Answers {
                from: backend.value.port.map_or(ports, PortRange::single),
                vip: &vip.name,
                backend,
                pin: vip.policy.pin,
            }));
            if let (Some(port), false) = (backend.value.port, vip.policy.pin)
                && vip.ports.ranges().iter().any(|ports| !ports.is_single())
            {
                ambiguous(backend, port.into(), "several ports of this VIP", report);
            }
        }
    }
    for answers in servers.values_mut() {
        if answers.iter().any(|answers| !answers.pin) {
            alone(answers, report);
        }
    }
}

/// Reports the first ports of one server that a VIP without pins shares with another. In the order
/// of first ports, a range that meets any earlier range also meets the earlier range with the
/// highest last port.
fn alone(answers: &mut [Answers<'_>], report: &mut Report<'_>) {
    answers.sort_by_key(|answers| (answers.from.first, answers.from.last));
    let mut widest: Option<&Answers<'_>> = None;
    for next in &*answers {
        if let Some(before) = widest.filter(|before| before.from.meets(next.from))
            && !(before.pin && next.pin)
        {
            let (unpinned, other) = if next.pin { (before, next) } else { (next, before) };
            let shared = PortRange {
                first: before.from.first.max(next.from.first),
                last: before.from.last.min(next.from.last),
            };
            let others = match unpinned.vip == other.vip {
                true => "another port of this VIP".to_owned(),
                false => format!("VIP \"{}\"", other.vip),
            };
            return ambiguous(unpinned.backend, shared, &others, report);
        }
        widest = widest.filter(|before| before.from.last >= next.from.last).or(Some(next));
    }
}

fn ambiguous(backend: &Located<Backend>, ports: PortRange, others: &str, report: &mut Report<'_>) {
    let noun = if ports.is_single() { "port" } else { "ports" };
    let what = format!(
        "{others} also {verb} to {noun} {ports} of {}: without pins (pin = false), a reply from there \
         could answer for either",
        backend.value.address,
        verb = if others.starts_with("several") { "lead" } else { "leads" },
    );
    let fix = "give each a port of the backend of its own, or use \"dsr\", \"ipip\" or \"gue\", or \
               remove pin = false";
    report.error(&backend.key_path, what, fix);
}
