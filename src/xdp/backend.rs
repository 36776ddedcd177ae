//! The tc program of a backend (`backend.bpf.c`): loading, attachment, counters, removal.
//!
//! It is attached through rtnetlink, and stays without a process, until the next load replaces it in
//! one step, or it is removed. The name of the filter has the id of the map with its counters, by
//! which [`counters`] finds them.

use std::io;

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use aya::programs::ProgramError as AyaError;
use aya::{EbpfError, Pod};

use super::netlink::{IngressFilter, NetlinkError, Rtnetlink};
use super::object::{CLASSIFIER, Object};
use super::program::error::with_causes;
use crate::net::{Address, FleetKey};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/backend.bpf.o"));

/// Name of the program in the object.
const NAME: &str = "holdfast_backend";
/// Between the name and the id of the map with the counters.
const COUNTERS: &str = "/counts/";
/// Number of counters. Keep in step with backend.bpf.c.
const COUNTS: usize = 9;
/// Place of the program among the filters of a NIC: 'H', 'B'.
const FILTER: IngressFilter = IngressFilter { priority: 1, handle: 0x4842 };
/// Most VIPs. Keep in step with backend.bpf.c.
pub const MAX_VIPS: usize = 4096;

/// Settings of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Destinations of the packets that are decapsulated: at most [`MAX_VIPS`].
    pub vips: Vec<Address>,
    /// UDP port of GUE.
    pub gue_port: u16,
    /// The fleet's key, and the one before it.
    pub keys: [FleetKey; 2],
}

/// Decisions of the program since it was loaded, in packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Decapsulated, without an ask.
    pub decapsulated: u64,
    /// Asks about a flow that is here.
    pub owned: u64,
    /// Asks about a flow that is not here, which went to the next hop.
    pub passed_on: u64,
    /// Asks about a flow that no hop had, which were delivered here.
    pub last: u64,
    /// Asks about a packet that was cut off and whose flow no hop had.
    pub probes_lost: u64,
    /// Asks with a wrong tag.
    pub bad_tag: u64,
    /// Asks that cannot be read.
    pub malformed: u64,
    /// Tunnel packets to an address that is no VIP, which were left to the kernel.
    pub refused: u64,
    /// Hellos of boxes, which were answered.
    pub hellos: u64,
}

/// Reason why the program cannot be loaded, attached or read.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The interface does not exist.
    #[error("there is no interface {interface}; there are: {}", existing.join(", "))]
    NoInterface {
        /// The name.
        interface: String,
        /// The names that exist.
        existing: Vec<String>,
    },
    /// Too many VIPs.
    #[error("{0} VIPs, and the program has room for {MAX_VIPS}")]
    TooManyVips(usize),
    /// The kernel refuses it.
    #[error("{interface}: {what} refused: {reason}; run as root, on kernel 6.1 or newer")]
    Refused {
        /// The interface.
        interface: String,
        /// Attempted operation.
        what: &'static str,
        /// The kernel's reason.
        reason: String,
    },
}

/// The map `conf`. Keep in step with backend.bpf.c.
#[derive(Clone, Copy)]
#[repr(C)]
struct Conf {
    keys: [[u64; 2]; 2],
    gue_port: [u8; 2],
    zero: [u8; 6],
}

// SAFETY: integers without padding.
#[expect(unsafe_code, reason = "aya's marker of plain data")]
unsafe impl Pod for Conf {}

/// Loads the program and attaches it at the ingress of an interface, in the place of an earlier one.
///
/// # Errors
/// [`BackendError`]; an earlier program stays then.
pub fn load(interface: &str, settings: &Settings) -> Result<(), BackendError> {
    if settings.vips.len() > MAX_VIPS {
        return Err(BackendError::TooManyVips(settings.vips.len()));
    }
    let (netlink, index) = link(interface)?;
    let refused = |what| {
        move |error: EbpfError| BackendError::Refused {
            interface: interface.to_owned(),
            what,
            reason: with_causes(&error),
        }
    };
    let mut object = Object::create(OBJECT).map_err(refused("the maps"))?;
    fill(&mut object, settings).map_err(|error| refused("a map")(error.into()))?;
    let program = object
        .load(NAME, CLASSIFIER)
        .map_err(|error: AyaError| refused("the program")(error.into()))?;
    let counts = object.map_id("counts").map_err(|error| refused("a map")(error.into()))?;
    let name = format!("{NAME}{COUNTERS}{counts}");
    netlink
        .add_clsact(index)
        .and_then(|()| netlink.set_ingress_filter(index, program.fd(), name, &FILTER))
        .map_err(|error| no(interface, "attaching the program", &error))
}

