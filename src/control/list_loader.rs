//! A thread that changes the lists in the XDP programs. A million prefixes take seconds, in which the
//! control thread goes on.

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
    pub fn start(mut maps: Box<dyn AccessMaps>) -> Self {
        let (orders, received) = mpsc::channel::<Order>();
        let run = move || {
            let mut loaded = Lists::default();
            for Order { lists, done } in received {
                // The sender of the order may not wait.
                let _ = done.send(load(&mut *maps, &mut loaded, &lists));
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

/// Changes the maps from `loaded` to `wanted`. A list that fails stays as it was in `loaded`, so that
/// the next order repeats its changes.
fn load(maps: &mut dyn AccessMaps, loaded: &mut Lists, wanted: &Lists) -> Outcome {
    let ids = |lists: &Lists| lists.iter().map(|(id, _)| id).collect::<Vec<_>>();
    let mut outcome = Ok(());
    for id in ids(wanted).into_iter().chain(ids(loaded)) {
        let old = loaded.get(id).cloned().unwrap_or_default();
        let new = wanted.get(id).cloned().unwrap_or_default();
        match change(maps, id, &old, &new) {
            Ok(()) => loaded.set(id, new),
            Err(reason) => outcome = outcome.and(Err(reason)),
        }
    }
    outcome
}

/// Changes one list. An allow list denies other sources only while all of its own are in the map.
fn change(maps: &mut dyn AccessMaps, id: ListId, old: &Parts, new: &Parts) -> Outcome {
    if old == new {
        return Ok(());
    }
    let is_allow = id.kind == ListKind::Allow;
    // The prefix of all IPv6 sources has the key of the other sources.
    let of_others = |key: &ListKey| is_allow && *key == ListKey::all(id, Family::V6);
    let keys = |parts: &Parts, other: &Parts| {
        let keys = parts.without(other).map(|prefix| ListKey::of(id, prefix));
        keys.filter(|key| !of_others(key)).collect::<Vec<_>>()
    };
    for key in keys(new, old) {
        maps.insert(&key, ListEntry::Listed)?;
    }
    if is_allow {
        for family in [Family::V4, Family::V6] {
            let key = ListKey::all(id, family);
            match () {
                () if new.is_empty() => maps.remove(&key)?,
                () if family == Family::V6 && new.has(key.prefix) => {
                    maps.insert(&key, ListEntry::Listed)?;
                }
                () => maps.insert(&key, ListEntry::Others)?,
            }
        }
    }
    for key in keys(old, new).into_iter().filter(|key| !new.has(key.prefix)) {
        maps.remove(&key)?;
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;
    use crate::net::{Network, Prefixes};

    /// Maps that record every change, and take so many entries.
    #[derive(Default)]
    struct Fake {
        entries: Vec<(ListKey, ListEntry)>,
        calls: Vec<String>,
        room: usize,
    }

    impl AccessMaps for Fake {
        fn insert(&mut self, key: &ListKey, entry: ListEntry) -> Result<(), String> {
            self.entries.retain(|(there, _)| there != key);
            if self.entries.len() >= self.room {
                return Err("full".to_owned());
            }
            self.entries.push((*key, entry));
            self.calls.push(format!("+{} {entry:?}", key.prefix));
            Ok(())
        }

        fn remove(&mut self, key: &ListKey) -> Result<(), String> {
            self.entries.retain(|(there, _)| there != key);
            self.calls.push(format!("-{}", key.prefix));
            Ok(())
        }
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
        let mut fake = Fake { room: 100, ..Fake::default() };
        let mut loaded = Lists::default();
        let some = lists(ListKind::Allow, &["10.0.0.0/8", "2001:db8::/32"], &[]);
        load(&mut fake, &mut loaded, &some).unwrap();
        assert_eq!(
            std::mem::take(&mut fake.calls),
            ["+10.0.0.0/8 Listed", "+2001:db8::/32 Listed", "+::/0 Others", "+::/0 Others",]
        );
        let all = lists(ListKind::Allow, &["10.0.0.0/8", "::/0"], &[]);
        load(&mut fake, &mut loaded, &all).unwrap();
        assert_eq!(
            std::mem::take(&mut fake.calls),
            ["+::/0 Others", "+::/0 Listed", "-2001:db8::/32",]
        );
        load(&mut fake, &mut loaded, &Lists::default()).unwrap();
        assert_eq!(std::mem::take(&mut fake.calls), ["-::/0", "-::/0", "-10.0.0.0/8"]);
        assert_eq!((fake.entries.len(), loaded), (0, Lists::default()));
    }

    #[test]
    fn a_prefix_stays_as_long_as_the_file_or_the_command_wants_it() {
        let mut fake = Fake { room: 100, ..Fake::default() };
        let mut loaded = Lists::default();
        for (config, runtime, left) in [
            (&["192.0.2.7"][..], &["192.0.2.7"][..], 1),
            (&["192.0.2.7"], &[], 1),
            (&[], &["192.0.2.7"], 1),
            (&["::/0"], &[], 1),
            (&[], &[], 0),
        ] {
            load(&mut fake, &mut loaded, &lists(ListKind::Deny, config, runtime)).unwrap();
            assert_eq!(fake.entries.len(), left, "{config:?} {runtime:?}");
        }
    }

    #[test]
    fn what_has_failed_is_repeated() {
        let mut fake = Fake { room: 1, ..Fake::default() };
        let mut loaded = Lists::default();
        let wanted = lists(ListKind::Deny, &["192.0.2.7", "192.0.2.8"], &[]);
        assert_eq!(load(&mut fake, &mut loaded, &wanted), Err("full".to_owned()));
        fake.room = 2;
        load(&mut fake, &mut loaded, &wanted).unwrap();
        assert_eq!(fake.entries.len(), 2);
        fake.calls.clear();
        load(&mut fake, &mut loaded, &wanted).unwrap();
        assert_eq!(fake.calls, [""; 0]);
    }
}
