//! A thread that changes the lists in the XDP programs. A million prefixes take seconds, in which the
//! control thread goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;
use std::thread;

use tokio::sync::oneshot;

use super::lists::{Lists, Parts};
use super::view::AccessMaps;
use crate::net::{Family, ListEntry, ListId, ListKey, ListKind};

/// Result of an order: the lists are in force, or the reason why not all of them are.
pub type Outcome = Result<(), String>;

/// Lists that shall be in force.
struct Order {
    lists: Lists,
    done: oneshot::Sender<Outcome>,
}

/// The thread that changes the lists. It ends with this value.
pub struct ListLoader {
    orders: mpsc::Sender<Order>,
}

impl ListLoader {
    /// Starts the thread. The maps are empty so far.
    pub fn start(maps: Box<dyn AccessMaps>) -> Self {
        let (orders, received) = mpsc::channel::<Order>();
        let run = move || {
            let mut loaded = Loaded::new(maps);
            for Order { mut lists, done } in &received {
                let mut waiting = vec![done];
                // Of several orders the last one counts.
                while let Ok(order) = received.try_recv() {
                    lists = order.lists;
                    waiting.push(order.done);
                }
                let outcome = loaded.load(&lists);
                for done in waiting {
                    // The sender of the order may not wait.
                    let _ = done.send(outcome.clone());
                }
            }
        };
        // Without a thread, every order fails, which its sender reports.
        let _ = thread::Builder::new().name("lists".to_owned()).spawn(run);
        Self { orders }
    }

    /// Orders lists to be put into force, after those of earlier orders.
    pub fn load(&self, lists: Lists) -> oneshot::Receiver<Outcome> {
        let (done, outcome) = oneshot::channel();
        // Without the thread, the receiver finds no sender.
        let _ = self.orders.send(Order { lists, done });
        outcome
    }
}

/// The maps, and what is in them.
struct Loaded {
    maps: Box<dyn AccessMaps>,
    lists: Lists,
    /// Allow lists with entries for the other sources, which they deny. Whether the list has the
    /// prefix of all IPv6 sources, which shares its key with the entry for the others.
    closed: BTreeMap<ListId, bool>,
}

impl Loaded {
    /// Creates the books of empty maps.
    const fn new(maps: Box<dyn AccessMaps>) -> Self {
        Self { maps, lists: Lists::new(), closed: BTreeMap::new() }
    }

    /// Changes the maps to these lists. A list that fails stays as it was.
    fn load(&mut self, wanted: &Lists) -> Outcome {
        let ids = [wanted, &self.lists].into_iter().flat_map(Lists::iter).map(|(id, _)| id);
        let ids: BTreeSet<ListId> = ids.chain(self.closed.keys().copied()).collect();
        let of = |id| wanted.get(id).cloned().unwrap_or_default();
        let is_full = |id: &ListId| self.change(*id, &of(*id)).is_err();
        let failed: Vec<ListId> = ids.into_iter().filter(is_full).collect();
        // The maps may have room for old or new prefixes, but not for both.
        let old: Vec<Parts> = failed.iter().map(|&id| self.shrink(id, &of(id))).collect();
        let mut outcome = Ok(());
        for (id, old) in failed.into_iter().zip(old) {
            let changed = self.change(id, &of(id));
            if changed.is_err() {
                outcome = outcome.and(changed).and(self.restore(id, old));
            }
        }
        outcome
    }

    /// Changes one list; new prefixes come first, so that no source is admitted or denied for a
    /// moment. An allow list denies other sources only while all of its own are in the map.
    fn change(&mut self, id: ListId, new: &Parts) -> Outcome {
        let old = self.lists.get(id).cloned().unwrap_or_default();
        let closes = id.kind == ListKind::Allow && !new.is_empty();
        let was_closed = self.closed.contains_key(&id);
        if old == *new && self.closed.get(&id).copied() == closes.then(|| has_all_v6(id, new)) {
            return Ok(());
        }
        let mut added = Vec::new();
        let mut add = || {
            for key in keys(id, new, &old).filter(|key| !old.has(key.prefix)) {
                added.push(key);
                self.maps.insert(&key, ListEntry::Listed)?;
            }
            if closes { self.close(id, new) } else { self.open(id) }
        };
        if let Err(reason) = add() {
            self.remove_all(added.into_iter())?;
            if !was_closed {
                self.open(id)?;
            }
            return Err(reason);
        }
        self.remove_all(keys(id, &old, new).filter(|key| !new.has(key.prefix)))?;
        self.lists.set(id, new.clone());
        Ok(())
    }

