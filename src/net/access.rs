//! Deny and allow lists of sources.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{ADDRESS_BITS, Address, Family, Listen, Network, VipId};

/// Maximum number of prefixes in all deny and allow lists of the configuration. The map of the XDP
/// program has room for some more, which are added at run time.
pub const MAX_LISTED: usize = 2_000_000;

/// Distinct prefixes in order. Copies share their memory.
#[derive(Clone)]
pub struct Prefixes(Arc<[Network]>);

/// Copies are not compared prefix by prefix: lists are compared every second.
impl PartialEq for Prefixes {
    fn eq(&self, other: &Self) -> bool {
        self.is_copy_of(other) || self.0 == other.0
    }
}

impl Eq for Prefixes {}

impl Default for Prefixes {
    fn default() -> Self {
        Self(Arc::new([]))
    }
}

/// The number only: a list may have a million prefixes.
impl fmt::Debug for Prefixes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} prefixes", self.len())
    }
}

impl FromIterator<Network> for Prefixes {
    fn from_iter<T: IntoIterator<Item = Network>>(prefixes: T) -> Self {
        let mut prefixes: Vec<Network> = prefixes.into_iter().collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        Self(prefixes.into())
    }
}

impl Prefixes {
    /// Returns the number of prefixes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Iterates over the prefixes, in order.
    pub fn iter(&self) -> impl Iterator<Item = Network> {
        self.0.iter().copied()
    }

    /// Returns whether the list has this very prefix.
    pub fn has(&self, prefix: Network) -> bool {
        self.0.binary_search(&prefix).is_ok()
    }

    /// Returns whether both are copies of one list. False says nothing about their contents.
    pub fn is_copy_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Returns the longest prefix that contains an address.
    pub fn longest(&self, address: Address) -> Option<Network> {
        let shortest = if address.is_v4() { ADDRESS_BITS - 32 } else { 0 };
        let prefixes = (shortest..=ADDRESS_BITS).rev().map(|len| Network::of(address, len));
        prefixes.into_iter().find(|&prefix| self.has(prefix))
    }

    /// Iterates over the prefixes that are not in `other`.
    pub fn without<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = Network> + 'a {
        let mut others = other.0.iter().copied().peekable();
        let all = if self.is_copy_of(other) { &[] } else { &*self.0 };
        all.iter().copied().filter(move |prefix| {
            while others.next_if(|other| other < prefix).is_some() {}
            others.peek() != Some(prefix)
        })
    }
}

/// The lists of a VIP, or of all VIPs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccessLists {
    /// Sources that are denied.
    pub deny: Prefixes,
    /// If there are any: all other sources are denied.
    pub allow: Prefixes,
}

impl AccessLists {
    /// Returns which of the lists have prefixes.
    pub fn present(&self) -> ListsPresent {
        ListsPresent { deny: !self.deny.is_empty(), allow: !self.allow.is_empty() }
    }
}

/// Which lists of a VIP, or of all VIPs, have prefixes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ListsPresent {
    /// The deny list.
    pub deny: bool,
    /// The allow list.
    pub allow: bool,
}

impl ListsPresent {
    /// Returns whether one of them has prefixes.
    pub const fn any(self) -> bool {
        self.deny || self.allow
    }
}

/// Limits of a VIP for each source and second; 0: none. A source is an IPv4 address or an IPv6 /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRate {
    /// Packets of all kinds.
    pub packets: u32,
    /// TCP: SYNs.
    pub new_flows: u32,
}

/// Lists and rates that the XDP program applies to the packets for a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessCheck {
    /// The listener.
    pub listen: Listen,
    /// Its VIP.
    pub vip: VipId,
    /// The VIP's own lists.
    pub own: ListsPresent,
    /// The first VIP that has the same lists; `None` without own ones.
    pub lists: Option<VipId>,
    /// Limits for each source.
    pub rate: Option<SourceRate>,
}

/// Kind of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListKind {
    /// Its sources are denied.
    Deny,
    /// All other sources are denied.
    Allow,
}

/// A list in the XDP program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListId {
    /// The VIP; `None`: all VIPs.
    pub vip: Option<VipId>,
    /// The kind.
    pub kind: ListKind,
}

/// Key of an entry of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListKey {
    /// The list.
    pub list: ListId,
    /// Family of the sources. The prefix does not show it: one of length 0 is of either.
    pub family: Family,
    /// The prefix.
    pub prefix: Network,
}

impl ListKey {
    /// Returns the key of a prefix of a list.
    pub const fn of(list: ListId, prefix: Network) -> Self {
        Self { list, family: prefix.family(), prefix }
    }

    /// Returns the key of all sources of a family.
    pub const fn all(list: ListId, family: Family) -> Self {
        Self { list, family, prefix: Network::of(Address::from_v6([0; 16]), 0) }
    }
}

/// Entry of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListEntry {
    /// A prefix of the list.
    Listed,
    /// Allow list: the sources that it does not have.
    Others,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    fn prefixes(texts: &[&str]) -> Prefixes {
        texts.iter().map(|text| text.parse::<Network>().unwrap()).collect()
    }

    #[test]
    fn the_longest_prefix_is_found_within_the_family() {
        let list = prefixes(&["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "::/0", "2001:db8::/32"]);
        for (address, expected) in [
            ("10.1.2.3", Some("10.1.2.3")),
            ("10.1.2.4", Some("10.1.0.0/16")),
            ("10.2.0.1", Some("10.0.0.0/8")),
            ("11.0.0.1", None),
            ("2001:db8::1", Some("2001:db8::/32")),
            ("2001:db9::1", Some("::/0")),
        ] {
            let address: std::net::IpAddr = address.parse().unwrap();
            let found = list.longest(address.into()).map(|prefix| prefix.to_string());
            assert_eq!(found.as_deref(), expected, "{address}");
        }
    }

    #[test]
    fn differences_of_lists_are_found_in_order() {
        let (old, new) = (
            prefixes(&["10.0.0.0/8", "10.0.0.0/8", "192.0.2.7", "::1"]),
            prefixes(&["192.0.2.7", "10.0.0.0/16", "2001:db8::/32"]),
        );
        let texts = |a: &Prefixes, b: &Prefixes| {
            a.without(b).map(|prefix| prefix.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(old.len(), 3, "distinct");
        assert_eq!(texts(&new, &old), ["10.0.0.0/16", "2001:db8::/32"]);
        assert_eq!(texts(&old, &new), ["::1", "10.0.0.0/8"]);
        assert_eq!(texts(&old, &old.clone()), [""; 0]);
        assert_eq!(texts(&old, &Prefixes::default()).len(), 3);
    }
}
