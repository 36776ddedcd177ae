//! Event journal: a bounded list of the latest events, each with its own sequence number.
//!
//! An event is both logged and listed by `GET /v1/events`, with one text.

use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

use tracing::{info, warn};

use super::api::{Event, EventList};

/// Number of events kept, some 200 bytes each; older ones are dropped.
const KEPT: usize = 1024;

/// Kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A drain has begun, or was given another deadline.
    DrainBegun,
    /// A drain has met its deadline with flows left.
    DrainDeadline,
    /// The last flow of a draining backend has ended, or was terminated.
    Drained,
    /// A drain was cancelled.
    Undrained,
    /// A backend passes its health checks again.
    BackendUp,
    /// A backend fails its health checks.
    BackendDown,
    /// A backend that goes up and down is held down.
    BackendHeld,
    /// A backend has as many flows as its limit allows, and new ones go elsewhere.
    BackendFull,
    /// A backend that was at its limit has room again.
    BackendHasRoom,
    /// All backends of a VIP are down, and packets are forwarded as if they were up.
    FailOpenBegun,
    /// A backend of a VIP is up again.
    FailOpenEnded,
    /// A backend is up, and yet does not answer clients.
    SynsUnanswered,
    /// A backend that did not answer clients answers them again.
    SynsAnswered,
    /// A backend gets no new flows for a while, as it leaves them unanswered.
    PassiveOut,
    /// A backend that left flows unanswered gets new ones again.
    PassiveBack,
    /// The address of a VIP leads clients to the kernel, which refuses them.
    AddressTrouble,
    /// The address of a VIP no longer leads clients to the kernel.
    AddressRight,
    /// A prefix is denied by a command, or for another time.
    DenyAdded,
    /// A command has removed a prefix that was denied at run time.
    DenyRemoved,
    /// The time of a prefix that was denied at run time is over.
    DenyEnded,
    /// Another configuration is in force.
    Reload,
    /// No backend serves a VIP, and its address is withdrawn.
    VipWithdrawn,
    /// A withdrawn VIP is served again, and announced.
    VipAnnounced,
    /// The program of a backend answers: it can be asked for connections.
    ProgramFound,
    /// A backend cannot be asked for connections.
    ProgramMissing,
    /// A reload was refused.
    ReloadRefused,
    /// A hand-over to another process has failed.
    HandOverFailed,
    /// A VIP or a backend has another name.
    Renamed,
    /// A reload has removed a backend, or an address or ports of a VIP.
    Removed,
    /// A backend that a reload removed has no flows any longer.
    RemovedGone,
    /// The new flows of a large source are spread over several backends, or the number of its parts
    /// has changed.
    Split,
    /// A split source counts as one client again.
    Unsplit,
    /// A NIC has changed in a way that loses packets.
    NicFault,
    /// A fault of a NIC is gone.
    NicMended,
    /// Replies go to another next hop than their clients' packets came by.
    ReturnHopReplaced,
    /// Replies go where their clients' packets came from again.
    ReturnHopRestored,
}

impl Kind {
    /// Returns the name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DrainBegun => "drain_begun",
            Self::DrainDeadline => "drain_deadline",
            Self::Drained => "drained",
            Self::Undrained => "undrained",
            Self::BackendUp => "backend_up",
            Self::BackendDown => "backend_down",
            Self::BackendHeld => "backend_held",
            Self::BackendFull => "backend_full",
            Self::BackendHasRoom => "backend_has_room",
            Self::FailOpenBegun => "fail_open_begun",
            Self::FailOpenEnded => "fail_open_ended",
            Self::SynsUnanswered => "syns_unanswered",
            Self::SynsAnswered => "syns_answered",
            Self::PassiveOut => "passive_out",
            Self::PassiveBack => "passive_back",
            Self::AddressTrouble => "address_trouble",
            Self::AddressRight => "address_right",
            Self::DenyAdded => "deny_added",
            Self::DenyRemoved => "deny_removed",
            Self::DenyEnded => "deny_ended",
            Self::Reload => "reload",
            Self::VipWithdrawn => "vip_withdrawn",
            Self::VipAnnounced => "vip_announced",
            Self::ProgramFound => "backend_program_found",
            Self::ProgramMissing => "backend_program_missing",
            Self::ReloadRefused => "reload_refused",
            Self::HandOverFailed => "hand_over_failed",
            Self::Renamed => "renamed",
            Self::Removed => "removed",
            Self::RemovedGone => "removed_gone",
            Self::Split => "split",
            Self::Unsplit => "unsplit",
            Self::NicFault => "nic_fault",
            Self::NicMended => "nic_mended",
            Self::ReturnHopReplaced => "return_hop_replaced",
            Self::ReturnHopRestored => "return_hop_restored",
        }
    }

    /// Returns whether the event needs the attention of an operator.
    const fn is_warning(self) -> bool {
        matches!(
            self,
            Self::DrainDeadline
                | Self::ReloadRefused
                | Self::HandOverFailed
                | Self::BackendDown
                | Self::BackendHeld
                | Self::BackendFull
                | Self::FailOpenBegun
                | Self::SynsUnanswered
                | Self::PassiveOut
                | Self::ProgramMissing
                | Self::VipWithdrawn
                | Self::AddressTrouble
                | Self::NicFault
                | Self::ReturnHopReplaced
        )
    }
}

