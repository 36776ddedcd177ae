//! Part of the stage conntrack: the sweep, which removes expired pins and probes terminated
//! connections.
//!
//! A clock sweep: each poll visits some entries, so that the hand goes around the used part of the
//! table once per [`SWEEP`]. Cost: one entry after the other, read in order.

use super::commit::{count_end, count_removal};
use super::event::{is_expired, policy};
use super::locate::Tables;
use super::state::{Event, Step, Verdict, step};
use crate::datapath::context::Context;
use crate::datapath::reset::TxBacklog;
use crate::datapath::snat;
use crate::datapath::target::{Target, Terminated};
use crate::flow::entry::State;
use crate::flow::table::Hit;
use crate::flow::writer;
use crate::forwarding::RESET_TIME;
use crate::forwarding::table::Backend;
use crate::net::{Protocol, Tuple};
use crate::units::Ticks;

/// Time of one round of the sweep: bounds the delay until an idle flow is removed.
const SWEEP: Ticks = Ticks(400);
/// Maximum number of entries that one poll visits, and that it removes: each bounds the pause to
/// about 10 us (a removal costs as much as eight visits).
const SWEEP_MAX: u32 = 512;
const REMOVALS_MAX: u32 = 64;
/// Ticks between two probes of a silent terminated flow: they are spread over [`RESET_TIME`].
const PROBE_GAP: u32 = RESET_TIME.0 / State::MAX_PROBES as u32;

/// Progress of the sweep.
#[derive(Debug)]
pub(super) struct Sweep {
    at: Ticks,
    /// Number of entries that are due.
    debt: u32,
}

impl Sweep {
    /// Creates a sweep that begins at `now`.
    pub const fn new(now: Ticks) -> Self {
        Self { at: now, debt: 0 }
    }

    /// Visits a bounded number of the entries that are due; returns whether more is due at once.
    #[inline]
    pub fn run(
        &mut self,
        tables: &mut Tables,
        context: &Context<'_>,
        backlog: &mut TxBacklog,
    ) -> bool {
        let elapsed = context.now.since(self.at).0;
        if elapsed > 0 {
            self.at = context.now;
            let span = tables.writer.span();
            let due = u64::from(span) * u64::from(elapsed) / u64::from(SWEEP.0) + 1;
            // Never more than one round, however long the worker slept.
            let debt = due.saturating_add(u64::from(self.debt)).min(u64::from(span));
            self.debt = u32::try_from(debt).unwrap_or(span);
        }
        let count = self.debt.min(SWEEP_MAX);
        if count > 0 {
            let snat_allocator = &mut tables.snat_allocator;
            let shown = tables.writer.sweep(
                count,
                REMOVALS_MAX,
                |protocol, hit, tuple| visit(protocol, hit, tuple, context, backlog),
                |protocol, pin| {
                    count_end(protocol, &pin.flow_state, context);
                    snat::release(snat_allocator, pin, context);
                    count_removal(pin, context);
                },
            );
            self.debt -= shown;
        }
        self.debt > 0
    }
}

/// Decides about one entry.
#[inline]
fn visit(
    protocol: Protocol,
    hit: &Hit<'_>,
    tuple: &dyn Fn() -> Tuple,
    context: &Context<'_>,
    backlog: &mut TxBacklog,
) -> writer::Verdict {
    let state = hit.flow_state.state();
    let Some(backend) = context.table.pinned(hit.flow_state.backend()) else {
        return writer::Verdict::Remove;
    };
    let expired = is_expired(protocol, &hit.flow_state, backend, context.now);
    if !expired && !state.has(State::TERMINATED) && !backend.flags.ends_flows() {
        // Nearly all entries.
        return writer::Verdict::Keep;
    }
    let policy = policy(tuple, backend, context);
    let step = step(state, expired, Event::Sweep(protocol), policy);
    match step.verdict {
        Verdict::Ended => writer::Verdict::Remove,
        Verdict::Reset => probe(hit, step, backend, tuple, context, backlog),
        Verdict::Forward | Verdict::ChooseAgain => writer::Verdict::Keep,
    }
}

/// Terminates a connection, and probes its ends if a probe is due: they may have sent nothing
/// since, or the reset of one end may have been lost.
#[cold]
fn probe(
    hit: &Hit<'_>,
    step: Step,
    backend: &Backend,
    tuple: &dyn Fn() -> Tuple,
    context: &Context<'_>,
    backlog: &mut TxBacklog,
) -> writer::Verdict {
    let age = if step.touch { 0 } else { context.now.since(hit.flow_state.last_seen()).0 };
    let probes = step.state.probes();
    if probes >= State::MAX_PROBES || age < u32::from(probes) * PROBE_GAP {
        return writer::Verdict::Keep;
    }
    if !backlog.has_room() {
        return writer::Verdict::Later;
    }
    if step.touch {
        hit.touch(context.now);
    }
    // Stored in one step: the change is computed from the state that was read.
    hit.set_state(step.state.with_probe());
    let client = context.shared.snat_table.return_hop(&hit.flow_state);
    let target = Target::of(backend, &hit.flow_state);
    backlog.probe(&tuple().key(), &Terminated { client, target }, context);
    writer::Verdict::Keep
}
