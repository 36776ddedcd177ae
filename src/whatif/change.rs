//! A change to a VIP, and the VIP before and after it.

use std::fmt;
use std::net::IpAddr;

use tokio::time::Instant;

use crate::config::{self, Config, MAX_WEIGHT};
use crate::control::error::Full;
use crate::control::state::Registry;
use crate::forwarding::{FULL_SHARE, SchedulerKind, Service, VipSpec};
use crate::net::{NextHop, NicIndex};

/// One change to one VIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Name of the VIP.
    pub vip: String,
    /// Action on the VIP.
    pub action: Action,
}

/// Action on a VIP; backends are given by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Removes a backend from the configuration.
    Remove(String),
    /// Adds a backend of weight 1.
    Add(String, IpAddr),
    /// Drains a backend: no new flows.
    Drain(String),
    /// Sets the weight of a backend.
    Weight(String, u32),
    /// Sets the scheduler of the VIP, by name.
    Scheduler(String),
}

impl fmt::Display for Change {
    /// Formats the change as on the command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vip = &self.vip;
        match &self.action {
            Action::Remove(name) => write!(f, "remove {vip}/{name}"),
            Action::Add(name, address) => write!(f, "add {vip}/{name}={address}"),
            Action::Drain(name) => write!(f, "drain {vip}/{name}"),
            Action::Weight(name, weight) => write!(f, "weight {vip}/{name}={weight}"),
            Action::Scheduler(name) => write!(f, "scheduler {vip}={name}"),
        }
    }
}

/// Reason why a change is not possible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The configuration, after the earlier changes, does not allow the change.
    #[error("--change '{change}': {why}")]
    Change {
        /// The change.
        change: Change,
        /// The mistake, and its remedy.
        why: String,
    },
    /// The change exceeds the maximum number of backends.
    #[error(transparent)]
    Full(#[from] Full),
}

/// A VIP before and after its changes: every backend up, its next hop known, no slow start.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Name of the VIP.
    pub name: String,
    /// The VIP as configured.
    pub before: VipSpec,
    /// The VIP with all changes.
    pub after: VipSpec,
    /// Scheduler after the changes, if a change sets it.
    pub scheduler: Option<SchedulerKind>,
}

/// Returns the VIPs that `changes` refer to, in the order of first reference.
///
/// # Errors
/// The first change that is not possible after the earlier ones.
pub fn scenarios(config: &Config, changes: &[Change]) -> Result<Vec<Scenario>, Refusal> {
    let mut edits: Vec<Edit> = Vec::new();
    for change in changes {
        let refused = |why| Refusal::Change { change: change.clone(), why };
        let known = edits.iter().position(|edit| edit.old.name == change.vip);
        let index = known.unwrap_or(edits.len());
        if known.is_none() {
            edits.push(Edit::of(config, &change.vip).map_err(refused)?);
        }
        let mut edit = edits.get_mut(index).into_iter();
        edit.try_for_each(|edit| edit.make(&change.action)).map_err(refused)?;
    }
    // The registry of a reload determines which backends are unchanged.
    let mut registry = Registry::default();
    let mut specs = |vip: fn(&Edit) -> &config::Vip| {
        let vips: Vec<_> = edits.iter().map(|edit| vip(edit).clone()).collect();
        registry.apply(&vips, &[], Instant::now())?;
        // A broken flow counts as broken, even where it would be reset.
        registry.forget_removed();
        Ok::<_, Full>(registry.specs())
    };
    let (before, after) = (specs(|edit| &edit.old)?, specs(|edit| &edit.new)?);
    let pairs = before.into_iter().zip(after).zip(edits);
    Ok(pairs.map(|((before, after), edit)| edit.scenario(before, after)).collect())
}

/// A VIP while changes are applied.
struct Edit {
    old: config::Vip,
    new: config::Vip,
    /// Names of the backends that are drained.
    drained: Vec<String>,
    scheduler: Option<SchedulerKind>,
    table_size: u32,
}

impl Edit {
    fn of(config: &Config, name: &str) -> Result<Self, String> {
        let vip = config.vips.iter().find(|vip| vip.name == name).ok_or_else(|| {
            let known = list(config.vips.iter().map(|vip| vip.name.as_str()));
            format!("there is no VIP {name} in the configuration; it has: {known}")
        })?;
        Ok(Self {
            old: vip.clone(),
            new: vip.clone(),
            drained: Vec::new(),
            scheduler: None,
            table_size: config.hash.table_size,
        })
    }

