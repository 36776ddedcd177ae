//! Budgets of new flows: of all clients together, and of each network of clients.

/// Budgets of new flows; the default has no bounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NewFlows {
    /// New flows per second of all clients; `None`: no bound.
    pub per_second: Option<u32>,
    /// New flows per second of each network; `None`: no bound.
    pub per_prefix: Option<PrefixBudget>,
}

/// Budget of each network of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixBudget {
    /// Length of the prefix of IPv4 clients.
    pub v4: u8,
    /// Length of the prefix of IPv6 clients.
    pub v6: u8,
    /// New flows per second.
    pub per_second: u32,
}

impl NewFlows {
    /// Whether there is a bound.
    #[inline]
    pub const fn is_bounded(&self) -> bool {
        self.per_second.is_some() || self.per_prefix.is_some()
    }

    /// Returns the budgets of one of `workers` workers, among which NICs spread the flows evenly; at
    /// least one flow each.
    #[must_use]
    pub fn per_worker(self, workers: usize) -> Self {
        let workers = u32::try_from(workers).unwrap_or(u32::MAX).max(1);
        let part = |whole: u32| whole.div_ceil(workers);
        let per_prefix = self
            .per_prefix
            .map(|budget| PrefixBudget { per_second: part(budget.per_second), ..budget });
        Self { per_second: self.per_second.map(part), per_prefix }
    }
}
