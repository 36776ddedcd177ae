//! Deny lists that are changed while the process runs: `holdfast deny`.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::saved::{Moment, SavedDenied};
use crate::net::{Address, Network, Prefixes, VipId};

/// Maximum number of prefixes: they are saved as text with each change.
pub const MAX_DENIED: usize = 10_000;

/// Prefixes that were denied at run time, of all VIPs (`None`) or of one.
#[derive(Debug, Default)]
pub struct Denied(BTreeMap<(Option<VipId>, Network), Option<Instant>>);

/// Result of an addition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// The prefix is new.
    New,
    /// The prefix was there; its end is another one now.
    Again,
    /// There is no room.
    Full,
}

impl Denied {
    /// Adds a prefix until `end`; `None`: until it is removed.
    pub fn add(&mut self, vip: Option<VipId>, prefix: Network, end: Option<Instant>) -> Added {
        let there = self.0.contains_key(&(vip, prefix));
        if !there && self.0.len() >= MAX_DENIED {
            return Added::Full;
        }
        self.0.insert((vip, prefix), end);
        if there { Added::Again } else { Added::New }
    }

    /// Removes a prefix; returns whether it was there.
    pub fn remove(&mut self, vip: Option<VipId>, prefix: Network) -> bool {
        self.0.remove(&(vip, prefix)).is_some()
    }

    /// Removes and returns the prefixes that have met their end.
    pub fn expire(&mut self, now: Instant) -> Vec<(Option<VipId>, Network)> {
        let has_ended = |end: Option<Instant>| end.is_some_and(|end| end <= now);
        let ended = self.0.iter().filter(|(_, end)| has_ended(**end)).map(|(key, _)| *key);
        let ended: Vec<_> = ended.collect();
        for key in &ended {
            self.0.remove(key);
        }
        ended
    }

    /// Keeps the prefixes of these VIPs only, and those of all VIPs.
    pub fn retain(&mut self, exists: impl Fn(VipId) -> bool) {
        self.0.retain(|(vip, _), _| vip.is_none_or(&exists));
    }

    /// Returns the prefixes of a VIP, or of all VIPs.
    pub fn of(&self, vip: Option<VipId>) -> Prefixes {
        let first = (vip, Network::of(Address::from_v6([0; 16]), 0));
        let all = self.0.range(first..).map(|(key, _)| key).take_while(|(of, _)| *of == vip);
        all.map(|(_, prefix)| *prefix).collect()
    }

    /// Iterates over all prefixes with their ends, those of all VIPs first.
    pub fn iter(&self) -> impl Iterator<Item = (Option<VipId>, Network, Option<Instant>)> {
        self.0.iter().map(|(&(vip, prefix), &end)| (vip, prefix, end))
    }

    /// Returns the end of a prefix, if it has one.
    pub fn end(&self, vip: Option<VipId>, prefix: Network) -> Option<Instant> {
        self.0.get(&(vip, prefix)).copied().flatten()
    }

    /// Returns the prefixes in the form that outlives the process.
    pub fn save(&self, moment: &Moment) -> Vec<SavedDenied> {
        let saved = |(vip, prefix, end): (Option<VipId>, Network, Option<Instant>)| SavedDenied {
            vip: vip.map(|vip| vip.0),
            prefix,
            until: end.map(|end| moment.ticks_at(end)),
        };
        self.iter().map(saved).collect()
    }

    /// Restores saved prefixes.
    pub fn restore(saved: Vec<SavedDenied>, moment: &Moment) -> Self {
        let entry = |SavedDenied { vip, prefix, until }| {
            ((vip.map(VipId), prefix), until.map(|until| moment.instant_at(until)))
        };
        Self(saved.into_iter().map(entry).collect())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::units::Ticks;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn prefixes_end_with_their_time_or_their_vip() {
        let now = Instant::now();
        let later = now + Duration::from_secs(60);
        let mut denied = Denied::default();
        assert_eq!(denied.add(None, network("192.0.2.0/24"), None), Added::New);
        assert_eq!(denied.add(None, network("192.0.2.7"), Some(later)), Added::New);
        assert_eq!(denied.add(Some(VipId(3)), network("192.0.2.7"), Some(later)), Added::New);
        assert_eq!(denied.add(Some(VipId(3)), network("192.0.2.7"), None), Added::Again);
        assert_eq!(denied.expire(now), []);
        assert_eq!(denied.expire(later), [(None, network("192.0.2.7"))]);
        assert_eq!(denied.of(None), [network("192.0.2.0/24")].into_iter().collect());
        denied.retain(|vip| vip == VipId(3));
        assert_eq!(denied.iter().count(), 2);
        denied.retain(|_| false);
        assert_eq!(denied.iter().count(), 1, "those of all VIPs stay");
        assert!(denied.remove(None, network("192.0.2.0/24")));
        assert!(!denied.remove(None, network("192.0.2.0/24")));
    }

    #[test]
    fn prefixes_outlive_the_process_with_what_is_left_of_their_time() {
        let instant = Instant::now();
        let mut denied = Denied::default();
        let end = instant + Duration::from_secs(60);
        denied.add(Some(VipId(1)), network("2001:db8::/32"), Some(end));
        denied.add(None, network("192.0.2.7"), None);
        // A process that starts 10 s later.
        let moment = Moment { instant: instant + Duration::from_secs(3), ticks: Ticks(2000) };
        let saved = denied.save(&Moment { instant, ticks: Ticks(1000) });
        let restored = Denied::restore(saved, &moment);
        let all: Vec<_> = restored.iter().collect();
        assert_eq!(
            all,
            [
                (None, network("192.0.2.7"), None),
                (Some(VipId(1)), network("2001:db8::/32"), Some(instant + Duration::from_secs(53))),
            ]
        );
    }

    #[test]
    fn there_is_room_for_so_many_only() {
        let mut denied = Denied::default();
        for number in 0..u32::try_from(MAX_DENIED).unwrap() {
            let [_, a, b, c] = number.to_be_bytes();
            assert_eq!(denied.add(None, [10, a, b, c].into(), None), Added::New);
        }
        assert_eq!(denied.add(None, network("192.0.2.7"), None), Added::Full);
        assert_eq!(denied.add(None, network("10.0.0.7"), None), Added::Again);
    }
}