    fn make(&mut self, action: &Action) -> Result<(), String> {
        match action {
            Action::Remove(name) => {
                let index = self.find(name)?;
                self.new.backends.remove(index);
            }
            Action::Add(name, address) => self.add(name, *address)?,
            Action::Drain(name) => {
                self.find(name)?;
                self.drained.push(name.clone());
            }
            Action::Weight(name, weight) => {
                if *weight > MAX_WEIGHT {
                    return Err(format!("{weight} is too much; a weight is 0 to {MAX_WEIGHT}"));
                }
                let index = self.find(name)?;
                let backend = self.new.backends.get_mut(index);
                backend.into_iter().for_each(|backend| backend.weight = *weight);
            }
            Action::Scheduler(name) => {
                let kind = named(name, self.table_size)?;
                possible(kind, self.new.policy.pin, &self.new.name)?;
                self.scheduler = Some(kind);
            }
        }
        Ok(())
    }

    fn add(&mut self, name: &str, address: IpAddr) -> Result<(), String> {
        let vip = &self.new;
        if address.is_ipv4() != vip.address.is_v4() {
            let what = "is not of the address family of VIP";
            return Err(format!("{address} {what} {}; use one of that family", vip.name));
        }
        // In a simulation, ports only distinguish servers.
        let port = vip.backends.first().and_then(|backend| backend.port);
        let same = |other: &&config::Backend| {
            other.name == name || (other.address, other.port) == (address, port)
        };
        if let Some(other) = vip.backends.iter().find(same) {
            let (vip, known, at) = (&vip.name, &other.name, other.address);
            return Err(format!(
                "VIP {vip} has backend {known} at {at}; use another name and address"
            ));
        }
        // QUIC connection ids and limits are not simulated.
        let (server_ids, max_connections) = (Vec::new(), None);
        let name = name.to_owned();
        self.new.backends.push(config::Backend {
            name,
            address,
            port,
            weight: 1,
            server_ids,
            max_connections,
        });
        Ok(())
    }

    fn find(&self, name: &str) -> Result<usize, String> {
        let vip = &self.new;
        vip.backends.iter().position(|backend| backend.name == name).ok_or_else(|| {
            let known = list(vip.backends.iter().map(|backend| backend.name.as_str()));
            format!("VIP {} has no backend {name}; it has: {known}", vip.name)
        })
    }

    fn scenario(self, mut before: VipSpec, mut after: VipSpec) -> Scenario {
        put_in_service(&mut before, &[]);
        put_in_service(&mut after, &self.drained);
        Scenario { name: self.old.name, before, after, scheduler: self.scheduler }
    }
}

/// Marks every backend as up with a known next hop; backends in `drained` take no new flows.
fn put_in_service(vip: &mut VipSpec, drained: &[String]) {
    for backend in &mut vip.backends {
        backend.up = true;
        backend.share = FULL_SHARE;
        backend.next_hop = Some(NextHop { nic: NicIndex(0), mac: [0; 6], vlan: None });
        if drained.contains(&backend.name) {
            backend.service = Service::Draining;
        }
    }
}

/// Checks that a VIP can have a scheduler.
///
/// # Errors
/// The reason, and the schedulers to use instead.
pub fn possible(kind: SchedulerKind, pin: bool, vip: &str) -> Result<(), String> {
    if pin || !kind.counts_flows() {
        return Ok(());
    }
    Err(format!(
        "{} counts flows, and VIP {vip} has pin = false: use maglev, rendezvous, ring or round_robin",
        kind.as_str()
    ))
}

