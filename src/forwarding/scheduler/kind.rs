//! Kinds of schedulers, with their settings.

use serde::{Deserialize, Serialize};

use std::fmt;

/// Default number of slots of a table: the prime of the Maglev paper (NSDI 2016, section 3.4), for
/// shares within 1% with 600 backends.
pub const TABLE_SIZE: u32 = 65_537;

/// A scheduler with its settings, as configured for a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerKind {
    /// Consistent hashing with an evenly filled table ([`maglev`](super::maglev)).
    Maglev {
        /// Number of slots: a prime.
        size: u32,
    },
    /// Consistent hashing by a draw of every backend ([`rendezvous`](super::rendezvous)).
    Rendezvous,
    /// Consistent hashing with a ring ([`ring`](super::ring)).
    Ring {
        /// Points per unit of weight, at least 1.
        virtual_nodes: u32,
    },
    /// Smooth weighted round robin ([`round_robin`](super::round_robin)).
    RoundRobin,
    /// The least loaded backend ([`least_connections`](super::least_connections)).
    LeastConnections,
    /// The less loaded of two backends that the hash selects
    /// ([`power_of_two`](super::power_of_two)).
    PowerOfTwo {
        /// Number of slots: a prime.
        size: u32,
    },
    /// Maglev with bounded loads ([`bounded`](super::bounded)).
    Bounded {
        /// Number of slots: a prime.
        size: u32,
        /// Permitted excess of a backend over its share, in thousandths of the share; at least 1.
        e_permille: u32,
    },
}

impl Default for SchedulerKind {
    fn default() -> Self {
        Self::Maglev { size: TABLE_SIZE }
    }
}

impl SchedulerKind {
    /// Configuration keyword.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Maglev { .. } => "maglev",
            Self::Rendezvous => "rendezvous",
            Self::Ring { .. } => "ring",
            Self::RoundRobin => "round_robin",
            Self::LeastConnections => "least_connections",
            Self::PowerOfTwo { .. } => "power_of_two",
            Self::Bounded { .. } => "bounded",
        }
    }

    /// Number of slots of the lookup table, where it is configurable.
    pub const fn table_size(self) -> Option<u32> {
        match self {
            Self::Maglev { size } | Self::PowerOfTwo { size } | Self::Bounded { size, .. } => {
                Some(size)
            }
            Self::Rendezvous | Self::Ring { .. } | Self::RoundRobin | Self::LeastConnections => {
                None
            }
        }
    }

    /// Whether the hash alone chooses among the backends in service: without a pin, every packet of
    /// a flow gets the same backend while that set is unchanged.
    pub const fn is_pure_hash(self) -> bool {
        matches!(self, Self::Maglev { .. } | Self::Rendezvous | Self::Ring { .. })
    }

    /// Whether the choice depends on the number of flows of each backend.
    pub const fn counts_flows(self) -> bool {
        matches!(self, Self::LeastConnections | Self::PowerOfTwo { .. } | Self::Bounded { .. })
    }

    /// Whether flows with one hash go to one backend, at least while its load permits.
    pub const fn heeds_affinity(self) -> bool {
        !matches!(self, Self::RoundRobin | Self::LeastConnections)
    }
}

impl fmt::Display for SchedulerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.as_str();
        match *self {
            Self::Rendezvous | Self::RoundRobin | Self::LeastConnections => f.write_str(word),
            Self::Maglev { size } | Self::PowerOfTwo { size } => {
                write!(f, "{word} (table_size {size})")
            }
            Self::Ring { virtual_nodes } => write!(f, "{word} (virtual_nodes {virtual_nodes})"),
            Self::Bounded { size, e_permille } => {
                let e = f64::from(e_permille) / 1000.0;
                write!(f, "{word} (e {e}, table_size {size})")
            }
        }
    }
}
