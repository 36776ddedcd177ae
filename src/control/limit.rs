//! Limits of flows per backend: which backends are full.

/// State of a backend's limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limit {
    full: bool,
    /// New flows that were refused so far.
    refused: u64,
}

impl Limit {
    /// Whether the backend is, or was a moment ago, at its limit.
    pub const fn is_full(&self) -> bool {
        self.full
    }

    /// Takes a reading: flows now, and new flows refused so far. Returns whether the backend has
    /// become full: it has as many flows as it may, or a worker's part of them is used up; or has
    /// room again: no flow was refused since the last reading, and a tenth of the limit is free.
    pub fn read(&mut self, max: Option<u32>, flows: u64, refused: u64) -> Option<bool> {
        let refuses = refused > std::mem::replace(&mut self.refused, refused);
        let has_room = max.is_none_or(|max| flows.saturating_mul(10) <= u64::from(max) * 9);
        let at_limit = max.is_some_and(|max| flows >= u64::from(max));
        let full = if refuses || at_limit { max.is_some() } else { self.full && !has_room };
        (std::mem::replace(&mut self.full, full) != full).then_some(full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_full_at_its_limit_or_when_it_refuses_and_until_it_has_room() {
        let mut limit = Limit::default();
        for (name, max, flows, refused, change) in [
            ("below the limit", Some(10), 8, 0, None),
            ("a worker's part is used up", Some(10), 8, 1, Some(true)),
            ("the other's is not", Some(10), 8, 1, Some(false)),
            ("at the limit, none refused", Some(10), 10, 1, Some(true)),
            ("no further one", Some(10), 10, 1, None),
            ("one has ended, and comes back", Some(10), 9, 2, None),
            ("room", Some(10), 9, 2, Some(false)),
            ("full again", Some(10), 10, 3, Some(true)),
            ("no limit any longer", None, 10, 3, Some(false)),
        ] {
            assert_eq!(limit.read(max, flows, refused), change, "{name}");
            assert_eq!(
                limit.is_full(),
                matches!(change, Some(true)) || change.is_none() && limit.full
            );
        }
    }
}