/// Returns a scheduler by its name, with default settings.
///
/// # Errors
/// The list of valid names.
pub fn named(name: &str, table_size: u32) -> Result<SchedulerKind, String> {
    let kinds = config::schedulers(table_size);
    kinds.iter().copied().find(|kind| kind.as_str() == name).ok_or_else(|| {
        let known = list(kinds.iter().map(|kind| kind.as_str()));
        format!("there is no scheduler {name}; there are: {known}")
    })
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;
    use crate::config::parse;
    use crate::net::BackendId;

    fn config() -> Config {
        let vip = |name: &str, address: &str| {
            format!(
                "[[vip]]\nname = \"{name}\"\naddress = \"{address}\"\nports = [80]\n\
                 forward = \"nat\"\n[[vip.backend]]\nname = \"a\"\naddress = \"10.0.0.1\"\n\
                 port = 8080\n[[vip.backend]]\nname = \"b\"\naddress = \"10.0.0.2\"\nport = 8080\n"
            )
        };
        let head = "[workers]\ncores = [0]\n[[nic]]\ninterface = \"eth1\"\n";
        let vips = vip("web", "192.0.2.10") + &vip("api", "192.0.2.11");
        parse(&format!("{head}{vips}"), "test").unwrap()
    }

    fn on(vip: &str, action: Action) -> Change {
        Change { vip: vip.to_owned(), action }
    }

    fn ids(vip: &VipSpec) -> Vec<(&str, BackendId)> {
        vip.backends.iter().map(|backend| (backend.name.as_str(), backend.id)).collect()
    }

    #[test]
    fn backends_that_stay_keep_their_index_and_those_that_come_back_do_not() {
        let again = Action::Add("a".to_owned(), [10, 0, 0, 1].into());
        let changes = [on("web", Action::Remove("a".to_owned())), on("web", again.clone())];
        let kept = scenarios(&config(), &changes).unwrap();
        let kept = kept.first().unwrap();
        assert_eq!(ids(&kept.before).first(), ids(&kept.after).get(1), "one reload sees no gap");
        let changes = [
            on("web", Action::Remove("a".to_owned())),
            on("web", Action::Add("a".to_owned(), [10, 0, 0, 9].into())),
        ];
        let other = scenarios(&config(), &changes).unwrap();
        let other = other.first().unwrap();
        let (before, after) = (ids(&other.before), ids(&other.after));
        assert_eq!(before.get(1), after.first(), "b stays");
        assert!(!before.iter().any(|(_, id)| after.get(1).unwrap().1 == *id), "another server");
    }

    #[test]
    fn every_vip_that_is_named_is_changed_once() {
        let drain = |name: &str| Action::Drain(name.to_owned());
        let changes = [on("api", drain("a")), on("web", drain("b")), on("api", drain("b"))];
        let made = scenarios(&config(), &changes).unwrap();
        let draining = |vip: &VipSpec| {
            vip.backends.iter().filter(|backend| backend.service == Service::Draining).count()
        };
        let made: Vec<_> = made
            .iter()
            .map(|s| (s.name.as_str(), draining(&s.before), draining(&s.after)))
            .collect();
        assert_eq!(made, [("api", 0, 2), ("web", 0, 1)]);
    }

    #[test]
    fn refusals_say_what_and_what_there_is() {
        let a = || "a".to_owned();
        let rows = [
            (
                on("db", Action::Drain(a())),
                "there is no VIP db in the configuration; it has: web, api",
            ),
            (on("web", Action::Remove("c".to_owned())), "VIP web has no backend c; it has: a, b"),
            (on("web", Action::Weight(a(), 1001)), "1001 is too much; a weight is 0 to 1000"),
            (
                on("web", Action::Add(a(), [10, 0, 0, 3].into())),
                "VIP web has backend a at 10.0.0.1; use another name and address",
            ),
            (
                on("web", Action::Add("c".to_owned(), [10, 0, 0, 2].into())),
                "VIP web has backend b at 10.0.0.2; use another name and address",
            ),
            (
                on("web", Action::Add("c".to_owned(), "2001:db8::1".parse().unwrap())),
                "2001:db8::1 is not of the address family of VIP web; use one of that family",
            ),
        ];
        for (change, why) in rows {
            let refusal = scenarios(&config(), std::slice::from_ref(&change)).unwrap_err();
            assert_eq!(refusal.to_string(), format!("--change '{change}': {why}"));
        }
        let odd = on("web", Action::Scheduler("random".to_owned()));
        let refusal = scenarios(&config(), &[odd]).unwrap_err().to_string();
        let mut datagrams = config();
        for vip in &mut datagrams.vips {
            (vip.protocol, vip.policy.pin) = (crate::net::Protocol::Udp, false);
        }
        let counting = on("web", Action::Scheduler("bounded".to_owned()));
        let refused = scenarios(&datagrams, &[counting]).unwrap_err().to_string();
        let why = "bounded counts flows, and VIP web has pin = false: use maglev, rendezvous, ring or \
                   round_robin";
        assert_eq!(refused, format!("--change 'scheduler web=bounded': {why}"));
        let start =
            "--change 'scheduler web=random': there is no scheduler random; there are: maglev";
        assert!(refusal.starts_with(start), "{refusal}");
    }
}
