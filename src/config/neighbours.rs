//! The neighbours file of `holdfast replay`, as TOML: facts that a running holdfast gets from the
//! kernel and from its health checks.
//!
//! ```toml
//! [[nic]]
//! interface = "eth1"
//! mac = "02:00:00:00:00:01"
//! mtu = 1500
//! addresses = ["192.0.2.1"]
//!
//! [[neighbour]]
//! address = "10.0.0.11"
//! mac = "02:00:00:00:00:11"
//! interface = "eth1"
//! vlan = 100
//! mtu = 1400
//! state = "up"
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

use super::checked::Config;
use super::key_path::KeyPath;
use super::report::Report;
use super::{ConfigErrors, load_text};
use crate::net::vlan::Tags;
use crate::net::{NextHop, NicIndex};

/// Default MTU: that of Ethernet.
const MTU: u16 = 1500;
/// Smallest MTU: every network carries 68 bytes (RFC 791 3.2).
const LEAST_MTU: u16 = 68;
/// Highest VLAN id: 0 means no VLAN, 4095 is reserved (IEEE 802.1Q 9.6).
const LAST_VLAN: u16 = 4094;

/// Contents of the file, checked against a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbours {
    /// Every NIC of the configuration, indexed by `NicIndex`.
    pub nics: Vec<NicFacts>,
    /// Facts of each backend, by its address.
    pub backends: BTreeMap<IpAddr, BackendFacts>,
}

/// Facts of a NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicFacts {
    /// MAC address.
    pub mac: [u8; 6],
    /// Largest IP packet that the NIC sends, in bytes.
    pub mtu: u16,
    /// Local addresses: packets to them stay in the kernel.
    pub addresses: Vec<IpAddr>,
}

/// Facts of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendFacts {
    /// Next hop of frames to the backend.
    pub hop: NextHop,
    /// Largest IP packet that may leave towards the backend, in bytes; `None`: the MTU of its NIC.
    pub mtu: Option<u16>,
    /// Health and drain state.
    pub state: BackendState,
}

