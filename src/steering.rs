//! What the control plane sees of the XDP programs and sockets: the joint between `control` and
//! `xdp`, which do not know each other.

use crate::control::{AttachedView, SocketStatistics, SteerCounters, SteeringPort};
use crate::forwarding::{PortIndex, SteerRules};
use crate::xdp::program::Steering;
use crate::xdp::socket::Monitor;

/// The XDP programs of all NICs, in their order, and a view of the sockets of each.
pub struct Steerings(Vec<(Steering, Vec<Monitor>)>);

impl Steerings {
    /// Joins them.
    pub fn new(nics: Vec<(Steering, Vec<Monitor>)>) -> Self {
        Self(nics)
    }
}

impl SteeringPort for Steerings {
    fn sync(&mut self, rules: &SteerRules) -> Result<(), String> {
        self.0
            .iter_mut()
            .try_for_each(|(steering, _)| steering.sync(rules).map_err(|error| error.to_string()))
    }

    fn attach(&mut self) -> Result<Vec<AttachedView>, String> {
        self.0
            .iter_mut()
            .map(|(steering, _)| {
                let mode = steering.attach().map_err(|error| error.to_string())?;
                let fallback = steering.fallback_reason().map(str::to_owned);
                Ok(AttachedView { xdp: mode.as_str().to_owned(), fallback })
            })
            .collect()
    }

    fn counters(&mut self, nic: PortIndex) -> SteerCounters {
        let counters =
            self.0.get(usize::from(nic.0)).and_then(|(steering, _)| steering.counters().ok());
        counters.map_or_else(SteerCounters::default, |counters| SteerCounters {
            steered: counters.steered + counters.returned,
            passed: counters.passed,
            no_socket: counters.no_socket,
        })
    }

    fn socket_statistics(&mut self, nic: PortIndex) -> SocketStatistics {
        let monitors = self.0.get(usize::from(nic.0)).map_or(&[][..], |(_, monitors)| monitors);
        let mut sum = SocketStatistics::default();
        for socket in monitors.iter().filter_map(|monitor| monitor.statistics().ok()) {
            sum.rx_dropped += socket.rx_dropped;
            sum.rx_ring_full += socket.rx_ring_full;
            sum.rx_fill_empty += socket.rx_fill_empty;
            sum.rx_invalid += socket.rx_invalid;
            sum.tx_invalid += socket.tx_invalid;
        }
        sum
    }
}