    /// Removes the prefixes of a list that are not in `new`; returns those that it had.
    fn shrink(&mut self, id: ListId, new: &Parts) -> Parts {
        let old = self.lists.get(id).cloned().unwrap_or_default();
        let gone = keys(id, &old, new).filter(|key| !new.has(key.prefix));
        if self.remove_all(gone).is_ok() {
            self.lists.set(id, old.within(new));
        }
        old
    }

    /// Adds the prefixes of a list again that it had before it was made smaller.
    fn restore(&mut self, id: ListId, old: Parts) -> Outcome {
        let rest = self.lists.get(id).cloned().unwrap_or_default();
        for key in keys(id, &old, &rest).filter(|key| !rest.has(key.prefix)) {
            self.maps.insert(&key, ListEntry::Listed)?;
        }
        self.lists.set(id, old);
        Ok(())
    }

    /// Removes entries, all of them even if one fails.
    fn remove_all(&mut self, keys: impl Iterator<Item = ListKey>) -> Outcome {
        keys.map(|key| self.maps.remove(&key)).fold(Ok(()), Result::and)
    }

    /// Denies the sources that an allow list lacks.
    fn close(&mut self, id: ListId, list: &Parts) -> Outcome {
        let has_all_v6 = has_all_v6(id, list);
        let v6 = if has_all_v6 { ListEntry::Listed } else { ListEntry::Others };
        let there = self.closed.get(&id).copied();
        if there.is_none() {
            // Also in the books if this fails: it may be in the map of one NIC.
            self.closed.insert(id, has_all_v6);
            self.maps.insert(&ListKey::all(id, Family::V4), ListEntry::Others)?;
        }
        if there != Some(has_all_v6) {
            self.maps.insert(&ListKey::all(id, Family::V6), v6)?;
            self.closed.insert(id, has_all_v6);
        }
        Ok(())
    }

    /// Admits the sources that an allow list lacks.
    fn open(&mut self, id: ListId) -> Outcome {
        if self.closed.contains_key(&id) {
            self.remove_all(Family::BOTH.map(|family| ListKey::all(id, family)).into_iter())?;
            self.closed.remove(&id);
        }
        Ok(())
    }
}

fn has_all_v6(id: ListId, list: &Parts) -> bool {
    list.has(ListKey::all(id, Family::V6).prefix)
}