/// State of a backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BackendState {
    /// In service.
    #[default]
    Up,
    /// Down: its health check fails.
    Down,
    /// Draining: keeps its flows, and takes no new ones.
    Draining,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawNic {
    interface: Option<String>,
    mac: Option<String>,
    mtu: Option<i64>,
    addresses: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawNeighbour {
    address: Option<String>,
    mac: Option<String>,
    interface: Option<String>,
    vlan: Option<RawVlan>,
    mtu: Option<i64>,
    state: Option<String>,
}

/// `vlan`: one number, or a list of numbers from the outermost tag inwards.
#[derive(Debug)]
struct RawVlan(Vec<i64>);

impl<'de> Deserialize<'de> for RawVlan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = RawVlan;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, such as 100, or a list, such as [100, 200]")
            }

            fn visit_i64<E>(self, vlan: i64) -> Result<RawVlan, E> {
                Ok(RawVlan(vec![vlan]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RawVlan, A::Error> {
                let mut vlans = Vec::new();
                while let Some(vlan) = list.next_element()? {
                    vlans.push(vlan);
                }
                Ok(RawVlan(vlans))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

/// Reads and checks a neighbours file.
///
/// # Errors
/// Every mistake in the file, or one error if the file cannot be read.
pub fn load_neighbours(path: &Path, config: &Config) -> Result<Neighbours, ConfigErrors> {
    let (text, file_name) = load_text(path)?;
    parse_neighbours(&text, &file_name, config)
}

/// Checks the text of a neighbours file; messages use `file_name` as the name of the file.
///
/// # Errors
/// Every mistake in the text.
pub fn parse_neighbours(
    text: &str,
    file_name: &str,
    config: &Config,
) -> Result<Neighbours, ConfigErrors> {
    let mut report = Report::parse(text, file_name)?;
    let neighbours = check(config, &mut report);
    report.finish()?;
    Ok(neighbours)
}

fn check(config: &Config, report: &mut Report<'_>) -> Neighbours {
    let mut document = report.document();
    let root = KeyPath::root();
    let nics_at = root.key("nic");
    let mut nics = BTreeMap::new();
    for (index, section) in report.tables(document.remove("nic"), &nics_at).into_iter().enumerate()
    {
        let key_path = nics_at.index(index);
        let raw: RawNic = report.read(section, &key_path);
        if let Some((port, facts)) = check_nic(raw, &key_path, config, report)
            && nics.insert(port.0, facts).is_some()
        {
            report.error(&key_path.key("interface"), "given twice", "give each NIC once");
        }
    }
    let backends_at = root.key("neighbour");
    let mut backends = BTreeMap::new();
    for (index, section) in
        report.tables(document.remove("neighbour"), &backends_at).into_iter().enumerate()
    {
        let key_path = backends_at.index(index);
        let raw: RawNeighbour = report.read(section, &key_path);
        if let Some((address, facts)) = check_neighbour(raw, &key_path, config, report)
            && backends.insert(address, facts).is_some()
        {
            report.error(&key_path.key("address"), "given twice", "give each backend once");
        }
    }
    for key in document.keys() {
        let fix = "the sections are: [[nic]], [[neighbour]]";
        report.unknown(key.get_ref(), key.span().start, "unknown section or key", fix);
    }
    let mut all = Vec::with_capacity(config.nics.len());
    for (nic, port) in config.nics.iter().zip(0..) {
        match nics.remove(&port) {
            Some(facts) => all.push(facts),
            None => report.missing(
                &nics_at,
                &format!("add [[nic]] with interface = \"{}\" and its mac", nic.interface),
            ),
        }
    }
    Neighbours { nics: all, backends }
}

fn check_nic(
    raw: RawNic,
    key_path: &KeyPath,
    config: &Config,
    report: &mut Report<'_>,
) -> Option<(NicIndex, NicFacts)> {
    let port = interface(&key_path.key("interface"), raw.interface, config, report);
    let mac = mac(&key_path.key("mac"), raw.mac, report);
    let mtu = report.integer(&key_path.key("mtu"), raw.mtu, MTU, LEAST_MTU..=u16::MAX);
    let addresses_at = key_path.key("addresses");
    let mut addresses = Vec::with_capacity(raw.addresses.len());
    for (index, text) in raw.addresses.iter().enumerate() {
        addresses.extend(report.address(&addresses_at.index(index), Some(text)));
    }
    Some((port?, NicFacts { mac: mac?, mtu, addresses }))
}

fn check_neighbour(
    raw: RawNeighbour,
    key_path: &KeyPath,
    config: &Config,
    report: &mut Report<'_>,
) -> Option<(IpAddr, BackendFacts)> {
    const STATES: &[(&str, BackendState)] = &[
        ("up", BackendState::Up),
        ("down", BackendState::Down),
        ("draining", BackendState::Draining),
    ];
    let address_at = key_path.key("address");
    let address = report.address(&address_at, raw.address.as_deref());
    let mut all = config.vips.iter().flat_map(|vip| &vip.backends);
    if let Some(address) = address
        && !all.any(|backend| backend.address == address)
    {
        let fix = "name the address of a backend of the configuration; its gateway, if there is \
                   one, is given by mac";
        report.error(&address_at, format!("{address} is no backend's address"), fix);
    }
    let port = interface(&key_path.key("interface"), raw.interface, config, report);
    let mac = mac(&key_path.key("mac"), raw.mac, report);
    let vlan = vlan(&key_path.key("vlan"), raw.vlan, report);
    let range = LEAST_MTU..=u16::MAX;
    let mtu = raw.mtu.map(|mtu| report.integer(&key_path.key("mtu"), Some(mtu), MTU, range));
    let word = raw.state.as_deref();
    let state = word.and_then(|word| report.word(&key_path.key("state"), word, STATES, &[]));
    let hop = NextHop { nic: port?, mac: mac?, vlan };
    Some((address?, BackendFacts { hop, mtu, state: state.unwrap_or_default() }))
}

/// Looks up a NIC of the configuration by its interface name.
fn interface(
    key_path: &KeyPath,
    name: Option<String>,
    config: &Config,
    report: &mut Report<'_>,
) -> Option<NicIndex> {
    let names = || {
        let names = config.nics.iter().map(|nic| format!("\"{}\"", nic.interface));
        names.collect::<Vec<_>>().join(" or ")
    };
    let Some(name) = name else {
        report.missing(key_path, &format!("name a NIC of the configuration: {}", names()));
        return None;
    };
    let found = config.nics.iter().zip(0..).find(|(nic, _)| nic.interface == name);
    if found.is_none() {
        let what = format!("\"{name}\" is no [[nic]] of the configuration");
        report.error(key_path, what, &format!("use {}", names()));
    }
    found.map(|(_, port)| NicIndex(port))
}

/// Parses the MAC address of one station.
fn mac(key_path: &KeyPath, text: Option<String>, report: &mut Report<'_>) -> Option<[u8; 6]> {
    const FIX: &str = "write six bytes in hex, such as mac = \"02:00:00:00:00:01\"";
    let Some(text) = text else {
        report.missing(key_path, FIX);
        return None;
    };
    let Some(mac) = parse_mac(&text) else {
        report.error(key_path, format!("\"{text}\" is not a MAC address"), FIX);
        return None;
    };
    let [first, ..] = mac;
    if first & 1 == 1 || mac == [0; 6] {
        let fix = "use the address of one station: the first byte is even, and not all are 0";
        report.error(key_path, format!("{text} is not the address of one station"), fix);
        return None;
    }
    Some(mac)
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = text.split(':').map(|byte| {
        let is_hex = byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit());
        u8::from_str_radix(byte, 16).ok().filter(|_| is_hex)
    });
    let mut mac = [0; 6];
    for key_path in &mut mac {
        *key_path = bytes.next()??;
    }
    bytes.next().is_none().then_some(mac)
}

fn vlan(key_path: &KeyPath, raw: Option<RawVlan>, report: &mut Report<'_>) -> Option<Tags> {
    let RawVlan(list) = raw?;
    let mut check = |vlan: i64| report.integer(key_path, Some(vlan), 1, 1..=LAST_VLAN);
    match *list.as_slice() {
        [vlan] => Some(check(vlan).into()),
        [outer, inner] => Some(Tags::two(check(outer), check(inner))),
        _ => {
            let what = format!("{} VLAN tags", list.len());
            report.error(
                key_path,
                what,
                "write one or two, such as vlan = 100 or vlan = [100, 200]",
            );
            None
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
        workers = { cores = [0] }
        nic = [{ interface = "eth1" }, { interface = "eth2" }]
        vip = [{ name = "v", address = "192.0.2.1", ports = [80], forward = "nat",
                 backend = [{ name = "a", address = "10.0.0.11" },
                            { name = "b", address = "10.0.0.12" }] }]
    "#;
    const NICS: &str = "[[nic]]\ninterface = \"eth1\"\nmac = \"02:00:00:00:00:01\"\n\
                        [[nic]]\ninterface = \"eth2\"\nmac = \"02:00:00:00:00:02\"\n";

    fn read(text: &str) -> Result<Neighbours, ConfigErrors> {
        parse_neighbours(text, "n.toml", &super::super::parse(CONFIG, "c.toml").unwrap())
    }

    #[test]
    fn everything_can_be_told() {
        let text = r#"
            [[nic]]
            interface = "eth2"
            mac = "02:00:00:00:00:02"
            mtu = 9000
            addresses = ["10.0.0.1", "2001:db8::1"]
            [[nic]]
            interface = "eth1"
            mac = "02:00:00:00:00:0A"
            [[neighbour]]
            address = "10.0.0.12"
            mac = "02:00:00:00:00:12"
            interface = "eth2"
            vlan = 100
            mtu = 1400
            state = "draining"
            [[neighbour]]
            address = "10.0.0.11"
            mac = "02:00:00:00:00:11"
            interface = "eth1"
            vlan = [100, 200]
        "#;
        let Neighbours { nics, backends } = read(text).unwrap();
        let nics: Vec<_> =
            nics.iter().map(|nic| (nic.mac[5], nic.mtu, nic.addresses.len())).collect();
        assert_eq!(nics, [(10, 1500, 0), (2, 9000, 2)], "in the configuration's order");
        let backends: Vec<_> = backends.values().copied().collect();
        let hop =
            |port, last, vlan| NextHop { nic: NicIndex(port), mac: [2, 0, 0, 0, 0, last], vlan };
        assert_eq!(
            backends,
            [
                BackendFacts {
                    hop: hop(0, 0x11, Some(Tags::two(100, 200))),
                    mtu: None,
                    state: BackendState::Up
                },
                BackendFacts {
                    hop: hop(1, 0x12, Some(100.into())),
                    mtu: Some(1400),
                    state: BackendState::Draining
                },
            ]
        );
    }

    #[test]
    fn mistakes_are_told_with_line_key_and_cure() {
        let neighbour = "[[neighbour]]\naddress = \"10.0.0.11\"\nmac = \"02:00:00:00:00:11\"\n";
        let rows = [
            ("", "n.toml:1:1: nic: missing; add [[nic]] with interface = \"eth1\" and its mac"),
            ("x = 1\n", "n.toml:1:1: x: unknown section or key; the sections are"),
            ("[[nic]]\ninterface = \"eth1\"\nmac = \"02:00:00:00:00:01\"\n", "given twice"),
            (
                "[[nic]]\ninterface = \"eth9\"\nmac = \"02:00:00:00:00:01\"\n",
                "n.toml:8:13: nic.interface: \"eth9\" is no [[nic]] of the configuration; use \"eth1\" or \"eth2\"",
            ),
            (
                "[[neighbour]]\naddress = \"10.0.0.99\"\nmac = \"02:00:00:00:00:11\"\ninterface = \"eth1\"\n",
                "n.toml:8:11: neighbour.address: 10.0.0.99 is no backend's address; name",
            ),
            (neighbour, "neighbour.interface: missing; name a NIC of the configuration"),
            (
                "[[neighbour]]\nmac = \"02:00:00:00:0:11\"\n",
                "is not a MAC address; write six bytes",
            ),
            ("[[neighbour]]\nmac = \"01:00:5e:00:00:11\"\n", "is not the address of one station"),
            ("[[neighbour]]\nmac = \"02:00:00:00:00:11:22\"\n", "is not a MAC address"),
            ("[[neighbour]]\nvlan = 4095\n", "neighbour.vlan: 4095 is out of range; use 1 to 4094"),
            ("[[neighbour]]\nvlan = []\n", "neighbour.vlan: 0 VLAN tags"),
            ("[[neighbour]]\nvlan = \"x\"\n", "neighbour.vlan: invalid type"),
            ("[[neighbour]]\nmtu = 67\n", "neighbour.mtu: 67 is out of range; use 68 to 65535"),
            ("[[neighbour]]\nstate = \"gone\"\n", "use \"up\" or \"down\" or \"draining\""),
            (
                "[[neighbour]]\nmacs = 1\n",
                "neighbour.macs: unknown key `macs`; the keys here are: address",
            ),
        ];
        for (text, part) in rows {
            // Keys of the file come before its sections.
            let text = match text {
                "" => String::new(),
                key if key.starts_with('x') => format!("{key}{NICS}"),
                section => format!("{NICS}{section}"),
            };
            let messages = read(&text).unwrap_err().messages();
            assert!(messages.iter().any(|message| message.contains(part)), "{part}: {messages:#?}");
        }
    }
}
