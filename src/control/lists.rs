//! The deny and allow lists in force: those of the configuration, and those of run time.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tokio::time::Instant;

use super::state::{Registry, VipEntry};
use crate::forwarding::explain::Step;
use crate::net::{
    AccessCheck, AccessLists, ListId, ListKind, ListsPresent, Network, Prefixes, SteerRules, VipId,
};

/// Prefixes of one list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts {
    /// Prefixes of the configuration.
    pub config: Prefixes,
    /// Prefixes of `holdfast deny`.
    pub runtime: Prefixes,
}

impl Parts {
    /// Returns whether there are no prefixes.
    pub fn is_empty(&self) -> bool {
        self.config.is_empty() && self.runtime.is_empty()
    }

    /// Returns whether the list has this very prefix.
    pub fn has(&self, prefix: Network) -> bool {
        self.config.has(prefix) || self.runtime.has(prefix)
    }

    /// Returns whether both have the same prefixes, in whichever part.
    fn is_same(&self, other: &Self) -> bool {
        let has_all = |a: &Self, b: &Self| {
            a.config.iter().chain(a.runtime.iter()).all(|prefix| b.has(prefix))
        };
        self == other || has_all(self, other) && has_all(other, self)
    }

    /// Returns the prefixes that `other` has in either part.
    #[must_use]
    pub fn within(&self, other: &Self) -> Self {
        let within =
            |part: &Prefixes| part.iter().filter(|&prefix| other.has(prefix)).collect::<Prefixes>();
        Self { config: within(&self.config), runtime: within(&self.runtime) }
    }

    /// Iterates over the prefixes that are not in the same part of `other`.
    pub fn without<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = Network> + 'a {
        self.config.without(&other.config).chain(self.runtime.without(&other.runtime))
    }
}

/// All lists that have prefixes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lists(BTreeMap<ListId, Parts>);

impl Lists {
    /// Returns no lists.
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Returns the lists in force. `global` are those of the configuration for all VIPs.
    pub fn of(global: &AccessLists, registry: &Registry) -> Self {
        let own = registry.all_vips().map(|vip| (Some(vip.id), &vip.config.access));
        let mut lists = BTreeMap::new();
        for (vip, access) in own.chain([(None, global)]) {
            let deny = Parts { config: access.deny.clone(), runtime: registry.denied().of(vip) };
            let allow = Parts { config: access.allow.clone(), runtime: Prefixes::default() };
            for (kind, parts) in [(ListKind::Deny, deny), (ListKind::Allow, allow)] {
                if !parts.is_empty() {
                    lists.insert(ListId { vip, kind }, parts);
                }
            }
        }
        Self(lists)
    }

    /// Returns a list.
    pub fn get(&self, list: ListId) -> Option<&Parts> {
        self.0.get(&list)
    }

    /// Changes a list; one without prefixes is removed.
    pub fn set(&mut self, list: ListId, parts: Parts) {
        if parts.is_empty() {
            self.0.remove(&list)
        } else {
            self.0.insert(list, parts)
        };
    }

    /// Iterates over the lists.
    pub fn iter(&self) -> impl Iterator<Item = (ListId, &Parts)> {
        self.0.iter().map(|(id, parts)| (*id, parts))
    }

    /// Returns which lists of a VIP, or of all VIPs, have prefixes.
    fn present(&self, vip: Option<VipId>) -> ListsPresent {
        let has = |kind| self.0.contains_key(&ListId { vip, kind });
        ListsPresent { deny: has(ListKind::Deny), allow: has(ListKind::Allow) }
    }

    /// Returns the first VIP with the same lists, for each VIP that has any.
    ///
    /// Cost: a comparison for each pair of VIPs, of which lists that differ end early.
    fn alike(&self) -> BTreeMap<VipId, VipId> {
        let is_same = |one, other| {
            let of = |vip, kind| self.get(ListId { vip: Some(vip), kind });
            [ListKind::Deny, ListKind::Allow].iter().all(|&kind| {
                match (of(one, kind), of(other, kind)) {
                    (Some(one), Some(other)) => one.is_same(other),
                    (one, other) => one.is_none() && other.is_none(),
                }
            })
        };
        let mut firsts: Vec<VipId> = Vec::new();
        let mut alike = BTreeMap::new();
        for vip in self.0.keys().filter_map(|list| list.vip) {
            let first = firsts.iter().copied().find(|&first| is_same(first, vip));
            if first.is_none() {
                firsts.push(vip);
            }
            alike.insert(vip, first.unwrap_or(vip));
        }
        alike
    }

    /// Adds lists, and rates of sources, to the other rules of the XDP program.
    #[must_use]
    pub fn steered(&self, rules: SteerRules, registry: &Registry) -> SteerRules {
        let has_rate = |vip: &VipEntry| vip.config.rate.is_some();
        if self.0.is_empty() && !registry.all_vips().any(has_rate) {
            return rules;
        }
        let alike = self.alike();
        let check = |vip: &VipEntry| {
            let (id, own) = (vip.id, self.present(Some(vip.id)));
            let (rate, lists) = (vip.config.rate, alike.get(&id).copied());
            let check = move |listen| AccessCheck { listen, vip: id, own, lists, rate };
            vip.listens().map(check).collect::<Vec<_>>()
        };
        let checks = registry.all_vips().flat_map(check).collect();
        SteerRules { checks, global_lists: self.present(None), ..rules }
    }

    /// Explains why packets of a client to a VIP are dropped, if they are.
    pub fn explain(&self, vip: &VipEntry, client: IpAddr, registry: &Registry) -> Option<Step> {
        let step = |outcome: &str, why: String| {
            Some(Step { stage: "xdp".to_owned(), outcome: outcome.to_owned(), why })
        };
        let scopes =
            [(None, "[access]".to_owned()), (Some(vip.id), format!("VIP {}", vip.config.name))];
        for (scope, name) in &scopes {
            let Some(list) = self.get(ListId { vip: *scope, kind: ListKind::Deny }) else {
                continue;
            };
            if let Some(prefix) = list.config.longest(client.into()) {
                return step("dropped: denied", format!("{prefix} is in the deny list of {name}"));
            }
            if let Some(prefix) = list.runtime.longest(client.into()) {
                let end = registry.denied().end(*scope, prefix);
                let left = end.map(|end| end.saturating_duration_since(Instant::now()).as_secs());
                let left = left.map_or_else(String::new, |left| format!(", for {left} s more"));
                let why = format!(
                    "`holdfast deny add` has put {prefix} on the deny list of {name}{left}"
                );
                return step("dropped: denied", why);
            }
        }
        for (scope, name) in &scopes {
            let list = self.get(ListId { vip: *scope, kind: ListKind::Allow });
            if list.is_some_and(|list| list.config.longest(client.into()).is_none()) {
                let why = format!("the allow list of {name} has no prefix with {client}");
                return step("dropped: not allowed", why);
            }
        }
        None
    }
}