fn fill(object: &mut Object, settings: &Settings) -> Result<(), MapError> {
    let words = |FleetKey(key): FleetKey| {
        let [low, high] = [0, 8].map(|at| key.get(at..at + 8).unwrap_or_default());
        [low, high].map(|half| u64::from_le_bytes(half.try_into().unwrap_or_default()))
    };
    let [present, earlier] = settings.keys;
    let conf = Conf {
        keys: [words(present), words(earlier)],
        gue_port: settings.gue_port.to_be_bytes(),
        zero: [0; 6],
    };
    Array::<_, Conf>::try_from(object.map_mut("conf")?)?.set(0, conf, 0)?;
    let mut vips = HashMap::<_, [u8; 16], u8>::try_from(object.map_mut("vips")?)?;
    settings.vips.iter().try_for_each(|vip| vips.insert(vip.octets(), 1, 0))
}

/// Removes the program from an interface; returns whether it was there.
///
/// # Errors
/// [`BackendError`].
pub fn unload(interface: &str) -> Result<bool, BackendError> {
    let (netlink, index) = link(interface)?;
    let found = netlink.ingress_filter(index, &FILTER);
    let found = found.map_err(|error| no(interface, "a look at the filters", &error))?;
    netlink
        .remove_ingress_filter(index, &FILTER)
        .map_err(|error| no(interface, "removing the program", &error))?;
    Ok(found.is_some())
}

/// Returns the counters of the program on an interface, summed over all CPUs; `None` without one.
///
/// # Errors
/// [`BackendError`].
pub fn counters(interface: &str) -> Result<Option<Counters>, BackendError> {
    let (netlink, index) = link(interface)?;
    let found = netlink.ingress_filter(index, &FILTER);
    let found = found.map_err(|error| no(interface, "a look at the filters", &error))?;
    let id = found.and_then(|name| name.strip_prefix(NAME)?.strip_prefix(COUNTERS)?.parse().ok());
    let Some(id) = id else { return Ok(None) };
    let read = |id| {
        let map = Map::PerCpuArray(MapData::from_id(id)?);
        PerCpuArray::<_, [u64; COUNTS]>::try_from(map)?.get(&0, 0)
    };
    let per_cpu = read(id).map_err(|error| BackendError::Refused {
        interface: interface.to_owned(),
        what: "reading the counters",
        reason: with_causes(&error),
    })?;
    let mut sum = [0_u64; COUNTS];
    for counts in per_cpu.iter() {
        sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    let [decapsulated, owned, passed_on, last, probes_lost, bad_tag, malformed, refused, hellos] =
        sum;
    Ok(Some(Counters {
        decapsulated,
        owned,
        passed_on,
        last,
        probes_lost,
        bad_tag,
        malformed,
        refused,
        hellos,
    }))
}

fn link(interface: &str) -> Result<(Rtnetlink, u32), BackendError> {
    let os = |error: io::Error| no(interface, "a netlink socket", &error.into());
    let netlink = Rtnetlink::open().map_err(os)?;
    let asked = |error: NetlinkError| no(interface, "a look at the interfaces", &error);
    if let Some(link) = netlink.link_by_name(interface).map_err(asked)? {
        return Ok((netlink, link.index));
    }
    let existing = netlink.links().map_err(asked)?.into_iter().map(|link| link.name).collect();
    Err(BackendError::NoInterface { interface: interface.to_owned(), existing })
}

fn no(interface: &str, what: &'static str, error: &NetlinkError) -> BackendError {
    BackendError::Refused { interface: interface.to_owned(), what, reason: error.to_string() }
}
