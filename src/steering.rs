//! The XDP programs and sockets as seen by the control plane: connects `control` and `xdp`, which
//! do not depend on each other.

use crate::control::{
    AccessDrops, AccessMaps, AttachedView, NicNow, ProgramNow, SocketStatistics, SteerCounters,
    SteeringProgram,
};
use crate::net::{ListEntry, ListKey, NicIndex, SteerRules, VipId};
use crate::xdp::nic::{self, LinkNow, Nic};
use crate::xdp::program::{AccessMap, Attached, ProgramError, Steering};
use crate::xdp::socket::Monitor;

/// Error of a request for a NIC that is not configured.
const NO_NIC: &str = "there is no such NIC";

/// A NIC with its XDP program and views of its sockets.
pub struct Steered {
    /// The NIC.
    pub nic: Nic,
    /// The NIC's XDP program.
    pub steering: Steering,
    /// Views of the NIC's sockets.
    pub monitors: Vec<Monitor>,
}

/// All NICs, indexed by [`NicIndex`].
pub struct Steerings {
    nics: Vec<Steered>,
    /// Begins to close the sockets.
    close: Option<Box<dyn FnOnce()>>,
}

impl Steerings {
    /// Creates the list from the NICs in configuration order. At its end `close` is called, which
    /// begins to close the sockets, and then the programs are removed from the NICs.
    pub fn new(nics: Vec<Steered>, close: Box<dyn FnOnce()>) -> Self {
        Self { nics, close: Some(close) }
    }

    fn get(&self, nic: NicIndex) -> Option<&Steered> {
        self.nics.get(usize::from(nic.0))
    }

    /// Changes the program of a NIC.
    fn change(
        &mut self,
        nic: NicIndex,
        change: impl FnOnce(&mut Steering) -> Result<(), ProgramError>,
    ) -> Result<(), String> {
        let steered = self.nics.get_mut(usize::from(nic.0)).ok_or(NO_NIC)?;
        change(&mut steered.steering).map_err(|error| error.to_string())
    }
}

impl Drop for Steerings {
    fn drop(&mut self) {
        // The kernel waits when the last copy of a socket is closed. That must not be one of these.
        self.nics.iter_mut().for_each(|nic| nic.monitors.clear());
        if let Some(close) = self.close.take() {
            close();
        }
    }
}

/// The lists in the programs of all NICs.
struct Lists(Vec<AccessMap>);

impl AccessMaps for Lists {
    fn insert(&mut self, key: &ListKey, entry: ListEntry) -> Result<(), String> {
        let inserted = self.0.iter_mut().try_for_each(|map| map.insert(key, entry));
        inserted.map_err(|error| error.to_string())
    }

    fn remove(&mut self, key: &ListKey) -> Result<(), String> {
        let removed = self.0.iter_mut().map(|map| map.remove(key)).fold(Ok(()), Result::and);
        removed.map_err(|error| error.to_string())
    }
}

impl SteeringProgram for Steerings {
    fn sync(&mut self, rules: &SteerRules) -> Result<(), String> {
        self.nics
            .iter_mut()
            .try_for_each(|nic| nic.steering.sync(rules).map_err(|error| error.to_string()))
    }

    fn attach(&mut self) -> Result<Vec<AttachedView>, String> {
        // Forwarding begins with the programs, so the guards, which take the verifier some time,
        // come after all of them.
        for Steered { steering, .. } in &mut self.nics {
            steering.attach().map_err(|error| error.to_string())?;
        }
        let attached = |Steered { steering, .. }: &mut Steered| {
            let unguarded = steering.guard().err().map(|error| error.to_string());
            let fallback = steering.fallback_reason().map(str::to_owned);
            let xdp = steering.mode().map_or("", Attached::as_str).to_owned();
            AttachedView { xdp, fallbacks: fallback.into_iter().chain(unguarded).collect() }
        };
        Ok(self.nics.iter_mut().map(attached).collect())
    }

    fn counters(&mut self, nic: NicIndex) -> SteerCounters {
        let counters = self.get(nic).and_then(|nic| nic.steering.counters().ok());
        counters.map_or_else(SteerCounters::default, |counters| SteerCounters {
            steered: counters.steered + counters.returned,
            passed: counters.passed,
            no_socket: counters.no_socket,
            guarded: counters.guarded,
            dropped: AccessDrops {
                denied: counters.dropped.denied,
                not_allowed: counters.dropped.not_allowed,
                over_rate: counters.dropped.over_rate,
            },
        })
    }

    fn access_drops(&mut self, vip: VipId) -> AccessDrops {
        let drops = self.nics.iter().filter_map(|nic| nic.steering.access_drops(vip).ok());
        drops.fold(AccessDrops::default(), |sum, drops| AccessDrops {
            denied: sum.denied + drops.denied,
            not_allowed: sum.not_allowed + drops.not_allowed,
            over_rate: sum.over_rate + drops.over_rate,
        })
    }

    fn take_lists(&mut self) -> Result<Box<dyn AccessMaps>, String> {
        let maps = self.nics.iter_mut().map(|nic| nic.steering.take_lists());
        let maps: Result<Vec<AccessMap>, ProgramError> = maps.collect();
        Ok(Box::new(Lists(maps.map_err(|error| error.to_string())?)))
    }

    fn socket_statistics(&mut self, nic: NicIndex) -> SocketStatistics {
        let monitors = self.get(nic).map_or(&[][..], |nic| &nic.monitors);
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

    fn nic_now(&mut self, nic: NicIndex) -> Result<NicNow, String> {
        let steered = self.get(nic).ok_or(NO_NIC)?;
        let now = steered.nic.now().map_err(|error| error.to_string())?;
        let nic::NicNow::There(LinkNow { index, mac, up, carrier, rx_queues, program }) = now
        else {
            return Ok(NicNow::Gone);
        };
        let program = match program {
            None => ProgramNow::None,
            Some(id) if id == steered.steering.id() => ProgramNow::Ours,
            Some(id) => ProgramNow::Other(id),
        };
        let guarded = steered.steering.is_guarded().map_err(|error| error.to_string())?;
        Ok(NicNow::There { ifindex: index, mac, up, carrier, rx_queues, program, guarded })
    }

    fn attach_again(&mut self, nic: NicIndex) -> Result<(), String> {
        self.change(nic, Steering::attach_again)
    }

    fn guard_again(&mut self, nic: NicIndex, ifindex: u32) -> Result<(), String> {
        self.change(nic, |steering| steering.guard_interface(ifindex))
    }

    fn set_mac(&mut self, nic: NicIndex, mac: [u8; 6]) -> Result<(), String> {
        self.change(nic, |steering| steering.set_mac(mac))
    }

    fn leave(&mut self) {
        self.nics.iter_mut().for_each(|nic| nic.steering.leave());
    }
}
