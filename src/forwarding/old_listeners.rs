//! Addresses and ports that VIPs have lost by a reload and that still have flows.
//!
//! Searched only if no VIP listens there: a VIP that took over the address and port gets its
//! packets.

use hashbrown::HashMap;

use super::service::FlowAction;
use crate::net::{Listen, ListenKey, VipId, exact};

/// An address and ports that a VIP no longer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OldListen {
    /// Address and ports.
    pub listen: Listen,
    /// Treatment of the flows there: [`FlowAction::Keep`] or, with TCP, [`FlowAction::Reset`].
    pub flow_action: FlowAction,
}

/// Listeners lost by reloads. Usually empty.
#[derive(Debug, Default)]
pub(super) struct OldListeners {
    exact: HashMap<ListenKey, (VipId, FlowAction)>,
    others: Vec<(Listen, VipId, FlowAction)>,
}

impl OldListeners {
    /// Adds a listener; of two with one address and port, the later wins.
    pub(super) fn add(&mut self, old: OldListen, vip: VipId) {
        let OldListen { listen, flow_action } = old;
        match exact(listen).filter(|key| key.port != 0) {
            Some(key) => _ = self.exact.insert(key, (vip, flow_action)),
            None => self.others.push((listen, vip, flow_action)),
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.others.is_empty()
    }

    /// The VIP that listened on `key`, and the treatment of its flows there.
    ///
    /// Cost: a hash look-up, and one comparison for each prefix and range.
    pub(super) fn find(&self, key: ListenKey) -> Option<(VipId, FlowAction)> {
        let within = |(listen, ..): &&(Listen, VipId, FlowAction)| listen.contains(key);
        self.exact.get(&key).copied().or_else(|| {
            self.others.iter().rfind(within).map(|&(_, vip, flow_action)| (vip, flow_action))
        })
    }
}
