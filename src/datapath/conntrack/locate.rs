//! Part of the stage conntrack: where the pin of a flow is.
//!
//! ```text
//! own table --pin--------------> here
//!     |  '----remote entry-----> the owner's table, by its number
//!     '-------nothing----------> the tables of all other workers
//! SNAT port ----owner's number-> that worker's table
//! ```
//!
//! Reads: the flow tables of all workers. Cost: a miss, or a remote entry that is not fresh, looks into
//! other tables; they change nothing here.

use std::sync::Arc;

use super::event::alive;
use crate::datapath::context::Context;
use crate::flow::entry::{FlowState, Pin, State};
use crate::flow::snat::{SnatAllocator, SnatPort};
use crate::flow::table::{FlowTable, Hit, Slot};
use crate::flow::writer::FlowWriter;
use crate::forwarding::table::Backend;
use crate::net::{BackendIndex, HashedKey, TableSecret};

/// The flow tables of all workers as one of them has them: it writes its own.
#[derive(Debug)]
pub(super) struct Tables {
    /// Writes this worker's table.
    pub writer: FlowWriter,
    /// Those of all workers, in their order.
    pub all: Arc<[Arc<FlowTable>]>,
    /// The SNAT ports that are this worker's to give.
    pub snat_allocator: SnatAllocator,
    /// This worker.
    pub me: u8,
}

/// A pin in another worker's table.
pub(super) struct Remote {
    /// Its place there.
    pub slot: Slot,
    /// As it was read.
    pub pin: Pin,
}

/// A pin, in whichever table.
pub(super) enum Located<'h> {
    /// In this worker's.
    Own(Hit<'h>),
    /// In another worker's.
    Remote(Remote),
}

impl Located<'_> {
    /// Contents of the pin.
    pub const fn track(&self) -> &FlowState {
        match self {
            Self::Own(hit) => &hit.flow_state,
            Self::Remote(remote) => &remote.pin.flow_state,
        }
    }
}

impl Tables {
    /// The tables of worker `me`; `None` if it has none, or another worker writes it.
    pub fn new(all: Arc<[Arc<FlowTable>]>, snat_allocator: SnatAllocator, me: u8) -> Option<Self> {
        let writer = FlowWriter::new(Arc::clone(all.get(usize::from(me))?))?;
        Some(Self { writer, all, snat_allocator, me })
    }

    /// The secret of the flow hashes.
    pub fn secret(&self) -> &TableSecret {
        self.writer.table().secret()
    }

    /// The table of a worker.
    pub fn of(&self, worker: u8) -> Option<&FlowTable> {
        self.all.get(usize::from(worker)).map(Arc::as_ref)
    }

    /// The pin that a remote entry stands for, unless the flow was pinned to another backend since.
    pub fn owned(&self, flow: &HashedKey, entry: &FlowState) -> Option<Remote> {
        let (slot, pin) = self.of(entry.owner())?.lookup(flow)?;
        let same = !pin.flow_state.state().has(State::REMOTE)
            && pin.flow_state.backend() == entry.backend();
        same.then_some(Remote { slot, pin })
    }

    /// A live pin of the flow, in another worker's table, that `wanted` takes, and its backend.
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
        // The ports may be in use again since, at yet another worker.
        Some(found.find(|(remote, _)| !is_terminated(remote)).unwrap_or(first))
    }

    /// The pin of the flow that has a SNAT port.
    pub fn of_binding<'t>(
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
        let flow_state = located.track();
        let same = flow_state.snat_port() == Some(id) && !flow_state.state().has(State::REMOTE);
        same.then_some(located)
    }

    /// The live pin of a flow, in whichever table, and its backend. Changes nothing, also not how long it
    /// lives.
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
