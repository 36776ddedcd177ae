//! Part of the stage conntrack: location of a flow's pin.
//!
//! ```text
//! own table --pin--------------> here
//!     |  '----remote entry-----> the owner's table, by its number
//!     '-------nothing----------> the tables of all other workers
//! SNAT port ----owner's number-> that worker's table
//! ```
//!
//! Reads: the flow tables of all workers. Cost: a miss, or a stale remote entry, looks into other
//! tables; look-ups change nothing there.

use std::sync::Arc;

use super::event::alive;
use crate::datapath::context::Context;
use crate::flow::entry::{FlowState, Pin, State};
use crate::flow::snat::{SnatAllocator, SnatPort};
use crate::flow::table::{FlowTable, Hit, Slot};
use crate::flow::writer::FlowWriter;
use crate::forwarding::table::Backend;
use crate::net::{BackendIndex, HashedKey, TableSecret};

/// The flow tables of all workers, as seen by the worker that writes one of them.
#[derive(Debug)]
pub(super) struct Tables {
    /// Writer of this worker's table.
    pub writer: FlowWriter,
    /// Tables of all workers, by index.
    pub all: Arc<[Arc<FlowTable>]>,
    /// Allocator of this worker's SNAT ports.
    pub snat_allocator: SnatAllocator,
    /// Index of this worker.
    pub me: u8,
}

/// A pin in another worker's table.
pub(super) struct Remote {
    /// Slot in that table.
    pub slot: Slot,
    /// Contents of the pin when it was read.
    pub pin: Pin,
}

/// A pin in this or another worker's table.
pub(super) enum Located<'h> {
    /// In this worker's table.
    Own(Hit<'h>),
    /// In another worker's table.
    Remote(Remote),
}

impl Located<'_> {
    /// Contents of the pin.
    pub const fn flow_state(&self) -> &FlowState {
        match self {
            Self::Own(hit) => &hit.flow_state,
            Self::Remote(remote) => &remote.pin.flow_state,
        }
    }
}

impl Tables {
    /// The secret of the flow hashes.
    pub fn secret(&self) -> &TableSecret {
        self.writer.table().secret()
    }

    /// Returns the table of a worker.
    pub fn of(&self, worker: u8) -> Option<&FlowTable> {
        self.all.get(usize::from(worker)).map(Arc::as_ref)
    }

    /// Returns the pin that a remote entry refers to, unless the flow was pinned to another backend
    /// since.
    pub fn owned(&self, flow: &HashedKey, entry: &FlowState) -> Option<Remote> {
        let (slot, pin) = self.of(entry.owner())?.lookup(flow)?;
        let same = !pin.flow_state.state().has(State::REMOTE)
            && pin.flow_state.backend() == entry.backend();
        same.then_some(Remote { slot, pin })
    }

    /// Returns a live pin of the flow in another worker's table, and its backend, which `wanted`
    /// must accept. Prefers flows that are not terminated.
    #[cold]
    pub fn find_elsewhere<'t>(
        &self,
        flow: &HashedKey,
        context: &Context<'t>,
        wanted: impl Fn(&Backend) -> bool,
    ) -> Option<(Remote, &'t Backend)> {
        let others = (0_u8..).zip(self.all.iter()).filter(|(worker, _)| *worker != self.me);
        let mut found =
            others.filter_map(|(_, table)| table.lookup(flow)).filter_map(|(slot, pin)| {
                if pin.flow_state.state().has(State::REMOTE) {
                    return None;
                }
                let backend = alive(flow.protocol(), &pin.flow_state, context)?;
                wanted(backend).then_some((Remote { slot, pin }, backend))
            });
        let is_terminated = |remote: &Remote| remote.pin.flow_state.state().has(State::TERMINATED);
        let first = found.next()?;
        if !is_terminated(&first.0) {
            return Some(first);
        }
        // The ports may be in use again, at yet another worker.
        Some(found.find(|(remote, _)| !is_terminated(remote)).unwrap_or(first))
    }

    /// Returns the pin of the flow that has a SNAT port.
    pub fn of_snat_port<'t>(
        &self,
        flow: &HashedKey,
        id: SnatPort,
        context: &Context<'t>,
    ) -> Option<Located<'t>> {
        let owner = context.shared.snat_table.owner(id);
        let located = if owner == self.me {
            Located::Own(context.flows.find_at(flow, Slot::NOWHERE)?)
        } else {
            let (slot, pin) = self.of(owner)?.lookup(flow)?;
            Located::Remote(Remote { slot, pin })
        };
        let flow_state = located.flow_state();
        let same = flow_state.snat_port() == Some(id) && !flow_state.state().has(State::REMOTE);
        same.then_some(located)
    }

    /// Returns the live pin of a flow, in this or another worker's table, and its backend. Changes
    /// nothing, not even the flow's idle time.
    #[cold]
    pub fn peek<'t>(
        &self,
        flow: &HashedKey,
        hint: Slot,
        context: &Context<'t>,
    ) -> Option<(FlowState, &'t Backend)> {
        let here = context.flows.find_at(flow, hint).map(|hit| hit.flow_state);
        let here = here.and_then(|flow_state| {
            Some((flow_state, alive(flow.protocol(), &flow_state, context)?))
        });
        here.or_else(|| {
            let (remote, backend) = self.find_elsewhere(flow, context, |_| true)?;
            Some((remote.pin.flow_state, backend))
        })
    }

    /// Whether any worker has a live pin of the flow on this backend.
    #[cold]
    pub fn is_pinned_anywhere(
        &self,
        flow: &HashedKey,
        backend: BackendIndex,
        context: &Context<'_>,
    ) -> bool {
        let here = context.flows.find_at(flow, Slot::NOWHERE).filter(|hit| {
            hit.flow_state.backend().index == backend
                && alive(flow.protocol(), &hit.flow_state, context).is_some()
        });
        let on_it = |pinned: &Backend| pinned.id.index == backend;
        here.is_some() || self.find_elsewhere(flow, context, on_it).is_some()
    }
}
