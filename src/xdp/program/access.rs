//! Deny and allow lists, and rates, in the form of the XDP program's maps.
//!
//! ```text
//!  access word      of each listener and area: the lists that apply, and the VIP's slot
//!  access           (slot, kind, family, prefix) -> listed, or "others" of an allow list
//!  rates            slot -> limits for each source
//!  sources          (slot, source) -> packets in the present second
//!  drop_counts      slot -> packets that lists and rates dropped
//! ```

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{MapData, MapError};
use hashbrown::HashMap;

use super::error::{ProgramError, map_error};
use crate::net::{
    AccessCheck, Family, ListEntry, ListKey, ListKind, Listen, ListenKey, ListsPresent, Network,
    SourceRate, SteerRules, VipId, exact,
};

/// Bits of an access word, as in steer.bpf.c.
mod bit {
    pub const GLOBAL_DENY: u32 = 0x0001_0000;
    pub const GLOBAL_ALLOW: u32 = 0x0002_0000;
    pub const OWN_DENY: u32 = 0x0004_0000;
    pub const OWN_ALLOW: u32 = 0x0008_0000;
    pub const RATED: u32 = 0x0010_0000;
}

/// Slot of packets that may be for several VIPs, and of the lists of all VIPs.
pub(super) const NO_VIP: u32 = 0;

/// Returns the slot of a VIP.
pub(super) fn slot(vip: VipId) -> u32 {
    u32::from(vip.0) + 1
}

/// Access words of listeners and areas.
#[derive(Debug, Default)]
pub(super) struct Words {
    global: u32,
    exact: HashMap<ListenKey, AccessCheck>,
    /// By network: all listeners, and those other than single ports of single addresses.
    networks: HashMap<Network, Vec<(AccessCheck, bool)>>,
    lens: BTreeSet<u8>,
}

impl Words {
    pub(super) fn new(rules: &SteerRules) -> Self {
        let mut words = Self { global: global(rules.global_lists), ..Self::default() };
        for &check in &rules.checks {
            let Listen { network, .. } = check.listen;
            let key = exact(check.listen);
            if let Some(key) = key {
                words.exact.insert(key, check);
            }
            words.networks.entry(network).or_default().push((check, key.is_none()));
            words.lens.insert(network.len());
        }
        words
    }

    /// Returns the word of a single port, or of all ports, of a single address.
    pub(super) fn of_key(&self, key: &ListenKey) -> u32 {
        self.exact.get(key).map_or(0, |check| self.word(check))
    }

    /// Returns the words of an area: for packets that match by a port range, by all ports or by all
    /// protocols, and for packets that match by their address alone.
    pub(super) fn of_area(&self, network: Network) -> [u32; 2] {
        let lens = self.lens.iter().take_while(|&&len| len <= network.len());
        let around =
            lens.filter_map(|&len| self.networks.get(&Network::of(network.address(), len)));
        let (mut by_port, mut all) = (Common::default(), Common::default());
        for (check, is_by_port) in around.flatten() {
            all.add(check);
            if *is_by_port {
                by_port.add(check);
            }
        }
        // The configuration gives the same lists to VIPs that share ports and addresses. Prefixes of
        // run time may differ after a start with another configuration.
        [(by_port, true), (all, false)].map(|(common, by_port)| match common.first {
            None => 0,
            Some(only) if !common.differs => self.word(only),
            Some(first) if by_port || common.lists.is_some() => {
                self.global | own(first.own) | slot(first.vip)
            }
            Some(_) => self.global | NO_VIP,
        })
    }

    /// Returns the word of a listener.
    fn word(&self, check: &AccessCheck) -> u32 {
        let rated = if check.rate.is_some() { bit::RATED } else { 0 };
        self.global | own(check.own) | rated | slot(check.vip)
    }
}

/// Returns the limits for each source by slot: packets, SYNs.
pub(super) fn rates(rules: &SteerRules) -> BTreeMap<u32, [u32; 2]> {
    let rate = |check: &AccessCheck| {
        let SourceRate { packets, new_flows } = check.rate?;
        Some((slot(check.vip), [packets, new_flows]))
    };
    rules.checks.iter().filter_map(rate).collect()
}

fn global(present: ListsPresent) -> u32 {
    bits(present, bit::GLOBAL_DENY, bit::GLOBAL_ALLOW)
}

fn own(present: ListsPresent) -> u32 {
    bits(present, bit::OWN_DENY, bit::OWN_ALLOW)
}

fn bits(present: ListsPresent, deny: u32, allow: u32) -> u32 {
    let bit = |present, bit| if present { bit } else { 0 };
    bit(present.deny, deny) | bit(present.allow, allow)
}

/// What listeners have in common.
#[derive(Default)]
struct Common<'c> {
    first: Option<&'c AccessCheck>,
    /// They are of several VIPs.
    differs: bool,
    /// [`AccessCheck::lists`] of all of them.
    lists: Option<VipId>,
}

impl<'c> Common<'c> {
    fn add(&mut self, check: &'c AccessCheck) {
        let Some(first) = self.first else {
            (self.first, self.lists) = (Some(check), check.lists);
            return;
        };
        self.differs |= first.vip != check.vip;
        self.lists = self.lists.filter(|lists| check.lists == Some(*lists));
    }
}

/// `struct listed_prefix` of steer.bpf.c, without its length: list, address.
type Data = [u8; 20];

/// The lists of one NIC's program. They may be changed by another thread than its rules.
pub struct AccessMap {
    interface: String,
    entries: LpmTrie<MapData, Data, u32>,
}

impl AccessMap {
    pub(super) fn new(interface: &str, map: aya::maps::Map) -> Result<Self, MapError> {
        Ok(Self { interface: interface.to_owned(), entries: LpmTrie::try_from(map)? })
    }

    /// Adds or changes an entry.
    ///
    /// # Errors
    /// [`ProgramError::Map`]: the map is full, or the kernel has no memory.
    pub fn insert(&mut self, key: &ListKey, entry: ListEntry) -> Result<(), ProgramError> {
        let value = match entry {
            ListEntry::Listed => 1,
            ListEntry::Others => 2,
        };
        let inserted = self.entries.insert(&map_key(key), value, 0);
        inserted.map_err(map_error(&self.interface, "add an entry", "access"))
    }

    /// Removes an entry, if it is there.
    ///
    /// # Errors
    /// [`ProgramError::Map`]; none is expected.
    pub fn remove(&mut self, key: &ListKey) -> Result<(), ProgramError> {
        match self.entries.remove(&map_key(key)) {
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            removed => removed.map_err(map_error(&self.interface, "remove an entry", "access")),
        }
    }
}

fn map_key(ListKey { list, family, prefix }: &ListKey) -> Key<Data> {
    let kind = match list.kind {
        ListKind::Deny => 0,
        ListKind::Allow => 2,
    };
    let family = match family {
        Family::V4 => 0,
        Family::V6 => 1,
    };
    let number = list.vip.map_or(NO_VIP, slot) << 2 | kind | family;
    let mut data = [0; 20];
    let bytes = number.to_be_bytes().into_iter().chain(prefix.address().octets());
    data.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    Key::new(32 + u32::from(prefix.len()), data)
}