/// An event to be added to the journal.
#[derive(Debug)]
pub struct NewEvent {
    kind: Kind,
    vip: Option<String>,
    backend: Option<String>,
    nic: Option<String>,
    fault: Option<String>,
    numbers: BTreeMap<String, u64>,
}

impl NewEvent {
    /// Creates an event that concerns no VIP, backend or NIC.
    pub const fn new(kind: Kind) -> Self {
        let numbers = BTreeMap::new();
        Self { kind, vip: None, backend: None, nic: None, fault: None, numbers }
    }

    /// Creates an event of a VIP.
    pub fn of_vip(kind: Kind, vip: &str) -> Self {
        Self { vip: Some(vip.to_owned()), ..Self::new(kind) }
    }

    /// Creates an event of a VIP, or of none.
    pub fn about(kind: Kind, vip: Option<&str>) -> Self {
        Self { vip: vip.map(str::to_owned), ..Self::new(kind) }
    }

    /// Creates an event of a backend.
    pub fn of(kind: Kind, vip: &str, backend: &str) -> Self {
        Self { backend: Some(backend.to_owned()), ..Self::of_vip(kind, vip) }
    }

    /// Creates an event of a NIC; `fault` is the fault that began or ended.
    pub fn of_nic(kind: Kind, nic: &str, fault: &str) -> Self {
        Self { nic: Some(nic.to_owned()), fault: Some(fault.to_owned()), ..Self::new(kind) }
    }

    /// Creates an event at a NIC that is no fault of the NIC.
    pub fn at_nic(kind: Kind, nic: &str) -> Self {
        Self { nic: Some(nic.to_owned()), ..Self::new(kind) }
    }

    /// Adds a named count to the event.
    #[must_use]
    pub fn with(mut self, name: &str, number: u64) -> Self {
        self.numbers.insert(name.to_owned(), number);
        self
    }
}

/// The latest events.
#[derive(Debug, Default)]
pub struct Journal {
    events: VecDeque<Event>,
    last: u64,
}

impl Journal {
    /// Logs an event with its text, and appends it to the list.
    pub fn record(&mut self, event: NewEvent, text: String) {
        if event.kind.is_warning() {
            warn!("{text}");
        } else {
            info!("{text}");
        }
        self.last += 1;
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        let NewEvent { kind, vip, backend, nic, fault, numbers } = event;
        self.events.push_back(Event {
            seq: self.last,
            time: now(),
            kind: kind.as_str().to_owned(),
            vip,
            backend,
            nic,
            fault,
            numbers,
            text,
        });
    }

    /// Returns the kept events with sequence numbers greater than `since`.
    pub fn since(&self, since: u64) -> EventList {
        let events = self.events.iter().filter(|event| event.seq > since).cloned().collect();
        let first = self.events.front().map_or(self.last + 1, |event| event.seq);
        let lost = first.saturating_sub(1).saturating_sub(since);
        EventList { last: self.last, lost, events }
    }
}

/// Returns the time for people.
#[expect(clippy::disallowed_methods, reason = "displayed, nothing else")]
fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(list: &EventList) -> Vec<u64> {
        list.events.iter().map(|event| event.seq).collect()
    }

    #[test]
    fn events_are_numbered_and_told_once() {
        let mut journal = Journal::default();
        let nothing = journal.since(0);
        assert_eq!((nothing.last, nothing.lost, nothing.events.len()), (0, 0, 0));
        journal.record(
            NewEvent::of(Kind::Drained, "web", "a").with("flows_cut", 3),
            "gone".to_owned(),
        );
        journal.record(NewEvent::new(Kind::Reload), "read".to_owned());
        assert_eq!(numbers(&journal.since(0)), [1, 2]);
        assert_eq!(numbers(&journal.since(1)), [2]);
        assert_eq!(numbers(&journal.since(2)), [0; 0]);
        let all = journal.since(0);
        let first = all.events.first();
        let reported =
            first.map(|e| (e.kind.as_str(), e.vip.as_deref(), e.numbers.get("flows_cut")));
        assert_eq!(reported, Some(("drained", Some("web"), Some(&3))));
        assert!(first.is_some_and(|e| humantime::parse_rfc3339(&e.time).is_ok()), "{first:?}");
    }

    #[test]
    fn the_list_is_bounded_and_says_what_it_lost() {
        let mut journal = Journal::default();
        for _ in 0..KEPT + 10 {
            journal.record(NewEvent::new(Kind::Reload), String::new());
        }
        let all = journal.since(0);
        assert_eq!((all.last, all.lost, all.events.len()), (KEPT as u64 + 10, 10, KEPT));
        assert_eq!(numbers(&all).first(), Some(&11));
        assert_eq!(journal.since(4).lost, 6);
        assert_eq!(journal.since(500).lost, 0);
        assert_eq!(journal.since(u64::MAX).lost, 0);
    }
}
