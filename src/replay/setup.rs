//! Builds the state that the control thread would have built from a configuration, once every
//! backend is resolved.
//!
//! Without a neighbours file, the kernel's facts are invented, with locally administered addresses.
//! NIC number `n`, from 0 in the file's order, has `02:00:00:01:00:nn`. Backend number `n`, from 0
//! over all VIPs, has `02:00:00:00:nn:nn` on the first NIC, untagged. All backends are up.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::time::Instant;

use super::counters::Names;
use super::error::ReplayError;
use super::offline::{Blueprint, Offline};
use crate::config::driver::largest_mtu;
use crate::config::{Announce, BackendFacts, BackendState, Config, Neighbours};
use crate::control::lists::Lists;
use crate::control::netlink::InterfaceAddress;
use crate::control::state::Registry;
use crate::forwarding::{BackendSpec, ForwardingTable, Service, VipSpec};
use crate::net::{NextHop, NicIndex};
use crate::stats::WorkerStats;
use crate::xdp::steer::{ModelLists, SteerModel};

/// Default MTU in bytes: that of Ethernet.
const MTU: u16 = 1500;

/// Components of a replay.
pub(super) struct Setup {
    pub(super) steer: SteerModel,
    pub(super) nic_macs: Vec<Option<[u8; 6]>>,
    pub(super) offline: Offline,
    pub(super) names: Names,
}

/// Builds the components of a replay.
pub(super) fn setup(
    config: &Config,
    neighbours: Option<&Neighbours>,
) -> Result<Setup, ReplayError> {
    let mut registry = Registry::new(config.full_nat.numbered());
    registry.apply(&config.vips, &[], Instant::now())?;
    let mut specs = registry.specs();
    let mtus: Vec<u16> = match neighbours {
        Some(neighbours) => neighbours.nics.iter().map(|nic| nic.mtu).collect(),
        None => config.nics.iter().map(|_| MTU).collect(),
    };
    for (number, backend) in specs.iter_mut().flat_map(|spec| &mut spec.backends).enumerate() {
        let facts = match neighbours {
            Some(neighbours) => neighbours.backends.get(&backend.address).copied(),
            None => Some(invented(number)),
        };
        know(backend, facts, &mtus);
    }
    let names = names(config, &specs);
    let stats = WorkerStats::new(names.vips.len(), names.backends.len(), names.nics.len());
    let (macs, nics) = nics(config, neighbours, &mtus).into_iter().unzip();
    let local = config.local(mtus, macs);
    let blueprint = Blueprint {
        table: ForwardingTable::build(1, config.hash.secret, local, &specs, None),
        nics,
        stats: Arc::new(stats),
        flows: u32::try_from(config.workers.flows).unwrap_or(u32::MAX),
        families: config.families(),
        spliced: config.spliced(),
        sizes: config.table_sizes(),
        parked: config.fragments.parked,
        frame_size: config.frame_size(&[]),
    };
    let rules = registry.steer_rules(&addresses(config, neighbours));
    let rules = config.tunnels.steered(rules);
    let rules = Lists::of(&config.access, &registry).steered(rules, &registry);
    let own = registry.vips().iter().map(|vip| (vip.id, vip.config.access.clone()));
    let lists = ModelLists { global: config.access.clone(), own: own.collect() };
    let known = |nic: usize| Some(neighbours?.nics.get(nic)?.mac);
    Ok(Setup {
        steer: SteerModel::new(&rules).with_lists(lists),
        nic_macs: (0..config.nics.len()).map(known).collect(),
        offline: Offline::new(blueprint)?,
        names,
    })
}

/// Returns the invented facts of a backend.
fn invented(number: usize) -> BackendFacts {
    let [.., high, low] = number.to_be_bytes();
    let hop = NextHop { nic: NicIndex(0), mac: [2, 0, 0, 0, high, low], vlan: None };
    BackendFacts { hop, mtu: None, state: BackendState::Up }
}

/// Returns the MAC of each NIC, and whether it delivers packets that are longer than a frame: as
/// `run` decides, for a driver that supports it.
fn nics(config: &Config, neighbours: Option<&Neighbours>, mtus: &[u16]) -> Vec<([u8; 6], bool)> {
    let largest = largest_mtu(config.frame_size(&[]));
    let mac = |number: u8| match neighbours {
        Some(neighbours) => neighbours.nics.get(usize::from(number)).map(|nic| nic.mac),
        None => Some([2, 0, 0, 1, 0, number]),
    };
    let plan = |(number, &mtu)| (mac(number).unwrap_or_default(), u32::from(mtu) > largest);
    (0..).zip(mtus).map(plan).collect()
}

/// Applies the facts of the kernel and of the health check to a backend; `None`: its next hop is
/// unknown.
fn know(backend: &mut BackendSpec, facts: Option<BackendFacts>, mtus: &[u16]) {
    backend.next_hop = facts.map(|facts| facts.hop);
    let Some(BackendFacts { hop, mtu, state }) = facts else { return };
    let nic = mtus.get(usize::from(hop.nic.0)).copied().unwrap_or(MTU);
    backend.mtu = mtu.unwrap_or(nic);
    match state {
        BackendState::Up => {}
        BackendState::Down => backend.up = false,
        BackendState::Draining => backend.service = Service::Draining,
    }
}

/// Returns the addresses of the box: those of the neighbours file, and announced VIPs and SNAT
/// addresses.
fn addresses(config: &Config, neighbours: Option<&Neighbours>) -> Vec<InterfaceAddress> {
    let told = neighbours.into_iter().flat_map(|n| &n.nics).flat_map(|nic| &nic.addresses);
    let vips = config.vips.iter().filter(|vip| vip.announce != Announce::None);
    let one = |address: IpAddr| InterfaceAddress {
        ifindex: 0,
        address,
        prefix_len: if address.is_ipv4() { 32 } else { 128 },
        ours: false,
    };
    let sources = &config.full_nat;
    let sources = sources.sources.iter().filter(|_| sources.announce != Announce::None);
    let ours = vips.map(|vip| vip.address.ip()).chain(sources.copied());
    told.copied().chain(ours).map(one).collect()
}

/// Returns the names behind the indices of the counters.
fn names(config: &Config, specs: &[VipSpec]) -> Names {
    let nics = config.nics.iter().map(|nic| nic.interface.clone()).collect();
    let mut names = Names { nics, ..Names::default() };
    for (spec, vip) in specs.iter().zip(&config.vips) {
        Names::put(&mut names.vips, spec.id.0.into(), vip.name.clone());
        for backend in &spec.backends {
            let name = (vip.name.clone(), backend.name.clone());
            Names::put(&mut names.backends, backend.id.index.0.into(), name);
        }
    }
    names
}
