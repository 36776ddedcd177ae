//! `[tunnel]`: the outer packets of VIPs with `forward = "ipip"` or `"gue"`.

use serde::Deserialize;

use super::key_path::KeyPath;
use super::report::Report;
use super::sections::Sections;
use crate::forwarding::tunnel::{GUE_PORT, TunnelSources};
use crate::forwarding::{OuterDf, Ports, Tunnels};
use crate::net::{ADDRESS_BITS, Address, Family, Forward, Network, Protocol};

/// Shortest IPv4 prefix of sources: more addresses do not distinguish more flows.
const WIDEST_V4: u8 = 16;
const WIDEST_V6: u8 = 32;

/// The section as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTunnel {
    source_v4: Option<String>,
    source_v6: Option<String>,
    gue_port: Option<i64>,
    df: Option<String>,
}

impl RawTunnel {
    /// Checks the section.
    pub(super) fn check(self, key_path: &KeyPath, report: &mut Report<'_>) -> Tunnels {
        const WORDS: &[(&str, OuterDf)] =
            &[("inner", OuterDf::Inner), ("set", OuterDf::Set), ("clear", OuterDf::Clear)];
        let port_at = key_path.key("gue_port");
        let df_at = key_path.key("df");
        let df = self.df.and_then(|word| report.word(&df_at, &word, WORDS, &[]));
        Tunnels {
            source_v4: sources(self.source_v4, &key_path.key("source_v4"), Family::V4, report),
            source_v6: sources(self.source_v6, &key_path.key("source_v6"), Family::V6, report),
            gue_port: report.integer(&port_at, self.gue_port, GUE_PORT, 1..=u16::MAX),
            fleet: None,
            outer_df: df.unwrap_or_default(),
        }
    }
}

/// Parses an address, or a prefix without host bits.
fn sources(
    text: Option<String>,
    key_path: &KeyPath,
    family: Family,
    report: &mut Report<'_>,
) -> Option<TunnelSources> {
    let text = text?;
    let (version, example) = match family {
        Family::V4 => (4, "10.0.0.64/26"),
        Family::V6 => (6, "fd00::/64"),
    };
    let (address, len) = match text.split_once('/') {
        Some((address, len)) => (address, Some(len)),
        None => (text.as_str(), None),
    };
    let address = report.address(key_path, Some(address))?;
    let (most, widest) = if address.is_ipv4() { (32, WIDEST_V4) } else { (128, WIDEST_V6) };
    let len = len.map_or(Some(most), |len| len.parse::<u8>().ok().filter(|len| *len <= most));
    let Some(len) = len else {
        let fix = format!("write an address or a prefix, such as \"{example}\"");
        report.error(key_path, format!("\"{text}\" is not a prefix"), &fix);
        return None;
    };
    if Address::from(address).family() != family {
        let what = format!("{text} is not IPv{version}");
        report.error(key_path, what, &format!("write one such as \"{example}\""));
        return None;
    }
    if len < widest {
        let fix = format!("use at most 2^{} addresses, /{widest}", most - widest);
        report.error(key_path, format!("{text} is a wide prefix"), &fix);
        return None;
    }
    let network = Network::of(address.into(), ADDRESS_BITS - (most - len));
    if network.ip() != address {
        let fix = format!("write \"{network}\" for all of the prefix, or \"{address}\" alone");
        report.error(key_path, format!("{text} is an address within its prefix"), &fix);
    }
    Some(TunnelSources::new(network))
}

/// Checks that tunnels have sources of their backends' families, that these addresses are not in
/// use, and that no tunnel carries another.
pub(super) fn rules(sections: &Sections<'_>, report: &mut Report<'_>) {
    needed_sources(sections, report);
    overlaps(sections, report);
    for (vip, _) in sections.vips.iter().filter(|(vip, _)| vip.value.forward.tunnels()) {
        let gue_port = sections.config.tunnels.gue_port;
        let carried = vip.value.protocol == Protocol::Udp
            && matches!(&vip.value.ports, Ports::List(ports) if ports.iter().any(|range| range.contains(gue_port)));
        if carried {
            let what = format!("UDP port {gue_port} is GUE's: a tunnel does not carry another one");
            let fix = "use forward = \"dsr\" or \"nat\", or another [tunnel] gue_port";
            report.error(&vip.key_path.key("ports"), what, fix);
        }
    }
}

fn needed_sources(sections: &Sections<'_>, report: &mut Report<'_>) {
    let tunnels = &sections.config.tunnels;
    for (missing, key, v4, example) in [
        (tunnels.source_v4.is_none(), "source_v4", true, "10.0.0.2"),
        (tunnels.source_v6.is_none(), "source_v6", false, "fd00::2"),
    ] {
        let mut ends =
            sections.vips.iter().filter(|(vip, _)| vip.value.forward.tunnels()).flat_map(
                |(vip, backends)| backends.iter().map(move |backend| (&vip.value, &backend.value)),
            );
        let Some((vip, backend)) = ends.find(|(_, backend)| backend.address.is_ipv4() == v4) else {
            continue;
        };
        if missing {
            let fix = format!(
                "for backend {} of VIP \"{}\" ({}), write [tunnel] {key} = \"{example}\": an address \
                 of this box, or a prefix that is routed to it",
                backend.address,
                vip.name,
                Forward::as_str(vip.forward)
            );
            report.missing(&KeyPath::root().key("tunnel").key(key), &fix);
        }
    }
}

/// Reports sources that are in use: packets from a source must be attributable to this box, and
/// ICMP errors about them must arrive here.
fn overlaps(sections: &Sections<'_>, report: &mut Report<'_>) {
    let tunnels = &sections.config.tunnels;
    let key_path = |address: Address| {
        let key = if address.is_v4() { "source_v4" } else { "source_v6" };
        KeyPath::root().key("tunnel").key(key)
    };
    let mut check = |network: Network, owner: String| {
        if tunnels.meet(network) {
            let what = format!("{network} is in it, an address of {owner}");
            let fix = "use addresses that are not in use";
            report.error(&key_path(network.address()), what, fix);
        }
    };
    let mut full_nat = sections.config.full_nat.sources.iter().map(|&source| Network::from(source));
    // One address suffices for the message.
    if let Some(source) = full_nat.find(|&source| tunnels.meet(source)) {
        check(source, "[full_nat]".to_owned());
    }
    for (vip, backends) in sections.vips {
        check(vip.value.address, format!("VIP \"{}\"", vip.value.name));
        for backend in backends {
            let (vip, backend) = (&vip.value.name, &backend.value);
            check(
                Network::single(backend.address.into()),
                format!("backend \"{}\" of VIP \"{vip}\"", backend.name),
            );
        }
    }
}
