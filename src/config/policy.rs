//! `on_down`, `on_remove`, `on_idle` and `on_no_backend` of a VIP: actions for flows that are not
//! served.

use super::key_path::KeyPath;
use super::report::Report;
use crate::forwarding::{FlowAction, VipPolicy};
use crate::net::Protocol;

/// Actions for the flows of a backend that no longer serves them.
const FLOWS_LEFT: &[(&str, FlowAction)] =
    &[("keep", FlowAction::Keep), ("reset", FlowAction::Reset), ("rehash", FlowAction::Rehash)];

/// Reads `on_down`. TCP keeps its pins by default: a health check may fail for a reason that does
/// not affect the flows. UDP can only rehash: it has no reset that could notify an endpoint, and
/// the packets of a flow would keep the pin to a dead backend alive forever.
pub(super) fn on_down(
    raw: Option<&str>,
    key_path: &KeyPath,
    protocol: Protocol,
    report: &mut Report<'_>,
) -> FlowAction {
    let word = raw.and_then(|word| report.word(key_path, word, FLOWS_LEFT, &[]));
    match (protocol, word) {
        (Protocol::Tcp, word) => word.unwrap_or_default(),
        (_, None | Some(FlowAction::Rehash)) => FlowAction::Rehash,
        (_, Some(word)) => {
            let why = match word {
                FlowAction::Keep => "its packets would keep the pin to a dead backend alive",
                FlowAction::Reset | FlowAction::Rehash => "only TCP has resets",
            };
            let (word, protocol) = (word.as_str(), protocol.as_str());
            let what = format!("\"{word}\" is not possible for protocol = \"{protocol}\": {why}");
            report.error(key_path, what, "leave the key out, or use \"rehash\"");
            FlowAction::Rehash
        }
    }
}

/// Reads `withdraw`: whether the VIP's address is withdrawn while no backend serves it.
pub(super) fn withdraw(raw: Option<&str>, key_path: &KeyPath, report: &mut Report<'_>) -> bool {
    const WORDS: &[(&str, bool)] = &[("never", false), ("unserved", true)];
    raw.and_then(|word| report.word(key_path, word, WORDS, &[])).unwrap_or(false)
}

/// Reads the action for flows that a drain's deadline or a reload ends. The default is a reset
/// where the protocol has one (TCP), else a rehash.
pub(super) fn ending(
    raw: Option<&str>,
    key_path: &KeyPath,
    protocol: Protocol,
    report: &mut Report<'_>,
) -> FlowAction {
    let by_default = match protocol {
        Protocol::Tcp => FlowAction::Reset,
        Protocol::Udp | Protocol::Any => FlowAction::Rehash,
    };
    let ending = raw.and_then(|word| report.word(key_path, word, FLOWS_LEFT, &[]));
    let ending = ending.unwrap_or(by_default);
    if ending == FlowAction::Reset && protocol != Protocol::Tcp {
        let fix = "use \"rehash\" (the next datagram goes to another backend) or \"keep\"";
        let what = match protocol {
            Protocol::Any => "\"reset\" with protocol = \"any\": only TCP VIPs have resets",
            _ => "\"reset\" on a UDP VIP: UDP has no resets",
        };
        report.error(key_path, what, fix);
    }
    ending
}

/// Reads `on_idle`: whether both endpoints of an expired flow are reset.
pub(super) fn reset_idle(
    raw: Option<&str>,
    key_path: &KeyPath,
    protocol: Protocol,
    report: &mut Report<'_>,
) -> bool {
    const WORDS: &[(&str, bool)] = &[("silent", false), ("reset", true)];
    let reset = raw.and_then(|word| report.word(key_path, word, WORDS, &[])).unwrap_or_default();
    if reset && protocol != Protocol::Tcp {
        let what = format!(
            "\"reset\" is not possible for protocol = \"{}\": only TCP has resets",
            protocol.as_str()
        );
        report.error(key_path, what, "leave the key out, or use \"silent\"");
        return false;
    }
    reset
}

/// Reads `on_no_backend`: whether a new flow is rejected when no backend is in service.
pub(super) fn reject_no_backend(
    raw: Option<&str>,
    key_path: &KeyPath,
    report: &mut Report<'_>,
) -> bool {
    const WORDS: &[(&str, bool)] = &[("drop", false), ("reject", true)];
    raw.and_then(|word| report.word(key_path, word, WORDS, &[]))
        .unwrap_or(VipPolicy::default().reject_no_backend)
}
