//! Steering of no program, for a control thread without NICs.

use holdfast::control::{
    AccessDrops, AccessMaps, AttachedView, NicNow, SocketStatistics, SteerCounters, SteeringProgram,
};
use holdfast::net::{ListEntry, ListKey, NicIndex, SteerRules, VipId};

/// Steering of no program.
pub struct NoSteering;

/// Lists of no program.
struct NoLists;

impl AccessMaps for NoLists {
    fn insert(&mut self, _key: &ListKey, _entry: ListEntry) -> Result<(), String> {
        Ok(())
    }

    fn remove(&mut self, _key: &ListKey) -> Result<(), String> {
        Ok(())
    }
}

impl SteeringProgram for NoSteering {
    fn sync(&mut self, _rules: &SteerRules) -> Result<(), String> {
        Ok(())
    }

    fn attach(&mut self) -> Result<Vec<AttachedView>, String> {
        Ok(Vec::new())
    }

    fn counters(&mut self, _nic: NicIndex) -> SteerCounters {
        SteerCounters::default()
    }

    fn access_drops(&mut self, _vip: VipId) -> AccessDrops {
        AccessDrops::default()
    }

    fn take_lists(&mut self) -> Result<Box<dyn AccessMaps>, String> {
        Ok(Box::new(NoLists))
    }

    fn socket_statistics(&mut self, _nic: NicIndex) -> SocketStatistics {
        SocketStatistics::default()
    }

    fn nic_now(&mut self, _nic: NicIndex) -> Result<NicNow, String> {
        Err("not looked at here".to_owned())
    }

    fn attach_again(&mut self, _nic: NicIndex) -> Result<(), String> {
        Ok(())
    }

    fn guard_again(&mut self, _nic: NicIndex, _ifindex: u32) -> Result<(), String> {
        Ok(())
    }

    fn set_mac(&mut self, _nic: NicIndex, _mac: [u8; 6]) -> Result<(), String> {
        Ok(())
    }

    fn leave(&mut self) {}
}