/// Iterates over the keys of a list's prefixes that are not in the same part of `other`. The prefix
/// of all IPv6 sources has the key of an allow list's other sources.
fn keys<'p>(id: ListId, list: &'p Parts, other: &'p Parts) -> impl Iterator<Item = ListKey> + 'p {
    let of_others =
        move |key: &ListKey| id.kind == ListKind::Allow && *key == ListKey::all(id, Family::V6);
    let keys = list.without(other).map(move |prefix| ListKey::of(id, prefix));
    keys.filter(move |key| !of_others(key))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::net::{Network, Prefixes, VipId};

    /// Maps that record every change, and take so many entries.
    #[derive(Default)]
    struct Fake {
        entries: Vec<(ListKey, ListEntry)>,
        calls: Vec<String>,
        room: usize,
    }

    impl AccessMaps for Arc<Mutex<Fake>> {
        fn insert(&mut self, key: &ListKey, entry: ListEntry) -> Result<(), String> {
            let mut fake = self.lock().unwrap();
            // Kernel 6.1 refuses a change of an entry, too, while the map is full.
            if fake.entries.len() >= fake.room {
                return Err("full".to_owned());
            }
            fake.entries.retain(|(there, _)| there != key);
            fake.entries.push((*key, entry));
            fake.calls.push(format!("+{} {entry:?}", key.prefix));
            Ok(())
        }

        fn remove(&mut self, key: &ListKey) -> Result<(), String> {
            let mut fake = self.lock().unwrap();
            fake.entries.retain(|(there, _)| there != key);
            fake.calls.push(format!("-{}", key.prefix));
            Ok(())
        }
    }

    fn loaded(room: usize) -> (Loaded, Arc<Mutex<Fake>>) {
        let fake = Arc::new(Mutex::new(Fake { room, ..Fake::default() }));
        (Loaded::new(Box::new(Arc::clone(&fake))), fake)
    }

    fn calls(fake: &Mutex<Fake>) -> Vec<String> {
        std::mem::take(&mut fake.lock().unwrap().calls)
    }

    fn entries(fake: &Mutex<Fake>) -> Vec<String> {
        let fake = fake.lock().unwrap();
        let texts = fake.entries.iter().map(|(key, entry)| format!("{} {entry:?}", key.prefix));
        let mut texts: Vec<String> = texts.collect();
        texts.sort();
        texts
    }

    fn prefixes(texts: &[&str]) -> Prefixes {
        texts.iter().map(|text| text.parse::<Network>().unwrap()).collect()
    }

    fn lists(kind: ListKind, config: &[&str], runtime: &[&str]) -> Lists {
        let mut lists = Lists::default();
        let parts = Parts { config: prefixes(config), runtime: prefixes(runtime) };
        lists.set(ListId { vip: None, kind }, parts);
        lists
    }

    #[test]
    fn an_allow_list_denies_others_only_while_it_is_complete() {
        let (mut loaded, fake) = loaded(100);
        loaded.load(&lists(ListKind::Allow, &["10.0.0.0/8", "2001:db8::/32"], &[])).unwrap();
        assert_eq!(
            calls(&fake),
            ["+10.0.0.0/8 Listed", "+2001:db8::/32 Listed", "+::/0 Others", "+::/0 Others"]
        );
        loaded.load(&lists(ListKind::Allow, &["10.0.0.0/8", "::/0"], &[])).unwrap();
        assert_eq!(calls(&fake), ["+::/0 Listed", "-2001:db8::/32"]);
        loaded.load(&Lists::default()).unwrap();
        assert_eq!(calls(&fake), ["-::/0", "-::/0", "-10.0.0.0/8"]);
        assert_eq!((entries(&fake).len(), loaded.lists), (0, Lists::default()));
    }

    #[test]
    fn a_prefix_stays_as_long_as_the_file_or_the_command_wants_it() {
        let (mut loaded, fake) = loaded(100);
        for (config, runtime, left) in [
            (&["192.0.2.7"][..], &["192.0.2.7"][..], 1),
            (&["192.0.2.7"], &[], 1),
            (&[], &["192.0.2.7"], 1),
            (&["::/0"], &[], 1),
            (&[], &[], 0),
        ] {
            loaded.load(&lists(ListKind::Deny, config, runtime)).unwrap();
            assert_eq!(entries(&fake).len(), left, "{config:?} {runtime:?}");
        }
    }

    #[test]
    fn a_list_that_has_failed_leaves_nothing_behind_and_is_repeated() {
        let (mut loaded, fake) = loaded(3);
        let old = lists(ListKind::Deny, &["192.0.2.1", "192.0.2.2"], &[]);
        loaded.load(&old).unwrap();
        let grown =
            lists(ListKind::Deny, &["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"], &[]);
        assert_eq!(loaded.load(&grown), Err("full".to_owned()));
        assert_eq!(entries(&fake), ["192.0.2.1 Listed", "192.0.2.2 Listed"]);
        fake.lock().unwrap().room = 4;
        loaded.load(&grown).unwrap();
        assert_eq!(entries(&fake).len(), 4);
        calls(&fake);
        loaded.load(&grown).unwrap();
        assert_eq!(calls(&fake), [""; 0]);
    }

    /// The maps have room for one of the two lists, but not for both.
    #[test]
    fn a_full_map_makes_room_by_what_is_no_longer_wanted() {
        for kind in [ListKind::Deny, ListKind::Allow] {
            let (mut loaded, fake) = loaded(4);
            loaded.load(&lists(kind, &["192.0.2.1", "192.0.2.2"], &[])).unwrap();
            let replaced = lists(kind, &["192.0.2.2", "192.0.2.3"], &[]);
            fake.lock().unwrap().room = entries(&fake).len();
            loaded.load(&replaced).unwrap();
            let listed = entries(&fake).into_iter().filter(|text| text.ends_with("Listed"));
            let listed: Vec<String> = listed.collect();
            assert_eq!(listed, ["192.0.2.2 Listed", "192.0.2.3 Listed"], "{kind:?}");
        }
    }

    /// An allow list for which there is no room denies no source, also when it is given up.
    #[test]
    fn an_allow_list_that_cannot_be_loaded_stays_open() {
        for room in 0..4 {
            let (mut loaded, fake) = loaded(room);
            let wanted = lists(ListKind::Allow, &["192.0.2.1", "192.0.2.2"], &[]);
            assert_eq!(loaded.load(&wanted), Err("full".to_owned()));
            assert_eq!(entries(&fake), [""; 0], "room for {room}");
            loaded.load(&Lists::default()).unwrap();
        }
    }

    /// A list for which there is no room, with or without its old prefixes, leaves those in force.
    #[test]
    fn a_list_that_fits_in_no_way_stays_as_it_was() {
        for kind in [ListKind::Deny, ListKind::Allow] {
            let (mut loaded, fake) = loaded(100);
            let old = lists(kind, &["192.0.2.1", "192.0.2.2"], &["192.0.2.9"]);
            loaded.load(&old).unwrap();
            let before = entries(&fake);
            fake.lock().unwrap().room = before.len() + 1;
            // A prefix of run time is in the file now, too.
            let new = ["192.0.2.9", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"];
            let new = lists(kind, &[&new[..], &["192.0.2.6", "192.0.2.7"]].concat(), &[]);
            for _ in 0..2 {
                assert_eq!(loaded.load(&new), Err("full".to_owned()), "{kind:?}");
                assert_eq!((entries(&fake), &loaded.lists), (before.clone(), &old), "{kind:?}");
            }
            loaded.load(&old).unwrap();
            assert_eq!(entries(&fake), before, "{kind:?}");
            fake.lock().unwrap().room = 100;
            loaded.load(&new).unwrap();
            let listed = entries(&fake).iter().filter(|text| text.ends_with("Listed")).count();
            assert_eq!(listed, 7, "{kind:?}");
        }
    }

    /// All IPv6 sources are no longer allowed, and the entry cannot be changed at first.
    #[test]
    fn the_prefix_of_all_sources_leaves_a_full_map() {
        let (mut loaded, fake) = loaded(100);
        loaded.load(&lists(ListKind::Allow, &["::/0", "192.0.2.1"], &[])).unwrap();
        fake.lock().unwrap().room = entries(&fake).len();
        let new = lists(ListKind::Allow, &["192.0.2.1"], &[]);
        assert_eq!(loaded.load(&new), Err("full".to_owned()));
        fake.lock().unwrap().room = 100;
        loaded.load(&new).unwrap();
        assert_eq!(entries(&fake), ["192.0.2.1 Listed", "::/0 Others", "::/0 Others"]);
    }

    #[test]
    fn a_list_may_grow_by_what_another_one_gives_up() {
        let (mut loaded, fake) = loaded(3);
        let both = |all: &[&str], own: &[&str]| {
            let mut lists = lists(ListKind::Deny, all, &[]);
            let parts = Parts { config: prefixes(own), runtime: Prefixes::default() };
            lists.set(ListId { vip: Some(VipId(3)), kind: ListKind::Deny }, parts);
            lists
        };
        loaded.load(&both(&["192.0.2.1"], &["192.0.2.2", "192.0.2.3"])).unwrap();
        loaded.load(&both(&["192.0.2.1", "192.0.2.4"], &["192.0.2.2"])).unwrap();
        assert_eq!(entries(&fake).len(), 3);
    }
}
