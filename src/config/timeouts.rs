//! `timeouts` of a VIP: after which silence a flow's pin is given up.

use std::time::Duration;

use serde::Deserialize;

use super::Timeouts;
use super::place::Place;
use super::report::Report;
use crate::units::Ticks;

/// Longer than the gaps between the first five SYN retransmissions of Linux (1 to 16 s). A pin that
/// ends earlier costs nothing, no data has flowed; a longer one lets a SYN flood hold more entries.
const EMBRYONIC_S: u64 = 30;
/// 2 hours 4 minutes (RFC 5382, REQ-5): a host that sends keep-alives every 2 hours, the default of
/// RFC 9293 (3.8.4) and of Linux, never loses its pin.
const ESTABLISHED_S: u64 = 7440;
/// Every packet starts it anew, so it has to outlast the gaps between the last retransmissions, of
/// which Linux makes seven in 25 s; a drain ends this long after its last connection. A pin that
/// ends too early still has the hash. IPVS takes 30 s for its LAST_ACK too.
const CLOSING_S: u64 = 30;
/// As long as nf_conntrack (`nf_conntrack_udp_timeout`): longer than a resolver waits for an answer and asks
/// again (resolv.conf(5): 5 s), and a table of a million flows bears 35,000 such questions a second. RFC
/// 4787 (REQ-5) has 2 minutes for a NAT, where who sends later has lost his flow; here the hash is left.
const UDP_FIRST_S: u64 = 30;
/// RFC 4787, REQ-5: no less than 2 minutes, 5 recommended.
const UDP_S: u64 = 300;
/// The clock of the data path cannot tell longer spans.
const MAX_S: u64 = Ticks::MAX_SPAN.as_secs();

/// The table as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTimeouts {
    embryonic_s: Option<i64>,
    established_s: Option<i64>,
    closing_s: Option<i64>,
    udp_first_s: Option<i64>,
    udp_s: Option<i64>,
}

impl RawTimeouts {
    /// Whether it says how long UDP flows may be idle.
    pub(super) const fn names_udp(&self) -> bool {
        self.udp_s.is_some()
    }

    /// The table as the program relies on it.
    pub(super) fn check(&self, place: &Place, report: &mut Report<'_>) -> Timeouts {
        let mut seconds = |key, value, default| {
            Duration::from_secs(report.integer(&place.key(key), value, default, 1..=MAX_S))
        };
        let udp = seconds("udp_s", self.udp_s, UDP_S);
        let timeouts = Timeouts {
            embryonic: seconds("embryonic_s", self.embryonic_s, EMBRYONIC_S),
            established: seconds("established_s", self.established_s, ESTABLISHED_S),
            closing: seconds("closing_s", self.closing_s, CLOSING_S),
            udp_first: seconds("udp_first_s", self.udp_first_s, UDP_FIRST_S.min(udp.as_secs())),
            udp,
        };
        if timeouts.udp_first > udp {
            let what = format!(
                "{} s is longer than udp_s, {} s",
                timeouts.udp_first.as_secs(),
                udp.as_secs()
            );
            let fix = "a flow of one packet is not worth more than one that goes on: lower it, or \
                       raise udp_s";
            report.error(&place.key("udp_first_s"), what, fix);
        }
        timeouts
    }
}
